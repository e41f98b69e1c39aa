//! Packets of the stack's own making: what targets said in datagrams, and refusals and errors, which have a limit.

use std::net::IpAddr;
use std::time::Instant;

use super::{Ingress, Refusal, Stack};
use crate::batch::PacketBatch;
use crate::flow::FlowKind;
use crate::flow::tcp::TcpFlow;
use crate::packet::build::{self, Reply, Reported, Unreachable};
use crate::packet::{ChecksumPolicy, IpPacket, TcpSegment, Transport};
use crate::tuple::{FlowId, FlowKey, Protocol};

impl Stack {
    /// Answers a flow that is not to open, and removes it.
    pub fn refuse(&mut self, id: FlowId, refusal: Refusal) {
        self.answer_refused(id, refusal);
        self.remove(id);
    }

    /// Answers a flow that is not to open, and removes it: with a reset, too, only while its client causes few answers.
    /// For refusals that nothing else bounds.
    pub fn refuse_within_bound(&mut self, id: FlowId, refusal: Refusal) {
        if let Some(key) = self.key(id)
            && is_reset(&key, refusal)
            && !self.may_answer(&key)
        {
            return self.remove(id);
        }
        self.refuse(id, refusal);
    }

    /// Answers a flow that is not to open, and leaves it in the table: a repeated SYN is absorbed.
    pub fn answer_refused(&mut self, id: FlowId, refusal: Refusal) {
        let Some(flow) = self.flow(id) else { return };
        let to = Ingress { id: flow.key.ingress, mtu: flow.mtu };
        let key = flow.key;
        // The reset that ends a client's waiting is one for each connection, and those have limits of their own.
        if refusal == Refusal::Silent || (!is_reset(&key, refusal) && !self.may_answer(&key)) {
            return;
        }
        let reply = self.reply(to, &key);
        let Some(flow) = self.flows.get_mut(id.index()) else { return };
        let made = match &flow.kind {
            FlowKind::Tcp(TcpFlow::Held(held)) => refuse_held(&mut self.batch, reply, &held.packet, refusal),
            FlowKind::Datagram(datagram) => {
                let error = match refusal {
                    Refusal::Reset => Some(Unreachable::Port),
                    Refusal::Unreachable(error) => Some(error),
                    Refusal::Prohibited => Some(Unreachable::Prohibited),
                    Refusal::Silent => None,
                };
                error.map_or(0, |error| build::unreachable(&mut self.batch, reply, error, datagram.quote()))
            }
            FlowKind::Tcp(TcpFlow::Open(_)) | FlowKind::Forward(_) => 0,
        };
        flow.traffic.packets_down += made as u64;
    }

    /// A datagram from the target of an association, or the data of an echo reply with its sequence number.
    pub fn send_datagram(&mut self, now: Instant, id: FlowId, payload: &[u8]) {
        self.answer(now, id, payload.len(), |batch, reply| build::udp(batch, reply, payload));
    }

    /// Datagrams from the target of an association: all of `size` bytes, but the last may be shorter. They leave as one
    /// super-packet where each of them fits.
    pub fn send_datagrams(&mut self, now: Instant, id: FlowId, run: &[u8], size: usize) {
        self.answer(now, id, run.len(), |batch, reply| build::udp_run(batch, reply, run, size));
    }

    /// An echo reply from the target of an echo exchange.
    pub fn send_echo_reply(&mut self, now: Instant, id: FlowId, sequence: u16, data: &[u8]) {
        self.answer(now, id, data.len(), |batch, reply| build::echo_reply(batch, reply, sequence, data));
    }

    fn answer(&mut self, now: Instant, id: FlowId, len: usize, make: impl FnOnce(&mut PacketBatch, Reply) -> usize) {
        let Some(flow) = self.flow(id) else { return };
        let (to, key) = (Ingress { id: flow.key.ingress, mtu: flow.mtu }, flow.key);
        let reply = self.reply(to, &key);
        let Some(flow) = self.flows.get_mut(id.index()) else { return };
        let FlowKind::Datagram(datagram) = &mut flow.kind else { return };
        let first = datagram.heard_target(now);
        flow.traffic.packets_down += make(&mut self.batch, reply) as u64;
        flow.traffic.bytes_down += len as u64;
        self.total.bytes_down += len as u64;
        if first {
            self.rearm(now, id);
        }
    }

    /// Tells the client of an association that its last packet, or the echo request that is named, did not arrive. The flow
    /// stays.
    pub fn send_unreachable(&mut self, id: FlowId, reported: impl Into<Reported>) {
        let Reported { error, from, sequence } = reported.into();
        let Some(flow) = self.flow(id) else { return };
        let (to, key) = (Ingress { id: flow.key.ingress, mtu: flow.mtu }, flow.key);
        if !self.may_answer(&key) {
            return;
        }
        let mut reply = self.reply(to, &key);
        if let Some(from) = from.filter(|from| from.is_ipv4() == key.tuple.source.is_ipv4()) {
            reply.tuple.destination = from;
        }
        let Some(flow) = self.flows.get_mut(id.index()) else { return };
        let FlowKind::Datagram(datagram) = &mut flow.kind else { return };
        if let (Some(sequence), Protocol::Echo) = (sequence, key.tuple.protocol) {
            datagram.quote_sequence(sequence);
        }
        flow.traffic.packets_down += build::unreachable(&mut self.batch, reply, error, datagram.quote()) as u64;
    }

    /// Tells whoever sent a packet from `to` why it goes no farther: RFC 1812 sections 4.3.3 and 5.3.1, RFC 8200 section 3.
    /// `from` is the gateway's own address towards there.
    pub fn answer_error(&mut self, now: Instant, to: Ingress, packet: &IpPacket<'_>, error: Unreachable, from: IpAddr) {
        self.now = now;
        let key = FlowKey { ingress: to.id, tuple: packet.tuple() };
        if !self.may_answer(&key) {
            return;
        }
        let mut reply = self.reply(to, &key);
        reply.tuple.destination = from;
        let bytes = packet.bytes();
        let quote = bytes.get(..bytes.len().min(build::QUOTE)).unwrap_or_default();
        build::unreachable(&mut self.batch, reply, error, quote);
    }

    /// The client of a connection can be reached again: what went unanswered is sent to it now.
    pub fn try_again(&mut self, now: Instant, id: FlowId) {
        if self.socket(id).is_some_and(|socket| socket.try_again(now)) {
            self.mark_changed(id);
        }
    }

    /// How many answers were not made since the last call, because their clients caused too many.
    pub fn poll_unanswered(&mut self) -> usize {
        std::mem::take(&mut self.unanswered)
    }

    /// Whether a client may have one more answer of our own making.
    pub(super) fn may_answer(&mut self, key: &FlowKey) -> bool {
        let allowed = self.answers.take(self.now, key.ingress, key.tuple.source);
        self.unanswered += usize::from(!allowed);
        allowed
    }

    pub(super) fn reply(&mut self, to: Ingress, key: &FlowKey) -> Reply {
        self.identification = self.identification.wrapping_add(1);
        Reply { to: to.id, tuple: key.tuple, mtu: to.mtu, identification: self.identification }
    }
}

/// Whether a flow is refused with a reset, not an ICMP error.
fn is_reset(key: &FlowKey, refusal: Refusal) -> bool {
    key.tuple.protocol == Protocol::Tcp && matches!(refusal, Refusal::Reset | Refusal::Prohibited)
}

fn refuse_held(batch: &mut PacketBatch, reply: Reply, syn: &[u8], refusal: Refusal) -> usize {
    let Ok(packet) = IpPacket::parse(syn, ChecksumPolicy::Trusted) else { return 0 };
    let Transport::Tcp(segment) = packet.transport() else { return 0 };
    let reset = |batch: &mut PacketBatch, segment: &TcpSegment<'_>| build::tcp_reset(batch, reply, segment);
    match refusal {
        Refusal::Reset | Refusal::Prohibited => reset(batch, segment),
        Refusal::Unreachable(error) => {
            let quote = syn.get(..syn.len().min(build::QUOTE)).unwrap_or_default();
            build::unreachable(batch, reply, error, quote)
        }
        Refusal::Silent => 0,
    }
}
