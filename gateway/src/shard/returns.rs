//! Which shard a forwarded flow lives in.
//!
//! What comes back of it comes to the shard that the kernel, or the peer, chooses. From the TUN device: the kernel keeps a
//! flow in the queue it was last written to, but forgets that after three seconds, and then goes by a hash alone. From a
//! WireGuard peer: to the shard that has its tunnel. Unlike [`Places`](super::places::Places) this table forgets nothing,
//! for what comes back belongs to no device and would be dropped. Its lock is taken when such a flow begins and ends, and
//! for packets that no flow of the shard they came to waits for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::RandomState;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use portcullis_netstack::FiveTuple;

use crate::offramp::NextHop;

/// What packets come back by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Via {
    /// The TUN device.
    Tun,
    /// The tunnel of the WireGuard peer with this public key.
    Peer([u8; 32]),
}

impl Via {
    /// What comes back of packets that go on to `hop`.
    pub(crate) fn of(hop: &NextHop) -> Self {
        match hop {
            NextHop::Kernel => Self::Tun,
            NextHop::Site(site) => Self::Peer(site.public_key),
            NextHop::Device(key) => Self::Peer(*key),
        }
    }
}

/// What comes back of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Return {
    pub(crate) via: Via,
    /// Its addresses and ports.
    pub(crate) tuple: FiveTuple,
}

/// What all shards know of each other's forwarded flows, by what comes back of them. As many as there may be flows.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    table: RwLock<Table>,
    /// How many of them come back by peers.
    by_peers: AtomicUsize,
    /// Of the source ports that what comes back is sent to.
    secret: RandomState,
}

#[derive(Debug, Default)]
struct Table {
    shards: HashMap<Return, usize>,
    /// How many come back by each peer.
    peers: HashMap<[u8; 32], usize>,
}

impl Returns {
    /// The shard of the flow that a packet comes back to.
    pub(super) fn find(&self, back: &Return) -> Option<usize> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).shards.get(back).copied()
    }

    /// What all shards choose source ports by.
    pub(super) fn secret(&self) -> RandomState {
        self.secret.clone()
    }

    /// Whether anything may come back by a peer. Most gateways have no such flow, and their packets are not looked up.
    pub(super) fn any_by_peers(&self) -> bool {
        self.by_peers.load(Ordering::Relaxed) > 0
    }

    /// Whether anything may come back by the peer with this public key.
    pub(super) fn come_by(&self, key: &[u8; 32]) -> bool {
        self.any_by_peers() && self.table.read().unwrap_or_else(PoisonError::into_inner).peers.contains_key(key)
    }

    /// Says that what comes back as `back` belongs to `shard`, and no longer to another.
    pub(super) fn take(&self, back: Return, shard: usize) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.shards.insert(back, shard).is_none() {
            self.one_more(&mut table, &back);
        }
    }

    /// Says that it belongs to `shard`, where it belongs to none. Returns whether it does.
    pub(super) fn claim(&self, back: Return, shard: usize) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Entry::Vacant(vacant) = table.shards.entry(back) else { return false };
        vacant.insert(shard);
        self.one_more(&mut table, &back);
        true
    }

    /// Says that it does no longer.
    pub(super) fn release(&self, back: &Return, shard: usize) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.shards.get(back) != Some(&shard) {
            return;
        }
        table.shards.remove(back);
        if let Via::Peer(key) = back.via
            && let Entry::Occupied(mut peer) = table.peers.entry(key)
        {
            self.by_peers.fetch_sub(1, Ordering::Relaxed);
            *peer.get_mut() -= 1;
            if *peer.get() == 0 {
                peer.remove();
            }
        }
    }

    fn one_more(&self, table: &mut Table, back: &Return) {
        if let Via::Peer(key) = back.via {
            self.by_peers.fetch_add(1, Ordering::Relaxed);
            *table.peers.entry(key).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_netstack::Protocol;

    #[test]
    fn what_comes_back_belongs_to_one_shard() {
        let tuple = FiveTuple {
            protocol: Protocol::Tcp,
            source: [10, 20, 0, 10].into(),
            source_port: 443,
            destination: [10, 99, 0, 2].into(),
            destination_port: 4000,
        };
        let returns = Returns::default();
        let [by_tun, by_peer] = [Via::Tun, Via::Peer([1; 32])].map(|via| Return { via, tuple });
        assert!(returns.claim(by_tun, 0) && !returns.any_by_peers());
        assert!(returns.claim(by_peer, 1), "another way is another flow");
        assert!(!returns.claim(by_peer, 0) && returns.any_by_peers());
        assert!(returns.come_by(&[1; 32]) && !returns.come_by(&[2; 32]));
        returns.release(&by_peer, 0);
        assert_eq!(returns.find(&by_peer), Some(1), "another's to release");
        returns.take(by_peer, 0);
        returns.release(&by_peer, 1);
        assert_eq!((returns.find(&by_peer), returns.find(&by_tun)), (Some(0), Some(0)), "it has moved");
        returns.release(&by_peer, 0);
        assert!(returns.find(&by_peer).is_none() && !returns.any_by_peers() && !returns.come_by(&[1; 32]));
    }
}
