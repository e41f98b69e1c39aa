//! The JSON of `POST /v1/plan`.

use std::net::SocketAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `POST /v1/plan`: what a policy would change if it took the place of the one in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// What to call the file in problems.
    pub file: String,
    /// The text of the policy.
    pub policy: String,
    /// The moment to judge at; `None`: now.
    pub at: Option<Timestamp>,
}

/// What would change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// The revision compared with; `None` when it is the file on disk.
    pub revision: Option<u64>,
    /// The moment that was judged at.
    pub at: Timestamp,
    /// Live flows that would end, oldest first; `None` when no running gateway was asked.
    pub flows: Option<Vec<EndingFlow>>,
    /// Access that changes, each request in one entry.
    pub changes: Vec<AccessChange>,
    /// False when the comparison was too much work, so that more may change than is said.
    pub complete: bool,
}

impl PlanReport {
    /// Whether it is certain that nothing changes.
    pub fn is_nothing(&self) -> bool {
        self.complete && self.changes.is_empty() && self.flows.as_ref().is_none_or(Vec::is_empty)
    }
}

/// A live flow that would end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndingFlow {
    /// Its id.
    pub id: u64,
    /// Its user.
    pub user: String,
    /// Its device.
    pub device: String,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes; of a ping the port is 0.
    pub destination: SocketAddr,
    /// Such as `tcp/443`.
    pub service: String,
    /// The rule that allows it now.
    pub rule_now: Option<String>,
    /// The rule that would deny it; `None` when none would match.
    pub rule_then: Option<String>,
}

/// Access that changes: `who` × `destinations` × `services`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccessChange {
    /// `opens`, `closes`, `offramp` (stays allowed, goes another way), `rewrite` (stays allowed, to another
    /// target), `answer` (stays denied, answered differently) or
    /// `schedule` (changes with the clock).
    pub kind: String,
    /// The rule that decides now; `None` when none matches.
    pub rule_now: Option<String>,
    /// The rule that would decide; `None` when none would match.
    pub rule_then: Option<String>,
    /// Whose access it is.
    pub who: Vec<Who>,
    /// Prefixes of one family.
    pub destinations: Vec<IpNet>,
    /// Such as `tcp/8000-8100`.
    pub services: Vec<String>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Who {
    /// Its user.
    pub user: String,
    /// Its name.
    pub device: String,
    /// Which of its addresses.
    pub sources: Vec<IpNet>,
}
