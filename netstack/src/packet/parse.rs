//! From decrypted bytes to a packet, or to a reason to drop it. Pure, total, never panics.

use std::net::IpAddr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, IpSlice, TcpOptionElement,
    TcpOptionsIterator, TcpSlice, UdpSlice,
};
use smoltcp::wire::IpProtocol;

use super::checksum;
use crate::DropReason;
use crate::tuple::{FiveTuple, Protocol};

/// Most IPv6 extension headers a packet may carry.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Whether transport checksums must be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumPolicy {
    /// Verify them: the packet crossed links without authentication.
    Verify,
    /// The packet is covered by an AEAD from the client's kernel to here.
    Trusted,
}

/// A whole IP packet whose lengths and headers are known to hold.
#[derive(Debug, Clone, Copy)]
pub struct IpPacket<'p> {
    bytes: &'p [u8],
    tuple: FiveTuple,
    transport: Transport<'p>,
    segments: u32,
}

/// What an [`IpPacket`] carries.
#[derive(Debug, Clone, Copy)]
pub enum Transport<'p> {
    /// A TCP segment.
    Tcp(TcpSegment<'p>),
    /// A UDP datagram.
    Udp(UdpDatagram<'p>),
    /// An ICMP or ICMPv6 echo request.
    Echo(Echo<'p>),
}

/// The fields of a TCP segment the flow table looks at.
#[derive(Debug, Clone, Copy)]
pub struct TcpSegment<'p> {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number, meaningful when `ack` is set.
    pub acknowledgment: u32,
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub ack: bool,
    /// RST.
    pub rst: bool,
    /// FIN.
    pub fin: bool,
    /// Window field, unscaled.
    pub window: u16,
    /// Options, RFC 9293 section 3.1.
    pub options: &'p [u8],
    /// Data octets.
    pub payload: &'p [u8],
}

impl TcpSegment<'_> {
    /// A SYN that may open a connection: without ACK, RST or FIN.
    pub fn is_bare_syn(&self) -> bool {
        self.syn && !self.ack && !self.rst && !self.fin
    }

    /// The end of the farthest block that arrived behind a hole, RFC 2018.
    pub fn highest_sacked(&self) -> Option<u32> {
        if self.options.is_empty() {
            return None;
        }
        let blocks = TcpOptionsIterator::from_slice(self.options).find_map(|option| match option {
            Ok(TcpOptionElement::SelectiveAcknowledgement((_, first_end), rest)) => Some((first_end, rest)),
            _ => None,
        });
        let (first_end, rest) = blocks?;
        // The nearest of two numbers around `first_end` is decided by their difference, as all sequence numbers are.
        let farthest = |a: u32, b: u32| if b.wrapping_sub(a).cast_signed() > 0 { b } else { a };
        Some(rest.iter().flatten().fold(first_end, |farthest_yet, (_, end)| farthest(farthest_yet, *end)))
    }

    /// The largest segment the sender of this SYN takes, RFC 9293 section 3.7.1.
    pub fn maximum_segment_size(&self) -> Option<u16> {
        TcpOptionsIterator::from_slice(self.options).find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(size)) => Some(size),
            _ => None,
        })
    }

    /// Length in sequence space, RFC 9293 section 3.4.
    pub fn sequence_len(&self) -> u32 {
        let control = u32::from(self.syn) + u32::from(self.fin);
        u32::try_from(self.payload.len()).unwrap_or(u32::MAX).wrapping_add(control)
    }
}

/// The payload of a UDP datagram, or of several in a super-packet.
#[derive(Debug, Clone, Copy)]
pub struct UdpDatagram<'p> {
    /// Payload octets, those of a super-packet's datagrams one after the other.
    pub payload: &'p [u8],
    size: usize,
}

impl<'p> UdpDatagram<'p> {
    /// Payload octets of each datagram; the last may be shorter.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many datagrams it is: at least one.
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size.max(1)).max(1)
    }

    /// The payload of each datagram.
    pub fn datagrams(&self) -> impl Iterator<Item = &'p [u8]> {
        let (first, rest) = self.payload.split_at(self.size.min(self.payload.len()));
        std::iter::once(first).chain(rest.chunks(self.size.max(1)))
    }
}

/// An echo request.
#[derive(Debug, Clone, Copy)]
pub struct Echo<'p> {
    /// Identifier.
    pub identifier: u16,
    /// Sequence number.
    pub sequence: u16,
    /// Data octets after the header.
    pub data: &'p [u8],
}

impl<'p> IpPacket<'p> {
    /// Parses and validates one packet. Bytes after the IP total length are cut off.
    ///
    /// # Errors
    /// The reason to drop it: contradictory lengths or headers (`malformed`), a wrong checksum, a fragment, an
    /// unknown or forbidden extension header, a transport the gateway does not carry, or an address that can be
    /// nobody's.
    pub fn parse(bytes: &'p [u8], checksums: ChecksumPolicy) -> Result<Self, DropReason> {
        let ip = IpSlice::from_slice(bytes).map_err(|_| DropReason::Malformed)?;
        let (source, destination) = (ip.source_addr(), ip.destination_addr());
        let whole = match &ip {
            IpSlice::Ipv4(v4) => {
                let header = v4.header();
                if checksum::sum(header.slice()) != !0 {
                    return Err(DropReason::Checksum);
                }
                if v4.extensions().auth.is_some() {
                    return Err(DropReason::Protocol);
                }
                usize::from(header.total_len())
            }
            IpSlice::Ipv6(v6) => {
                check_extension_headers(v6)?;
                // 0 means a jumbogram, or nothing that we carry; etherparse takes all the bytes there are for it.
                let length = v6.header().payload_length();
                if length == 0 {
                    return Err(DropReason::Malformed);
                }
                40 + usize::from(length)
            }
        };
        let bytes = bytes.get(..whole).ok_or(DropReason::Malformed)?;
        if ip.is_fragmenting_payload() {
            return Err(DropReason::Fragment);
        }
        let payload = ip.payload();
        let body = payload.payload;
        let sums = Sums { policy: checksums, source, destination, body };
        let (protocol, source_port, destination_port, transport) = match payload.ip_number {
            IpNumber::TCP => {
                let tcp = TcpSlice::from_slice(body).map_err(|_| DropReason::Malformed)?;
                sums.verify(IpProtocol::Tcp)?;
                // The payload borrows from `body`, not from the slice made of it.
                let payload = body.get(tcp.header_slice().len()..).ok_or(DropReason::Malformed)?;
                let segment = TcpSegment {
                    sequence: tcp.sequence_number(),
                    acknowledgment: tcp.acknowledgment_number(),
                    syn: tcp.syn(),
                    ack: tcp.ack(),
                    rst: tcp.rst(),
                    fin: tcp.fin(),
                    window: tcp.window_size(),
                    options: body.get(20..tcp.header_slice().len()).unwrap_or_default(),
                    payload,
                };
                (Protocol::Tcp, tcp.source_port(), tcp.destination_port(), Transport::Tcp(segment))
            }
            IpNumber::UDP => {
                let udp = UdpSlice::from_slice(body).map_err(|_| DropReason::Malformed)?;
                if udp.checksum() != 0 {
                    // A UDP length shorter than the IP payload leaves bytes the checksum does not cover.
                    Sums { body: udp.slice(), ..sums }.verify(IpProtocol::Udp)?;
                } else if source.is_ipv6() {
                    return Err(DropReason::Checksum);
                }
                let payload = udp.payload();
                (
                    Protocol::Udp,
                    udp.source_port(),
                    udp.destination_port(),
                    Transport::Udp(UdpDatagram { payload, size: payload.len() }),
                )
            }
            IpNumber::ICMP if source.is_ipv4() => {
                let icmp = Icmpv4Slice::from_slice(body).map_err(|_| DropReason::Malformed)?;
                if checksums == ChecksumPolicy::Verify && checksum::sum(body) != !0 {
                    return Err(DropReason::Checksum);
                }
                let Icmpv4Type::EchoRequest(header) = icmp.icmp_type() else {
                    return Err(DropReason::IcmpType);
                };
                echo(header, icmp.payload())
            }
            IpNumber::IPV6_ICMP if source.is_ipv6() => {
                let icmp = Icmpv6Slice::from_slice(body).map_err(|_| DropReason::Malformed)?;
                sums.verify(IpProtocol::Icmpv6)?;
                let Icmpv6Type::EchoRequest(header) = icmp.icmp_type() else {
                    return Err(DropReason::IcmpType);
                };
                echo(header, icmp.payload())
            }
            _ => return Err(DropReason::Protocol),
        };
        if destination_port == 0 && protocol != Protocol::Echo {
            return Err(DropReason::Malformed);
        }
        check_source(source)?;
        check_destination(destination)?;
        let tuple = FiveTuple { protocol, source, source_port, destination, destination_port };
        Ok(Self { bytes, tuple, transport, segments: 1 })
    }

    /// Parses a packet that stands for `segments` packets, which were validated one by one.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn joined(bytes: &'p [u8], segments: u32) -> Result<Self, DropReason> {
        Ok(Self { segments, ..Self::parse(bytes, ChecksumPolicy::Trusted)? })
    }

    /// Says that a packet stands for many UDP datagrams, with `size` octets of payload each, of which the last may be
    /// shorter: its lengths are those of all of them together.
    ///
    /// # Errors
    /// `malformed`: it is not a UDP packet, has no payload or something behind it, or `size` is 0.
    pub fn into_datagrams(mut self, size: u16) -> Result<Self, DropReason> {
        let Transport::Udp(udp) = &mut self.transport else { return Err(DropReason::Malformed) };
        // What follows the payload would belong to none of the datagrams.
        let ends_with_payload = self.bytes.as_ptr_range().end == udp.payload.as_ptr_range().end;
        if size == 0 || udp.payload.is_empty() || !ends_with_payload {
            return Err(DropReason::Malformed);
        }
        udp.size = udp.payload.len().min(usize::from(size));
        Ok(self)
    }

    /// How many packets of the client it is: more than one for UDP datagrams that came together, and for TCP segments that
    /// were [joined](crate::Coalescer).
    pub fn count(&self) -> usize {
        match &self.transport {
            Transport::Udp(udp) => udp.count(),
            Transport::Tcp(_) | Transport::Echo(_) => self.segments as usize,
        }
    }

    /// The packet as it came, header included, cut to its own length.
    pub fn bytes(&self) -> &'p [u8] {
        self.bytes
    }

    /// Its addresses and ports.
    pub fn tuple(&self) -> FiveTuple {
        self.tuple
    }

    /// What it carries.
    pub fn transport(&self) -> &Transport<'p> {
        &self.transport
    }
}

/// What a transport checksum is computed over.
#[derive(Clone, Copy)]
struct Sums<'p> {
    policy: ChecksumPolicy,
    source: IpAddr,
    destination: IpAddr,
    body: &'p [u8],
}

impl Sums<'_> {
    fn verify(self, protocol: IpProtocol) -> Result<(), DropReason> {
        if self.policy == ChecksumPolicy::Trusted {
            return Ok(());
        }
        let length = u32::try_from(self.body.len()).map_err(|_| DropReason::Malformed)?;
        let pseudo = checksum::pseudo_header(self.source, self.destination, protocol, length);
        if checksum::combine(&[pseudo, checksum::sum(self.body)]) == !0 { Ok(()) } else { Err(DropReason::Checksum) }
    }
}

fn echo(header: IcmpEchoHeader, data: &[u8]) -> (Protocol, u16, u16, Transport<'_>) {
    let echo = Echo { identifier: header.id, sequence: header.seq, data };
    (Protocol::Echo, header.id, 0, Transport::Echo(echo))
}

/// Refuses routing headers, unknown headers and long chains, which hide the transport from a filter.
fn check_extension_headers(packet: &etherparse::Ipv6Slice<'_>) -> Result<(), DropReason> {
    let mut headers = 0;
    for extension in packet.extensions().clone() {
        headers += 1;
        match extension {
            etherparse::Ipv6ExtensionSlice::HopByHop(_)
            | etherparse::Ipv6ExtensionSlice::DestinationOptions(_)
            | etherparse::Ipv6ExtensionSlice::Fragment(_) => {}
            etherparse::Ipv6ExtensionSlice::Routing(_) | etherparse::Ipv6ExtensionSlice::Authentication(_) => {
                return Err(DropReason::ExtensionHeader);
            }
        }
    }
    if headers > MAX_EXTENSION_HEADERS { Err(DropReason::ExtensionHeader) } else { Ok(()) }
}

/// An address of no single host: a flow towards it cannot be, and an answer must not be (RFC 1122 section 3.2.2).
fn check_destination(destination: IpAddr) -> Result<(), DropReason> {
    let nobody = destination.is_unspecified()
        || destination.is_multicast()
        || matches!(destination, IpAddr::V4(v4) if v4.is_broadcast());
    if nobody { Err(DropReason::ForbiddenDestination) } else { Ok(()) }
}

/// An address no client can have, whatever its device's entry says.
fn check_source(source: IpAddr) -> Result<(), DropReason> {
    let never = source.is_unspecified()
        || source.is_multicast()
        || source.is_loopback()
        || matches!(source, IpAddr::V4(v4) if v4.is_broadcast());
    if never { Err(DropReason::ForbiddenSource) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    const TARGET: [u8; 4] = [10, 20, 0, 80];
    const CLIENT: [u8; 4] = [100, 96, 0, 2];

    fn syn_v4(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(from, to, 64).tcp(50_000, 443, 1, 1000).syn().write(&mut bytes, b"").unwrap();
        bytes
    }

    fn udp_v6() -> Vec<u8> {
        let mut bytes = Vec::new();
        let (client, target) = ([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], [0xfd; 16]);
        PacketBuilder::ipv6(client, target, 64).udp(5000, 53).write(&mut bytes, b"question").unwrap();
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Protocol, DropReason> {
        IpPacket::parse(bytes, ChecksumPolicy::Verify).map(|packet| packet.tuple().protocol)
    }

    #[test]
    fn addresses_that_are_nobodys_open_nothing() {
        assert_eq!(parse(&syn_v4(CLIENT, TARGET)), Ok(Protocol::Tcp));
        for to in [[0, 0, 0, 0], [224, 0, 0, 251], [255, 255, 255, 255]] {
            assert_eq!(parse(&syn_v4(CLIENT, to)), Err(DropReason::ForbiddenDestination), "{to:?}");
        }
        for from in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
            assert_eq!(parse(&syn_v4(from, TARGET)), Err(DropReason::ForbiddenSource), "{from:?}");
        }
    }

    #[test]
    fn lengths_that_lie_are_malformed() {
        let whole = syn_v4(CLIENT, TARGET);
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), Err(DropReason::Malformed), "cut to {len}");
        }
        let whole = udp_v6();
        assert_eq!(parse(&whole), Ok(Protocol::Udp));
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), Err(DropReason::Malformed), "cut to {len}");
        }
        // A jumbogram: its length would be in an option.
        let mut jumbo = whole.clone();
        jumbo[4..6].fill(0);
        assert_eq!(parse(&jumbo), Err(DropReason::Malformed));
    }

    #[test]
    fn bytes_after_the_packet_are_cut_off() {
        let whole = udp_v6();
        let mut padded = whole.clone();
        padded.extend([0; 9]);
        assert_eq!(IpPacket::parse(&padded, ChecksumPolicy::Verify).unwrap().bytes(), whole);
    }

    #[test]
    fn every_flipped_bit_of_what_a_checksum_covers_is_noticed() {
        for whole in [syn_v4(CLIENT, TARGET), udp_v6()] {
            let covered = if whole[0] >> 4 == 6 { 8 } else { 0 };
            for bit in covered * 8..whole.len() * 8 {
                let mut changed = whole.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(parse(&changed).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_super_packet_is_its_datagrams_in_order() {
        let payload: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(CLIENT, TARGET, 64).udp(5000, 53).write(&mut bytes, &payload).unwrap();
        let packet = IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap();
        for size in [1, 7, 250, 400, 999, 1000, 1001, u16::MAX] {
            let packet = packet.into_datagrams(size).unwrap();
            let Transport::Udp(udp) = packet.transport() else { panic!("{packet:?}") };
            let datagrams: Vec<&[u8]> = udp.datagrams().collect();
            assert_eq!((datagrams.len(), packet.count()), (udp.count(), udp.count()), "{size}");
            assert_eq!(datagrams.concat(), payload, "{size}");
            let (last, others) = datagrams.split_last().unwrap();
            assert!(others.iter().all(|datagram| datagram.len() == usize::from(size)), "{size}");
            assert!((1..=usize::from(size)).contains(&last.len()), "{size}");
        }
        assert!(packet.into_datagrams(0).is_err());
        assert_eq!(packet.count(), 1);
    }

    #[test]
    fn super_packets_without_sense_are_malformed() {
        let syn = syn_v4(CLIENT, TARGET);
        assert!(IpPacket::parse(&syn, ChecksumPolicy::Verify).unwrap().into_datagrams(10).is_err());
        let mut empty = Vec::new();
        PacketBuilder::ipv4(CLIENT, TARGET, 64).udp(5000, 53).write(&mut empty, b"").unwrap();
        let empty = IpPacket::parse(&empty, ChecksumPolicy::Verify).unwrap();
        assert!(empty.into_datagrams(10).is_err());
        let Transport::Udp(udp) = empty.transport() else { panic!("{empty:?}") };
        assert_eq!((udp.count(), udp.datagrams().collect::<Vec<_>>()), (1, vec![&[][..]]));
        // A UDP length that leaves octets of the packet over.
        let mut over = udp_v6();
        over.extend([0; 4]);
        over[5] += 4;
        let over = IpPacket::parse(&over, ChecksumPolicy::Verify).unwrap();
        assert!(over.into_datagrams(4).is_err());
    }

    #[test]
    fn headers_that_hide_the_transport() {
        let with = |kind: u8, count: u8| {
            let mut packet = udp_v6();
            for i in 0..count {
                let next = if i == 0 { 17 } else { kind };
                packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
                packet[5] += 8;
            }
            packet[6] = kind;
            packet
        };
        const DESTINATION_OPTIONS: u8 = 60;
        const ROUTING: u8 = 43;
        assert_eq!(parse(&with(DESTINATION_OPTIONS, 1)), Ok(Protocol::Udp));
        assert_eq!(parse(&with(ROUTING, 1)), Err(DropReason::ExtensionHeader));
        assert_eq!(parse(&with(DESTINATION_OPTIONS, 8)), Ok(Protocol::Udp));
        for count in 9..12 {
            assert_eq!(parse(&with(DESTINATION_OPTIONS, count)), Err(DropReason::ExtensionHeader), "{count}");
        }
        // The next header is one that nobody knows.
        assert_eq!(parse(&with(253, 0)), Err(DropReason::Protocol));
    }

    #[test]
    fn fragments_are_not_put_together() {
        let mut packet = syn_v4(CLIENT, TARGET);
        packet[6] |= 0x20;
        packet[10..12].fill(0);
        let sum = !checksum::sum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(parse(&packet), Err(DropReason::Fragment));
    }
}
