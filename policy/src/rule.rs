//! One compiled rule.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::posture::Posture;
use crate::rewrite::Rewrite;
use crate::schedule::Times;
use crate::set::{Reach, ServiceSet, SourceSet, TargetSet};
use crate::{Denial, Permit, Request, Revision, Verdict};

/// What a rule does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It lets it pass.
    Allow,
    /// It does not.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// The parts of a rule that select, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// `from`
    From,
    /// `not_from`
    NotFrom,
    /// `to`
    To,
    /// `services`, of the rule or of its resource.
    Services,
    /// `not_to`
    NotTo,
    /// `when.posture`
    Posture,
    /// `when`: days, hours, `not_before`, `not_after`.
    Time,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::From => "from",
            Self::NotFrom => "not_from",
            Self::To => "to",
            Self::Services => "services",
            Self::NotTo => "not_to",
            Self::Posture => "posture",
            Self::Time => "time",
        })
    }
}

/// One rule, ready to be asked.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) id: Arc<str>,
    pub(crate) action: Action,
    pub(crate) audit: bool,
    pub(crate) silent: bool,
    pub(crate) offramp: Option<Arc<str>>,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) description: Option<Arc<str>>,
    pub(crate) from: SourceSet,
    pub(crate) not_from: SourceSet,
    pub(crate) to: TargetSet,
    pub(crate) not_to: TargetSet,
    /// `None`: every service, or the resource's own.
    pub(crate) services: Option<ServiceSet>,
    pub(crate) postures: Box<[Arc<Posture>]>,
    pub(crate) times: Times,
}

impl Rule {
    /// The first selector that does not match, leaving the clock on the wall aside; facts are those of `now`.
    pub(crate) fn mismatch(&self, request: &Request<'_>, now: Timestamp) -> Option<Selector> {
        let Request { identity, destination, service, .. } = *request;
        if !self.from.contains(request) {
            return Some(Selector::From);
        }
        if self.not_from.contains(request) {
            return Some(Selector::NotFrom);
        }
        match self.to.reach(destination, service) {
            Reach::Nowhere => return Some(Selector::To),
            Reach::Address => return Some(Selector::Services),
            Reach::Service => {}
        }
        if self.services.as_ref().is_some_and(|services| !services.contains(service)) {
            return Some(Selector::Services);
        }
        if self.not_to.reach(destination, service) == Reach::Service {
            return Some(Selector::NotTo);
        }
        let unmet = |posture: &Arc<Posture>| posture.unmet(&identity.posture, now).is_some();
        self.postures.iter().any(unmet).then_some(Selector::Posture)
    }

    /// The first instant after `now` at which a report about the device is over that this rule asks for.
    pub(crate) fn facts_change_at(&self, request: &Request<'_>, now: Timestamp) -> Option<Timestamp> {
        self.postures.iter().filter_map(|posture| posture.changes_at(&request.identity.posture, now)).min()
    }

    /// The verdict when this rule decides.
    pub(crate) fn verdict(&self, revision: Revision, until: Option<Timestamp>, audited: Vec<Arc<str>>) -> Verdict {
        let rule = Arc::clone(&self.id);
        match self.action {
            Action::Allow => {
                let (offramp, rewrite) = (self.offramp.clone(), self.rewrite);
                Verdict::Allow(Permit { rule, revision, until, offramp, rewrite, audited })
            }
            Action::Deny => Verdict::Deny(Denial { rule: Some(rule), revision, silent: self.silent, until, audited }),
        }
    }
}
