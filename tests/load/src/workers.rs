//! Workers that do the same thing over and over, side by side, for a time.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::error::LoadError;
use crate::samples::{Samples, per_second};

/// Longest time one attempt may take, and all of them may take to complete one.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often progress is looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Pause of a worker after a failure: what refuses at once must not be asked as fast as it can answer.
const AFTER_FAILURE: Duration = Duration::from_millis(5);

/// What the workers have done together.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: Cell<u64>,
    failed: Cell<u64>,
    samples: RefCell<Samples>,
    last: RefCell<Option<io::Error>>,
}

impl Tally {
    /// Makes one attempt, and counts it. `false`: it failed.
    pub(crate) async fn attempt(&self, what: impl Future<Output = io::Result<()>>) -> bool {
        let started = Instant::now();
        let result = timeout(PATIENCE, what).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match result {
            Ok(()) => {
                self.samples.borrow_mut().add(started.elapsed());
                self.done.set(self.done.get() + 1);
                true
            }
            Err(error) => {
                self.failed.set(self.failed.get() + 1);
                self.last.replace(Some(error));
                sleep(AFTER_FAILURE).await;
                false
            }
        }
    }

    fn last(&self) -> String {
        self.last.borrow().as_ref().map_or_else(|| "no answer".to_owned(), ToString::to_string)
    }

    /// Refuses a result of which more than 1 % failed.
    fn result(&self, elapsed: Duration) -> Result<Value, LoadError> {
        let (done, failed) = (self.done.get(), self.failed.get());
        if done == 0 || failed * 100 > done + failed {
            return Err(LoadError::Failures { done, failed, last: self.last() });
        }
        let samples = self.samples.take().sort();
        Ok(json!({
            "per_second": per_second(done, elapsed),
            "p50_us": samples.percentile(50),
            "p99_us": samples.percentile(99),
            "failed": failed,
        }))
    }
}

/// Lets `concurrency` workers work for a time. Must be called in a `LocalSet`.
pub(crate) async fn run<W>(
    length: Duration,
    concurrency: usize,
    worker: impl Fn(Rc<Tally>) -> W,
) -> Result<Value, LoadError>
where
    W: Future<Output = ()> + 'static,
{
    let tally = Rc::new(Tally::default());
    let mut workers = JoinSet::new();
    let began = Instant::now();
    for _ in 0..concurrency {
        workers.spawn_local(worker(Rc::clone(&tally)));
    }
    let (mut done, mut moved) = (0, began);
    while let Some(left) = length.checked_sub(began.elapsed()) {
        sleep(left.min(LOOK)).await;
        let now = Instant::now();
        if tally.done.get() != done {
            (done, moved) = (tally.done.get(), now);
        } else if now - moved >= PATIENCE {
            return Err(LoadError::Stalled {
                seconds: PATIENCE.as_secs(),
                done,
                failed: tally.failed.get(),
                last: tally.last(),
            });
        }
    }
    let elapsed = began.elapsed();
    workers.shutdown().await;
    tally.result(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(done: u64, failed: u64) -> Tally {
        Tally { done: Cell::new(done), failed: Cell::new(failed), ..Tally::default() }
    }

    #[test]
    fn one_in_a_hundred_may_fail() {
        let second = Duration::from_secs(1);
        assert_eq!(tally(99, 1).result(second).unwrap()["per_second"], 99.0);
        assert!(matches!(tally(98, 2).result(second), Err(LoadError::Failures { done: 98, failed: 2, .. })));
        assert!(tally(0, 0).result(second).is_err(), "nothing done is no figure");
    }
}
