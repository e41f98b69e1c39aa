//! Addresses times services, as boxes of numbers.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ranges;
use crate::Service;
use crate::index::service_of;
use crate::set::{ServiceSet, TargetSet};

/// The most boxes that the targets of one rule are taken apart into.
const MAX_BOXES: usize = 1_024;

/// Every service there is, as numbers: TCP, UDP and ping, then the other protocols.
pub(crate) const EVERY_SERVICE: [(u32, u32); 2] = [(0, 2 << 16), (3 << 16, (3 << 16) + 255)];

/// All addresses from one to another with all services from one to another, the ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Box {
    v4: bool,
    addresses: (u128, u128),
    services: (u32, u32),
}

impl Box {
    fn new(net: IpNet, services: (u32, u32)) -> Self {
        let addresses = match net {
            IpNet::V4(net) => (net.network().to_bits().into(), net.broadcast().to_bits().into()),
            IpNet::V6(net) => (net.network().to_bits(), net.broadcast().to_bits()),
        };
        Self { v4: matches!(net, IpNet::V4(_)), addresses, services }
    }

    /// Its first address with its first service.
    pub(super) fn corner(&self) -> (IpAddr, Service) {
        let address = match u32::try_from(self.addresses.0) {
            Ok(bits) if self.v4 => IpAddr::V4(bits.into()),
            Ok(_) | Err(_) => IpAddr::V6(self.addresses.0.into()),
        };
        (address, service_of(self.services.0))
    }

    /// Whether they have something in common.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.v4 == other.v4
            && self.addresses.0 <= other.addresses.1
            && other.addresses.0 <= self.addresses.1
            && self.services.0 <= other.services.1
            && other.services.0 <= self.services.1
    }
}

/// What a rule with these targets and services leads to; `None` when that is too much to look at.
pub(super) fn of(targets: &TargetSet, services: Option<&ServiceSet>) -> Option<Vec<Box>> {
    let own = ranges(services);
    let mut boxes = Vec::new();
    let mut add = |net: IpNet, services: &[(u32, u32)]| {
        boxes.extend(services.iter().map(|services| Box::new(net, *services)));
        (boxes.len() <= MAX_BOXES).then_some(())
    };
    if targets.any {
        add(IpNet::V4(ipnet::Ipv4Net::default()), &own)?;
        add(IpNet::V6(ipnet::Ipv6Net::default()), &own)?;
    }
    for net in targets.nets.written() {
        add(*net, &own)?;
    }
    for resource in &targets.resources {
        let offered = common(&own, &ranges(resource.services.as_ref()));
        for net in resource.addresses.written() {
            add(*net, &offered)?;
        }
    }
    Some(boxes)
}

/// What two lists of ranges have in common.
pub(super) fn common(a: &[(u32, u32)], b: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a.0.max(b.0), a.1.min(b.1))));
    pairs.filter(|(first, last)| first <= last).collect()
}

/// What is left of `boxes` without `hole`; `None` when that is more than `most` pieces.
pub(super) fn subtract(boxes: Vec<Box>, hole: Box, most: usize) -> Option<Vec<Box>> {
    let mut left = Vec::with_capacity(boxes.len());
    for piece in boxes {
        if !piece.meets(&hole) {
            left.push(piece);
            continue;
        }
        let (first, last) = (piece.addresses.0.max(hole.addresses.0), piece.addresses.1.min(hole.addresses.1));
        // On both sides whole columns, and above and below within the columns of the hole.
        if piece.addresses.0 < first {
            left.push(Box { addresses: (piece.addresses.0, first - 1), ..piece });
        }
        if last < piece.addresses.1 {
            left.push(Box { addresses: (last + 1, piece.addresses.1), ..piece });
        }
        if piece.services.0 < hole.services.0 {
            left.push(Box { addresses: (first, last), services: (piece.services.0, hole.services.0 - 1), ..piece });
        }
        if hole.services.1 < piece.services.1 {
            left.push(Box { addresses: (first, last), services: (hole.services.1 + 1, piece.services.1), ..piece });
        }
    }
    (left.len() <= most).then_some(left)
}
