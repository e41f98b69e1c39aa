//! What a connection does with its two rings when they may not be touched as a whole, see [`Allowance`].
//!
//! [`Allowance`]: crate::flow::memory::Allowance

use std::time::Instant;

use smoltcp::socket::tcp::Socket;

use super::super::memory::PAGE;
use super::super::recovery::wrap;
use super::TcpSocket;
use crate::limits::RING_FLOOR;
use crate::packet::{TcpSegment, build};

/// A segment without its end: the first `len` bytes of its payload, and no FIN.
pub(super) fn cut(packet: &[u8], segment: &TcpSegment<'_>, len: usize) -> Vec<u8> {
    const FLAGS: usize = 13;
    const FIN_AND_PUSH: u8 = 0x09;
    const IPV6_HEADER: usize = 40;
    let headers = packet.len() - segment.payload.len();
    let mut packet = packet.get(..headers + len).unwrap_or_default().to_vec();
    let flags = (headers - segment.options.len() - build::TCP_HEADER) + FLAGS;
    if let Some(flags) = packet.get_mut(flags) {
        *flags &= !FIN_AND_PUSH;
    }
    let (at, before) = if packet.first().is_some_and(|first| first >> 4 == 4) { (2, 0) } else { (4, IPV6_HEADER) };
    let total = u16::try_from(packet.len() - before).unwrap_or(u16::MAX).to_be_bytes();
    // smoltcp trusts the checksums of what it is fed.
    if let Some(length) = packet.get_mut(at..at + total.len()) {
        length.copy_from_slice(&total);
    }
    packet
}

impl TcpSocket {
    /// How many bytes of a segment the client's ring may take. Where the flow was not let grow, those that are farther
    /// than [`RING_FLOOR`] from what the target takes next may not.
    pub(super) fn admit(&mut self, segment: &TcpSegment<'_>) -> usize {
        let len = segment.payload.len();
        let begin = segment.sequence.wrapping_add(u32::from(segment.syn)).wrapping_sub(self.first_sequence);
        // From the next byte the target takes; before it is what came once already.
        let ahead = begin.wrapping_sub(1).wrapping_sub(self.taken).cast_signed();
        let capacity = self.allowance.capacity();
        let end = usize::try_from(i64::from(ahead) + len as i64).unwrap_or(0).min(capacity);
        if len == 0 || end == 0 || usize::try_from(ahead).is_ok_and(|ahead| ahead >= capacity) {
            // Nothing of it will be in the ring.
            return len;
        }
        self.reach = self.reach.max(u64::from(self.taken) + end as u64);
        if self.allowance.may_reach_up(self.reach) {
            return len;
        }
        let most = i64::try_from(RING_FLOOR).unwrap_or(i64::MAX) - i64::from(ahead);
        usize::try_from(most).unwrap_or(0).min(len)
    }

    /// Lets `write` take bytes of the client from the ring; it returns how many it took. `None`: there is nothing.
    pub(crate) fn recv_with<R>(
        &mut self,
        now: Instant,
        write: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Option<(usize, R)> {
        let socket: &mut Socket<'_> = self.sockets.get_mut(self.handle);
        let (allowance, reach, written) = (&self.allowance, self.reach, self.written);
        let mut waiting = socket.recv_queue();
        if waiting <= written || !socket.can_recv() {
            return None;
        }
        // The end of the ring: what is new is at its beginning.
        let at_end = |ring: &mut [u8]| if ring.len() <= written { (ring.len(), ring.len()) } else { (0, 0) };
        let passed = if written > 0 { socket.recv(at_end).ok()? } else { 0 };
        let written = written - passed;
        waiting -= passed;
        let taken = socket.recv(|ring| {
            let (len, result) = write(ring.get_mut(written..).unwrap_or_default());
            let all = written + len;
            let used = if allowance.is_confined_up(reach) && !(all == ring.len() && all < waiting) {
                // Up to the last whole page: what is left of it can be given back only with the rest.
                all - (ring.as_ptr().addr() + all).rem_euclid(PAGE).min(all)
            } else {
                all
            };
            if allowance.is_confined_up(reach) {
                allowance.discard(ring.get_mut(..used).unwrap_or_default());
            }
            (used, (used, len, result))
        });
        let (used, len, result) = taken.ok()?;
        self.taken = self.taken.wrapping_add(wrap(passed + used));
        self.written = written + len - used;
        if len > 0 {
            self.last_active = now;
        }
        Some((len, result))
    }

    /// Takes out of the ring what the target has already.
    pub(super) fn complete(&mut self) {
        let written = std::mem::take(&mut self.written);
        // In two pieces where it goes round the end of the ring.
        let mut left = written;
        while left > 0 {
            let taken = self.socket().recv(|ring| (ring.len().min(left), ring.len().min(left)));
            match taken {
                Ok(taken @ 1..) => left -= taken,
                Ok(0) | Err(_) => break,
            }
        }
        self.taken = self.taken.wrapping_add(wrap(written));
    }

    /// Whether the ring towards the client holds nothing but memory.
    pub(super) fn may_shrink(&mut self) -> bool {
        self.allowance.is_large_down() && self.socket().send_queue() == 0 && self.socket().may_send()
    }

    /// Gives back what the empty ring towards the client has touched.
    pub(super) fn shrink(&mut self) {
        let allowance = &mut self.allowance;
        let socket: &mut Socket<'_> = self.sockets.get_mut(self.handle);
        // Nothing is in it, so it is all there, from its beginning on.
        let shrunk = socket.send(|ring| {
            allowance.shrink_down(ring);
            (0, ())
        });
        debug_assert!(shrunk.is_ok(), "it may send");
    }
}
