//! What flows tell of a proxy that nobody probes: whether it is the trouble, and not their targets.
//!
//! A dial that fails because of the way goes on over the next off-ramp, at once where it has no socket; one that waits for
//! a silent proxy has lost half of its time by then. So after some in a row new flows go over the next at once, and one in
//! a while tries the first again.
//!
//! What a proxy says once it knows the target may be about that one only, and so what its client wanted: it is reported,
//! and moves nobody.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::health::{Report, State};
use super::{DialError, ProxyError};

/// So many dials in a row that the way is to blame for mean down.
const DOWN_AFTER: u32 = 3;
/// How often a flow tries one that is down.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What is known of one proxy by the dials through it.
#[derive(Debug)]
pub(super) struct Trouble {
    /// The off-ramp.
    name: Arc<str>,
    /// Dials in a row that failed because of the way.
    failures: AtomicU32,
    /// Whether there ever was something to report.
    known: AtomicBool,
    /// The last dial failed in a way that may be the target's.
    doubted: AtomicBool,
    state: State,
    /// When a flow may try it again.
    again: Mutex<Option<Instant>>,
}

impl Trouble {
    /// Nothing is known yet of the off-ramp `name`.
    pub(super) fn new(name: &Arc<str>) -> Self {
        Self {
            name: Arc::clone(name),
            failures: AtomicU32::default(),
            known: AtomicBool::default(),
            doubted: AtomicBool::default(),
            state: State::default(),
            again: Mutex::default(),
        }
    }

    /// Whether new flows may go that way.
    pub(super) fn is_up(&self) -> bool {
        self.state.is_up()
    }

    /// Whether it is time for a flow to try again what is down.
    pub(super) fn is_due(&self) -> bool {
        let again = *self.again.lock().unwrap_or_else(PoisonError::into_inner);
        again.is_none_or(|again| again <= Instant::now())
    }

    /// What is known, for people; `None` as long as there was no trouble.
    pub(super) fn report(&self) -> Option<Report> {
        self.known.load(Ordering::Relaxed).then(|| self.state.report())
    }

    /// A dial begins: where it is down, no other is due for a while.
    pub(super) fn begin(self: &Arc<Self>) -> Attempt {
        if !self.is_up() {
            self.try_again_at(Some(Instant::now() + TRY_AGAIN));
        }
        Attempt { trouble: Arc::clone(self), heard: false }
    }

    /// It is there, whatever becomes of the target.
    fn works(&self) {
        // The state is asked, too: another shard may have said down after its failures were forgotten.
        if self.failures.swap(0, Ordering::Relaxed) != 0 || !self.is_up() {
            self.state.set(true, None);
            tracing::info!(offramp = &*self.name, "an off-ramp works again");
        }
    }

    fn fails(&self, why: String) {
        let before = self.failures.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            tracing::warn!(offramp = &*self.name, why, "an off-ramp fails");
        }
        if before + 1 >= DOWN_AFTER {
            self.known.store(true, Ordering::Relaxed);
            self.try_again_at(Some(Instant::now() + TRY_AGAIN));
            self.state.set(false, Some(why));
        }
    }

    fn doubt(&self, why: String) {
        if !self.doubted.swap(true, Ordering::Relaxed) {
            tracing::warn!(offramp = &*self.name, why, "an off-ramp fails, maybe for one target only");
        }
        self.known.store(true, Ordering::Relaxed);
        self.state.set(true, Some(why));
    }

    fn trust(&self) {
        if self.doubted.swap(false, Ordering::Relaxed) {
            self.state.set(true, None);
            tracing::info!(offramp = &*self.name, "an off-ramp works for a target again");
        }
    }

    fn try_again_at(&self, at: Option<Instant>) {
        *self.again.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

/// A dial through the proxy. Dropped before it heard of the proxy, it leaves the next try to another.
pub(super) struct Attempt {
    trouble: Arc<Trouble>,
    heard: bool,
}

impl Attempt {
    /// Whether the proxy came to where it can be asked for a target.
    pub(super) fn met<T>(&mut self, result: Result<T, DialError>) -> Result<T, DialError> {
        match &result {
            Ok(_) => {
                self.heard = true;
                self.trouble.works();
            }
            Err(error @ DialError::Proxy { .. }) => {
                self.heard = true;
                self.trouble.fails(error.to_string());
            }
            // Of our own want of something it says nothing.
            Err(_) => {}
        }
        result
    }

    /// What became of the target it was asked for.
    pub(super) fn asked<T>(self, result: Result<T, DialError>) -> Result<T, DialError> {
        match &result {
            Ok(_) | Err(DialError::Refused | DialError::Timeout | DialError::Unreachable(_)) => self.trouble.trust(),
            Err(DialError::Proxy { why: ProxyError::CannotCarry(_), .. }) => {}
            Err(error @ DialError::Proxy { .. }) => self.trouble.doubt(error.to_string()),
            // Of our own want of something it says nothing.
            Err(_) => {}
        }
        result
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.heard && !self.trouble.is_up() {
            self.trouble.try_again_at(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble() -> Arc<Trouble> {
        Arc::new(Trouble::new(&"one".into()))
    }

    fn failure() -> DialError {
        DialError::Proxy { proxy: "192.0.2.1:1080".parse().unwrap(), why: ProxyError::Silent }
    }

    /// A dial that does not get as far as asking.
    fn fails(trouble: &Arc<Trouble>, why: DialError) {
        trouble.begin().met::<()>(Err(why)).unwrap_err();
    }

    /// A dial that asks.
    fn asks(trouble: &Arc<Trouble>, answer: Result<(), DialError>) -> Result<(), DialError> {
        let mut attempt = trouble.begin();
        attempt.met(Ok(())).unwrap();
        attempt.asked(answer)
    }

    #[tokio::test(start_paused = true)]
    async fn some_in_a_row_mean_down_and_one_in_a_while_tries_again() {
        let trouble = trouble();
        fails(&trouble, failure());
        fails(&trouble, failure());
        assert!(asks(&trouble, Err(DialError::Refused)).is_err());
        for why in [failure(), DialError::Descriptors, failure()] {
            fails(&trouble, why);
            assert!(trouble.is_up() && trouble.report().is_none());
        }
        fails(&trouble, failure());
        let report = trouble.report().unwrap();
        assert!(!report.up && report.error.unwrap().contains("does not answer"));
        for _ in 0..2 {
            assert!(!trouble.is_up() && !trouble.is_due());
            tokio::time::advance(TRY_AGAIN).await;
            assert!(trouble.is_due());
            let mut attempt = trouble.begin();
            assert!(!trouble.is_due(), "one is enough");
            attempt.met::<()>(Err(failure())).unwrap_err();
        }
        asks(&trouble, Ok(())).unwrap();
        let report = trouble.report().unwrap();
        assert!(trouble.is_up() && report.up && report.error.is_none());
        fails(&trouble, failure());
        assert!(trouble.is_up(), "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_up_when_it_takes_a_request_and_a_try_nobody_made_is_left_to_another() {
        let trouble = trouble();
        for _ in 0..DOWN_AFTER {
            fails(&trouble, failure());
        }
        tokio::time::advance(TRY_AGAIN).await;
        let given_up = trouble.begin();
        assert!(!trouble.is_due());
        drop(given_up);
        assert!(trouble.is_due());
        let mut without_room = trouble.begin();
        without_room.met::<()>(Err(DialError::Descriptors)).unwrap_err();
        drop(without_room);
        assert!(trouble.is_due());
        // A target that never answers.
        let mut waits = trouble.begin();
        waits.met(Ok(())).unwrap();
        assert!(trouble.is_up());
        drop(waits);
        assert!(trouble.is_up());
    }

    #[test]
    fn what_may_be_about_one_target_is_said_and_moves_nobody() {
        let trouble = trouble();
        for _ in 0..9 {
            let error = asks(&trouble, Err(failure())).unwrap_err();
            assert!(matches!(error, DialError::Proxy { .. }));
        }
        let report = trouble.report().unwrap();
        assert!(trouble.is_up() && report.up && report.error.is_some());
        asks(&trouble, Ok(())).unwrap();
        assert_eq!(trouble.report().unwrap().error, None);
        // It took a request, so it is there, and what came before is forgotten.
        for _ in 0..DOWN_AFTER {
            fails(&trouble, failure());
        }
        assert!(!trouble.is_up());
        asks(&trouble, Err(failure())).unwrap_err();
        assert!(trouble.is_up());
        fails(&trouble, failure());
        assert!(trouble.is_up(), "the first of a row");
    }
}
