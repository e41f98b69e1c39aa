//! What is written down about a flow when it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

/// Why the gateway says a flow ended. Field of the flow log and label of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowEnd {
    /// The policy denied it; it never opened.
    Denied,
    /// The client closed first, in order.
    ClientClosed,
    /// The target closed first, in order.
    TargetClosed,
    /// The client sent a reset.
    ClientReset,
    /// The target sent a reset.
    TargetReset,
    /// The target refused the connection.
    TargetRefused,
    /// The target could not be reached.
    TargetUnreachable,
    /// The target did not answer in time.
    DialTimeout,
    /// Nothing was said for too long.
    Idle,
    /// A new policy, directory or posture no longer allows it.
    Revoked,
    /// A time condition or the device's expiry no longer allows it.
    Expired,
    /// An administrator ended it.
    Killed,
    /// Its device was removed, revoked or disabled.
    DeviceGone,
    /// A limit was reached.
    Limit,
    /// The gateway stopped.
    Drained,
    /// The gateway could not go on with it.
    Error,
}

impl FlowEnd {
    /// Every value, in the order of the specification.
    pub const ALL: [Self; 16] = [
        Self::Denied,
        Self::ClientClosed,
        Self::TargetClosed,
        Self::ClientReset,
        Self::TargetReset,
        Self::TargetRefused,
        Self::TargetUnreachable,
        Self::DialTimeout,
        Self::Idle,
        Self::Revoked,
        Self::Expired,
        Self::Killed,
        Self::DeviceGone,
        Self::Limit,
        Self::Drained,
        Self::Error,
    ];

    /// The word used in the flow log and as metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::ClientClosed => "client_closed",
            Self::TargetClosed => "target_closed",
            Self::ClientReset => "client_reset",
            Self::TargetReset => "target_reset",
            Self::TargetRefused => "target_refused",
            Self::TargetUnreachable => "target_unreachable",
            Self::DialTimeout => "dial_timeout",
            Self::Idle => "idle",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Killed => "killed",
            Self::DeviceGone => "device_gone",
            Self::Limit => "limit",
            Self::Drained => "drained",
            Self::Error => "error",
        }
    }
}

/// The kind of on-ramp a flow came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnrampKind {
    /// A WireGuard peer.
    Wireguard,
    /// The TUN device.
    Tun,
}

impl OnrampKind {
    /// The word used in the flow log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::Tun => "tun",
        }
    }
}

/// The transport of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowProtocol {
    /// A TCP connection.
    Tcp,
    /// A UDP association.
    Udp,
    /// An ICMP or ICMPv6 echo exchange.
    Icmp,
}

impl FlowProtocol {
    /// The word used in the flow log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Bytes and packets of a flow, payload only, up = from the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes from the client.
    pub bytes_up: u64,
    /// Payload bytes to the client.
    pub bytes_down: u64,
    /// Packets from the client.
    pub packets_up: u64,
    /// Packets to the client.
    pub packets_down: u64,
}

/// A live flow, or one that ended: everything the flow log and `portcullis flows` show.
#[derive(Debug, Clone)]
pub struct FlowRecord {
    /// Unique in this process's life: shard number and serial.
    pub id: u64,
    /// When the first packet came.
    pub start: Timestamp,
    /// When it ended; `None` while it lives.
    pub end: Option<Timestamp>,
    /// Name of the device.
    pub device: Arc<str>,
    /// Name of the user.
    pub user: Arc<str>,
    /// Groups of the user.
    pub groups: Arc<[Arc<str>]>,
    /// The on-ramp.
    pub onramp: OnrampKind,
    /// Inner source address and port (echo: identifier as port).
    pub source: SocketAddr,
    /// Destination address and port (echo: port 0).
    pub destination: SocketAddr,
    /// Transport.
    pub protocol: FlowProtocol,
    /// Whether the policy allowed it.
    pub allowed: bool,
    /// The deciding rule; `None` when no rule matched or policy was never asked.
    pub rule: Option<Arc<str>>,
    /// Policy revision of the verdict.
    pub revision: u64,
    /// Name of the off-ramp, when one was chosen.
    pub offramp: Option<Arc<str>>,
    /// Payload counters.
    pub traffic: Traffic,
    /// How long the dial took.
    pub dial: Option<Duration>,
    /// From the first packet to the end, or to now.
    pub duration: Duration,
    /// Why it ended; `None` while it lives.
    pub ended: Option<FlowEnd>,
}
