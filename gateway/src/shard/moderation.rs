//! Rests between turns while packets come densely, as a network card holds back its interrupts.
//!
//! A shard that is faster than what feeds it wakes up for every packet or two, and each time pays for a system call to
//! read it, one to send it on, one to acknowledge it, and the wake-up of both ends. A rest of some microseconds lets a
//! batch gather. It comes only under a dense stream: the exchange of questions and answers is never dense.

use std::time::{Duration, Instant};

/// How long a rest is. The kernel adds its timer slack, so that is lowered.
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

    /// Rests after a turn, when that gathers a batch for the next one.
    pub(super) fn rest(&mut self, now: Instant) {
        let turn = std::mem::take(&mut self.turn);
        self.packets += turn;
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.dense = self.packets >= DENSE;
            self.since = now;
            self.packets = 0;
        }
        if self.dense && (1..BATCH).contains(&turn) {
            std::thread::sleep(REST);
        }
    }
}
