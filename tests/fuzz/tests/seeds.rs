//! The binary seeds of the corpora, which no one can write by hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::path::Path;

use etherparse::PacketBuilder;

const V4: ([u8; 4], [u8; 4]) = ([100, 96, 0, 2], [10, 20, 0, 80]);
const V6: ([u8; 16], [u8; 16]) =
    ([0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80]);

fn built<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes).unwrap();
    bytes
}

fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let v4 = || PacketBuilder::ipv4(V4.0, V4.1, 64);
    let v6 = || PacketBuilder::ipv6(V6.0, V6.1, 64);
    let syn = built(|to| v4().tcp(50_000, 443, 7, 65_000).syn().write(to, &[]));
    let udp6 = built(|to| v6().udp(5000, 53).write(to, b"question"));
    // A hop-by-hop header of eight octets before the UDP header.
    let mut hop_by_hop = udp6.clone();
    hop_by_hop.splice(40..40, [17, 0, 1, 4, 0, 0, 0, 0]);
    hop_by_hop[6] = 0;
    hop_by_hop[5] += 8;
    let mut routing = hop_by_hop.clone();
    routing[6] = 43;
    let mut fragment = syn.clone();
    fragment[6] = 0x20;
    fragment[10..12].fill(0);
    let mut options = syn.clone();
    options[0] = 0x46;
    options.splice(20..20, [1, 1, 1, 0]);
    vec![
        ("tcp4-syn", syn),
        ("tcp6-data", built(|to| v6().tcp(50_000, 443, 7, 65_000).ack(9).psh().write(to, b"hello"))),
        ("udp4", built(|to| v4().udp(5000, 53).write(to, b"question"))),
        ("udp6", udp6),
        ("echo4", built(|to| v4().icmpv4_echo_request(1, 2).write(to, b"data"))),
        ("echo6", built(|to| v6().icmpv6_echo_request(1, 2).write(to, b"data"))),
        ("udp6-hop-by-hop", hop_by_hop),
        ("udp6-routing", routing),
        ("tcp4-fragment", fragment),
        ("tcp4-options", options),
        ("fragments4", stream(&fragments(&built(|to| v4().udp(5000, 53).write(to, &[7; 100]))))),
        ("fragments6", stream(&fragments(&built(|to| v6().udp(5000, 53).write(to, &[7; 100]))))),
        ("fragment6-first", fragments(&built(|to| v6().udp(5000, 53).write(to, &[7; 100]))).swap_remove(0)),
        ("fragment6-last", fragments(&built(|to| v6().udp(5000, 53).write(to, &[7; 100]))).swap_remove(2)),
        ("udp4-large", built(|to| v4().udp(5000, 53).write(to, &[7; 700]))),
        ("tcp6-large", built(|to| v6().tcp(50_000, 443, 7, 65_000).ack(9).write(to, &[7; 700]))),
        ("version-0", vec![0; 40]),
        ("header-only", vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 100, 96, 0, 2, 10, 20, 0, 80]),
    ]
}

/// The three fragments of a packet with 108 octets behind its IP header.
fn fragments(packet: &[u8]) -> Vec<Vec<u8>> {
    let v4 = packet[0] >> 4 == 4;
    let (header, body) = packet.split_at(if v4 { 20 } else { 40 });
    let piece = |(number, data): (usize, &[u8])| {
        let mut piece = header.to_vec();
        let more = u8::from(number < 2);
        if v4 {
            piece[3] = u8::try_from(20 + data.len()).unwrap();
            piece[6..8].copy_from_slice(&[more << 5, u8::try_from(number * 6).unwrap()]);
            piece[10..12].fill(0);
            let sum: u32 = piece.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            let sum = u16::try_from((sum >> 16) + (sum & 0xffff)).unwrap();
            piece[10..12].copy_from_slice(&(!sum).to_be_bytes());
        } else {
            piece[5] = u8::try_from(8 + data.len()).unwrap();
            piece[6] = 44;
            piece.extend([17, 0, 0, u8::try_from(number * 48).unwrap() | more, 0, 0, 0, 9]);
        }
        piece.extend(data);
        piece
    };
    body.chunks(48).enumerate().map(piece).collect()
}

/// Packets of one device, one after the other.
fn stream(packets: &[Vec<u8>]) -> Vec<u8> {
    let record = |packet: &Vec<u8>| [&[0, 0, u8::try_from(packet.len()).unwrap()], packet.as_slice()].concat();
    packets.iter().map(record).collect::<Vec<_>>().concat()
}

/// A segment: which tuple, flags, how far from the expected numbers, window, payload in words.
fn segment(which: u8, flags: u8, window: u16, words: u8) -> Vec<u8> {
    let [high, low] = window.to_be_bytes();
    vec![0, which, flags, 0, 0, high, low, words]
}

/// The flow at `which` is dialled; its target sends `send` bytes, takes `appetite` and may close.
fn accept(which: u8, send: u16, appetite: u16, closes: bool) -> Vec<u8> {
    let ([s1, s2], [a1, a2]) = (send.to_be_bytes(), appetite.to_be_bytes());
    vec![10, which, 1, s1, s2, a1, a2, u8::from(closes)]
}

fn more(which: u8, send: u16, appetite: u16, closes: bool) -> Vec<u8> {
    let ([s1, s2], [a1, a2]) = (send.to_be_bytes(), appetite.to_be_bytes());
    vec![13, which, s1, s2, a1, a2, u8::from(closes)]
}

fn pass(power: u8) -> Vec<u8> {
    vec![8, power]
}

const SYN: u8 = 1;
const ACK: u8 = 2;
const FIN_ACK: u8 = 6;
const RST: u8 = 8;

fn operations() -> Vec<(&'static str, Vec<u8>)> {
    let open = |send, appetite, closes| {
        [vec![16], segment(0, SYN, 9000, 0), accept(0, send, appetite, closes), segment(0, ACK, 9000, 0)].concat()
    };
    vec![
        ("held", [vec![16], segment(0, SYN, 9000, 0), segment(0, SYN, 9000, 0), segment(0, RST, 0, 0)].concat()),
        (
            "client-closes",
            [open(0, 9000, true), segment(0, ACK, 9000, 100), segment(0, FIN_ACK, 9000, 0), pass(5)].concat(),
        ),
        (
            "target-closes",
            [open(3000, 9000, true), segment(0, ACK, 9000, 0), segment(0, FIN_ACK, 9000, 0), pass(14)].concat(),
        ),
        (
            "slow-target",
            [
                open(0, 0, true),
                segment(0, FIN_ACK, 9000, 100),
                pass(14),
                segment(0, SYN, 9000, 0),
                pass(3),
                more(0, 0, 9000, true),
            ]
            .concat(),
        ),
        ("reset", [open(3000, 9000, false), segment(0, ACK, 0, 0), segment(0, RST, 0, 0)].concat()),
        ("zero-window", [open(9000, 9000, false), segment(0, ACK, 0, 0), pass(16), segment(0, ACK, 900, 0)].concat()),
        (
            "full-batch",
            [vec![1], segment(1, SYN, 9000, 0), accept(0, 9000, 0, true), segment(1, ACK, 9000, 0)].concat(),
        ),
        ("datagrams", [vec![16, 6, 0, 0, 1, 20, 14, 0, 0x20, 0, 0, 6, 1, 0, 2, 9], pass(17)].concat()),
        ("echo", vec![16, 7, 0, 1, 0, 9, 14, 0, 0, 9, 1, 14, 0, 0, 9, 2]),
        (
            "refused",
            [vec![16], segment(3, SYN, 100, 0), vec![12, 0, 1], segment(3, SYN, 100, 0), vec![12, 1, 0]].concat(),
        ),
        ("raw", [vec![16, 15, 40], packets().remove(0).1].concat()),
    ]
}

/// Operations of the target `datagram`: what is done, from which address, and what that needs.
fn datagrams() -> Vec<(&'static str, Vec<u8>)> {
    let data = |from| vec![0, from, 0];
    let changed = |operation, at: u8, xor| vec![operation, 1, 1, 0, at, xor];
    vec![
        ("data-roaming", [data(0), data(1), data(2), data(3), vec![24, 7, 0], vec![10, 0]].concat()),
        ("data-changed", (0..60).step_by(3).flat_map(|at| changed(0, at, 0x80)).collect()),
        ("data-cut", (0..60).step_by(3).flat_map(|at| changed(0, at, 0)).collect()),
        ("data-grown", (0..60).step_by(3).flat_map(|at| changed(0, at, 1)).collect()),
        ("replays", [data(0), data(0), (0..6).flat_map(|n| [2, n, 0, n]).collect()].concat()),
        ("replays-by-mail", [data(0), vec![7, 1], (0..6).flat_map(|n| [26, n, 0, n]).collect()].concat()),
        ("initiations", [(0..10).flat_map(|n| [3, n, 0]).collect::<Vec<u8>>(), data(0), vec![10, 0]].concat()),
        ("initiations-changed", (0..148).step_by(4).flat_map(|at| changed(3, at, 0x10)).collect()),
        ("strangers", (0..20).flat_map(|n| [4, n, 0]).collect()),
        ("strangers-changed", (0..148).step_by(4).flat_map(|at| changed(4, at, 0x10)).collect()),
        ("strangers-by-mail", (0..10).flat_map(|n| [28, n, 0]).collect()),
        ("handshakes", [vec![7, 1], data(1), vec![8, 0, 12], vec![7, 2], data(2), vec![9, 0], vec![10, 0]].concat()),
        (
            "counters",
            (1..4)
                .flat_map(|session| {
                    [&[6, 0, 3, session][..], &[0xff; 8], &[0, 40, 7], &[6, 0, 3, session], &[0; 8], &[0, 40, 7]]
                        .concat()
                })
                .collect(),
        ),
        (
            "made-up",
            [vec![5, 0, 0, 0], vec![5, 0, 0, 4, 4, 0, 0, 0], [&[5, 0, 0, 148, 1, 0, 0, 0][..], &[9; 144]].concat()]
                .concat(),
        ),
        (
            "responses",
            (1..4)
                .flat_map(|session| {
                    [&[6, 0, 1, session][..], &[0; 8], &[0, 76, 7], &[6, 0, 2, session], &[0; 8], &[0, 48, 7]].concat()
                })
                .collect(),
        ),
        (
            "revoked",
            [data(0), vec![7, 1], vec![0xfb, 0], vec![3, 0, 0], vec![7, 1], vec![2, 0, 0, 0], vec![10, 0]].concat(),
        ),
    ]
}

/// When a seed is changed on purpose, copy what the failure names over the corpus.
#[test]
fn the_corpora_have_the_seeds() {
    let mut differ = Vec::new();
    for (target, seeds) in [("packet", packets()), ("stack", operations()), ("datagram", datagrams())] {
        for (name, seed) in seeds {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target).join(name);
            if fs::read(file).ok().as_ref() != Some(&seed) {
                let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("corpus").join(target);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(name), seed).unwrap();
                differ.push(format!("{target}/{name}"));
            }
        }
    }
    let made = concat!(env!("CARGO_TARGET_TMPDIR"), "/corpus");
    assert!(differ.is_empty(), "{differ:?} differ; if that is meant: cp -r {made} tests/fuzz/");
}
