//! smoltcp's view of one flow's link: at most one packet to receive, and the batch to transmit into.
//!
//! smoltcp 0.14 drops every IPv6 packet above the MTU, a super-packet that will be cut up too, and does not say the size
//! of its segments. So it is not told the MTU of an IPv6 flow: the
//! [maximum segment sizes](crate::segment::set_maximum_segment_size) that it hears from the client and tells the client
//! are written as they should be, on the way in and on the way out, and the size of segments is the flow's own.

use std::num::NonZeroUsize;

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::batch::PacketBatch;
use crate::gate::{Gate, Part, Passage};
use crate::segment::{self, Layout, Offload};
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
    /// How super-packets are to be cut; `None` while there is no data to send.
    pub(crate) segmentation: Option<Segmentation>,
    /// Transmit even into a full batch: the last word of a flow that ends.
    pub(crate) last_word: bool,
    /// What of it leaves. It is the flow's own, lent for the call.
    pub(crate) gate: Gate,
    /// How many packets smoltcp made, whatever left of them.
    pub(crate) made: u32,
}

/// How the bytes towards a client are cut up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segmentation {
    /// Bytes of the headers of a data segment.
    pub(crate) headers: usize,
    /// Most bytes of data of a segment.
    pub(crate) size: u16,
}

impl<'a> FlowLink<'a> {
    /// A link towards `to` with nothing to receive.
    pub(crate) fn new(batch: &'a mut PacketBatch, to: IngressId, mtu: u16) -> Self {
        Self {
            received: None,
            batch,
            to,
            mtu,
            sent: 0,
            segmentation: None,
            last_word: false,
            gate: Gate::default(),
            made: 0,
        }
    }

    fn token(&mut self) -> Transmit<'_> {
        Transmit {
            batch: self.batch,
            to: self.to,
            mtu: self.mtu,
            sent: &mut self.sent,
            segmentation: self.segmentation,
            gate: &mut self.gate,
            made: &mut self.made,
        }
    }
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
        Some((Received(packet), self.token()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        (self.last_word || !self.batch.is_full()).then(|| self.token())
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
    capabilities.segmentation.tcpv4 = SUPER_PACKET;
    capabilities.segmentation.tcpv6 = SUPER_PACKET;
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
    mtu: u16,
    sent: &'t mut u32,
    segmentation: Option<Segmentation>,
    gate: &'t mut Gate,
    made: &'t mut u32,
}

impl TxToken for Transmit<'_> {
    fn consume<R, F>(self, len: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        *self.made += 1;
        let segmentation = self.segmentation;
        let cut_size = |len: usize| {
            let whole = |cut: &Segmentation| cut.headers + usize::from(cut.size);
            segmentation.filter(|cut| len > whole(cut)).map(|cut| cut.size)
        };
        let segments = |payload: usize, size: Option<u16>| {
            size.map_or(1, |size| u32::try_from(payload.div_ceil(usize::from(size).max(1))).unwrap_or(u32::MAX))
        };
        let segment_size = cut_size(len);
        let Self { batch, to, mtu, sent, gate, .. } = self;
        let mut passage = Passage::Whole;
        let mut place = None;
        let result = batch.push_offloaded_with(to, len, Offload { segment_size }, |packet| {
            let result = f(packet);
            let Some(layout) = Layout::of(packet) else { return result };
            if layout.is_syn(packet) {
                let most = usize::from(mtu).saturating_sub(layout.headers());
                segment::set_maximum_segment_size(packet, layout, most);
            }
            passage = gate.admit(packet, layout);
            place = Some((layout, packet.len() - layout.payload, layout.header(packet).map(|header| header.sequence)));
            result
        });
        let Some((layout, payload, Some(sequence))) = place else { return result };
        match passage {
            Passage::Whole => *sent += segments(payload, segment_size),
            Passage::Nothing => batch.replace_last(layout.payload, std::iter::empty(), |_, _| {}),
            Passage::Bare(from) => {
                *sent += 1;
                let none = std::iter::once((0..0, Offload { segment_size: None }));
                let offset = from.wrapping_sub(sequence);
                batch.replace_last(layout.payload, none, |packet, _| segment::cut(packet, layout, offset, false));
            }
            Passage::Parts(parts) => {
                let last = parts.last().filter(|part| part.last).map(|part| part.payload.clone());
                let pieces = parts.into_iter().map(|Part { payload, .. }| {
                    let segment_size = cut_size(layout.payload + payload.len());
                    *sent += segments(payload.len(), segment_size);
                    (payload, Offload { segment_size })
                });
                batch.replace_last(layout.payload, pieces, |packet, part| {
                    let offset = u32::try_from(part.start).unwrap_or(u32::MAX);
                    segment::cut(packet, layout, offset, last.as_ref() == Some(&part));
                });
            }
        }
        result
    }
}
