//! Which shard owns which peer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Number of a shard.
pub type ShardIndex = usize;

/// Shared by all shards; looked at when a handshake arrives, never for data.
#[derive(Debug, Default)]
pub struct PeerOwners {
    by_key: Mutex<HashMap<[u8; 32], ShardIndex>>,
}

impl PeerOwners {
    /// The owner of the peer with this public key; `here` becomes it when there is none.
    pub fn claim(&self, key: &[u8; 32], here: ShardIndex) -> ShardIndex {
        let mut owners = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        *owners.entry(*key).or_insert(here)
    }

    /// The owner of the peer with this public key.
    pub fn find(&self, key: &[u8; 32]) -> Option<ShardIndex> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// Gives a peer up, when `here` owns it.
    pub fn release(&self, key: &[u8; 32], here: ShardIndex) {
        let mut owners = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.get(key) == Some(&here) {
            owners.remove(key);
        }
    }
}

/// The 24 bits of a receiver index that `boringtun` lets us choose: the place in the owner's table, and the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIndex {
    /// Place in the owner's peer table.
    pub slot: usize,
    /// The owner.
    pub shard: ShardIndex,
}

impl PeerIndex {
    /// Most slots a shard can name when there are `shards`.
    pub fn max_slots(shards: usize) -> usize {
        (1 << 24) / shards.max(1)
    }

    /// The number given to `boringtun`.
    pub fn encode(self, shards: usize) -> u32 {
        u32::try_from(self.slot * shards + self.shard).unwrap_or(u32::MAX)
    }

    /// The peer a datagram with this receiver index is for. The low 8 bits count the peer's sessions.
    pub fn decode(receiver_index: u32, shards: usize) -> Self {
        let index = (receiver_index >> 8) as usize;
        Self { slot: index / shards.max(1), shard: index % shards.max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_leads_back_to_slot_and_shard() {
        for shards in [1, 2, 8] {
            for slot in [0, 1, 77, PeerIndex::max_slots(shards) - 1] {
                for shard in 0..shards {
                    let index = PeerIndex { slot, shard };
                    assert_eq!(PeerIndex::decode(index.encode(shards) << 8 | 0x2a, shards), index);
                }
            }
        }
    }

    #[test]
    fn a_peer_stays_with_its_first_owner_until_released() {
        let owners = PeerOwners::default();
        assert_eq!(owners.claim(&[1; 32], 3), 3);
        assert_eq!(owners.claim(&[1; 32], 5), 3);
        owners.release(&[1; 32], 5);
        assert_eq!(owners.claim(&[1; 32], 5), 3);
        owners.release(&[1; 32], 3);
        assert_eq!(owners.claim(&[1; 32], 5), 5);
    }
}
