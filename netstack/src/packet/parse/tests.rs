//! Tests of parsing.

use super::*;
use etherparse::{IpNumber, PacketBuilder};

const TARGET: [u8; 4] = [10, 20, 0, 80];
const CLIENT: [u8; 4] = [100, 96, 0, 2];

fn syn_v4(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(from, to, 64).tcp(50_000, 443, 1, 1000).syn().write(&mut bytes, b"").unwrap();
    bytes
}

fn datagrams_of(size: u16) -> Offload {
    Offload { segment_size: Some(size) }
}

fn udp_v6() -> Vec<u8> {
    let mut bytes = Vec::new();
    let (client, target) = ([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], [0xfd; 16]);
    PacketBuilder::ipv6(client, target, 64).udp(5000, 53).write(&mut bytes, b"question").unwrap();
    bytes
}

fn parse(bytes: &[u8]) -> Result<Protocol, DropReason> {
    IpPacket::parse(bytes, ChecksumPolicy::Verify).map(|packet| packet.tuple().protocol)
}

#[test]
fn addresses_that_are_nobodys_open_nothing() {
    assert_eq!(parse(&syn_v4(CLIENT, TARGET)), Ok(Protocol::Tcp));
    for to in [[0, 0, 0, 0], [224, 0, 0, 251], [255, 255, 255, 255]] {
        assert_eq!(parse(&syn_v4(CLIENT, to)), Err(DropReason::ForbiddenDestination), "{to:?}");
    }
    for from in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        assert_eq!(parse(&syn_v4(from, TARGET)), Err(DropReason::ForbiddenSource), "{from:?}");
    }
}

#[test]
fn lengths_that_lie_are_malformed() {
    let whole = syn_v4(CLIENT, TARGET);
    for len in 0..whole.len() {
        assert_eq!(parse(&whole[..len]), Err(DropReason::Malformed), "cut to {len}");
    }
    let whole = udp_v6();
    assert_eq!(parse(&whole), Ok(Protocol::Udp));
    for len in 0..whole.len() {
        assert_eq!(parse(&whole[..len]), Err(DropReason::Malformed), "cut to {len}");
    }
    // A jumbogram: its length would be in an option.
    let mut jumbo = whole.clone();
    jumbo[4..6].fill(0);
    assert_eq!(parse(&jumbo), Err(DropReason::Malformed));
}

#[test]
fn bytes_after_the_packet_are_cut_off() {
    let whole = udp_v6();
    let mut padded = whole.clone();
    padded.extend([0; 9]);
    assert_eq!(IpPacket::parse(&padded, ChecksumPolicy::Verify).unwrap().bytes(), whole);
}

#[test]
fn every_flipped_bit_of_what_a_checksum_covers_is_noticed() {
    for whole in [syn_v4(CLIENT, TARGET), udp_v6()] {
        let covered = if whole[0] >> 4 == 6 { 8 } else { 0 };
        for bit in covered * 8..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&changed).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn a_super_packet_is_its_datagrams_in_order() {
    let payload: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(CLIENT, TARGET, 64).udp(5000, 53).write(&mut bytes, &payload).unwrap();
    let packet = IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap();
    for size in [1, 7, 250, 400, 999, 1000, 1001, u16::MAX] {
        let packet = packet.with_offload(datagrams_of(size)).unwrap();
        let Transport::Udp(udp) = packet.transport() else { panic!("{packet:?}") };
        let datagrams: Vec<&[u8]> = udp.datagrams().collect();
        assert_eq!((datagrams.len(), packet.count()), (udp.count(), udp.count()), "{size}");
        assert_eq!(datagrams.concat(), payload, "{size}");
        let (last, others) = datagrams.split_last().unwrap();
        assert!(others.iter().all(|datagram| datagram.len() == usize::from(size)), "{size}");
        assert!((1..=usize::from(size)).contains(&last.len()), "{size}");
    }
    assert!(packet.with_offload(datagrams_of(0)).is_err());
    assert_eq!(packet.count(), 1);
}

#[test]
fn super_packets_without_sense_are_malformed() {
    let syn = syn_v4(CLIENT, TARGET);
    assert!(IpPacket::parse(&syn, ChecksumPolicy::Verify).unwrap().with_offload(datagrams_of(10)).is_err());
    let mut empty = Vec::new();
    PacketBuilder::ipv4(CLIENT, TARGET, 64).udp(5000, 53).write(&mut empty, b"").unwrap();
    let empty = IpPacket::parse(&empty, ChecksumPolicy::Verify).unwrap();
    assert!(empty.with_offload(datagrams_of(10)).is_err());
    let Transport::Udp(udp) = empty.transport() else { panic!("{empty:?}") };
    assert_eq!((udp.count(), udp.datagrams().collect::<Vec<_>>()), (1, vec![&[][..]]));
    // A UDP length that leaves octets of the packet over.
    let mut over = udp_v6();
    over.extend([0; 4]);
    over[5] += 4;
    let over = IpPacket::parse(&over, ChecksumPolicy::Verify).unwrap();
    assert!(over.with_offload(datagrams_of(4)).is_err());
}

#[test]
fn headers_that_hide_the_transport() {
    let with = |kind: u8, count: u8| {
        let mut packet = udp_v6();
        for i in 0..count {
            let next = if i == 0 { 17 } else { kind };
            packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
            packet[5] += 8;
        }
        packet[6] = kind;
        packet
    };
    const DESTINATION_OPTIONS: u8 = 60;
    const ROUTING: u8 = 43;
    assert_eq!(parse(&with(DESTINATION_OPTIONS, 1)), Ok(Protocol::Udp));
    assert_eq!(parse(&with(ROUTING, 1)), Err(DropReason::ExtensionHeader));
    assert_eq!(parse(&with(DESTINATION_OPTIONS, 8)), Ok(Protocol::Udp));
    for count in 9..12 {
        assert_eq!(parse(&with(DESTINATION_OPTIONS, count)), Err(DropReason::ExtensionHeader), "{count}");
    }
}

/// What goes on as it is: nothing that hides something else.
#[test]
fn other_protocols() {
    const HEADERS: [u8; 11] = [0, 43, 44, 51, 59, 60, 135, 139, 140, 253, 254];
    const KNOWN: [u8; 4] = [1, 6, 17, 58];
    for number in 0..=u8::MAX {
        let mut v4 = Vec::new();
        PacketBuilder::ipv4(CLIENT, TARGET, 64).write(&mut v4, IpNumber(number), &[0xa5; 9]).unwrap();
        let mut v6 = udp_v6();
        v6[6] = number;
        for packet in [v4, v6] {
            let answer = IpPacket::parse(&packet, ChecksumPolicy::Verify);
            if HEADERS.contains(&number) || KNOWN.contains(&number) {
                assert!(KNOWN.contains(&number) || answer.is_err(), "{number}");
                continue;
            }
            let parsed = answer.unwrap();
            let tuple = parsed.tuple();
            let ports = (tuple.source_port, tuple.destination_port);
            assert_eq!((tuple.protocol, ports), (Protocol::Other(number), (0, 0)));
            let Transport::Other(body) = parsed.transport() else { panic!("{parsed:?}") };
            assert_eq!(*body, &packet[packet.len() - body.len()..]);
            assert!(parsed.is_plain() && parsed.with_offload(Offload { segment_size: None }).is_err());
        }
    }
    let mut empty = Vec::new();
    PacketBuilder::ipv4(CLIENT, TARGET, 64).write(&mut empty, IpNumber(47), &[]).unwrap();
    assert_eq!(parse(&empty), Ok(Protocol::Other(47)));
}

#[test]
fn a_fragment_is_no_packet() {
    let mut packet = syn_v4(CLIENT, TARGET);
    packet[6] |= 0x20;
    packet[10..12].fill(0);
    let sum = !checksum::sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(parse(&packet), Err(DropReason::Fragment));
}
