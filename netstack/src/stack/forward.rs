//! Flows whose packets go on as they are, to another way out and back.

use std::borrow::Cow;
use std::time::Instant;

use super::{Handled, Ingress, Stack};
use crate::DropReason;
use crate::batch::PacketBatch;
use crate::flow::forward::{Connection, Direction, ForwardEnd, ForwardFlow, Watch};
use crate::flow::tcp::TcpFlow;
use crate::flow::{Flow, FlowKind};
use crate::packet::build::{self, Reply, UDP_HEADER};
use crate::packet::{ChecksumPolicy, IcmpKind, IcmpMessage, IpPacket, Transport, UdpDatagram, translate};
use crate::segment::Offload;
use crate::tuple::{FiveTuple, FlowId, FlowKey, IngressId, Protocol};

/// How a packet of a forwarded flow goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// Where to.
    pub to: Ingress,
    /// The addresses and ports that it carries there, of the family it came with.
    pub tuple: FiveTuple,
    /// We are one of the hops on its way, so that it may take one less.
    pub hop: bool,
}

impl Stack {
    /// Has the packets of a new flow go on as they are, but for what `passage` says. Packets that come from there, and carry
    /// the opposite, come back to its client. A held SYN goes on at once; a datagram that opened the flow is still to be
    /// [sent on](Self::send_on), and its payload to be [counted](Self::delivered). `false`: there is no SYN, or another flow
    /// waits for the same packets to come back.
    pub fn forward(&mut self, now: Instant, id: FlowId, passage: Passage) -> bool {
        let Passage { to: out, tuple: sent, hop } = passage;
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else {
            return false;
        };
        let back = FlowKey { ingress: out.id, tuple: sent.turned() };
        if self.table.contains_key(&back) {
            return false;
        }
        let watch = match &flow.kind {
            FlowKind::Tcp(TcpFlow::Held(held)) => {
                let Ok(syn) = IpPacket::parse(&held.packet, ChecksumPolicy::Trusted) else { return false };
                let Transport::Tcp(segment) = syn.transport() else { return false };
                let watch = Watch::Tcp(Box::new(Connection::new(now, segment)));
                // Who sent it may have left the checksum to us.
                passage.push(&mut self.batch, &syn, syn.bytes(), Some(Offload { segment_size: None }));
                watch
            }
            FlowKind::Datagram(datagram) => Watch::Datagram(datagram.clone()),
            FlowKind::Tcp(TcpFlow::Open(_)) | FlowKind::Forward(_) => return false,
        };
        flow.kind = FlowKind::Forward(ForwardFlow { out, sent, hop, watch });
        self.table.insert(back, id);
        self.rearm(now, id);
        true
    }

    /// A packet of a flow that is forwarded, from either side.
    pub(super) fn handle_forwarded(
        &mut self,
        now: Instant,
        from: Ingress,
        (id, key): (FlowId, FlowKey),
        packet: &IpPacket<'_>,
    ) -> Result<Handled, DropReason> {
        let Some(flow) = self.flows.get_mut(id.index()) else { return Err(DropReason::NoFlow) };
        let direction = if flow.key == key { Direction::Up } else { Direction::Down };
        let client = Ingress { id: flow.key.ingress, mtu: flow.mtu };
        let FlowKind::Forward(forward) = &mut flow.kind else { return Err(DropReason::NoFlow) };
        let (to, tuple) = match direction {
            Direction::Up => (forward.out, forward.sent),
            Direction::Down => (client, flow.key.tuple.turned()),
        };
        let hop = forward.hop;
        match (&mut forward.watch, packet.transport()) {
            (Watch::Tcp(connection), Transport::Tcp(segment)) => {
                let over = connection.is_aborted() || connection.end().is_some();
                if over && direction == Direction::Up && segment.is_bare_syn() {
                    self.make_way(id);
                    return self.open(now, from, key, packet);
                }
                if connection.is_aborted() {
                    if !segment.rst && self.may_answer(&key) {
                        build::tcp_reset(&mut self.batch, reply(from, key.tuple), segment);
                    }
                    return Err(DropReason::NoFlow);
                }
                if connection.end().is_some() {
                    // Nobody judges it any more.
                    return Err(DropReason::NoFlow);
                }
                let changed = connection.see(now, direction, segment);
                self.count(id, direction, packet.count(), segment.payload.len());
                if changed {
                    self.mark_changed(id);
                    self.rearm(now, id);
                }
            }
            (Watch::Datagram(datagram), Transport::Udp(_) | Transport::Echo(_) | Transport::Other(_))
                if direction == Direction::Up =>
            {
                datagram.heard_client(now, packet);
                let bytes = match packet.transport() {
                    Transport::Tcp(_) => 0,
                    Transport::Udp(udp) => udp.payload.len(),
                    Transport::Echo(echo) => echo.data.len(),
                    Transport::Other(data) => data.len(),
                };
                self.count(id, direction, packet.count(), bytes);
            }
            (Watch::Datagram(datagram), Transport::Udp(UdpDatagram { payload: data, .. }) | Transport::Other(data)) => {
                if datagram.heard_target(now) {
                    self.rearm(now, id);
                }
                self.count(id, direction, packet.count(), data.len());
            }
            (Watch::Tcp(_), Transport::Udp(_) | Transport::Echo(_) | Transport::Other(_))
            | (Watch::Datagram(_), Transport::Tcp(_) | Transport::Echo(_)) => return Err(DropReason::Malformed),
        }
        Ok(Handled::Passes(id, Passage { to, tuple, hop }))
    }

    /// Sends on a packet that passes. What does not fit is cut, where it may be: a TCP segment into segments, a datagram into
    /// fragments.
    ///
    /// # Errors
    /// Why it cannot go on. `too_big` and `hop_limit` are for its sender to hear: see [`answer_error`](Self::answer_error).
    pub fn send_on(&mut self, passage: Passage, packet: &IpPacket<'_>) -> Result<(), DropReason> {
        if passage.hop && packet.hop_limit() <= 1 {
            return Err(DropReason::HopLimit);
        }
        self.identification = self.identification.wrapping_add(1);
        let batch = &mut self.batch;
        let room = usize::from(passage.to.mtu);
        let cut = Reply { identification: self.identification, ..reply(passage.to, passage.tuple.turned()) };
        let hops = packet.hop_limit() - u8::from(passage.hop);
        match (packet.offload(), packet.transport()) {
            (offload, Transport::Tcp(segment)) => {
                // Whoever completes it knows no headers between.
                let plain = if offload.is_some() || packet.bytes().len() > room {
                    packet.plain()
                } else {
                    Cow::Borrowed(packet.bytes())
                };
                let headers = plain.len().saturating_sub(segment.payload.len());
                let longest = match offload.and_then(|offload| offload.segment_size) {
                    Some(size) => usize::from(size).min(segment.payload.len()),
                    None => segment.payload.len(),
                };
                let offload = if headers + longest <= room {
                    offload
                } else {
                    let size = room.checked_sub(headers).filter(|size| *size > 0 && !segment.syn);
                    let size = size.and_then(|size| u16::try_from(size).ok()).ok_or(DropReason::TooBig)?;
                    Some(Offload { segment_size: Some(size) })
                };
                passage.push(batch, packet, &plain, offload);
            }
            (offload, Transport::Udp(udp))
                if packet.bytes().len() <= room
                    || (offload.is_some() && packet.header() + UDP_HEADER + udp.size() <= room) =>
            {
                if offload.is_some() && !packet.is_plain() {
                    return Err(DropReason::ExtensionHeader);
                }
                passage.push(batch, packet, packet.bytes(), offload);
            }
            (offload, Transport::Echo(_) | Transport::Other(_)) if packet.bytes().len() <= room => {
                passage.push(batch, packet, packet.bytes(), offload);
            }
            (_, Transport::Udp(_) | Transport::Echo(_) | Transport::Other(_)) if !packet.may_be_cut() => {
                return Err(DropReason::TooBig);
            }
            (_, Transport::Udp(udp)) => {
                let made: usize = udp.datagrams().map(|payload| build::udp(batch, cut, payload)).sum();
                batch.each_of_last(made, |fragment| build::set_hop_limit(fragment, hops));
            }
            (_, Transport::Echo(echo)) => {
                let made = build::echo_request(batch, cut, echo.sequence, echo.data);
                batch.each_of_last(made, |fragment| build::set_hop_limit(fragment, hops));
            }
            (_, Transport::Other(data)) => {
                let Protocol::Other(number) = packet.tuple().protocol else { return Err(DropReason::Malformed) };
                let made = build::opaque(batch, cut, number, data);
                batch.each_of_last(made, |fragment| build::set_hop_limit(fragment, hops));
            }
        }
        Ok(())
    }

    /// The forwarded flow that a message from `from` is about, and which way the message goes.
    pub fn forwarded_by(&self, from: IngressId, message: &IcmpMessage<'_>) -> Option<(FlowId, Direction)> {
        self.forwarded(FlowKey { ingress: from, tuple: message.about().turned() })
    }

    /// The forwarded flow that a packet from `from` belongs to, and which way the packet goes.
    pub fn forwarded_of(&self, from: IngressId, tuple: FiveTuple) -> Option<(FlowId, Direction)> {
        self.forwarded(FlowKey { ingress: from, tuple })
    }

    /// The flow that a packet from `from` belongs to.
    pub fn find(&self, from: IngressId, tuple: FiveTuple) -> Option<FlowId> {
        self.table.get(&FlowKey { ingress: from, tuple }).copied()
    }

    fn forwarded(&self, key: FlowKey) -> Option<(FlowId, Direction)> {
        let id = *self.table.get(&key)?;
        let flow = self.flow(id)?;
        let direction = if flow.key == key { Direction::Up } else { Direction::Down };
        matches!(flow.kind, FlowKind::Forward(_)).then_some((id, direction))
    }

    /// Sends on a message about a forwarded flow, to the side that is to hear it; where it is the gateway's own word
    /// (`ours`), in the name of the other side.
    ///
    /// # Errors
    /// `icmp_type`: it is about nothing that this flow sent. `answer_limit`: there are too many. `no_flow`: the flow is over.
    /// `malformed`: an error that quotes more than there is room for.
    pub fn pass_message(
        &mut self,
        now: Instant,
        (id, direction): (FlowId, Direction),
        message: &IcmpMessage<'_>,
        ours: bool,
    ) -> Result<(), DropReason> {
        let Some(flow) = self.flow(id).filter(|flow| !flow.released) else { return Err(DropReason::NoFlow) };
        let key = flow.key;
        let is_reply = matches!(message.kind(), IcmpKind::EchoReply { .. });
        if !is_reply && !self.answers.take(now, key.ingress, key.tuple.source) {
            return Err(DropReason::AnswerLimit);
        }
        let Some(flow) = self.flow_mut(id) else { return Err(DropReason::NoFlow) };
        let client = Ingress { id: key.ingress, mtu: flow.mtu };
        let FlowKind::Forward(forward) = &mut flow.kind else { return Err(DropReason::NoFlow) };
        // What it is about went the other way.
        let (to, about, subject) = match direction {
            Direction::Up => (forward.out, Direction::Down, forward.sent.turned()),
            Direction::Down => (client, Direction::Up, key.tuple),
        };
        let source = match direction {
            Direction::Up if subject != message.about() => Some(subject.destination),
            Direction::Down if ours || message.source() == forward.sent.destination => Some(subject.destination),
            Direction::Up | Direction::Down => None,
        };
        let hop = forward.hop;
        if hop && message.hop_limit() <= 1 {
            return Err(DropReason::HopLimit);
        }
        let changes = subject != message.about() || source.is_some_and(|source| source != message.source());
        if changes && !translate::is_plain(message.bytes()) {
            return Err(DropReason::ExtensionHeader);
        }
        if !is_reply && message.bytes().len() > usize::from(to.mtu) {
            return Err(DropReason::Malformed);
        }
        let data = match (&mut forward.watch, message.kind()) {
            (Watch::Tcp(connection), _) if connection.end().is_some() => return Err(DropReason::NoFlow),
            (Watch::Tcp(connection), IcmpKind::Unreachable { sequence }) => {
                connection.hear_error(about, sequence, true).then_some(0)
            }
            (Watch::Tcp(connection), IcmpKind::TooBig { sequence, .. } | IcmpKind::Trouble { sequence }) => {
                connection.hear_error(about, sequence, false).then_some(0)
            }
            (Watch::Datagram(datagram), IcmpKind::EchoReply { data, .. }) if direction == Direction::Down => {
                datagram.heard_target(now);
                Some(data)
            }
            (Watch::Datagram(_), IcmpKind::Unreachable { .. } | IcmpKind::TooBig { .. } | IcmpKind::Trouble { .. }) => {
                Some(0)
            }
            // Nobody asked the client.
            (Watch::Tcp(_) | Watch::Datagram(_), IcmpKind::EchoReply { .. }) => None,
        };
        let data = data.ok_or(DropReason::IcmpType)?;
        self.identification = self.identification.wrapping_add(1);
        match message.kind() {
            IcmpKind::EchoReply { sequence, data } if message.bytes().len() > usize::from(to.mtu) => {
                let (_, data) = message.bytes().split_at(message.bytes().len().saturating_sub(data));
                let reply = Reply { identification: self.identification, ..reply(to, subject) };
                build::echo_reply(&mut self.batch, reply, sequence, data);
            }
            IcmpKind::EchoReply { .. }
            | IcmpKind::Unreachable { .. }
            | IcmpKind::TooBig { .. }
            | IcmpKind::Trouble { .. } => {
                self.batch.push_copy_with(to.id, message.bytes(), None, |copy| {
                    if hop {
                        build::set_hop_limit(copy, message.hop_limit().saturating_sub(1));
                    }
                    if changes {
                        translate::set_subject(copy, &subject, source);
                    }
                });
            }
        }
        self.count(id, direction, 1, data);
        Ok(())
    }

    /// Why a forwarded TCP flow is over, when it is.
    pub fn forward_end(&self, id: FlowId) -> Option<ForwardEnd> {
        match &self.flow(id)?.kind {
            FlowKind::Forward(ForwardFlow { watch: Watch::Tcp(connection), .. }) => connection.end(),
            FlowKind::Forward(_) | FlowKind::Tcp(_) | FlowKind::Datagram(_) => None,
        }
    }

    /// Has both ends of a forwarded connection hear that it is over. `false`: there is nobody to tell.
    pub(super) fn abort_forwarded(&mut self, now: Instant, id: FlowId) -> bool {
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else {
            return false;
        };
        let Flow { key, kind: FlowKind::Forward(forward), superseded: false, .. } = flow else { return false };
        let Watch::Tcp(connection) = &mut forward.watch else { return false };
        let Some((client, target)) = connection.abort(now) else { return false };
        if let Some(client) = client {
            build::tcp_reset(&mut self.batch, reply(Ingress { id: key.ingress, mtu: flow.mtu }, key.tuple), &client);
            flow.traffic.packets_down += 1;
        }
        build::tcp_reset(&mut self.batch, reply(forward.out, forward.sent.turned()), &target);
        flow.released = true;
        self.rearm(now, id);
        true
    }

    fn count(&mut self, id: FlowId, direction: Direction, packets: usize, bytes: usize) {
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else { return };
        let (packets, bytes) = (packets as u64, bytes as u64);
        match direction {
            Direction::Up => {
                flow.traffic.packets_up += packets;
                flow.traffic.bytes_up += bytes;
                self.total.bytes_up += bytes;
            }
            Direction::Down => {
                flow.traffic.packets_down += packets;
                flow.traffic.bytes_down += bytes;
                self.total.bytes_down += bytes;
            }
        }
    }
}

impl Passage {
    /// Hands over a packet in the form in which it goes on. `plain`: its bytes, maybe without what stood between its headers.
    fn push(&self, batch: &mut PacketBatch, packet: &IpPacket<'_>, plain: &[u8], offload: Option<Offload>) {
        let old = packet.tuple();
        // The transport is at the end, whatever was taken out before it.
        let header = packet.header().saturating_sub(packet.bytes().len() - plain.len());
        batch.push_copy_with(self.to.id, plain, offload, |copy| {
            if self.hop {
                build::set_hop_limit(copy, packet.hop_limit().saturating_sub(1));
            }
            if old != self.tuple {
                translate::set_tuple(copy, header, &old, &self.tuple, offload.is_none());
            }
        });
    }
}

/// An answer to whoever sent a packet of `tuple`.
fn reply(to: Ingress, tuple: FiveTuple) -> Reply {
    Reply { to: to.id, tuple, mtu: to.mtu, identification: 0 }
}
