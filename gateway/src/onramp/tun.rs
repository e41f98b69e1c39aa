//! The TUN on-ramp: one reader, any number of writers.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use crate::host::TunDevice;
use crate::sys;

/// Length of `struct virtio_net_hdr` before each packet, `linux/virtio_net.h`.
pub const VNET_HEADER: usize = 10;
/// Longest frame the kernel hands up.
const FRAME: usize = VNET_HEADER + 65_535;

/// Reads packets from the device.
#[derive(Debug)]
pub struct TunReader {
    device: AsyncFd<Arc<TunDevice>>,
    frame: Box<[u8]>,
}

impl TunReader {
    /// Watches the device. Must be called on the shard's runtime.
    ///
    /// # Errors
    /// What the kernel says about watching the descriptor.
    pub fn new(device: Arc<TunDevice>) -> io::Result<Self> {
        Ok(Self { device: sys::register_for_reading(device)?, frame: vec![0; FRAME].into_boxed_slice() })
    }

    /// Reads one packet and hands it to `each`.
    pub fn poll_read<R>(&mut self, cx: &mut Context<'_>, each: impl FnOnce(&[u8]) -> R) -> Poll<io::Result<R>> {
        loop {
            let mut guard = ready!(self.device.poll_read_ready(cx))?;
            match guard.try_io(|device| device.get_ref().read(&mut self.frame)) {
                Ok(Ok(len)) => {
                    let packet = self.frame.get(VNET_HEADER..len).unwrap_or_default();
                    return Poll::Ready(Ok(each(packet)));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// Writes one packet to the device.
///
/// # Errors
/// What the kernel says; the packet is lost.
pub fn write(device: &TunDevice, packet: &[u8]) -> io::Result<()> {
    // No offload: the packet is complete, and the header says nothing.
    let header = [0; VNET_HEADER];
    nix::sys::uio::writev(device.as_fd(), &[IoSlice::new(&header), IoSlice::new(packet)])?;
    Ok(())
}
