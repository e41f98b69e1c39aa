//! Other addresses and ports in packets that go on: the address translation of RFC 3022, and of the packet that an ICMP
//! error quotes (RFC 5508).

use std::net::IpAddr;

use etherparse::IpNumber;
use smoltcp::wire::IpProtocol;

use super::build::{IPV4_HEADER, IPV6_HEADER, put, put16, set_header_checksum};
use super::{checksum, parse};
use crate::tuple::{FiveTuple, Protocol};

/// Where in an ICMP header its checksum and an echo's identifier stand.
const ICMP_CHECKSUM: usize = 2;
const ICMP_IDENTIFIER: usize = 4;
const ICMP_HEADER: usize = 8;
/// Where in their headers the checksums of TCP and UDP stand.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// Makes a packet of `old` one of `new`, a tuple of the same family and protocol. The header of its transport begins at
/// `header`. `whole`: its checksum holds, and still does after that; else whoever sends it computes one.
pub(crate) fn set_tuple(packet: &mut [u8], header: usize, old: &FiveTuple, new: &FiveTuple, whole: bool) {
    let at = match old.protocol {
        Protocol::Tcp => TCP_CHECKSUM,
        Protocol::Udp => UDP_CHECKSUM,
        Protocol::Echo => ICMP_CHECKSUM,
        // RFC 3022 section 4.1: an address in its checksum would be a matter of each protocol.
        Protocol::Other(_) => return set_addresses(packet, new.source, new.destination),
    };
    let before = get16(packet, header + at);
    set_addresses(packet, new.source, new.destination);
    set_ports(packet, header, new);
    // A UDP checksum of 0 says that there is none (RFC 768).
    if !whole || (old.protocol == Protocol::Udp && before == 0) {
        return;
    }
    // RFC 1624: what the old words added goes, what the new ones add comes. ICMP has no pseudo-header (RFC 792).
    let addresses = old.protocol != Protocol::Echo || old.source.is_ipv6();
    let sum = !checksum::combine(&[!before, !words(old, addresses), words(new, addresses)]);
    let sum = if old.protocol == Protocol::Udp && sum == 0 { 0xffff } else { sum };
    put16(packet, header + at, sum);
}

/// Makes an ICMP error about a packet of another tuple one about a packet of `about`, to whoever sent that; or an echo
/// reply one to the request of `about`. `source`: who says it, where that changes. Something between the IP and the ICMP
/// header leaves it as it is: see [`is_plain`].
pub(crate) fn set_subject(message: &mut [u8], about: &FiveTuple, source: Option<IpAddr>) {
    let Some(header) = ip_header(message) else { return };
    let Some(said_by) = source.or_else(|| source_of(message)) else { return };
    set_addresses(message, said_by, about.source);
    let is_reply = matches!(message.get(header), Some(0 | 129));
    if is_reply {
        put16(message, header + ICMP_IDENTIFIER, about.source_port);
    } else if let Some(quoted) = message.get_mut(header + ICMP_HEADER..)
        && let Some(inner) = ip_header(quoted)
    {
        set_addresses(quoted, about.source, about.destination);
        set_ports(quoted, inner, about);
    }
    put16(message, header + ICMP_CHECKSUM, 0);
    let body = message.get(header..).unwrap_or_default();
    let pseudo = match (said_by, about.source) {
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let length = u32::try_from(body.len()).unwrap_or(0);
            checksum::pseudo_header(said_by, about.source, IpProtocol::Icmpv6, length)
        }
        _ => 0,
    };
    let sum = !checksum::combine(&[pseudo, checksum::sum(body)]);
    put16(message, header + ICMP_CHECKSUM, sum);
}

/// Whether nothing stands between the IP header of a message and the next.
pub(crate) fn is_plain(message: &[u8]) -> bool {
    ip_header(message).is_some()
}

/// The sum of what a tuple adds to the checksum of its packets; with or without its addresses.
fn words(tuple: &FiveTuple, addresses: bool) -> u16 {
    let of = |address: IpAddr| match address {
        IpAddr::V4(v4) => checksum::sum(&v4.octets()),
        IpAddr::V6(v6) => checksum::sum(&v6.octets()),
    };
    let ports = [tuple.source_port, tuple.destination_port];
    let both = if addresses { [of(tuple.source), of(tuple.destination)] } else { [0, 0] };
    checksum::combine(&[both[0], both[1], ports[0], ports[1]])
}

/// Bytes of the IP header; `None` where the packet is none, or something stands between it and the transport.
fn ip_header(packet: &[u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => Some(usize::from(packet.first()? & 15) * 4).filter(|header| *header >= IPV4_HEADER),
        6 => {
            let number = IpNumber(*packet.get(6)?);
            let carried =
                [IpNumber::TCP, IpNumber::UDP, IpNumber::IPV6_ICMP].contains(&number) || parse::opaque(number);
            carried.then_some(IPV6_HEADER)
        }
        _ => None,
    }
}

fn source_of(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => <[u8; 4]>::try_from(packet.get(12..16)?).ok().map(Into::into),
        _ => <[u8; 16]>::try_from(packet.get(8..24)?).ok().map(Into::into),
    }
}

/// Both of the packet's own family.
fn set_addresses(packet: &mut [u8], source: IpAddr, destination: IpAddr) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            put(packet, 12, &source.octets());
            put(packet, 16, &destination.octets());
            set_header_checksum(packet);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            put(packet, 8, &source.octets());
            put(packet, 24, &destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
}

fn set_ports(packet: &mut [u8], header: usize, tuple: &FiveTuple) {
    match tuple.protocol {
        Protocol::Tcp | Protocol::Udp => {
            put16(packet, header, tuple.source_port);
            put16(packet, header + 2, tuple.destination_port);
        }
        Protocol::Echo => put16(packet, header + ICMP_IDENTIFIER, tuple.source_port),
        Protocol::Other(_) => {}
    }
}

fn get16(packet: &[u8], at: usize) -> u16 {
    packet.get(at..at + 2).and_then(|word| <[u8; 2]>::try_from(word).ok()).map_or(0, u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ChecksumPolicy, IcmpKind, IcmpMessage, IpPacket};
    use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, PacketBuilder};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn packet(tuple: &FiveTuple, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = IcmpEchoHeader { id: tuple.source_port, seq: 5 };
        let (from, to) = (tuple.source_port, tuple.destination_port);
        match (tuple.source, tuple.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ip = PacketBuilder::ipv4(source.octets(), destination.octets(), 64);
                match tuple.protocol {
                    Protocol::Tcp => ip.tcp(from, to, 77, 1000).write(&mut bytes, data),
                    Protocol::Udp => ip.udp(from, to).write(&mut bytes, data),
                    Protocol::Echo => ip.icmpv4(Icmpv4Type::EchoRequest(header)).write(&mut bytes, data),
                    Protocol::Other(number) => ip.write(&mut bytes, IpNumber(number), data),
                }
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = PacketBuilder::ipv6(source.octets(), destination.octets(), 64);
                match tuple.protocol {
                    Protocol::Tcp => ip.tcp(from, to, 77, 1000).write(&mut bytes, data),
                    Protocol::Udp => ip.udp(from, to).write(&mut bytes, data),
                    Protocol::Echo => ip.icmpv6(Icmpv6Type::EchoRequest(header)).write(&mut bytes, data),
                    Protocol::Other(number) => ip.write(&mut bytes, IpNumber(number), data),
                }
            }
            _ => unreachable!("one family"),
        }
        .unwrap();
        bytes
    }

    fn tuple() -> impl Strategy<Value = (FiveTuple, FiveTuple)> {
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Echo, Protocol::Other(47)];
        let addresses = |v6: bool, octets: [u8; 16]| {
            let [_, a, b, c, ..] = octets;
            let mut unique_local = octets;
            unique_local[0] = 0xfd;
            if v6 { unique_local.into() } else { [10, a, b, c].into() }
        };
        (0..4usize, any::<bool>(), any::<[[u8; 16]; 4]>(), any::<[u16; 4]>()).prop_map(
            move |(which, v6, hosts, ports)| {
                let protocol = protocols[which];
                let of = |i: usize| FiveTuple {
                    protocol,
                    source: addresses(v6, hosts[i]),
                    source_port: if protocol == Protocol::Other(47) { 0 } else { ports[i] },
                    destination: addresses(v6, hosts[i + 1]),
                    destination_port: if matches!(protocol, Protocol::Tcp | Protocol::Udp) {
                        ports[i + 1].max(1)
                    } else {
                        0
                    },
                };
                (of(0), of(2))
            },
        )
    }

    proptest! {
        #[test]
        fn a_translated_packet_is_the_one_the_other_would_have_sent((old, new) in tuple(), data in vec(any::<u8>(), 1..200)) {
            let mut bytes = packet(&old, &data);
            let header = IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap().header();
            set_tuple(&mut bytes, header, &old, &new, true);
            let translated = IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap();
            prop_assert_eq!(translated.tuple(), new);
            // Two checksums can be one: 0 and all ones.
            prop_assert_eq!(bytes.len(), packet(&new, &data).len());
            set_tuple(&mut bytes, header, &new, &old, true);
            prop_assert_eq!(IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap().tuple(), old);
        }

        #[test]
        fn a_translated_error_is_about_the_other_packet((old, new) in tuple(), short: bool) {
            let quoted = packet(&old, &[7; 40]);
            let quoted = if short { &quoted[..if old.source.is_ipv4() { 28 } else { 48 }] } else { &quoted[..] };
            let mut error = Vec::new();
            match old.source {
                IpAddr::V4(source) => PacketBuilder::ipv4([10, 9, 9, 9], source.octets(), 64)
                    .icmpv4_raw(3, 4, [0, 0, 5, 0])
                    .write(&mut error, quoted),
                IpAddr::V6(source) => PacketBuilder::ipv6([0xfc; 16], source.octets(), 64)
                    .icmpv6_raw(2, 0, [0, 0, 5, 0])
                    .write(&mut error, quoted),
            }
            .unwrap();
            prop_assert_eq!(IcmpMessage::parse(&error, ChecksumPolicy::Verify).unwrap().about(), old);
            let before = source_of(&error);
            set_subject(&mut error, &new, None);
            let told = IcmpMessage::parse(&error, ChecksumPolicy::Verify).unwrap();
            prop_assert_eq!((told.about(), Some(told.source())), (new, before));
            set_subject(&mut error, &old, Some(old.destination));
            let told = IcmpMessage::parse(&error, ChecksumPolicy::Verify).unwrap();
            prop_assert_eq!((told.about(), told.source()), (old, old.destination));
        }
    }

    #[test]
    fn a_datagram_without_a_checksum_keeps_none() {
        let old = FiveTuple {
            protocol: Protocol::Udp,
            source: [10, 0, 0, 1].into(),
            source_port: 1,
            destination: [10, 0, 0, 2].into(),
            destination_port: 2,
        };
        let mut bytes = packet(&old, b"x");
        put16(&mut bytes, IPV4_HEADER + UDP_CHECKSUM, 0);
        set_tuple(&mut bytes, IPV4_HEADER, &old, &FiveTuple { source_port: 9, ..old }, true);
        assert_eq!(get16(&bytes, IPV4_HEADER + UDP_CHECKSUM), 0);
    }

    #[test]
    fn an_echo_reply_goes_to_whoever_asked() {
        let (asked, sent) = ([100, 96, 0, 2], [10, 99, 0, 2]);
        let mut reply = Vec::new();
        let packet = PacketBuilder::ipv4([10, 20, 0, 10], sent, 64);
        packet.icmpv4(Icmpv4Type::EchoReply(IcmpEchoHeader { id: 7, seq: 9 })).write(&mut reply, b"ping").unwrap();
        let about = FiveTuple {
            protocol: Protocol::Echo,
            source: asked.into(),
            source_port: 4000,
            destination: [10, 20, 0, 10].into(),
            destination_port: 0,
        };
        set_subject(&mut reply, &about, None);
        let told = IcmpMessage::parse(&reply, ChecksumPolicy::Verify).unwrap();
        assert_eq!((told.about(), told.kind()), (about, IcmpKind::EchoReply { sequence: 9, data: 4 }));
    }
}
