//! A token bucket in one number, which shards share without a lock: the generic cell rate algorithm (ITU-T I.371).

use std::sync::atomic::{AtomicU64, Ordering};

/// Seconds' worth of tokens that a bucket holds when it is full.
const BURST_SECONDS: u64 = 2;
const NANOSECONDS: u64 = 1_000_000_000;

/// A bucket.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When it is full again, in nanoseconds.
    full_at: AtomicU64,
}

impl Bucket {
    /// Takes a token of a bucket that gets `rate` of them a second (at least 1) and holds as many as come in
    /// [`BURST_SECONDS`]. `now` in nanoseconds. Returns whether there was one.
    pub(super) fn take(&self, now: u64, rate: usize) -> bool {
        let interval = (NANOSECONDS / (rate as u64).max(1)).max(1);
        let burst = BURST_SECONDS * NANOSECONDS;
        let after = |full_at: u64| {
            let after = full_at.max(now).saturating_add(interval);
            (after.saturating_sub(now) <= burst).then_some(after)
        };
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Bucket::default();
        let taken = |now: u64| (0..1_000).filter(|_| bucket.take(now, 100)).count();
        assert_eq!(taken(5 * NANOSECONDS), 200, "two seconds' worth");
        assert_eq!(taken(5 * NANOSECONDS), 0);
        assert_eq!(taken(5 * NANOSECONDS + NANOSECONDS / 100), 1, "one token later");
        assert_eq!(taken(6 * NANOSECONDS + NANOSECONDS / 100), 100);
        assert_eq!(taken(1_000 * NANOSECONDS), 200, "it never holds more");
    }

    #[test]
    fn a_clock_that_stands_still_gives_no_more_than_the_burst() {
        let bucket = Bucket::default();
        assert_eq!((0..100_000).filter(|_| bucket.take(0, 1)).count(), 2);
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_gets_more_than_its_share(
            rate in 1usize..5_000,
            steps in proptest::collection::vec(0u64..NANOSECONDS / 50, 1..2_000),
        ) {
            let bucket = Bucket::default();
            let (mut now, mut taken) = (0, Vec::new());
            for step in steps {
                now += step;
                if bucket.take(now, rate) {
                    taken.push(now);
                }
            }
            let interval = NANOSECONDS / rate as u64;
            for (count, at) in taken.iter().enumerate() {
                // Since the first: the burst and what came meanwhile.
                let most = (BURST_SECONDS * NANOSECONDS + (at - taken[0])) / interval + 1;
                prop_assert!(count as u64 <= most);
            }
        }
    }
}
