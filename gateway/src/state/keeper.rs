//! The task that keeps the memory: asks the shards what moved, follows the directory, has handshakes opened.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::{Key, Memory, Remembered};
use crate::control::shards::Shards;
use crate::directory::{Device, Directory};
use crate::shard::link::Snapshot;

/// How often the shards are asked what moved; nothing is written more often.
const EVERY: Duration = Duration::from_secs(1);
/// Who was not heard of for this long before the start is not looked for: most likely somebody else has the address.
const STALE: SignedDuration = SignedDuration::from_hours(24);
/// How long the end of the process waits for the last write.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// A running keeper.
#[derive(Debug)]
pub struct Keeper {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Has the shards open handshakes with everybody remembered, and goes on remembering. Call on a tokio runtime.
    pub fn start(memory: Memory, shards: Shards, snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(Keeping { memory, shards, snapshots, usable: HashMap::new() }.run(stopped));
        Self { stop, task }
    }

    /// Writes down what moved last. Call while the shards still run.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(LAST_WRITE, self.task).await.is_err() {
            tracing::warn!("the state database takes too long: the last moves of clients are not written");
        }
    }
}

struct Keeping {
    memory: Memory,
    shards: Shards,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Devices remembered that may be connected, as of the snapshot looked at last.
    usable: HashMap<Key, Arc<Device>>,
}

impl Keeping {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let started = Timestamp::now();
        self.memory.retain(|peer| started.duration_since(peer.heard) < STALE);
        self.follow_directory().await;
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stopping = tokio::select! {
                _ = &mut stop => true,
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow_directory().await;
                    false
                }
                _ = every.tick() => false,
            };
            self.note_moves().await;
            // A write that panicked took the memory with it; there is nothing left to keep.
            let memory = self.memory;
            let saved = tokio::task::spawn_blocking(move || {
                let mut memory = memory;
                memory.save();
                memory
            });
            self.memory = match saved.await {
                Ok(memory) => memory,
                Err(error) => return tracing::error!(%error, "where clients are is no longer remembered"),
            };
            if stopping {
                return;
            }
        }
    }

    /// Forgets who was revoked, and has handshakes opened with who may be connected and was not: at the start that is
    /// everybody.
    async fn follow_directory(&mut self) {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let (directory, now) = (&snapshot.directory, Timestamp::now());
        self.memory.retain(|peer| remembers(directory, &peer.key));
        let mut usable = HashMap::new();
        let mut back = Vec::new();
        for peer in self.memory.peers() {
            let Some(device) = directory.device_by_key(&peer.key).filter(|device| device.usable_at(now)) else {
                continue;
            };
            if self.usable.get(&peer.key).is_none_or(|before| !same_tunnel(before, device)) {
                back.push(*peer);
            }
            usable.insert(peer.key, Arc::clone(device));
        }
        self.usable = usable;
        // Those heard of last are the likeliest to be there.
        back.sort_by_key(|peer| std::cmp::Reverse(peer.heard));
        if !back.is_empty() {
            tracing::info!(clients = back.len(), "opening handshakes with WireGuard clients remembered");
            self.shards.open(back).await;
        }
    }

    async fn note_moves(&mut self) {
        // A shard that does not answer keeps its marks; that it does not is for others to say.
        let moved: Vec<Remembered> = self.shards.moved().await;
        if moved.is_empty() {
            return;
        }
        let directory = Arc::clone(&self.snapshots.borrow().directory);
        for peer in moved {
            let Some(device) = directory.device_by_key(&peer.key).filter(|device| !device.revoked) else { continue };
            self.usable.insert(peer.key, Arc::clone(device));
            self.memory.note(peer);
        }
    }
}

/// Whether the directory allows to remember a peer. One that is disabled for a while is expected back.
fn remembers(directory: &Directory, key: &Key) -> bool {
    directory.device_by_key(key).is_some_and(|device| !device.revoked)
}

/// Whether a tunnel goes on when `before` becomes `after`, see [`Peers::apply`](crate::onramp::wireguard::peers::Peers::apply).
fn same_tunnel(before: &Device, after: &Device) -> bool {
    before.identity.device == after.identity.device && before.preshared_key == after.preshared_key
}
