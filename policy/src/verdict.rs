//! What is answered.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::rewrite::Rewrite;

/// Number of a loaded policy and directory, counted up with each swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The answer to a [`Request`](crate::Request).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow(Permit),
    /// It may not.
    Deny(Denial),
}

impl Verdict {
    /// Whether it may pass.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// Id of the deciding rule; `None` when no rule matched.
    pub fn rule(&self) -> Option<&Arc<str>> {
        match self {
            Self::Allow(permit) => Some(&permit.rule),
            Self::Deny(denial) => denial.rule.as_ref(),
        }
    }

    /// Revision of the ruleset that decided.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Allow(permit) => permit.revision,
            Self::Deny(denial) => denial.revision,
        }
    }

    /// The instant from which the answer may be another; `None` when time does not matter.
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Allow(permit) => permit.until,
            Self::Deny(denial) => denial.until,
        }
    }

    /// Ids of the rules in audit mode that matched before the deciding one.
    pub fn audited(&self) -> &[Arc<str>] {
        match self {
            Self::Allow(permit) => &permit.audited,
            Self::Deny(denial) => &denial.audited,
        }
    }
}

/// Permission to reach one destination. Only [`Ruleset::evaluate`](crate::Ruleset::evaluate) can make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    pub(crate) rule: Arc<str>,
    pub(crate) revision: Revision,
    pub(crate) until: Option<Timestamp>,
    pub(crate) offramp: Option<Arc<str>>,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) audited: Vec<Arc<str>>,
}

impl Permit {
    /// Id of the rule that allowed.
    pub fn rule(&self) -> &Arc<str> {
        &self.rule
    }

    /// Revision of the ruleset that decided.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The instant from which the answer may be another; `None` when time does not matter.
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }

    /// The off-ramp the rule names, which overrides routes.
    pub fn offramp(&self) -> Option<&Arc<str>> {
        self.offramp.as_ref()
    }

    /// Where a flow to `destination` is to go: there, or where the rule sends it instead.
    pub fn target(&self, destination: SocketAddr) -> SocketAddr {
        self.rewrite.map_or(destination, |rewrite| rewrite.of(destination))
    }

    /// Ids of the rules in audit mode that matched before the deciding one.
    pub fn audited(&self) -> &[Arc<str>] {
        &self.audited
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub(crate) rule: Option<Arc<str>>,
    pub(crate) revision: Revision,
    pub(crate) silent: bool,
    pub(crate) until: Option<Timestamp>,
    pub(crate) audited: Vec<Arc<str>>,
}

impl Denial {
    /// Id of the rule that denied; `None` when no rule matched.
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }

    /// Revision of the ruleset that decided.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether the client gets no answer at all.
    pub fn silent(&self) -> bool {
        self.silent
    }

    /// The instant from which the answer may be another; `None` when time does not matter.
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }

    /// Ids of the rules in audit mode that matched before the deciding one.
    pub fn audited(&self) -> &[Arc<str>] {
        &self.audited
    }
}
