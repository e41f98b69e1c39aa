//! Bytes inside a tunnel that are no packet, which no kernel would send.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use etherparse::PacketBuilder;
use portcullis_netstack::DropReason;
use portcullis_sim::gateway::ANN;
use portcullis_sim::namespace::TARGET;
use portcullis_sim::targets::ECHO;
use portcullis_sim::{Client, Gateway, Targets, in_namespace};

const ANN_V4: [u8; 4] = [100, 96, 0, 2];
const ANN_V6: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const TARGET_V4: [u8; 4] = [10, 20, 0, 1];
const TARGET_V6: [u8; 16] = [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn sound(v6: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    if v6 {
        PacketBuilder::ipv6(ANN_V6, TARGET_V6, 64).tcp(40_000, ECHO, 1, 1000).syn().write(&mut packet, &[]).unwrap();
    } else {
        PacketBuilder::ipv4(ANN_V4, TARGET_V4, 64).tcp(40_000, ECHO, 1, 1000).syn().write(&mut packet, &[]).unwrap();
    }
    packet
}

/// Makes the checksum of an IPv4 header of 20 octets hold, so that nothing else is wrong than what is meant to be.
fn with_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    packet[10..12].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    packet
}

fn lies() -> Vec<Vec<u8>> {
    let (v4, v6) = (sound(false), sound(true));
    let mut lies = Vec::new();
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        for packet in [&v4, &v6] {
            let mut lie = packet.clone();
            lie[0] = version << 4 | (packet[0] & 15);
            lies.push(lie);
        }
    }
    // Each other's version.
    for (packet, version) in [(&v4, 6), (&v6, 4)] {
        let mut lie = packet.clone();
        lie[0] = version << 4 | (packet[0] & 15);
        lies.push(lie);
    }
    // A header shorter than there is any, and one longer than the packet.
    for words in [0, 1, 4, 15] {
        let mut lie = v4.clone();
        lie[0] = 0x40 | words;
        lies.push(with_checksum(lie));
    }
    let length = u16::try_from(v4.len()).unwrap();
    for total in [0, 1, 5, 19, 20, 21, 27, length - 1, length + 1, 65_535] {
        let mut lie = v4.clone();
        lie[2..4].copy_from_slice(&total.to_be_bytes());
        lies.push(with_checksum(lie));
    }
    let length = u16::try_from(v6.len() - 40).unwrap();
    for payload in [0, 1, 7, 19, length - 1, length + 1, 65_535] {
        let mut lie = v6.clone();
        lie[4..6].copy_from_slice(&payload.to_be_bytes());
        lies.push(lie);
    }
    // A TCP header that is longer than what there is, and one that is none.
    for (packet, at) in [(&v4, 32), (&v6, 52)] {
        for words in [0, 4, 6, 15] {
            let mut lie = packet.clone();
            lie[at] = words << 4;
            lies.push(lie);
        }
    }
    // Cut off anywhere.
    for packet in [&v4, &v6] {
        lies.extend((1..packet.len()).map(|end| packet[..end].to_vec()));
    }
    lies
}

#[test]
fn t10_bytes_that_are_no_packet_are_dropped_and_counted() {
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let mut client = Client::new(ANN, &gateway);
        let connection = client.open(TARGET, ECHO);
        let lies = lies();
        for (number, lie) in lies.iter().enumerate() {
            client.send_packet(lie);
            let all = number as u64 + 1;
            client.until("dropped", |_| gateway.dropped(DropReason::Malformed) >= all);
        }
        assert_eq!(gateway.dropped(DropReason::Malformed), lies.len() as u64);
        // Nothing came of them, and nothing came to harm.
        assert_eq!(gateway.flows().len(), 1);
        assert_eq!(gateway.count(|counters| &counters.denied), 0);
        client.exchange(connection, 1000);
        gateway.stop();
    });
}
