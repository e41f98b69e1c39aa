//! Services as numbers on one line, so that they can be cut into ranges like addresses.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::Service;
use crate::set::ServiceSet;

const UDP: u32 = 1 << 16;
const ICMP: u32 = 2 << 16;
const PROTOCOL: u32 = ICMP + 1;
/// The last place on the line.
pub(super) const LAST: u32 = PROTOCOL + 255;
/// The protocols and their first and last places.
const PARTS: [(u32, u32); 4] = [(0, UDP - 1), (UDP, ICMP - 1), (ICMP, ICMP), (PROTOCOL, LAST)];

/// Services of one protocol that follow each other, or every service. Written as a policy writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceRange {
    first: u32,
    last: u32,
}

impl ServiceRange {
    /// Whether `service` is one of them.
    pub fn contains(&self, service: Service) -> bool {
        (self.first..=self.last).contains(&place(service))
    }
}

impl fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, base, end) = match self.first {
            0 if self.last == LAST => return f.write_str("*"),
            0..UDP => ("tcp", 0, UDP - 1),
            UDP..ICMP => ("udp", UDP, ICMP - 1),
            ICMP => return f.write_str("icmp"),
            _ => ("proto", PROTOCOL, LAST),
        };
        let (first, last) = (self.first - base, self.last - base);
        match (first, last) {
            (0, _) if self.last == end => write!(f, "{name}/*"),
            (first, last) if first == last => write!(f, "{name}/{first}"),
            (first, last) => write!(f, "{name}/{first}-{last}"),
        }
    }
}

impl Serialize for ServiceRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn place(service: Service) -> u32 {
    match service {
        Service::Tcp(port) => u32::from(port),
        Service::Udp(port) => UDP + u32::from(port),
        Service::Icmp => ICMP,
        Service::Protocol(number) => PROTOCOL + u32::from(number),
    }
}

/// The service at a place of the line.
pub(super) fn at(place: u32) -> Service {
    let low = |base: u32| u16::try_from(place - base).unwrap_or_default();
    match place {
        0..UDP => Service::Tcp(low(0)),
        UDP..ICMP => Service::Udp(low(UDP)),
        ICMP => Service::Icmp,
        _ => Service::Protocol(u8::try_from(place - PROTOCOL).unwrap_or_default()),
    }
}

/// The places at which `set` may begin or cease to hold services.
pub(super) fn edges(set: &ServiceSet, edges: &mut Vec<u32>) {
    let (tcp, udp, protocols) = (set.tcp(), set.udp(), set.protocols());
    edges.extend(PARTS.map(|(first, _)| first));
    edges.extend(tcp.iter().flat_map(|(first, last)| [u32::from(*first), u32::from(*last) + 1]));
    edges.extend(udp.iter().flat_map(|(first, last)| [UDP + u32::from(*first), UDP + u32::from(*last) + 1]));
    edges
        .extend(protocols.iter().flat_map(|number| [PROTOCOL + u32::from(*number), PROTOCOL + u32::from(*number) + 1]));
}

/// Ranges of the line, joined where they touch and cut where another protocol begins.
pub(super) fn ranges(spans: &[(u32, u32)]) -> Vec<ServiceRange> {
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for (first, last) in spans {
        match joined.last_mut() {
            Some(before) if before.1 + 1 == *first => before.1 = *last,
            Some(_) | None => joined.push((*first, *last)),
        }
    }
    if joined == [(0, LAST)] {
        return vec![ServiceRange { first: 0, last: LAST }];
    }
    let cut = |(first, last): (u32, u32)| {
        PARTS.into_iter().filter_map(move |part| {
            let (first, last) = (first.max(part.0), last.min(part.1));
            (first <= last).then_some(ServiceRange { first, last })
        })
    };
    joined.into_iter().flat_map(cut).collect()
}
