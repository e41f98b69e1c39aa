//! What is no mistake in a policy and yet surely not meant: rules that never decide, resources that nobody reaches.
//!
//! A rule never decides when earlier ones decide everything it could. Its sources are looked at one entry at a time. What an
//! entry can ask for is a set of boxes, addresses times services. From these is taken what an earlier rule decides whatever
//! else a request is like, until nothing is left or something is that no such rule decides:
//!
//! - It may be in audit mode no more than it may have a condition or an exception that the later rule has not got as well.
//! - It must select everything that the entry selects: by the same entry, by one that holds it (a group that its group or user
//!   is in, the user of its device, a prefix around its prefix), or by `*`. Several earlier rules cover an entry together by
//!   their destinations and services, but not by their sources.
//!
//! So a warning is always right, and what takes more than that to see is not warned about. The index of the rules says which
//! earlier rule decides a corner of what is left, so that the work is in proportion to what is covered; [`MAX_PIECES`] and
//! [`MAX_WORK`] bound it all the same.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::groups::Groups;
use crate::index::Index;
use crate::json::quoted;
use crate::posture::Posture;
use crate::rule::{Action, Rule};
use crate::set::{Reach, Resource, ServiceSet, SourceSelector, Target, TargetSet};
use crate::{Facts, Identity, Request};

mod boxes;

pub(crate) use boxes::EVERY_SERVICE;
use boxes::{Box, subtract};

/// The most boxes that what one source of a rule can ask for may come apart into; beyond it the rule counts as needed.
const MAX_PIECES: usize = 1_024;
/// The most rules and boxes that are looked at for one policy; when they are used up the remaining rules count as needed.
const MAX_WORK: usize = 2_000_000;

/// Something to warn about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The rule with this number never decides.
    Rule(usize, String),
    /// Nobody reaches the resource.
    Resource(Arc<str>, String),
}

/// What the directory says of a device, and of users: the names that an identity would have.
pub(crate) trait Known {
    /// Groups the directory gives a user.
    fn own_groups(&self, user: &str) -> Arc<[Arc<str>]>;
    /// The user of a device, and the virtual network it is in.
    fn user_of(&self, device: &str) -> Option<(Arc<str>, Arc<str>)>;
}

/// Everything that may be said about compiled rules, rules first.
pub(crate) fn findings<'r>(
    rules: &[Rule],
    index: &Index,
    groups: &Groups,
    known: &impl Known,
    resources: impl Iterator<Item = &'r Arc<Resource>>,
) -> Vec<Finding> {
    let mut lint = Lint { rules, index, groups, known, work: MAX_WORK };
    let mut needless = vec![false; rules.len()];
    let mut findings = Vec::new();
    for (number, (rule, needless)) in rules.iter().zip(&mut needless).enumerate() {
        if let Some(why) = lint.needless(number, rule) {
            *needless = true;
            findings.push(Finding::Rule(number, why));
        }
    }
    let needed: Vec<&Rule> =
        rules.iter().zip(needless).filter(|(_, needless)| !needless).map(|(rule, _)| rule).collect();
    lint.work = MAX_WORK;
    findings.extend(lint.unreached(&resources.collect::<Vec<_>>(), &needed).into_iter().flatten());
    findings
}

/// An entry of `from` with everything that is known to hold for whoever it selects.
struct Entry<'r> {
    selector: &'r SourceSelector,
    /// Names that the index knows the entry by: those of its device and user, and every group it is surely in.
    identity: Identity,
    source: Option<IpAddr>,
}

struct Lint<'r, K> {
    rules: &'r [Rule],
    index: &'r Index,
    groups: &'r Groups,
    known: &'r K,
    /// How much may still be looked at.
    work: usize,
}

impl<'r, K: Known> Lint<'r, K> {
    /// Why a rule never decides.
    fn needless(&mut self, number: usize, rule: &Rule) -> Option<String> {
        let id = quoted(&rule.id);
        let does = if rule.audit { "reports" } else { "decides" };
        let mut asked = boxes::of(&rule.to, rule.services.as_ref())?;
        let excluded = boxes::of(&rule.not_to, None)?;
        for hole in &excluded {
            self.spend(asked.len())?;
            asked = subtract(asked, *hole, MAX_PIECES)?;
        }
        if asked.is_empty() {
            return Some(format!(
                "rule {id} never {does}: nothing is left of its \"to\" by its services and \"not_to\""
            ));
        }
        let mut deciders = Vec::new();
        for selector in rule.from.written() {
            if rule.not_from.written().contains(selector) {
                continue;
            }
            let entry = self.entry(selector);
            self.cover(&entry, asked.clone(), number, rule, &mut deciders)?;
        }
        if deciders.is_empty() {
            return Some(format!("rule {id} never {does}: its \"not_from\" excludes everything in its \"from\""));
        }
        deciders.sort_unstable();
        deciders.dedup();
        Some(format!("rule {id} never {does}: {} first everything it could", self.named(&deciders)))
    }

    /// `"a" matches`, `"a" and "b" match`, and so on.
    fn named(&self, deciders: &[usize]) -> String {
        const SHOWN: usize = 4;
        let ids = deciders.iter().filter_map(|number| self.rules.get(*number)).map(|rule| quoted(&rule.id));
        let mut ids: Vec<String> = ids.take(SHOWN).collect();
        if deciders.len() > SHOWN {
            ids.push(format!("{} more", deciders.len() - SHOWN));
        }
        match ids.split_last() {
            Some((last, [])) => format!("{last} matches"),
            Some((last, before)) => format!("{} and {last} match", before.join(", ")),
            None => String::new(),
        }
    }

    /// Takes from `left` what rules before `number` decide for the entry, noting them; `None` when something stays.
    fn cover(
        &mut self,
        entry: &Entry<'_>,
        mut left: Vec<Box>,
        number: usize,
        rule: &Rule,
        deciders: &mut Vec<usize>,
    ) -> Option<()> {
        while let Some(corner) = left.last().copied() {
            let (destination, service) = corner.corner();
            let unspecified = match destination {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let source = entry.source.unwrap_or(unspecified);
            let request = Request { identity: &entry.identity, source, destination, service };
            let mut work = self.work;
            let rules = self.rules;
            let found = self.index.find(&request, |candidate| {
                work = work.saturating_sub(1);
                let candidate = candidate as usize;
                if candidate >= number || work == 0 {
                    return Some(None);
                }
                let earlier = rules.get(candidate)?;
                let offers = earlier.to.reach(destination, service) == Reach::Service
                    && earlier.services.as_ref().is_none_or(|services| services.contains(service));
                (offers && decides(earlier, rule, entry)).then_some(Some((candidate, earlier)))
            });
            self.work = work;
            let (decider, earlier) = found.flatten()?;
            deciders.push(decider);
            for taken in boxes::of(&earlier.to, earlier.services.as_ref())? {
                self.spend(left.len())?;
                left = subtract(left, taken, MAX_PIECES)?;
            }
        }
        Some(())
    }

    fn spend(&mut self, work: usize) -> Option<()> {
        self.work = self.work.checked_sub(work)?;
        Some(())
    }

    fn entry<'s>(&self, selector: &'s SourceSelector) -> Entry<'s> {
        let nobody = || Arc::<str>::from("");
        let user = |name: &Arc<str>, device: Arc<str>| Identity {
            device,
            user: Arc::clone(name),
            groups: self.groups.of(name, &self.known.own_groups(name)),
            // A device of the user may be in another than the user is.
            network: nobody(),
            posture: Facts::default(),
        };
        let (identity, source) = match selector {
            SourceSelector::Any => (user(&nobody(), nobody()), None),
            SourceSelector::User(name) => (user(name, nobody()), None),
            SourceSelector::Group(name) => {
                (Identity { groups: self.groups.around(name), ..user(&nobody(), nobody()) }, None)
            }
            SourceSelector::Device(name) => {
                let (owner, network) = self.known.user_of(name).unwrap_or_else(|| (nobody(), nobody()));
                (Identity { network, ..user(&owner, Arc::clone(name)) }, None)
            }
            SourceSelector::Network(name) => {
                (Identity { network: Arc::clone(name), ..user(&nobody(), nobody()) }, None)
            }
            SourceSelector::Net(net) => (user(&nobody(), nobody()), Some(net.network())),
        };
        Entry { selector, identity, source }
    }

    /// The resources that nobody reaches by any rule of `needed`.
    fn unreached(&mut self, resources: &[&Arc<Resource>], needed: &[&Rule]) -> Option<Vec<Finding>> {
        let allowing = || needed.iter().filter(|rule| rule.action == Action::Allow && !rule.audit);
        let (mut used, mut led) = (HashSet::new(), HashSet::new());
        for rule in needed {
            used.extend(rule.to.resources.iter().chain(&rule.not_to.resources).map(|resource| &*resource.name));
        }
        for rule in allowing() {
            for resource in &rule.to.resources {
                if !boxes::common(&ranges(rule.services.as_ref()), &ranges(resource.services.as_ref())).is_empty() {
                    led.insert(&*resource.name);
                }
            }
        }
        let rest: Vec<_> = resources.iter().filter(|resource| !led.contains(&*resource.name)).collect();
        if rest.is_empty() {
            return None;
        }
        let mut reached = Vec::new();
        for rule in allowing() {
            let boxes = boxes::of(&rule.to, rule.services.as_ref())?;
            self.spend(boxes.len())?;
            reached.extend(boxes);
        }
        let mut findings = Vec::new();
        for resource in rest {
            let itself = TargetSet::new(vec![Target::Resource(Arc::clone(resource))]);
            let Some(offered) = boxes::of(&itself, None) else { continue };
            let Some(()) = self.spend(reached.len() * offered.len()) else { break };
            if reached.iter().any(|reached| offered.iter().any(|offered| reached.meets(offered))) {
                continue;
            }
            let unused = if used.contains(&*resource.name) { "" } else { "no rule uses it, and " };
            let message = format!("resource {}: {unused}no allow rule lets anybody reach it", quoted(&resource.name));
            findings.push(Finding::Resource(Arc::clone(&resource.name), message));
        }
        Some(findings)
    }
}

/// Whether `earlier` decides whatever the entry asks for of its destinations and services, when `later` would match.
fn decides(earlier: &Rule, later: &Rule, entry: &Entry<'_>) -> bool {
    let posture = |posture: &Arc<Posture>| later.postures.iter().any(|other| other.name == posture.name);
    let without = |net: &ipnet::IpNet| later.not_to.nets.written().iter().any(|wider| wider.contains(net));
    let resource = |resource: &Arc<Resource>| later.not_to.resources.iter().any(|other| other.name == resource.name);
    !earlier.audit
        && earlier.times.hold_whenever(&later.times)
        && earlier.postures.iter().all(posture)
        && earlier.not_from.written().iter().all(|selector| later.not_from.written().contains(selector))
        && earlier.not_to.nets.written().iter().all(without)
        && earlier.not_to.resources.iter().all(resource)
        && earlier.from.written().iter().any(|selector| entry.is_within(selector))
}

impl Entry<'_> {
    /// Whether `wider` selects everything that the entry does.
    fn is_within(&self, wider: &SourceSelector) -> bool {
        match (wider, self.selector) {
            (SourceSelector::Any, _) => true,
            (SourceSelector::Net(wider), SourceSelector::Net(net)) => wider.contains(net),
            (SourceSelector::Net(_), _) | (_, SourceSelector::Any | SourceSelector::Net(_)) => false,
            (SourceSelector::User(user), _) => *user == self.identity.user,
            (SourceSelector::Group(group), _) => self.identity.groups.contains(group),
            (SourceSelector::Device(device), _) => *device == self.identity.device,
            (SourceSelector::Network(network), _) => *network == self.identity.network,
        }
    }
}

/// The services of a rule and a resource as ranges of numbers.
fn ranges(services: Option<&ServiceSet>) -> Vec<(u32, u32)> {
    services.map_or_else(|| EVERY_SERVICE.to_vec(), ServiceSet::numbers)
}
