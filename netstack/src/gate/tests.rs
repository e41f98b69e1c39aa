use super::*;
use crate::packet::build::{IPV4_HEADER, TCP_HEADER};

const START: u32 = u32::MAX - 100;
const FIN: u8 = 0x01;
const ACK: u8 = 0x10;

/// A segment of `len` bytes at `START + at`.
fn admit(gate: &mut Gate, at: u32, len: usize, flags: u8, acknowledgment: u32) -> Passage {
    let mut packet = vec![0; IPV4_HEADER + TCP_HEADER + len];
    packet[0] = 0x45;
    packet[IPV4_HEADER + 4..][..4].copy_from_slice(&START.wrapping_add(at).to_be_bytes());
    packet[IPV4_HEADER + 8..][..4].copy_from_slice(&acknowledgment.to_be_bytes());
    packet[IPV4_HEADER + 12] = 5 << 4;
    packet[IPV4_HEADER + 13] = flags;
    let layout = Layout::of(&packet).unwrap();
    gate.admit(&packet, layout)
}

fn range(start: u32, end: u32) -> Range {
    Range { start: START.wrapping_add(start), end: START.wrapping_add(end) }
}

fn parts(parts: &[(Bytes<usize>, bool)]) -> Passage {
    Passage::Parts(parts.iter().map(|(payload, last)| Part { payload: payload.clone(), last: *last }).collect())
}

#[test]
fn what_is_new_passes_and_what_is_old_does_not() {
    let mut gate = Gate::default();
    assert_eq!(admit(&mut gate, 0, 200, ACK, 7), Passage::Whole);
    assert_eq!(admit(&mut gate, 200, 100, ACK, 7), Passage::Whole);
    assert!(!gate.went_back);
    assert_eq!(admit(&mut gate, 0, 300, ACK, 7), Passage::Nothing);
    assert!(gate.went_back);
    // Its acknowledgment is news.
    assert_eq!(admit(&mut gate, 0, 300, ACK, 8), Passage::Bare(range(300, 0).start));
    assert_eq!(admit(&mut gate, 0, 300, ACK, 8), Passage::Nothing);
    assert_eq!(admit(&mut gate, 200, 200, ACK, 8), parts(&[(100..200, true)]));
    assert_eq!(gate.frontier(), Some(range(400, 0).start));
}

#[test]
fn what_is_wanted_leaves_again_piece_by_piece() {
    let mut gate = Gate::default();
    admit(&mut gate, 0, 300, ACK | FIN, 7);
    gate.wanted.extend([range(10, 20), range(90, 110), range(295, 301)]);
    assert_eq!(admit(&mut gate, 0, 100, ACK, 7), parts(&[(10..20, false), (90..100, true)]));
    assert_eq!(admit(&mut gate, 100, 200, ACK | FIN, 7), parts(&[(0..10, false), (195..200, true)]));
    assert_eq!(admit(&mut gate, 0, 300, ACK | FIN, 7), Passage::Nothing, "once");
    gate.wanted.push(range(300, 301));
    assert_eq!(admit(&mut gate, 0, 300, ACK | FIN, 7), parts(&[(300..300, true)]), "the FIN alone");
    gate.wanted.push(range(200, 300));
    assert_eq!(admit(&mut gate, 0, 300, ACK | FIN, 7), parts(&[(200..300, false)]), "all but the FIN");
}

#[test]
fn a_keep_alive_carries_nothing_that_could_be_taken_for_data() {
    let mut gate = Gate::default();
    admit(&mut gate, 0, 300, ACK, 7);
    gate.keep_alive = true;
    gate.una = range(100, 0).start;
    assert_eq!(admit(&mut gate, 299, 1, ACK, 7), Passage::Bare(range(99, 0).start));
    assert!(!gate.went_back);
}

#[test]
fn a_byte_beyond_a_closed_window_is_sent_again_later() {
    let mut gate = Gate { shut: true, una: START, ..Gate::default() };
    assert_eq!(admit(&mut gate, 0, 1, ACK, 7), Passage::Whole);
    gate.shut = false;
    assert_eq!(admit(&mut gate, 0, 100, ACK, 7), Passage::Whole);
    // Sent before, and smoltcp went back while the window was closed.
    gate.shut = true;
    assert_eq!(admit(&mut gate, 0, 1, ACK, 7), Passage::Whole);
    assert!(!gate.went_back);
}

#[test]
fn an_acknowledgment_begins_at_the_frontier() {
    let mut gate = Gate::default();
    assert_eq!(admit(&mut gate, 0, 0, ACK, 7), Passage::Whole);
    admit(&mut gate, 0, 300, ACK, 7);
    assert_eq!(admit(&mut gate, 0, 0, ACK, 7), Passage::Bare(range(300, 0).start));
    assert_eq!(admit(&mut gate, 300, 0, ACK, 7), Passage::Whole);
}
