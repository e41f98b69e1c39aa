//! The greatest rate that passes, found in few trials.

/// The first rate that is tried.
const FIRST: f64 = 16_000.0;
/// The lowest.
const LOWEST: f64 = 500.0;
/// Known well enough when the lowest that failed is no more than this above the highest that passed.
const CLOSE_ENOUGH: f64 = 1.06;
/// Trials that may be made.
const TRIALS: usize = 13;

/// A search: doubles until a rate fails, and halves the ratio from there. A rate that fails where the one before
/// passed is tried once more, since one hiccup of the machine would halve the result.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    passed: Option<f64>,
    failed: Option<f64>,
    again: Option<f64>,
    retried: bool,
    limited: bool,
    trials: usize,
    over: bool,
}

/// How a rate did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It came through.
    Passed,
    /// It came through, and the sender could not send as fast as asked: twice in a row, faster is not to be had.
    Limited,
    /// Too much was lost.
    Failed,
}

impl Search {
    /// A search that knows nothing.
    pub(crate) fn new() -> Self {
        Self { passed: None, failed: None, again: None, retried: false, limited: false, trials: TRIALS, over: false }
    }

    /// The rate to try; `None` when there is no more to learn.
    pub(crate) fn next(&self) -> Option<f64> {
        if self.over || self.trials == 0 {
            return None;
        }
        match (self.again, self.passed, self.failed) {
            (Some(rate), ..) => Some(rate),
            (None, None, None) => Some(FIRST),
            (None, Some(passed), None) => Some(passed * 2.0),
            (None, None, Some(failed)) => (failed > LOWEST).then(|| (failed / 2.0).max(LOWEST)),
            (None, Some(passed), Some(failed)) => (failed > passed * CLOSE_ENOUGH).then(|| (passed * failed).sqrt()),
        }
    }

    /// Takes what came of a rate.
    pub(crate) fn judge(&mut self, rate: f64, verdict: Verdict) {
        self.trials = self.trials.saturating_sub(1);
        let limited_before = std::mem::replace(&mut self.limited, verdict == Verdict::Limited);
        match verdict {
            Verdict::Passed => {
                self.passed = Some(rate);
                self.again = None;
            }
            Verdict::Limited => {
                self.passed = Some(rate);
                self.again = None;
                self.over = limited_before;
            }
            Verdict::Failed if self.failed.is_none() && !self.retried => {
                self.retried = true;
                self.again = Some(rate);
            }
            Verdict::Failed => {
                self.failed = Some(rate);
                self.again = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found when `capacity` a second come through, and in how many trials.
    fn search(mut verdict: impl FnMut(usize, f64) -> Verdict) -> (Option<f64>, usize) {
        let mut search = Search::new();
        let mut trials = 0;
        while let Some(rate) = search.next() {
            search.judge(rate, verdict(trials, rate));
            trials += 1;
        }
        (search.passed, trials)
    }

    fn passes(yes: bool) -> Verdict {
        if yes { Verdict::Passed } else { Verdict::Failed }
    }

    #[test]
    fn ends_close_below_the_capacity() {
        for capacity in [501.0, 3_000.0, 15_999.0, 16_000.0, 16_001.0, 100_000.0, 700_000.0] {
            let (found, trials) = search(|_, rate| passes(rate <= capacity));
            let found = found.unwrap();
            assert!(found <= capacity && found * CLOSE_ENOUGH * 1.05 >= capacity, "{capacity}: {found}");
            assert!(trials <= TRIALS, "{trials}");
        }
    }

    #[test]
    fn one_hiccup_changes_nothing() {
        let (smooth, _) = search(|_, rate| passes(rate <= 300_000.0));
        let (hiccup, _) = search(|trial, rate| passes(rate <= 300_000.0 && trial != 2));
        assert!(hiccup.unwrap() * 1.1 >= smooth.unwrap(), "{hiccup:?} {smooth:?}");
    }

    #[test]
    fn nothing_comes_through() {
        let (found, trials) = search(|_, _| Verdict::Failed);
        assert_eq!(found, None);
        assert!(trials <= TRIALS);
    }

    #[test]
    fn a_sender_at_its_limit_ends_it() {
        let (found, trials) = search(|_, rate| if rate > 100_000.0 { Verdict::Limited } else { Verdict::Passed });
        assert_eq!((found, trials), (Some(256_000.0), 5));
    }
}
