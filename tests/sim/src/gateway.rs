//! Shards under test, with the control side played by the test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use boringtun::x25519::{PublicKey, StaticSecret};
use jiff::Timestamp;
use portcullis::config::Config;
use portcullis::config::resolved::{Limits, WireguardConfig};
use portcullis::directory::{Directory, DirectoryContext};
use portcullis::flow_record::{FlowEnd, FlowRecord};
use portcullis::keys::encode_key;
use portcullis::metrics::counters::{Counter, ShardCounters};
use portcullis::onramp::wireguard::handshake_limits::HandshakeLimit;
use portcullis::shard::link::{Command, PeerStatus, Snapshot};
use portcullis::shard::{self, ShardHandle};
use portcullis::state::Remembered;
use portcullis_netstack::DropReason;
use portcullis_policy::{Context, Revision, Ruleset};
use tokio::sync::{mpsc, oneshot, watch};

/// The gateway's WireGuard key.
const KEY: [u8; 32] = [0x42; 32];
/// Inner MTU.
pub const MTU: u16 = 1280;

/// A policy that allows the echo services and ping.
pub const ALLOW: &str = r#"{ "version": 1, "rules": [
    { "id": "echo", "action": "allow", "from": ["device:ann", "device:bob"], "to": ["10.20.0.1", "fd00:20::1"],
      "services": ["tcp/7000", "tcp/7002", "udp/7001", "udp/7002", "icmp"] },
    { "id": "quiet", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/9999"], "silent": true } ] }"#;

/// A policy that denies everything by a rule.
pub const DENY: &str = r#"{ "version": 1, "rules": [
    { "id": "closed", "action": "deny", "from": ["*"], "to": ["*"] } ] }"#;

/// A device of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// Its number: the last part of its addresses, and its private key.
    pub number: u8,
}

/// The device most tests use.
pub const ANN: Device = Device { name: "ann", number: 2 };
/// Another one.
pub const BOB: Device = Device { name: "bob", number: 3 };

impl Device {
    /// Its private key.
    pub fn private_key(self) -> StaticSecret {
        StaticSecret::from([self.number; 32])
    }
}

/// The gateway's public key.
pub fn public_key() -> PublicKey {
    PublicKey::from(&StaticSecret::from(KEY))
}

fn directory(devices: &[Device]) -> Directory {
    let names: BTreeSet<&str> = [ANN, BOB].iter().chain(devices).map(|device| device.name).collect();
    let users: Vec<String> = names.iter().map(|name| format!(r#""{name}-user": {{}}"#)).collect();
    let devices: Vec<String> = devices
        .iter()
        .map(|device| {
            let key = encode_key(PublicKey::from(&device.private_key()).as_bytes());
            let Device { name, number } = device;
            format!(
                r#""{name}": {{ "user": "{name}-user", "public_key": "{key}",
                    "addresses": ["100.96.0.{number}", "fd00:96::{number}"] }}"#
            )
        })
        .collect();
    let text = format!(r#"{{ "users": {{ {} }}, "devices": {{ {} }} }}"#, users.join(", "), devices.join(", "));
    let tunnel = vec!["100.96.0.1/16".parse().unwrap(), "fd00:96::1/64".parse().unwrap()];
    Directory::parse(&text, &DirectoryContext { tunnel, own_public_key: None, networks: Vec::new() })
        .unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
}

fn snapshot(policy: &str, revision: u64, devices: &[Device]) -> Arc<Snapshot> {
    // The policy may name every device of the tests, whether or not it exists now.
    let everybody = directory(&[ANN, BOB]);
    let known = everybody.devices().map(|device| {
        let known = portcullis_policy::KnownDevice { identity: &device.identity, disabled: false, source: None };
        (&*device.identity.device, known)
    });
    let context = Context {
        users: BTreeMap::new(),
        devices: known.collect(),
        groups: BTreeSet::new(),
        networks: BTreeSet::from(["default", "lab"]),
        offramps: BTreeSet::from(["direct"]),
    };
    let ruleset = Ruleset::compile(policy.as_bytes(), &context, Revision(revision), Timestamp::now())
        .unwrap_or_else(|problems| panic!("{problems:?}"));
    let directory = Arc::new(directory(devices));
    Arc::new(Snapshot { ruleset: Arc::new(ruleset), directory, own_addresses: Arc::new([]) })
}

fn config(shards: usize, limits: Limits) -> Config {
    let file = |name: &str| PathBuf::from(name);
    let wireguard = WireguardConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        key_file: file("wireguard.key"),
        addresses: vec!["100.96.0.1/16".parse().unwrap(), "fd00:96::1/64".parse().unwrap()],
        mtu: MTU,
        endpoint: None,
        client_routes: Vec::new(),
    };
    Config {
        source: file("gateway.toml"),
        text: Arc::from(""),
        directory: file("directory.json"),
        policy: file("policy.json"),
        watch: false,
        state_dir: file("state"),
        control: file("control.sock"),
        local_services: Vec::new(),
        wireguard: Some(wireguard),
        tun: None,
        offramps: Vec::new(),
        networks: Vec::new(),
        routes: Vec::new(),
        limits,
        flow_log: file("flows.jsonl"),
        metrics: None,
        shards,
        drain: Duration::from_secs(10),
    }
}

/// Running shards.
#[derive(Debug)]
pub struct Gateway {
    /// Where clients find it.
    pub address: SocketAddr,
    shards: Vec<ShardHandle>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    records: mpsc::Receiver<FlowRecord>,
    revision: u64,
}

impl Gateway {
    /// Starts `shards` shards with [`ALLOW`] in force and [`ANN`] and [`BOB`] enrolled.
    pub fn start(shards: usize) -> Self {
        Self::start_with(shards, Limits::default())
    }

    /// The same with limits.
    pub fn start_with(shards: usize, limits: Limits) -> Self {
        let (snapshots, watching) = watch::channel(snapshot(ALLOW, 1, &[ANN, BOB]));
        let (writer, records) = mpsc::channel(1024);
        let bound = shard::bind(Arc::new(config(shards, limits)), Some(KEY), None, watching, writer).unwrap();
        let address = bound.wireguard_addr().unwrap();
        let shards = bound.start().unwrap();
        Self { address, shards, snapshots, records, revision: 1 }
    }

    /// Puts a policy and a set of devices in force and waits until every shard has judged its flows again.
    pub fn publish(&mut self, policy: &str, devices: &[Device]) {
        self.revision += 1;
        self.snapshots.send(snapshot(policy, self.revision, devices)).unwrap();
        self.ask(Command::Rejudge);
        for shard in &self.shards {
            assert_eq!(shard.counters.revision.value(), self.revision);
        }
    }

    /// Sends a command to every shard and returns the answers.
    pub fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let answers: Vec<_> = self.send(command);
        answers.into_iter().map(|answer| answer.blocking_recv().expect("the shard answers")).collect()
    }

    /// Sends a command to every shard and does not wait.
    pub fn send<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<oneshot::Receiver<T>> {
        let send = |shard: &ShardHandle| {
            let (answer, receiver) = oneshot::channel();
            shard.commands.blocking_send(command(answer)).expect("the shard runs");
            receiver
        };
        self.shards.iter().map(send).collect()
    }

    /// Has the shards open handshakes, as the control side does at the start.
    pub fn open(&self, peers: &[Remembered]) {
        for (index, shard) in self.shards.iter().enumerate() {
            let own = peers.iter().filter(|peer| peer.owner(self.shards.len()) == index).copied().collect();
            shard.commands.blocking_send(Command::Open(own)).expect("the shard runs");
        }
    }

    /// Live flows.
    pub fn flows(&self) -> Vec<FlowRecord> {
        self.ask(|answer| Command::Flows(Default::default(), answer)).into_iter().flatten().collect()
    }

    /// Known peers.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.ask(Command::Peers).into_iter().flatten().collect()
    }

    /// The next record, if one was written.
    pub fn record(&mut self) -> Option<FlowRecord> {
        self.records.try_recv().ok()
    }

    /// A counter over all shards.
    pub fn count(&self, counter: impl Fn(&ShardCounters) -> &Counter) -> u64 {
        self.shards.iter().map(|shard| counter(&shard.counters).value()).sum()
    }

    /// The counters of every shard.
    pub(crate) fn counters(&self) -> Vec<Arc<ShardCounters>> {
        self.shards.iter().map(|shard| Arc::clone(&shard.counters)).collect()
    }

    /// Packets dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.count(|counters| &counters.dropped[reason.index()])
    }

    /// Packets and datagrams dropped for any reason.
    pub fn dropped_in_all(&self) -> u64 {
        DropReason::ALL.iter().map(|reason| self.dropped(*reason)).sum()
    }

    /// Handshake messages over a limit.
    pub fn limited(&self, limit: HandshakeLimit) -> u64 {
        self.count(|counters| &counters.handshakes_limited[limit.index()])
    }

    /// Flows that ended this way.
    pub fn ended(&self, end: FlowEnd) -> u64 {
        let index = FlowEnd::ALL.iter().position(|other| *other == end).unwrap();
        self.count(|counters| &counters.flows_ended[index])
    }

    /// Stops the shards, waits for their threads, and returns the records not yet read.
    pub fn stop(mut self) -> Vec<FlowRecord> {
        self.ask(Command::Stop);
        for shard in self.shards.drain(..) {
            shard.thread.join().expect("no shard panicked");
        }
        drop(self.snapshots);
        std::iter::from_fn(|| self.records.try_recv().ok()).collect()
    }
}
