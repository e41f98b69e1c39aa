//! From decrypted bytes to a packet, or to a reason to drop it. Pure, total, never panics.

use std::borrow::Cow;
use std::net::IpAddr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, IpSlice, TcpSlice, UdpSlice,
};
use smoltcp::wire::IpProtocol;

use super::build::{self, IPV4_HEADER, IPV6_HEADER, TCP_HEADER};
use super::transport::{Echo, TcpSegment, Transport, UdpDatagram};
use super::{checksum, extension};
use crate::DropReason;
use crate::segment::Offload;
use crate::tuple::{FiveTuple, Protocol};

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
    /// Where the header of the transport begins.
    header: usize,
    segments: u32,
    lacking: Option<Offload>,
    reassembled: bool,
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
                extension::check(v6)?;
                // 0 means a jumbogram, or that there is nothing in it; etherparse takes all the bytes there are for it.
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
                // 0 is for jumbograms (RFC 2675 section 4); etherparse takes all there is for it.
                if udp.length() == 0 {
                    return Err(DropReason::Malformed);
                }
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
            number if opaque(number) => (Protocol::Other(number.0), 0, 0, Transport::Other(body)),
            _ => return Err(DropReason::Protocol),
        };
        if destination_port == 0 && matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            return Err(DropReason::Malformed);
        }
        check_source(source)?;
        check_destination(destination)?;
        let tuple = FiveTuple { protocol, source, source_port, destination, destination_port };
        let header = bytes.len().saturating_sub(body.len());
        Ok(Self { bytes, tuple, transport, header, segments: 1, lacking: None, reassembled: false })
    }

    /// Says that it was put together of fragments, so that it may be cut again.
    #[must_use]
    pub fn of_fragments(self) -> Self {
        Self { reassembled: true, ..self }
    }

    /// Whether it was put together of fragments.
    pub fn is_of_fragments(&self) -> bool {
        self.reassembled
    }

    /// Whether a router may cut it where it does not fit: it came cut, or IPv4 does not forbid it (RFC 791).
    pub(crate) fn may_be_cut(&self) -> bool {
        const DONT_FRAGMENT: u8 = 0x40;
        let forbidden = || self.bytes.get(6).is_none_or(|flags| flags & DONT_FRAGMENT != 0);
        self.reassembled || (self.tuple.source.is_ipv4() && !forbidden())
    }

    /// Where the header of its transport begins, in bytes.
    pub(crate) fn header(&self) -> usize {
        self.header
    }

    /// Says that a packet of TCP, UDP or ICMP lacks its checksum, and with a segment size that it stands for many TCP segments or UDP datagrams,
    /// with as many octets of payload each, of which the last may be shorter: its lengths are those of all of them together.
    ///
    /// # Errors
    /// `malformed`: it is of another protocol, whose checksum is nowhere we know; or with a segment size it is no TCP or UDP,
    /// has no payload or something behind it, or the size is 0.
    pub fn with_offload(mut self, offload: Offload) -> Result<Self, DropReason> {
        if matches!(self.transport, Transport::Other(_)) {
            return Err(DropReason::Malformed);
        }
        self.lacking = Some(offload);
        let Some(size) = offload.segment_size.map(usize::from) else { return Ok(self) };
        let payload = match &self.transport {
            Transport::Tcp(segment) => segment.payload,
            Transport::Udp(udp) => udp.payload,
            Transport::Echo(_) | Transport::Other(_) => return Err(DropReason::Malformed),
        };
        // What follows the payload would belong to none of them.
        let ends_with_payload = self.bytes.as_ptr_range().end == payload.as_ptr_range().end;
        if size == 0 || payload.is_empty() || !ends_with_payload {
            return Err(DropReason::Malformed);
        }
        self.segments = u32::try_from(payload.len().div_ceil(size)).unwrap_or(u32::MAX);
        if let Transport::Udp(udp) = &mut self.transport {
            udp.size = udp.payload.len().min(size);
        }
        Ok(self)
    }

    /// What it lacks of a packet that a link carries: its checksum, and to be many packets.
    pub fn offload(&self) -> Option<Offload> {
        self.lacking
    }

    /// Whether its IP header has no options and no extension headers behind it.
    pub fn is_plain(&self) -> bool {
        let transport = match self.tuple.protocol {
            Protocol::Tcp => IpProtocol::Tcp,
            Protocol::Udp => IpProtocol::Udp,
            Protocol::Echo => IpProtocol::Icmpv6,
            Protocol::Other(number) => IpProtocol::from(number),
        };
        match self.tuple.source {
            IpAddr::V4(_) => self.bytes.first() == Some(&0x45),
            IpAddr::V6(_) => self.bytes.get(6) == Some(&u8::from(transport)),
        }
    }

    /// How many packets of the client it is: more than one for TCP segments and UDP datagrams that came together, or were
    /// [joined](crate::Coalescer).
    pub fn count(&self) -> usize {
        self.segments as usize
    }

    /// How many more hops it may take: TTL or hop limit.
    pub fn hop_limit(&self) -> u8 {
        build::hop_limit(self.bytes)
    }

    /// The packet as it came, header included, cut to its own length.
    pub fn bytes(&self) -> &'p [u8] {
        self.bytes
    }

    /// A TCP packet without IP options and extension headers: smoltcp takes none where they are.
    pub(crate) fn plain(&self) -> Cow<'p, [u8]> {
        let Transport::Tcp(segment) = &self.transport else { return Cow::Borrowed(self.bytes) };
        let fixed = if self.tuple.source.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        let tcp = TCP_HEADER + segment.options.len() + segment.payload.len();
        let (headers, tcp) = self.bytes.split_at(self.bytes.len().saturating_sub(tcp));
        let Some((ip, [_, ..])) = headers.split_at_checked(fixed) else { return Cow::Borrowed(self.bytes) };
        let mut plain = [ip, tcp].concat();
        build::set_tcp_header(&mut plain);
        Cow::Owned(plain)
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

/// Whether packets of a protocol may go on without anybody looking into them. Behind an extension header of IPv6 stands
/// something else, and behind an authentication header of IPv4 too; the other family's ICMP is nobody's. What is encrypted
/// (RFC 4303) hides from its hops by design, and a rule that allows it says so.
pub fn goes_unseen(number: u8) -> bool {
    opaque(IpNumber(number))
}

/// [`goes_unseen`] of a number that is parsed.
pub(super) fn opaque(number: IpNumber) -> bool {
    let known = matches!(number, IpNumber::TCP | IpNumber::UDP | IpNumber::ICMP | IpNumber::IPV6_ICMP);
    let esp = number == IpNumber::ENCAPSULATING_SECURITY_PAYLOAD;
    let header = number.is_ipv6_ext_header_value() || number == IpNumber::IPV6_NO_NEXT_HEADER;
    !known && (esp || !header)
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
mod tests;
