//! How flows are named.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where a packet entered: one WireGuard peer, or the TUN device. Chosen by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IngressId(pub u32);

impl fmt::Display for IngressId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ingress#{}", self.0)
    }
}

/// The transport of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp,
    /// UDP, RFC 768.
    Udp,
    /// ICMP or ICMPv6 echo, RFC 792 and RFC 4443.
    Echo,
    /// Any other, by its number in the registry of Internet protocol numbers. Its packets can only go on as they are.
    Other(u8),
}

/// Source and destination of a flow as the client's packets carry them.
///
/// An echo exchange has its identifier as source port and 0 as destination port; other protocols have 0 for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// Transport.
    pub protocol: Protocol,
    /// The client's address.
    pub source: IpAddr,
    /// The client's port.
    pub source_port: u16,
    /// The target's address.
    pub destination: IpAddr,
    /// The target's port.
    pub destination_port: u16,
}

impl FiveTuple {
    /// The client's address and port.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.source_port)
    }

    /// The target's address and port.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.destination_port)
    }

    /// What packets carry that come back.
    pub fn turned(&self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }
}

/// The key of the flow table: the same tuple from two peers is two flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Where it entered.
    pub ingress: IngressId,
    /// Its addresses and ports.
    pub tuple: FiveTuple,
}

/// Names a flow of one stack. A place in the table that is used again gets a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl FlowId {
    /// The place in the table, dense and small, for tables kept beside the stack's own.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// Counts up with each use of a place.
    pub fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flow#{}.{}", self.index, self.generation)
    }
}
