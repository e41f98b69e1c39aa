//! smoltcp's view of one flow's link: at most one packet to receive, and the batch to transmit into.

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::batch::PacketBatch;
use crate::tuple::IngressId;

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
    /// How many packets were made.
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
        Some((Received(packet), Transmit { batch: self.batch, to: self.to, sent: &mut self.sent }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        if self.batch.is_full() && !self.last_word {
            return None;
        }
        Some(Transmit { batch: self.batch, to: self.to, sent: &mut self.sent })
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
    checksum.tcp = Checksum::Tx;
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = usize::from(mtu);
    capabilities.checksum = checksum;
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
}

impl TxToken for Transmit<'_> {
    fn consume<R, F>(self, len: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        *self.sent += 1;
        self.batch.push_with(self.to, len, f)
    }
}
