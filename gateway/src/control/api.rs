//! The JSON of the control socket. The command line reads the same types that the server writes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::state::revisions::Pending;

/// Most flows that one answer lists.
pub const MAX_FLOWS_LISTED: usize = 10_000;

/// Bytes of the longest request with a policy in it: that may have 16 MiB, of which most bytes may have to be escaped.
pub const MAX_POLICY_BODY: usize = 33 << 20;

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// `starting`, `serving` or `draining`.
    pub phase: String,
    /// When it started.
    pub since: Timestamp,
    /// Seconds since then.
    pub uptime_s: u64,
    /// Revision of policy and directory in force.
    pub revision: u64,
    /// Open flows.
    pub flows_open: u64,
    /// The data-plane threads.
    pub shards: Vec<ShardStatus>,
    /// Where packets come in.
    pub onramps: Vec<Onramp>,
    /// The ways out.
    #[serde(default)]
    pub offramps: Vec<OfframpStatus>,
    /// The static configuration.
    pub config: String,
    /// What of it does not count yet; `None` when all that the file says is in force.
    #[serde(default)]
    pub config_warning: Option<String>,
    /// The policy file.
    pub policy: String,
    /// The directory file.
    pub directory: String,
    /// Users in the directory.
    pub users: usize,
    /// Devices in the directory.
    pub devices: usize,
    /// How the last load of policy and directory went.
    pub last_reload: LastReload,
    /// The policy that is to be confirmed.
    #[serde(default)]
    pub pending: Option<Pending>,
    /// WireGuard peers that have been heard of.
    pub peers: Vec<Peer>,
}

/// A data-plane thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number.
    pub shard: usize,
    /// Its open flows.
    pub flows_open: u64,
    /// The revision its flows have been judged by.
    pub revision: u64,
}

/// An on-ramp.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Onramp {
    /// `wireguard` or `tun`.
    pub kind: String,
    /// Its listen address or interface.
    pub at: String,
    /// Its own addresses.
    pub addresses: Vec<IpNet>,
    /// The WireGuard key that peers know the gateway by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// An off-ramp.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfframpStatus {
    /// Its name.
    pub name: String,
    /// Whether new flows may go that way; `None` when nobody probes it, and no flow found it down.
    pub up: Option<bool>,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Why the last probe, or flow, failed, when it did.
    pub error: Option<String>,
}

/// How the last load of policy and directory went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastReload {
    /// When.
    pub at: Timestamp,
    /// Whether it was taken.
    pub ok: bool,
    /// What was wrong, when it was not.
    pub problems: Vec<Problem>,
}

/// A WireGuard peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Name of the device.
    pub device: String,
    /// Where its last authentic datagram came from.
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

/// Query of `GET /v1/flows`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowsQuery {
    /// Only flows of this user.
    pub user: Option<String>,
    /// Only flows of this device.
    pub device: Option<String>,
    /// Only flows towards this prefix or address.
    pub to: Option<String>,
    /// At most this many.
    pub limit: Option<usize>,
    /// Those that were refused last, instead of those that are open.
    pub denied: Option<bool>,
}

/// `GET /v1/flows`: the oldest of the open ones, or the newest of the refused ones, oldest first. The server writes each flow with [`FlowLine`](crate::flow_record::FlowLine).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowList<F = Flow> {
    /// Flows that match, listed or not.
    pub total: usize,
    /// The oldest of them.
    pub flows: Vec<F>,
}

/// What the command line shows of a live flow.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Flow {
    /// For `portcullis kill --flow`.
    pub id: u64,
    /// The device.
    pub device: String,
    /// The user.
    pub user: String,
    /// Where it goes.
    pub destination: SocketAddr,
    /// The service.
    pub service: String,
    /// The rule that allowed it.
    pub rule: Option<String>,
    /// Payload bytes from the client.
    pub bytes_up: u64,
    /// Payload bytes to the client.
    pub bytes_down: u64,
    /// How long it has lived.
    pub duration_ms: f64,
    /// When it began.
    pub start: Timestamp,
    /// Why it ended, when it has.
    pub ended: Option<String>,
    /// The limit that was reached, when one was.
    #[serde(default)]
    pub limit: Option<String>,
}

/// `POST /v1/kill`: exactly one of the three.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// This flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<u64>,
    /// Every flow of this device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Every flow of this user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Answer to `POST /v1/kill`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KillReport {
    /// How many flows were ended.
    pub killed: usize,
}

/// Answer to `POST /v1/reload`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// The revision in force now.
    pub revision: u64,
    /// What is different.
    pub changes: Vec<Change>,
    /// Whether every live flow has been judged again. `false`: a shard is slow, and will.
    pub judged: bool,
    /// What the caller may have meant and did not get.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// An element of `GET /v1/devices`: a device of the directory in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInForce {
    /// Its name.
    pub device: String,
    /// Whether it may do anything at all.
    pub admitted: bool,
}

/// `POST /v1/bar`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarRequest {
    /// The device to bar until the directory is loaded again.
    pub device: String,
}

/// Answer to `POST /v1/bar`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarReport {
    /// The device.
    pub device: String,
    /// Whether the directory in force has it. One that it does not have is not admitted anyway.
    pub known: bool,
    /// Whether every live flow has been judged again. `false`: a shard is slow, and will.
    pub judged: bool,
}

/// One difference between two loads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What kind of thing: `rule`, `resource`, `user`, `device` …
    pub kind: String,
    /// Its id or name; empty for the whole.
    pub name: String,
    /// `added`, `removed`, `changed`, `disabled`, `enabled`, `reordered`.
    pub change: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "{} {}", self.kind, self.change)
        } else {
            write!(f, "{} {} {}", self.kind, self.name, self.change)
        }
    }
}

/// `POST /v1/explain`: one of `device` and `user`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The device that would ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The user that would ask, with each device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `10.0.5.12:5432/tcp`, `[fd00::1]:53/udp`, `10.0.5.12/icmp`.
    pub to: String,
    /// At this moment instead of now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Answer to `POST /v1/explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The revision that was asked; `None` for a file that is not in force.
    pub revision: Option<u64>,
    /// For which moment.
    pub at: Timestamp,
    /// One for each device, and more where the policy answers its sources differently.
    pub answers: Vec<Answer>,
}

/// What one device would get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The device.
    pub device: String,
    /// Its user.
    pub user: String,
    /// Which of its addresses and networks it is about. Of a network one address was asked for.
    #[serde(default)]
    pub sources: Vec<IpNet>,
    /// The destination.
    pub destination: IpAddr,
    /// The service.
    pub service: String,
    /// `allow` or `deny`.
    pub verdict: String,
    /// The deciding rule; `None` when no rule decides.
    pub rule: Option<String>,
    /// What denies whatever the policy says; `None` when the policy decides.
    pub barred: Option<String>,
    /// By which off-ramps it may go, in order; empty where none leads there, and such a flow ends as unreachable. `None`
    /// for what is denied.
    #[serde(default)]
    pub ways: Option<Vec<String>>,
    /// The policy's own answer, rule by rule: [`portcullis_policy::Explanation`].
    pub policy: serde_json::Value,
    /// All of it for people.
    pub text: String,
}

/// Something wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Column, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// JSON path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// The file could not be read for want of permission. Not part of the JSON: it concerns who asks, not the file.
    #[serde(skip)]
    pub denied: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The body of every answer that is not 200.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: String,
    /// Each problem of a refused reload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Devices that a refused reload barred all the same: the new directory is sound and takes their access away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub barred: Vec<String>,
}
