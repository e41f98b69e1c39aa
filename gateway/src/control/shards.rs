//! The shards as the control side sees them: where commands go, and counters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::flow_record::FlowRecord;
use crate::metrics::counters::ShardCounters;
use crate::offramp::DialError;
use crate::offramp::site::Site;
use crate::shard::ShardHandle;
use crate::shard::link::{Command, FlowFilter, PeerStatus, SiteStatus};
use crate::state::Remembered;

/// How long a shard has to answer before it counts as stuck.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A shard did not answer in time, or its thread is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("shard {} did not answer", .0.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))]
pub struct Unanswered(pub Vec<usize>);

/// Every shard of the process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shards(Arc<[Shard]>);

#[derive(Debug)]
struct Shard {
    commands: mpsc::Sender<Command>,
    counters: Arc<ShardCounters>,
}

impl Shards {
    /// The control side of `handles`.
    pub fn new(handles: &[ShardHandle]) -> Self {
        Self::from_parts(handles.iter().map(|h| (h.commands.clone(), Arc::clone(&h.counters))))
    }

    /// From each shard's command channel and counters.
    pub fn from_parts(parts: impl IntoIterator<Item = (mpsc::Sender<Command>, Arc<ShardCounters>)>) -> Self {
        Self(parts.into_iter().map(|(commands, counters)| Shard { commands, counters }).collect())
    }

    /// The counters, in the order of the shards.
    pub fn counters(&self) -> impl Iterator<Item = &Arc<ShardCounters>> {
        self.0.iter().map(|shard| &shard.counters)
    }

    /// Sends a command to every shard at once and waits for every answer, `limit` at the most.
    pub async fn ask<T>(
        &self,
        limit: Duration,
        command: impl Fn(oneshot::Sender<T>) -> Command,
    ) -> (Vec<T>, Result<(), Unanswered>) {
        let answers = join_all(self.0.iter().map(|shard| {
            let (sender, answer) = oneshot::channel();
            let command = command(sender);
            timeout(limit, async move {
                shard.commands.send(command).await.ok()?;
                answer.await.ok()
            })
        }))
        .await;
        let mut silent = Vec::new();
        let mut answered = Vec::with_capacity(answers.len());
        for (shard, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(Some(answer)) => answered.push(answer),
                Ok(None) | Err(_) => silent.push(shard),
            }
        }
        (answered, if silent.is_empty() { Ok(()) } else { Err(Unanswered(silent)) })
    }

    /// Live flows that match, oldest first.
    pub async fn flows(&self, filter: &FlowFilter) -> Result<Vec<FlowRecord>, Unanswered> {
        let (lists, all) = self.ask(ANSWER_TIMEOUT, |answer| Command::Flows(filter.clone(), answer)).await;
        all?;
        let mut flows: Vec<_> = lists.into_iter().flatten().collect();
        flows.sort_by_key(|flow| (flow.start, flow.id));
        Ok(flows)
    }

    /// Ends live flows that match; answers how many.
    pub async fn kill(&self, filter: &FlowFilter) -> Result<usize, Unanswered> {
        let (counts, all) = self.ask(ANSWER_TIMEOUT, |answer| Command::Kill(filter.clone(), answer)).await;
        all.map(|()| counts.into_iter().sum())
    }

    /// Ends live flows over an off-ramp that is down, where they have another way; answers how many.
    pub async fn leave(&self, offramp: &Arc<str>) -> Result<usize, Unanswered> {
        let (counts, all) = self.ask(ANSWER_TIMEOUT, |answer| Command::Leave(Arc::clone(offramp), answer)).await;
        all.map(|()| counts.into_iter().sum())
    }

    /// WireGuard peers of every shard, by device. A peer that moved may be known to two shards: the newer counts.
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, Unanswered> {
        let (lists, all) = self.ask(ANSWER_TIMEOUT, Command::Peers).await;
        all?;
        let mut peers: Vec<_> = lists.into_iter().flatten().collect();
        peers.sort_by(|a, b| a.device.cmp(&b.device).then(b.last_handshake.cmp(&a.last_handshake)));
        peers.dedup_by(|older, newer| {
            let same = older.device == newer.device;
            if same {
                newer.flows += older.flows;
                newer.bytes_received += older.bytes_received;
                newer.bytes_sent += older.bytes_sent;
            }
            same
        });
        Ok(peers)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tunnels to sites, of every shard.
    pub async fn sites(&self) -> Result<Vec<SiteStatus>, Unanswered> {
        let (lists, all) = self.ask(ANSWER_TIMEOUT, Command::Sites).await;
        all.map(|()| lists.into_iter().flatten().collect())
    }

    /// Has `shard` open a handshake with the site that has this public key, where it is or at `to`.
    pub async fn reach(&self, shard: usize, key: [u8; 32], to: Option<SocketAddr>) {
        if let Some(shard) = self.0.get(shard) {
            // One that is stuck or gone is for others to notice.
            let _ = timeout(ANSWER_TIMEOUT, shard.commands.send(Command::Reach(key, to))).await;
        }
    }

    /// Connects to `to` through the tunnel of `site`, to see whether it answers. How long that may take is the caller's to
    /// bound.
    pub async fn probe(&self, site: &Arc<Site>, to: SocketAddr) -> Result<(), DialError> {
        let (sender, answer) = oneshot::channel();
        // Any can: what comes back finds it.
        let Some(shard) = self.0.first() else { return Err(DialError::NoTunnel) };
        let sent = shard.commands.send(Command::Probe(Arc::clone(site), to, sender)).await;
        if sent.is_err() {
            return Err(DialError::NoTunnel);
        }
        answer.await.unwrap_or(Err(DialError::NoTunnel))
    }

    /// Where the peers are that moved since the last call. A shard that does not answer tells the next time.
    pub async fn moved(&self) -> Vec<Remembered> {
        self.ask(ANSWER_TIMEOUT, Command::Moved).await.0.into_iter().flatten().collect()
    }

    /// Has each shard open handshakes with the peers that are its own, in this order.
    pub async fn open(&self, peers: Vec<Remembered>) {
        let mut of_shard = vec![Vec::new(); self.0.len()];
        for peer in peers {
            if let Some(list) = of_shard.get_mut(peer.owner(self.0.len())) {
                list.push(peer);
            }
        }
        for (shard, list) in self.0.iter().zip(of_shard).filter(|(_, list)| !list.is_empty()) {
            // A shard that is stuck or gone is for others to notice.
            let _ = timeout(ANSWER_TIMEOUT, shard.commands.send(Command::Open(list))).await;
        }
    }

    /// Has every shard judge its live flows again.
    pub async fn rejudge(&self) -> Result<(), Unanswered> {
        self.ask(ANSWER_TIMEOUT, Command::Rejudge).await.1
    }

    /// Whether every shard's loop turns.
    pub async fn ping(&self) -> Result<(), Unanswered> {
        self.ask(ANSWER_TIMEOUT, Command::Ping).await.1
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::flow_record::tests::record;

    /// A shard that answers with canned flows and writes down what it was told.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct FakeShard {
        pub(crate) flows: Vec<FlowRecord>,
        pub(crate) peers: Vec<PeerStatus>,
        /// What moved before the first question.
        pub(crate) moved: Vec<Remembered>,
        /// How often it was asked what moved.
        pub(crate) asked: Arc<std::sync::atomic::AtomicUsize>,
        /// Peers it was told to open handshakes with.
        pub(crate) opened: Arc<Mutex<Vec<Remembered>>>,
        pub(crate) told: Arc<Mutex<Vec<&'static str>>>,
        /// Keep the question and never answer.
        pub(crate) stuck: bool,
        /// Never be done with draining.
        pub(crate) busy: bool,
    }

    impl FakeShard {
        /// Starts it on the current runtime.
        pub(crate) fn start(mut self) -> (mpsc::Sender<Command>, Arc<ShardCounters>) {
            let (commands, mut inbox) = mpsc::channel(8);
            tokio::spawn(async move {
                let mut kept = Vec::new();
                while let Some(command) = inbox.recv().await {
                    if self.stuck {
                        kept.push(command);
                        continue;
                    }
                    let tell = |what| self.told.lock().unwrap().push(what);
                    let matching = |filter: FlowFilter| {
                        self.flows.iter().filter(|f| filter.matches(f)).cloned().collect::<Vec<_>>()
                    };
                    match command {
                        Command::Flows(filter, answer) => _ = answer.send(matching(filter)),
                        Command::Kill(filter, answer) => {
                            tell("kill");
                            _ = answer.send(matching(filter).len());
                        }
                        Command::Leave(_, answer) => _ = answer.send(0),
                        Command::Peers(answer) => _ = answer.send(self.peers.clone()),
                        Command::Sites(answer) => _ = answer.send(Vec::new()),
                        Command::Reach(..) | Command::Probe(..) => {}
                        Command::Moved(answer) => {
                            self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            _ = answer.send(std::mem::take(&mut self.moved));
                        }
                        Command::Open(peers) => self.opened.lock().unwrap().extend(peers),
                        Command::Ping(answer) => _ = answer.send(()),
                        Command::Rejudge(answer) => {
                            tell("rejudge");
                            _ = answer.send(());
                        }
                        Command::Drain(answer) => {
                            tell("drain");
                            if self.busy {
                                kept.push(Command::Drain(answer));
                            } else {
                                _ = answer.send(());
                            }
                        }
                        Command::Stop(answer) => {
                            tell("stop");
                            _ = answer.send(());
                            return;
                        }
                    }
                }
            });
            (commands, Arc::default())
        }
    }

    fn peer(device: &str, last_handshake: Option<&str>, bytes: u64) -> PeerStatus {
        PeerStatus {
            device: device.into(),
            endpoint: None,
            last_handshake: last_handshake.map(|t| t.parse().unwrap()),
            bytes_received: bytes,
            bytes_sent: bytes,
            flows: 1,
        }
    }

    #[tokio::test]
    async fn answers_are_put_together() {
        let mut second = record(2);
        second.start = "2027-03-01T08:00:00Z".parse().unwrap();
        second.device = "bob-phone".into();
        let one = FakeShard {
            flows: vec![record(1)],
            peers: vec![peer("b", None, 1), peer("a", Some("2027-01-01T00:00:00Z"), 1)],
            ..FakeShard::default()
        };
        let two = FakeShard {
            flows: vec![second],
            peers: vec![peer("a", Some("2027-01-02T00:00:00Z"), 10)],
            ..FakeShard::default()
        };
        let shards = Shards::from_parts([one.start(), two.start()]);
        let ids = |flows: Vec<FlowRecord>| flows.iter().map(|f| f.id).collect::<Vec<_>>();
        assert_eq!(ids(shards.flows(&FlowFilter::default()).await.unwrap()), [2, 1], "oldest first");
        let bob = FlowFilter { device: Some("bob-phone".to_owned()), ..FlowFilter::default() };
        assert_eq!(ids(shards.flows(&bob).await.unwrap()), [2]);
        assert_eq!(shards.kill(&FlowFilter::default()).await, Ok(2));
        let peers = shards.peers().await.unwrap();
        let seen: Vec<_> = peers.iter().map(|p| (&*p.device, p.bytes_sent, p.flows)).collect();
        assert_eq!(seen, [("a", 11, 2), ("b", 1, 1)]);
        assert_eq!(peers[0].last_handshake.unwrap().to_string(), "2027-01-02T00:00:00Z");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_or_dead_shard_is_named() {
        let dead = mpsc::channel(1).0;
        let stuck = FakeShard { stuck: true, ..FakeShard::default() };
        let shards = Shards::from_parts([FakeShard::default().start(), stuck.start(), (dead, Arc::default())]);
        assert_eq!(shards.ping().await, Err(Unanswered(vec![1, 2])));
        assert_eq!(Unanswered(vec![1, 2]).to_string(), "shard 1, 2 did not answer");
    }
}
