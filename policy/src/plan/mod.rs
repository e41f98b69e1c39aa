//! What a change of policy opens and closes, computed exactly on the compiled rules.
//!
//! Devices that the same rules of both policies select make one class. For a class the destinations are cut at every edge of
//! its rules' prefixes, and services at every edge of their ranges; within such a cell every rule gives one answer, so that one
//! question a cell is exact. Rules that both policies have, in the same order, cannot make a difference by themselves: only
//! cells that another rule reaches are looked at.

mod cells;
mod classes;
mod services;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

pub use services::ServiceRange;

use crate::rewrite::Rewrite;
use crate::rule::{Action, Rule};
use crate::{Identity, Ruleset};

/// Most questions to single rules that one plan asks; some seconds of work.
pub const MAX_QUESTIONS: u64 = 400_000_000;

/// A device, and where its packets may come from.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The device as the rules in force see it, with the groups that their policy adds.
    pub now: &'a Identity,
    /// The same device as the other rules would see it: another policy may add other groups.
    pub then: &'a Identity,
    /// Its own addresses, and the networks behind it.
    pub sources: &'a [IpNet],
}

/// What becomes of some access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is denied and would be allowed.
    Opens,
    /// It is allowed and would be denied.
    Closes,
    /// It stays allowed, over another off-ramp.
    Offramp,
    /// It stays allowed, and goes to another target than before.
    Rewrite,
    /// It stays denied, and the client would get an answer where it gets none, or none where it gets one.
    Answer,
    /// Nothing changes at once, but conditions on the time differ, and later the answers may.
    Schedule,
}

/// Some of a device's packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Who {
    /// Name of the user.
    pub user: Arc<str>,
    /// Name of the device.
    pub device: Arc<str>,
    /// Where they come from.
    pub sources: Vec<IpNet>,
}

/// Access that changes in one way: everything of `who` × `destinations` × `services`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// In which way.
    pub kind: Kind,
    /// The rule that decides now; `None` when none matches.
    pub rule_now: Option<Arc<str>>,
    /// The rule that would decide; `None` when none would match.
    pub rule_then: Option<Arc<str>>,
    /// Sorted by user and device.
    pub who: Vec<Who>,
    /// Sorted, of one family.
    pub destinations: Vec<IpNet>,
    /// Sorted.
    pub services: Vec<ServiceRange>,
}

/// Everything that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Each request whose answer changes is in exactly one.
    pub changes: Vec<Change>,
    /// False when [`MAX_QUESTIONS`] was reached, so that more may change than is said. What is said is true.
    pub complete: bool,
}

impl Difference {
    /// Whether it is certain that no answer changes, now or later.
    pub fn is_nothing(&self) -> bool {
        self.changes.is_empty() && self.complete
    }
}

/// What the answer to a request comes to, whichever rule gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Effect {
    Allow { offramp: Option<Arc<str>>, rewrite: Option<Rewrite> },
    Deny { silent: bool },
}

/// In which way a cell changes, and by which rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    kind: Kind,
    rule_now: Option<Arc<str>>,
    rule_then: Option<Arc<str>>,
}

impl Ruleset {
    /// What would change for `subjects`, judged at `at`, if `then` took the place of this ruleset.
    pub fn difference(&self, then: &Self, subjects: &[Subject<'_>], at: Timestamp) -> Difference {
        let (now, then) = (self.rule_list(), then.rule_list());
        let moved = classes::moved(now, then, &classes::regrouped(subjects));
        let mut questions = 0;
        let classes = classes::of(now, then, &moved, subjects, at, &mut questions);
        let mut complete = classes.is_some();
        let mut areas: BTreeMap<(Turn, Vec<ServiceRange>, Vec<IpNet>), Vec<Who>> = BTreeMap::new();
        for (class, who) in classes.unwrap_or_default() {
            let Some(found) = cells::compare(&class, &moved, at, &mut questions) else {
                complete = false;
                break;
            };
            for ((turn, services), destinations) in found {
                areas.entry((turn, services, destinations)).or_default().extend(who.iter().cloned());
            }
        }
        let changes = areas.into_iter().map(|((turn, services, destinations), who)| {
            let Turn { kind, rule_now, rule_then } = turn;
            Change { kind, rule_now, rule_then, who: classes::joined(who), destinations, services }
        });
        Difference { changes: changes.collect(), complete }
    }
}

fn effect(rule: Option<&Rule>) -> Effect {
    match rule {
        None => Effect::Deny { silent: false },
        Some(rule) => match rule.action {
            Action::Allow => Effect::Allow { offramp: rule.offramp.clone(), rewrite: rule.rewrite },
            Action::Deny => Effect::Deny { silent: rule.silent },
        },
    }
}
