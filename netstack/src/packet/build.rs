//! Packets the stack makes itself: datagrams, echo replies, resets and ICMP errors towards the client.
//!
//! Every function takes the client's tuple and answers in the other direction, from the target's address.

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

use crate::batch::PacketBatch;
use crate::packet::{TcpSegment, checksum};
use crate::segment::Offload;
use crate::tuple::{FiveTuple, IngressId};

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
const IPV6_FRAGMENT_HEADER: usize = 8;
pub(crate) const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
pub(crate) const TCP_HEADER: usize = 20;
const HOP_LIMIT: u8 = 64;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Most bytes of a packet that are quoted in an ICMP error: the longest IPv4 header, or an IPv6 header, and 8 bytes
/// of transport (RFC 792; RFC 4443 asks for more where it fits, and no receiver needs it).
pub const QUOTE: usize = 68;

/// No client is told to send smaller packets than this.
pub(crate) const LEAST_MTU_V4: u16 = 576;
/// The same for IPv6.
pub(crate) const LEAST_MTU_V6: u16 = 1280;

/// Why a packet cannot go on, in the words of ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No route, RFC 792 code 0, RFC 4443 code 0.
    Network,
    /// The host does not answer, RFC 792 code 1, RFC 4443 code 3.
    Host,
    /// Nothing listens on the port, RFC 792 code 3, RFC 4443 code 4.
    Port,
    /// The policy forbids it, RFC 1812 code 13, RFC 4443 code 1.
    Prohibited,
    /// It does not fit the path, RFC 1191, RFC 4443 type 2; the largest packet that would, in bytes.
    TooBig(u16),
    /// It took as many hops as it may: time exceeded, RFC 792 type 11, RFC 4443 type 3.
    HopLimit,
}

/// An ICMP error about a packet of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// What it says.
    pub error: Unreachable,
    /// Who says it; the target where nobody else does.
    pub from: Option<IpAddr>,
    /// The sequence number of the echo request that it is about; the last one where it is not known.
    pub sequence: Option<u16>,
}

impl From<Unreachable> for Reported {
    fn from(error: Unreachable) -> Self {
        Self { error, from: None, sequence: None }
    }
}

impl Unreachable {
    /// Type, code and the second word of the ICMP header.
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::Network => (3, 0, 0),
            Self::Host => (3, 1, 0),
            Self::Port => (3, 3, 0),
            Self::Prohibited => (3, 13, 0),
            // RFC 791 section 3.2: what every host takes.
            Self::TooBig(mtu) => (3, 4, u32::from(mtu.max(LEAST_MTU_V4))),
            Self::HopLimit => (11, 0, 0),
        }
    }

    fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::Network => (1, 0, 0),
            Self::Prohibited => (1, 1, 0),
            Self::Host => (1, 3, 0),
            Self::Port => (1, 4, 0),
            // RFC 8200 section 5: what every link carries.
            Self::TooBig(mtu) => (2, 0, u32::from(mtu.max(LEAST_MTU_V6))),
            Self::HopLimit => (3, 0, 0),
        }
    }
}

/// Where answers go, and how large they may be.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    /// The client's on-ramp.
    pub to: IngressId,
    /// The client's tuple; answers go from its destination to its source.
    pub tuple: FiveTuple,
    /// Largest IP packet towards the client, in bytes.
    pub mtu: u16,
    /// Identification of the packet, should it have to be fragmented.
    pub identification: u32,
}

/// A packet of a protocol that we do not look into, in fragments where it does not fit.
pub(crate) fn opaque(batch: &mut PacketBatch, reply: Reply, number: u8, payload: &[u8]) -> usize {
    datagram(batch, reply, IpProtocol::from(number), &[], payload)
}

/// A UDP datagram from the target, in fragments where it does not fit.
pub fn udp(batch: &mut PacketBatch, reply: Reply, payload: &[u8]) -> usize {
    let length = UDP_HEADER + payload.len();
    let mut header = [0; UDP_HEADER];
    put16(&mut header, 0, reply.tuple.destination_port);
    put16(&mut header, 2, reply.tuple.source_port);
    put16(&mut header, 4, u16::try_from(length).unwrap_or(0));
    let sum = transport_checksum(&reply, IpProtocol::Udp, &[&header, payload]);
    // RFC 768: a computed 0 is sent as all ones, because 0 means "none".
    put16(&mut header, 6, if sum == 0 { 0xffff } else { sum });
    datagram(batch, reply, IpProtocol::Udp, &header, payload)
}

/// UDP datagrams of `size` bytes from the target, the last of which may be shorter: in one super-packet, where each of
/// them fits.
pub fn udp_run(batch: &mut PacketBatch, reply: Reply, run: &[u8], size: usize) -> usize {
    let ip_header = if reply.tuple.destination.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
    let headers = ip_header + UDP_HEADER;
    let segment_size = u16::try_from(size).ok().filter(|size| *size > 0);
    if segment_size.is_none()
        || run.len() <= size
        || headers + size > usize::from(reply.mtu)
        || headers + run.len() > usize::from(u16::MAX)
    {
        let (first, rest) = run.split_at(size.min(run.len()));
        return udp(batch, reply, first)
            + rest.chunks(size.max(1)).map(|payload| udp(batch, reply, payload)).sum::<usize>();
    }
    batch.push_offloaded_with(reply.to, headers + run.len(), Offload { segment_size }, |packet| {
        ip(packet, packet.len(), &reply, IpProtocol::Udp, None);
        put16(packet, ip_header, reply.tuple.destination_port);
        put16(packet, ip_header + 2, reply.tuple.source_port);
        put16(packet, ip_header + 4, u16::try_from(UDP_HEADER + run.len()).unwrap_or(0));
        put(packet, headers, run);
    });
    run.len().div_ceil(size)
}

/// The reply to an echo request.
pub fn echo_reply(batch: &mut PacketBatch, reply: Reply, sequence: u16, data: &[u8]) -> usize {
    let kind = if reply.tuple.destination.is_ipv4() { 0 } else { 129 };
    echo(batch, reply, (kind, reply.tuple.source_port), sequence, data)
}

/// An echo request, as the client of the turned tuple made it.
pub(crate) fn echo_request(batch: &mut PacketBatch, reply: Reply, sequence: u16, data: &[u8]) -> usize {
    let kind = if reply.tuple.destination.is_ipv4() { 8 } else { 128 };
    echo(batch, reply, (kind, reply.tuple.destination_port), sequence, data)
}

fn echo(batch: &mut PacketBatch, reply: Reply, (kind, identifier): (u8, u16), sequence: u16, data: &[u8]) -> usize {
    let mut header = [0; ICMP_HEADER];
    put8(&mut header, 0, kind);
    put16(&mut header, 4, identifier);
    put16(&mut header, 6, sequence);
    icmp_datagram(batch, reply, &mut header, data)
}

/// An ICMP error about the packet that begins with `quote`.
pub fn unreachable(batch: &mut PacketBatch, reply: Reply, error: Unreachable, quote: &[u8]) -> usize {
    let (kind, code, word) = if reply.tuple.destination.is_ipv4() { error.v4() } else { error.v6() };
    let mut header = [0; ICMP_HEADER];
    put8(&mut header, 0, kind);
    put8(&mut header, 1, code);
    put32(&mut header, 4, word);
    icmp_datagram(batch, reply, &mut header, quote)
}

/// The reset that refuses `segment`, RFC 9293 section 3.10.7.1.
pub fn tcp_reset(batch: &mut PacketBatch, reply: Reply, segment: &TcpSegment<'_>) -> usize {
    let mut header = [0; TCP_HEADER];
    put16(&mut header, 0, reply.tuple.destination_port);
    put16(&mut header, 2, reply.tuple.source_port);
    if segment.ack {
        put32(&mut header, 4, segment.acknowledgment);
        put8(&mut header, 13, RST);
    } else {
        put32(&mut header, 8, segment.sequence.wrapping_add(segment.sequence_len()));
        put8(&mut header, 13, RST | ACK);
    }
    put8(&mut header, 12, 5 << 4);
    let sum = transport_checksum(&reply, IpProtocol::Tcp, &[&header]);
    put16(&mut header, 16, sum);
    datagram(batch, reply, IpProtocol::Tcp, &header, &[])
}

/// Length of [`client_acknowledgment`].
pub(crate) const CLIENT_ACKNOWLEDGMENT: usize = IPV6_HEADER + TCP_HEADER;

/// An acknowledgment as the client of `tuple` might send it, without checksums, and its length. It never leaves the
/// gateway: it tells smoltcp what the client means.
pub(crate) fn client_acknowledgment(
    tuple: &FiveTuple,
    sequence: u32,
    acknowledgment: u32,
    window: u16,
) -> ([u8; CLIENT_ACKNOWLEDGMENT], usize) {
    let mut packet = [0; CLIENT_ACKNOWLEDGMENT];
    let turned = FiveTuple { source: tuple.destination, destination: tuple.source, ..*tuple };
    let reply = Reply { to: IngressId(0), tuple: turned, mtu: u16::MAX, identification: 0 };
    let header = if tuple.source.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
    let (head, tcp) = packet.split_at_mut(header);
    ip(head, header + TCP_HEADER, &reply, IpProtocol::Tcp, None);
    put16(tcp, 0, tuple.source_port);
    put16(tcp, 2, tuple.destination_port);
    put32(tcp, 4, sequence);
    put32(tcp, 8, acknowledgment);
    put8(tcp, 12, 5 << 4);
    put8(tcp, 13, ACK);
    put16(tcp, 14, window);
    (packet, header + TCP_HEADER)
}

/// Writes the lengths of a UDP packet whose payload becomes one of `payload` bytes. The first `headers` bytes are its
/// headers; what lies beyond `packet` is not written. The UDP checksum stays what it was.
pub(crate) fn set_udp_lengths(packet: &mut [u8], headers: usize, payload: usize) {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(0);
    if let Some(first) = packet.first().copied()
        && first >> 4 == 4
    {
        put16(packet, 2, length(headers + payload));
        put16(packet, 10, 0);
        let sum = !checksum::sum(packet.get(..usize::from(first & 15) * 4).unwrap_or_default());
        put16(packet, 10, sum);
    } else {
        put16(packet, 4, length((headers + payload).saturating_sub(IPV6_HEADER)));
    }
    put16(packet, headers.saturating_sub(UDP_HEADER) + 4, length(UDP_HEADER + payload));
}

/// How many more hops a packet may take.
pub(crate) fn hop_limit(packet: &[u8]) -> u8 {
    let at = if packet.first().is_some_and(|first| first >> 4 == 4) { 8 } else { 7 };
    packet.get(at).copied().unwrap_or_default()
}

/// Makes a packet say how many more hops it may take.
pub(crate) fn set_hop_limit(packet: &mut [u8], hops: u8) {
    if packet.first().is_some_and(|first| first >> 4 == 4) {
        put8(packet, 8, hops);
        set_header_checksum(packet);
    } else {
        put8(packet, 7, hops);
    }
}

/// Of an IPv4 header.
pub(crate) fn set_header_checksum(packet: &mut [u8]) {
    put16(packet, 10, 0);
    let header = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
    let sum = !checksum::sum(packet.get(..header).unwrap_or_default());
    put16(packet, 10, sum);
}

/// Makes the IP header say that a TCP header follows it, and how long the packet is.
pub(crate) fn set_tcp_header(packet: &mut [u8]) {
    let length = packet.len();
    if packet.first().is_some_and(|first| first >> 4 == 4) {
        put8(packet, 0, 0x45);
        put16(packet, 2, u16::try_from(length).unwrap_or(0));
        put16(packet, 10, 0);
        let sum = !checksum::sum(packet.get(..IPV4_HEADER).unwrap_or_default());
        put16(packet, 10, sum);
    } else {
        put16(packet, 4, u16::try_from(length.saturating_sub(IPV6_HEADER)).unwrap_or(0));
        put8(packet, 6, u8::from(IpProtocol::Tcp));
    }
}

fn icmp_datagram(batch: &mut PacketBatch, reply: Reply, header: &mut [u8; ICMP_HEADER], body: &[u8]) -> usize {
    if reply.tuple.destination.is_ipv4() {
        let sum = !checksum::combine(&[checksum::sum(header.as_slice()), checksum::sum(body)]);
        put16(header, 2, sum);
        datagram(batch, reply, IpProtocol::Icmp, header, body)
    } else {
        let sum = transport_checksum(&reply, IpProtocol::Icmpv6, &[header, body]);
        put16(header, 2, sum);
        datagram(batch, reply, IpProtocol::Icmpv6, header, body)
    }
}

/// One's complement sum over the pseudo-header and `parts`; all but the last must be of even length.
fn transport_checksum(reply: &Reply, protocol: IpProtocol, parts: &[&[u8]]) -> u16 {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut sum = checksum::pseudo_header(
        reply.tuple.destination,
        reply.tuple.source,
        protocol,
        u32::try_from(length).unwrap_or(u32::MAX),
    );
    for part in parts {
        sum = checksum::combine(&[sum, checksum::sum(part)]);
    }
    !sum
}

/// An IP packet, or the fragments of one. Returns how many packets were made: 0 when it can be sent in no way.
fn datagram(batch: &mut PacketBatch, reply: Reply, protocol: IpProtocol, header: &[u8], body: &[u8]) -> usize {
    let length = header.len() + body.len();
    let ip_header = if reply.tuple.destination.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
    if length + IPV4_HEADER > usize::from(u16::MAX) {
        return 0;
    }
    if ip_header + length <= usize::from(reply.mtu) {
        batch.push_with(reply.to, ip_header + length, |packet| {
            ip(packet, packet.len(), &reply, protocol, None);
            let (_, rest) = packet.split_at_mut(ip_header);
            copy_range(rest, header, body, 0);
        });
        return 1;
    }
    let extra = if ip_header == IPV6_HEADER { IPV6_FRAGMENT_HEADER } else { 0 };
    // Fragments but the last carry a multiple of eight octets, RFC 791 section 3.2, RFC 8200 section 4.5.
    let room = (usize::from(reply.mtu).saturating_sub(ip_header + extra)) & !7;
    if room == 0 {
        return 0;
    }
    let mut count = 0;
    let mut offset = 0;
    while offset < length {
        let end = length.min(offset + room);
        let fragment = Fragment { offset, more: end < length };
        batch.push_with(reply.to, ip_header + extra + end - offset, |packet| {
            ip(packet, packet.len(), &reply, protocol, Some(fragment));
            let (_, rest) = packet.split_at_mut(ip_header + extra);
            copy_range(rest, header, body, offset);
        });
        offset = end;
        count += 1;
    }
    count
}

#[derive(Clone, Copy)]
struct Fragment {
    offset: usize,
    more: bool,
}

/// Fills the IP header of a packet of `total` bytes, and the IPv6 fragment header where there is one.
fn ip(packet: &mut [u8], total: usize, reply: &Reply, protocol: IpProtocol, fragment: Option<Fragment>) {
    // The offset counts in units of eight octets; in IPv6 it sits in the upper 13 bits, in IPv4 in the lower.
    match (reply.tuple.destination, reply.tuple.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            put8(packet, 0, 0x45);
            put16(packet, 2, u16::try_from(total).unwrap_or(0));
            if let Some(Fragment { offset, more }) = fragment {
                put16(packet, 4, reply.identification as u16);
                put16(packet, 6, u16::try_from(offset / 8).unwrap_or(0) | if more { 0x2000 } else { 0 });
            }
            put8(packet, 8, HOP_LIMIT);
            put8(packet, 9, u8::from(protocol));
            put(packet, 12, &from.octets());
            put(packet, 16, &to.octets());
            let sum = !checksum::sum(packet.get(..IPV4_HEADER).unwrap_or_default());
            put16(packet, 10, sum);
        }
        (from, to) => {
            put8(packet, 0, 0x60);
            put16(packet, 4, u16::try_from(total - IPV6_HEADER).unwrap_or(0));
            put8(packet, 6, if fragment.is_some() { u8::from(IpProtocol::Ipv6Frag) } else { u8::from(protocol) });
            put8(packet, 7, HOP_LIMIT);
            put(packet, 8, &v6(from));
            put(packet, 24, &v6(to));
            if let Some(Fragment { offset, more }) = fragment {
                put8(packet, 40, u8::from(protocol));
                put16(packet, 42, u16::try_from(offset & !7).unwrap_or(0) | u16::from(more));
                put32(packet, 44, reply.identification);
            }
        }
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
    }
}

/// Copies the bytes from `offset` on of `header` followed by `body`, as many as `to` holds.
fn copy_range(to: &mut [u8], header: &[u8], body: &[u8], offset: usize) {
    let from_header = header.get(offset..).unwrap_or_default();
    let split = from_header.len().min(to.len());
    let (first, second) = to.split_at_mut(split);
    first.copy_from_slice(from_header.get(..split).unwrap_or_default());
    let rest = body.get(offset.saturating_sub(header.len())..).unwrap_or_default();
    let len = second.len().min(rest.len());
    if let (Some(to), Some(from)) = (second.get_mut(..len), rest.get(..len)) {
        to.copy_from_slice(from);
    }
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

pub(crate) fn put8(bytes: &mut [u8], at: usize, value: u8) {
    put(bytes, at, &[value]);
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, &value.to_be_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ChecksumPolicy, IpPacket, Transport};
    use crate::tuple::Protocol;
    use proptest::prelude::*;

    fn reply(v6: bool, protocol: Protocol, mtu: u16) -> Reply {
        let (source, destination) = if v6 {
            ("fd00:96::2".parse().unwrap(), "fd00:20::80".parse().unwrap())
        } else {
            ("100.96.0.2".parse().unwrap(), "10.20.0.80".parse().unwrap())
        };
        let tuple = FiveTuple { protocol, source, source_port: 4321, destination, destination_port: 53 };
        Reply { to: IngressId(7), tuple, mtu, identification: 0x0102_0304 }
    }

    fn packets(batch: &mut PacketBatch) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        batch.drain_complete(|_, bytes| packets.push(bytes.to_vec()));
        packets
    }

    /// Joins fragments the way a receiver does; panics when they overlap or leave a hole.
    fn reassemble(packets: &[Vec<u8>]) -> Vec<u8> {
        let v6 = packets[0][0] >> 4 == 6;
        let mut joined = Vec::new();
        for (i, packet) in packets.iter().enumerate() {
            let (offset, more, body) = if v6 {
                let field = u16::from_be_bytes([packet[42], packet[43]]);
                (usize::from(field & !7), field & 1 == 1, &packet[48..])
            } else {
                let field = u16::from_be_bytes([packet[6], packet[7]]);
                (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0, &packet[20..])
            };
            assert_eq!(offset, joined.len());
            assert_eq!(more, i + 1 < packets.len());
            joined.extend_from_slice(body);
        }
        let mut whole = packets[0][..if v6 { 40 } else { 20 }].to_vec();
        if v6 {
            whole[6] = packets[0][40];
            whole[4..6].copy_from_slice(&u16::try_from(joined.len()).unwrap().to_be_bytes());
        } else {
            whole[6..8].fill(0);
            whole[2..4].copy_from_slice(&u16::try_from(joined.len() + 20).unwrap().to_be_bytes());
            whole[10..12].fill(0);
            let sum = !checksum::sum(&whole[..20]);
            whole[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        whole.extend(joined);
        whole
    }

    proptest! {
        #[test]
        fn a_run_is_its_datagrams(
            v6: bool, payload in proptest::collection::vec(any::<u8>(), 0..9000), size in 0usize..1500, mtu in 1280u16..1500,
        ) {
            let size = if payload.is_empty() { 0 } else { size.max(1) };
            let reply = reply(v6, Protocol::Udp, mtu);
            let mut together = PacketBatch::new(1 << 20);
            let count = udp_run(&mut together, reply, &payload, size);
            let headers = if v6 { 48 } else { 28 };
            let fits = size < payload.len() && headers + size <= usize::from(mtu);
            prop_assert_eq!(together.len(), if fits { 1 } else { count });
            let mut single = PacketBatch::new(1 << 20);
            let (first, rest) = payload.split_at(size.min(payload.len()));
            let mut counted = udp(&mut single, reply, first);
            for datagram in rest.chunks(size.max(1)) {
                counted += udp(&mut single, reply, datagram);
            }
            prop_assert_eq!(counted, count);
            prop_assert_eq!(packets(&mut together), packets(&mut single));
        }

        #[test]
        fn a_datagram_parses_back_whole_or_from_fragments(
            v6: bool, payload in proptest::collection::vec(any::<u8>(), 0..5000), mtu in 1280u16..=9000,
        ) {
            let reply = reply(v6, Protocol::Udp, mtu);
            let mut batch = PacketBatch::new(1 << 20);
            let count = udp(&mut batch, reply, &payload);
            let packets = packets(&mut batch);
            prop_assert_eq!(count, packets.len());
            prop_assert!(packets.iter().all(|p| p.len() <= usize::from(mtu)));
            let whole = if packets.len() == 1 { packets[0].clone() } else { reassemble(&packets) };
            let packet = IpPacket::parse(&whole, ChecksumPolicy::Verify).unwrap();
            prop_assert_eq!(packet.tuple().source(), reply.tuple.destination());
            prop_assert_eq!(packet.tuple().destination(), reply.tuple.source());
            let Transport::Udp(udp) = packet.transport() else { panic!("{packet:?}") };
            prop_assert_eq!(udp.payload, &payload[..]);
        }

        #[test]
        fn parse_never_panics_and_never_reads_past_the_packet(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(packet) = IpPacket::parse(&bytes, ChecksumPolicy::Trusted) {
                prop_assert!(packet.bytes().len() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_reset_answers_a_syn_with_the_number_after_it() {
        for v6 in [false, true] {
            let syn = TcpSegment {
                sequence: u32::MAX,
                acknowledgment: 0,
                syn: true,
                ack: false,
                rst: false,
                fin: false,
                window: 1024,
                options: &[],
                payload: &[],
            };
            let mut batch = PacketBatch::new(1 << 20);
            tcp_reset(&mut batch, reply(v6, Protocol::Tcp, 1280), &syn);
            let made = packets(&mut batch);
            let packet = IpPacket::parse(&made[0], ChecksumPolicy::Verify).unwrap();
            let Transport::Tcp(reset) = packet.transport() else { panic!("{packet:?}") };
            assert!(reset.rst && reset.ack);
            assert_eq!((reset.sequence, reset.acknowledgment), (0, 0));
        }
    }

    #[test]
    fn an_error_quotes_the_packet_and_has_the_codes_of_its_rfc() {
        let quote = [0x45; 28];
        for (v6, error, head) in [
            (false, Unreachable::Prohibited, [3, 13]),
            (false, Unreachable::Port, [3, 3]),
            (false, Unreachable::TooBig(1280), [3, 4]),
            (false, Unreachable::HopLimit, [11, 0]),
            (true, Unreachable::Prohibited, [1, 1]),
            (true, Unreachable::Port, [1, 4]),
            (true, Unreachable::TooBig(1280), [2, 0]),
            (true, Unreachable::HopLimit, [3, 0]),
        ] {
            let mut batch = PacketBatch::new(1 << 20);
            unreachable(&mut batch, reply(v6, Protocol::Udp, 1280), error, &quote);
            let packet = &packets(&mut batch)[0];
            let icmp = &packet[if v6 { 40 } else { 20 }..];
            assert_eq!(icmp[..2], head);
            assert_eq!(icmp[8..], quote);
        }
    }
}
