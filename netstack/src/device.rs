//! smoltcp's view of one flow's link: at most one packet to receive, and the batch to transmit into.

use std::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::batch::PacketBatch;
use crate::segment::{Layout, Offload};
use crate::tuple::IngressId;

/// Bytes of the largest super-packet. The kernel cuts one up in software that comes to more than 65,536 with the link
/// header of the device it leaves by (`gso_max_size`): there must be room for one.
const SUPER_PACKET: Option<NonZeroUsize> = NonZeroUsize::new(65_000);

/// A link that lives for one call into a flow's interface.
pub(crate) struct FlowLink<'a> {
    /// The packet to receive, if any.
    pub(crate) received: Option<&'a [u8]>,
    /// Where packets towards the client go.
    pub(crate) batch: &'a mut PacketBatch,
    /// The client.
    pub(crate) to: IngressId,
    /// Largest IP packet towards the client, in bytes.
    pub(crate) mtu: u16,
    /// How many packets were made, each segment of a super-packet being one.
    pub(crate) sent: u32,
    /// Transmit even into a full batch: the last word of a flow that ends.
    pub(crate) last_word: bool,
}

impl Device for FlowLink<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Transmit<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Transmit { batch: self.batch, to: self.to, sent: &mut self.sent, segment_size: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        if self.batch.is_full() && !self.last_word {
            return None;
        }
        Some(Transmit { batch: self.batch, to: self.to, sent: &mut self.sent, segment_size: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

/// What every flow's link can do.
fn capabilities(mtu: u16) -> DeviceCapabilities {
    let mut checksum = ChecksumCapabilities::default();
    // Verified, or covered by the AEAD, when the packet was parsed.
    checksum.ipv4 = Checksum::Tx;
    // Added when it is known where the packet goes.
    checksum.tcp = Checksum::None;
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = usize::from(mtu);
    capabilities.checksum = checksum;
    // smoltcp 0.14 drops every IPv6 packet above the MTU, super-packets too, so IPv6 goes segment by segment.
    capabilities.segmentation.tcpv4 = SUPER_PACKET;
    capabilities
}

pub(crate) struct Received<'t>(&'t [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F>(self, f: F) -> R
    where
        F: FnOnce(&[u8]) -> R,
    {
        f(self.0)
    }
}

pub(crate) struct Transmit<'t> {
    batch: &'t mut PacketBatch,
    to: IngressId,
    sent: &'t mut u32,
    segment_size: Option<NonZeroU16>,
}

impl TxToken for Transmit<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size;
    }

    fn consume<R, F>(self, len: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        let offload = Offload { segment_size: self.segment_size.map(NonZeroU16::get) };
        self.batch.push_offloaded_with(self.to, len, offload, |packet| {
            let result = f(packet);
            let payload = Layout::of(packet).map_or(0, |layout| packet.len() - layout.payload);
            let size = self.segment_size.map_or(usize::MAX, |size| usize::from(size.get()));
            *self.sent += u32::try_from(payload.div_ceil(size).max(1)).unwrap_or(u32::MAX);
            result
        })
    }
}
