//! What the tunnels that live in a shard say, for people and for who keeps those to sites up.

use std::sync::Arc;
use std::time::Instant;

use super::Shard;
use crate::onramp::wireguard::peers::Peer;
use crate::shard::link::{PeerStatus, SiteStatus};

impl Shard {
    /// The devices whose tunnels live here.
    pub(super) fn peers(&self) -> Vec<PeerStatus> {
        let Some(wireguard) = &self.wireguard else { return Vec::new() };
        let status = |(_, peer): (usize, &Peer)| {
            let (bytes_received, bytes_sent) = peer.bytes();
            let device = Arc::clone(&peer.party().device.as_ref()?.identity.device);
            Some(PeerStatus {
                flows: self.loads.flows(&device),
                device,
                endpoint: peer.endpoint().map(|endpoint| endpoint.canonical()),
                last_handshake: peer.last_handshake(),
                bytes_received,
                bytes_sent,
            })
        };
        wireguard.peers.iter().filter_map(status).collect()
    }

    /// What the tunnels to sites that live here say.
    pub(super) fn sites(&self, now: Instant) -> Vec<SiteStatus> {
        let Some(wireguard) = &self.wireguard else { return Vec::new() };
        let status = |(_, peer): (usize, &Peer)| {
            let party = peer.party();
            party.site.as_ref().map(|_| SiteStatus {
                key: party.key,
                shard: self.index,
                asked: peer.is_asked(),
                unanswered: peer.is_unanswered(),
                silence: peer.heard_at().map(|at| now.saturating_duration_since(at)),
                last_handshake: peer.last_handshake(),
            })
        };
        wireguard.peers.iter().filter_map(status).collect()
    }
}
