//! ICMP messages that open no flow: what a flow is told whose packets go on as they are.

use std::net::IpAddr;

use etherparse::{IpNumber, IpSlice};
use smoltcp::wire::IpProtocol;

use super::build::{self, IPV4_HEADER, IPV6_HEADER, LEAST_MTU_V4, LEAST_MTU_V6};
use super::{ChecksumPolicy, checksum, parse};
use crate::tuple::{FiveTuple, Protocol};

/// Bytes of an ICMP header.
const ICMP_HEADER: usize = 8;
/// Bytes that an error shows behind the IP header of the packet it is about, at the least: RFC 792.
const QUOTED: usize = 8;

/// A whole ICMP or ICMPv6 message that is no echo request.
#[derive(Debug, Clone, Copy)]
pub struct IcmpMessage<'p> {
    bytes: &'p [u8],
    source: IpAddr,
    about: FiveTuple,
    kind: IcmpKind,
}

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpKind {
    /// The answer to an echo request.
    EchoReply {
        /// Its sequence number.
        sequence: u16,
        /// Octets after the header.
        data: usize,
    },
    /// A packet did not arrive, and none like it will: destination unreachable, but not for its size.
    Unreachable {
        /// The first word of the TCP header that is quoted: its sequence number.
        sequence: u32,
    },
    /// A packet did not arrive, for it was too big.
    TooBig {
        /// As of [`Unreachable`](Self::Unreachable).
        sequence: u32,
        /// The largest that would have, in bytes; 0 from a router that does not say (RFC 1191 section 3).
        mtu: u16,
    },
    /// A packet did not arrive: its time over, its header not understood.
    Trouble {
        /// As of [`Unreachable`](Self::Unreachable).
        sequence: u32,
    },
}

impl<'p> IcmpMessage<'p> {
    /// Looks at bytes that are no packet that could open a flow. `None`: they are no echo reply and no error about a packet
    /// of a protocol with flows, or they do not hold.
    pub fn parse(bytes: &'p [u8], checksums: ChecksumPolicy) -> Option<Self> {
        let ip = IpSlice::from_slice(bytes).ok()?;
        if ip.is_fragmenting_payload() {
            return None;
        }
        let (source, destination) = (ip.source_addr(), ip.destination_addr());
        let whole = match &ip {
            IpSlice::Ipv4(v4) => {
                if checksum::sum(v4.header().slice()) != !0 {
                    return None;
                }
                usize::from(v4.header().total_len())
            }
            IpSlice::Ipv6(v6) => IPV6_HEADER + usize::from(v6.header().payload_length()),
        };
        let bytes = bytes.get(..whole)?;
        let payload = ip.payload();
        let body = payload.payload;
        let length = u32::try_from(body.len()).ok()?;
        let sum = match payload.ip_number {
            IpNumber::ICMP if source.is_ipv4() => checksum::sum(body),
            IpNumber::IPV6_ICMP if source.is_ipv6() => {
                let pseudo = checksum::pseudo_header(source, destination, IpProtocol::Icmpv6, length);
                checksum::combine(&[pseudo, checksum::sum(body)])
            }
            _ => return None,
        };
        if checksums == ChecksumPolicy::Verify && sum != !0 {
            return None;
        }
        let (header, quoted) = body.split_at_checked(ICMP_HEADER)?;
        let [kind, code, _, _, rest @ ..] = header else { return None };
        // Where an error tells a size, IPv4's is the lower half.
        let told = <[u8; 4]>::try_from(rest).map_or(0, u32::from_be_bytes);
        let told = if source.is_ipv4() { told & 0xffff } else { told };
        // RFC 792, RFC 4443.
        let (kind, about) = match (source.is_ipv4(), kind, code) {
            (true, 0, _) | (false, 129, _) => echo_reply(rest, quoted, source, destination)?,
            // Less than every host takes would only make packets small: RFC 791 section 3.2, RFC 8200 section 5.
            (true, 3, 4) if (1..u32::from(LEAST_MTU_V4)).contains(&told) => return None,
            (false, 2, _) if told < u32::from(LEAST_MTU_V6) => return None,
            (true, 3, 4) | (false, 2, _) => {
                let mtu = u16::try_from(told).unwrap_or(u16::MAX);
                error(quoted, |sequence| IcmpKind::TooBig { sequence, mtu })?
            }
            (true, 11 | 12, _) | (false, 3 | 4, _) => error(quoted, |sequence| IcmpKind::Trouble { sequence })?,
            (true, 3, _) | (false, 1, _) => error(quoted, |sequence| IcmpKind::Unreachable { sequence })?,
            _ => return None,
        };
        // An error goes to whoever sent the packet (RFC 1122 section 3.2.2).
        (about.source == destination).then_some(Self { bytes, source, about, kind })
    }

    /// The message as it came, IP header included, cut to its own length.
    pub fn bytes(&self) -> &'p [u8] {
        self.bytes
    }

    /// How many more hops it may take: TTL or hop limit.
    pub fn hop_limit(&self) -> u8 {
        build::hop_limit(self.bytes)
    }

    /// Who says it: a target, or a router on the way.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Addresses and ports of the packet it is about, which went the other way.
    pub fn about(&self) -> FiveTuple {
        self.about
    }

    /// What it says.
    pub fn kind(&self) -> IcmpKind {
        self.kind
    }
}

/// `rest`: identifier and sequence number.
fn echo_reply(rest: &[u8], data: &[u8], source: IpAddr, destination: IpAddr) -> Option<(IcmpKind, FiveTuple)> {
    let [a, b, c, d] = *rest else { return None };
    let request = FiveTuple {
        protocol: Protocol::Echo,
        source: destination,
        source_port: u16::from_be_bytes([a, b]),
        destination: source,
        destination_port: 0,
    };
    Some((IcmpKind::EchoReply { sequence: u16::from_be_bytes([c, d]), data: data.len() }, request))
}

/// An error about the packet that begins with `quoted`. It need not be whole, so nothing but its first words is read.
fn error(quoted: &[u8], says: impl FnOnce(u32) -> IcmpKind) -> Option<(IcmpKind, FiveTuple)> {
    let byte = |at: usize| quoted.get(at).copied();
    let (header, protocol, source, destination): (usize, u8, IpAddr, IpAddr) = match byte(0)? >> 4 {
        4 => {
            let header = usize::from(byte(0)? & 15) * 4;
            let offset = u16::from_be_bytes([byte(6)?, byte(7)?]) & 0x1fff;
            if header < IPV4_HEADER || offset != 0 {
                return None;
            }
            let address = |at: usize| <[u8; 4]>::try_from(quoted.get(at..at + 4)?).ok();
            (header, byte(9)?, address(12)?.into(), address(16)?.into())
        }
        6 => {
            let address = |at: usize| <[u8; 16]>::try_from(quoted.get(at..at + 16)?).ok();
            (IPV6_HEADER, byte(6)?, address(8)?.into(), address(24)?.into())
        }
        _ => return None,
    };
    if parse::opaque(IpNumber(protocol)) {
        // Nothing of it is read, and it may be shorter.
        let about =
            FiveTuple { protocol: Protocol::Other(protocol), source, source_port: 0, destination, destination_port: 0 };
        return Some((says(0), about));
    }
    let transport = quoted.get(header..header + QUOTED)?;
    let [a, b, c, d, e, f, g, h] = *transport else { return None };
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let (protocol, (source_port, destination_port)) = if protocol == u8::from(IpProtocol::Tcp) {
        (Protocol::Tcp, ports)
    } else if protocol == u8::from(IpProtocol::Udp) {
        (Protocol::Udp, ports)
    } else if (protocol == u8::from(IpProtocol::Icmp) && a == 8)
        || (protocol == u8::from(IpProtocol::Icmpv6) && a == 128)
    {
        // An echo request.
        (Protocol::Echo, (u16::from_be_bytes([e, f]), 0))
    } else {
        return None;
    };
    let sequence = u32::from_be_bytes([e, f, g, h]);
    Some((says(sequence), FiveTuple { protocol, source, source_port, destination, destination_port }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};

    const CLIENT: [u8; 4] = [100, 96, 0, 2];
    const TARGET: [u8; 4] = [10, 20, 0, 10];
    const ROUTER: [u8; 4] = [10, 9, 9, 9];

    fn v4(source: [u8; 4], icmp: Icmpv4Type, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(source, CLIENT, 64).icmpv4(icmp).write(&mut bytes, data).unwrap();
        bytes
    }

    fn sent() -> Vec<u8> {
        let mut bytes = Vec::new();
        let packet = PacketBuilder::ipv4(CLIENT, TARGET, 64).tcp(4000, 443, 77, 1000);
        packet.write(&mut bytes, &[0; 100]).unwrap();
        bytes
    }

    fn unreachable(code: u8) -> Icmpv4Type {
        Icmpv4Type::Unknown { type_u8: 3, code_u8: code, bytes5to8: [0; 4] }
    }

    fn parse(bytes: &[u8]) -> Option<(IcmpKind, String)> {
        let message = IcmpMessage::parse(bytes, ChecksumPolicy::Verify)?;
        let about = message.about();
        Some((message.kind(), format!("{:?} {} {}", about.protocol, about.source(), about.destination())))
    }

    #[test]
    fn an_error_is_about_the_packet_it_quotes() {
        let tcp = "Tcp 100.96.0.2:4000 10.20.0.10:443".to_owned();
        // 28 bytes are what RFC 792 asks for.
        let said = parse(&v4(ROUTER, unreachable(1), &sent()[..28]));
        assert_eq!(said, Some((IcmpKind::Unreachable { sequence: 77 }, tcp.clone())));
        let too_small = Icmpv4Type::Unknown { type_u8: 3, code_u8: 4, bytes5to8: [0, 0, 0, 68] };
        assert_eq!(parse(&v4(ROUTER, too_small, &sent())), None, "smaller than every host takes");
        let says_none = parse(&v4(ROUTER, unreachable(4), &sent()));
        assert_eq!(says_none, Some((IcmpKind::TooBig { sequence: 77, mtu: 0 }, tcp.clone())));
        let too_big = Icmpv4Type::Unknown { type_u8: 3, code_u8: 4, bytes5to8: [0, 0, 5, 120] };
        let said = parse(&v4(ROUTER, too_big, &sent()));
        assert_eq!(said, Some((IcmpKind::TooBig { sequence: 77, mtu: 1400 }, tcp)));
        assert_eq!(parse(&v4(ROUTER, unreachable(1), &sent()[..27])), None);
        let mut fragment = sent();
        fragment[7] = 9;
        assert_eq!(parse(&v4(ROUTER, unreachable(1), &fragment)), None, "it has no ports");
        let mut of_another = sent();
        of_another[15] = 3;
        assert_eq!(parse(&v4(ROUTER, unreachable(1), &of_another)), None, "told to a stranger");
        let mut wrong = v4(ROUTER, unreachable(1), &sent());
        wrong[40] ^= 1;
        assert_eq!(parse(&wrong), None, "its checksum");
    }

    #[test]
    fn an_echo_reply_is_about_its_request() {
        let header = etherparse::IcmpEchoHeader { id: 7, seq: 9 };
        let said = parse(&v4(TARGET, Icmpv4Type::EchoReply(header), b"ping"));
        let request = "Echo 100.96.0.2:7 10.20.0.10:0".to_owned();
        assert_eq!(said, Some((IcmpKind::EchoReply { sequence: 9, data: 4 }, request)));
        assert_eq!(parse(&v4(TARGET, Icmpv4Type::EchoRequest(header), b"ping")), None);
        let (client, target) = ([0xfd; 16], [0xfe; 16]);
        let mut reply = Vec::new();
        let packet = PacketBuilder::ipv6(target, client, 64).icmpv6(Icmpv6Type::EchoReply(header));
        packet.write(&mut reply, b"ping").unwrap();
        assert!(matches!(parse(&reply), Some((IcmpKind::EchoReply { sequence: 9, data: 4 }, _))));
        let mut request = Vec::new();
        let packet = PacketBuilder::ipv6(client, target, 64).icmpv6(Icmpv6Type::EchoRequest(header));
        packet.write(&mut request, b"ping").unwrap();
        let mut error = Vec::new();
        let packet = PacketBuilder::ipv6([0xfc; 16], client, 64).icmpv6(Icmpv6Type::PacketTooBig { mtu: 1280 });
        packet.write(&mut error, &request).unwrap();
        let message = IcmpMessage::parse(&error, ChecksumPolicy::Verify).unwrap();
        assert_eq!((message.about().protocol, message.about().source_port), (Protocol::Echo, 7));
        assert_eq!(message.source(), IpAddr::from([0xfc; 16]));
    }
}
