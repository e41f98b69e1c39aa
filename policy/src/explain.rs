//! Why a verdict is what it is.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::rule::{Action, Rule, Selector};
use crate::set::Reach;
use crate::{Facts, Report, Request, Verdict};

/// A verdict and the way to it, for people ([`Display`](fmt::Display)) and for programs (serde).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Name of the device that asks; empty when a user without a device does.
    pub device: Arc<str>,
    /// Name of its user.
    pub user: Arc<str>,
    /// Address it asks from.
    pub source: IpAddr,
    /// Address it would reach.
    pub destination: IpAddr,
    /// Service it would reach, such as `tcp/443`.
    pub service: String,
    /// When it was asked.
    pub at: Timestamp,
    /// The verdict.
    pub verdict: Action,
    /// Id of the deciding rule; `None` when no rule matched.
    pub rule: Option<Arc<str>>,
    /// Revision of the ruleset; `None` where it has none that means anything, as a file that is not in force.
    pub revision: Option<u64>,
    /// Whether a denial is not answered.
    pub silent: bool,
    /// The off-ramp the rule names.
    pub offramp: Option<Arc<str>>,
    /// Where the rule has it go instead.
    pub rewrite: Option<String>,
    /// When the answer may be another.
    pub until: Option<Timestamp>,
    /// The rules that were asked, in order; the last is the deciding one, when there is one.
    pub steps: Vec<Step>,
}

/// What one rule said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its id.
    pub rule: Arc<str>,
    /// What it does with what it matches.
    pub action: Action,
    /// Whether it matched.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Whether a rule matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It matched and decided.
    Decided,
    /// It matched, but is in audit mode and decides nothing.
    Audited,
    /// It did not match.
    Missed {
        /// The first selector that did not match.
        selector: Selector,
        /// What the request has.
        found: String,
        /// What the selector would have needed.
        needed: String,
    },
}

impl Explanation {
    pub(crate) fn new(rules: &[Rule], request: &Request<'_>, verdict: &Verdict, now: Timestamp) -> Self {
        let mut steps = Vec::new();
        for rule in rules {
            let outcome = rule.outcome(request, now);
            let decided = outcome == Outcome::Decided;
            steps.push(Step { rule: Arc::clone(&rule.id), action: rule.action, outcome });
            if decided {
                break;
            }
        }
        let (action, silent, offramp, rewrite) = match verdict {
            Verdict::Allow(permit) => {
                let rewrite = permit.rewrite.map(|rewrite| rewrite.to_string());
                (Action::Allow, false, permit.offramp().cloned(), rewrite)
            }
            Verdict::Deny(denial) => (Action::Deny, denial.silent(), None, None),
        };
        Self {
            device: Arc::clone(&request.identity.device),
            user: Arc::clone(&request.identity.user),
            source: request.source,
            destination: request.destination,
            service: request.service.to_string(),
            at: now,
            verdict: action,
            rule: verdict.rule().cloned(),
            revision: Some(verdict.revision().0),
            silent,
            offramp,
            rewrite,
            until: verdict.until(),
            steps,
        }
    }
}

impl Rule {
    fn outcome(&self, request: &Request<'_>, now: Timestamp) -> Outcome {
        if let Some(selector) = self.mismatch(request, now) {
            let (found, needed) = self.sentence(selector, request, now);
            return Outcome::Missed { selector, found, needed };
        }
        match self.times.at(now).0 {
            Some(untimely) => {
                let (found, needed) = self.times.sentence(untimely, now);
                Outcome::Missed { selector: Selector::Time, found, needed }
            }
            None if self.audit => Outcome::Audited,
            None => Outcome::Decided,
        }
    }

    /// What the request has, and what the selector would have needed.
    fn sentence(&self, selector: Selector, request: &Request<'_>, now: Timestamp) -> (String, String) {
        let Request { identity, destination, service, .. } = *request;
        match selector {
            Selector::From => (describe_source(request), self.from.to_string()),
            Selector::NotFrom => {
                let excluding = self.not_from.selecting(request).map(ToString::to_string).unwrap_or_default();
                (excluding.clone(), format!("anything but {excluding}"))
            }
            Selector::To => (destination.to_string(), self.to.to_string()),
            Selector::Services => {
                let offers =
                    self.to.at(destination).filter_map(|resource| Some((resource, resource.services.as_ref()?)));
                let needed: Vec<String> = match &self.services {
                    Some(services) if self.to.reach(destination, service) == Reach::Service => {
                        vec![services.to_string()]
                    }
                    Some(_) | None => {
                        offers.map(|(resource, services)| format!("{services} of {}", resource.name)).collect()
                    }
                };
                (service.to_string(), needed.join(", or "))
            }
            Selector::NotTo => {
                let excluding = self.not_to.holding(destination, service).unwrap_or_default();
                (format!("{destination} {service}, which is {excluding}"), format!("anything but {excluding}"))
            }
            Selector::Posture => {
                let facts = &identity.posture;
                let unmet = self.postures.iter().find_map(|posture| Some((posture, posture.unmet(facts, now)?)));
                let Some((posture, condition)) = unmet else {
                    return (String::new(), String::new());
                };
                let fact = describe_fact(facts, &condition.fact, now);
                (format!("{} {fact}", condition.fact), format!("{condition} (posture {})", posture.name))
            }
            // The clock is asked after every other selector, with sentences of its own.
            Selector::Time => (String::new(), String::new()),
        }
    }
}

fn describe_fact(facts: &Facts, name: &str, now: Timestamp) -> String {
    let mut text = facts.at(name, now).map_or_else(|| "is missing".to_owned(), |fact| format!("is {fact}"));
    if let Some(Report { value, at, until }) = facts.reported(name) {
        match until.filter(|until| *until <= now) {
            None => text.push_str(&format!(", as reported at {at:.0}")),
            Some(until) => text.push_str(&format!(", since the report of {value} was over at {until:.0}")),
        }
    }
    text
}

fn describe_source(request: &Request<'_>) -> String {
    let identity = request.identity;
    let mut text = format!("user {}", identity.user);
    if !identity.groups.is_empty() {
        text.push_str(&format!(" of {}", identity.groups.join(", ")));
    }
    if !identity.device.is_empty() {
        text.push_str(&format!(" on device {}", identity.device));
    }
    text.push_str(&format!(" from {}", request.source));
    text
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.device.is_empty() { &self.user } else { &self.device };
        write!(f, "{}: {who} to {} {}", self.verdict, self.destination, self.service)?;
        match &self.rule {
            Some(rule) => write!(f, " by rule {rule}")?,
            None => f.write_str(", because no rule matches")?,
        }
        if let Some(rewrite) = &self.rewrite {
            write!(f, ", which sends it to {rewrite}")?;
        }
        if let Some(offramp) = &self.offramp {
            write!(f, ", over off-ramp {offramp}")?;
        }
        if self.silent {
            f.write_str(", without an answer to the client")?;
        }
        match self.revision {
            Some(revision) => write!(f, " (revision {revision}, at {})", self.at)?,
            None => write!(f, " (at {})", self.at)?,
        }
        if let Some(until) = self.until {
            write!(f, "\n  the clock may change that at {until}")?;
        }
        for Step { rule, action, outcome } in &self.steps {
            match outcome {
                Outcome::Decided => write!(f, "\n  {rule} ({action}): matches and decides")?,
                Outcome::Audited => write!(f, "\n  {rule} ({action}): matches, but only audits")?,
                Outcome::Missed { selector, found, needed } => {
                    // A fact comes with a verb of its own.
                    let has = if *selector == Selector::Posture { "" } else { "has " };
                    write!(f, "\n  {rule} ({action}): does not match by {selector}: {has}{found}; needs {needed}")?;
                }
            }
        }
        Ok(())
    }
}
