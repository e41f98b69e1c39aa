//! What the buffers of a flow may have, out of what its device may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use portcullis_netstack::RingMemory;

use crate::limits::{Owner, Resource};
use crate::metrics::counters::ShardCounters;
use crate::sys;

/// The memory of one flow, which outlives the flow as long as its rings do.
#[derive(Debug)]
pub(super) struct FlowMemory {
    owner: Arc<Owner>,
    counters: Arc<ShardCounters>,
    /// A flow that gets no more asks again and again, and counts once.
    refused: AtomicBool,
}

impl FlowMemory {
    /// Nothing yet.
    pub(super) fn new(owner: Arc<Owner>, counters: Arc<ShardCounters>) -> Self {
        Self { owner, counters, refused: AtomicBool::new(false) }
    }
}

impl RingMemory for FlowMemory {
    fn take(&self, bytes: usize) -> bool {
        match self.owner.take(Resource::Buffered, bytes) {
            Ok(()) => true,
            Err(limit) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    self.counters.limit_reached(limit);
                }
                false
            }
        }
    }

    fn give_back(&self, bytes: usize) {
        self.owner.give_back(Resource::Buffered, bytes);
    }

    fn discard(&self, bytes: &mut [u8]) {
        sys::discard(bytes);
    }
}
