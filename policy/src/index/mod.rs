//! Which rules may match a request, without asking them all.
//!
//! Every value that a selector can have (a user, a group, a device, a network, a prefix, a range of services) has the set of the rules that
//! select it. A request has a few values of each kind, so the rules that may match are those in the union of the sets of its
//! sources, in the union of those of the prefixes that hold its destination, and in the union of those of the ranges that hold
//! its service. Exceptions, postures and the time are not indexed: whoever asks for candidates asks each of them itself.
//!
//! - A [`Set`] has a bit for each rule, in words of 64 and pages of 64 words; words that are zero take little room, and one bit
//!   of a page tells of a whole word. Unions and what they have in common are taken word by word and only as far as somebody
//!   asks, so nothing is allocated and a rule that decides early ends the search early ([`Common`]).
//! - [`Prefixes`] finds every prefix that holds an address with one binary search and a walk outwards. Services are numbers with
//!   ranges cut into pieces like prefixes, so that a port is looked up in the same way, and memory stays in proportion to what
//!   is written however ranges overlap.
//! - The addresses of a resource share one set, however many rules lead to it.
//!
//! For 10,000 rules between groups and prefixes of their own the index takes 0.9 MB beside 7.4 MB for the rules, and for as many
//! to 2,500 resources 1.2 MB. Beyond what each value takes, it has hardly more than a bit for each pair of a rule and a value. The
//! slowest search looks at every word: in every row of 64 some rules of the user and some to the destination, and none for both.

mod build;
mod common;
mod prefixes;
mod set;

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::{Request, Service};
use common::{Common, Union};
use prefixes::Prefixes;
use set::Set;

/// How many sets of one request are taken into account for each kind; with more, those of that kind narrow nothing.
const SOURCES: usize = 64;
const DESTINATIONS: usize = 32;
const SERVICES: usize = 32;

/// The sets of every value.
#[derive(Debug)]
pub(crate) struct Index {
    rules: u32,
    users: HashMap<Arc<str>, Set>,
    groups: HashMap<Arc<str>, Set>,
    devices: HashMap<Arc<str>, Set>,
    networks: HashMap<Arc<str>, Set>,
    sources: Addresses,
    destinations: Addresses,
    services: Prefixes<u32>,
}

#[derive(Debug)]
struct Addresses {
    v4: Prefixes<u32>,
    v6: Prefixes<u128>,
}

impl Addresses {
    fn add_to<'s, const N: usize>(&'s self, union: &mut Union<'s, N>, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4.at(address.to_bits()).for_each(|set| union.add(set)),
            IpAddr::V6(address) => self.v6.at(address.to_bits()).for_each(|set| union.add(set)),
        }
    }
}

impl Index {
    /// Calls `ask` with the rules that may match, ascending, until it returns something: every rule whose `from`, `to` and
    /// `services` all match, and few others.
    pub(crate) fn find<'i, T>(&'i self, request: &Request<'_>, ask: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let Request { identity, source, destination, service } = *request;
        let mut common = Common::<DESTINATIONS, SERVICES, SOURCES>::default();
        let Common(destinations, services, sources) = &mut common;
        self.destinations.add_to(destinations, destination);
        self.services.at(service_number(service)).for_each(|set| services.add(set));
        let mut add = |sets: &'i HashMap<Arc<str>, Set>, name| {
            if let Some(set) = sets.get(name) {
                sources.add(set);
            }
        };
        add(&self.users, &identity.user);
        add(&self.devices, &identity.device);
        add(&self.networks, &identity.network);
        identity.groups.iter().for_each(|group| add(&self.groups, group));
        self.sources.add_to(sources, source);
        common.find(self.rules, ask)
    }
}

/// Services as numbers, so that a range of ports is a range of numbers.
pub(crate) fn service_number(service: Service) -> u32 {
    let (kind, number) = match service {
        Service::Tcp(port) => (0, port),
        Service::Udp(port) => (1, port),
        Service::Icmp => (2, 0),
        Service::Protocol(number) => (3, u16::from(number)),
    };
    kind << 16 | u32::from(number)
}

/// The service that has a number.
pub(crate) fn service_of(number: u32) -> Service {
    let port = u16::try_from(number & 0xffff).unwrap_or_default();
    match number >> 16 {
        0 => Service::Tcp(port),
        1 => Service::Udp(port),
        2 => Service::Icmp,
        _ => Service::Protocol(u8::try_from(port).unwrap_or(u8::MAX)),
    }
}

#[cfg(test)]
mod tests;
