//! The JSON of policies that are applied, and of their history.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::api::{Change, ReloadReport};
use crate::state::revisions::{Entry, Pending};

/// `POST /v1/apply`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// What to call the file in problems.
    pub file: String,
    /// The text of the policy.
    pub policy: String,
    /// What it is for.
    #[serde(default)]
    pub message: Option<String>,
    /// Seconds after which it goes back unless it is confirmed.
    #[serde(default)]
    pub confirm_within_s: Option<u64>,
}

/// `POST /v1/rollback`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The revision whose policy is to be in force again.
    pub revision: u64,
    /// Why.
    pub reason: String,
}

/// Answer to `POST /v1/apply` and `POST /v1/rollback`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApplyReport {
    /// As after a reload.
    #[serde(flatten)]
    pub report: ReloadReport,
    /// Until when it is to be confirmed.
    pub confirm_until: Option<Timestamp>,
}

/// Answer to `POST /v1/confirm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmReport {
    /// The revision that stays.
    pub revision: u64,
}

/// `GET /v1/history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The revision in force.
    pub in_force: u64,
    /// What is to be confirmed.
    pub pending: Option<Pending>,
    /// Every revision that is kept, newest first.
    pub revisions: Vec<Entry>,
}

/// `GET /v1/revisions/{revision}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionText {
    /// What is known of it.
    #[serde(flatten)]
    pub entry: Entry,
    /// Its policy, byte for byte.
    pub policy: String,
}

/// Query of `GET /v1/diff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffQuery {
    /// The older revision, as a rule.
    pub from: u64,
    /// The newer one.
    pub to: u64,
}

/// Answer to `GET /v1/diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// What is different, by name.
    pub changes: Vec<Change>,
    /// What is different, line by line: a unified diff.
    pub unified: String,
}
