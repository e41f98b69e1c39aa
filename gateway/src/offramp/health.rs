//! Whether the far side of an off-ramp is there: probed over the off-ramp itself, or not known.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::{DialError, Offramp, Offramps};
use crate::control::shards::Shards;

/// How an off-ramp is probed; `health` of an `[[offramp]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// A TCP connection to this address shows that the far side is there.
    pub tcp: SocketAddr,
    /// How often; also how long one probe may take, up to [`LONGEST_PROBE`].
    pub every: Duration,
    /// So many probes in a row that fail mean down.
    pub down_after: u32,
    /// So many in a row that succeed mean up again.
    pub up_after: u32,
}

/// How long a probe may take at most.
pub const LONGEST_PROBE: Duration = Duration::from_secs(5);

/// What is known of one off-ramp, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether new flows may go that way.
    pub up: bool,
    /// Since when.
    pub since: Timestamp,
    /// Why the last probe failed; `None` when it did not.
    pub error: Option<String>,
}

/// Whether the far side of one off-ramp is held to be there. Shards read it; who probes it, or
/// who dials where nobody does, writes it.
#[derive(Debug)]
pub struct State {
    up: AtomicBool,
    report: watch::Sender<Report>,
}

impl Default for State {
    /// Up, until something says otherwise: a gateway that starts must not begin with refusals.
    fn default() -> Self {
        let report = Report { up: true, since: Timestamp::now(), error: None };
        Self { up: AtomicBool::new(true), report: watch::Sender::new(report) }
    }
}

impl State {
    /// Whether new flows may go that way.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// What is known, for people.
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// Takes in what is true now, and what is wrong. Returns whether it was not true before.
    pub fn set(&self, up: bool, error: Option<String>) -> bool {
        let changed = self.up.swap(up, Ordering::Relaxed) != up;
        self.report.send_modify(|report| {
            report.error = error;
            if changed {
                report.up = up;
                report.since = Timestamp::now();
            }
        });
        changed
    }
}

/// The health of one off-ramp that is probed.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) config: HealthConfig,
    pub(super) state: State,
}

impl Health {
    pub(super) fn new(config: HealthConfig) -> Self {
        Self { config, state: State::default() }
    }

    /// Takes in the outcome of a probe. Returns whether it changed what is said of the off-ramp.
    fn note(&self, streak: &mut Streak, outcome: Result<(), String>) -> bool {
        let up = streak.is_up_after(self.state.is_up(), outcome.is_ok(), &self.config);
        self.state.set(up, outcome.err())
    }
}

/// Probes in a row that say the opposite of what is held to be true.
#[derive(Debug, Default)]
struct Streak(u32);

impl Streak {
    fn is_up_after(&mut self, was_up: bool, succeeded: bool, config: &HealthConfig) -> bool {
        if succeeded == was_up {
            self.0 = 0;
            return was_up;
        }
        self.0 += 1;
        let needed = if was_up { config.down_after } else { config.up_after };
        if self.0 < needed {
            return was_up;
        }
        self.0 = 0;
        succeeded
    }
}

/// Probes each off-ramp that has a `health`, for as long as the runtime lives. When one goes down, the flows over it that
/// have another way end, so that they come again over that. Call on a tokio runtime.
pub fn watch_all(offramps: &Arc<Offramps>, shards: &Shards) {
    for offramp in offramps.all() {
        let Some(config) = offramp.health.as_ref().map(|health| health.config.clone()) else { continue };
        let (offramp, shards) = (Arc::clone(offramp), shards.clone());
        tokio::spawn(async move {
            let mut every = tokio::time::interval(config.every);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut streak = Streak::default();
            loop {
                every.tick().await;
                let Some(health) = &offramp.health else { return };
                let patience = config.every.min(LONGEST_PROBE);
                let outcome = match tokio::time::timeout(patience, probe(&offramp, config.tcp, &shards)).await {
                    Ok(Ok(())) => Ok(()),
                    // What we have no room for says nothing of the far side.
                    Ok(Err(error)) if error.limit().is_some() => continue,
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_elapsed) => Err(format!("no answer within {patience:?}")),
                };
                let why = outcome.as_ref().err().cloned().unwrap_or_default();
                if !health.note(&mut streak, outcome) {
                    continue;
                }
                let name = offramp.name();
                if health.state.is_up() {
                    tracing::info!(offramp = %name, "off-ramp is up again");
                    continue;
                }
                tracing::warn!(offramp = %name, target = %config.tcp, why, "off-ramp is down");
                leave(name, &shards).await;
            }
        });
    }
}

/// Connects to `to` the way flows go.
async fn probe(offramp: &Offramp, to: SocketAddr, shards: &Shards) -> Result<(), DialError> {
    match offramp.site() {
        Some(site) => shards.probe(site, to).await,
        None => offramp.connect_tcp(to, None).await.map(drop),
    }
}

/// Ends the flows over an off-ramp that is down, where they have another way.
pub async fn leave(offramp: &Arc<str>, shards: &Shards) {
    match shards.leave(offramp).await {
        Ok(left) => tracing::info!(%offramp, flows = left, "flows ended that have another way"),
        Err(error) => tracing::error!(%error, "flows may still go over the off-ramp that is down"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_row_of_probes_changes_what_is_held_true() {
        let config = HealthConfig {
            tcp: "192.0.2.1:443".parse().unwrap(),
            every: Duration::from_secs(5),
            down_after: 3,
            up_after: 2,
        };
        let health = Health::new(config);
        let mut streak = Streak::default();
        let mut said = |succeeded: bool| {
            let outcome = if succeeded { Ok(()) } else { Err("no".to_owned()) };
            let changed = health.note(&mut streak, outcome);
            let report = health.state.report();
            assert_eq!((report.up, report.error.is_none()), (health.state.is_up(), succeeded));
            (health.state.is_up(), changed)
        };
        for (succeeded, up, changed) in [
            (false, true, false),
            (false, true, false),
            (true, true, false),
            (false, true, false),
            (false, true, false),
            (false, false, true),
            (false, false, false),
            (true, false, false),
            (false, false, false),
            (true, false, false),
            (true, true, true),
            (true, true, false),
        ] {
            assert_eq!(said(succeeded), (up, changed));
        }
    }
}
