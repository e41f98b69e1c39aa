//! What flows tell of a proxy that nobody probes: whether it is the trouble, and not their targets.
//!
//! A dial that fails because of the way goes on over the next off-ramp, at once where it has no socket; one that waits for a
//! silent proxy has lost half of its time by then. So after some in a row new flows go over the next at once, and one in a while tries the first again.
//!
//! What a proxy says once it knows the target may be about that one only, and so what its client wanted: it is reported, and
//! moves nobody.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::health::{Report, State};
use super::{DialError, ProxyError};

/// So many dials in a row that the way is to blame for mean down.
const DOWN_AFTER: u32 = 3;
/// How often a flow tries one that is down.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What is known of one off-ramp by its dials.
#[derive(Debug, Default)]
pub(super) struct Trouble {
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
    pub(super) fn begin(&self) {
        if !self.is_up() {
            self.wait();
        }
    }

    /// How a dial of the off-ramp `name` ended.
    pub(super) fn note<T>(&self, name: &str, result: &Result<T, DialError>) {
        match blame(result) {
            Blame::Way(why) => {
                let before = self.failures.fetch_add(1, Ordering::Relaxed);
                if before == 0 {
                    tracing::warn!(offramp = name, why, "an off-ramp fails");
                }
                if before + 1 >= DOWN_AFTER {
                    self.known.store(true, Ordering::Relaxed);
                    self.wait();
                    self.state.set(false, Some(why));
                }
            }
            Blame::Doubted(why) => {
                if !self.doubted.swap(true, Ordering::Relaxed) {
                    tracing::warn!(offramp = name, why, "an off-ramp fails, maybe for one target only");
                }
                self.known.store(true, Ordering::Relaxed);
                // It took the request, so it is there.
                self.failures.store(0, Ordering::Relaxed);
                self.state.set(true, Some(why));
            }
            Blame::Nothing => {
                // The state is asked, too: another shard may have said down after its failures were forgotten.
                let failed = self.failures.load(Ordering::Relaxed) != 0;
                if failed || self.doubted.load(Ordering::Relaxed) || !self.is_up() {
                    self.failures.store(0, Ordering::Relaxed);
                    self.doubted.store(false, Ordering::Relaxed);
                    self.state.set(true, None);
                    tracing::info!(offramp = name, "an off-ramp works again");
                }
            }
            Blame::Unknown => {}
        }
    }

    fn wait(&self) {
        *self.again.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + TRY_AGAIN);
    }
}

/// What a dial says of the way.
enum Blame {
    /// It fails, whatever the target.
    Way(String),
    /// It fails, maybe because of the target.
    Doubted(String),
    /// It leads to the target, or to whatever speaks for it.
    Nothing,
    /// Nothing at all.
    Unknown,
}

fn blame<T>(result: &Result<T, DialError>) -> Blame {
    match result {
        Ok(_) | Err(DialError::Refused | DialError::Timeout | DialError::Unreachable(_)) => Blame::Nothing,
        Err(DialError::Proxy { why: ProxyError::CannotCarry(_), .. }) => Blame::Unknown,
        Err(error @ DialError::Proxy { asked: true, .. }) => Blame::Doubted(error.to_string()),
        Err(error @ DialError::Proxy { asked: false, .. }) => Blame::Way(error.to_string()),
        Err(
            DialError::PortsExhausted
            | DialError::Descriptors
            | DialError::SourceUnavailable(_)
            | DialError::InterfaceUnavailable(_)
            | DialError::PingNotPermitted
            | DialError::OtherFamily
            | DialError::CannotCarry(_)
            | DialError::NoTunnel
            | DialError::NoSiteAddress
            | DialError::Io(_),
        ) => Blame::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails() -> Result<(), DialError> {
        let proxy = "192.0.2.1:1080".parse().unwrap();
        Err(DialError::Proxy { proxy, why: ProxyError::Silent, asked: false })
    }

    #[tokio::test(start_paused = true)]
    async fn some_in_a_row_mean_down_and_one_in_a_while_tries_again() {
        let trouble = Trouble::default();
        for result in [fails(), fails(), Err(DialError::Refused), fails(), Err(DialError::Descriptors), fails()] {
            trouble.note("one", &result);
            assert!(trouble.is_up() && trouble.report().is_none(), "{result:?}");
        }
        trouble.note("one", &fails());
        let report = trouble.report().unwrap();
        assert!(!report.up && report.error.unwrap().contains("does not answer"));
        for _ in 0..2 {
            assert!(!trouble.is_up() && !trouble.is_due());
            tokio::time::advance(TRY_AGAIN).await;
            assert!(trouble.is_due());
            trouble.begin();
            assert!(!trouble.is_due(), "one is enough");
            trouble.note("one", &fails());
        }
        trouble.note("one", &Ok(()));
        let report = trouble.report().unwrap();
        assert!(trouble.is_up() && report.up && report.error.is_none());
        trouble.note("one", &fails());
        assert!(trouble.is_up(), "it begins anew");
    }

    #[test]
    fn what_may_be_about_one_target_is_said_and_moves_nobody() {
        let trouble = Trouble::default();
        for _ in 0..9 {
            trouble.note("one", &fails().map_err(DialError::once_asked));
        }
        let report = trouble.report().unwrap();
        assert!(trouble.is_up() && report.up && report.error.is_some());
        trouble.note("one", &Ok(()));
        assert_eq!(trouble.report().unwrap().error, None);
        // It took a request, so it is there, and what came before is forgotten.
        for _ in 0..DOWN_AFTER {
            trouble.note("one", &fails());
        }
        assert!(!trouble.is_up());
        trouble.note("one", &fails().map_err(DialError::once_asked));
        assert!(trouble.is_up());
        trouble.note("one", &fails());
        assert!(trouble.is_up(), "the first of a row");
    }
}
