//! The stack, driven by operations read from bytes under a virtual clock.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use etherparse::{IpNumber, PacketBuilder};
use portcullis_netstack::packet::build::{Reported, Unreachable};
use portcullis_netstack::packet::{Arrival, ChecksumPolicy, IpPacket, Transport};
use portcullis_netstack::segment::Offload;
use portcullis_netstack::{
    CloseCause, DropReason, FiveTuple, FlowId, FlowKey, ForwardEnd, Handled, Ingress, IngressId, Passage, Refusal,
    Stack, StackLimits,
};

use crate::input::Input;

const MTU: u16 = 1280;
/// Looks at the timers at one instant without an effect before it is called a busy loop.
const IDLE_LOOKS: usize = 4;
/// Turns at one instant before it is called an endless loop: far more than a window of data takes.
const MAX_TURNS: usize = 2_000;

/// Where clients are, and where forwarded packets go.
const PEER: IngressId = IngressId(1);
const OUT: IngressId = IngressId(0);

const SYN: u8 = 1;
const ACK: u8 = 2;
const FIN: u8 = 4;
const RST: u8 = 8;

/// Where a client and the stack are with one tuple.
#[derive(Default, Clone, Copy)]
struct Numbers {
    sequence: u32,
    acknowledgment: u32,
}

/// The off-ramp's side of a TCP flow.
#[derive(Default)]
struct Side {
    to_send: usize,
    appetite: usize,
    closes: bool,
    closed: bool,
    shut: bool,
    taken: u64,
    given: u64,
}

struct Bench<'a> {
    input: Input<'a>,
    stack: Stack,
    now: Instant,
    numbers: HashMap<(bool, u16), Numbers>,
    flows: Vec<FlowId>,
    alive: HashSet<FlowId>,
    accepted: HashSet<FlowId>,
    sides: HashMap<FlowId, Side>,
    /// Flows whose packets go on as they are.
    forwarded: HashSet<FlowId>,
    /// Flows whose target is a connection of the stack's own, and the other way.
    calls: HashMap<FlowId, Call>,
    callers: HashMap<FlowId, FlowId>,
    calls_made: bool,
}

/// A connection of the stack's own that a flow has for its target.
struct Call {
    connection: FlowId,
    answered: bool,
    shut: bool,
    finished: bool,
}

/// Runs the operations in `data`, then lets everything end.
pub fn stack(data: &[u8]) {
    let base = Instant::now();
    let mut bench = Bench {
        input: Input(data),
        stack: Stack::new(limits(1 << 20), base),
        now: base,
        numbers: HashMap::new(),
        flows: Vec::new(),
        alive: HashSet::new(),
        accepted: HashSet::new(),
        sides: HashMap::new(),
        forwarded: HashSet::new(),
        calls: HashMap::new(),
        callers: HashMap::new(),
        calls_made: false,
    };
    let batch = 1 << (bench.input.byte() % 20);
    bench.stack = Stack::new(limits(batch), base);
    // Longer inputs say nothing new, and each operation costs.
    for _ in 0..400 {
        let Some(operation) = bench.input.next() else { break };
        bench.operate(operation);
        bench.settle();
    }
    bench.end();
}

fn limits(batch: usize) -> StackLimits {
    StackLimits {
        tcp_buffer: 4096,
        opening: Duration::from_secs(10),
        syn_received: Duration::from_secs(10),
        tcp_user_timeout: Duration::from_secs(120),
        tcp_idle: Duration::from_secs(600),
        udp_idle_one_way: Duration::from_secs(30),
        udp_idle: Duration::from_secs(120),
        echo_idle: Duration::from_secs(30),
        batch,
    }
}

impl Bench<'_> {
    /// A flow of the past or the present.
    fn flow(&mut self) -> Option<FlowId> {
        let which = usize::from(self.input.byte());
        self.flows.get(which % self.flows.len().max(1)).copied()
    }

    fn operate(&mut self, operation: u8) {
        match operation % 16 {
            0..6 => self.segment(),
            6 => {
                let (v6, port, len) =
                    (self.input.byte() & 1 == 1, self.input.word() % 4, usize::from(self.input.byte()));
                let mut packet = Vec::new();
                let data = vec![1; len];
                if port == 3 {
                    // Of no port: the same flow whatever is in it, and what may be its answer.
                    ip(v6).write(&mut packet, IpNumber::GRE, &data).unwrap();
                    if len % 2 == 1 {
                        packet.clear();
                        turned(v6).write(&mut packet, IpNumber::GRE, &data).unwrap();
                        let tuple = IpPacket::parse(&packet, ChecksumPolicy::Trusted).map(|answer| answer.tuple());
                        if tuple.is_ok_and(|tuple| self.stack.forwarded_of(OUT, tuple).is_some()) {
                            self.inject_from(OUT, &packet);
                        }
                        return;
                    }
                } else {
                    ip(v6).udp(1000 + port, 52 + port).write(&mut packet, &data).unwrap();
                }
                self.inject(&packet);
            }
            7 => {
                let (identifier, sequence) = (self.input.word() % 3, self.input.word());
                let mut packet = Vec::new();
                ip(false).icmpv4_echo_request(identifier, sequence).write(&mut packet, b"data").unwrap();
                self.inject(&packet);
            }
            8 | 9 => {
                let span = Duration::from_millis(1 << (self.input.byte() % 20));
                self.pass(span);
            }
            10 | 11 => {
                let Some(id) = self.flow() else { return };
                let seed = u64::from(self.input.byte());
                let (to_send, appetite) = (usize::from(self.input.word()) % 10_000, usize::from(self.input.word()));
                let how = self.input.byte();
                if matches!(how, b'F' | b'N') {
                    return self.forward(id, how == b'N');
                }
                if how == b'C' {
                    return self.call(id, to_send % 4 == 0, seed);
                }
                let side = Side { to_send, appetite, closes: how & 1 == 1, ..Side::default() };
                // Once a flow, and only TCP.
                let tcp =
                    self.stack.key(id).is_some_and(|key| key.tuple.protocol == portcullis_netstack::Protocol::Tcp);
                if tcp && self.accepted.insert(id) {
                    self.stack.accept(self.now, id, seed, Box::new(()));
                    self.sides.insert(id, side);
                }
            }
            12 => self.end_one(),
            13 => {
                let Some(id) = self.flow() else { return };
                let (more, appetite, closes) = (self.input.word(), self.input.word(), self.input.byte());
                if closes == b'R' {
                    self.stack.try_again(self.now, id);
                }
                if let Some(side) = self.sides.get_mut(&id) {
                    side.to_send += usize::from(more) % 10_000;
                    side.appetite += usize::from(appetite);
                    side.closes |= closes & 1 == 1;
                    self.stack.mark_changed(id);
                }
            }
            14 => {
                let Some(id) = self.flow() else { return };
                let len = usize::from(self.input.word()) % 9000;
                match self.input.byte() % 4 {
                    0 if len % 5 == 0 => self.stack.send_datagrams(self.now, id, &vec![2; len], len.div_ceil(9)),
                    0 => self.stack.send_datagram(self.now, id, &vec![2; len]),
                    1 => self.stack.send_echo_reply(self.now, id, 1, &vec![2; len]),
                    2 if len % 3 == 0 => {
                        let from = (len % 2 == 0).then(|| std::net::IpAddr::from([10, 20, 0, 1]));
                        let sequence = u16::try_from(len).ok();
                        self.stack.send_unreachable(id, Reported { error: Unreachable::HopLimit, from, sequence });
                    }
                    2 => self.stack.send_unreachable(id, Unreachable::TooBig(1280)),
                    _ => self.stack.send_unreachable(id, Unreachable::Prohibited),
                }
            }
            _ => {
                let len = usize::from(self.input.byte()).min(self.input.0.len());
                let (packet, rest) = self.input.0.split_at(len);
                self.input.0 = rest;
                self.inject(packet);
            }
        }
    }

    /// Has its packets go on, as they are or `translated` to another port.
    fn forward(&mut self, id: FlowId, translated: bool) {
        let Some(key) = self.stack.key(id) else { return };
        let tuple = FiveTuple { source_port: key.tuple.source_port ^ u16::from(translated), ..key.tuple };
        let passage = Passage { to: Ingress { id: OUT, mtu: 1000 }, tuple, hop: translated };
        if self.accepted.insert(id) && self.stack.forward(self.now, id, passage) {
            self.forwarded.insert(id);
        }
    }

    /// Has it answered when a connection of our own to the target is.
    fn call(&mut self, id: FlowId, v6: bool, seed: u64) {
        let Some(key) = self.stack.key(id) else { return };
        let is_client = key.tuple.protocol == portcullis_netstack::Protocol::Tcp && !self.callers.contains_key(&id);
        if !is_client || !self.accepted.insert(id) {
            return;
        }
        let (client, target): (IpAddr, IpAddr) =
            if v6 { (CLIENT.1.into(), TARGET.1.into()) } else { (CLIENT.0.into(), TARGET.0.into()) };
        let tuple = FiveTuple {
            protocol: portcullis_netstack::Protocol::Tcp,
            source: target,
            source_port: 443,
            destination: client,
            destination_port: 2000 + (key.tuple.source_port & 1),
        };
        let times = (self.now, self.now + Duration::from_secs(10));
        let to = Ingress { id: OUT, mtu: MTU };
        if let Some(connection) = self.stack.connect(times, to, tuple, seed, Box::new(())) {
            assert!(self.alive.insert(connection), "a name is used once");
            self.flows.push(connection);
            self.calls_made = true;
            self.calls.insert(id, Call { connection, answered: false, shut: false, finished: false });
            self.callers.insert(connection, id);
        }
    }

    /// Moves bytes between a client and a connection of our own. Returns whether anything changed.
    fn move_call(&mut self, id: FlowId) -> bool {
        let Self { stack, calls, callers, now, .. } = self;
        let now = *now;
        let Some(call) = calls.get_mut(&id) else { return false };
        let called = call.connection;
        let before = (call.answered, call.shut, call.finished);
        stack.transmit(now, called);
        if !call.answered && stack.cause(called).is_none() && stack.is_established(called) {
            call.answered = true;
            stack.accept(now, id, 5, Box::new(()));
        }
        let mut moved = stack.relay(now, called, id, 50_000) + stack.relay(now, id, called, 50_000);
        if call.answered && !call.finished && stack.client_finished(called) {
            call.finished = true;
            stack.close(id);
        }
        if call.answered && !call.shut && stack.client_finished(id) {
            call.shut = true;
            stack.close(called);
        }
        stack.transmit(now, id);
        stack.transmit(now, called);
        moved += usize::from(before != (call.answered, call.shut, call.finished));
        match (stack.cause(id), stack.cause(called)) {
            (Some(CloseCause::Orderly), Some(CloseCause::Orderly)) if call.shut => {
                stack.release(id);
                stack.release(called);
            }
            (Some(CloseCause::Orderly) | None, Some(CloseCause::Orderly) | None) => return moved > 0,
            _ => {
                stack.abort(now, id);
                stack.abort(now, called);
            }
        }
        calls.remove(&id);
        callers.remove(&called);
        true
    }

    fn end_one(&mut self) {
        let Some(id) = self.flow() else { return };
        if let Some(caller) = self.callers.remove(&id).or_else(|| self.calls.contains_key(&id).then_some(id))
            && let Some(call) = self.calls.remove(&caller)
        {
            self.callers.remove(&call.connection);
            self.stack.abort(self.now, call.connection);
            return self.stack.abort(self.now, caller);
        }
        let open = self.sides.remove(&id).is_some();
        match self.input.byte() % 6 {
            0 => self.stack.refuse(id, Refusal::Reset),
            1 => self.stack.refuse(id, Refusal::Unreachable(Unreachable::Host)),
            2 => self.stack.refuse(id, Refusal::Silent),
            3 => self.stack.remove(id),
            4 if open => self.stack.close(id),
            _ => self.stack.abort(self.now, id),
        }
        // A flow that was only closed is nobody's now.
        self.stack.remove(id);
    }

    fn segment(&mut self) {
        let which = self.input.byte();
        let (v6, port) = (which & 1 == 1, 2000 + u16::from(which >> 1 & 1));
        let flags = match self.input.byte() {
            flags @ 0..16 => flags,
            16..64 => SYN,
            64..80 => FIN | ACK,
            80..88 => RST,
            _ => ACK,
        };
        let (sequence, acknowledgment) = (self.near(), self.near());
        let (window, len) = (self.input.word(), usize::from(self.input.byte()) * 4);
        // From the other side of what is forwarded, or from targets of our own connections, if there are any.
        let called = !self.callers.is_empty() && self.forwarded.is_empty();
        let back = which & 0x80 != 0 && (called || !self.forwarded.is_empty());
        let numbers = self.numbers.entry((v6, if back && called { 443 } else { port })).or_default();
        let sequence = numbers.sequence.wrapping_add_signed(sequence);
        let acknowledgment = numbers.acknowledgment.wrapping_add_signed(acknowledgment);
        numbers.sequence = sequence.wrapping_add(len as u32 + u32::from(flags & (SYN | FIN) != 0));
        let mut tcp =
            if back { turned(v6).tcp(443, port, sequence, window) } else { ip(v6).tcp(port, 443, sequence, window) };
        if flags & SYN != 0 {
            tcp = tcp.syn();
        }
        if flags & ACK != 0 {
            tcp = tcp.ack(acknowledgment);
        }
        if flags & FIN != 0 {
            tcp = tcp.fin();
        }
        if flags & RST != 0 {
            tcp = tcp.rst();
        }
        let mut packet = Vec::new();
        tcp.write(&mut packet, &vec![3; len]).unwrap();
        self.inject_from(if back { OUT } else { PEER }, &packet);
    }

    /// Mostly 0, sometimes near it, sometimes anything.
    fn near(&mut self) -> i32 {
        match self.input.byte() {
            0..192 => 0,
            192..240 => i32::from(self.input.byte().cast_signed()),
            _ => (i32::from(self.input.word().cast_signed())) << 16 | i32::from(self.input.word()),
        }
    }

    fn inject(&mut self, packet: &[u8]) {
        self.inject_from(PEER, packet);
    }

    fn inject_from(&mut self, from: IngressId, packet: &[u8]) {
        if let Ok(Arrival::Icmp(message)) = Arrival::parse(packet, ChecksumPolicy::Trusted) {
            let flows = [PEER, OUT].into_iter().filter_map(|from| self.stack.forwarded_by(from, &message));
            for flow in flows.collect::<Vec<_>>() {
                let _ = self.stack.pass_message(self.now, flow, &message, packet.len().is_multiple_of(2));
            }
            if let Some(id) = self.stack.own_connection(OUT, message.about().turned()) {
                let _ = self.stack.hear_error(self.now, id, &message);
            }
            return;
        }
        let Ok(packet) = IpPacket::parse(packet, ChecksumPolicy::Trusted) else { return };
        // Some are many datagrams in one.
        let size = u16::try_from(packet.bytes().len() / 7).unwrap_or(0);
        let offload = Offload { segment_size: Some(size) };
        let packet = if size % 2 == 0 { packet.with_offload(offload).unwrap_or(packet) } else { packet };
        let from = Ingress { id: from, mtu: MTU };
        if packet.hop_limit() <= 1 {
            let own = packet.tuple().destination;
            return self.stack.answer_error(self.now, from, &packet, Unreachable::HopLimit, own);
        }
        let handled = self.stack.handle_packet(self.now, from, &packet);
        if let Ok(Handled::Passes(id, passage)) = handled {
            assert!(self.forwarded.contains(&id));
            let _ = self.stack.send_on(Passage { hop: size % 3 == 0, ..passage }, &packet);
        }
        if let Ok(Handled::Opened(id)) = handled {
            assert!(self.stack.own_connection(from.id, packet.tuple()).is_none());
            assert!(self.alive.insert(id), "a name is used once");
            self.flows.push(id);
            let ours = FlowKey { ingress: from.id, tuple: packet.tuple() };
            assert_eq!(self.stack.key(id), Some(ours));
        }
    }

    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.stack.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    fn settle(&mut self) {
        let mut looks = 0;
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(turns <= MAX_TURNS, "the stack sends and sends at one instant");
            let mut effect = false;
            if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
                let mut idle = Vec::new();
                self.stack.handle_timeout(self.now, |id| idle.push(id));
                for id in idle {
                    self.stack.remove(id);
                    effect = true;
                }
                looks += 1;
            }
            while let Some(id) = self.stack.poll_changed() {
                effect |= self.move_flow(id);
                if self.stack.batch().is_full() {
                    break;
                }
            }
            effect |= self.flush();
            if effect {
                looks = 0;
            }
            let Self { alive, stack, .. } = self;
            alive.retain(|id| stack.key(*id).is_some());
            assert_eq!(stack.len(), alive.len(), "flows in the table are those opened and not removed");
            let due = stack.poll_timeout().is_some_and(|at| at <= self.now);
            assert!(!due || looks <= IDLE_LOOKS, "the timers are due again and again");
            if !due && stack.changed() == 0 {
                return;
            }
        }
    }

    fn move_flow(&mut self, id: FlowId) -> bool {
        let caller = self.callers.get(&id).copied().unwrap_or(id);
        if self.calls.contains_key(&caller) {
            return self.move_call(caller);
        }
        let Self { stack, sides, now, .. } = self;
        let now = *now;
        if let Some(end) = stack.forward_end(id) {
            if matches!(end, ForwardEnd::ClientClosed | ForwardEnd::TargetClosed) {
                stack.release(id);
            } else {
                stack.abort(now, id);
            }
            return true;
        }
        let Some(side) = sides.get_mut(&id) else {
            if stack.client_gave_up(id) {
                stack.remove(id);
                return true;
            }
            stack.transmit(now, id);
            let gone = stack.is_gone(id);
            if gone {
                stack.remove(id);
            }
            return gone;
        };
        let before = (side.to_send, side.appetite, side.closed, side.shut);
        while !side.closed {
            let step = stack.send_with(now, id, |ring| {
                let len = ring.len().min(side.to_send);
                ring[..len].fill(4);
                (len, len)
            });
            match step {
                Some(0) if side.closes => {
                    side.closed = true;
                    stack.close(id);
                }
                Some(0) | None => break,
                Some(len) => {
                    side.to_send -= len;
                    side.given += len as u64;
                }
            }
        }
        loop {
            let step = stack.recv_with(now, id, |ring| {
                let len = ring.len().min(side.appetite);
                (len, len)
            });
            match step {
                Some(0) => break,
                Some(len) => {
                    side.appetite -= len;
                    side.taken += len as u64;
                }
                None => {
                    side.shut |= stack.client_finished(id);
                    break;
                }
            }
        }
        let traffic = stack.traffic(id);
        assert_eq!((traffic.bytes_up, traffic.bytes_down), (side.taken, side.given));
        let moved = before != (side.to_send, side.appetite, side.closed, side.shut);
        stack.transmit(now, id);
        match stack.cause(id) {
            None => return moved,
            Some(CloseCause::Orderly) if !side.shut => return moved,
            Some(CloseCause::Orderly) => stack.release(id),
            Some(CloseCause::ClientReset) => stack.remove(id),
            Some(CloseCause::Timeout | CloseCause::Unreachable) => stack.abort(now, id),
        }
        sides.remove(&id);
        true
    }

    fn flush(&mut self) -> bool {
        let Self { stack, numbers, forwarded, calls_made, .. } = self;
        let calls_made = *calls_made;
        let any = !stack.batch().is_empty();
        stack.batch().drain_complete(|to, packet| {
            if !forwarded.is_empty() {
                // Some of them are as they came.
                return assert!([PEER, OUT].contains(&to));
            }
            assert!(to == PEER || (to == OUT && calls_made));
            assert!(packet.len() <= usize::from(MTU), "{} bytes", packet.len());
            let parsed = match IpPacket::parse(packet, ChecksumPolicy::Verify) {
                Ok(parsed) => parsed,
                // Checksums come before the type; an answer to what came from an odd address goes there.
                Err(DropReason::IcmpType | DropReason::Fragment) => return,
                Err(DropReason::ForbiddenSource | DropReason::ForbiddenDestination) => return,
                // Port 0 of a made-up client.
                Err(DropReason::Malformed) => return,
                Err(reason) => panic!("{reason}: {packet:02x?}"),
            };
            if let Transport::Tcp(segment) = parsed.transport() {
                let v6 = parsed.tuple().source.is_ipv6();
                let at = numbers.entry((v6, parsed.tuple().destination_port)).or_default();
                at.acknowledgment = segment.sequence.wrapping_add(segment.sequence_len());
            }
        });
        any
    }

    /// Dials end by themselves outside of the stack; everything else must end by its own timers.
    fn end(mut self) {
        for id in self.flows.clone() {
            let calls = self.calls.contains_key(&id) || self.callers.contains_key(&id);
            if !calls && !self.sides.contains_key(&id) && self.stack.cause(id).is_none() {
                self.stack.refuse(id, Refusal::Silent);
            }
        }
        self.pass(Duration::from_secs(3 * 600));
        assert!(self.stack.is_empty(), "{:?}", self.stack);
        assert_eq!(self.stack.poll_timeout(), None);
    }
}

const CLIENT: ([u8; 4], [u8; 16]) = ([100, 96, 0, 2], [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
const TARGET: ([u8; 4], [u8; 16]) = ([10, 20, 0, 80], [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80]);

/// From the client to the target.
fn ip(v6: bool) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    between(v6, CLIENT, TARGET)
}

/// From the target to the client.
fn turned(v6: bool) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    between(v6, TARGET, CLIENT)
}

fn between(
    v6: bool,
    from: ([u8; 4], [u8; 16]),
    to: ([u8; 4], [u8; 16]),
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    if v6 { PacketBuilder::ipv6(from.1, to.1, 64) } else { PacketBuilder::ipv4(from.0, to.0, 64) }
}
