//! Rests between turns while packets come densely, as a network card holds back its interrupts.
//!
//! A shard that is faster than what feeds it wakes up for every packet or two, and each time pays for a system call to
//! read it, one to send it on, one to acknowledge it, and the wake-up of both ends. A rest of some microseconds lets a
//! batch gather. It comes only under a dense stream: the exchange of questions and answers is never dense.

use std::time::{Duration, Instant};

/// How long a rest is: what comes in meanwhile waits so long at most. The kernel adds its timer slack, so that is lowered.
const REST: Duration = Duration::from_micros(150);
/// `PR_SET_TIMERSLACK` of a shard's thread, in nanoseconds.
const SLACK: u64 = 1_000;
/// Over what time density is judged.
const WINDOW: Duration = Duration::from_millis(1);
/// Packets in a window that make it dense: one every 40 us.
const DENSE: u32 = 25;
/// A turn that took in as many had its batch.
const BATCH: u32 = 32;

/// When to rest.
#[derive(Debug)]
pub(super) struct Moderation {
    since: Instant,
    packets: u32,
    turn: u32,
    dense: bool,
}

impl Moderation {
    /// Of the calling thread.
    pub(super) fn new(now: Instant) -> Self {
        if let Err(error) = nix::sys::prctl::set_timerslack(SLACK) {
            tracing::debug!(%error, "cannot lower the timer slack: rests are longer");
        }
        Self { since: now, packets: 0, turn: 0, dense: false }
    }

    /// Notes that a packet came in.
    pub(super) fn count(&mut self) {
        self.turn += 1;
    }

    /// How long to rest after a turn that ended at `now`, when that gathers a batch for the next one.
    pub(super) fn rest_after(&mut self, now: Instant) -> Option<Duration> {
        let turn = std::mem::take(&mut self.turn);
        self.packets += turn;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            // After a silence nothing is known about now.
            self.dense = self.packets >= DENSE && elapsed < 2 * WINDOW;
            self.since = now;
            self.packets = 0;
        }
        (self.dense && (1..BATCH).contains(&turn)).then_some(REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns of one packet each, `gap` apart. Returns how many were followed by a rest.
    fn rests(moderation: &mut Moderation, now: &mut Instant, turns: usize, gap: Duration) -> usize {
        (0..turns)
            .filter(|_| {
                *now += gap;
                moderation.count();
                moderation.rest_after(*now).is_some()
            })
            .count()
    }

    #[test]
    fn rests_come_with_a_dense_stream_and_go_with_it() {
        let mut now = Instant::now();
        let mut moderation = Moderation::new(now);
        assert_eq!(rests(&mut moderation, &mut now, 1000, Duration::from_micros(100)), 0, "questions and answers");
        let rested = rests(&mut moderation, &mut now, 1000, Duration::from_micros(10));
        assert!(rested > 800, "a stream: {rested}");
        assert!(rests(&mut moderation, &mut now, 1000, Duration::from_micros(100)) < 15, "it is over");
        // A burst, a silence, and one packet that must not wait for others.
        rests(&mut moderation, &mut now, 90, Duration::from_micros(10));
        now += Duration::from_secs(5);
        assert_eq!(rests(&mut moderation, &mut now, 1, Duration::ZERO), 0);
    }

    #[test]
    fn a_turn_that_had_its_batch_needs_no_rest() {
        let mut now = Instant::now();
        let mut moderation = Moderation::new(now);
        for _ in 0..100 {
            now += Duration::from_micros(100);
            (0..BATCH).for_each(|_| moderation.count());
            assert_eq!(moderation.rest_after(now), None);
        }
        assert_eq!(rests(&mut moderation, &mut now, 1, Duration::ZERO), 1, "a small one does");
    }
}
