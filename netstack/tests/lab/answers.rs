//! What a client that causes answers without end gets, and what its ICMP errors change.

use std::time::Duration;

use etherparse::PacketBuilder;
use portcullis_netstack::{DropReason, Handled, Refusal};

use crate::lab::{Lab, MTU, Reception, Target, limits};
use crate::raw::{
    ACK, CLIENT, CLIENT6, RST, SYN, Segment, TARGET, TARGET6, answer, answers, echo_request, segment, udp,
};

const ISN: u32 = 5_000;
const SECOND: Duration = Duration::from_secs(1);
/// What one address is answered at once, and in a second.
const BURST: usize = 400;
const RATE: usize = 200;

#[test]
fn t28_resets_for_segments_of_no_flow_are_limited() {
    let mut lab = Lab::new(limits());
    for _ in 0..5_000 {
        assert_eq!(lab.inject(&segment(ACK, ISN, 999, 65_000)), Err(DropReason::NoFlow));
    }
    lab.settle();
    assert_eq!(lab.take_out().len(), BURST);
    assert_eq!(lab.stack.poll_unanswered(), 5_000 - BURST);
    lab.pass(SECOND);
    for _ in 0..5_000 {
        assert_eq!(lab.inject(&segment(ACK, ISN, 999, 65_000)), Err(DropReason::NoFlow));
    }
    lab.settle();
    let out = answers(&lab.take_out());
    assert_eq!(out.len(), RATE);
    assert!(out.iter().all(|answer| answer.flags == RST));
}

#[test]
fn t28_challenges_are_limited_and_the_connection_stands() {
    let mut lab = Lab::new(limits());
    lab.reception = Reception::Accept(Target::stays_open(0));
    lab.inject(&segment(SYN, ISN, 0, 65_000)).unwrap();
    lab.settle();
    let first = answer(&lab.take_out()[0]).sequence.wrapping_add(1);
    lab.inject(&segment(ACK, ISN + 1, first, 65_000)).unwrap();
    let mut unacceptable = 0;
    for number in 0..5_000 {
        for forged in [segment(SYN, number, 0, 65_000), segment(RST, ISN + 2 + number, 0, 0)] {
            match lab.inject(&forged) {
                Ok(Handled::Known(_)) => {}
                Err(DropReason::UnacceptableSegment) => unacceptable += 1,
                other => panic!("{other:?}"),
            }
        }
        lab.settle();
    }
    assert!(lab.take_out().len() <= 2, "a challenge a second for each connection");
    assert_eq!((unacceptable, lab.stack.poll_unanswered()), (10_000 - BURST, 10_000 - BURST));
    assert!(lab.ended.is_empty());
}

#[test]
fn t27_icmp_errors_of_ours_are_limited() {
    let mut lab = Lab::new(limits());
    lab.reception = Reception::Refuse(Refusal::Prohibited);
    for _ in 0..5_000 {
        lab.inject(&udp(false, 443, b"hello")).unwrap();
    }
    lab.settle();
    assert_eq!(lab.take_out().len(), BURST);
    assert_eq!(lab.stack.poll_unanswered(), 5_000 - BURST);
    // The other family has another address.
    lab.inject(&udp(true, 443, b"hello")).unwrap();
    lab.settle();
    assert_eq!(lab.take_out().len(), 1);
}

#[test]
fn t27_echo_floods_are_limited() {
    const ECHOES: usize = 1_000;
    let mut lab = Lab::new(limits());
    let flood = |lab: &mut Lab| {
        (0..5_000)
            .filter(|number| match lab.inject(&echo_request(false, 7, *number, b"flood")) {
                Ok(_) => true,
                Err(DropReason::EchoLimit) => false,
                Err(reason) => panic!("{reason}"),
            })
            .count()
    };
    assert_eq!(flood(&mut lab), ECHOES);
    lab.pass(SECOND);
    assert_eq!(flood(&mut lab), ECHOES);
    // Nothing else is slowed down by it.
    assert!(lab.inject(&udp(false, 443, b"hello")).is_ok());
}

/// ICMP errors about the packet `quote`, as a client may forge them.
fn errors(v6: bool, quote: &[u8]) -> Vec<Vec<u8>> {
    let kinds: &[(u8, u8, u32)] = if v6 {
        // Unreachable, too big for 68 and for 1,280 bytes, time exceeded, parameter problem, redirect.
        &[(1, 0, 0), (1, 4, 0), (2, 0, 68), (2, 0, 1280), (3, 0, 0), (4, 0, 0), (137, 0, 0)]
    } else {
        &[(3, 1, 0), (3, 3, 0), (3, 4, 68), (3, 4, 576), (4, 0, 0), (5, 1, 0x0a14_0001), (11, 0, 0), (12, 0, 0)]
    };
    let made = |&(kind, code, word): &(u8, u8, u32)| {
        let mut bytes = Vec::new();
        if v6 {
            let ip = PacketBuilder::ipv6(CLIENT6, TARGET6, 64);
            ip.icmpv6_raw(kind, code, word.to_be_bytes()).write(&mut bytes, quote).unwrap();
        } else {
            let ip = PacketBuilder::ipv4(CLIENT, TARGET, 64);
            ip.icmpv4_raw(kind, code, word.to_be_bytes()).write(&mut bytes, quote).unwrap();
        }
        bytes
    };
    kinds.iter().map(made).collect()
}

#[test]
fn t27_icmp_errors_of_a_client_change_nothing() {
    for v6 in [false, true] {
        let segment = |flags, sequence, acknowledgment| {
            Segment { v6, flags, sequence, acknowledgment, window: 65_000, payload: &[] }.bytes()
        };
        let mut lab = Lab::new(limits());
        lab.reception = Reception::Accept(Target::stays_open(40_000));
        let mut syn = segment(SYN, ISN, 0);
        // A maximum segment size that the tunnel does not take: 1,460.
        let tcp = syn.len() - 20;
        syn[tcp + 12] = 6 << 4;
        syn.extend([2, 4, 5, 180]);
        let at = if v6 { 5 } else { 3 };
        syn[at] += 4;
        let parsed = portcullis_netstack::packet::IpPacket::parse(
            &with_ipv4_checksum(syn.clone()),
            portcullis_netstack::packet::ChecksumPolicy::Trusted,
        )
        .map(|packet| lab.inject_parsed(&packet));
        parsed.unwrap().unwrap();
        lab.settle();
        let mut next = answer(&lab.take_out()[0]).sequence.wrapping_add(1);
        lab.inject(&segment(ACK, ISN + 1, next)).unwrap();
        lab.settle();
        let mut received = 0;
        let largest = usize::from(MTU);
        while received < 40_000 {
            let out = lab.take_out();
            assert!(!out.is_empty(), "stalled at {received}");
            let packets: Vec<_> = out.iter().map(|packet| (packet.len(), answer(packet))).collect();
            received += packets.iter().map(|(_, answer)| answer.payload.len()).sum::<usize>();
            if received < 40_000 {
                assert!(packets.iter().any(|(len, _)| *len == largest), "segments stay as large as the tunnel takes");
            }
            for error in errors(v6, &out[0]) {
                assert_eq!(lab.inject(&error), Err(DropReason::IcmpType));
            }
            next = next.wrapping_add(packets.iter().map(|(_, answer)| answer.payload.len() as u32).sum());
            lab.inject(&segment(ACK, ISN + 1, next)).unwrap();
            lab.settle();
        }
        assert!(lab.ended.is_empty());
        assert_eq!(lab.opened.len(), 1);
    }
}

fn with_ipv4_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let mut sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    packet
}
