//! What crosses between the control side and a shard.
//!
//! Control publishes immutable [`Snapshot`]s on a `watch` channel and sends [`Command`]s over a bounded
//! channel; a shard sends [`FlowRecord`]s over a bounded channel and never waits for it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use portcullis_policy::Ruleset;
use tokio::sync::oneshot;

use crate::directory::Directory;
use crate::flow_record::FlowRecord;
use crate::offramp::DialError;
use crate::offramp::site::Site;
use crate::state::Remembered;

/// Everything a verdict depends on, of one moment. A decision reads exactly one of these.
#[derive(Debug)]
pub struct Snapshot {
    /// The compiled policy; its revision is the snapshot's.
    pub ruleset: Arc<Ruleset>,
    /// Who exists.
    pub directory: Arc<Directory>,
    /// Addresses of this host, never destinations.
    pub own_addresses: Arc<[IpAddr]>,
}

/// Which flows a command is about. Empty fields match everything.
#[derive(Debug, Clone, Default)]
pub struct FlowFilter {
    /// Exactly this flow.
    pub id: Option<u64>,
    /// Flows of this device.
    pub device: Option<String>,
    /// Flows of this user.
    pub user: Option<String>,
    /// Flows towards this prefix.
    pub to: Option<ipnet::IpNet>,
}

impl FlowFilter {
    /// Whether `record` is meant.
    pub fn matches(&self, record: &FlowRecord) -> bool {
        self.id.is_none_or(|id| id == record.id)
            && self.device.as_ref().is_none_or(|name| **name == *record.device)
            && self.user.as_ref().is_none_or(|name| **name == *record.user)
            && self.to.is_none_or(|net| net.contains(&record.destination.ip()))
    }
}

/// A request to a shard.
#[derive(Debug)]
pub enum Command {
    /// List live flows.
    Flows(FlowFilter, oneshot::Sender<Vec<FlowRecord>>),
    /// End live flows; answers how many.
    Kill(FlowFilter, oneshot::Sender<usize>),
    /// End live flows over this off-ramp, which is down, where they have another way; answers how many.
    Leave(Arc<str>, oneshot::Sender<usize>),
    /// List the WireGuard peers this shard owns.
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    /// What the tunnels to sites say that this shard owns.
    Sites(oneshot::Sender<Vec<SiteStatus>>),
    /// Open a handshake with the site that has this public key: where it is, or where it is now looked for.
    Reach([u8; 32], Option<SocketAddr>),
    /// Connect to this address through the tunnel of the site; answers whether the target did.
    Probe(Arc<Site>, SocketAddr, oneshot::Sender<Result<(), DialError>>),
    /// Where the peers are that moved, or have a new session, since this was last answered.
    Moved(oneshot::Sender<Vec<Remembered>>),
    /// Open handshakes with these peers, as fast as packets allow, where the directory lets them in.
    Open(Vec<Remembered>),
    /// Answer, to show that the loop turns.
    Ping(oneshot::Sender<()>),
    /// Judge every live flow again (the snapshot changed); answers when the pass is done.
    Rejudge(oneshot::Sender<()>),
    /// Open no new flow. Answers when no flow is left open.
    Drain(oneshot::Sender<()>),
    /// End every flow as `drained`, flush, and leave the loop.
    Stop(oneshot::Sender<()>),
}

/// A WireGuard peer as `portcullis status` and `device list` show it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Name of the device.
    pub device: Arc<str>,
    /// Where its last authenticated datagram came from.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake completed.
    pub last_handshake: Option<Timestamp>,
    /// Outer bytes received.
    pub bytes_received: u64,
    /// Outer bytes sent.
    pub bytes_sent: u64,
    /// Open flows.
    pub flows: usize,
}

/// The tunnel to a site.
#[derive(Debug, Clone, Copy)]
pub struct SiteStatus {
    /// Public key of its peer.
    pub key: [u8; 32],
    /// The shard that has it.
    pub shard: usize,
    /// It was asked for a handshake and has not answered.
    pub asked: bool,
    /// A packet went there since it was heard of last.
    pub unanswered: bool,
    /// How long nothing was heard of it.
    pub silence: Option<Duration>,
    /// When the last handshake completed.
    pub last_handshake: Option<Timestamp>,
}
