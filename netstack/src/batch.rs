//! Packets on their way out, gathered in one arena and handed to the on-ramps in one go.

use std::ops::Range;

use crate::segment::{self, Offload};
use crate::tuple::IngressId;

/// Most bytes of the headers of a TCP packet: IPv6 without extensions, TCP with all its options.
const HEADERS: usize = 40 + 60;

/// One packet of a [`PacketBatch`].
#[derive(Debug, Clone, Copy)]
struct Entry {
    to: IngressId,
    start: usize,
    end: usize,
    offload: Option<Offload>,
}

/// Whole IP packets towards clients. The arena is kept between turns, so no packet costs an allocation.
#[derive(Debug)]
pub struct PacketBatch {
    /// Of these, the first `used` are packets of this batch; what follows is left from earlier ones.
    bytes: Vec<u8>,
    used: usize,
    entries: Vec<Entry>,
    limit: usize,
}

impl PacketBatch {
    /// A batch that calls itself full at `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), used: 0, entries: Vec::new(), limit }
    }

    /// Whether no more packets should be made before this batch is sent.
    pub fn is_full(&self) -> bool {
        self.used >= self.limit
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Appends a complete packet of `len` bytes, zeroed, and lets `fill` write it.
    pub fn push_with<R>(&mut self, to: IngressId, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.push(to, len, len, None, fill)
    }

    /// Appends a TCP or UDP packet that lacks its checksum, and may be a super-packet.
    pub(crate) fn push_offloaded_with<R>(
        &mut self,
        to: IngressId,
        len: usize,
        offload: Offload,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        // The payload is written over whole; zeroing it first would cost as much again.
        self.push(to, len, HEADERS.min(len), Some(offload), fill)
    }

    /// Appends a packet that is there already, and lets `change` write in it.
    pub(crate) fn push_copy_with(
        &mut self,
        to: IngressId,
        packet: &[u8],
        offload: Option<Offload>,
        change: impl FnOnce(&mut [u8]),
    ) {
        self.push(to, packet.len(), 0, offload, |copy| {
            copy.copy_from_slice(packet);
            change(copy);
        });
    }

    /// Lets `change` write in each of the last `count` packets.
    pub(crate) fn each_of_last(&mut self, count: usize, mut change: impl FnMut(&mut [u8])) {
        let first = self.entries.len().saturating_sub(count);
        for entry in self.entries.get(first..).unwrap_or_default() {
            if let Some(packet) = self.bytes.get_mut(entry.start..entry.end) {
                change(packet);
            }
        }
    }

    fn push<R>(
        &mut self,
        to: IngressId,
        len: usize,
        zeroed: usize,
        offload: Option<Offload>,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let start = self.used;
        let end = start + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.used = end;
        self.entries.push(Entry { to, start, end, offload });
        let packet = self.bytes.get_mut(start..end).unwrap_or_default();
        packet.get_mut(..zeroed).unwrap_or_default().fill(0);
        fill(packet)
    }

    /// Puts parts of the last packet in its place. Each has its first `headers` bytes, the bytes of what follows that the
    /// part names, and an offload of its own; `mend` makes the headers true.
    pub(crate) fn replace_last(
        &mut self,
        headers: usize,
        parts: impl Iterator<Item = (Range<usize>, Offload)>,
        mut mend: impl FnMut(&mut [u8], Range<usize>),
    ) {
        let Some(whole) = self.entries.pop() else { return };
        let from = whole.start;
        let mut any = false;
        for (part, offload) in parts {
            any = true;
            let start = self.used;
            let end = start + headers + part.len();
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            self.bytes.copy_within(from..from + headers, start);
            self.bytes.copy_within(from + headers + part.start..from + headers + part.end, start + headers);
            self.used = end;
            self.entries.push(Entry { to: whole.to, start, end, offload: Some(offload) });
            mend(self.bytes.get_mut(start..end).unwrap_or_default(), part);
        }
        if !any {
            self.used = whole.start;
        }
    }

    /// The packets in the order they were made. One with an [`Offload`] is not complete: its segments are to be made
    /// by [`segment::segments`], or its checksum prepared for somebody who can.
    pub fn drain(&mut self, mut each: impl FnMut(IngressId, &mut [u8], Option<Offload>)) {
        for entry in &self.entries {
            if let Some(packet) = self.bytes.get_mut(entry.start..entry.end) {
                each(entry.to, packet, entry.offload);
            }
        }
        self.clear();
    }

    /// The packets as a link carries them: super-packets in segments, with checksums.
    pub fn drain_complete(&mut self, mut each: impl FnMut(IngressId, &[u8])) {
        let mut scratch = Vec::new();
        self.drain(|to, packet, offload| match offload {
            Some(offload) => segment::segments(packet, offload, &mut scratch, |segment| each(to, segment)),
            None => each(to, packet),
        });
    }

    /// Forgets the packets, keeps the memory.
    fn clear(&mut self) {
        self.used = 0;
        self.entries.clear();
    }
}
