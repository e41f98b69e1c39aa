//! How large the segments towards the other end may be.

use crate::packet::{ChecksumPolicy, IpPacket, TcpSegment, Transport, build};
use crate::segment::{self, Layout};
use crate::tuple::FiveTuple;

/// smoltcp takes no smaller maximum segment size seriously.
pub(super) const LEAST_SEGMENT: usize = 48;

/// Lowers the maximum segment size that the SYN of an IPv6 client offers to what fits `mtu`: smoltcp has no other bound
/// for its segments, see [`crate::device`].
pub(crate) fn fit_maximum_segment_size(tuple: &FiveTuple, mtu: u16, syn: &mut [u8]) {
    let Ok(packet) = IpPacket::parse(syn, ChecksumPolicy::Trusted) else { return };
    let Transport::Tcp(segment) = packet.transport() else { return };
    if tuple.source.is_ipv4() {
        return;
    }
    // There may be extension headers before, so it is counted from the end.
    let payload = packet.bytes().len() - segment.payload.len();
    let layout = Layout { tcp: payload - segment.options.len() - build::TCP_HEADER, payload };
    let most = segment_size(tuple, mtu, segment);
    segment::set_maximum_segment_size(syn, layout, most);
}

/// Bytes of the headers of a data segment: smoltcp sends no options with data.
pub(super) fn headers(tuple: &FiveTuple) -> usize {
    if tuple.source.is_ipv4() { 40 } else { 60 }
}

/// Most bytes of a segment towards the client.
pub(super) fn segment_size(tuple: &FiveTuple, mtu: u16, syn: &TcpSegment<'_>) -> usize {
    // RFC 9293 section 3.7.1: 536 where the client names none.
    let theirs = syn.maximum_segment_size().map_or(536, usize::from);
    usize::from(mtu).saturating_sub(headers(tuple)).min(theirs).max(LEAST_SEGMENT)
}
