//! Which flows' off-ramp sockets became ready.
//!
//! A shard polls every socket itself, from one task. Each flow has a waker of its own that only writes the flow's
//! name on a list and wakes that task: no task, no allocation and no scan per event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;
use portcullis_netstack::FlowId;

/// The list. Wakers live on the shard's own thread, so the lock is never contended.
#[derive(Debug, Default)]
pub(crate) struct ReadyList {
    flows: Mutex<Vec<FlowId>>,
    shard: AtomicWaker,
}

impl ReadyList {
    /// Notes whom to wake.
    pub(crate) fn register(&self, waker: &Waker) {
        self.shard.register(waker);
    }

    /// Moves the names into `into`.
    pub(crate) fn take(&self, into: &mut Vec<FlowId>) {
        into.append(&mut self.flows.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Puts one flow on the list.
#[derive(Debug)]
pub(crate) struct FlowWaker {
    flow: FlowId,
    listed: AtomicBool,
    list: Arc<ReadyList>,
}

impl FlowWaker {
    /// A waker for `flow`.
    pub(crate) fn new(flow: FlowId, list: &Arc<ReadyList>) -> Arc<Self> {
        Arc::new(Self { flow, listed: AtomicBool::new(false), list: Arc::clone(list) })
    }

    /// The flow is being looked at: the next wake lists it again.
    pub(crate) fn clear(&self) {
        self.listed.store(false, Ordering::Relaxed);
    }
}

impl Wake for FlowWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::Relaxed) {
            self.list.flows.lock().unwrap_or_else(PoisonError::into_inner).push(self.flow);
            self.list.shard.wake();
        }
    }
}
