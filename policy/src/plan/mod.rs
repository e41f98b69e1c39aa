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

/// Most questions to single rules that one plan asks, whom they select as well as what. How long that takes is
/// measured by `benches/evaluate` (`difference`).
pub const MAX_QUESTIONS: u64 = 400_000_000;

/// The questions that may still be asked.
#[derive(Debug)]
struct Budget {
    left: u64,
}

impl Budget {
    /// `None` when fewer are left.
    fn spend(&mut self, questions: usize) -> Option<()> {
        self.left = self.left.checked_sub(questions as u64)?;
        Some(())
    }
}

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
    /// False when [`MAX_QUESTIONS`] was reached, so that more may change than is said (where even whom the rules select was too
    /// much to ask, nothing is). What is said is true.
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
        self.difference_within(then, subjects, at, &mut Budget { left: MAX_QUESTIONS })
    }

    fn difference_within(
        &self,
        then: &Self,
        subjects: &[Subject<'_>],
        at: Timestamp,
        budget: &mut Budget,
    ) -> Difference {
        let (now, then) = (self.rule_list(), then.rule_list());
        let moved = classes::moved(now, then, &classes::regrouped(subjects));
        // Without all classes nothing would be said of some devices, and half of a class is none.
        let Some(classes) = classes::of(now, then, &moved, subjects, at, budget) else {
            return Difference { changes: Vec::new(), complete: false };
        };
        let mut complete = true;
        let mut areas: BTreeMap<(Turn, Vec<ServiceRange>, Vec<IpNet>), Vec<Who>> = BTreeMap::new();
        for (class, who) in classes {
            let Some(found) = cells::compare(&class, &moved, at, budget) else {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Context, Revision};

    /// Rules that each let a group reach an address of its own.
    fn policy(rules: usize, port: usize) -> Ruleset {
        let rules: Vec<String> = (0..rules)
            .map(|rule| {
                let to = format!("10.0.{}.{}", rule / 256, rule % 256);
                format!(
                    r#"{{ "id": "r{rule}", "action": "allow", "from": ["group:eng"], "to": ["{to}"], "services": ["tcp/{port}"] }}"#
                )
            })
            .collect();
        let text = format!(r#"{{ "version": 1, "rules": [{}] }}"#, rules.join(", "));
        let context = Context { groups: BTreeSet::from(["eng"]), ..Context::default() };
        Ruleset::compile(text.as_bytes(), &context, Revision(1), Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_comparison_that_is_too_much_work_stops_and_says_so() {
        const RULES: usize = 200;
        let identities: Vec<Identity> = (0..10)
            .map(|number| Identity {
                device: format!("laptop-{number}").into(),
                user: "ann".into(),
                groups: ["eng".into()].into(),
                network: "default".into(),
                posture: Default::default(),
            })
            .collect();
        let source = ["192.0.2.1/32".parse().unwrap()];
        let subjects: Vec<Subject<'_>> =
            identities.iter().map(|one| Subject { now: one, then: one, sources: &source }).collect();
        let (now, then) = (policy(RULES, 443), policy(RULES, 80));
        let within = |left| {
            let mut budget = Budget { left };
            let difference = now.difference_within(&then, &subjects, Timestamp::UNIX_EPOCH, &mut budget);
            (difference, left - budget.left)
        };
        let (all, asked) = within(MAX_QUESTIONS);
        assert!(all.complete && !all.changes.is_empty());
        // Ten devices, each asked of both policies: with less not even the classes are known.
        let selecting = 2 * (RULES as u64) * 10;
        assert!(asked > selecting, "{asked}");
        for left in [0, selecting / 2, selecting, asked - 1] {
            let (some, spent) = within(left);
            assert!(!some.complete && !some.is_nothing() && spent <= left, "{left}");
            assert!(some.changes.iter().all(|change| all.changes.contains(change)), "{left}");
        }
        assert!(within(asked).0.complete);
    }
}
