//! What holds for every sequence of packets.

use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis_netstack::Refusal;
use proptest::prelude::*;

use crate::lab::{Lab, Memory, Reception, Target, limits};
use crate::raw::{ACK, FIN, RST, SYN, Segment, echo_request, udp};

#[derive(Debug, Clone)]
enum Step {
    /// A segment whose numbers are near those the connection is at.
    Segment {
        v6: bool,
        flags: u8,
        sequence: i32,
        acknowledgment: i32,
        window: u16,
        payload: usize,
    },
    Udp(bool, u16, usize),
    Echo(bool, u16, usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        4 => Just(SYN), 8 => Just(ACK), 2 => Just(ACK | FIN), 1 => Just(RST), 1 => Just(RST | ACK), 1 => 0u8..16
    ];
    let near = || prop_oneof![4 => -2i32..3, 2 => -3000i32..3000, 1 => any::<i32>()];
    prop_oneof![
        8 => (any::<bool>(), flags, near(), near(), any::<u16>(), 0usize..1200).prop_map(
            |(v6, flags, sequence, acknowledgment, window, payload)| Step::Segment {
                v6, flags, sequence, acknowledgment, window, payload: if payload > 600 { 0 } else { payload },
            }
        ),
        1 => (any::<bool>(), 1u16..4, 0usize..1000).prop_map(|(v6, port, len)| Step::Udp(v6, port, len)),
        1 => (any::<bool>(), 0u16..3, 0usize..1000).prop_map(|(v6, identifier, len)| Step::Echo(v6, identifier, len)),
        2 => (0u64..200_000).prop_map(Step::Pass),
    ]
}

/// Where the client believes each of its two connections to be.
#[derive(Clone, Copy, Default)]
struct Numbers {
    sequence: u32,
    acknowledgment: u32,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever a client sends: nothing panics, every answer is valid, the table holds what was opened and not
    /// removed, no timer spins (all checked in every step), and in the end everything goes away by itself, whatever the
    /// rings may have.
    #[test]
    fn any_sequence_of_packets_leaves_a_sound_stack(
        steps in proptest::collection::vec(step(), 1..60), send in 0u64..50_000, reception in 0u8..8, memory in 0usize..100_000,
    ) {
        let mut lab = Lab::new(limits());
        lab.compares = false;
        lab.memory = Memory::of(memory);
        lab.reception = match reception {
            0 => Reception::Refuse(Refusal::Prohibited),
            1 => Reception::Accept(Target::sends(send)),
            _ => Reception::Accept(Target::sends(send).takes(0)),
        };
        let mut numbers = [Numbers::default(); 2];
        for step in steps {
            match step {
                Step::Segment { v6, flags, sequence, acknowledgment, window, payload } => {
                    let at = &mut numbers[usize::from(v6)];
                    let sequence = at.sequence.wrapping_add_signed(sequence);
                    let acknowledgment = at.acknowledgment.wrapping_add_signed(acknowledgment);
                    let payload = vec![0; payload];
                    let segment = Segment { v6, flags, sequence, acknowledgment, window, payload: &payload };
                    let _ = lab.inject(&segment.bytes());
                    if flags == SYN {
                        at.sequence = sequence.wrapping_add(1);
                    }
                }
                Step::Udp(v6, port, len) => drop(lab.inject(&udp(v6, port, &vec![1; len]))),
                Step::Echo(v6, identifier, len) => drop(lab.inject(&echo_request(v6, identifier, 1, &vec![1; len]))),
                Step::Pass(millis) => lab.pass(Duration::from_millis(millis)),
            }
            lab.settle();
            for packet in lab.take_out() {
                let v6 = packet[0] >> 4 == 6;
                let protocol = if v6 { packet[6] } else { packet[9] };
                if protocol == 6 {
                    let answer = crate::raw::answer(&packet);
                    let len = answer.payload.len() as u32 + u32::from(answer.flags & (SYN | FIN) != 0);
                    numbers[usize::from(v6)].acknowledgment = answer.sequence.wrapping_add(len);
                }
            }
        }
        for id in lab.opened.clone() {
            // A dial that is still under way ends by its own timeout, outside the stack.
            if !lab.targets.contains_key(&id) && lab.stack.client_gave_up(id) {
                lab.stack.remove(id);
            }
        }
        lab.pass(limits().tcp_idle * 2);
        prop_assert!(lab.stack.is_empty(), "{:?}", lab.stack);
        prop_assert_eq!(lab.next_timeout(), None);
        prop_assert_eq!(lab.memory.taken.load(Ordering::Relaxed), 0, "rings are gone, and so is what they had");
    }
}
