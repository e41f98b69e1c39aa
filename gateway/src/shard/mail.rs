//! Packets and datagrams that arrived at a shard that does not own them.

use portcullis_netstack::packet::ChecksumPolicy;

use crate::onramp::wireguard::socket::Endpoint;

/// Batches that may wait for a shard. A full mailbox loses packets, as a full queue of a network card does.
pub(crate) const MAILBOX: usize = 1024;

/// One piece of mail.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A WireGuard datagram whose handshake limits, if any, were applied.
    Datagram(Endpoint, Box<[u8]>),
    /// A packet from the TUN device, and what is known about its checksum.
    Packet(Box<[u8]>, ChecksumPolicy),
}
