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
                    // However often it changes, what that means for the memory is written with the next tick.
                    self.follow_directory().await;
                    continue;
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
            // What was usable then may have expired since.
            let goes_on = |before: &Arc<Device>| before.usable_at(now) && same_tunnel(before, device);
            if !self.usable.get(&peer.key).is_some_and(goes_on) {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::control::shards::tests::FakeShard;
    use crate::control::tests::Files;
    use crate::directory::DirectoryContext;
    use crate::keys::encode_key;

    /// A key that can be one.
    fn key(number: u8) -> Key {
        [number + 10; 32]
    }

    fn peer(number: u8, heard: Timestamp) -> Remembered {
        let endpoint = format!("198.51.100.{number}:51820").parse().unwrap();
        Remembered { key: key(number), endpoint, local: None, shard: 0, shards: 1, heard }
    }

    /// Devices by number, each with a flag that is set.
    fn directory(devices: &[(u8, Option<&str>)]) -> Arc<Directory> {
        let mut all = json!({});
        for (number, flag) in devices {
            let mut device = json!({
                "user": "ann", "public_key": encode_key(&key(*number)), "addresses": [format!("100.96.0.{number}")],
            });
            if let Some(flag) = flag {
                device[flag] = true.into();
            }
            all[format!("device-{number}")] = device;
        }
        let context = DirectoryContext {
            tunnel: vec!["100.96.0.250/16".parse().unwrap()],
            own_public_key: None,
            networks: Vec::new(),
        };
        let text = json!({ "users": { "ann": {} }, "devices": all }).to_string();
        Arc::new(Directory::parse(&text, &context).unwrap())
    }

    fn remembered(path: &Path) -> BTreeSet<Key> {
        Memory::open(path).peers().map(|peer| peer.key).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_more_often_than_once_a_second() {
        let files = Files::new();
        let current = files.rulesets().current();
        let snapshot = || {
            let (ruleset, own_addresses) = (Arc::clone(&current.ruleset), Arc::clone(&current.own_addresses));
            Arc::new(Snapshot { ruleset, directory: directory(&[(1, None)]), own_addresses })
        };
        let (publish, snapshots) = watch::channel(snapshot());
        let shard = FakeShard::default();
        let asked = Arc::clone(&shard.asked);
        let keeper =
            Keeper::start(Memory::open(&files.path("state.db")), Shards::from_parts([shard.start()]), snapshots);
        for _ in 0..100 {
            publish.send_replace(snapshot());
            tokio::time::sleep(EVERY / 20).await;
        }
        // Every write comes after a question: at the start, and each second since.
        let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
        assert!((5..=6).contains(&asked), "{asked} times in five seconds");
        keeper.stop().await;
    }

    #[tokio::test]
    async fn follows_shards_and_directory() {
        let files = Files::new();
        let path = files.path("state.db");
        let now = Timestamp::now();
        let hours = |hours| now - SignedDuration::from_hours(hours);
        let mut memory = Memory::open(&path);
        for peer in
            [peer(1, hours(2)), peer(2, now), peer(3, now), peer(4, hours(1)), peer(5, hours(25)), peer(6, hours(1))]
        {
            memory.note(peer);
        }
        let current = files.rulesets().current();
        let snapshot = |directory: Arc<Directory>| {
            let (ruleset, own_addresses) = (Arc::clone(&current.ruleset), Arc::clone(&current.own_addresses));
            Arc::new(Snapshot { ruleset, directory, own_addresses })
        };
        // 2 is revoked, 3 is unknown, 4 is disabled, 5 was heard of too long ago.
        let first =
            directory(&[(1, None), (2, Some("revoked")), (4, Some("disabled")), (5, None), (6, None), (7, None)]);
        let (publish, snapshots) = watch::channel(snapshot(first));
        // 7 is new, 3 is still unknown.
        let shard = FakeShard { moved: vec![peer(7, now), peer(3, now)], ..FakeShard::default() };
        let opened = Arc::clone(&shard.opened);
        let opened = || opened.lock().unwrap().iter().map(|peer| peer.key).collect::<Vec<_>>();
        let keeper = Keeper::start(memory, Shards::from_parts([shard.start()]), snapshots);
        while opened().len() < 2 || remembered(&path) != BTreeSet::from([1, 4, 6, 7].map(key)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(opened(), [key(6), key(1)], "the one heard of last comes first");

        // 4 is enabled, 6 is missing, 1 is disabled, 7 goes on.
        publish.send_replace(snapshot(directory(&[(1, Some("disabled")), (4, None), (7, None)])));
        while opened().len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        keeper.stop().await;
        assert_eq!(opened(), [key(6), key(1), key(4)]);
        assert_eq!(remembered(&path), BTreeSet::from([1, 4, 7].map(key)));
    }
}
