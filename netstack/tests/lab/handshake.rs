//! How flows open, and how they do not.

use std::time::Duration;

use portcullis_netstack::packet::build::Unreachable;
use portcullis_netstack::{CloseCause, DropReason, Handled, Refusal};
use smoltcp::socket::tcp::State;

use crate::lab::{Lab, MTU, Reception, Target, limits};
use crate::link::Path;
use crate::raw::{ACK, RST, SYN, Segment, answer, answers, segment};
use crate::world::{CLEAN, LATENCY, World, target_v4, target_v6};

const ISN: u32 = 5_000;

#[test]
fn a_syn_is_held_until_the_flow_is_accepted() {
    let mut world = World::new(limits(), CLEAN, Reception::Hold);
    world.client.connect(target_v4(), 0, 4096);
    world.pass(Duration::from_secs(8));
    assert_eq!(world.lab.opened.len(), 1, "the retransmitted SYNs are the same flow's");
    assert!(world.lab.stack.traffic(world.lab.opened[0]).packets_up > 2);
    assert_eq!(world.client.state(0), State::SynSent);
    assert!(world.down.next_arrival().is_none(), "not a packet before the target answered");
    let flow = world.lab.opened[0];
    world.lab.accept(flow, Target::stays_open(0));
    assert!(world.run(LATENCY * 4, |world| world.client.state(0) != State::SynSent));
}

#[test]
fn the_syn_ack_says_what_fits_the_tunnel() {
    for (v6, headers) in [(false, 40), (true, 60)] {
        let mut lab = Lab::new(limits());
        lab.reception = Reception::Accept(Target::stays_open(0));
        let syn = Segment { v6, flags: SYN, sequence: ISN, acknowledgment: 0, window: 65_000, payload: &[] };
        lab.inject(&syn.bytes()).unwrap();
        lab.settle();
        let answers = answers(&lab.take_out());
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].flags, SYN | ACK);
        assert_eq!(answers[0].acknowledgment, ISN + 1);
        assert_eq!(answers[0].mss, Some(MTU - headers));
    }
}

/// A SYN behind 60 bytes of IPv4 header, whose options look like those of TCP where a shorter header would have them.
fn syn_behind_ip_options() -> Vec<u8> {
    let syn = Segment { v6: false, flags: SYN, sequence: ISN, acknowledgment: 0, window: 65_000, payload: &[] };
    let mut bytes = syn.bytes();
    let mut options = vec![1; 40];
    options[12] = 0xf0;
    options[20..24].copy_from_slice(&[2, 4, 0xff, 0xff]);
    bytes.splice(20..20, options);
    bytes[0] = 0x4f;
    let length = u16::try_from(bytes.len()).unwrap();
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[10..12].fill(0);
    let mut sum: u32 = bytes[..60].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    bytes[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes
}

/// A SYN behind a header of IPv6 destination options.
fn syn_behind_an_extension_header() -> Vec<u8> {
    let syn = Segment { v6: true, flags: SYN, sequence: ISN, acknowledgment: 0, window: 65_000, payload: &[] };
    let mut bytes = syn.bytes();
    bytes.splice(40..40, [6, 0, 1, 4, 2, 4, 0xff, 0xff]);
    bytes[5] += 8;
    bytes[6] = 60;
    bytes
}

#[test]
fn a_syn_behind_options_of_ip_is_answered_like_any() {
    for syn in [syn_behind_ip_options(), syn_behind_an_extension_header()] {
        let mut lab = Lab::new(limits());
        lab.reception = Reception::Accept(Target::stays_open(5_000));
        lab.inject(&syn).unwrap();
        lab.settle();
        let answers = answers(&lab.take_out());
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].flags, answers[0].acknowledgment), (SYN | ACK, ISN + 1));
    }
}

#[test]
fn ten_segments_go_out_before_the_first_acknowledgment() {
    for v6 in [false, true] {
        let mut lab = Lab::new(limits());
        lab.reception = Reception::Accept(Target::stays_open(60_000));
        let of_client = |flags, sequence, acknowledgment| {
            Segment { v6, flags, sequence, acknowledgment, window: 65_000, payload: &[] }.bytes()
        };
        lab.inject(&of_client(SYN, ISN, 0)).unwrap();
        lab.settle();
        let first = answer(&lab.take_out()[0]).sequence.wrapping_add(1);
        lab.inject(&of_client(ACK, ISN + 1, first)).unwrap();
        lab.settle();
        let out = answers(&lab.take_out());
        // The client named no segment size: 536 octets each, RFC 9293 section 3.7.1; RFC 6928 section 2.
        assert_eq!(out.iter().map(|answer| answer.payload.len()).collect::<Vec<_>>(), [536; 10]);
    }
}

#[test]
fn rings_are_used_again_and_remember_nothing() {
    for path in [CLEAN, Path { latency: LATENCY, loss: 100, reordered: 100 }] {
        let mut world = World::new(limits(), path, Reception::Accept(Target::sends(3_000)));
        for round in 0..12 {
            // Every third client goes away in the middle.
            let v6 = round % 2 == 1;
            world.client.connect(if v6 { target_v6() } else { target_v4() }, 2_000, 4096);
            let minutes = Duration::from_secs(600);
            if round % 3 == 2 {
                world.run(minutes, |world| world.client.connections[round].received > 0);
                world.client.abort(round);
                continue;
            }
            let done = |world: &mut World| world.client.connections[round].received == 3_000;
            assert!(world.run(minutes, done), "round {round}: {:?}", world.client.state(round));
            let idle = |world: &mut World| world.lab.stack.is_empty();
            assert!(world.run(minutes, idle), "round {round} lingers");
        }
    }
}

#[test]
fn two_flows_do_not_begin_with_the_same_number() {
    let mut lab = Lab::new(limits());
    lab.reception = Reception::Accept(Target::stays_open(0));
    let mut numbers = Vec::new();
    for v6 in [false, true] {
        let syn = Segment { v6, flags: SYN, sequence: ISN, acknowledgment: 0, window: 65_000, payload: &[] };
        lab.inject(&syn.bytes()).unwrap();
        lab.settle();
        numbers.push(answer(&lab.take_out()[0]).sequence);
    }
    assert_ne!(numbers[0], numbers[1]);
}

#[test]
fn a_refused_flow_is_answered_with_a_reset_and_forgotten() {
    for to in [target_v4(), target_v6()] {
        for refusal in [Refusal::Reset, Refusal::Prohibited] {
            let mut world = World::new(limits(), CLEAN, Reception::Refuse(refusal));
            world.client.connect(to, 0, 4096);
            assert!(world.run(LATENCY * 4, |world| world.client.state(0) == State::Closed));
            assert!(world.lab.stack.is_empty());
        }
    }
}

#[test]
fn a_silent_refusal_is_silent_and_an_unreachable_one_is_icmp() {
    let mut lab = Lab::new(limits());
    lab.reception = Reception::Refuse(Refusal::Silent);
    lab.inject(&segment(SYN, ISN, 0, 65_000)).unwrap();
    lab.settle();
    assert!(lab.take_out().is_empty());
    lab.reception = Reception::Refuse(Refusal::Unreachable(Unreachable::Host));
    let syn = segment(SYN, ISN, 0, 65_000);
    lab.inject(&syn).unwrap();
    lab.settle();
    let out = lab.take_out();
    assert_eq!(out.len(), 1);
    assert_eq!(out[0][20..22], [3, 1]);
    assert_eq!(out[0][28..], syn[..], "the quote is the packet");
    assert!(lab.stack.is_empty());
}

#[test]
fn a_syn_with_another_number_replaces_the_held_one() {
    let mut lab = Lab::new(limits());
    let Handled::Opened(flow) = lab.inject(&segment(SYN, ISN, 0, 65_000)).unwrap() else { panic!() };
    assert_eq!(lab.inject(&segment(SYN, ISN + 777, 0, 65_000)), Ok(Handled::Known(flow)));
    lab.accept(flow, Target::stays_open(0));
    lab.settle();
    assert_eq!(answer(&lab.take_out()[0]).acknowledgment, ISN + 778);
}

#[test]
fn a_client_that_takes_its_syn_back_is_noticed() {
    let mut lab = Lab::new(limits());
    let Handled::Opened(flow) = lab.inject(&segment(SYN, ISN, 0, 65_000)).unwrap() else { panic!() };
    assert_eq!(lab.inject(&segment(RST, ISN + 5_000, 0, 0)), Err(DropReason::UnacceptableSegment));
    assert_eq!(lab.stack.cause(flow), None);
    lab.inject(&segment(RST, ISN + 1, 0, 0)).unwrap();
    lab.settle();
    assert_eq!(lab.ended.len(), 1);
    assert_eq!(lab.ended[0].cause, CloseCause::ClientReset);
    assert!(lab.stack.is_empty());
    assert!(lab.take_out().is_empty());
}

#[test]
fn a_segment_of_no_flow_is_reset_and_a_reset_is_not() {
    let mut lab = Lab::new(limits());
    assert_eq!(lab.inject(&segment(ACK, ISN, 999, 65_000)), Err(DropReason::NoFlow));
    assert_eq!(lab.inject(&segment(RST, ISN, 0, 0)), Err(DropReason::NoFlow));
    assert_eq!(lab.inject(&segment(SYN | ACK, ISN, 999, 0)), Err(DropReason::NoFlow));
    lab.settle();
    let answers = answers(&lab.take_out());
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| answer.flags == RST && answer.sequence == 999));
    assert!(lab.stack.is_empty());
}

#[test]
fn a_client_that_never_completes_the_handshake_is_given_up() {
    let mut lab = Lab::new(limits());
    lab.reception = Reception::Accept(Target::stays_open(1000));
    lab.inject(&segment(SYN, ISN, 0, 65_000)).unwrap();
    lab.pass(Duration::from_millis(9_900));
    let repeated = answers(&lab.take_out());
    assert!(repeated.len() >= 3, "the SYN-ACK is repeated");
    assert!(repeated.iter().all(|answer| answer.flags == SYN | ACK));
    assert!(lab.ended.is_empty());
    lab.pass(Duration::from_millis(200));
    assert_eq!(lab.ended[0].cause, CloseCause::Timeout);
    assert!(lab.stack.is_empty());
    assert!(answer(lab.take_out().last().unwrap()).flags & RST != 0);
}

#[test]
fn a_reset_answers_the_syn_ack() {
    let mut lab = Lab::new(limits());
    lab.reception = Reception::Accept(Target::stays_open(0));
    lab.inject(&segment(SYN, ISN, 0, 65_000)).unwrap();
    lab.settle();
    lab.inject(&segment(RST, ISN + 1, 0, 0)).unwrap();
    lab.settle();
    assert_eq!(lab.ended[0].cause, CloseCause::ClientReset);
    assert!(lab.stack.is_empty());
}
