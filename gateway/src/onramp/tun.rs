//! The TUN on-ramp: a queue of the device for each shard, and super-packets both ways.
//!
//! Each frame has a `struct virtio_net_hdr` in front (`linux/virtio_net.h`). In it the kernel says that a packet is many
//! segments in one, or that its checksum is only the pseudo-header's sum, and believes the same of us.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use portcullis_netstack::DropReason;
use portcullis_netstack::packet::{Arrival, ChecksumPolicy, IpPacket};
use portcullis_netstack::segment::{self, Layout, Offload};
use tokio::io::unix::AsyncFd;

use crate::host::TunDevice;
use crate::host::tun::{VIRTIO_HEADER, offload};
use crate::sys;

/// Longest frame the kernel hands up.
const FRAME: usize = VIRTIO_HEADER + 65_535;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds the pseudo-header's sum only.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the kernel, or the card, has verified the checksum.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCP4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCP6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: UDP over either.
const GSO_UDP: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`, which may be set beside the type.
const GSO_ECN: u8 = 0x80;
/// Where the checksum stands in a TCP header.
const TCP_CHECKSUM: u16 = 16;
/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM: u16 = 6;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;

/// What the kernel says about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo {
    /// Whether it vouches for the checksum.
    pub checksums: ChecksumPolicy,
    /// What the packet lacks. A segment size of 0 is nonsense.
    pub offload: Option<Offload>,
    /// It was put together of fragments.
    pub of_fragments: bool,
}

impl FrameInfo {
    /// A packet like any other, with checksums that need not be verified.
    pub const TRUSTED: Self = Self { checksums: ChecksumPolicy::Trusted, offload: None, of_fragments: false };

    /// What is known of a packet that was looked at before.
    pub fn known(packet: &IpPacket<'_>) -> Self {
        Self { offload: packet.offload(), of_fragments: packet.is_of_fragments(), ..Self::TRUSTED }
    }

    /// From the `virtio_net_hdr` of a frame.
    fn of(frame: &[u8]) -> Self {
        let [flags, gso, _, _, size_0, size_1, ..] = *frame else {
            return Self { checksums: ChecksumPolicy::Verify, ..Self::TRUSTED };
        };
        let size =
            matches!(gso & !GSO_ECN, GSO_TCP4 | GSO_TCP6 | GSO_UDP).then_some(u16::from_ne_bytes([size_0, size_1]));
        // It never left this host's memory since the kernel took it from its sender, or verified it.
        let vouched = flags & (NEEDS_CHECKSUM | DATA_VALID) != 0;
        Self {
            checksums: if vouched { ChecksumPolicy::Trusted } else { ChecksumPolicy::Verify },
            offload: (flags & NEEDS_CHECKSUM != 0 || size.is_some()).then_some(Offload { segment_size: size }),
            of_fragments: false,
        }
    }

    /// Parses the packet, or the part of one.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn parse(self, packet: &[u8]) -> Result<Arrival<'_>, DropReason> {
        match (Arrival::parse(packet, self.checksums)?, self.offload) {
            (Arrival::Packet(packet), offload) => {
                let packet = if self.of_fragments { packet.of_fragments() } else { packet };
                offload.map_or(Ok(packet), |offload| packet.with_offload(offload)).map(Arrival::Packet)
            }
            // Many in one are whole packets of theirs.
            (Arrival::Fragment(_) | Arrival::Icmp(_), Some(Offload { segment_size: Some(_) })) => {
                Err(DropReason::Malformed)
            }
            (arrival, _) => Ok(arrival),
        }
    }
}

/// Reads packets from the device.
#[derive(Debug)]
pub struct TunReader {
    device: AsyncFd<Arc<TunDevice>>,
    frame: Box<[u8]>,
}

impl TunReader {
    /// Watches the device, and lets the kernel hand up super-packets where it can. Must be called on the shard's
    /// runtime.
    ///
    /// # Errors
    /// What the kernel says about watching the descriptor.
    pub fn new(device: Arc<TunDevice>) -> io::Result<Self> {
        let tcp = offload::CHECKSUM | offload::TSO4 | offload::TSO6;
        let set = device.set_offload(tcp | offload::USO4 | offload::USO6).or_else(|error| {
            tracing::debug!(%error, "the kernel has no TUN offload for UDP");
            device.set_offload(tcp)
        });
        if let Err(error) = set {
            tracing::warn!(%error, "the kernel refuses TUN offloads: packets come one segment at a time");
        }
        Ok(Self { device: sys::register_for_reading(device)?, frame: vec![0; FRAME].into_boxed_slice() })
    }

    /// Reads one packet and hands it to `each`, with what the kernel says about it.
    pub fn poll_read<R>(
        &mut self,
        cx: &mut Context<'_>,
        each: impl FnOnce(&[u8], FrameInfo) -> R,
    ) -> Poll<io::Result<R>> {
        self.poll_frame(cx, |frame| {
            let info = FrameInfo::of(frame);
            each(frame.get(VIRTIO_HEADER..).unwrap_or_default(), info)
        })
    }

    /// Reads one frame and hands it to `each`: a `virtio_net_hdr` of [`VIRTIO_HEADER`] bytes, and the packet.
    pub fn poll_frame<R>(&mut self, cx: &mut Context<'_>, each: impl FnOnce(&mut [u8]) -> R) -> Poll<io::Result<R>> {
        loop {
            let mut guard = ready!(self.device.poll_read_ready(cx))?;
            match guard.try_io(|device| device.get_ref().read(&mut self.frame)) {
                Ok(Ok(len)) => return Poll::Ready(Ok(each(self.frame.get_mut(..len).unwrap_or_default()))),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// Writes packets to the device.
#[derive(Debug)]
pub struct TunWriter {
    device: Arc<TunDevice>,
    /// The kernel said that it takes no super-packets.
    one_by_one: bool,
    /// It takes none of UDP: Linux before 6.2.
    udp_one_by_one: bool,
    scratch: Vec<u8>,
}

impl TunWriter {
    /// A writer to the device.
    pub fn new(device: Arc<TunDevice>) -> Self {
        Self { device, one_by_one: false, udp_one_by_one: false, scratch: Vec::new() }
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// What the kernel says; the packet is lost.
    pub fn write(&mut self, packet: &mut [u8], offload: Option<Offload>) -> io::Result<()> {
        let Some(offload) = offload else { return self.write_frame([0; VIRTIO_HEADER], packet) };
        let udp = segment::udp::header(packet).is_some();
        let one_by_one = if udp { self.udp_one_by_one } else { self.one_by_one };
        if !one_by_one
            && prepare_checksum(packet, udp).is_some()
            && let Some(header) = virtio_header(packet, offload, udp)
        {
            match self.write_frame(header, packet) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    tracing::warn!(udp, "the kernel refuses super-packets: going on segment by segment");
                    *(if udp { &mut self.udp_one_by_one } else { &mut self.one_by_one }) = true;
                }
                written => return written,
            }
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut result = Ok(());
        segment::segments(packet, offload, &mut scratch, |segment| {
            if let Err(error) = self.write_frame([0; VIRTIO_HEADER], segment) {
                result = Err(error);
            }
        });
        self.scratch = scratch;
        result
    }

    /// Writes a packet that was read from the device, without IP options or extension headers, as it is: what it lacks, the
    /// kernel left to us, and takes it back. `false`: it is to be [written](Self::write) after all.
    ///
    /// # Errors
    /// What the kernel says; the packet is lost.
    pub fn write_as_read(&mut self, packet: &[u8], offload: Option<Offload>) -> io::Result<bool> {
        let udp = segment::udp::header(packet).is_some();
        let header = match offload {
            None => Some([0; VIRTIO_HEADER]),
            Some(_) if if udp { self.udp_one_by_one } else { self.one_by_one } => None,
            Some(offload) if segment::is_checksum_prepared(packet) => virtio_header(packet, offload, udp),
            Some(_) => None,
        };
        let Some(header) = header else { return Ok(false) };
        match self.write_frame(header, packet) {
            Ok(()) => Ok(true),
            // The next try finds out what the kernel refuses.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn write_frame(&self, header: [u8; VIRTIO_HEADER], packet: &[u8]) -> io::Result<()> {
        nix::sys::uio::writev(self.device.as_fd(), &[IoSlice::new(&header), IoSlice::new(packet)])?;
        Ok(())
    }
}

fn prepare_checksum(packet: &mut [u8], udp: bool) -> Option<()> {
    if udp { segment::udp::prepare_checksum(packet).map(drop) } else { segment::prepare_checksum(packet).map(drop) }
}

/// `struct virtio_net_hdr` of a packet whose checksum is prepared for the kernel to complete: flags, GSO type, and four
/// words in the host's byte order: length of the headers, size of a segment, where the checksum begins, and where it goes.
fn virtio_header(packet: &[u8], offload: Offload, udp: bool) -> Option<[u8; VIRTIO_HEADER]> {
    let (headers, transport, checksum, gso) = if udp {
        let header = segment::udp::header(packet)?;
        (header + UDP_HEADER, header, UDP_CHECKSUM, GSO_UDP)
    } else {
        let layout = Layout::of(packet)?;
        let gso = if packet.first()? >> 4 == 4 { GSO_TCP4 } else { GSO_TCP6 };
        (layout.payload, layout.tcp, TCP_CHECKSUM, gso)
    };
    let word = |value: usize| u16::try_from(value).ok().map(u16::to_ne_bytes);
    let gso = if offload.segment_size.is_some() { gso } else { 0 };
    let [length, size, start, at] =
        [word(headers)?, offload.segment_size.unwrap_or(0).to_ne_bytes(), word(transport)?, checksum.to_ne_bytes()];
    Some([NEEDS_CHECKSUM, gso, length[0], length[1], size[0], size[1], start[0], start[1], at[0], at[1]])
}

#[cfg(test)]
mod tests;
