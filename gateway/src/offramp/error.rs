//! Why a dial failed.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::ProxyError;
use crate::flow_record::{FlowEnd, FlowProtocol};
use crate::limits::LimitName;

/// Why no socket towards a target could be had.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The target answered that nobody listens.
    #[error("the target refused the connection")]
    Refused,
    /// No way to the target, by the kernel's own routes and filters or by an ICMP error that came back.
    #[error("the target cannot be reached: {0}")]
    Unreachable(Errno),
    /// The target did not answer in time.
    #[error("the target did not answer in time")]
    Timeout,
    /// Every local port towards the target is taken.
    #[error("no local port is left towards the target")]
    PortsExhausted,
    /// The process or the host has no descriptor left.
    #[error("no file descriptor is left")]
    Descriptors,
    /// The kernel does not let our group ping.
    #[error("ping sockets are not permitted: set net.ipv4.ping_group_range")]
    PingNotPermitted,
    /// The off-ramp's source address is not this host's.
    #[error("the off-ramp's source address {0} is not an address of this host")]
    SourceUnavailable(IpAddr),
    /// The off-ramp's interface does not exist.
    #[error("the off-ramp's interface {0} does not exist")]
    InterfaceUnavailable(String),
    /// The off-ramp's proxy, and not the target, is the trouble.
    #[error("the proxy {proxy} {why}")]
    Proxy {
        /// The proxy.
        proxy: SocketAddr,
        /// What is wrong with it.
        why: ProxyError,
    },
    /// The off-ramp sends packets on, and the flow's are to become ones of the other family.
    #[error("the off-ramp sends packets on: a rule that rewrites IPv4 to IPv6, or back, needs another")]
    OtherFamily,
    /// The off-ramp has no way to carry what the flow is of.
    #[error("the off-ramp carries no {0}")]
    CannotCarry(FlowProtocol),
    /// Nobody knows where the site's peer is, or it does not answer.
    #[error("there is no tunnel to the site")]
    NoTunnel,
    /// We have no address of this family at the site.
    #[error("the off-ramp has no address of the packet's family: add one to `addresses`")]
    NoSiteAddress,
    /// Anything else.
    #[error(transparent)]
    Io(io::Error),
}

impl DialError {
    /// How a flow ends for which this dial was made.
    pub fn flow_end(&self) -> FlowEnd {
        match self {
            Self::Refused => FlowEnd::TargetRefused,
            Self::Unreachable(_) | Self::OtherFamily | Self::NoSiteAddress | Self::CannotCarry(_) => {
                FlowEnd::TargetUnreachable
            }
            Self::Timeout => FlowEnd::DialTimeout,
            Self::PortsExhausted | Self::Descriptors => FlowEnd::Limit,
            Self::Proxy { why: ProxyError::CannotCarry(_), .. } => FlowEnd::TargetUnreachable,
            Self::Proxy { .. } | Self::NoTunnel => FlowEnd::OfframpDown,
            Self::PingNotPermitted | Self::SourceUnavailable(_) | Self::InterfaceUnavailable(_) | Self::Io(_) => {
                FlowEnd::Error
            }
        }
    }
}

impl DialError {
    /// Whether it says something of the way and nothing of the target, so that another off-ramp may do better.
    pub fn is_of_the_way(&self) -> bool {
        match self {
            Self::Unreachable(errno) => matches!(errno, Errno::ENETUNREACH | Errno::ENETDOWN | Errno::ENONET),
            Self::SourceUnavailable(_)
            | Self::InterfaceUnavailable(_)
            | Self::Proxy { .. }
            | Self::OtherFamily
            | Self::CannotCarry(_)
            | Self::NoTunnel
            | Self::NoSiteAddress => true,
            Self::Refused
            | Self::Timeout
            | Self::PortsExhausted
            | Self::Descriptors
            | Self::PingNotPermitted
            | Self::Io(_) => false,
        }
    }

    /// Which limit was reached, when it was one.
    pub fn limit(&self) -> Option<LimitName> {
        match self {
            Self::PortsExhausted => Some(LimitName::Ports),
            Self::Descriptors => Some(LimitName::Descriptors),
            Self::Refused
            | Self::Unreachable(_)
            | Self::Timeout
            | Self::PingNotPermitted
            | Self::SourceUnavailable(_)
            | Self::InterfaceUnavailable(_)
            | Self::Proxy { .. }
            | Self::OtherFamily
            | Self::CannotCarry(_)
            | Self::NoTunnel
            | Self::NoSiteAddress
            | Self::Io(_) => None,
        }
    }
}

impl From<io::Error> for DialError {
    /// What an error of a connecting socket means.
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(
                errno @ (Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::ENETDOWN
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::ENOPROTOOPT
                | Errno::EPROTO
                | Errno::EACCES
                | Errno::EPERM),
            ) => Self::Unreachable(errno),
            Some(Errno::ETIMEDOUT) => Self::Timeout,
            Some(Errno::EADDRNOTAVAIL | Errno::EADDRINUSE | Errno::EAGAIN) => Self::PortsExhausted,
            Some(Errno::EMFILE | Errno::ENFILE) => Self::Descriptors,
            _ => Self::Io(error),
        }
    }
}
