//! Packets of the kernel, as it hands them up: whole, super-packets, or without checksums.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use portcullis::host::TunDevice;
use portcullis::host::tun::{VIRTIO_HEADER, offload};
use portcullis::onramp::tun::TunReader;
use portcullis_netstack::segment::{self, Offload};
use smoltcp::wire::checksum;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6`, `_UDP_L4`, and the flag `_ECN` (`linux/virtio_net.h`).
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;
const UDP: u16 = 17;
const UDP_HEADER: usize = 8;
const IPV6_HEADER: usize = 40;

/// Reads the device.
#[derive(Debug)]
pub(super) struct Reader {
    frames: TunReader,
    scratch: Vec<u8>,
}

impl Reader {
    /// Lets the kernel hand up super-packets, of UDP too where it can (Linux 6.2).
    pub(super) fn new(device: Arc<TunDevice>) -> io::Result<Self> {
        let frames = TunReader::new(Arc::clone(&device))?;
        let tcp = offload::CHECKSUM | offload::TSO4 | offload::TSO6;
        let _ = device.set_offload(tcp | offload::USO4 | offload::USO6);
        Ok(Self { frames, scratch: Vec::new() })
    }

    /// Reads one frame and hands its packets to `each`, complete. Returns how many bytes it had.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, each: impl FnMut(&[u8])) -> Poll<io::Result<usize>> {
        let Self { frames, scratch } = self;
        frames.poll_frame(cx, |frame| {
            packets(frame, scratch, each);
            frame.len()
        })
    }
}

/// Hands the packets of a frame to `each`. Nothing when it is no frame.
fn packets(frame: &mut [u8], scratch: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
    let Some((&mut [flags, gso, _, _, size @ .., start0, start1, at0, at1], packet)) =
        frame.split_first_chunk_mut::<VIRTIO_HEADER>()
    else {
        return;
    };
    let segment_size = u16::from_ne_bytes(size);
    let start = usize::from(u16::from_ne_bytes([start0, start1]));
    match gso & !GSO_ECN {
        GSO_TCP4 | GSO_TCP6 => segment::segments(packet, Offload { segment_size: Some(segment_size) }, scratch, each),
        GSO_UDP => datagrams(packet, start, usize::from(segment_size).max(1), scratch, each),
        _ if flags & NEEDS_CHECKSUM != 0 => {
            let field = start + usize::from(u16::from_ne_bytes([at0, at1]));
            // The field holds the sum of the pseudo-header.
            let sum = checksum::data(packet.get(start..).unwrap_or_default());
            put16(packet, field, not_zero(!sum));
            each(packet);
        }
        _ => each(packet),
    }
}

/// Hands the datagrams of a UDP super-packet to `each`.
fn datagrams(packet: &[u8], udp: usize, size: usize, scratch: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
    let Some((headers, payload)) = packet.split_at_checked(udp + UDP_HEADER) else { return };
    for part in payload.chunks(size) {
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(part);
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(0);
        let datagram = length(UDP_HEADER + part.len());
        let addresses = match scratch.first().map_or(0, |byte| byte >> 4) {
            4 => {
                put16(scratch, 2, length(udp + UDP_HEADER + part.len()));
                put16(scratch, 10, 0);
                let sum = !checksum::data(scratch.get(..udp).unwrap_or_default());
                put16(scratch, 10, sum);
                12..20
            }
            _ => {
                put16(scratch, 4, length((udp + UDP_HEADER + part.len()).saturating_sub(IPV6_HEADER)));
                8..40
            }
        };
        put16(scratch, udp + 4, datagram);
        put16(scratch, udp + 6, 0);
        let addresses = checksum::data(scratch.get(addresses).unwrap_or_default());
        let body = checksum::data(scratch.get(udp..).unwrap_or_default());
        let sum = checksum::combine(&[addresses, UDP, datagram, body]);
        put16(scratch, udp + 6, not_zero(!sum));
        each(scratch);
    }
}

/// A UDP checksum of 0 means none; for TCP both forms are the same sum.
fn not_zero(sum: u16) -> u16 {
    if sum == 0 { u16::MAX } else { sum }
}

fn put16(packet: &mut [u8], at: usize, value: u16) {
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_netstack::packet::{ChecksumPolicy, IpPacket, Transport};

    fn frame(v6: bool, gso: u8, payload: &[u8]) -> Vec<u8> {
        let udp = if v6 { 40_u16 } else { 20 };
        let mut frame = vec![NEEDS_CHECKSUM, gso, 0, 0];
        frame.extend(100_u16.to_ne_bytes());
        frame.extend(udp.to_ne_bytes());
        frame.extend(6_u16.to_ne_bytes());
        let length = 8 + payload.len() as u16;
        if v6 {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([17, 64]);
            frame.extend([0x20; 32]);
        } else {
            frame.extend([0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = !checksum::data(&frame[VIRTIO_HEADER..]);
            put16(&mut frame, VIRTIO_HEADER + 10, sum);
        }
        let addresses = if v6 { 8..40 } else { 12..20 };
        let pseudo = checksum::combine(&[checksum::data(&frame[VIRTIO_HEADER..][addresses]), UDP, length]);
        frame.extend([0, 53, 0, 54]);
        frame.extend(length.to_be_bytes());
        frame.extend(pseudo.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn payloads(mut frame: Vec<u8>) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        packets(&mut frame, &mut Vec::new(), |packet| {
            let parsed = IpPacket::parse(packet, ChecksumPolicy::Verify).unwrap();
            let Transport::Udp(datagram) = parsed.transport() else { panic!("{parsed:?}") };
            out.push(datagram.payload.to_vec());
        });
        out
    }

    #[test]
    fn checksums_are_completed() {
        for v6 in [false, true] {
            assert_eq!(payloads(frame(v6, 0, b"hello")), [b"hello"]);
        }
    }

    #[test]
    fn datagrams_are_cut_where_they_were_joined() {
        for v6 in [false, true] {
            let payload: Vec<u8> = (0..250).collect();
            let expected: Vec<_> = payload.chunks(100).map(<[u8]>::to_vec).collect();
            assert_eq!(payloads(frame(v6, GSO_UDP, &payload)), expected);
        }
    }

    #[test]
    fn nonsense_is_survived() {
        let sound = frame(false, GSO_UDP, &[7; 300]);
        for length in 0..sound.len() {
            for gso in [0, GSO_TCP4, GSO_TCP6, GSO_UDP] {
                let mut part = sound[..length].to_vec();
                part.get_mut(1..2).unwrap_or_default().fill(gso);
                packets(&mut part, &mut Vec::new(), |_| {});
            }
        }
    }
}
