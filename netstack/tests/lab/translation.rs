//! Forwarded flows whose packets carry other addresses where they go on, and do not fit there.

use std::net::IpAddr;

use etherparse::{Icmpv4Type, PacketBuilder};
use portcullis_netstack::packet::build::Unreachable;
use portcullis_netstack::packet::{Arrival, ChecksumPolicy, IcmpKind, IpPacket, Transport};
use portcullis_netstack::segment::Offload;
use portcullis_netstack::{DropReason, FiveTuple, FlowId, Handled, Ingress, Passage};

use crate::forwarding::{Between, DOWN, OUT, PEER, UP, told};
use crate::lab::limits;
use crate::raw::{ACK, CLIENT, PORT, SERVICE, SYN, Segment, TARGET, echo_request, segment, udp};

/// Ours where packets go on to, and the port that the flow has there.
const SITE: [u8; 4] = [10, 99, 0, 2];
const SITE_PORT: u16 = 40_000;

fn passage(tuple: FiveTuple, mtu: u16) -> Passage {
    let tuple = FiveTuple { source: SITE.into(), source_port: SITE_PORT, ..tuple };
    Passage { to: Ingress { id: OUT, mtu }, tuple, hop: true }
}

fn parse(bytes: &[u8]) -> IpPacket<'_> {
    IpPacket::parse(bytes, ChecksumPolicy::Verify).expect("a packet whose checksums hold")
}

impl Between {
    /// Opens a flow that goes on as one of ours.
    fn translate(&mut self, packet: &[u8]) -> FlowId {
        let Ok(Handled::Opened(id)) = self.take(PEER, packet) else { panic!("a new flow") };
        let tuple = self.stack.key(id).unwrap().tuple;
        assert!(self.stack.forward(self.now, id, passage(tuple, 1280)));
        id
    }
}

/// A segment of the target to where it thinks the client is.
fn to_site(flags: u8, sequence: u32, acknowledgment: u32, payload: &[u8]) -> Vec<u8> {
    let mut tcp = PacketBuilder::ipv4(TARGET, SITE, 60).tcp(SERVICE, SITE_PORT, sequence, 20_000);
    if flags & SYN != 0 {
        tcp = tcp.syn();
    }
    let mut bytes = Vec::new();
    tcp.ack(acknowledgment).write(&mut bytes, payload).unwrap();
    bytes
}

#[test]
fn a_connection_is_ours_at_the_site_and_the_clients_here() {
    let mut between = Between::new(limits());
    let id = between.translate(&segment(SYN, UP, 0, 20_000));
    let made = between.made();
    let sent = FiveTuple {
        protocol: portcullis_netstack::Protocol::Tcp,
        source: SITE.into(),
        source_port: SITE_PORT,
        destination: TARGET.into(),
        destination_port: SERVICE,
    };
    assert_eq!((made[0].0, parse(&made[0].1).tuple(), parse(&made[0].1).hop_limit()), (OUT, sent, 63));
    between.take_on(OUT, &parse(&to_site(SYN | ACK, DOWN, UP + 1, &[])));
    let made = between.made();
    let own = parse(&segment(SYN, 0, 0, 0)).tuple();
    assert_eq!((made[0].0, parse(&made[0].1).tuple()), (PEER, own.turned()));
    between.take_on(OUT, &parse(&to_site(ACK, DOWN + 1, UP + 1, b"hello")));
    let made = between.made();
    assert!(matches!(parse(&made[0].1).transport(), Transport::Tcp(segment) if segment.payload == b"hello"));
    assert_eq!(between.stack.traffic(id).bytes_down, 5);

    // It is another's to use as long as it lives.
    let Ok(Handled::Opened(second)) = between.take(PEER, &other_port(segment(SYN, UP, 0, 20_000))) else { panic!() };
    let tuple = between.stack.key(second).unwrap().tuple;
    assert!(!between.stack.forward(between.now, second, passage(tuple, 1280)));
    between.stack.remove(second);

    between.stack.abort(between.now, id);
    let made = between.made();
    let resets: Vec<_> = made.iter().map(|(to, reset)| (*to, parse(reset).tuple(), told(reset).0)).collect();
    assert_eq!(resets, [(PEER, own.turned(), 4), (OUT, sent, 4)]);
}

/// The same from the port before.
fn other_port(mut packet: Vec<u8>) -> Vec<u8> {
    packet[20..22].copy_from_slice(&(PORT - 1).to_be_bytes());
    // Its sum: one less there, one more here.
    let sum = u16::from_be_bytes([packet[36], packet[37]]);
    packet[36..38].copy_from_slice(&(sum + 1).to_be_bytes());
    packet
}

fn message(icmp: Icmpv4Type, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4([10, 9, 9, 9], SITE, 60).icmpv4(icmp).write(&mut bytes, data).unwrap();
    bytes
}

fn pass(between: &mut Between, bytes: &[u8]) -> Vec<u8> {
    let Ok(Arrival::Icmp(message)) = Arrival::parse(bytes, ChecksumPolicy::Verify) else { panic!("a message") };
    let flow = between.stack.forwarded_by(OUT, &message).expect("its flow");
    between.stack.pass_message(between.now, flow, &message, false).unwrap();
    let mut made = between.made();
    assert_eq!(made[0].0, PEER);
    made.remove(0).1
}

#[test]
fn datagrams_echoes_and_errors_find_back() {
    let mut between = Between::new(limits());
    let ask = udp(false, 53, b"question");
    between.translate(&ask);
    let tuple = parse(&ask).tuple();
    between.stack.send_on(passage(tuple, 1280), &parse(&ask)).unwrap();
    let sent = between.made().remove(0).1;
    assert_eq!(parse(&sent).tuple(), passage(tuple, 0).tuple);
    let unreachable = Icmpv4Type::Unknown { type_u8: 3, code_u8: 3, bytes5to8: [0; 4] };
    let told = pass(&mut between, &message(unreachable, &sent));
    let Ok(Arrival::Icmp(told)) = Arrival::parse(&told, ChecksumPolicy::Verify) else { panic!("a message") };
    assert_eq!((told.about(), told.source()), (tuple, IpAddr::from([10, 9, 9, 9])));
    let mut answer = Vec::new();
    PacketBuilder::ipv4(TARGET, SITE, 60).udp(53, SITE_PORT).write(&mut answer, b"answer").unwrap();
    between.take_on(OUT, &parse(&answer));
    assert_eq!(parse(&between.made()[0].1).tuple(), tuple.turned());

    let ask = echo_request(false, 7, 1, b"ping");
    between.translate(&ask);
    let tuple = parse(&ask).tuple();
    between.stack.send_on(passage(tuple, 1280), &parse(&ask)).unwrap();
    assert_eq!(parse(&between.made()[0].1).tuple().source_port, SITE_PORT);
    let header = etherparse::IcmpEchoHeader { id: SITE_PORT, seq: 1 };
    let mut reply = Vec::new();
    PacketBuilder::ipv4(TARGET, SITE, 60).icmpv4(Icmpv4Type::EchoReply(header)).write(&mut reply, b"ping").unwrap();
    let told = pass(&mut between, &reply);
    let Ok(Arrival::Icmp(told)) = Arrival::parse(&told, ChecksumPolicy::Verify) else { panic!("a message") };
    assert_eq!((told.about(), told.kind()), (tuple, IcmpKind::EchoReply { sequence: 1, data: 4 }));
}

#[test]
fn what_does_not_fit_is_cut_or_refused() {
    let mut between = Between::new(limits());
    between.translate(&segment(SYN, UP, 0, 20_000));
    between.take_on(OUT, &parse(&to_site(SYN | ACK, DOWN, UP + 1, &[])));
    between.made();
    // A TCP segment may be two: whoever receives them cannot tell.
    let payload: Vec<u8> = (0..1_460u32).map(|i| i as u8).collect();
    let data =
        Segment { v6: false, flags: ACK, sequence: UP + 1, acknowledgment: DOWN + 1, window: 9, payload: &payload };
    for offload in [None, Some(Offload { segment_size: None }), Some(Offload { segment_size: Some(1_460) })] {
        let bytes = data.bytes();
        let packet = parse(&bytes);
        let packet = offload.map_or(packet, |offload| packet.with_offload(offload).unwrap());
        between.take_on(PEER, &packet);
        let made = between.made();
        let parts: Vec<_> = made.iter().map(|(_, part)| parse(part)).collect();
        assert!(parts.iter().all(|part| part.bytes().len() <= 1280));
        let carried = parts.iter().flat_map(|part| match part.transport() {
            Transport::Tcp(segment) => segment.payload.to_vec(),
            Transport::Udp(_) | Transport::Echo(_) | Transport::Other(_) => panic!("TCP"),
        });
        assert_eq!((parts.len(), carried.collect::<Vec<_>>()), (2, payload.clone()));
    }
    // etherparse forbids to cut what it makes.
    let large = udp(false, 53, &[7; 1_400]);
    between.translate(&large);
    let tuple = parse(&large).tuple();
    assert_eq!(between.stack.send_on(passage(tuple, 1280), &parse(&large)), Err(DropReason::TooBig));
    between.stack.send_on(passage(tuple, 1280), &parse(&large).of_fragments()).unwrap();
    assert_eq!(between.made().len(), 2);
    let own = "100.96.0.1".parse().unwrap();
    let from = Ingress { id: PEER, mtu: 1500 };
    between.stack.answer_error(between.now, from, &parse(&large), Unreachable::TooBig(1280), own);
    let told = between.made().remove(0).1;
    assert_eq!(
        (&told[12..20], &told[20..22], &told[26..28]),
        (&[[100, 96, 0, 1], CLIENT].concat()[..], &[3, 4][..], &1280u16.to_be_bytes()[..])
    );
}
