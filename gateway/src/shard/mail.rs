//! What arrived at a shard that cannot do with it: WireGuard datagrams where their peer is not owned, packets where their
//! flow does not live or is to go on to a peer of another.

use portcullis_netstack::segment::Offload;

use crate::onramp::tun::FrameInfo;
use crate::onramp::wireguard::socket::Endpoint;

/// Batches that may wait for a shard. A full mailbox loses packets, as a full queue of a network card does.
///
/// A batch is what one shard read in a turn: mostly a few packets, 1 MiB of datagrams at the most.
/// Strangers can fill it, with datagrams that name the peer of another shard, so it is kept short.
pub(crate) const MAILBOX: usize = 256;

/// One piece of mail.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A WireGuard datagram whose handshake limits, if any, were applied.
    Datagram(Endpoint, Box<[u8]>),
    /// A whole packet that was read from the TUN device, and what is known of it.
    Packet(Box<[u8]>, FrameInfo),
    /// A packet that goes on to the WireGuard peer with this public key.
    Onward([u8; 32], Box<[u8]>, Option<Offload>),
    /// A packet, or an ICMP message, that came back by the peer with this public key.
    Back([u8; 32], Box<[u8]>, FrameInfo),
}
