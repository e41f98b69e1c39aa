//! Connections of our own, and bytes between them and those of clients.

use std::time::Instant;

use super::{Ingress, Stack};
use crate::device::FlowLink;
use crate::drop_reason::DropReason;
use crate::flow::memory::{Allowance, RingMemory};
use crate::flow::tcp::{Rings, TcpFlow, TcpSocket, stack_time};
use crate::flow::{CloseCause, FlowKind, Traffic};
use crate::packet::{IcmpKind, IcmpMessage};
use crate::tuple::{FiveTuple, FlowId, FlowKey, IngressId};

impl Stack {
    /// Opens a TCP connection of our own, by `to`, to where what comes back with `tuple` comes from: its source is the
    /// target. It is a flow as any other, whose client is the target. The SYN leaves when the flow is next
    /// [transmitted](Self::transmit); the flow [is established](Self::is_established) when the target has answered, and has
    /// a [cause](Self::cause) when that refuses, or says nothing until `answer_by`. `seed` and `memory` are as of
    /// [`accept`](Self::accept). `None`: another flow waits for the same packets.
    pub fn connect(
        &mut self,
        (now, answer_by): (Instant, Instant),
        to: Ingress,
        tuple: FiveTuple,
        seed: u64,
        memory: Box<dyn RingMemory + Send>,
    ) -> Option<FlowId> {
        let key = FlowKey { ingress: to.id, tuple };
        if self.table.contains_key(&key) {
            return None;
        }
        let rings = self.spare.pop().unwrap_or_else(|| Rings::new(self.limits.tcp_buffer));
        let allowance = Allowance::new(memory, self.limits.tcp_buffer);
        let mut link = FlowLink::new(&mut self.batch, to.id, to.mtu);
        let time = stack_time(self.epoch, now);
        let socket = TcpSocket::connect((rings, allowance), &tuple, seed, (now, answer_by), time, &mut link);
        let kind = FlowKind::Tcp(TcpFlow::Open(Box::new(socket)));
        let id = self.enter(now, key, to.mtu, kind, Traffic::default());
        self.mark_changed(id);
        Some(id)
    }

    /// The connection of our own that a packet from `from` belongs to.
    pub fn own_connection(&self, from: IngressId, tuple: FiveTuple) -> Option<FlowId> {
        let id = self.find(from, tuple)?;
        match &self.flow(id)?.kind {
            FlowKind::Tcp(TcpFlow::Open(socket)) => socket.is_own().then_some(id),
            FlowKind::Tcp(TcpFlow::Held(_)) | FlowKind::Datagram(_) | FlowKind::Forward(_) => None,
        }
    }

    /// Moves at most `most` bytes from the ring of one connection into that of another, without another copy in between.
    /// Returns how many; they count for the one that is not our own.
    pub fn relay(&mut self, now: Instant, from: FlowId, to: FlowId, most: usize) -> usize {
        let Some((source, sink)) = self.flows.get2_mut(from.index(), to.index()) else { return 0 };
        if source.generation != from.generation || sink.generation != to.generation {
            return 0;
        }
        let (FlowKind::Tcp(TcpFlow::Open(reader)), FlowKind::Tcp(TcpFlow::Open(writer))) =
            (&mut source.kind, &mut sink.kind)
        else {
            return 0;
        };
        let mut moved = 0;
        while moved < most {
            let step = reader.recv_with(now, |waiting| {
                let copied = writer.send_with(now, |room| {
                    let len = waiting.len().min(room.len()).min(most - moved);
                    if let (Some(room), Some(waiting)) = (room.get_mut(..len), waiting.get(..len)) {
                        room.copy_from_slice(waiting);
                    }
                    (len, ())
                });
                (copied.map_or(0, |(len, ())| len), ())
            });
            match step {
                Some((len @ 1.., ())) => moved += len,
                Some((0, ())) | None => break,
            }
        }
        let bytes = moved as u64;
        if writer.is_own() {
            source.traffic.bytes_up += bytes;
            self.total.bytes_up += bytes;
        } else {
            sink.traffic.bytes_down += bytes;
            self.total.bytes_down += bytes;
        }
        moved
    }

    /// Whether the other end of a TCP flow owes an acknowledgment.
    pub fn is_owed(&mut self, id: FlowId) -> bool {
        self.socket(id).is_some_and(|socket| socket.unacknowledged())
    }

    /// Takes an ICMP error about what a connection of our own sent: that its packets are too big, or, before the target has
    /// answered, that they do not get there. What happens to a connection that stands is for its timers to see (RFC 5461).
    ///
    /// # Errors
    /// `icmp_type`: it is about nothing that was sent, or says nothing that would be of use.
    pub fn hear_error(&mut self, now: Instant, id: FlowId, message: &IcmpMessage<'_>) -> Result<(), DropReason> {
        let socket = self.socket(id).ok_or(DropReason::NoFlow)?;
        match message.kind() {
            IcmpKind::TooBig { sequence, mtu } if socket.has_under_way(sequence) => socket.lower_mtu(mtu),
            IcmpKind::Unreachable { .. } if !socket.is_established() => socket.give_up(CloseCause::Unreachable),
            IcmpKind::Unreachable { .. }
            | IcmpKind::TooBig { .. }
            | IcmpKind::Trouble { .. }
            | IcmpKind::EchoReply { .. } => return Err(DropReason::IcmpType),
        }
        self.mark_changed(id);
        self.rearm(now, id);
        Ok(())
    }
}
