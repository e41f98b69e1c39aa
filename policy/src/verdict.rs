//! What is answered.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

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

/// Permission to reach one destination. Only [`Ruleset::evaluate`](crate::Ruleset::evaluate) can make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    pub(crate) rule: Arc<str>,
    pub(crate) revision: Revision,
    pub(crate) until: Option<Timestamp>,
    pub(crate) offramp: Option<Arc<str>>,
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
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub(crate) rule: Option<Arc<str>>,
    pub(crate) revision: Revision,
    pub(crate) silent: bool,
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
}
