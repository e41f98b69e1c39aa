//! Packets.

use portcullis_netstack::packet::{ChecksumPolicy, IpPacket, Transport};

/// Parses a packet, with and without checksums.
pub fn packet(data: &[u8]) {
    let trusted = IpPacket::parse(data, ChecksumPolicy::Trusted);
    let verified = IpPacket::parse(data, ChecksumPolicy::Verify);
    let Ok(packet) = trusted else {
        assert!(verified.is_err(), "verifying accepts nothing that trusting refuses");
        return;
    };
    assert!(data.starts_with(packet.bytes()), "a packet is cut, never changed");
    let payload = match packet.transport() {
        Transport::Tcp(segment) => segment.payload,
        Transport::Udp(datagram) => datagram.payload,
        Transport::Echo(echo) => echo.data,
    };
    assert!(payload.len() < packet.bytes().len());
    let source = packet.tuple().source;
    assert!(!source.is_multicast() && !source.is_unspecified() && !source.is_loopback());
    assert!(!packet.tuple().destination.is_multicast() && !packet.tuple().destination.is_unspecified());
    let again = IpPacket::parse(packet.bytes(), ChecksumPolicy::Trusted).expect("what was cut is whole");
    assert_eq!(again.tuple(), packet.tuple());
    assert_eq!(again.bytes(), packet.bytes());
    if let Ok(verified) = verified {
        assert_eq!(verified.tuple(), packet.tuple());
    }
}
