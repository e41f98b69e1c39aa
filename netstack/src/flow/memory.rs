//! How much of its two rings a TCP flow may touch.
//!
//! A ring is reserved whole and costs nothing until it is written to, but what was touched once stays. So not what waits
//! in a ring is bounded but how far into it a flow writes: [`RING_FLOOR`] is everybody's; beyond that a flow asks its
//! [`RingMemory`], each time for as much again as it has. A flow that gets no more works on, in a smaller ring:
//!
//! - Towards the client the ring begins anew whenever everything was acknowledged, so the end of what is allowed acts as
//!   the end of the ring.
//! - From the client smoltcp goes round the whole ring. There no more than [`RING_FLOOR`] may wait, the rest is cut off
//!   and the client sends it again; and pages that the target took everything of are given back at once.

use crate::limits::RING_FLOOR;

/// Who decides whether a flow's rings may grow.
pub trait RingMemory {
    /// Asks for `bytes` more. When there are none it may be asked again later.
    fn take(&self, bytes: usize) -> bool;

    /// Returns bytes that were [taken](Self::take).
    fn give_back(&self, bytes: usize);

    /// Nobody will read these bytes any more. Their memory may go back to the system; what they hold afterwards does not
    /// matter.
    fn discard(&self, bytes: &mut [u8]);
}

/// No bound at all.
impl RingMemory for () {
    fn take(&self, _: usize) -> bool {
        true
    }

    fn give_back(&self, _: usize) {}

    fn discard(&self, _: &mut [u8]) {}
}

/// Bytes in a page of memory, or a multiple of that: what can be given back at once.
pub(crate) const PAGE: usize = 4096;

/// What the rings of one flow may touch.
pub(crate) struct Allowance {
    memory: Box<dyn RingMemory + Send>,
    capacity: usize,
    /// Of the ring towards the client.
    down: usize,
    /// Of the ring from the client.
    up: usize,
}

impl Allowance {
    /// For rings of `capacity` bytes each.
    pub(crate) fn new(memory: Box<dyn RingMemory + Send>, capacity: usize) -> Self {
        let floor = RING_FLOOR.min(capacity);
        Self { memory, capacity, down: floor, up: floor }
    }

    fn grown(&self, allowed: usize) -> Option<usize> {
        let grown = (allowed * 2).min(self.capacity);
        (grown > allowed && self.memory.take(grown - allowed)).then_some(grown)
    }

    /// How many bytes may be written to the ring towards the client from `position` on.
    pub(crate) fn room_down(&mut self, position: usize) -> usize {
        if position >= self.down
            && let Some(grown) = self.grown(self.down)
        {
            self.down = grown;
        }
        if self.down == self.capacity { usize::MAX } else { self.down - position.min(self.down) }
    }

    /// Whether the client may write to its ring up to `reach`, counted from the beginning of the connection.
    pub(crate) fn may_reach_up(&mut self, reach: u64) -> bool {
        while self.is_confined_up(reach) {
            let Some(grown) = self.grown(self.up) else { return false };
            self.up = grown;
        }
        true
    }

    /// Whether a client that wrote up to `reach` goes round a ring that it may not touch as a whole.
    pub(crate) fn is_confined_up(&self, reach: u64) -> bool {
        self.up < self.capacity && reach > self.up as u64
    }

    /// Whether there is something that a flow without bytes towards the client could do without.
    pub(crate) fn is_large_down(&self) -> bool {
        self.down > RING_FLOOR
    }

    /// The ring towards the client is empty and stays so for a while: `ring` is all of it.
    pub(crate) fn shrink_down(&mut self, ring: &mut [u8]) {
        let floor = RING_FLOOR.min(self.capacity);
        self.memory.discard(ring.get_mut(floor..).unwrap_or_default());
        self.memory.give_back(self.down - floor);
        self.down = floor;
    }

    /// Bytes of one ring.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The client's bytes in `part` of its ring are not needed any more.
    pub(crate) fn discard(&self, part: &mut [u8]) {
        self.memory.discard(part);
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let floor = RING_FLOOR.min(self.capacity);
        self.memory.give_back(self.down + self.up - 2 * floor);
    }
}
