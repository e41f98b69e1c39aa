//! Posture facts that come over the control socket: in force at once, and written down so that they outlive the process.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;

use super::Rulesets;
use crate::directory::Directory;
use crate::posture::{ReportError, Reports, Statement};
use crate::state::ReportStore;

/// Why statements about devices are not taken. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The directory in force does not have it.
    #[error("there is no device `{}` in the directory", .0.escape_debug())]
    UnknownDevice(String),
    /// What is said cannot be a fact.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The task did not come to its end.
    #[error("the gateway could not finish this: {0}")]
    Unfinished(#[from] tokio::task::JoinError),
}

/// What became of statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether every live flow has been judged again.
    pub judged: bool,
    /// Whether the state database has them, so that they outlive the process.
    pub kept: bool,
}

impl Rulesets {
    /// Takes what is said of devices, all of it or nothing, and has live flows judged again. It goes on to its end when
    /// the future is dropped.
    ///
    /// # Errors
    ///
    /// A device is unknown, or a fact cannot be one.
    pub async fn report(self: &Arc<Self>, statements: BTreeMap<String, Statement>) -> Result<Taken, StatementError> {
        let this = Arc::clone(self);
        tokio::spawn(async move { this.take_reports(statements).await }).await?
    }

    async fn take_reports(&self, statements: BTreeMap<String, Statement>) -> Result<Taken, StatementError> {
        let _swap = self.loaded.lock().await;
        let before = self.current();
        let now = Timestamp::now();
        let mut reports = Reports::clone(&self.reports());
        for (name, statement) in &statements {
            let device = before.directory.device(name);
            let device = device.ok_or_else(|| StatementError::UnknownDevice(name.clone()))?;
            reports.take(device, statement, now)?;
        }
        let reports = Arc::new(reports);
        self.set_reports(Arc::clone(&reports));
        self.publish_directory(&before, Arc::new(before.directory.with_reports(&reports)));
        let judged = self.judge_again().await;
        // Afterwards: what takes access away does not wait for a disk.
        let kept = self.keep_reports(reports, statements.into_keys().collect()).await;
        Ok(Taken { judged, kept })
    }

    /// Everything that is reported.
    pub fn reports(&self) -> Arc<Reports> {
        Arc::clone(&self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_reports(&self, reports: Arc<Reports>) {
        *self.reports.lock().unwrap_or_else(PoisonError::into_inner) = reports;
    }

    /// Forgets what was reported of devices that are not in the directory any more. Call with the lock of swaps held.
    pub(super) async fn forget_strangers(&self, directory: &Directory) {
        let mut reports = Reports::clone(&self.reports());
        let strangers = reports.forget_strangers(directory);
        if !strangers.is_empty() {
            let reports = Arc::new(reports);
            self.set_reports(Arc::clone(&reports));
            self.keep_reports(reports, strangers.iter().map(ToString::to_string).collect()).await;
        }
    }

    async fn keep_reports(&self, reports: Arc<Reports>, devices: Vec<String>) -> bool {
        let Some(store) = self.report_store.clone() else { return false };
        let written = tokio::task::spawn_blocking(move || store.save(&reports, &devices)).await;
        match written.map_err(|error| error.to_string()).and_then(|saved| saved.map_err(|error| error.to_string())) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error, "posture facts count, but a restart forgets them");
                false
            }
        }
    }
}

/// Forgets what was reported of devices that left while no gateway ran.
pub(super) fn forget_at_start(reports: &mut Reports, directory: &Directory, store: Option<&ReportStore>) {
    let strangers = reports.forget_strangers(directory);
    if let Some(store) = store.filter(|_| !strangers.is_empty())
        && let Err(error) = store.save(reports, &strangers)
    {
        tracing::warn!(%error, "posture facts of devices that are gone stay in the state database");
    }
}

/// What was reported in earlier lives.
pub(super) fn remembered(store: Option<&ReportStore>) -> Reports {
    let Some(store) = store else { return Reports::default() };
    store.load().unwrap_or_else(|error| {
        tracing::warn!(%error, "posture facts reported earlier cannot be read: they are missing until they are reported again");
        Reports::default()
    })
}
