//! Which shard a flow lives in whose packets come back by the TUN device.
//!
//! The kernel keeps a flow in the queue it was last written to, but forgets that after three seconds, and then goes by a
//! hash alone: what comes back may come to any shard. Unlike [`Places`](super::places::Places) this table forgets nothing,
//! for what comes back belongs to no device and would be dropped. Its lock is taken when such a flow begins and ends, and
//! for packets that arrived in the wrong place.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use portcullis_netstack::FiveTuple;

/// What all shards know of each other's forwarded flows, by what comes back of them. As many as there may be flows.
#[derive(Debug, Default)]
pub(crate) struct Returns(RwLock<HashMap<FiveTuple, usize>>);

impl Returns {
    /// The shard of the flow that a packet comes back to.
    pub(super) fn find(&self, tuple: &FiveTuple) -> Option<usize> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(tuple).copied()
    }

    /// Says that what comes back as `tuple` belongs to `shard`.
    pub(super) fn take(&self, tuple: FiveTuple, shard: usize) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(tuple, shard);
    }

    /// Says that it does no longer.
    pub(super) fn release(&self, tuple: &FiveTuple, shard: usize) {
        let mut flows = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if flows.get(tuple) == Some(&shard) {
            flows.remove(tuple);
        }
    }
}
