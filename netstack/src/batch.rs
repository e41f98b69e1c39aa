//! Packets on their way out, gathered in one arena and handed to the on-ramps in one go.

use crate::tuple::IngressId;

/// One packet of a [`PacketBatch`].
#[derive(Debug, Clone, Copy)]
struct Entry {
    to: IngressId,
    start: usize,
    end: usize,
}

/// Whole IP packets towards clients. The arena is kept between turns, so no packet costs an allocation.
#[derive(Debug)]
pub struct PacketBatch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    limit: usize,
}

impl PacketBatch {
    /// A batch that calls itself full at `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), entries: Vec::new(), limit }
    }

    /// Whether no more packets should be made before this batch is sent.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= self.limit
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Appends a packet of `len` bytes, zeroed, and lets `fill` write it.
    pub fn push_with<R>(&mut self, to: IngressId, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let start = self.bytes.len();
        let end = start + len;
        self.bytes.resize(end, 0);
        self.entries.push(Entry { to, start, end });
        fill(self.bytes.get_mut(start..).unwrap_or_default())
    }

    /// The packets in the order they were made.
    pub fn iter(&self) -> impl Iterator<Item = (IngressId, &[u8])> {
        self.entries.iter().map(|e| (e.to, self.bytes.get(e.start..e.end).unwrap_or_default()))
    }

    /// Forgets the packets, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }
}
