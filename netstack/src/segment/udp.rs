//! UDP super-packets: datagrams of one size, of which the last may be shorter, behind one header whose lengths are those
//! of all of them together.

use smoltcp::wire::IpProtocol;

use super::pseudo_header;
use crate::packet::build::{self, IPV4_HEADER, IPV6_HEADER, UDP_HEADER, put16};
use crate::packet::checksum;

/// Where the checksum stands in its header.
pub(super) const CHECKSUM: usize = 6;

/// Where the UDP header of a packet begins that the stack made; `None`: it is not a UDP packet.
pub fn header(packet: &[u8]) -> Option<usize> {
    let (protocol, header) = match packet.first()? >> 4 {
        4 => (packet.get(9)?, IPV4_HEADER),
        6 => (packet.get(6)?, IPV6_HEADER),
        _ => return None,
    };
    (IpProtocol::from(*protocol) == IpProtocol::Udp && packet.len() >= header + UDP_HEADER).then_some(header)
}

/// Puts the pseudo-header's sum where the checksum belongs: whoever sends the packet on adds the rest. Returns where the
/// UDP header begins.
pub fn prepare_checksum(packet: &mut [u8]) -> Option<usize> {
    let header = header(packet)?;
    let sum = pseudo_header(packet, IpProtocol::Udp, packet.len() - header)?;
    put16(packet, header + CHECKSUM, sum);
    Some(header)
}

/// Hands each datagram to `each` as a packet of its own.
pub(super) fn segments(packet: &[u8], udp: usize, size: usize, scratch: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
    let (headers, payload) = packet.split_at((udp + UDP_HEADER).min(packet.len()));
    // One without payload is one, too.
    let (first, rest) = payload.split_at(size.min(payload.len()));
    for part in std::iter::once(first).chain(rest.chunks(size.max(1))) {
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(part);
        build::set_udp_lengths(scratch, headers.len(), part.len());
        put16(scratch, udp + CHECKSUM, 0);
        if let Some(pseudo) = pseudo_header(scratch, IpProtocol::Udp, scratch.len() - udp) {
            let sum = !checksum::combine(&[pseudo, checksum::sum(scratch.get(udp..).unwrap_or_default())]);
            // RFC 768: a computed 0 is sent as all ones, because 0 means "none".
            put16(scratch, udp + CHECKSUM, if sum == 0 { 0xffff } else { sum });
        }
        each(scratch);
    }
}
