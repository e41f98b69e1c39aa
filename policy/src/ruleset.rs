//! The compiled policy.

use std::sync::Arc;

use jiff::Timestamp;

use crate::compile::{self, Context};
use crate::groups::Groups;
use crate::index::Index;
use crate::json::Problem;
use crate::lint::{self, Finding};
use crate::rule::{Action, Rule, Selector};
use crate::schedule::earliest;
use crate::set::Resource;
use crate::{Denial, Explanation, Request, Revision, Verdict};

/// A compiled, immutable policy.
#[derive(Debug)]
pub struct Ruleset {
    revision: Revision,
    rules: Box<[Rule]>,
    groups: Groups,
    index: Index,
    warnings: Box<[Problem]>,
}

/// What a listing shows of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleSummary<'a> {
    /// Its id.
    pub id: &'a Arc<str>,
    /// What it does with what it matches.
    pub action: Action,
    /// Whether it only reports.
    pub audit: bool,
    /// Free text.
    pub description: Option<&'a Arc<str>>,
}

impl Ruleset {
    /// Compiles `policy.json` against the names that exist and runs its tests, those without a time of their own at `now`.
    ///
    /// # Errors
    ///
    /// Every problem of the document, in the order of their places. The tests are run only when there is no other.
    pub fn compile(
        text: &[u8],
        context: &Context<'_>,
        revision: Revision,
        now: Timestamp,
    ) -> Result<Self, Vec<Problem>> {
        compile::compile(text, context, revision, now)
    }

    pub(crate) fn new(revision: Revision, rules: Vec<Rule>, groups: Groups) -> Self {
        Self { revision, groups, index: Index::new(&rules), rules: rules.into(), warnings: [].into() }
    }

    pub(crate) fn findings(&self, context: &Context<'_>, resources: Vec<&Arc<Resource>>) -> Vec<Finding> {
        lint::findings(&self.rules, &self.index, &self.groups, context, resources.into_iter())
    }

    pub(crate) fn warn(&mut self, warnings: Vec<Problem>) {
        self.warnings = warnings.into();
    }

    /// What is no mistake and yet surely not meant, in the order of the document: rules that never decide because earlier
    /// ones decide everything they could, resources that nobody may reach, tests that no rule decides. A warning is always
    /// right for the directory that was compiled against; what is costly to find out is not warned about.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    pub(crate) fn rule_list(&self) -> &[Rule] {
        &self.rules
    }

    /// The revision it was compiled as.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no rule, which denies everything.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules in order.
    pub fn rules(&self) -> impl ExactSizeIterator<Item = RuleSummary<'_>> {
        self.rules.iter().map(|rule| RuleSummary {
            id: &rule.id,
            action: rule.action,
            audit: rule.audit,
            description: rule.description.as_ref(),
        })
    }

    /// Every group that a user is in: those that the directory gives (`own`) and those of this policy that name the user or
    /// one of the user's groups, however deep. Sorted, without repetition; it is what [`Identity::groups`](crate::Identity)
    /// must hold for this policy.
    pub fn groups_of(&self, user: &str, own: &Arc<[Arc<str>]>) -> Arc<[Arc<str>]> {
        self.groups.of(user, own)
    }

    /// The verdict on `request` at `now`: the first rule that matches decides, none is a denial.
    ///
    /// The same question has the same answer until [`Verdict::until`]. Allocates only when a rule in audit mode matches.
    pub fn evaluate(&self, request: &Request<'_>, now: Timestamp) -> Verdict {
        let mut until = None;
        let mut audited = Vec::new();
        let decided = self.index.find(request, |number| {
            let rule = self.rules.get(number as usize)?;
            let mismatch = rule.mismatch(request, now);
            if !rule.postures.is_empty() && matches!(mismatch, None | Some(Selector::Posture)) {
                until = earliest(until, rule.facts_change_at(request, now));
            }
            if mismatch.is_some() {
                return None;
            }
            // Only the clock is left to ask, so its next change can change the answer, whatever it says now.
            let (untimely, change) = rule.times.at(now);
            until = earliest(until, change);
            match untimely {
                Some(_) => None,
                None if rule.audit => {
                    audited.push(Arc::clone(&rule.id));
                    None
                }
                None => Some(rule),
            }
        });
        match decided {
            Some(rule) => rule.verdict(self.revision, until, audited),
            None => Verdict::Deny(Denial { rule: None, revision: self.revision, silent: false, until, audited }),
        }
    }

    /// Why the verdict on `request` at `now` is what it is.
    pub fn explain(&self, request: &Request<'_>, now: Timestamp) -> Explanation {
        Explanation::new(&self.rules, request, &self.evaluate(request, now), now)
    }
}
