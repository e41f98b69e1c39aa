//! The WireGuard front against strangers, replays and devices with a program of their own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod floods;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use portcullis::onramp::wireguard::handshake_limits::HandshakeLimit;
use portcullis_netstack::DropReason;
use portcullis_sim::client::PATIENCE;
use portcullis_sim::gateway::{ANN, BOB};
use portcullis_sim::initiator::{INITIATION, Session};
use portcullis_sim::namespace::TARGET;
use portcullis_sim::targets::{CLOSED, ECHO, UDP_ECHO};
use portcullis_sim::{Client, Gateway, Initiator, Targets, in_namespace};

const ANN_V4: [u8; 4] = [100, 96, 0, 2];
const ANN_V6: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const TARGET_V4: [u8; 4] = [10, 20, 0, 1];
const TARGET_V6: [u8; 16] = [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// How long silence is listened to, once the gateway has said that it dropped what was sent.
const SILENCE: Duration = Duration::from_millis(200);

fn udp(source: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, TARGET_V4, 64).udp(5353, port).write(&mut packet, payload).unwrap();
    packet
}

/// What was counted, for a failure.
fn counted(gateway: &Gateway) -> String {
    let dropped = DropReason::ALL.iter().map(|reason| (reason.as_str(), gateway.dropped(*reason)));
    let limited = HandshakeLimit::ALL.iter().map(|limit| (limit.as_str(), gateway.limited(*limit)));
    let counts: Vec<String> =
        dropped.chain(limited).filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    format!("{}; {:?}", counts.join(", "), gateway.flows())
}

/// Waits for something to happen that no client takes part in.
fn until(what: &str, gateway: &Gateway, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}: did not happen within {PATIENCE:?}; {}", counted(gateway));
        std::thread::yield_now();
    }
}

/// A device with its own program, at `timestamp`, whose session has brought a first datagram.
fn ann_at(timestamp: u64, gateway: &Gateway) -> (Initiator, Session) {
    let mut ann = Initiator::new(&ANN.private_key(), "127.0.0.1:0", gateway.address);
    let session = ann.connect(timestamp);
    ann.send(&session.seal(0, &[]));
    let address = ann.socket.local_addr().unwrap();
    until("ann is here", gateway, || gateway.peers().iter().any(|peer| peer.endpoint == Some(address)));
    (ann, session)
}

/// Sends one datagram through the tunnel to the echo service and waits for the answer.
fn echo(ann: &Initiator, session: &Session, counter: u64) {
    ann.send(&session.seal(counter, &udp(ANN_V4, UDP_ECHO, &counter.to_le_bytes())));
    let mut datagram = [0; 2048];
    loop {
        let len = ann.socket.recv(&mut datagram).expect("an echo");
        if session.open(&datagram[..len]).ends_with(&counter.to_le_bytes()) {
            return;
        }
    }
}

#[test]
fn t01_a_spoofed_inner_source_passes_nothing() {
    const TRIES: u64 = 10_000;
    in_namespace(|| {
        let targets = Targets::start();
        let mut gateway = Gateway::start(2);
        let mut ann = Client::new(ANN, &gateway);
        let mut bob = Client::new(BOB, &gateway);
        for client in [&mut ann, &mut bob] {
            client.send_packet(&[]);
            client.until("a tunnel", |client| client.datagrams > 0);
        }
        let mut numbers = 1u32;
        for tries in 1..=TRIES {
            numbers = numbers.wrapping_mul(0x9e37_79b1).wrapping_add(1);
            // Bob, the gateway, the target, a neighbour, anybody.
            let v4 = [[100, 96, 0, 3], [100, 96, 0, 1], TARGET_V4, [100, 96, 1, 2], {
                let [_, b, c, d] = numbers.to_be_bytes();
                [11, b, c, d]
            }][numbers as usize % 5];
            let mut v6 = [ANN_V6, TARGET_V6][numbers as usize % 2];
            v6[10] = 1 + (numbers >> 24) as u8 % 200;
            let mut packet = Vec::new();
            match tries % 6 {
                0 => PacketBuilder::ipv4(v4, TARGET_V4, 64).udp(5353, UDP_ECHO).write(&mut packet, b"spoofed"),
                1 => PacketBuilder::ipv4(v4, TARGET_V4, 64)
                    .tcp(numbers as u16 | 1, ECHO, numbers, 9000)
                    .syn()
                    .write(&mut packet, &[]),
                2 => PacketBuilder::ipv4(v4, TARGET_V4, 64).icmpv4_echo_request(1, 2).write(&mut packet, b"spoofed"),
                3 => PacketBuilder::ipv6(v6, TARGET_V6, 64).udp(5353, UDP_ECHO).write(&mut packet, b"spoofed"),
                4 => PacketBuilder::ipv6(v6, TARGET_V6, 64)
                    .tcp(numbers as u16 | 1, ECHO, numbers, 9000)
                    .syn()
                    .write(&mut packet, &[]),
                _ => PacketBuilder::ipv6(v6, TARGET_V6, 64).icmpv6_echo_request(1, 2).write(&mut packet, b"spoofed"),
            }
            .unwrap();
            ann.send_packet(&packet);
            if tries % 100 == 0 {
                ann.until("counted", |_| gateway.dropped(DropReason::SpoofedSource) == tries);
            }
        }
        assert_eq!(gateway.dropped_in_all(), TRIES);
        assert!(gateway.flows().is_empty() && gateway.record().is_none());
        assert_eq!(gateway.count(|counters| &counters.allowed) + gateway.count(|counters| &counters.denied), 0);
        assert!(!targets.denied_was_reached() && ann.packets.is_empty());
        bob.run(SILENCE, |_| false);
        assert!(bob.packets.is_empty(), "nothing is answered to whose name was used");
        gateway.stop();
    });
}

#[test]
fn t03_strangers_get_silence_and_leave_nothing_behind() {
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let mut ann = Client::new(ANN, &gateway);
        let connection = ann.open(TARGET, ECHO);
        ann.exchange(connection, 1000);
        // A real initiation, of a real device, that never arrives as it was.
        let real = Initiator::new(&BOB.private_key(), "127.0.0.1:0", gateway.address).initiate(1).initiation;
        let mut datagrams: Vec<Vec<u8>> = Vec::new();
        for len in 0..300 {
            for kind in [0, 1, 2, 3, 4, 5] {
                for fill in [0, 0xff, 0x45] {
                    let mut datagram = vec![fill; len];
                    // The receiver index may be that of the tunnel.
                    datagram.iter_mut().zip([kind, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]).for_each(|(at, byte)| *at = byte);
                    datagrams.push(datagram);
                }
            }
        }
        for kind in 0..=255 {
            for len in [4, 32, 64, 92, 148, 1400] {
                datagrams.push([&[kind][..], &vec![0; len - 1]].concat());
                datagrams.push([&[kind, 1, 0, 0][..], &vec![7; len - 4]].concat());
            }
        }
        datagrams.push(vec![4; 65_507]);
        for bit in 0..8 * (INITIATION - 16) {
            let mut datagram = real.clone();
            datagram[bit / 8] ^= 1 << (bit % 8);
            datagrams.push(datagram);
        }
        datagrams.extend((0..INITIATION).map(|len| real[..len].to_vec()));
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = gateway.dropped_in_all();
        for (sent, datagram) in (1..).zip(&datagrams) {
            stranger.send_to(datagram, gateway.address).unwrap();
            if sent % 100 == 0 || sent == datagrams.len() {
                until("counted", &gateway, || gateway.dropped_in_all() - before == sent as u64);
            }
        }
        stranger.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(stranger.recv(&mut [0; 2048]).is_err(), "a stranger hears nothing");
        assert_eq!((gateway.peers().len(), gateway.flows().len()), (1, 1));
        assert_eq!(gateway.count(|counters| &counters.handshakes), 1);
        assert_eq!(gateway.count(|counters| &counters.cookie_replies), 0);
        ann.exchange(connection, 1000);
        gateway.stop();
    });
}

#[test]
fn t05_replayed_data_arrives_once() {
    const SENT: u64 = 200;
    /// Few enough that no queue overflows on a busy machine: what is lost there is no replay refused.
    const BURST: usize = 20;
    for shards in [1, 2] {
        in_namespace(move || {
            let gateway = Gateway::start(shards);
            let target = UdpSocket::bind((TARGET, CLOSED)).unwrap();
            target.set_read_timeout(Some(PATIENCE)).unwrap();
            let (ann, session) = ann_at(1, &gateway);
            let before = gateway.peers()[0].endpoint;
            let datagrams: Vec<_> =
                (1..=SENT).map(|n| session.seal(n, &udp(ANN_V4, CLOSED, &n.to_le_bytes()))).collect();
            let elsewhere = UdpSocket::bind("127.0.9.9:0").unwrap();
            let receive = || {
                let mut payload = [0; 64];
                let len = target.recv(&mut payload).unwrap();
                u64::from_le_bytes(payload[..len].try_into().unwrap())
            };
            let mut received = Vec::new();
            for burst in datagrams.chunks(BURST) {
                burst.iter().for_each(|datagram| ann.send(datagram));
                received.extend(burst.iter().map(|_| receive()));
            }
            let mut replayed = 0;
            for _ in 0..3 {
                for burst in datagrams.rchunks(BURST) {
                    for datagram in burst.iter().rev() {
                        ann.send(datagram);
                        elsewhere.send_to(datagram, gateway.address).unwrap();
                        replayed += 2;
                    }
                    until("refused", &gateway, || gateway.dropped(DropReason::Unauthentic) == replayed);
                }
            }
            assert_eq!(gateway.peers()[0].endpoint, before, "where a replay came from is nothing");
            // What comes behind them is there, so nothing can be on its way any more.
            ann.send(&session.seal(SENT + 1, &udp(ANN_V4, CLOSED, &(SENT + 1).to_le_bytes())));
            received.push(receive());
            received.sort_unstable();
            assert!(received.into_iter().eq(1..=SENT + 1), "each arrives once");
            gateway.stop();
        });
    }
}

#[test]
fn t05_replayed_initiation_changes_nothing() {
    for shards in [1, 2] {
        in_namespace(move || {
            let _targets = Targets::start();
            let gateway = Gateway::start(shards);
            let mut ann = Initiator::new(&ANN.private_key(), "127.0.0.1:0", gateway.address);
            let kept: Vec<_> = (1..=3).map(|timestamp| ann.initiate(timestamp)).collect();
            let mut kept_datagrams: Vec<_> = kept.iter().map(|waiting| waiting.initiation.clone()).collect();
            let mut session = None;
            for waiting in kept {
                ann.send(&waiting.initiation);
                session = Some(ann.finish(waiting));
            }
            let session = session.unwrap();
            echo(&ann, &session, 0);
            let unmoved = |gateway: &Gateway| {
                let peers = gateway.peers();
                (peers.len(), peers[0].endpoint, peers[0].last_handshake, peers[0].bytes_received, peers[0].bytes_sent)
            };
            let before = unmoved(&gateway);
            let replay = |gateway: &Gateway, datagrams: &[Vec<u8>], from: u8| {
                let replayer = Initiator::new(&BOB.private_key(), &format!("127.0.9.{from}:0"), gateway.address);
                let refused = gateway.dropped(DropReason::Unauthentic);
                datagrams.iter().for_each(|datagram| replayer.send(datagram));
                until("refused", gateway, || {
                    gateway.dropped(DropReason::Unauthentic) == refused + datagrams.len() as u64
                });
                assert!(!replayer.hears(SILENCE));
            };
            replay(&gateway, &kept_datagrams, 1);
            assert_eq!(unmoved(&gateway), before);
            assert_eq!(gateway.count(|counters| &counters.handshakes), 1, "unused sessions are none");
            echo(&ann, &session, 1);
            gateway.stop();

            // Started again, the gateway has seen none of them. Who replays them gets answers that are of no use.
            let gateway = Gateway::start(shards);
            let replayer = Initiator::new(&BOB.private_key(), "127.0.9.9:0", gateway.address);
            for datagram in &kept_datagrams {
                replayer.send(datagram);
                let mut answer = [0; 2048];
                assert!(replayer.socket.recv(&mut answer).unwrap() < datagram.len());
            }
            let peers = gateway.peers();
            assert_eq!((peers.len(), peers[0].endpoint, peers[0].last_handshake), (1, None, None));
            assert_eq!((peers[0].bytes_received, peers[0].bytes_sent), (0, 0));
            assert_eq!(gateway.count(|counters| &counters.handshakes), 0);
            // The device comes back and goes on, and what is replayed then is old.
            let mut ann = Initiator::new(&ANN.private_key(), "127.0.0.1:0", gateway.address);
            let again = ann.initiate(4);
            kept_datagrams.push(again.initiation.clone());
            ann.send(&again.initiation);
            let session = ann.finish(again);
            echo(&ann, &session, 0);
            let before = unmoved(&gateway);
            replay(&gateway, &kept_datagrams, 2);
            assert_eq!(unmoved(&gateway), before);
            assert_eq!(gateway.count(|counters| &counters.handshakes), 1);
            echo(&ann, &session, 1);
            gateway.stop();
        });
    }
}

#[test]
fn t05_kept_initiations_do_not_cut_a_session_in_use() {
    const PAUSE: Duration = Duration::from_millis(80);
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let (mut ann, session) = ann_at(1, &gateway);
        // Never delivered until now, so new to the gateway; more than a tunnel has places for sessions.
        let kept: Vec<_> = (2..=40).map(|timestamp| ann.initiate(timestamp).initiation).collect();
        let mut counter = 1;
        for (datagrams, address) in kept.chunks(3).zip(1..) {
            let replayer = UdpSocket::bind(format!("127.0.8.{address}:0")).unwrap();
            for datagram in datagrams {
                replayer.send_to(datagram, gateway.address).unwrap();
            }
            echo(&ann, &session, counter);
            counter += 1;
            // Slowly enough for the rate of a peer.
            std::thread::sleep(PAUSE);
        }
        // One may overtake another on its way to the shard of the peer; then it is an old one.
        let refused = || gateway.limited(HandshakeLimit::Peer) + gateway.dropped(DropReason::Unauthentic);
        until("refused", &gateway, || refused() >= 39 - 6);
        echo(&ann, &session, counter);
        assert_eq!(gateway.peers()[0].endpoint, ann.socket.local_addr().ok());
        assert_eq!(gateway.count(|counters| &counters.handshakes), 1);
        gateway.stop();
    });
}

#[test]
fn t09_counters_near_2_64_are_refused() {
    // Reject-After-Messages, WireGuard paper section 6.1.
    const REJECT: u64 = u64::MAX - (1 << 13);
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let mut others = Client::new(BOB, &gateway);
        let connection = others.open(TARGET, ECHO);
        let (ann, session) = ann_at(1, &gateway);
        let mut refused = 0;
        let refuse = |datagram: &[u8], refused: &mut u64| {
            *refused += 1;
            ann.send(datagram);
            if refused.is_multiple_of(100) {
                until("refused", &gateway, || gateway.dropped(DropReason::Unauthentic) == *refused);
            }
        };
        // What is not authentic moves nothing, whatever its counter.
        for counter in (REJECT - 2..=u64::MAX).step_by(97).chain([u64::MAX - 1024, u64::MAX - 1, u64::MAX]) {
            refuse(&[&session.header(counter)[..], &[7; 48]].concat(), &mut refused);
        }
        echo(&ann, &session, 1);
        let packet = udp(ANN_V4, UDP_ECHO, b"late");
        // Authentic ones. Noise keeps the last number of all for itself.
        for counter in (REJECT..u64::MAX).rev() {
            refuse(&session.seal(counter, &packet), &mut refused);
        }
        echo(&ann, &session, 2);
        echo(&ann, &session, REJECT - 1);
        for counter in REJECT..u64::MAX {
            refuse(&session.seal(counter, &packet), &mut refused);
        }
        // The window has moved to the end: what is far behind is too old, and nothing wraps.
        for counter in [0, 3, 1 << 13, REJECT - 2000, REJECT - 1] {
            refuse(&session.seal(counter, &packet), &mut refused);
        }
        echo(&ann, &session, REJECT - 2);
        until("refused", &gateway, || gateway.dropped(DropReason::Unauthentic) == refused);
        others.exchange(connection, 1000);
        gateway.stop();
    });
}

#[test]
fn t10_inner_lengths_that_lie_are_dropped_and_counted() {
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let (ann, session) = ann_at(1, &gateway);
        let v4 = udp(ANN_V4, UDP_ECHO, &[7; 100]);
        let mut v6 = Vec::new();
        PacketBuilder::ipv6(ANN_V6, TARGET_V6, 64).udp(5353, UDP_ECHO).write(&mut v6, &[7; 100]).unwrap();
        let mut lies: Vec<Vec<u8>> = Vec::new();
        // Cut anywhere: the header says more than there is.
        lies.extend((1..v4.len()).map(|len| v4[..len].to_vec()));
        lies.extend((1..v6.len()).map(|len| v6[..len].to_vec()));
        let with = |packet: &[u8], at: usize, bytes: &[u8]| {
            let mut packet = packet.to_vec();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            if packet[0] >> 4 == 4 {
                // Only the length lies.
                packet[10..12].fill(0);
                let words = packet[..usize::from(packet[0] & 15) * 4].chunks_exact(2);
                let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
                let sum = (sum & 0xffff) + (sum >> 16);
                packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
            }
            packet
        };
        // A total length that is none, less than the header, inside the transport header, less than UDP says, or too much.
        for total in [0u16, 1, 4, 5, 19, 20, 21, 27, 28, 127, 129, 1280, 0x8000, 0xffff] {
            lies.push(with(&v4, 2, &total.to_be_bytes()));
        }
        for payload in [0u16, 1, 5, 7, 8, 107, 109, 1280, 0xffd7, 0xffff] {
            lies.push(with(&v6, 4, &payload.to_be_bytes()));
        }
        // Header lengths, versions, UDP lengths.
        for words in (0..5).chain(6..16) {
            lies.push(with(&v4, 0, &[0x40 | words]));
        }
        for version in (0..4).chain([5]).chain(7..16) {
            lies.push(with(&v4, 0, &[version << 4 | 5]));
            lies.push(with(&v6, 0, &[version << 4]));
        }
        for udp in [1u16, 7, 109, 0xffff] {
            lies.push(with(&v4, 24, &udp.to_be_bytes()));
            lies.push(with(&v6, 44, &udp.to_be_bytes()));
        }
        let before = gateway.dropped_in_all();
        for (lie, counter) in lies.iter().zip(1..) {
            ann.send(&session.seal(counter, lie));
            if counter % 50 == 0 || counter as usize == lies.len() {
                until("counted", &gateway, || gateway.dropped_in_all() - before >= counter);
            }
        }
        assert_eq!(gateway.dropped_in_all() - before, lies.len() as u64);
        assert_eq!(gateway.dropped(DropReason::Malformed), lies.len() as u64);
        assert!(gateway.flows().is_empty());
        // Nothing at all is a keepalive; bytes behind the packet are padding.
        ann.send(&session.seal(10_000, &[]));
        let padded = [&udp(ANN_V4, UDP_ECHO, &10_001u64.to_le_bytes())[..], &[0; 15]].concat();
        ann.send(&session.seal(10_001, &padded));
        echo(&ann, &session, 10_002);
        assert_eq!(gateway.dropped_in_all() - before, lies.len() as u64);
        gateway.stop();
    });
}
