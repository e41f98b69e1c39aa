//! When flows want to be looked at again: a heap with lazy deletion, so that an idle flow costs nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::tuple::FlowId;

/// Deadlines of flows, earliest first.
///
/// A flow notes the earliest entry it has in the heap. Moving its deadline later only changes the flow; when the
/// old entry comes up the flow is asked again. So a busy flow, whose timers move with every packet, adds nothing.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(Instant, FlowId)>>,
}

impl Deadlines {
    /// Notes that `flow` wants a look at `at`. `armed` is the flow's earliest entry.
    pub(crate) fn arm(&mut self, flow: FlowId, at: Instant, armed: &mut Option<Instant>) {
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            self.heap.push(Reverse((at, flow)));
        }
    }

    /// The next flow whose entry is due, with the time of the entry.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, FlowId)> {
        let Reverse((at, _)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// When the next entry is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}
