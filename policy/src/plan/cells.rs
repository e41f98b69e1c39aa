//! The cells of one class: destinations × services within which every rule gives one answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use jiff::Timestamp;

use super::classes::{Class, Moved};
use super::services::{self, LAST, ServiceRange};
use super::{Budget, Effect, Kind, Turn, effect};
use crate::rule::Rule;
use crate::schedule::{Times, Untimely};
use crate::set::{Reach, TargetSet};

/// Destinations by what becomes of which services.
type Found<T = IpNet> = BTreeMap<(Turn, Vec<ServiceRange>), Vec<T>>;

/// Everything that changes for a class; `None` when the questions ran out.
pub(super) fn compare(class: &Class<'_>, moved: &Moved, at: Timestamp, budget: &mut Budget) -> Option<Found> {
    let greatest = if class.v4 { u128::from(u32::MAX) } else { u128::MAX };
    // Where a rule begins and ceases to be of interest; old rules come first.
    let old = class.now.len();
    let rules: Vec<&Rule> = class.now.iter().chain(&class.then).copied().collect();
    let mut events: Vec<(u128, usize, i32)> = Vec::new();
    let mut edges: Vec<u128> = vec![0];
    for (number, rule) in rules.iter().enumerate() {
        for (first, last) in spans(&rule.to, class.v4, greatest) {
            events.push((first, number, 1));
            edges.push(first);
            if let Some(end) = last.checked_add(1).filter(|end| *end <= greatest) {
                events.push((end, number, -1));
                edges.push(end);
            }
        }
        for (first, last) in spans(&rule.not_to, class.v4, greatest) {
            edges.push(first);
            edges.extend(last.checked_add(1).filter(|end| *end <= greatest));
        }
    }
    events.sort_unstable();
    edges.sort_unstable();
    edges.dedup();
    let mut areas: Found<(u128, u128)> = BTreeMap::new();
    let mut active: BTreeMap<usize, i32> = BTreeMap::new();
    let mut active_moved = 0_usize;
    let mut events = events.into_iter().peekable();
    let mut starts = edges.into_iter().peekable();
    while let Some(start) = starts.next() {
        let end = starts.peek().map_or(greatest, |next| next - 1);
        while let Some((_, number, step)) = events.next_if(|event| event.0 <= start) {
            let is_moved = rules.get(number).is_some_and(|rule| moved.contains(&std::ptr::from_ref(*rule)));
            let count = active.entry(number).or_insert(0);
            let was = *count > 0;
            *count += step;
            let is = *count > 0;
            if !is {
                active.remove(&number);
            }
            if is_moved {
                active_moved = active_moved + usize::from(is) - usize::from(was);
            }
        }
        budget.spend(1)?;
        if active_moved == 0 {
            continue;
        }
        let here = |range: std::ops::Range<usize>| -> Vec<&Rule> {
            active.range(range).filter_map(|(number, _)| rules.get(*number).copied()).collect()
        };
        let (now, then) = (here(0..old), here(old..rules.len()));
        for (turn, ranges) in turns(&now, &then, bits(class.v4, start), at, budget)? {
            let spans = areas.entry((turn, ranges)).or_default();
            match spans.last_mut() {
                Some(before) if before.1.checked_add(1) == Some(start) => before.1 = end,
                Some(_) | None => spans.push((start, end)),
            }
        }
    }
    let nets = |spans: Vec<(u128, u128)>| {
        spans.into_iter().flat_map(|(first, last)| prefixes(class.v4, first, last)).collect::<Vec<_>>()
    };
    Some(areas.into_iter().map(|(key, spans)| (key, nets(spans))).collect())
}

/// What becomes of each service at one address; `None` when the questions ran out.
fn turns(
    now: &[&Rule],
    then: &[&Rule],
    address: IpAddr,
    at: Timestamp,
    budget: &mut Budget,
) -> Option<Vec<(Turn, Vec<ServiceRange>)>> {
    let mut edges = vec![0];
    for rule in now.iter().chain(then) {
        let offered = rule.to.at(address).chain(rule.not_to.at(address)).filter_map(|r| r.services.as_ref());
        offered.chain(&rule.services).for_each(|set| services::edges(set, &mut edges));
    }
    edges.retain(|edge| *edge <= LAST);
    edges.sort_unstable();
    edges.dedup();
    let mut found: BTreeMap<Turn, Vec<(u32, u32)>> = BTreeMap::new();
    let mut starts = edges.into_iter().peekable();
    while let Some(start) = starts.next() {
        let end = starts.peek().map_or(LAST, |next| next - 1);
        budget.spend(now.len() + then.len())?;
        if let Some(turn) = turn(&Course::new(now, address, start, at), &Course::new(then, address, start, at)) {
            found.entry(turn).or_default().push((start, end));
        }
    }
    Some(found.into_iter().map(|(turn, spans)| (turn, services::ranges(&spans))).collect())
}

/// How the answer to a request goes with the time.
struct Course<'a> {
    /// What decides now.
    rule: Option<&'a Rule>,
    /// The answers in order, each while its condition holds, ending in one without; none that can make no difference.
    answers: Vec<(Option<&'a Times>, Effect)>,
}

impl<'a> Course<'a> {
    fn new(rules: &[&'a Rule], address: IpAddr, service: u32, at: Timestamp) -> Self {
        let service = services::at(service);
        let matching = rules.iter().copied().filter(|rule| {
            rule.to.reach(address, service) == Reach::Service
                && rule.services.as_ref().is_none_or(|set| set.contains(service))
                && rule.not_to.reach(address, service) != Reach::Service
        });
        let mut deciding = None;
        let mut answers = Vec::new();
        let mut last = None;
        for rule in matching {
            let always = rule.times.is_always();
            let (untimely, _) = rule.times.at(at);
            if untimely.is_none() && deciding.is_none() {
                deciding = Some(rule);
            }
            if always {
                last = Some(rule);
                break;
            }
            // What is over never comes back.
            if untimely != Some(Untimely::Late) {
                answers.push((Some(&rule.times), effect(Some(rule))));
            }
        }
        let end = effect(last);
        while answers.last().is_some_and(|(_, answer)| *answer == end) {
            answers.pop();
        }
        answers.push((None, end));
        answers.dedup();
        Self { rule: deciding, answers }
    }
}

fn turn(now: &Course<'_>, then: &Course<'_>) -> Option<Turn> {
    let kind = match (effect(now.rule), effect(then.rule)) {
        (Effect::Deny { .. }, Effect::Allow { .. }) => Kind::Opens,
        (Effect::Allow { .. }, Effect::Deny { .. }) => Kind::Closes,
        (Effect::Allow { rewrite: now, .. }, Effect::Allow { rewrite: then, .. }) if now != then => Kind::Rewrite,
        (Effect::Allow { offramp: now, .. }, Effect::Allow { offramp: then, .. }) if now != then => Kind::Offramp,
        (Effect::Deny { silent: now }, Effect::Deny { silent: then }) if now != then => Kind::Answer,
        (Effect::Allow { .. }, Effect::Allow { .. }) | (Effect::Deny { .. }, Effect::Deny { .. }) => {
            if now.answers == then.answers {
                return None;
            }
            Kind::Schedule
        }
    };
    let id = |course: &Course<'_>| course.rule.map(|rule| std::sync::Arc::clone(&rule.id));
    Some(Turn { kind, rule_now: id(now), rule_then: id(then) })
}

/// The ranges of addresses of one family that a set names.
fn spans(set: &TargetSet, v4: bool, greatest: u128) -> Vec<(u128, u128)> {
    let resources = set.resources.iter().flat_map(|resource| resource.addresses.written());
    let nets = set.nets.written().iter().chain(resources).filter(|net| net.addr().is_ipv4() == v4).map(span);
    set.any.then_some((0, greatest)).into_iter().chain(nets).collect()
}

/// First and last address of a prefix, as numbers.
pub(super) fn span(net: &IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(net) => (net.network().to_bits().into(), net.broadcast().to_bits().into()),
        IpNet::V6(net) => (net.network().to_bits(), net.broadcast().to_bits()),
    }
}

/// The address of a family with this number.
pub(super) fn bits(v4: bool, number: u128) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => Ipv4Addr::from_bits(number).into(),
        Ok(_) | Err(_) => Ipv6Addr::from_bits(number).into(),
    }
}

/// The fewest prefixes that hold exactly these addresses.
pub(super) fn prefixes(v4: bool, first: u128, last: u128) -> Vec<IpNet> {
    match (bits(v4, first), bits(v4, last)) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::from).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::from).collect(),
        // Both have the same family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    }
}
