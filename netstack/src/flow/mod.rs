//! One flow, whatever its transport.

mod congestion;
pub(crate) mod datagram;
pub(crate) mod forward;
pub(crate) mod memory;
pub(crate) mod recovery;
mod scoreboard;
pub(crate) mod tcp;

use std::time::Instant;

use crate::tuple::FlowKey;
use datagram::DatagramFlow;
use forward::ForwardFlow;
use tcp::TcpFlow;

/// Payload and packet counts of a flow. Up is from the client.
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

/// What the transport saw when a flow came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCause {
    /// Both halves were closed in order.
    Orderly,
    /// The client sent a reset.
    ClientReset,
    /// Nothing was said, or nothing acknowledged, for too long.
    Timeout,
    /// A router said that the target of a connection of our own cannot be reached.
    Unreachable,
}

/// A row of the flow table.
pub(crate) struct Flow {
    pub(crate) generation: u32,
    pub(crate) key: FlowKey,
    /// Largest IP packet towards the client, in bytes.
    pub(crate) mtu: u16,
    pub(crate) kind: FlowKind,
    pub(crate) traffic: Traffic,
    /// The flow's earliest entry among the deadlines.
    pub(crate) armed: Option<Instant>,
    /// Whether it waits in the queue of changed flows.
    pub(crate) queued: bool,
    /// Nothing more is wanted of it; it lingers.
    pub(crate) released: bool,
    /// A newer flow has its tuple: nothing may be said to the client any more.
    pub(crate) superseded: bool,
}

pub(crate) enum FlowKind {
    Tcp(TcpFlow),
    /// A UDP association or an echo exchange.
    Datagram(DatagramFlow),
    /// Its packets go on as they are.
    Forward(ForwardFlow),
}
