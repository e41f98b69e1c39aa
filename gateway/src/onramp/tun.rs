//! The TUN on-ramp: one reader, any number of writers, and super-packets both ways.
//!
//! Each frame has a `struct virtio_net_hdr` in front (`linux/virtio_net.h`). In it the kernel says that a packet is many
//! segments in one, or that its checksum is only the pseudo-header's sum, and believes the same of us.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use portcullis_netstack::packet::ChecksumPolicy;
use portcullis_netstack::segment::{self, Offload};
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
/// Where the checksum stands in a TCP header.
const TCP_CHECKSUM: u16 = 16;

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
        if let Err(error) = device.set_offload(offload::CHECKSUM | offload::TSO4 | offload::TSO6) {
            tracing::warn!(%error, "the kernel refuses TUN offloads: packets come one segment at a time");
        }
        Ok(Self { device: sys::register_for_reading(device)?, frame: vec![0; FRAME].into_boxed_slice() })
    }

    /// Reads one packet and hands it to `each`, with what is known about its checksum.
    pub fn poll_read<R>(
        &mut self,
        cx: &mut Context<'_>,
        each: impl FnOnce(&[u8], ChecksumPolicy) -> R,
    ) -> Poll<io::Result<R>> {
        self.poll_frame(cx, |frame| {
            let checksums = match frame.first() {
                // It never left this host's memory since the kernel took it from its sender, or verified it.
                Some(flags) if flags & (NEEDS_CHECKSUM | DATA_VALID) != 0 => ChecksumPolicy::Trusted,
                _ => ChecksumPolicy::Verify,
            };
            each(frame.get(VIRTIO_HEADER..).unwrap_or_default(), checksums)
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
    one_by_one: AtomicBool,
    scratch: Vec<u8>,
}

impl TunWriter {
    /// A writer to the device.
    pub fn new(device: Arc<TunDevice>) -> Self {
        Self { device, one_by_one: AtomicBool::new(false), scratch: Vec::new() }
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// What the kernel says; the packet is lost.
    pub fn write(&mut self, packet: &mut [u8], offload: Option<Offload>) -> io::Result<()> {
        let Some(offload) = offload else { return self.write_frame([0; VIRTIO_HEADER], packet) };
        if !self.one_by_one.load(Ordering::Relaxed)
            && let Some(header) = virtio_header(packet, offload)
        {
            match self.write_frame(header, packet) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    tracing::warn!("the kernel refuses super-packets: going on segment by segment");
                    self.one_by_one.store(true, Ordering::Relaxed);
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

    fn write_frame(&self, header: [u8; VIRTIO_HEADER], packet: &[u8]) -> io::Result<()> {
        nix::sys::uio::writev(self.device.as_fd(), &[IoSlice::new(&header), IoSlice::new(packet)])?;
        Ok(())
    }
}

/// `struct virtio_net_hdr` of a TCP packet whose checksum the kernel completes: flags, GSO type, and four words in the
/// host's byte order: length of the headers, size of a segment, where the checksum begins, and where it goes.
fn virtio_header(packet: &mut [u8], offload: Offload) -> Option<[u8; VIRTIO_HEADER]> {
    let layout = segment::prepare_checksum(packet)?;
    let word = |value: usize| u16::try_from(value).ok().map(u16::to_ne_bytes);
    let gso = match (offload.segment_size, packet.first()? >> 4) {
        (None, _) => 0,
        (Some(_), 4) => GSO_TCP4,
        (Some(_), _) => GSO_TCP6,
    };
    let [length, size, start, at] = [
        word(layout.payload)?,
        offload.segment_size.unwrap_or(0).to_ne_bytes(),
        word(layout.tcp)?,
        TCP_CHECKSUM.to_ne_bytes(),
    ];
    Some([NEEDS_CHECKSUM, gso, length[0], length[1], size[0], size[1], start[0], start[1], at[0], at[1]])
}
