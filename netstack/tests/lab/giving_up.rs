//! Clients that fall silent, and clients that only seem to.

use std::time::Duration;

use portcullis_netstack::{CloseCause, StackLimits};

use crate::lab::{DOWN, Lab, Reception, Target, compare, limits};
use crate::raw::{ACK, RST, SYN, Segment, answer, answers, segment, selective, selective_syn};

const ISN: u32 = 9_000;
const SECOND: Duration = Duration::from_secs(1);

fn establish(lab: &mut Lab, target: Target, window: u16) -> u32 {
    lab.reception = Reception::Accept(target);
    lab.inject(&segment(SYN, ISN, 0, window)).unwrap();
    lab.settle();
    let first = answer(&lab.take_out()[0]).sequence.wrapping_add(1);
    lab.inject(&segment(ACK, ISN + 1, first, window)).unwrap();
    lab.settle();
    first
}

fn given_up(lab: &mut Lab) -> bool {
    let Some(ended) = lab.ended.first() else { return false };
    assert_eq!(ended.cause, CloseCause::Timeout);
    assert!(answers(&lab.take_out()).last().unwrap().flags & RST != 0, "and told so");
    assert!(lab.stack.is_empty());
    true
}

#[test]
fn a_client_that_vanishes_with_data_outstanding_is_given_up() {
    let mut lab = Lab::new(limits());
    establish(&mut lab, Target::stays_open(10_000), 65_000);
    lab.pass(limits().tcp_user_timeout - SECOND);
    assert!(lab.ended.is_empty());
    lab.pass(SECOND * 2);
    assert!(given_up(&mut lab));
}

/// RFC 6069 section 4: what was repeated in vain is repeated when the path is back, not when the next timeout is due.
#[test]
fn a_client_that_comes_back_is_sent_at_once_what_it_missed() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(3_000), 65_000);
    let flow = lab.opened[0];
    let again = |lab: &mut Lab| {
        lab.stack.try_again(lab.instant(), flow);
        lab.settle();
        answers(&lab.take_out()).iter().map(|answer| answer.sequence).collect::<Vec<_>>()
    };
    lab.take_out();
    assert_eq!(again(&mut lab), [], "nothing went unanswered yet");
    lab.pass(SECOND * 20);
    lab.take_out();
    lab.pass(SECOND);
    assert!(lab.take_out().is_empty(), "the next time is far");
    assert_eq!(again(&mut lab)[..1], [first]);
    assert_eq!(again(&mut lab), [], "once");
    // And from then on as after any loss.
    lab.pass(SECOND * 2);
    assert!(answers(&lab.take_out()).iter().any(|answer| answer.sequence == first));
    let end = first + 3_000;
    lab.inject(&segment(ACK, ISN + 1, end, 65_000)).unwrap();
    lab.settle();
    lab.pass(SECOND * 30);
    assert_eq!((again(&mut lab), lab.ended.len()), (Vec::new(), 0), "all of it arrived");
}

#[test]
fn a_target_that_trickles_does_not_keep_a_vanished_client_alive() {
    let mut lab = Lab::new(limits());
    establish(&mut lab, Target::stays_open(10), 65_000);
    let flow = lab.opened[0];
    for _ in 0..limits().tcp_user_timeout.as_secs() + 2 {
        if let Some(target) = lab.targets.get_mut(&flow) {
            target.send += 1;
        }
        lab.stack.mark_changed(flow);
        lab.pass(SECOND);
    }
    assert!(given_up(&mut lab));
}

#[test]
fn a_client_that_vanishes_without_owing_anything_may_stay() {
    let mut lab = Lab::new(limits());
    establish(&mut lab, Target::stays_open(0), 65_000);
    lab.pass(limits().tcp_idle - SECOND);
    assert!(lab.ended.is_empty());
    assert!(lab.take_out().is_empty(), "an idle flow costs no packet");
    lab.pass(SECOND * 2);
    assert!(given_up(&mut lab), "but not longer than a flow may be idle");
}

#[test]
fn the_time_starts_with_the_debt_not_with_the_silence() {
    let mut lab = Lab::new(limits());
    establish(&mut lab, Target::stays_open(0), 65_000);
    lab.pass(SECOND * 1000);
    let flow = lab.opened[0];
    lab.targets.get_mut(&flow).unwrap().send = 5;
    lab.stack.mark_changed(flow);
    lab.pass(limits().tcp_user_timeout - SECOND);
    assert!(lab.ended.is_empty());
    lab.pass(SECOND * 2);
    assert!(given_up(&mut lab));
}

#[test]
fn a_client_that_shuts_its_window_and_is_silent_is_given_up() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(50_000), 4_000);
    let got = lab.take_out().iter().map(|packet| answer(packet).payload.len()).sum::<usize>() as u32;
    assert!(got > 0);
    // Acknowledges nothing new and takes its window back, so that the retransmission finds it shut.
    lab.inject(&segment(ACK, ISN + 1, first, 0)).unwrap();
    lab.pass(limits().tcp_user_timeout + SECOND);
    assert!(given_up(&mut lab));
}

/// Answers every packet of the stack as a client does whose application reads nothing.
fn answer_probes(lab: &mut Lab, span: Duration, acknowledgment: u32) -> usize {
    let end = lab.now + span;
    let mut probes = 0;
    lab.take_out();
    while lab.now < end {
        lab.pass(SECOND);
        for _ in lab.take_out() {
            probes += 1;
            lab.inject(&segment(ACK, ISN + 1, acknowledgment, 0)).unwrap();
        }
    }
    probes
}

#[test]
fn a_client_with_a_shut_window_that_answers_probes_is_kept() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(50_000), 2_000);
    let got = lab.take_out().iter().map(|packet| answer(packet).payload.len()).sum::<usize>() as u32;
    lab.inject(&segment(ACK, ISN + 1, first.wrapping_add(got), 0)).unwrap();
    let probes = answer_probes(&mut lab, limits().tcp_user_timeout * 5, first.wrapping_add(got));
    assert!(probes > 5, "{probes} probes");
    assert!(lab.ended.is_empty());
}

#[test]
fn t24_a_client_that_never_opens_its_window_ends_as_idle() {
    let mut lab = Lab::new(StackLimits { tcp_idle: SECOND * 300, ..limits() });
    let first = establish(&mut lab, Target::stays_open(50_000), 2_000);
    let got = lab.take_out().iter().map(|packet| answer(packet).payload.len()).sum::<usize>() as u32;
    lab.inject(&segment(ACK, ISN + 1, first.wrapping_add(got), 0)).unwrap();
    let probes = answer_probes(&mut lab, SECOND * 290, first.wrapping_add(got));
    assert!(probes > 3 && lab.ended.is_empty(), "{probes} probes");
    lab.pass(SECOND * 15);
    assert!(given_up(&mut lab), "answers to probes are no use of the flow");
}

#[test]
fn a_client_that_took_its_window_back_is_asked_and_goes_on() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(50_000), 4_000);
    lab.take_out();
    lab.inject(&segment(ACK, ISN + 1, first, 0)).unwrap();
    let probes = answer_probes(&mut lab, limits().tcp_user_timeout * 3, first);
    assert!(probes > 3, "{probes} probes");
    assert!(lab.ended.is_empty());
    take_everything(&mut lab, first, first, 50_000);
}

/// Opens the window and takes in order what comes, until `total` bytes are there.
fn take_everything(lab: &mut Lab, first: u32, mut next: u32, total: u64) {
    lab.inject(&segment(ACK, ISN + 1, next, 4_000)).unwrap();
    let end = lab.now + SECOND * 60;
    while u64::from(next.wrapping_sub(first)) < total && lab.now < end {
        lab.pass(SECOND / 10);
        for packet in lab.take_out() {
            let segment_of = answer(&packet);
            let skip = next.wrapping_sub(segment_of.sequence);
            if (skip as usize) < segment_of.payload.len() {
                compare(DOWN, u64::from(next.wrapping_sub(first)), &segment_of.payload[skip as usize..]);
                next = segment_of.sequence.wrapping_add(segment_of.payload.len() as u32);
            }
            lab.inject(&segment(ACK, ISN + 1, next, 4_000)).unwrap();
        }
    }
    assert_eq!(u64::from(next.wrapping_sub(first)), total, "stalled");
}

#[test]
fn segments_lost_while_the_window_opened_come_again() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(2_000), 4_000);
    let sizes: Vec<u32> = lab.take_out().iter().map(|packet| answer(packet).payload.len() as u32).collect();
    assert!(sizes.len() > 1, "{sizes:?}");
    // The first segment arrives and shuts the window, the rest is lost, then the window opens again.
    let next = first.wrapping_add(sizes[0]);
    lab.inject(&segment(ACK, ISN + 1, next, 0)).unwrap();
    lab.settle();
    lab.take_out();
    take_everything(&mut lab, first, next, 2_000);
}

/// RFC 9293 section 3.10.7.4: nothing counts of a segment from outside the window, and so not what it says of the client's.
#[test]
fn a_window_told_from_outside_ours_opens_nothing() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(3_000), 4_000);
    let sizes: Vec<u32> = lab.take_out().iter().map(|packet| answer(packet).payload.len() as u32).collect();
    assert!(sizes.len() > 2, "{sizes:?}");
    // The rest is lost, and time enough passes that it is known.
    let next = first.wrapping_add(sizes[0]);
    lab.inject(&segment(ACK, ISN + 1, next, 0)).unwrap();
    lab.settle();
    lab.pass(SECOND * 3);
    lab.take_out();
    let far = Segment {
        v6: false,
        flags: ACK,
        sequence: ISN + 10_000_000,
        acknowledgment: next,
        window: 20_000,
        payload: &[1; 100],
    };
    lab.inject(&far.bytes()).unwrap();
    lab.settle();
    let out = answers(&lab.take_out());
    assert!(out.len() == 1 && out[0].payload.is_empty(), "it is told where we are, and no more: {out:?}");
    lab.pass(SECOND);
    take_everything(&mut lab, first, next, 3_000);
}

#[test]
fn a_flow_in_use_does_not_end() {
    let mut lab = Lab::new(StackLimits { tcp_idle: SECOND * 100, ..limits() });
    let first = establish(&mut lab, Target::stays_open(0), 65_000);
    for _ in 0..10 {
        lab.pass(SECOND * 99);
        // A keep-alive of the client.
        lab.inject(&segment(ACK, ISN, first, 65_000)).unwrap();
        lab.settle();
    }
    assert!(lab.ended.is_empty());
    lab.pass(SECOND * 101);
    assert!(given_up(&mut lab));
}

/// RFC 2018 section 8: what a client said it has behind a hole it may throw away. It says so when it acknowledges the hole
/// alone.
#[test]
fn what_a_client_threw_away_comes_again_at_once() {
    let mut lab = Lab::new(limits());
    lab.reception = Reception::Accept(Target::stays_open(5_360));
    lab.inject(&selective_syn(ISN, 65_000)).unwrap();
    lab.settle();
    let first = answer(&lab.take_out()[0]).sequence.wrapping_add(1);
    let at = |segments: u32| first.wrapping_add(segments * 536);
    lab.inject(&segment(ACK, ISN + 1, first, 65_000)).unwrap();
    lab.settle();
    assert_eq!(answers(&lab.take_out()).len(), 10);
    // The first is lost, and comes again.
    for arrived in 2..=10 {
        lab.inject(&selective(ISN + 1, first, 65_000, (at(1), at(arrived)))).unwrap();
        lab.settle();
    }
    let again: Vec<_> = answers(&lab.take_out()).iter().map(|answer| answer.sequence).collect();
    assert_eq!(again, [first]);
    // It arrives, and nothing of the others is there any more: all comes again before the least timeout.
    let mut next = at(1);
    for _ in 0..10 {
        lab.inject(&segment(ACK, ISN + 1, next, 65_000)).unwrap();
        lab.pass(SECOND / 100);
        for packet in answers(&lab.take_out()) {
            if packet.sequence == next {
                compare(DOWN, u64::from(next.wrapping_sub(first)), &packet.payload);
                next = next.wrapping_add(packet.payload.len() as u32);
            }
        }
    }
    assert_eq!(next, at(10));
}
