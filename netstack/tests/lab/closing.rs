//! How connections end: in order, by halves, by resets.

use std::time::Duration;

use portcullis_netstack::{CloseCause, DropReason, Handled};
use smoltcp::socket::tcp::State;

use crate::lab::{Lab, Reception, Target, UP, fill, limits};
use crate::raw::{ACK, FIN, RST, SYN, Segment, answer, answers, segment};
use crate::world::{CLEAN, World, target_v4};

const ISN: u32 = 5_000;
const SECOND: Duration = Duration::from_secs(1);

/// An established connection made by hand. Returns the stack's first data sequence number.
fn establish(lab: &mut Lab, target: Target, window: u16) -> u32 {
    lab.reception = Reception::Accept(target);
    lab.inject(&segment(SYN, ISN, 0, window)).unwrap();
    lab.settle();
    let first = answer(&lab.take_out()[0]).sequence.wrapping_add(1);
    lab.inject(&segment(ACK, ISN + 1, first, window)).unwrap();
    lab.settle();
    first
}

#[test]
fn a_client_may_close_its_half_first() {
    let mut world = World::new(limits(), CLEAN, Reception::Accept(Target::stays_open(0)));
    world.client.connect(target_v4(), 1000, 64 * 1024);
    let flow = |world: &World| world.lab.opened[0];
    assert!(world.run(SECOND, |world| world.lab.targets.values().any(|target| target.shut)));
    // Long after its end the client still gets what the target says.
    world.pass(SECOND * 60);
    let id = flow(&world);
    world.lab.targets.get_mut(&id).unwrap().send = 100_000;
    world.lab.targets.get_mut(&id).unwrap().closes = true;
    world.lab.stack.mark_changed(id);
    assert!(world.run(SECOND, |world| world.client.connections[0].target_finished));
    assert_eq!(world.client.connections[0].received, 100_000);
    assert!(world.run(SECOND, |world| !world.lab.ended.is_empty()));
    let ended = world.lab.ended[0];
    assert_eq!((ended.cause, ended.client_first), (CloseCause::Orderly, true));
    assert!(world.run(SECOND, |world| world.lab.stack.is_empty()));
}

#[test]
fn a_target_may_close_its_half_first() {
    let mut world = World::new(limits(), CLEAN, Reception::Accept(Target::sends(1000)));
    let connection = world.client.connect(target_v4(), 0, 64 * 1024);
    world.client.connections[connection].closes = false;
    world.client.connections[connection].closes_after_target = false;
    assert!(world.run(SECOND, |world| world.client.connections[0].target_finished));
    world.pass(SECOND * 60);
    world.client.connections[connection].send = 200_000;
    world.client.connections[connection].closes = true;
    assert!(world.run(SECOND * 5, |world| !world.lab.ended.is_empty()));
    let ended = world.lab.ended[0];
    assert_eq!((ended.cause, ended.client_first), (CloseCause::Orderly, false));
    assert_eq!(ended.traffic.bytes_up, 200_000);
    assert!(!world.lab.stack.is_empty(), "it lingers");
    assert!(world.run(SECOND * 15, |world| world.lab.stack.is_empty()));
}

#[test]
fn a_repeated_fin_is_answered_while_it_lingers_and_then_the_flow_is_gone() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::sends(0), 65_000);
    let fin = segment(FIN | ACK, ISN + 1, first.wrapping_add(1), 65_000);
    lab.take_out();
    lab.inject(&fin).unwrap();
    lab.pass(SECOND / 10);
    assert_eq!(lab.ended[0].cause, CloseCause::Orderly);
    let out = answers(&lab.take_out());
    assert_eq!(out.last().unwrap().acknowledgment, ISN + 2);
    lab.pass(SECOND * 5);
    lab.take_out();
    lab.inject(&fin).unwrap();
    lab.settle();
    let out = answers(&lab.take_out());
    assert_eq!(out.len(), 1, "the answer to the FIN was lost: it comes again");
    assert_eq!((out[0].flags, out[0].acknowledgment), (ACK, ISN + 2));
    assert_eq!(lab.stack.len(), 1);
    lab.pass(SECOND * 11);
    assert!(lab.stack.is_empty());
    assert!(lab.take_out().is_empty());
}

#[test]
fn a_reset_of_the_client_is_one() {
    let mut world = World::new(limits(), CLEAN, Reception::Accept(Target::stays_open(50_000)));
    let connection = world.client.connect(target_v4(), 1000, 64 * 1024);
    world.client.connections[connection].closes = false;
    assert!(world.run(SECOND, |world| world.client.connections[0].received == 50_000));
    world.client.abort(connection);
    assert!(world.run(SECOND, |world| !world.lab.ended.is_empty()));
    assert_eq!(world.lab.ended[0].cause, CloseCause::ClientReset);
    assert!(world.lab.stack.is_empty());
}

#[test]
fn an_aborted_flow_is_seen_as_reset_by_the_client() {
    let mut world = World::new(limits(), CLEAN, Reception::Accept(Target::stays_open(50_000)));
    let connection = world.client.connect(target_v4(), 0, 64 * 1024);
    world.client.connections[connection].closes = false;
    assert!(world.run(SECOND, |world| world.client.connections[0].received > 10_000));
    let now = world.lab.instant();
    world.lab.stack.abort(now, world.lab.opened[0]);
    assert!(world.lab.stack.is_empty());
    assert!(world.run(SECOND, |world| world.client.state(0) == State::Closed));
    assert!(!world.client.connections[0].target_finished, "a cut is never a clean end");
}

#[test]
fn t28_a_syn_on_a_lingering_tuple_opens_anew() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::sends(0), 65_000);
    lab.inject(&segment(FIN | ACK, ISN + 1, first.wrapping_add(1), 65_000)).unwrap();
    lab.pass(SECOND);
    assert_eq!(lab.stack.len(), 1);
    lab.take_out();
    let old = lab.opened[0];
    let Handled::Opened(new) = lab.inject(&segment(SYN, ISN + 100_000, 0, 65_000)).unwrap() else { panic!() };
    assert_ne!(old, new);
    assert!(lab.stack.key(old).is_none());
    lab.settle();
    let out = answers(&lab.take_out());
    assert_eq!((out[0].flags, out[0].acknowledgment), (SYN | ACK, ISN + 100_001));
}

#[test]
fn t28_a_client_that_forgot_the_connection_is_asked_and_opens_anew() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(0), 65_000);
    let mut payload = [0; 3];
    fill(UP, 0, &mut payload);
    let data =
        Segment { v6: false, flags: ACK, sequence: ISN + 1, acknowledgment: first, window: 65_000, payload: &payload };
    lab.inject(&data.bytes()).unwrap();
    lab.pass(SECOND);
    lab.take_out();
    let old = lab.opened[0];
    // The client was started anew and takes the same port: the number is in the window, or far from it.
    for number in [ISN + 1_000, ISN.wrapping_add(1 << 31)] {
        let new = segment(SYN, number, 0, 65_000);
        assert_eq!(lab.inject(&new), Ok(Handled::Known(old)));
        lab.settle();
        let challenge = answers(&lab.take_out());
        assert_eq!(challenge.len(), 1);
        assert_eq!((challenge[0].flags, challenge[0].acknowledgment), (ACK, ISN + 4));
        assert!(lab.ended.is_empty());
        lab.pass(SECOND);
        lab.take_out();
    }
    // It resets what it does not know, as RFC 9293 section 3.10.7.3 says, and its next SYN is a new connection.
    lab.inject(&segment(RST, ISN + 4, 0, 0)).unwrap();
    lab.settle();
    assert_eq!(lab.ended[0].cause, CloseCause::ClientReset);
    assert!(matches!(lab.inject(&segment(SYN, ISN + 1_000, 0, 65_000)), Ok(Handled::Opened(_))));
}

#[test]
fn t28_only_the_exact_reset_is_one() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(0), 65_000);
    lab.pass(SECOND);
    lab.take_out();
    lab.inject(&segment(RST | ACK, ISN + 500, first, 0)).unwrap();
    lab.settle();
    let challenge = answers(&lab.take_out());
    assert_eq!((challenge.len(), challenge[0].flags, challenge[0].acknowledgment), (1, ACK, ISN + 1));
    lab.inject(&segment(RST | ACK, ISN - 500, first, 0)).unwrap();
    lab.settle();
    assert!(lab.take_out().is_empty(), "behind the window it is nothing");
    assert!(lab.ended.is_empty());
    lab.inject(&segment(RST, ISN + 1, 0, 0)).unwrap();
    lab.settle();
    assert_eq!(lab.ended[0].cause, CloseCause::ClientReset);
}

/// The data of a client that closed, whose target takes nothing for now.
fn unread(lab: &mut Lab, len: u64) {
    let first = establish(lab, Target::sends(0).takes(0), 65_000);
    let mut payload = vec![0; usize::try_from(len).unwrap()];
    fill(UP, 0, &mut payload);
    let flags = FIN | ACK;
    let acknowledgment = first.wrapping_add(1);
    let last = Segment { v6: false, flags, sequence: ISN + 1, acknowledgment, window: 65_000, payload: &payload };
    lab.inject(&last.bytes()).unwrap();
    lab.settle();
}

fn let_it_take(lab: &mut Lab, flow: portcullis_netstack::FlowId) {
    lab.targets.get_mut(&flow).unwrap().appetite = u64::MAX;
    lab.stack.mark_changed(flow);
    lab.settle();
}

#[test]
fn what_a_closed_client_sent_waits_for_a_slow_target() {
    let mut lab = Lab::new(limits());
    unread(&mut lab, 1000);
    let out = answers(&lab.take_out());
    assert!(lab.ended.is_empty());
    lab.pass(SECOND);
    let later = answers(&lab.take_out());
    let last = out.iter().chain(&later).last().unwrap();
    assert_eq!(last.acknowledgment, ISN + 1 + 1000 + 1, "the client need not wait for the target");
    lab.pass(SECOND * 3600);
    assert!(lab.ended.is_empty(), "TIME-WAIT is long over, the bytes are not delivered");
    let flow = lab.opened[0];
    let_it_take(&mut lab, flow);
    assert_eq!(lab.ended.len(), 1);
    assert_eq!((lab.ended[0].cause, lab.ended[0].traffic.bytes_up), (CloseCause::Orderly, 1000));
    lab.pass(SECOND * 15);
    assert!(lab.stack.is_empty());
}

#[test]
fn a_target_that_never_takes_the_rest_is_given_up() {
    let mut lab = Lab::new(limits());
    unread(&mut lab, 1000);
    lab.pass(limits().tcp_idle + SECOND);
    assert_eq!(lab.ended[0].cause, CloseCause::Timeout);
    assert!(lab.stack.is_empty());
}

#[test]
fn t28_a_new_connection_on_the_tuple_does_not_cost_the_old_ones_bytes() {
    let mut lab = Lab::new(limits());
    unread(&mut lab, 1000);
    let old = lab.opened[0];
    lab.pass(SECOND * 2);
    lab.take_out();
    let Handled::Opened(new) = lab.inject(&segment(SYN, ISN + 100_000, 0, 65_000)).unwrap() else { panic!() };
    assert_eq!(lab.stack.len(), 2, "both are in the table");
    lab.pass(SECOND * 9);
    let out = answers(&lab.take_out());
    assert!(!out.is_empty());
    assert!(out.iter().all(|answer| answer.acknowledgment == ISN + 100_001), "only the new one speaks");
    let_it_take(&mut lab, old);
    assert_eq!((lab.ended[0].flow, lab.ended[0].traffic.bytes_up), (old, 1000));
    assert!(lab.stack.key(old).is_none());
    assert!(lab.stack.key(new).is_some(), "the tuple is the new one's");
    assert!(matches!(lab.inject(&segment(SYN, ISN + 100_000, 0, 65_000)), Ok(Handled::Known(id)) if id == new));
}

#[test]
fn a_late_reset_in_time_wait_harms_nothing() {
    let mut lab = Lab::new(limits());
    unread(&mut lab, 1000);
    lab.pass(SECOND);
    lab.inject(&segment(RST, ISN + 1002, 0, 0)).unwrap();
    lab.settle();
    let flow = lab.opened[0];
    let_it_take(&mut lab, flow);
    assert_eq!((lab.ended[0].cause, lab.ended[0].traffic.bytes_up), (CloseCause::Orderly, 1000));
    lab.pass(SECOND * 15);
    assert!(lab.stack.is_empty());
}

/// How many FINs came, and the numbers of the last.
fn fins(lab: &mut Lab) -> Vec<(u32, u32, usize)> {
    let out = answers(&lab.take_out());
    let fins = out.iter().filter(|answer| answer.flags & FIN != 0);
    fins.map(|answer| (answer.sequence, answer.acknowledgment, answer.payload.len())).collect()
}

/// Our FIN and nothing else is lost: it comes again after the retransmission timeout, not after smoltcp's second.
#[test]
fn a_lost_fin_comes_again_as_soon_as_data_would() {
    for client_closes in [false, true] {
        let mut lab = Lab::new(limits());
        let first = establish(&mut lab, Target::stays_open(100), 65_000);
        lab.take_out();
        let next = first.wrapping_add(100);
        lab.pass(SECOND / 20);
        lab.inject(&segment(ACK, ISN + 1, next, 65_000)).unwrap();
        lab.settle();
        let mut ours = ISN + 1;
        if client_closes {
            lab.inject(&segment(FIN | ACK, ISN + 1, next, 65_000)).unwrap();
            lab.settle();
            ours += 1;
        }
        let flow = lab.opened[0];
        lab.targets.get_mut(&flow).unwrap().closes = true;
        lab.stack.mark_changed(flow);
        lab.settle();
        assert_eq!(fins(&mut lab), [(next, ours, 0)]);
        lab.pass(SECOND / 10);
        assert_eq!(fins(&mut lab), [], "the acknowledgment may still come");
        lab.pass(SECOND / 5);
        let again = fins(&mut lab);
        assert!(!again.is_empty(), "client closed first: {client_closes}");
        assert!(again.iter().all(|fin| *fin == (next, ours, 0)), "{again:?}");
        lab.inject(&segment(ACK, ours, next.wrapping_add(1), 65_000)).unwrap();
        lab.pass(SECOND * 10);
        assert_eq!(fins(&mut lab), [], "it arrived");
        if client_closes {
            assert_eq!(lab.ended[0].cause, CloseCause::Orderly);
        } else {
            assert!(lab.ended.is_empty(), "the client may go on sending");
        }
    }
}

/// What the target says last is lost with our FIN, after the client closed: smoltcp's LAST-ACK is no reason to wait.
#[test]
fn data_lost_with_the_fin_comes_again_in_time() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::stays_open(100), 65_000);
    lab.pass(SECOND / 20);
    lab.inject(&segment(ACK, ISN + 1, first.wrapping_add(100), 65_000)).unwrap();
    lab.inject(&segment(FIN | ACK, ISN + 1, first.wrapping_add(100), 65_000)).unwrap();
    lab.settle();
    let flow = lab.opened[0];
    let target = lab.targets.get_mut(&flow).unwrap();
    (target.send, target.closes) = (150, true);
    lab.stack.mark_changed(flow);
    lab.settle();
    let lost = fins(&mut lab);
    assert!(!lost.is_empty());
    lab.pass(SECOND / 2);
    let again = answers(&lab.take_out());
    let from = first.wrapping_add(100);
    assert!(again.iter().any(|answer| answer.sequence == from && answer.payload.len() == 50), "the data");
    assert!(again.iter().any(|answer| answer.flags & FIN != 0), "and the end");
}

/// A client that closes at the same moment, in front of our lost FIN.
#[test]
fn a_lost_fin_comes_again_when_both_close_at_once() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::sends(0), 65_000);
    assert_eq!(fins(&mut lab).len(), 1);
    lab.inject(&segment(FIN | ACK, ISN + 1, first, 65_000)).unwrap();
    lab.settle();
    lab.take_out();
    // No round trip was measured: the first timeout is one second, RFC 6298 section 2.
    lab.pass(SECOND * 2);
    let again = fins(&mut lab);
    assert!(!again.is_empty() && again.iter().all(|fin| fin.0 == first), "{again:?}");
    lab.inject(&segment(ACK, ISN + 2, first.wrapping_add(1), 65_000)).unwrap();
    lab.settle();
    assert_eq!(lab.ended[0].cause, CloseCause::Orderly);
}

/// smoltcp asked for more room with the same acknowledgment for ever, at one instant, once it had nothing to send.
#[test]
fn a_client_that_takes_everything_with_a_closed_window_is_not_asked_for_ever() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::sends(3_000), 2_000);
    let got = lab.take_out().iter().map(|packet| answer(packet).payload.len()).sum::<usize>() as u32;
    // The window closes with data left, which a probe moves, and stays closed when all of it is acknowledged.
    lab.inject(&segment(ACK, ISN + 1, first.wrapping_add(got), 0)).unwrap();
    lab.settle();
    lab.inject(&segment(ACK, ISN + 1, first.wrapping_add(got), 2_000)).unwrap();
    lab.settle();
    lab.inject(&segment(ACK, ISN + 1, first.wrapping_add(got + 1), 0)).unwrap();
    lab.settle();
    lab.inject(&segment(ACK, ISN + 1, first.wrapping_add(3_001), 0)).unwrap();
    lab.take_out();
    lab.pass(SECOND * 60);
    assert!(lab.take_out().len() < 100);
}

/// RFC 9293 section 3.10.7.4: text from behind the client's FIN is ignored. smoltcp takes it: it would reach the target, or
/// lie in the ring, so that TIME-WAIT did not end and in the end the flow was due at every instant.
#[test]
fn bytes_behind_the_clients_end_are_nobodys_and_hold_nothing_open() {
    let mut lab = Lab::new(limits());
    let first = establish(&mut lab, Target::sends(0), 65_000);
    let segment_of = |flags, sequence, acknowledgment, payload| {
        Segment { v6: false, flags, sequence, acknowledgment, window: 65_000, payload }.bytes()
    };
    // Both close at once: our FIN is on its way when the client's comes, and more behind that.
    lab.inject(&segment_of(FIN | ACK, ISN + 1, first, &[])).unwrap();
    lab.settle();
    lab.take_out();
    assert_eq!(lab.inject(&segment_of(ACK, ISN + 2, first, &[1; 100])), Err(DropReason::UnacceptableSegment));
    assert_eq!(
        lab.inject(&segment_of(ACK, ISN + 2, first.wrapping_add(1), &[1; 100])),
        Err(DropReason::UnacceptableSegment)
    );
    lab.settle();
    assert_eq!((lab.ended[0].cause, lab.ended[0].traffic.bytes_up), (CloseCause::Orderly, 0));
    assert!(answers(&lab.take_out()).iter().all(|answer| answer.acknowledgment == ISN + 2));
    lab.pass(SECOND * 30);
    assert!(lab.stack.is_empty(), "{:?}", lab.stack);
}
