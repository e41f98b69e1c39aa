//! Which rules differ, and which devices are selected alike.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::cells::{bits, prefixes, span};
use super::{Budget, Subject, Who};
use crate::rule::Rule;
use crate::set::{ServiceSet, SourceSelector, SourceSet, TargetSet};
use crate::{Identity, Request};

/// Rules of either policy that the other does not have at a place that agrees in order; by their address in memory.
pub(super) type Moved = HashSet<*const Rule>;

/// The rules that select some packets, leaving destination, service and time aside.
pub(super) struct Class<'a> {
    pub(super) v4: bool,
    pub(super) now: Vec<&'a Rule>,
    pub(super) then: Vec<&'a Rule>,
}

/// The groups that somebody would leave or come into.
pub(super) fn regrouped<'a>(subjects: &[Subject<'a>]) -> HashSet<&'a str> {
    let mut groups = HashSet::new();
    for Subject { now, then, .. } in subjects {
        groups.extend(now.groups.iter().filter(|group| !then.groups.contains(group)).map(|group| &**group));
        groups.extend(then.groups.iter().filter(|group| !now.groups.contains(group)).map(|group| &**group));
    }
    groups
}

/// The rules that are not part of the longest list that both policies hold in the same order, and those that select by a
/// group which others are in.
pub(super) fn moved(now: &[Rule], then: &[Rule], regrouped: &HashSet<&str>) -> Moved {
    let by_id: HashMap<&str, (usize, &Rule)> =
        now.iter().enumerate().map(|(index, rule)| (&*rule.id, (index, rule))).collect();
    let kept: Vec<(usize, &Rule)> = then
        .iter()
        .filter_map(|rule| {
            by_id
                .get(&*rule.id)
                .filter(|(_, old)| same(old, rule) && !names(rule, regrouped))
                .map(|(index, _)| (*index, rule))
        })
        .collect();
    // Longest increasing subsequence: `ends[n]` is the entry that ends the list of n + 1 entries with the lowest number.
    let number = |entry: usize| kept.get(entry).map_or(usize::MAX, |(index, _)| *index);
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(kept.len());
    for entry in 0..kept.len() {
        let length = ends.partition_point(|end| number(*end) < number(entry));
        before.push(length.checked_sub(1).and_then(|shorter| ends.get(shorter).copied()));
        match ends.get_mut(length) {
            Some(end) => *end = entry,
            None => ends.push(entry),
        }
    }
    let mut moved: Moved = now.iter().chain(then).map(std::ptr::from_ref).collect();
    let mut next = ends.last().copied();
    while let Some(entry) = next {
        if let Some((index, rule)) = kept.get(entry) {
            moved.remove(&std::ptr::from_ref(*rule));
            if let Some(rule) = now.get(*index) {
                moved.remove(&std::ptr::from_ref(rule));
            }
        }
        next = before.get(entry).copied().flatten();
    }
    moved
}

fn names(rule: &Rule, groups: &HashSet<&str>) -> bool {
    rule.from.written().iter().chain(rule.not_from.written()).any(|selector| match selector {
        SourceSelector::Group(group) => groups.contains(&**group),
        SourceSelector::Any
        | SourceSelector::User(_)
        | SourceSelector::Device(_)
        | SourceSelector::Network(_)
        | SourceSelector::Net(_) => false,
    })
}

fn same(a: &Rule, b: &Rule) -> bool {
    a.action == b.action
        && a.audit == b.audit
        && a.silent == b.silent
        && a.offramp == b.offramp
        && a.rewrite == b.rewrite
        && a.from == b.from
        && a.not_from == b.not_from
        && same_targets(&a.to, &b.to)
        && same_targets(&a.not_to, &b.not_to)
        && same_services(a.services.as_ref(), b.services.as_ref())
        && a.postures.len() == b.postures.len()
        && a.postures.iter().zip(&b.postures).all(|(a, b)| a.conditions == b.conditions)
        && a.times == b.times
}

fn same_targets(a: &TargetSet, b: &TargetSet) -> bool {
    a.any == b.any
        && a.nets.written() == b.nets.written()
        && a.resources.len() == b.resources.len()
        && a.resources.iter().zip(&b.resources).all(|(a, b)| {
            a.addresses.written() == b.addresses.written() && same_services(a.services.as_ref(), b.services.as_ref())
        })
}

fn same_services(a: Option<&ServiceSet>, b: Option<&ServiceSet>) -> bool {
    a.map(ServiceSet::written) == b.map(ServiceSet::written)
}

/// The classes that a moved rule selects, each with the packets in it; `None` when the questions ran out.
pub(super) fn of<'a>(
    now: &'a [Rule],
    then: &'a [Rule],
    moved: &Moved,
    subjects: &[Subject<'_>],
    at: Timestamp,
    budget: &mut Budget,
) -> Option<Vec<(Class<'a>, Vec<Who>)>> {
    let is_moved = |rule: &&Rule| moved.contains(&std::ptr::from_ref(*rule));
    let [moved_now, moved_then] = [now, then].map(|rules| rules.iter().filter(is_moved).collect::<Vec<&Rule>>());
    let edges = [true, false].map(|v4| {
        let mut edges: Vec<u128> = now
            .iter()
            .chain(then)
            .flat_map(|rule| nets(&rule.from).chain(nets(&rule.not_from)))
            .filter(|net| net.addr().is_ipv4() == v4)
            .flat_map(|net| {
                let (first, last) = span(net);
                [Some(first), last.checked_add(1)]
            })
            .flatten()
            .collect();
        edges.sort_unstable();
        edges.dedup();
        (v4, edges)
    });
    // Which rules select: the key of a class.
    let mut found: BTreeMap<(bool, Vec<usize>, Vec<usize>), Vec<Who>> = BTreeMap::new();
    for subject in subjects {
        for net in subject.sources {
            let (first, last) = span(net);
            let Some((v4, edges)) = edges.iter().find(|(v4, _)| *v4 == net.addr().is_ipv4()) else { continue };
            let inside = edges.partition_point(|edge| *edge <= first)..edges.partition_point(|edge| *edge <= last);
            let inside = edges.get(inside).unwrap_or_default();
            let starts = std::iter::once(first).chain(inside.iter().copied());
            let ends = inside.iter().map(|start| start - 1).chain([last]);
            for (start, end) in starts.zip(ends) {
                let source = bits(*v4, start);
                // Most edits move few rules, and most devices are selected by none of them.
                budget.spend(1 + moved_now.len() + moved_then.len())?;
                let is_selected =
                    |rules: &[&Rule], who: &Identity| rules.iter().any(|rule| selects(rule, who, source, at));
                if !is_selected(&moved_now, subject.now) && !is_selected(&moved_then, subject.then) {
                    continue;
                }
                budget.spend(now.len() + then.len())?;
                let select = |rules: &[Rule], who: &Identity| -> Vec<usize> {
                    rules
                        .iter()
                        .enumerate()
                        .filter(|(_, rule)| selects(rule, who, source, at))
                        .map(|(n, _)| n)
                        .collect()
                };
                let who = Who {
                    user: Arc::clone(&subject.now.user),
                    device: Arc::clone(&subject.now.device),
                    sources: prefixes(*v4, start, end),
                };
                found.entry((*v4, select(now, subject.now), select(then, subject.then))).or_default().push(who);
            }
        }
    }
    let rules = |all: &'a [Rule], numbers: &[usize]| -> Vec<&'a Rule> {
        numbers.iter().filter_map(|number| all.get(*number)).collect()
    };
    let class = |((v4, old, new), who): ((bool, Vec<usize>, Vec<usize>), _)| {
        (Class { v4, now: rules(now, &old), then: rules(then, &new) }, who)
    };
    Some(found.into_iter().map(class).collect())
}

fn nets(set: &SourceSet) -> impl Iterator<Item = &IpNet> {
    set.written().iter().filter_map(|selector| match selector {
        SourceSelector::Net(net) => Some(net),
        SourceSelector::Any
        | SourceSelector::User(_)
        | SourceSelector::Group(_)
        | SourceSelector::Device(_)
        | SourceSelector::Network(_) => None,
    })
}

/// Whether a rule that decides may select packets from `source`. A rule in audit mode decides nothing.
fn selects(rule: &Rule, identity: &Identity, source: IpAddr, at: Timestamp) -> bool {
    // Neither of the two sets looks at destination and service.
    let request = Request { identity, source, destination: source, service: crate::Service::Icmp };
    !rule.audit
        && rule.from.contains(&request)
        && !rule.not_from.contains(&request)
        && rule.postures.iter().all(|posture| posture.unmet(&identity.posture, at).is_none())
}

/// One entry a device, sorted.
pub(super) fn joined(mut who: Vec<Who>) -> Vec<Who> {
    who.sort_unstable();
    who.dedup_by(|next, kept| {
        let same = next.device == kept.device && next.user == kept.user;
        if same {
            kept.sources.append(&mut next.sources);
        }
        same
    });
    for one in &mut who {
        one.sources = IpNet::aggregate(&one.sources);
    }
    who
}
