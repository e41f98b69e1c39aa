//! Handshakes with peers that are remembered, between everything else.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{Shard, Wireguard};
use crate::metrics::counters::ShardCounters;
use crate::onramp::wireguard::peers::Surroundings;
use crate::onramp::wireguard::socket::{Endpoint, Outbox};
use crate::shard::link::Snapshot;
use crate::state::Remembered;

/// Handshakes opened before anything else has its turn: less than a millisecond's work.
const OPENED_A_TURN: usize = 4;

impl Shard {
    /// Has handshakes opened with `peers`, from the next turn on.
    pub(super) fn look_for(&mut self, peers: Vec<Remembered>) {
        if let Some(wireguard) = &mut self.wireguard {
            wireguard.opening.extend(peers);
        }
    }

    /// Opens some of the handshakes that wait. Returns whether there are more.
    pub(super) fn open_handshakes(&mut self, now: Instant) -> bool {
        let Self { wireguard: Some(wireguard), snapshot, counters, .. } = self else { return false };
        let left = |wireguard: &Wireguard| !wireguard.opening.is_empty() || wireguard.peers.is_to_ask();
        if !left(wireguard) || wireguard.outbox.is_full() {
            // The flush has the loop woken when there is room.
            return false;
        }
        let mut around = around(now, snapshot, counters, &mut wireguard.outbox);
        for _ in 0..OPENED_A_TURN {
            // Those not asked at all come first.
            let Some(peer) = wireguard.opening.pop_front() else {
                wireguard.peers.ask_again(around.outbox);
                continue;
            };
            if let Some(to) = endpoint(&peer, wireguard.ipv6, &snapshot.own_addresses) {
                wireguard.peers.open(&mut around, &peer.key, to);
            }
        }
        left(wireguard)
    }

    /// Opens a handshake with a site where it is, or at `to`, where it is now looked for.
    pub(super) fn reach(&mut self, now: Instant, key: [u8; 32], to: Option<SocketAddr>) {
        let Self { wireguard: Some(wireguard), snapshot, counters, .. } = self else { return };
        let to = match to.map(|to| (to, address(to, wireguard.ipv6))) {
            Some((to, None)) => return tracing::debug!(%to, "the WireGuard socket is of IPv4 and cannot send there"),
            Some((_, Some(address))) => Some(Endpoint { address, local: None }),
            None => None,
        };
        let mut around = around(now, snapshot, counters, &mut wireguard.outbox);
        wireguard.peers.reach(&mut around, &key, to);
    }

    /// Tells which peers moved. Nobody there to hear it: then the next time.
    pub(super) fn tell_moved(&mut self, answer: oneshot::Sender<Vec<Remembered>>) {
        let (shard, shards, heard) = (self.index, self.config.shards, Timestamp::now());
        let Some(wireguard) = &mut self.wireguard else { return drop(answer.send(Vec::new())) };
        let remembered = |(key, at): ([u8; 32], Endpoint)| Remembered {
            key,
            endpoint: at.canonical(),
            local: at.local,
            shard,
            shards,
            heard,
        };
        let moved = wireguard.peers.take_moved().into_iter().map(remembered).collect();
        if let Err(unheard) = answer.send(moved) {
            for peer in unheard {
                wireguard.peers.mark_moved(&peer.key);
            }
        }
    }
}

/// What a handshake that we open needs besides the peers.
fn around<'a>(
    clock: Instant,
    snapshot: &'a Snapshot,
    counters: &'a ShardCounters,
    outbox: &'a mut Outbox,
) -> Surroundings<'a> {
    Surroundings { directory: &snapshot.directory, now: Timestamp::now(), clock, counters, outbox }
}

/// An address as the socket wants it; `None` when the socket cannot send there.
fn address(to: SocketAddr, ipv6: bool) -> Option<SocketAddr> {
    match (to.ip(), ipv6) {
        (IpAddr::V4(v4), true) => Some(SocketAddr::new(v4.to_ipv6_mapped().into(), to.port())),
        (IpAddr::V4(_), false) | (IpAddr::V6(_), true) => Some(to),
        (IpAddr::V6(_), false) => None,
    }
}

/// Where to send to, as the socket wants it; `None` when the socket cannot.
fn endpoint(peer: &Remembered, ipv6: bool, own_addresses: &[IpAddr]) -> Option<Endpoint> {
    let address = address(peer.endpoint, ipv6)?;
    // An address that is no longer ours cannot be sent from.
    let local = peer.local.filter(|local| own_addresses.binary_search(&local.to_canonical()).is_ok());
    Some(Endpoint { address, local })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(endpoint: &str, local: Option<&str>) -> Remembered {
        Remembered {
            key: [1; 32],
            endpoint: endpoint.parse().unwrap(),
            local: local.map(|local| local.parse().unwrap()),
            shard: 0,
            shards: 1,
            heard: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn an_endpoint_is_what_the_socket_can_send_to() {
        let own: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|own| own.parse().unwrap());
        let at = |peer: &Remembered, ipv6| endpoint(peer, ipv6, &own).map(|at| (at.address.to_string(), at.local));
        let v4 = peer("198.51.100.7:40000", Some("192.0.2.1"));
        assert_eq!(at(&v4, false), Some(("198.51.100.7:40000".to_owned(), v4.local)));
        assert_eq!(at(&v4, true), Some(("[::ffff:198.51.100.7]:40000".to_owned(), v4.local)));
        let v6 = peer("[2001:db8::7]:40000", Some("2001:db8::1"));
        assert_eq!(at(&v6, true), Some(("[2001:db8::7]:40000".to_owned(), v6.local)));
        assert_eq!(at(&v6, false), None);
        let moved = peer("198.51.100.7:40000", Some("192.0.2.99"));
        assert_eq!(at(&moved, false), Some(("198.51.100.7:40000".to_owned(), None)), "an address we lost");
    }
}
