//! Packets.

use portcullis_netstack::packet::{Arrival, ChecksumPolicy, IpPacket, Transport};
use portcullis_netstack::segment::Offload;

use crate::fragments;

/// Parses a packet, with and without checksums, as a fragment, and as a stream of them.
pub fn packet(data: &[u8]) {
    fragments::stream(data);
    let arrival = Arrival::parse(data, ChecksumPolicy::Trusted);
    let trusted = IpPacket::parse(data, ChecksumPolicy::Trusted);
    let verified = IpPacket::parse(data, ChecksumPolicy::Verify);
    assert_eq!(trusted.is_ok(), matches!(arrival, Ok(Arrival::Packet(_))), "a packet is a packet by every door");
    let Ok(packet) = trusted else {
        assert!(verified.is_err(), "verifying accepts nothing that trusting refuses");
        return;
    };
    assert!(data.starts_with(packet.bytes()), "a packet is cut, never changed");
    let payload = match packet.transport() {
        Transport::Tcp(segment) => segment.payload,
        Transport::Udp(datagram) => datagram.payload,
        Transport::Echo(echo) => echo.data,
        Transport::Other(data) => data,
    };
    assert!(payload.len() < packet.bytes().len());
    let source = packet.tuple().source;
    assert!(!source.is_multicast() && !source.is_unspecified() && !source.is_loopback());
    assert!(!packet.tuple().destination.is_multicast() && !packet.tuple().destination.is_unspecified());
    let again = IpPacket::parse(packet.bytes(), ChecksumPolicy::Trusted).expect("what was cut is whole");
    assert_eq!(again.tuple(), packet.tuple());
    assert_eq!(again.bytes(), packet.bytes());
    for size in [0, 1, u16::from_be_bytes([payload.first().map_or(3, |byte| byte & 7), 9]), u16::MAX] {
        datagrams(packet, size);
    }
    for size in [56, 64 + usize::from(payload.first().copied().unwrap_or(0)), 1232] {
        fragments::cut(packet, size);
    }
    if let Ok(verified) = verified {
        assert_eq!(verified.tuple(), packet.tuple());
    }
}

/// A packet that is to be many segments or datagrams loses nothing of them.
fn datagrams(packet: IpPacket<'_>, size: u16) {
    let Ok(together) = packet.with_offload(Offload { segment_size: Some(size) }) else { return };
    let udp = match together.transport() {
        Transport::Udp(udp) => udp,
        Transport::Tcp(segment) => {
            let bytes = (together.count() - 1) * usize::from(size);
            return assert!((bytes + 1..=bytes + usize::from(size)).contains(&segment.payload.len()));
        }
        Transport::Echo(_) | Transport::Other(_) => panic!("one packet"),
    };
    assert!(size > 0 && together.count() == udp.datagrams().count());
    assert!(udp.datagrams().take(udp.count() - 1).all(|one| one.len() == usize::from(size)));
    assert!(udp.datagrams().all(|one| (1..=usize::from(size)).contains(&one.len())));
    assert!(udp.datagrams().flatten().eq(udp.payload));
}
