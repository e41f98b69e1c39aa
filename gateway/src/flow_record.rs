//! What is written down about a flow when it ends.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use portcullis_policy::Service;
use serde::{Serialize, Serializer};

use crate::limits::LimitName;

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
    /// Its off-ramp went down, and there is another way: the client may come again over that.
    OfframpDown,
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
    pub const ALL: [Self; 17] = [
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
        Self::OfframpDown,
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
            Self::OfframpDown => "offramp_down",
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
    /// The packets of any other protocol, by its number.
    Other(u8),
}

impl FlowProtocol {
    /// The service of a flow with this destination port, as policy knows it.
    pub const fn service(self, port: u16) -> Service {
        match self {
            Self::Tcp => Service::Tcp(port),
            Self::Udp => Service::Udp(port),
            Self::Icmp => Service::Icmp,
            Self::Other(number) => Service::Protocol(number),
        }
    }

    /// Whether its flows have ports.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

impl From<Service> for FlowProtocol {
    fn from(service: Service) -> Self {
        match service {
            Service::Tcp(_) => Self::Tcp,
            Service::Udp(_) => Self::Udp,
            Service::Icmp => Self::Icmp,
            Service::Protocol(number) => Self::Other(number),
        }
    }
}

/// The word used in the flow log.
impl fmt::Display for FlowProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Other(number) => write!(f, "proto/{number}"),
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
    /// Inner source address and port (echo: identifier as port; without ports: 0).
    pub source: SocketAddr,
    /// Destination address and port (without ports: 0).
    pub destination: SocketAddr,
    /// Where its rule sent it instead.
    pub target: Option<SocketAddr>,
    /// Transport.
    pub protocol: FlowProtocol,
    /// Whether the policy allowed it.
    pub allowed: bool,
    /// The deciding rule; `None` when no rule matched or policy was never asked. Of a flow that was revoked, the rule
    /// that ended it, or the one that had admitted it when no rule matches any more.
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
    /// Which limit was reached, of a flow that ended by one.
    pub limit: Option<LimitName>,
}

impl FlowRecord {
    /// The service asked for.
    pub fn service(&self) -> Service {
        self.protocol.service(self.destination.port())
    }
}

/// The JSON form of a flow: a line of the flow log, an element of `portcullis flows --json`.
#[derive(Debug, Clone, Copy)]
pub struct FlowLine<'a>(pub &'a FlowRecord);

impl Serialize for FlowLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The field order is the order of the keys, which is part of the contract.
        #[derive(Serialize)]
        struct Line<'a> {
            id: u64,
            start: String,
            end: Option<String>,
            device: &'a str,
            user: &'a str,
            groups: &'a [Arc<str>],
            onramp: &'static str,
            source: SocketAddr,
            destination: SocketAddr,
            protocol: String,
            service: String,
            verdict: &'static str,
            rule: Option<&'a str>,
            revision: u64,
            offramp: Option<&'a str>,
            bytes_up: u64,
            bytes_down: u64,
            packets_up: u64,
            packets_down: u64,
            dial_ms: Option<f64>,
            duration_ms: f64,
            ended: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            limit: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            target: Option<SocketAddr>,
        }
        let Self(r) = self;
        Line {
            id: r.id,
            start: time_text(r.start),
            end: r.end.map(time_text),
            device: &r.device,
            user: &r.user,
            groups: &r.groups,
            onramp: r.onramp.as_str(),
            source: r.source,
            destination: r.destination,
            protocol: r.protocol.to_string(),
            service: r.service().to_string(),
            verdict: if r.allowed { "allow" } else { "deny" },
            rule: r.rule.as_deref(),
            revision: r.revision,
            offramp: r.offramp.as_deref(),
            bytes_up: r.traffic.bytes_up,
            bytes_down: r.traffic.bytes_down,
            packets_up: r.traffic.packets_up,
            packets_down: r.traffic.packets_down,
            dial_ms: r.dial.map(milliseconds),
            duration_ms: milliseconds(r.duration),
            ended: r.ended.map(FlowEnd::as_str),
            limit: r.limit.map(LimitName::as_str),
            target: r.target,
        }
        .serialize(serializer)
    }
}

/// RFC 3339 in UTC with microseconds.
pub fn time_text(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// Milliseconds with microsecond resolution.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::limits::{Resource, Scope};

    /// A flow that ended, with nothing left out.
    pub(crate) fn record(id: u64) -> FlowRecord {
        FlowRecord {
            id,
            start: "2027-03-01T09:00:00Z".parse().unwrap(),
            end: Some("2027-03-01T09:00:01.5000019Z".parse().unwrap()),
            device: "ann-laptop".into(),
            user: "ann@example.com".into(),
            groups: ["dba".into(), "eng".into()].into(),
            onramp: OnrampKind::Wireguard,
            source: "100.96.0.2:40000".parse().unwrap(),
            destination: "10.0.5.12:5432".parse().unwrap(),
            target: None,
            protocol: FlowProtocol::Tcp,
            allowed: true,
            rule: Some("dba-to-prod".into()),
            revision: 7,
            offramp: Some("direct".into()),
            traffic: Traffic { bytes_up: 10, bytes_down: 20, packets_up: 3, packets_down: 4 },
            dial: Some(Duration::from_micros(1_250)),
            duration: Duration::from_micros(1_500_001),
            ended: Some(FlowEnd::ClientClosed),
            limit: None,
        }
    }

    fn line(record: &FlowRecord) -> String {
        serde_json::to_string(&FlowLine(record)).unwrap()
    }

    #[test]
    fn an_allowed_flow() {
        assert_eq!(
            line(&record(42)),
            concat!(
                r#"{"id":42,"start":"2027-03-01T09:00:00.000000Z","end":"2027-03-01T09:00:01.500001Z","#,
                r#""device":"ann-laptop","user":"ann@example.com","groups":["dba","eng"],"onramp":"wireguard","#,
                r#""source":"100.96.0.2:40000","destination":"10.0.5.12:5432","protocol":"tcp","service":"tcp/5432","#,
                r#""verdict":"allow","rule":"dba-to-prod","revision":7,"offramp":"direct","bytes_up":10,"bytes_down":20,"#,
                r#""packets_up":3,"packets_down":4,"dial_ms":1.25,"duration_ms":1500.001,"ended":"client_closed"}"#
            )
        );
    }

    #[test]
    fn a_denied_echo_with_a_hostile_name() {
        let mut r = record(1);
        r.device = "a\"b\n\u{1b}[2J\u{7f}\\ü".into();
        r.groups = [].into();
        r.onramp = OnrampKind::Tun;
        r.source = "[fd00:96::2]:7".parse().unwrap();
        r.destination = "[fd00:1::5]:0".parse().unwrap();
        r.protocol = FlowProtocol::Icmp;
        (r.allowed, r.rule, r.offramp, r.dial) = (false, None, None, None);
        r.traffic = Traffic::default();
        r.duration = Duration::ZERO;
        r.end = Some(r.start);
        r.ended = Some(FlowEnd::Denied);
        assert_eq!(
            line(&r),
            concat!(
                r#"{"id":1,"start":"2027-03-01T09:00:00.000000Z","end":"2027-03-01T09:00:00.000000Z","#,
                r#""device":"a\"b\n\u001b[2J"#,
                "\u{7f}",
                r#"\\ü","user":"ann@example.com","groups":[],"onramp":"tun","#,
                r#""source":"[fd00:96::2]:7","destination":"[fd00:1::5]:0","protocol":"icmp","service":"icmp","#,
                r#""verdict":"deny","rule":null,"revision":7,"offramp":null,"bytes_up":0,"bytes_down":0,"#,
                r#""packets_up":0,"packets_down":0,"dial_ms":null,"duration_ms":0.0,"ended":"denied"}"#
            )
        );
    }

    #[test]
    fn a_flow_over_a_limit_says_which() {
        let mut r = record(1);
        (r.ended, r.limit) = (Some(FlowEnd::Limit), Some(LimitName::Share(Resource::HalfOpen, Scope::Device)));
        assert!(line(&r).ends_with(r#","ended":"limit","limit":"half_open_per_device"}"#), "{}", line(&r));
    }

    #[test]
    fn a_live_flow_has_no_end() {
        let mut r = record(1);
        (r.end, r.ended) = (None, None);
        assert!(line(&r).contains(r#""end":null"#) && line(&r).ends_with(r#""ended":null}"#));
    }
}
