//! From compiled rules to their index.

use std::cmp::Reverse;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::prefixes::Prefixes;
use super::set::Set;
use super::{Addresses, Index, service_number};
use crate::Service;
use crate::rule::Rule;
use crate::set::{ServiceSelector, SourceSelector};

impl Index {
    pub(crate) fn new(rules: &[Rule]) -> Self {
        let mut builder = Builder::default();
        let mut resources = HashMap::new();
        let (mut users, mut groups, mut devices, mut networks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut sources, mut destinations, mut services) = (Nets::default(), Nets::default(), Vec::new());
        for (rule, number) in rules.iter().zip(0..) {
            let owner = Owner::Rule(number);
            for selector in rule.from.written() {
                match selector {
                    SourceSelector::Any => sources.add_all(owner),
                    SourceSelector::User(name) => users.push((Arc::clone(name), owner)),
                    SourceSelector::Group(name) => groups.push((Arc::clone(name), owner)),
                    SourceSelector::Device(name) => devices.push((Arc::clone(name), owner)),
                    SourceSelector::Network(name) => networks.push((Arc::clone(name), owner)),
                    SourceSelector::Net(net) => sources.add(*net, owner),
                }
            }
            if rule.to.any {
                destinations.add_all(owner);
            }
            rule.to.nets.written().iter().for_each(|net| destinations.add(*net, owner));
            match &rule.services {
                Some(own) => add_services(&mut services, own.written(), owner),
                None if rule.offers_everything() => add_services(&mut services, &[ServiceSelector::Any], owner),
                None => {}
            }
            for resource in &rule.to.resources {
                // Its values are entered once, however many rules lead to it.
                let (all, served) = *resources.entry(&*resource.name).or_insert_with(|| {
                    let (all, served) = (builder.share(), builder.share());
                    resource.addresses.written().iter().for_each(|net| destinations.add(*net, Owner::Shared(all)));
                    let offered = resource.services.as_ref().map(|services| services.written());
                    add_services(&mut services, offered.unwrap_or_default(), Owner::Shared(served));
                    (all, served)
                });
                builder.lead(all, number);
                if rule.services.is_none() && !rule.offers_everything() {
                    builder.lead(served, number);
                }
            }
        }
        Self {
            rules: u32::try_from(rules.len()).unwrap_or(u32::MAX),
            users: builder.names(users),
            groups: builder.names(groups),
            devices: builder.names(devices),
            networks: builder.names(networks),
            sources: builder.addresses(sources),
            destinations: builder.addresses(destinations),
            services: builder.prefixes(services),
        }
    }
}

impl Rule {
    /// Whether some target has every service.
    fn offers_everything(&self) -> bool {
        let resources = &self.to.resources;
        self.to.any
            || !self.to.nets.written().is_empty()
            || resources.iter().any(|resource| resource.services.is_none())
    }
}

/// Who selects a value: one rule, or all the rules that lead to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Owner {
    Rule(u32),
    Shared(usize),
}

/// Ranges with inclusive ends, and who selects them.
type Ranges<T> = Vec<(T, T, Owner)>;

#[derive(Default)]
struct Nets {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl Nets {
    fn add(&mut self, net: IpNet, owner: Owner) {
        match net {
            IpNet::V4(net) => self.v4.push((net.network().to_bits(), net.broadcast().to_bits(), owner)),
            IpNet::V6(net) => self.v6.push((net.network().to_bits(), net.broadcast().to_bits(), owner)),
        }
    }

    fn add_all(&mut self, owner: Owner) {
        self.v4.push((0, u32::MAX, owner));
        self.v6.push((0, u128::MAX, owner));
    }
}

fn add_services(services: &mut Ranges<u32>, selectors: &[ServiceSelector], owner: Owner) {
    for selector in selectors {
        let (first, last) = match *selector {
            ServiceSelector::Any => (Service::Tcp(0), None),
            ServiceSelector::Tcp(first, last) => (Service::Tcp(first), Some(Service::Tcp(last))),
            ServiceSelector::Udp(first, last) => (Service::Udp(first), Some(Service::Udp(last))),
            ServiceSelector::Icmp => (Service::Icmp, Some(Service::Icmp)),
            ServiceSelector::Protocol(number) => (Service::Protocol(number), Some(Service::Protocol(number))),
        };
        let (first, last) = (service_number(first), last.map_or(u32::MAX, service_number));
        services.extend(aligned(first, last).map(|(first, last)| (first, last, owner)));
    }
}

/// Cuts a range into pieces like prefixes, at most two of each length, which are nested or apart whatever the ranges.
fn aligned(first: u32, last: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut next = Some(first);
    std::iter::from_fn(move || {
        let start = next.filter(|start| *start <= last)?;
        let ends = (0..=u32::BITS).rev().filter_map(|bits| {
            let rest = u32::MAX.checked_shr(u32::BITS - bits).unwrap_or_default();
            (start & rest == 0).then_some(start | rest)
        });
        let end = ends.into_iter().find(|end| *end <= last)?;
        next = end.checked_add(1);
        Some((start, end))
    })
}

#[derive(Default)]
struct Builder {
    /// The rules that each [`Owner::Shared`] stands for, ascending.
    shared: Vec<Vec<u32>>,
    /// The sets there are, by their owners: the addresses of a resource have one between them.
    known: HashMap<Vec<Owner>, Set>,
}

impl Builder {
    fn share(&mut self) -> usize {
        self.shared.push(Vec::new());
        self.shared.len() - 1
    }

    fn lead(&mut self, shared: usize, rule: u32) {
        if let Some(rules) = self.shared.get_mut(shared) {
            rules.push(rule);
        }
    }

    /// The set of the rules of sorted owners.
    fn set(&mut self, mut owners: Vec<Owner>) -> Set {
        owners.dedup();
        if let Some(set) = self.known.get(&owners) {
            return set.clone();
        }
        let mut rules = Vec::new();
        for owner in &owners {
            match owner {
                Owner::Rule(rule) => rules.push(*rule),
                Owner::Shared(shared) => rules.extend(self.shared.get(*shared).into_iter().flatten()),
            }
        }
        rules.sort_unstable();
        let set = Set::new(&rules);
        self.known.insert(owners, set.clone());
        set
    }

    fn names(&mut self, mut entries: Vec<(Arc<str>, Owner)>) -> HashMap<Arc<str>, Set> {
        entries.sort_unstable();
        let names = entries.chunk_by(|(a, _), (b, _)| a == b);
        let set = |entries: &[(Arc<str>, Owner)]| {
            let name = entries.first().map(|(name, _)| Arc::clone(name))?;
            Some((name, self.set(entries.iter().map(|(_, owner)| *owner).collect())))
        };
        names.filter_map(set).collect()
    }

    fn prefixes<T: Copy + Ord>(&mut self, mut ranges: Ranges<T>) -> Prefixes<T> {
        ranges.sort_unstable_by_key(|(first, last, owner)| (*first, Reverse(*last), *owner));
        let same = ranges.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1));
        let set = |ranges: &[(T, T, Owner)]| {
            let (first, last, _) = *ranges.first()?;
            Some((first, last, self.set(ranges.iter().map(|(_, _, owner)| *owner).collect())))
        };
        Prefixes::new(same.filter_map(set))
    }

    fn addresses(&mut self, nets: Nets) -> Addresses {
        Addresses { v4: self.prefixes(nets.v4), v6: self.prefixes(nets.v6) }
    }
}
