//! Which shard a flow of the TUN device lives in.
//!
//! The kernel spreads packets over the queues of the device by addresses and ports. Fragments show no ports, so what is put
//! together of them may come out in another shard than the small datagrams of the same flow: it is moved to where the
//! flow is.
//!
//! A table of fixed size that forgets: a flow whose place is taken by another is looked for in vain and may then live in
//! two shards, as two associations. It is written when a flow is entered among those of its shard and when it leaves
//! them, so that it holds nothing of flows that ended or never opened, and read when one opens and for packets that came
//! in fragments.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use portcullis_netstack::FiveTuple;

/// Flows that are remembered, at the most: 512 KiB.
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 16;
/// Bits of a slot that say which shard; the others tell flows apart. An empty slot is 0, so shards count from 1.
const SHARD_BITS: u32 = 16;

/// What all shards know of each other's flows. Plain loads and stores: a lost update costs what a forgotten flow does.
#[derive(Debug)]
pub(crate) struct Places {
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl Default for Places {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(), hasher: RandomState::new() }
    }
}

impl Places {
    /// The shard of a flow that was opened, if it is remembered.
    pub(super) fn find(&self, tuple: &FiveTuple) -> Option<usize> {
        let (slot, flow) = self.slot(tuple);
        let found = slot.load(Ordering::Relaxed);
        let shard = usize::try_from(found & ((1 << SHARD_BITS) - 1)).ok()?;
        (found >> SHARD_BITS == flow).then_some(shard)?.checked_sub(1)
    }

    /// Says that a flow lives in `shard`.
    pub(super) fn take(&self, tuple: &FiveTuple, shard: usize) {
        let (slot, flow) = self.slot(tuple);
        slot.store(flow << SHARD_BITS | (shard as u64 + 1), Ordering::Relaxed);
    }

    /// Says that a flow lives in `shard` no longer.
    pub(super) fn release(&self, tuple: &FiveTuple, shard: usize) {
        if self.find(tuple) == Some(shard) {
            self.slot(tuple).0.store(0, Ordering::Relaxed);
        }
    }

    /// How many flows are remembered.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count()
    }

    fn slot(&self, tuple: &FiveTuple) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(tuple);
        let place = usize::try_from(hash % SLOTS as u64).unwrap_or(0);
        (self.slots.get(place).expect("a remainder is less than its divisor"), hash >> SLOT_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_netstack::Protocol;

    fn tuple(port: u16) -> FiveTuple {
        FiveTuple {
            protocol: Protocol::Udp,
            source: [192, 168, 7, 2].into(),
            source_port: port,
            destination: [10, 20, 0, 10].into(),
            destination_port: 53,
        }
    }

    #[test]
    fn a_flow_is_where_it_was_last_until_it_leaves() {
        let places = Places::default();
        assert_eq!(places.find(&tuple(1)), None);
        places.take(&tuple(1), 3);
        places.release(&tuple(1), 0);
        assert_eq!(places.find(&tuple(1)), Some(3), "another's to release");
        places.take(&tuple(1), 0);
        places.release(&tuple(1), 3);
        assert_eq!(places.find(&tuple(1)), Some(0), "it has moved");
        places.release(&tuple(1), 0);
        assert_eq!((places.find(&tuple(1)), places.len()), (None, 0));
    }

    #[test]
    fn a_forgotten_flow_is_nobodys_and_never_a_strangers() {
        let places = Places::default();
        let (early, late) = (0..30_000, 30_000..u16::MAX);
        early.clone().for_each(|port| places.take(&tuple(port), 1));
        late.clone().for_each(|port| places.take(&tuple(port), 2));
        assert!(early.clone().filter_map(|port| places.find(&tuple(port))).all(|shard| shard == 1));
        assert!(late.clone().all(|port| places.find(&tuple(port)).is_none_or(|shard| shard == 2)));
        assert!(late.clone().filter(|port| places.find(&tuple(*port)) == Some(2)).count() > 20_000);
        // Whoever leaves, and was forgotten, takes no stranger along; in the end nothing is left.
        early.for_each(|port| places.release(&tuple(port), 1));
        assert!(late.clone().filter(|port| places.find(&tuple(*port)) == Some(2)).count() > 20_000);
        late.for_each(|port| places.release(&tuple(port), 2));
        assert_eq!(places.len(), 0);
    }
}
