//! What outlives the process, in `state.db`: where WireGuard clients were, the history of policies ([`revisions`]), and what was
//! reported of devices ([`reports`]).
//!
//! A stock client whose gateway was restarted notices only after fifteen seconds that nobody answers. A gateway that
//! remembers where its clients are opens the handshakes itself, and they pass traffic again at once.
//!
//! Shards mark a peer when an authenticated datagram shows that it moved, or has a new session: a flag, nothing more. The
//! control side asks for marked peers once a second and writes what it got: nothing is lost when much moves at once,
//! nothing is written when nothing does, and no disk is on the way of a packet. A directory that takes access away takes
//! the memory with it.
//!
//! Nothing here can stop the gateway: without a database it serves as it does otherwise, and says what is missing.

mod database;
mod keeper;
mod lock;
mod memory;
pub mod reports;
pub mod revisions;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;

pub use database::DatabaseError;
pub use keeper::Keeper;
pub use lock::{StateInUse, StateLock};
pub use memory::Memory;
pub use reports::ReportStore;
pub use revisions::Revisions;

/// Name of the database in the state directory.
pub const FILE: &str = "state.db";

/// A WireGuard public key.
pub type Key = [u8; 32];

/// What the control side keeps. `None`: there is no place for it, and the gateway does without.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The history of policies.
    pub history: Option<Arc<Revisions>>,
    /// What was reported of devices.
    pub reports: Option<Arc<ReportStore>>,
}

/// Where a peer was, and who had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// Its public key.
    pub key: Key,
    /// Where its last authentic datagram came from; an IPv4 address in its own form.
    pub endpoint: SocketAddr,
    /// The address of ours that it spoke to.
    pub local: Option<IpAddr>,
    /// The shard that owned it.
    pub shard: usize,
    /// How many shards there were.
    pub shards: usize,
    /// When it was last heard of, to a few minutes.
    pub heard: Timestamp,
}

impl Remembered {
    /// The shard to own it among `shards`: the same as before where that can be, since the kernel hands the datagrams of
    /// an address to the same socket as before.
    pub fn owner(&self, shards: usize) -> usize {
        if self.shards == shards && self.shard < shards {
            return self.shard;
        }
        let [first, ..] = self.key;
        usize::from(first) % shards.max(1)
    }
}

#[cfg(test)]
mod tests;
