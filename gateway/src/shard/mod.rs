//! The data-plane thread.

pub mod link;

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::flow_record::FlowRecord;
use crate::metrics::counters::ShardCounters;
use link::{Command, Snapshot};

/// Why the data plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Shards with everything bound.
#[derive(Debug)]
pub struct BoundShards {
    count: usize,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    _records: mpsc::Sender<FlowRecord>,
}

/// A running shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Where its commands go.
    pub commands: mpsc::Sender<Command>,
    /// What it counts.
    pub counters: Arc<ShardCounters>,
    thread: JoinHandle<()>,
}

impl ShardHandle {
    /// Waits for the thread after [`Command::Stop`].
    pub fn join(self) -> std::thread::Result<()> {
        self.thread.join()
    }
}

/// Binds everything the data plane needs.
pub fn bind(
    config: &Config,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    records: mpsc::Sender<FlowRecord>,
) -> Result<BoundShards, BindError> {
    Ok(BoundShards { count: config.shards, snapshots, _records: records })
}

impl BoundShards {
    /// Starts one thread per shard.
    pub fn start(self) -> Vec<ShardHandle> {
        (0..self.count)
            .map(|_| {
                let (commands, mut inbox) = mpsc::channel(64);
                let counters = Arc::new(ShardCounters::default());
                let (count, snapshots) = (Arc::clone(&counters), self.snapshots.clone());
                let thread = std::thread::spawn(move || {
                    let revision = || count.revision.set(snapshots.borrow().ruleset.revision().0);
                    revision();
                    while let Some(command) = inbox.blocking_recv() {
                        match command {
                            Command::Flows(_, answer) => drop(answer.send(Vec::new())),
                            Command::Kill(_, answer) => drop(answer.send(0)),
                            Command::Peers(answer) => drop(answer.send(Vec::new())),
                            Command::Ping(answer) | Command::Drain(answer) => drop(answer.send(())),
                            Command::Rejudge(answer) => {
                                revision();
                                drop(answer.send(()));
                            }
                            Command::Stop(answer) => {
                                drop(answer.send(()));
                                return;
                            }
                        }
                    }
                });
                ShardHandle { commands, counters, thread }
            })
            .collect()
    }
}
