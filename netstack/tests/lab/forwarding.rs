//! Flows whose packets go on as they are: what goes out, what comes back, and what is known of them.

use std::time::{Duration, Instant};

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, IpNumber, PacketBuilder};
use portcullis_netstack::packet::{Arrival, ChecksumPolicy, IpFragment, IpPacket};
use portcullis_netstack::segment::Offload;
use portcullis_netstack::{
    DropReason, FiveTuple, FlowId, ForwardEnd, Handled, Ingress, IngressId, Passage, Reassembler, Stack, StackLimits,
    Traffic,
};

use crate::lab::limits;
use crate::raw::{
    ACK, CLIENT, CLIENT6, FIN, PORT, RST, SERVICE, SYN, Segment, TARGET, TARGET6, echo_request, segment, udp,
};

pub(crate) const PEER: IngressId = IngressId(1);
pub(crate) const OUT: IngressId = IngressId(0);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// Initial sequence numbers.
pub(crate) const UP: u32 = 5_000;
pub(crate) const DOWN: u32 = u32::MAX - 100;

/// The way out of packets that carry `tuple` there.
fn away(tuple: FiveTuple) -> Passage {
    Passage { to: Ingress { id: OUT, mtu: 1500 }, tuple, hop: false }
}

pub(crate) struct Between {
    pub(crate) stack: Stack,
    pub(crate) now: Instant,
}

/// A segment of the target.
fn back(flags: u8, sequence: u32, acknowledgment: u32, payload: &[u8]) -> Vec<u8> {
    let mut tcp = PacketBuilder::ipv4(TARGET, CLIENT, 60).tcp(SERVICE, PORT, sequence, 20_000);
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
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, payload).unwrap();
    bytes
}

/// Flags, sequence and acknowledgment number of a TCP packet.
pub(crate) fn told(packet: &[u8]) -> (u8, u32, u32) {
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
    (packet[33], word(24), word(28))
}

impl Between {
    pub(crate) fn new(limits: StackLimits) -> Self {
        #[expect(clippy::disallowed_methods, reason = "instants have no other beginning; it is never compared")]
        let now = Instant::now();
        Self { stack: Stack::new(limits, now), now }
    }

    pub(crate) fn take(&mut self, from: IngressId, packet: &[u8]) -> Result<Handled, DropReason> {
        let packet = IpPacket::parse(packet, ChecksumPolicy::Verify).unwrap();
        self.stack.handle_packet(self.now, Ingress { id: from, mtu: 1280 }, &packet)
    }

    /// Hands in a packet that passes, and sends it on.
    pub(crate) fn take_on(&mut self, from: IngressId, packet: &IpPacket<'_>) {
        match self.stack.handle_packet(self.now, Ingress { id: from, mtu: 1280 }, packet) {
            Ok(Handled::Passes(_, to)) => self.stack.send_on(to, packet).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// A datagram that opens a flow goes on.
    fn open_with(&mut self, ask: &[u8], payload: usize) -> FlowId {
        let id = self.open(ask);
        assert!(self.made().is_empty(), "its datagram is still to be sent on");
        self.stack.delivered(id, payload);
        let packet = IpPacket::parse(ask, ChecksumPolicy::Verify).unwrap().of_fragments();
        self.stack.send_on(away(packet.tuple()), &packet).unwrap();
        id
    }

    pub(crate) fn made(&mut self) -> Vec<(IngressId, Vec<u8>)> {
        let mut made = Vec::new();
        self.stack.batch().drain_complete(|to, packet| made.push((to, packet.to_vec())));
        made
    }

    /// A packet goes on as it is.
    fn passes(&mut self, from: IngressId, packet: &[u8]) {
        self.take_on(from, &IpPacket::parse(packet, ChecksumPolicy::Verify).unwrap());
        let to = if from == PEER { OUT } else { PEER };
        assert_eq!(self.made(), [(to, packet.to_vec())]);
    }

    fn open(&mut self, packet: &[u8]) -> FlowId {
        let Ok(Handled::Opened(id)) = self.take(PEER, packet) else { panic!("a new flow") };
        let tuple = self.stack.key(id).unwrap().tuple;
        assert!(self.stack.forward(self.now, id, away(tuple)));
        id
    }

    /// A connection on which nothing was said yet.
    fn connected(&mut self) -> FlowId {
        let id = self.open(&segment(SYN, UP, 0, 20_000));
        self.made();
        self.passes(OUT, &back(SYN | ACK, DOWN, UP + 1, &[]));
        self.passes(PEER, &segment(ACK, UP + 1, DOWN + 1, 20_000));
        assert!(self.stack.is_established(id));
        id
    }

    fn pass(&mut self, span: Duration) -> Vec<FlowId> {
        let end = self.now + span;
        let mut idle = Vec::new();
        while let Some(at) = self.stack.poll_timeout().filter(|at| *at <= end) {
            self.now = at;
            self.stack.handle_timeout(at, |id| idle.push(id));
        }
        self.now = end;
        idle
    }
}

#[test]
fn a_connection_goes_on_as_it_is_and_ends_when_both_ends_have_closed() {
    let mut between = Between::new(limits());
    let syn = segment(SYN, UP, 0, 20_000);
    let id = between.open(&syn);
    assert_eq!(between.made(), [(OUT, syn.clone())]);
    assert!(!between.stack.is_established(id));
    between.passes(PEER, &syn);
    between.passes(OUT, &back(SYN | ACK, DOWN, UP + 1, &[]));
    let data =
        Segment { v6: false, flags: ACK, sequence: UP + 1, acknowledgment: DOWN + 1, window: 9, payload: b"hello" };
    between.passes(PEER, &data.bytes());
    between.passes(OUT, &back(ACK, DOWN + 1, UP + 6, &[7; 200]));
    // Over the end of the sequence numbers.
    let next = DOWN.wrapping_add(201);
    between.passes(OUT, &back(ACK | FIN, next, UP + 6, &[]));
    between.passes(PEER, &segment(ACK, UP + 6, next + 1, 9));
    assert_eq!(between.stack.forward_end(id), None, "half closed");
    between.passes(PEER, &segment(ACK | FIN, UP + 6, next + 1, 9));
    between.passes(OUT, &back(ACK, next + 1, UP + 7, &[]));
    assert_eq!(between.stack.forward_end(id), Some(ForwardEnd::TargetClosed));
    assert_eq!(between.stack.poll_changed(), Some(id));
    let traffic = between.stack.traffic(id);
    assert_eq!(traffic, Traffic { bytes_up: 5, bytes_down: 200, packets_up: 5, packets_down: 4 });
    // Nobody judges what comes by a connection that is over.
    assert_eq!(between.take(OUT, &back(ACK, next + 1, UP + 7, b"more")), Err(DropReason::NoFlow));
    between.stack.release(id);
    assert!(between.made().is_empty() && between.stack.is_empty());
    assert_eq!(between.stack.forwarded_of(OUT, target_tuple()), None);
}

fn target_tuple() -> portcullis_netstack::FiveTuple {
    IpPacket::parse(&back(ACK, 1, 1, &[]), ChecksumPolicy::Verify).unwrap().tuple()
}

#[test]
fn a_super_packet_stays_one() {
    let mut between = Between::new(limits());
    let id = between.connected();
    let bytes = back(ACK, DOWN + 1, UP + 1, &[1; 5_000]);
    let packet = IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap();
    let offload = Offload { segment_size: Some(1_000) };
    let packet = packet.with_offload(offload).unwrap();
    between.take_on(OUT, &packet);
    let mut made = Vec::new();
    between.stack.batch().drain(|to, packet, offload| made.push((to, packet.len(), offload)));
    assert_eq!(made, [(PEER, 5_040, Some(offload))]);
    assert_eq!(between.stack.traffic(id).packets_down, 6);
}

#[test]
fn resets_end_it_where_their_receiver_believes_them() {
    let mut between = Between::new(limits());
    let id = between.connected();
    between.passes(OUT, &back(RST, DOWN.wrapping_add(100_000), 0, &[]));
    between.passes(OUT, &back(RST, DOWN + 2, 0, &[]));
    assert_eq!(between.stack.forward_end(id), None, "in the window, but the client would ask back");
    between.passes(OUT, &back(RST, DOWN + 1, 0, &[]));
    assert_eq!(between.stack.forward_end(id), Some(ForwardEnd::TargetReset));
    between.stack.abort(between.now, id);
    assert!(between.made().is_empty() && between.stack.is_empty(), "both know");

    let id = between.open(&segment(SYN, UP, 0, 20_000));
    between.made();
    between.passes(OUT, &back(RST | ACK, 0, UP + 2, &[]));
    assert_eq!(between.stack.forward_end(id), None, "it answers another SYN");
    between.passes(OUT, &back(RST | ACK, 0, UP + 1, &[]));
    assert_eq!(between.stack.forward_end(id), Some(ForwardEnd::TargetRefused));
    between.stack.remove(id);

    let id = between.connected();
    between.passes(PEER, &segment(RST, UP + 1, 0, 0));
    assert_eq!(between.stack.forward_end(id), Some(ForwardEnd::ClientReset));
    // The tuple is free again before anybody looked.
    let Ok(Handled::Opened(next)) = between.take(PEER, &segment(SYN, UP + 900, 0, 20_000)) else { panic!("new") };
    let tuple = between.stack.key(next).unwrap().tuple;
    assert!(between.stack.forward(between.now, next, away(tuple)));
    between.stack.remove(id);
    between.made();
    between.passes(OUT, &back(SYN | ACK, DOWN, UP + 901, &[]));
    assert!(between.stack.is_established(next));
}

#[test]
fn both_ends_hear_that_it_was_ended() {
    let mut between = Between::new(limits());
    let id = between.connected();
    between.passes(OUT, &back(ACK, DOWN + 1, UP + 1, &[1; 50]));
    between.stack.abort(between.now, id);
    let made: Vec<_> = between.made().into_iter().map(|(to, packet)| (to, told(&packet))).collect();
    // Where each of them waits for the next byte, as far as we know.
    assert_eq!(made, [(PEER, (4, DOWN + 1, 0)), (OUT, (4, UP + 1, 0))]);
    // The client had more than it acknowledged, so it asks (RFC 5961), and hears it again.
    assert_eq!(between.take(PEER, &segment(ACK, UP + 1, DOWN + 51, 9)), Err(DropReason::NoFlow));
    assert_eq!(between.take(OUT, &back(ACK, DOWN + 51, UP + 1, &[1; 50])), Err(DropReason::NoFlow));
    let made: Vec<_> = between.made().into_iter().map(|(to, packet)| (to, told(&packet))).collect();
    assert_eq!(made, [(PEER, (4, DOWN + 51, 0)), (OUT, (4, UP + 1, 0))]);
    assert_eq!(between.take(OUT, &back(RST, DOWN + 51, 0, &[])), Err(DropReason::NoFlow));
    assert!(between.made().is_empty(), "a reset is not answered");
    let unreachable = Icmpv4Type::Unknown { type_u8: 3, code_u8: 1, bytes5to8: [0; 4] };
    let sent = Segment { v6: false, flags: ACK, sequence: UP, acknowledgment: DOWN, window: 9, payload: b"x" }.bytes();
    assert_eq!(message(&mut between, TARGET, unreachable, &sent), Err(DropReason::NoFlow), "no word of anybody");
    between.pass(11 * SECOND);
    assert!(between.stack.is_empty());

    let id = between.open(&segment(SYN, UP, 0, 20_000));
    between.made();
    between.stack.abort(between.now, id);
    let made: Vec<_> = between.made().into_iter().map(|(to, packet)| (to, told(&packet))).collect();
    assert_eq!(made, [(PEER, (4 | 16, 0, UP + 1)), (OUT, (4, UP + 1, 0))]);
}

#[test]
fn a_syn_may_have_data() {
    let syn = |payload| Segment { v6: false, flags: SYN, sequence: UP, acknowledgment: 0, window: 9, payload };
    for (first, second, acknowledged) in
        [(&b"hello"[..], None, 1), (b"hello", Some(&b""[..]), 6), (b"hello", Some(b""), 1)]
    {
        let mut between = Between::new(limits());
        let id = between.open(&syn(first).bytes());
        between.made();
        if let Some(second) = second {
            between.passes(PEER, &syn(second).bytes());
        }
        between.passes(OUT, &back(SYN | ACK, DOWN, UP + 7, &[]));
        assert!(!between.stack.is_established(id), "what was not sent");
        between.passes(OUT, &back(SYN | ACK, DOWN, UP + acknowledged, &[]));
        assert!(between.stack.is_established(id), "{first:?}, {second:?}");
    }
}

#[test]
fn silence_ends_it() {
    let mut between = Between::new(StackLimits { tcp_idle: SECOND * 100, ..limits() });
    let id = between.open(&segment(SYN, UP, 0, 20_000));
    between.pass(9 * SECOND);
    between.made();
    between.passes(PEER, &segment(SYN, UP, 0, 20_000));
    between.pass(2 * SECOND);
    assert_eq!(between.stack.forward_end(id), Some(ForwardEnd::NoAnswer), "however often the client asks");
    between.stack.abort(between.now, id);
    let resets = |between: &mut Between| -> Vec<_> {
        between.made().into_iter().map(|(to, packet)| (to, told(&packet))).collect()
    };
    assert_eq!(resets(&mut between), [(OUT, (4, UP + 1, 0))], "the client goes on asking");
    assert_eq!(between.take(OUT, &back(SYN | ACK, DOWN, UP + 1, &[])), Err(DropReason::NoFlow));
    assert_eq!(resets(&mut between), [(OUT, (4, UP + 1, 0))], "too late");
    let Ok(Handled::Opened(again)) = between.take(PEER, &segment(SYN, UP, 0, 20_000)) else { panic!("a new flow") };
    between.stack.remove(again);
    let id = between.connected();
    between.pass(60 * SECOND);
    between.passes(PEER, &segment(ACK, UP, DOWN + 1, 9));
    between.pass(60 * SECOND);
    assert_eq!(between.stack.forward_end(id), None);
    between.pass(60 * SECOND);
    assert_eq!(between.stack.forward_end(id), Some(ForwardEnd::Idle));
}

#[test]
fn datagrams_and_echoes_go_on_and_come_back() {
    let mut between = Between::new(limits());
    let ask = udp(false, 53, b"question");
    let id = between.open_with(&ask, 8);
    assert_eq!(between.made(), [(OUT, ask)]);
    let mut answer = Vec::new();
    PacketBuilder::ipv4(TARGET, CLIENT, 60).udp(53, PORT).write(&mut answer, b"answer").unwrap();
    between.passes(OUT, &answer);
    assert_eq!(between.stack.traffic(id), Traffic { bytes_up: 8, bytes_down: 6, packets_up: 1, packets_down: 1 },);
    // One that the kernel left the checksum of to us, and that says nothing.
    let mut empty = Vec::new();
    PacketBuilder::ipv4(TARGET, CLIENT, 60).udp(53, PORT).write(&mut empty, b"").unwrap();
    let packet = IpPacket::parse(&empty, ChecksumPolicy::Verify).unwrap();
    let packet = packet.with_offload(Offload { segment_size: None }).unwrap();
    between.take_on(OUT, &packet);
    assert_eq!(between.made(), [(PEER, empty)]);
    assert_eq!(between.pass(29 * SECOND), []);
    assert_eq!(between.pass(2 * SECOND), [id]);
    between.stack.remove(id);
    let stranger = IpPacket::parse(&answer, ChecksumPolicy::Verify).unwrap().tuple();
    assert_eq!(between.stack.forwarded_of(OUT, stranger), None);

    let ask = echo_request(false, 7, 1, b"ping");
    let id = between.open_with(&ask, 4);
    assert_eq!(between.made(), [(OUT, ask)]);
    let header = etherparse::IcmpEchoHeader { id: 7, seq: 1 };
    message(&mut between, TARGET, Icmpv4Type::EchoReply(header), b"ping").unwrap();
    assert_eq!(between.stack.traffic(id).bytes_down, 4);
    let header = etherparse::IcmpEchoHeader { id: 8, seq: 1 };
    assert_eq!(message(&mut between, TARGET, Icmpv4Type::EchoReply(header), b"ping"), Err(DropReason::NoFlow));
}

#[test]
fn one_that_was_answered_may_be_over_sooner() {
    let mut between = Between::new(StackLimits { udp_idle: 5 * SECOND, ..limits() });
    let forwarded = between.open_with(&udp(false, 7, b"question"), 8);
    let Ok(Handled::Opened(ended_here)) = between.take(PEER, &udp(false, 8, b"question")) else { panic!("a new flow") };
    assert_eq!(between.pass(4 * SECOND), []);
    let mut answer = Vec::new();
    PacketBuilder::ipv4(TARGET, CLIENT, 60).udp(7, PORT).write(&mut answer, b"answer").unwrap();
    between.made();
    between.passes(OUT, &answer);
    between.stack.send_datagram(between.now, ended_here, b"answer");
    assert_eq!(between.pass(4 * SECOND), []);
    assert_eq!(between.pass(2 * SECOND), [forwarded, ended_here]);
}

#[test]
fn what_nobody_looks_into_goes_on_and_comes_back() {
    const GRE: IpNumber = IpNumber::GRE;
    let packet = |from, to, data: &[u8]| {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(from, to, 60).write(&mut bytes, GRE, data).unwrap();
        bytes
    };
    let mut between = Between::new(limits());
    let ask = packet(CLIENT, TARGET, &[0, 0, 8]);
    let id = between.open_with(&ask, 3);
    assert_eq!(between.made(), [(OUT, ask.clone())]);
    assert_eq!(between.pass(29 * SECOND), []);
    between.passes(OUT, &packet(TARGET, CLIENT, &[7; 1200]));
    between.passes(PEER, &packet(CLIENT, TARGET, &[]));
    assert_eq!(between.stack.traffic(id), Traffic { bytes_up: 3, bytes_down: 1200, packets_up: 2, packets_down: 1 });
    let too_big = Icmpv4Type::Unknown { type_u8: 3, code_u8: 4, bytes5to8: [0, 0, 5, 0] };
    message(&mut between, [10, 9, 9, 9], too_big.clone(), &ask).unwrap();
    let esp = {
        let mut bytes = ask.clone();
        bytes[9] = 50;
        bytes
    };
    assert_eq!(message(&mut between, [10, 9, 9, 9], too_big, &esp), Err(DropReason::NoFlow), "of another protocol");

    // Cut where it may be, as it came; else its sender is to hear.
    let large = packet(TARGET, CLIENT, &[9; 3_000]);
    let parsed = IpPacket::parse(&large, ChecksumPolicy::Verify).unwrap();
    between.take_on(OUT, &parsed.of_fragments());
    assert_eq!(whole(&between.made(), PEER, 1280), [9; 3_000]);
    let mut whole_only = large.clone();
    whole_only[6] |= 0x40;
    whole_only[10..12].fill(0);
    let sum = !whole_only[..20].chunks(2).fold(0u32, |sum, word| {
        let sum = sum + u32::from(u16::from_be_bytes([word[0], word[1]]));
        (sum & 0xffff) + (sum >> 16)
    });
    whole_only[10..12].copy_from_slice(&u16::try_from(sum & 0xffff).unwrap().to_be_bytes());
    let parsed = IpPacket::parse(&whole_only, ChecksumPolicy::Verify).unwrap();
    let Ok(Handled::Passes(_, passage)) = between.take(OUT, &whole_only) else { panic!("it passes") };
    assert_eq!(between.stack.send_on(passage, &parsed), Err(DropReason::TooBig));

    assert_eq!(between.pass(119 * SECOND), []);
    assert_eq!(between.pass(2 * SECOND), [id]);
    assert!(
        matches!(between.take(PEER, &packet(CLIENT, [10, 20, 0, 11], &[])), Ok(Handled::Opened(_))),
        "another target"
    );
}

/// Hands in an ICMP message from the target's side, which must come out as it is.
fn message(between: &mut Between, from: [u8; 4], icmp: Icmpv4Type, data: &[u8]) -> Result<(), DropReason> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(from, CLIENT, 60).icmpv4(icmp).write(&mut bytes, data).unwrap();
    let Ok(Arrival::Icmp(message)) = Arrival::parse(&bytes, ChecksumPolicy::Verify) else { panic!("a message") };
    let flow = between.stack.forwarded_by(OUT, &message).ok_or(DropReason::NoFlow)?;
    between.stack.pass_message(between.now, flow, &message, false)?;
    assert_eq!(between.made(), [(PEER, bytes)]);
    Ok(())
}

#[test]
fn the_gateways_own_word_comes_in_the_name_of_the_target() {
    let mut between = Between::new(limits());
    let syn = segment(SYN, UP, 0, 20_000);
    between.open(&syn);
    between.made();
    let mut v4 = Vec::new();
    let unreachable = Icmpv4Type::Unknown { type_u8: 3, code_u8: 1, bytes5to8: [0; 4] };
    PacketBuilder::ipv4([10, 9, 9, 9], CLIENT, 60).icmpv4(unreachable).write(&mut v4, &syn).unwrap();
    let syn = Segment { v6: true, flags: SYN, sequence: UP, acknowledgment: 0, window: 9, payload: &[] }.bytes();
    between.open(&syn);
    between.made();
    let mut v6 = Vec::new();
    let unreachable = Icmpv6Type::Unknown { type_u8: 1, code_u8: 3, bytes5to8: [0; 4] };
    PacketBuilder::ipv6([0xfc; 16], CLIENT6, 60).icmpv6(unreachable).write(&mut v6, &syn).unwrap();
    for (bytes, target) in [(v4, IpAddr::from(TARGET)), (v6, TARGET6.into())] {
        let parse = |bytes: &[u8]| match Arrival::parse(bytes, ChecksumPolicy::Verify) {
            Ok(Arrival::Icmp(message)) => (message.source(), message.about(), message.kind()),
            other => panic!("{other:?}"),
        };
        let Ok(Arrival::Icmp(message)) = Arrival::parse(&bytes, ChecksumPolicy::Verify) else { panic!("a message") };
        let flow = between.stack.forwarded_by(OUT, &message).unwrap();
        between.stack.pass_message(between.now, flow, &message, true).unwrap();
        let made = between.made();
        // Its checksums hold.
        assert_eq!(parse(&made[0].1), (target, message.about(), message.kind()));
    }
}

#[test]
fn what_was_put_together_of_fragments_is_cut_anew() {
    let mut between = Between::new(limits());
    let large = vec![7; 4_000];
    for v6 in [false, true] {
        for ask in [udp(v6, 7, &large), echo_request(v6, 9, 3, &large)] {
            between.open_with(&ask, large.len());
            assert_eq!(whole(&between.made(), OUT, 1500), whole(&[(OUT, ask.clone())], OUT, u16::MAX));
        }
        let (client, target) = (IpAddr::from(CLIENT), IpAddr::from(TARGET));
        let (client, target) = if v6 { (CLIENT6.into(), TARGET6.into()) } else { (client, target) };
        let answer = |packet: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            packet(&mut bytes);
            bytes
        };
        let ip = || match (target, client) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 60),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 60),
            _ => panic!("one family"),
        };
        let datagram = answer(&|bytes| ip().udp(7, PORT).write(bytes, &large).unwrap());
        between.take_on(OUT, &IpPacket::parse(&datagram, ChecksumPolicy::Verify).unwrap().of_fragments());
        assert_eq!(whole(&between.made(), PEER, 1280), whole(&[(PEER, datagram)], PEER, u16::MAX));
        let header = etherparse::IcmpEchoHeader { id: 9, seq: 3 };
        let reply = answer(&|bytes| match v6 {
            false => ip().icmpv4(Icmpv4Type::EchoReply(header)).write(bytes, &large).unwrap(),
            true => ip().icmpv6(Icmpv6Type::EchoReply(header)).write(bytes, &large).unwrap(),
        });
        let Ok(Arrival::Icmp(message)) = Arrival::parse(&reply, ChecksumPolicy::Verify) else { panic!("a message") };
        let flow = between.stack.forwarded_by(OUT, &message).unwrap();
        between.stack.pass_message(between.now, flow, &message, false).unwrap();
        assert_eq!(whole(&between.made(), PEER, 1280), whole(&[(PEER, reply)], PEER, u16::MAX));
    }
}

/// What packets that go to one place, none larger than `mtu`, are put together: all behind the IP header.
fn whole(packets: &[(IngressId, Vec<u8>)], to: IngressId, mtu: u16) -> Vec<u8> {
    let mut reassembler = Reassembler::default();
    for (place, packet) in packets {
        assert!(*place == to && packet.len() <= usize::from(mtu), "{} bytes", packet.len());
        let Ok(Some(fragment)) = IpFragment::parse(packet) else {
            return packet[if packet[0] >> 4 == 4 { 20 } else { 40 }..].to_vec();
        };
        #[expect(clippy::disallowed_methods, reason = "no time passes here")]
        let now = Instant::now();
        if let Some(whole) = reassembler.handle_fragment(now, to, &"", &fragment).unwrap() {
            return whole[if whole[0] >> 4 == 4 { 20 } else { 40 }..].to_vec();
        }
    }
    panic!("something is missing");
}

#[test]
fn errors_reach_the_client_when_they_are_about_what_it_sent() {
    let mut between = Between::new(limits());
    let router = [10, 9, 9, 9];
    let unreachable = Icmpv4Type::Unknown { type_u8: 3, code_u8: 1, bytes5to8: [0; 4] };
    let syn = segment(SYN, UP, 0, 20_000);
    assert_eq!(message(&mut between, router, unreachable.clone(), &syn), Err(DropReason::NoFlow));
    let id = between.open(&syn);
    between.made();
    message(&mut between, router, unreachable.clone(), &syn).unwrap();
    let other = segment(SYN, UP + 5, 0, 20_000);
    assert_eq!(message(&mut between, router, unreachable.clone(), &other), Err(DropReason::IcmpType), "never sent");
    between.pass(11 * SECOND);
    assert_eq!(between.stack.forward_end(id), Some(ForwardEnd::TargetUnreachable));
    between.stack.remove(id);

    let id = between.connected();
    let data =
        Segment { v6: false, flags: ACK, sequence: UP + 1, acknowledgment: DOWN + 1, window: 9, payload: &[0; 900] };
    between.passes(PEER, &data.bytes());
    let too_big = Icmpv4Type::Unknown { type_u8: 3, code_u8: 4, bytes5to8: [0, 0, 2, 64] };
    message(&mut between, router, too_big, &data.bytes()[..28]).unwrap();
    message(&mut between, router, unreachable, &data.bytes()[..28]).unwrap();
    assert_eq!(between.stack.forward_end(id), None, "RFC 5927: no error ends a connection that is open");
}
