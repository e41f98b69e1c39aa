//! The flow table and what moves through it.

mod answer;
mod connect;
mod forward;

pub use forward::Passage;

use std::collections::VecDeque;
use std::time::Instant;

use hashbrown::HashMap;
use slab::Slab;

use crate::answers::{ANSWERS, Buckets, ECHOES};
use crate::batch::PacketBatch;
use crate::deadlines::Deadlines;
use crate::device::FlowLink;
use crate::drop_reason::DropReason;
use crate::flow::datagram::DatagramFlow;
use crate::flow::forward::{ForwardFlow, Watch};
use crate::flow::memory::{Allowance, RingMemory};
use crate::flow::tcp::{self, HeldSyn, Rings, TcpFlow, TcpSocket, stack_time};
use crate::flow::{CloseCause, Flow, FlowKind, Traffic};
use crate::limits::StackLimits;
use crate::packet::build::{self, Unreachable};
use crate::packet::{ChecksumPolicy, IpPacket, Transport};
use crate::tuple::{FlowId, FlowKey, IngressId, Protocol};

/// Pairs of rings of ended connections that are kept for new ones.
const SPARE_RINGS: usize = 128;
/// Most bytes of each of them that a connection may have touched: with this much they are backed by memory, 16 MiB in
/// all.
const SPARE_TOUCHED: u64 = 64 * 1024;

/// Where a packet entered, and how large a packet may be on the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingress {
    /// Which peer or device.
    pub id: IngressId,
    /// Largest IP packet towards it, in bytes.
    pub mtu: u16,
}

/// What became of a packet that was not dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// It opened a flow, which is now in the table and must be judged: dialled and [accepted](Stack::accept),
    /// or [refused](Stack::refuse). The payload of a datagram is still to be delivered.
    Opened(FlowId),
    /// It belongs to this flow. The payload of a datagram is still to be delivered; a TCP segment was taken in.
    Known(FlowId),
    /// It belongs to this flow, which is [forwarded](Stack::forward), and was counted: it is still to be
    /// [sent on](Stack::send_on) there.
    Passes(FlowId, Passage),
}

/// How a flow that never opened is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// RST for TCP, ICMP port unreachable otherwise.
    Reset,
    /// ICMP unreachable.
    Unreachable(Unreachable),
    /// RST for TCP, ICMP administratively prohibited otherwise.
    Prohibited,
    /// No answer.
    Silent,
}

/// All flows of one shard. Packets and time in, packets and flow states out; no IO, no clock.
pub struct Stack {
    limits: StackLimits,
    epoch: Instant,
    flows: Slab<Flow>,
    table: HashMap<FlowKey, FlowId>,
    next_generation: u32,
    deadlines: Deadlines,
    changed: VecDeque<FlowId>,
    batch: PacketBatch,
    identification: u32,
    total: Traffic,
    /// Rings of earlier connections.
    spare: Vec<Rings>,
    /// When the last packet came, or the last timer was due.
    now: Instant,
    answers: Buckets,
    echoes: Buckets,
    /// Answers that were not made, since somebody asked.
    unanswered: usize,
}

impl Stack {
    /// An empty stack. `now` becomes the beginning of its time.
    pub fn new(limits: StackLimits, now: Instant) -> Self {
        let batch = PacketBatch::new(limits.batch);
        Self {
            limits,
            epoch: now,
            flows: Slab::new(),
            table: HashMap::new(),
            next_generation: 1,
            deadlines: Deadlines::default(),
            changed: VecDeque::new(),
            batch,
            identification: 0,
            total: Traffic::default(),
            spare: Vec::new(),
            now,
            answers: Buckets::new(ANSWERS),
            echoes: Buckets::new(ECHOES),
            unanswered: 0,
        }
    }

    /// Takes one packet of a client.
    ///
    /// # Errors
    /// Why it was dropped. A TCP segment that belongs to no flow is answered with a reset, unless it is one.
    pub fn handle_packet(&mut self, now: Instant, from: Ingress, packet: &IpPacket<'_>) -> Result<Handled, DropReason> {
        self.now = now;
        let key = FlowKey { ingress: from.id, tuple: packet.tuple() };
        if key.tuple.protocol == Protocol::Echo && !self.echoes.take(now, from.id, key.tuple.source) {
            return Err(DropReason::EchoLimit);
        }
        let Some(&id) = self.table.get(&key) else {
            return self.open(now, from, key, packet);
        };
        let Some(flow) = self.flows.get_mut(id.index()) else {
            return Err(DropReason::NoFlow);
        };
        if matches!(flow.kind, FlowKind::Forward(_)) {
            return self.handle_forwarded(now, from, (id, key), packet);
        }
        flow.mtu = from.mtu;
        match (&mut flow.kind, packet.transport()) {
            (FlowKind::Datagram(datagram), _) => {
                flow.traffic.packets_up += packet.count() as u64;
                datagram.heard_client(now, packet);
                Ok(Handled::Known(id))
            }
            (FlowKind::Tcp(TcpFlow::Held(held)), Transport::Tcp(segment)) => {
                flow.traffic.packets_up += packet.count() as u64;
                if segment.is_bare_syn() {
                    if segment.sequence != held.sequence {
                        // The client gave up and tries again from the same port: answer the newer one.
                        *held = HeldSyn { packet: packet.plain().into(), sequence: segment.sequence };
                    }
                    return Ok(Handled::Known(id));
                }
                if segment.rst && segment.sequence.wrapping_sub(held.sequence) <= 1 {
                    self.mark_changed(id);
                    self.forget_held(id);
                    return Ok(Handled::Known(id));
                }
                Err(DropReason::UnacceptableSegment)
            }
            (FlowKind::Tcp(TcpFlow::Open(socket)), Transport::Tcp(segment)) => {
                if segment.is_bare_syn() && socket.may_be_reused() {
                    self.make_way(id);
                    return self.open(now, from, key, packet);
                }
                flow.traffic.packets_up += packet.count() as u64;
                if socket.is_to_be_challenged(segment) && !self.answers.take(now, from.id, key.tuple.source) {
                    self.unanswered += 1;
                    return Err(DropReason::UnacceptableSegment);
                }
                let time = stack_time(self.epoch, now);
                let plain = packet.plain();
                let mut link = FlowLink::new(&mut self.batch, from.id, from.mtu);
                link.received = Some(&plain);
                let taken = socket.handle_segment(now, time, segment, &mut link);
                flow.traffic.packets_down += u64::from(link.sent);
                self.mark_changed(id);
                taken.map(|()| Handled::Known(id))
            }
            (FlowKind::Tcp(_), Transport::Udp(_) | Transport::Echo(_) | Transport::Other(_))
            | (FlowKind::Forward(_), _) => Err(DropReason::Malformed),
        }
    }

    /// Enters a new flow in the table, when the packet may open one.
    fn open(
        &mut self,
        now: Instant,
        from: Ingress,
        key: FlowKey,
        packet: &IpPacket<'_>,
    ) -> Result<Handled, DropReason> {
        let kind = match packet.transport() {
            Transport::Tcp(segment) if segment.is_bare_syn() => {
                let held = HeldSyn { packet: packet.plain().into(), sequence: segment.sequence };
                FlowKind::Tcp(TcpFlow::Held(held))
            }
            Transport::Tcp(segment) => {
                if !segment.rst && self.may_answer(&key) {
                    // A connection of a former life: a cut must be seen as a cut.
                    let reply = self.reply(from, &key);
                    build::tcp_reset(&mut self.batch, reply, segment);
                }
                return Err(DropReason::NoFlow);
            }
            Transport::Udp(_) | Transport::Echo(_) | Transport::Other(_) => {
                FlowKind::Datagram(DatagramFlow::new(now, packet))
            }
        };
        let traffic = Traffic { packets_up: packet.count() as u64, ..Traffic::default() };
        Ok(Handled::Opened(self.enter(now, key, from.mtu, kind, traffic)))
    }

    /// Puts a new flow in the table.
    fn enter(&mut self, now: Instant, key: FlowKey, mtu: u16, kind: FlowKind, traffic: Traffic) -> FlowId {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let flow = Flow {
            generation,
            key,
            mtu,
            kind,
            traffic,
            armed: None,
            queued: false,
            released: false,
            superseded: false,
        };
        let index = u32::try_from(self.flows.insert(flow)).expect("fewer than 2^32 flows fit in memory");
        let id = FlowId { index, generation };
        self.table.insert(key, id);
        self.rearm(now, id);
        id
    }

    fn flow(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id.index()).filter(|flow| flow.generation == id.generation)
    }

    fn flow_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation)
    }

    fn socket(&mut self, id: FlowId) -> Option<&mut TcpSocket> {
        match &mut self.flow_mut(id)?.kind {
            FlowKind::Tcp(TcpFlow::Open(socket)) => Some(socket),
            FlowKind::Tcp(TcpFlow::Held(_)) | FlowKind::Datagram(_) | FlowKind::Forward(_) => None,
        }
    }

    /// A held SYN whose client gave up: an open socket without a connection stands for it until it is removed.
    fn forget_held(&mut self, id: FlowId) {
        if let Some(flow) = self.flow_mut(id)
            && let FlowKind::Tcp(TcpFlow::Held(held)) = &mut flow.kind
        {
            held.packet = Box::default();
        }
    }

    /// Whether the client took back its SYN before it was answered.
    pub fn client_gave_up(&self, id: FlowId) -> bool {
        self.flow(id).is_some_and(|flow| match &flow.kind {
            FlowKind::Tcp(TcpFlow::Held(held)) => held.packet.is_empty(),
            FlowKind::Tcp(TcpFlow::Open(_)) | FlowKind::Datagram(_) | FlowKind::Forward(_) => false,
        })
    }

    /// Answers the held SYN of a flow whose target answered. `seed` must be fresh from the system's random source:
    /// the initial sequence number is made of it. `memory` is asked whenever the flow's rings want to grow. `false`:
    /// there is no SYN to answer, and the flow must be ended.
    pub fn accept(&mut self, now: Instant, id: FlowId, seed: u64, memory: Box<dyn RingMemory + Send>) -> bool {
        let time = stack_time(self.epoch, now);
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else {
            return false;
        };
        let FlowKind::Tcp(TcpFlow::Held(held)) = &mut flow.kind else { return false };
        tcp::fit_maximum_segment_size(&flow.key.tuple, flow.mtu, &mut held.packet);
        let Ok(syn) = IpPacket::parse(&held.packet, ChecksumPolicy::Trusted) else { return false };
        let Transport::Tcp(segment) = syn.transport() else { return false };
        let mut link = FlowLink::new(&mut self.batch, flow.key.ingress, flow.mtu);
        link.received = Some(&held.packet);
        let rings = self.spare.pop().unwrap_or_else(|| Rings::new(self.limits.tcp_buffer));
        let allowance = Allowance::new(memory, self.limits.tcp_buffer);
        let mut socket = TcpSocket::listen((rings, allowance), &flow.key.tuple, seed, now, time, segment, &mut link);
        // Data on a SYN that is beyond what the rings may hold comes again.
        let _ = socket.handle_segment(now, time, segment, &mut link);
        flow.traffic.packets_down += u64::from(link.sent);
        flow.kind = FlowKind::Tcp(TcpFlow::Open(Box::new(socket)));
        self.mark_changed(id);
        true
    }

    /// Ends an open flow: TCP is reset, anything else just stops. Removes it; only a connection whose packets went on as
    /// they are lingers, to answer what still comes from both ends.
    pub fn abort(&mut self, now: Instant, id: FlowId) {
        if self.abort_forwarded(now, id) {
            return;
        }
        let time = stack_time(self.epoch, now);
        if let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) {
            let mut link = FlowLink::new(&mut self.batch, flow.key.ingress, flow.mtu);
            link.last_word = true;
            match &mut flow.kind {
                FlowKind::Tcp(TcpFlow::Open(_)) if flow.superseded => {}
                FlowKind::Tcp(TcpFlow::Open(socket)) => socket.abort(time, &mut link),
                FlowKind::Tcp(TcpFlow::Held(_)) => return self.refuse(id, Refusal::Reset),
                FlowKind::Datagram(_) | FlowKind::Forward(_) => {}
            }
        }
        self.remove(id);
    }

    /// Takes a flow out of the table without a word to the client.
    pub fn remove(&mut self, id: FlowId) {
        if self.flow(id).is_some() {
            let flow = self.flows.remove(id.index());
            if !flow.superseded {
                forget(&mut self.table, &flow);
            }
            if let FlowKind::Tcp(TcpFlow::Open(socket)) = flow.kind
                && self.spare.len() < SPARE_RINGS
                && flow.traffic.bytes_down <= SPARE_TOUCHED
                && let Some(rings) = socket.into_rings(SPARE_TOUCHED)
            {
                self.spare.push(rings);
            }
        }
    }

    /// Says that nothing more is wanted of a TCP flow that is over: it only lingers to answer the client's
    /// retransmissions. It is removed at once when there can be none, or when its packets went on as they are: its ends
    /// answer each other, and nobody would judge what they say.
    pub fn release(&mut self, id: FlowId) {
        let Some(flow) = self.flow_mut(id) else { return };
        flow.released = true;
        if let FlowKind::Tcp(TcpFlow::Open(socket)) = &mut flow.kind {
            socket.let_go();
        }
        let forwarded = matches!(flow.kind, FlowKind::Forward(_));
        if flow.superseded || forwarded || self.is_gone(id) {
            self.remove(id);
        }
    }

    /// Gives the tuple of a flow that is over to a new one. What the target has not taken yet is kept until it is
    /// released.
    fn make_way(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else { return };
        if flow.released {
            return self.remove(id);
        }
        flow.superseded = true;
        forget(&mut self.table, flow);
        self.mark_changed(id);
    }

    /// Counts payload of a datagram that was delivered to the target.
    pub fn delivered(&mut self, id: FlowId, len: usize) {
        if let Some(flow) = self.flow_mut(id) {
            flow.traffic.bytes_up += len as u64;
            self.total.bytes_up += len as u64;
        }
    }

    /// Lets `read` fill free space of a TCP flow's ring towards the client; it returns how many bytes it wrote.
    /// `None`: the ring is full, or the half is not open.
    pub fn send_with<R>(&mut self, now: Instant, id: FlowId, read: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        let (len, result) = self.socket(id)?.send_with(now, read)?;
        if let Some(flow) = self.flow_mut(id) {
            flow.traffic.bytes_down += len as u64;
            self.total.bytes_down += len as u64;
        }
        Some(result)
    }

    /// Lets `write` take bytes of the client from a TCP flow's ring; it returns how many it took. `None`: nothing
    /// is there.
    pub fn recv_with<R>(&mut self, now: Instant, id: FlowId, write: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        let (len, result) = self.socket(id)?.recv_with(now, write)?;
        if let Some(flow) = self.flow_mut(id) {
            flow.traffic.bytes_up += len as u64;
            self.total.bytes_up += len as u64;
        }
        Some(result)
    }

    /// Whether a TCP client closed its half and all its bytes have been taken.
    pub fn client_finished(&mut self, id: FlowId) -> bool {
        self.socket(id).is_some_and(TcpSocket::client_finished)
    }

    /// Whether a TCP client closed its half before the target did.
    pub fn client_closed_first(&mut self, id: FlowId) -> bool {
        self.socket(id).is_some_and(|socket| socket.client_closed_first())
    }

    /// Whether the handshake with a TCP client is over, or where packets go on as they are, the target has answered. `false`
    /// for a SYN that is held, too.
    pub fn is_established(&mut self, id: FlowId) -> bool {
        if let Some(FlowKind::Forward(ForwardFlow { watch: Watch::Tcp(connection), .. })) =
            self.flow(id).map(|flow| &flow.kind)
        {
            return connection.is_answered();
        }
        self.socket(id).is_some_and(|socket| socket.is_established())
    }

    /// When the last packet of an association or exchange came, from either side.
    pub fn last_active(&self, id: FlowId) -> Option<Instant> {
        match &self.flow(id)?.kind {
            FlowKind::Datagram(datagram) | FlowKind::Forward(ForwardFlow { watch: Watch::Datagram(datagram), .. }) => {
                Some(datagram.last_active())
            }
            FlowKind::Tcp(_) | FlowKind::Forward(_) => None,
        }
    }

    /// Closes the half of a TCP flow towards the client, after everything sent.
    pub fn close(&mut self, id: FlowId) {
        if let Some(socket) = self.socket(id) {
            socket.close();
        }
    }

    /// Why a TCP flow's connection with the client is over, when it is.
    pub fn cause(&mut self, id: FlowId) -> Option<CloseCause> {
        if self.client_gave_up(id) {
            return Some(CloseCause::ClientReset);
        }
        self.socket(id)?.cause()
    }

    /// Sends what a TCP flow may send now and sets its deadline. Call it after every change.
    ///
    /// A flow that is over is removed once nothing of the client needs an answer any more.
    pub fn transmit(&mut self, now: Instant, id: FlowId) {
        let time = stack_time(self.epoch, now);
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else {
            return;
        };
        if let FlowKind::Tcp(TcpFlow::Open(socket)) = &mut flow.kind
            && !flow.superseded
        {
            let mut link = FlowLink::new(&mut self.batch, flow.key.ingress, flow.mtu);
            let more = socket.transmit(now, time, &mut link);
            flow.traffic.packets_down += u64::from(link.sent);
            if more {
                self.mark_changed(id);
            }
        }
        self.rearm(now, id);
    }

    /// Whether a TCP flow has left nothing to be answered: it can be removed.
    pub fn is_gone(&mut self, id: FlowId) -> bool {
        self.socket(id).is_some_and(|socket| socket.is_gone())
    }

    /// Sets the deadline of a flow from its state.
    fn rearm(&mut self, now: Instant, id: FlowId) {
        let time = stack_time(self.epoch, now);
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else {
            return;
        };
        let at = match &mut flow.kind {
            // The dial has its own timeout.
            FlowKind::Tcp(TcpFlow::Held(_)) => return,
            FlowKind::Tcp(TcpFlow::Open(socket)) if flow.superseded => socket.idle_deadline(&self.limits),
            FlowKind::Tcp(TcpFlow::Open(socket)) => socket.deadline(self.epoch, time, &self.limits),
            FlowKind::Datagram(datagram) => datagram.deadline(&flow.key.tuple, &self.limits),
            FlowKind::Forward(forward) => forward.deadline(&flow.key.tuple, &self.limits),
        };
        self.deadlines.arm(id, at.max(now), &mut flow.armed);
        let flows = &self.flows;
        self.deadlines.sweep(flows.len(), |id| {
            flows.get(id.index()).filter(|flow| flow.generation == id.generation).and_then(|flow| flow.armed)
        });
    }

    /// Puts a flow in the queue of those to be looked at, once.
    pub fn mark_changed(&mut self, id: FlowId) {
        if let Some(flow) = self.flow_mut(id)
            && !flow.queued
        {
            flow.queued = true;
            self.changed.push_back(id);
        }
    }

    /// The next flow that was changed by a packet, by time, or by [`mark_changed`](Self::mark_changed).
    pub fn poll_changed(&mut self) -> Option<FlowId> {
        loop {
            let id = self.changed.pop_front()?;
            if let Some(flow) = self.flow_mut(id) {
                flow.queued = false;
                return Some(id);
            }
        }
    }

    /// How many flows wait in the queue.
    pub fn changed(&self) -> usize {
        self.changed.len()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Looks at every flow whose deadline is due. TCP flows are queued as changed; `idle` is told of associations and
    /// exchanges that have been silent too long, which the caller then removes.
    pub fn handle_timeout(&mut self, now: Instant, mut idle: impl FnMut(FlowId)) {
        self.now = self.now.max(now);
        while let Some((at, id)) = self.deadlines.pop_due(now) {
            let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else {
                continue;
            };
            if flow.armed != Some(at) {
                continue;
            }
            flow.armed = None;
            match &mut flow.kind {
                FlowKind::Tcp(TcpFlow::Held(_)) => {}
                FlowKind::Tcp(TcpFlow::Open(socket)) => {
                    socket.handle_timeout(now, &self.limits);
                    self.mark_changed(id);
                }
                FlowKind::Datagram(datagram)
                | FlowKind::Forward(ForwardFlow { watch: Watch::Datagram(datagram), .. }) => {
                    if datagram.deadline(&flow.key.tuple, &self.limits) <= now {
                        idle(id);
                    } else {
                        self.rearm(now, id);
                    }
                }
                FlowKind::Forward(ForwardFlow { watch: Watch::Tcp(connection), .. }) => {
                    match connection.handle_timeout(now, &self.limits) {
                        true if flow.released => self.remove(id),
                        true => self.mark_changed(id),
                        false => self.rearm(now, id),
                    }
                }
            }
        }
    }

    /// The packets made so far, to be sent as [drained](PacketBatch::drain).
    pub fn batch(&mut self) -> &mut PacketBatch {
        &mut self.batch
    }

    /// Payload and packet counts of a flow.
    pub fn traffic(&self, id: FlowId) -> Traffic {
        self.flow(id).map(|flow| flow.traffic).unwrap_or_default()
    }

    /// Payload bytes of all flows up and down since the beginning, those that are gone included.
    pub fn total_bytes(&self) -> (u64, u64) {
        (self.total.bytes_up, self.total.bytes_down)
    }

    /// The key of a flow.
    pub fn key(&self, id: FlowId) -> Option<FlowKey> {
        self.flow(id).map(|flow| flow.key)
    }

    /// How many flows are in the table, lingering ones included.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}

/// Gives the keys of a flow to others.
fn forget(table: &mut HashMap<FlowKey, FlowId>, flow: &Flow) {
    table.remove(&flow.key);
    if let FlowKind::Forward(forward) = &flow.kind {
        table.remove(&forward.back());
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}
