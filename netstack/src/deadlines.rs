//! When flows want to be looked at again: a heap with lazy deletion, so that an idle flow costs nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::tuple::FlowId;

/// Entries that may be out of date before they are counted against the flows there are.
const SLACK: usize = 64;

/// Deadlines of flows, earliest first.
///
/// A flow notes the earliest entry it has in the heap. Moving its deadline later only changes the flow; when the
/// old entry comes up the flow is asked again. So a busy flow, whose timers move with every packet, adds nothing.
/// Moving it earlier leaves the later entry behind, for hours where it was an idle timeout: those are swept out
/// once they are as many as the flows, so that the heap is never longer than twice the flow table and some slack.
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

    /// Forgets entries out of date when there are more of them than `flows`. `armed` tells a flow's earliest entry.
    pub(crate) fn sweep(&mut self, flows: usize, armed: impl Fn(FlowId) -> Option<Instant>) {
        if self.heap.len() > 2 * flows + SLACK {
            self.heap.retain(|Reverse((at, flow))| armed(*flow) == Some(*at));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn entries_out_of_date_do_not_pile_up() {
        let mut deadlines = Deadlines::default();
        let flow = FlowId { index: 0, generation: 1 };
        let (mut now, mut armed) = (Instant::now(), None);
        for _ in 0..10_000 {
            // A keystroke: the idle timeout is hours away, then a retransmission timer comes before it and goes.
            deadlines.arm(flow, now + Duration::from_secs(7200), &mut armed);
            deadlines.arm(flow, now + Duration::from_millis(200), &mut armed);
            now += Duration::from_millis(200);
            assert_eq!(deadlines.pop_due(now), Some((now, flow)));
            armed = None;
            deadlines.arm(flow, now + Duration::from_secs(7200), &mut armed);
            deadlines.sweep(1, |_| armed);
            assert!(deadlines.heap.len() <= 2 + SLACK, "{}", deadlines.heap.len());
            assert!(deadlines.heap.iter().any(|Reverse((at, _))| Some(*at) == armed), "the flow's own entry stays");
        }
    }
}
