//! What is asked.

use std::net::IpAddr;

use crate::Identity;

/// Transport and port of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// ICMP or ICMPv6 echo.
    Icmp,
    /// Any other IP protocol, by its number.
    Protocol(u8),
}

/// One question to the policy.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who asks.
    pub identity: &'a Identity,
    /// Address the packet came from.
    pub source: IpAddr,
    /// Address that would be dialled.
    pub destination: IpAddr,
    /// Transport and port that would be dialled.
    pub service: Service,
}
