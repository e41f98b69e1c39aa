//! How long things took.

use std::time::Duration;

/// Most durations that are kept: later ones are not looked at.
const MAX_SAMPLES: usize = 4 << 20;

/// Durations, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<u64>);

/// Durations in order.
#[derive(Debug)]
pub(crate) struct Sorted(Vec<u64>);

impl Samples {
    /// Adds one.
    pub(crate) fn add(&mut self, duration: Duration) {
        if self.0.len() < MAX_SAMPLES {
            self.0.push(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// Puts them in order.
    pub(crate) fn sort(mut self) -> Sorted {
        self.0.sort_unstable();
        Sorted(self.0)
    }
}

impl Sorted {
    /// The least duration that `percent` % of all do not exceed, in microseconds to a tenth. 0 when there are none.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        let nanoseconds = self.0.get(rank - 1).copied().unwrap_or(0);
        Duration::from_nanos(nanoseconds / 100).as_nanos() as f64 / 10.0
    }
}

/// How many a second, as a whole number.
pub(crate) fn per_second(count: u64, elapsed: Duration) -> f64 {
    (count as f64 / elapsed.as_secs_f64().max(1e-9)).round()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(microseconds: impl IntoIterator<Item = u64>) -> Sorted {
        let mut samples = Samples::default();
        for each in microseconds {
            samples.add(Duration::from_micros(each));
        }
        samples.sort()
    }

    #[test]
    fn a_percentile_is_a_sample() {
        let samples = sorted((1..=200).rev());
        assert_eq!(samples.percentile(50), 100.0);
        assert_eq!(samples.percentile(99), 198.0);
        assert_eq!(samples.percentile(100), 200.0);
        assert_eq!(sorted([7]).percentile(50), 7.0);
        assert_eq!(sorted([7, 9]).percentile(99), 9.0);
        assert_eq!(sorted([]).percentile(99), 0.0);
    }

    #[test]
    fn tenths_of_a_microsecond_are_kept() {
        let mut samples = Samples::default();
        samples.add(Duration::from_nanos(1_678));
        assert_eq!(samples.sort().percentile(50), 1.6);
    }

    #[test]
    fn rates_are_whole() {
        assert_eq!(per_second(10, Duration::from_millis(3_000)), 3.0);
    }
}
