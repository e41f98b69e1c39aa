//! WireGuard peers that packets of forwarded flows go on to. Each has a number as a way out, which is not the one it has as
//! an on-ramp: what it sends of its own accord and what it sends back are different flows, and it may live in another shard.

use std::collections::HashMap;

use portcullis_netstack::IngressId;

use crate::onramp::wireguard::owners::ShardIndex;

/// Numbers from here on are theirs; a shard has fewer peers.
const FIRST: u32 = 1 << 31;

/// Public keys and numbers. A key keeps its number, so that no packet that waits to be sent finds another peer there: as
/// many as there are devices and sites with flows towards them.
#[derive(Debug, Default)]
pub(super) struct Hops {
    hops: Vec<Hop>,
    by_key: HashMap<[u8; 32], IngressId>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Hop {
    pub(super) key: [u8; 32],
    /// Where it was last seen to live.
    pub(super) shard: Option<ShardIndex>,
}

impl Hops {
    /// The number of the peer with this public key, which lives in `shard`; a new one where it has none.
    pub(super) fn number(&mut self, key: &[u8; 32], shard: ShardIndex) -> IngressId {
        let Self { hops, by_key } = self;
        let number = *by_key.entry(*key).or_insert_with(|| {
            hops.push(Hop { key: *key, shard: None });
            IngressId(FIRST.saturating_add(u32::try_from(hops.len() - 1).unwrap_or(u32::MAX)))
        });
        if let Some(hop) = place(number).and_then(|place| hops.get_mut(place)) {
            hop.shard = Some(shard);
        }
        number
    }

    /// Looks where they live now.
    pub(super) fn find_again(&mut self, owner: impl Fn(&[u8; 32]) -> Option<ShardIndex>) {
        for hop in &mut self.hops {
            hop.shard = owner(&hop.key);
        }
    }

    /// The number of the peer with this public key.
    pub(super) fn find(&self, key: &[u8; 32]) -> Option<IngressId> {
        self.by_key.get(key).copied()
    }

    /// The peer with this number.
    pub(super) fn get(&self, number: IngressId) -> Option<&Hop> {
        self.hops.get(place(number)?)
    }
}

fn place(number: IngressId) -> Option<usize> {
    number.0.checked_sub(FIRST).map(|place| place as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_number() {
        let mut hops = Hops::default();
        let first = hops.number(&[1; 32], 0);
        assert_ne!(hops.number(&[2; 32], 1), first);
        assert_eq!((hops.number(&[1; 32], 3), hops.find(&[1; 32])), (first, Some(first)));
        let found = |hops: &Hops, number| hops.get(number).map(|hop| (hop.key, hop.shard));
        assert_eq!((found(&hops, first), found(&hops, IngressId(1))), (Some(([1; 32], Some(3))), None));
        hops.find_again(|_| None);
        assert_eq!(found(&hops, first), Some(([1; 32], None)));
        assert_eq!(hops.find(&[3; 32]), None);
    }
}
