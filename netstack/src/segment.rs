//! Super-packets: what the stack makes when many segments leave at once, and how they become segments.
//!
//! smoltcp emits a packet of up to 64 KiB with the size of its segments beside it (TSO). A TUN device takes it as it
//! is, with `struct virtio_net_hdr` in front; a WireGuard peer gets the segments. The TCP checksum is left out until
//! it is known which: the kernel computes it, or nobody has to, or [`segments`] does, for each segment once.
//!
//! Datagrams that a target sent together go to a TUN device in the same way; see [`udp`].

pub mod udp;

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

use crate::packet::build::{IPV4_HEADER, IPV6_HEADER, TCP_HEADER, put16};
use crate::packet::checksum;

const FLAGS: usize = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Where the TCP checksum stands in its header.
const CHECKSUM: usize = 16;
/// Kinds of TCP options.
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_SEGMENT_SIZE: u8 = 2;

/// What a TCP packet, or one of many UDP datagrams, still lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// Bytes of payload of each segment but the last; `None`: the packet is one segment.
    pub segment_size: Option<u16>,
}

/// Where the parts of a TCP packet begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The TCP header.
    pub tcp: usize,
    /// The payload.
    pub payload: usize,
}

impl Layout {
    /// Of a packet the stack made: no IP options, no extension headers.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let tcp = match packet.first()? >> 4 {
            4 => IPV4_HEADER,
            6 => IPV6_HEADER,
            _ => return None,
        };
        let length = usize::from(packet.get(tcp + 12)? >> 4) * 4;
        (length >= TCP_HEADER && packet.len() >= tcp + length).then_some(Self { tcp, payload: tcp + length })
    }

    /// What the header says.
    pub(crate) fn header(self, packet: &[u8]) -> Option<Header> {
        let header = packet.get(self.tcp..self.payload)?;
        let word = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let flags = *header.get(FLAGS)?;
        Some(Header {
            sequence: word(4)?,
            acknowledgment: word(8)?,
            window: u16::from_be_bytes(header.get(14..16)?.try_into().ok()?),
            syn: flags & SYN != 0,
            fin: flags & FIN != 0,
            rst: flags & RST != 0,
        })
    }

    /// Whether the segment is a SYN.
    pub(crate) fn is_syn(self, packet: &[u8]) -> bool {
        packet.get(self.tcp + FLAGS).is_some_and(|flags| flags & SYN != 0)
    }

    /// Bytes of the IP and TCP headers without options.
    pub(crate) fn headers(self) -> usize {
        self.tcp + TCP_HEADER
    }
}

/// Fields of a TCP header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) window: u16,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
}

/// Lowers the maximum segment size that a SYN offers to `most` (RFC 9293 section 3.7.1). The checksum stays what it was.
pub(crate) fn set_maximum_segment_size(syn: &mut [u8], layout: Layout, most: usize) {
    let mut at = layout.headers();
    while at < layout.payload {
        let size = match (syn.get(at), syn.get(at + 1)) {
            (Some(&OPTION_END), _) | (None, _) => return,
            (Some(&OPTION_NOTHING), _) => 1,
            (Some(&OPTION_SEGMENT_SIZE), Some(4)) => {
                let offered = syn.get(at + 2..at + 4).and_then(|size| <[u8; 2]>::try_from(size).ok());
                if offered.is_some_and(|size| usize::from(u16::from_be_bytes(size)) > most) {
                    put16(syn, at + 2, u16::try_from(most).unwrap_or(u16::MAX));
                }
                return;
            }
            (Some(_), Some(&size)) if size >= 2 => usize::from(size),
            (Some(_), _) => return,
        };
        at += size;
    }
}

/// Puts the pseudo-header's sum where the checksum belongs: whoever sends the packet on adds the rest.
pub fn prepare_checksum(packet: &mut [u8]) -> Option<Layout> {
    let layout = Layout::of(packet)?;
    let sum = pseudo_header(packet, IpProtocol::Tcp, packet.len() - layout.tcp)?;
    put16(packet, layout.tcp + CHECKSUM, sum);
    Some(layout)
}

/// Whether the pseudo-header's sum stands where the checksum of a TCP or UDP packet belongs, as the kernel leaves it there
/// for whoever sends the packet on. The packet must have no IP options and no extension headers.
pub fn is_checksum_prepared(packet: &[u8]) -> bool {
    let (protocol, transport, at) = match udp::header(packet) {
        Some(header) => (IpProtocol::Udp, header, header + udp::CHECKSUM),
        None => match Layout::of(packet) {
            Some(layout) => (IpProtocol::Tcp, layout.tcp, layout.tcp + CHECKSUM),
            None => return false,
        },
    };
    let stands = packet.get(at..at + 2).and_then(|word| <[u8; 2]>::try_from(word).ok()).map(u16::from_be_bytes);
    stands.is_some() && stands == pseudo_header(packet, protocol, packet.len() - transport)
}

/// Hands each segment of a packet to `each`, complete. `scratch` is memory for one.
pub fn segments(packet: &[u8], offload: Offload, scratch: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
    if let Some(header) = udp::header(packet) {
        let size = offload.segment_size.map_or(packet.len(), usize::from);
        return udp::segments(packet, header, size, scratch, each);
    }
    let Some(layout) = Layout::of(packet) else { return };
    let (headers, payload) = packet.split_at(layout.payload);
    let size = offload.segment_size.map_or(payload.len(), usize::from).max(1);
    let count = payload.len().div_ceil(size).max(1);
    for index in 0..count {
        let start = index * size;
        let part = payload.get(start..payload.len().min(start + size)).unwrap_or_default();
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(part);
        if count > 1 {
            cut(scratch, layout, u32::try_from(start).unwrap_or(0), index + 1 == count);
        }
        complete(scratch, layout);
        each(scratch);
    }
}

/// Makes the header of a super-packet that of a part of it, which begins `offset` bytes later in sequence space.
/// `last`: it ends where the whole does.
pub(crate) fn cut(segment: &mut [u8], layout: Layout, offset: u32, last: bool) {
    let length = segment.len();
    if layout.tcp == IPV4_HEADER {
        put16(segment, 2, u16::try_from(length).unwrap_or(0));
        put16(segment, 10, 0);
        let sum = !checksum::sum(segment.get(..IPV4_HEADER).unwrap_or_default());
        put16(segment, 10, sum);
    } else {
        put16(segment, 4, u16::try_from(length - IPV6_HEADER).unwrap_or(0));
    }
    if let Some(sequence) = segment.get_mut(layout.tcp + 4..layout.tcp + 8)
        && let Ok(bytes) = <[u8; 4]>::try_from(&*sequence)
    {
        let moved = u32::from_be_bytes(bytes).wrapping_add(offset);
        sequence.copy_from_slice(&moved.to_be_bytes());
    }
    if let Some(flags) = segment.get_mut(layout.tcp + FLAGS) {
        // Only the last segment ends or pushes, only the first tells of a reduced window.
        if !last {
            *flags &= !(FIN | PSH);
        }
        if offset > 0 {
            *flags &= !CWR;
        }
    }
}

/// Fills in the TCP checksum.
fn complete(packet: &mut [u8], layout: Layout) {
    put16(packet, layout.tcp + CHECKSUM, 0);
    let Some(pseudo) = pseudo_header(packet, IpProtocol::Tcp, packet.len() - layout.tcp) else { return };
    let body = checksum::sum(packet.get(layout.tcp..).unwrap_or_default());
    put16(packet, layout.tcp + CHECKSUM, !checksum::combine(&[pseudo, body]));
}

fn pseudo_header(packet: &[u8], protocol: IpProtocol, length: usize) -> Option<u16> {
    let (from, to) = match packet.first()? >> 4 {
        4 => (address::<4>(packet, 12)?, address::<4>(packet, 16)?),
        6 => (address::<16>(packet, 8)?, address::<16>(packet, 24)?),
        _ => return None,
    };
    Some(checksum::pseudo_header(from, to, protocol, u32::try_from(length).ok()?))
}

fn address<const N: usize>(packet: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    Some(<[u8; N]>::try_from(packet.get(at..at + N)?).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ChecksumPolicy, IpPacket, Transport};
    use proptest::prelude::*;
    use smoltcp::phy::{Checksum, ChecksumCapabilities};
    use smoltcp::wire::{IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

    fn super_packet(v6: bool, payload: &[u8], control: TcpControl) -> Vec<u8> {
        let (from, to): (std::net::IpAddr, std::net::IpAddr) = if v6 {
            ("fd00:20::80".parse().unwrap(), "fd00:96::2".parse().unwrap())
        } else {
            ("10.20.0.80".parse().unwrap(), "100.96.0.2".parse().unwrap())
        };
        let tcp = TcpRepr {
            src_port: 80,
            dst_port: 4321,
            control,
            seq_number: TcpSeqNumber(i32::MAX - 5),
            ack_number: Some(TcpSeqNumber(77)),
            window_len: 1000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Tcp, tcp.buffer_len(), 64);
        let mut packet = vec![0; ip.buffer_len()];
        let mut sums = ChecksumCapabilities::default();
        sums.tcp = Checksum::None;
        ip.emit(&mut packet, &sums);
        let header = ip.header_len();
        tcp.emit(&mut TcpPacket::new_unchecked(&mut packet[header..]), &from.into(), &to.into(), &sums);
        packet
    }

    proptest! {
        #[test]
        fn segments_are_sound_and_join_to_the_payload(
            v6: bool, fin: bool, size in 48u16..1400, payload in proptest::collection::vec(any::<u8>(), 0..20_000),
        ) {
            let control = if fin { TcpControl::Fin } else { TcpControl::Psh };
            let packet = super_packet(v6, &payload, control);
            let mut joined = Vec::new();
            let mut made = Vec::new();
            segments(&packet, Offload { segment_size: Some(size) }, &mut Vec::new(), |segment| made.push(segment.to_vec()));
            for (index, segment) in made.iter().enumerate() {
                let parsed = IpPacket::parse(segment, ChecksumPolicy::Verify).unwrap();
                let Transport::Tcp(tcp) = parsed.transport() else { panic!("{parsed:?}") };
                prop_assert!(tcp.payload.len() <= usize::from(size));
                prop_assert_eq!(tcp.sequence, (i32::MAX - 5).cast_unsigned().wrapping_add(joined.len() as u32));
                prop_assert_eq!(tcp.fin, fin && index + 1 == made.len());
                joined.extend_from_slice(tcp.payload);
            }
            prop_assert_eq!(joined, payload);
        }
    }
}
