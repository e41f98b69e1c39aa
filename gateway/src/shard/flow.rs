//! The gateway's half of a flow: whose it is, why it may be, and its off-ramp socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis_netstack::{FlowId, FlowKey, Passage, Protocol};
use portcullis_policy::{Permit, Revision};
use tokio::task::AbortHandle;

use super::datagrams::Held;
use super::ready::FlowWaker;
use super::returns::{Return, Via};
use crate::directory::Device;
use crate::flow_record::{FlowEnd, FlowProtocol, FlowRecord, OnrampKind, Traffic};
use crate::limits::{LimitName, Share};
use crate::offramp::{DatagramSocket, NextHop, Origin, PortShare, TargetStream};

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) id: FlowId,
    /// Name in the flow log.
    pub(crate) record_id: u64,
    pub(crate) key: FlowKey,
    pub(crate) onramp: OnrampKind,
    pub(crate) device: Arc<Device>,
    pub(crate) start: Timestamp,
    pub(crate) opened: Instant,
    pub(crate) decision: Decision,
    pub(crate) offramp: Option<Arc<str>>,
    /// Off-ramps that could not take it.
    pub(crate) tried: Vec<Arc<str>>,
    /// When the permit must be looked at again.
    pub(crate) expiry: Option<Instant>,
    /// The flow's earliest entry among the shard's expiries.
    pub(crate) watched: Option<Instant>,
    pub(crate) dial: Option<Duration>,
    pub(crate) target: Target,
    /// What it holds of what its device may have.
    pub(crate) share: Option<Share>,
    /// Its place among the local ports of an off-ramp that has few.
    pub(crate) port: Option<PortShare>,
    /// Its entry among the associations of its device.
    pub(crate) listed: Option<Instant>,
    /// The limit it ran into.
    pub(crate) limit: Option<LimitName>,
    pub(crate) flow_waker: Arc<FlowWaker>,
    /// The same as `flow_waker`, in the form sockets take.
    pub(crate) waker: Waker,
}

/// The verdict in force.
#[derive(Debug)]
pub(crate) enum Decision {
    /// It may be.
    Permitted(Permit),
    /// It may not; kept so that a repeated packet is not a new line in the log.
    Denied {
        /// The rule that denied.
        rule: Option<Arc<str>>,
        /// Of the policy that denied.
        revision: Revision,
    },
}

impl Decision {
    pub(crate) fn rule(&self) -> Option<&Arc<str>> {
        match self {
            Self::Permitted(permit) => Some(permit.rule()),
            Self::Denied { rule, .. } => rule.as_ref(),
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        match self {
            Self::Permitted(permit) => permit.revision(),
            Self::Denied { revision, .. } => *revision,
        }
    }
}

/// The other end of a flow.
#[derive(Debug)]
pub(crate) enum Target {
    /// The SYN, or the first datagrams, are held while the off-ramp dials.
    Dialling {
        /// The dial.
        task: AbortHandle,
        /// Datagrams that wait for it.
        held: Held,
    },
    /// The SYN is held while a connection of ours through the tunnel of a site is not answered.
    Calling(FlowId),
    /// A TCP connection.
    Tcp(TcpTarget),
    /// A connection of ours through the tunnel of a site.
    Call(CalledTarget),
    /// A connected UDP socket.
    Udp(DatagramSocket),
    /// A connected ping socket.
    Ping(DatagramSocket),
    /// Nobody: its packets go on.
    Forward(Onward),
    /// None: the policy denied it. Repeated packets are answered the same way.
    Nobody {
        /// Whether they are answered at all.
        silent: bool,
    },
}

/// How the packets of a flow go on.
#[derive(Debug)]
pub(crate) struct Onward {
    pub(crate) hop: NextHop,
    pub(crate) passage: Passage,
}

impl Onward {
    /// What comes back of it.
    pub(crate) fn back(&self) -> Return {
        Return { via: Via::of(&self.hop), tuple: self.passage.tuple.turned() }
    }
}

/// A TCP connection to a target.
#[derive(Debug)]
pub(crate) struct TcpTarget {
    pub(crate) stream: TargetStream,
    /// Our half is closed: everything of the client was written.
    pub(crate) shut: bool,
    /// The target's half is closed: everything of it was read.
    pub(crate) finished: bool,
}

/// A connection of the stack's own to a target.
#[derive(Debug)]
pub(crate) struct CalledTarget {
    pub(crate) connection: FlowId,
    /// Our half is closed: everything of the client was handed over.
    pub(crate) shut: bool,
    /// The target's half is closed: everything of it was handed over.
    pub(crate) finished: bool,
}

impl Target {
    /// The connection of the stack's own that it is.
    pub(crate) fn own_connection(&self) -> Option<FlowId> {
        match self {
            Self::Calling(connection) | Self::Call(CalledTarget { connection, .. }) => Some(*connection),
            Self::Dialling { .. }
            | Self::Tcp(_)
            | Self::Udp(_)
            | Self::Ping(_)
            | Self::Forward(_)
            | Self::Nobody { .. } => None,
        }
    }

    /// Makes the kernel send a reset instead of a FIN when a TCP connection is dropped.
    pub(crate) fn reset_on_drop(&self) {
        if let Self::Tcp(tcp) = self
            && let Err(error) = tcp.stream.tcp().set_zero_linger()
        {
            tracing::debug!(%error, "cannot reset target");
        }
    }

    /// Takes the datagrams that wait for the off-ramp.
    pub(crate) fn take_held(&mut self) -> Held {
        match self {
            Self::Dialling { held, .. } => std::mem::take(held),
            Self::Calling(_)
            | Self::Tcp(_)
            | Self::Call(_)
            | Self::Udp(_)
            | Self::Ping(_)
            | Self::Forward(_)
            | Self::Nobody { .. } => Held::default(),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::Dialling { task, .. } = self {
            task.abort();
        }
    }
}

impl Flow {
    /// Everything the flow log shows, at `now`.
    pub(crate) fn record(
        &self,
        now: Instant,
        traffic: portcullis_netstack::Traffic,
        ended: Option<FlowEnd>,
    ) -> FlowRecord {
        let duration = now.saturating_duration_since(self.opened);
        FlowRecord {
            id: self.record_id,
            start: self.start,
            end: ended.and_then(|_| self.start.checked_add(duration).ok()),
            device: Arc::clone(&self.device.identity.device),
            user: Arc::clone(&self.device.identity.user),
            groups: Arc::clone(&self.device.identity.groups),
            onramp: self.onramp,
            source: self.key.tuple.source(),
            destination: self.destination(),
            target: Some(self.target_address()).filter(|target| *target != self.destination()),
            protocol: self.protocol(),
            allowed: matches!(self.decision, Decision::Permitted(_)),
            rule: self.decision.rule().cloned(),
            revision: self.decision.revision().0,
            offramp: self.offramp.clone(),
            traffic: Traffic {
                bytes_up: traffic.bytes_up,
                bytes_down: traffic.bytes_down,
                packets_up: traffic.packets_up,
                packets_down: traffic.packets_down,
            },
            dial: self.dial,
            duration,
            ended,
            limit: self.limit,
        }
    }

    /// The transport.
    pub(crate) fn protocol(&self) -> FlowProtocol {
        match self.key.tuple.protocol {
            Protocol::Tcp => FlowProtocol::Tcp,
            Protocol::Udp => FlowProtocol::Udp,
            Protocol::Echo => FlowProtocol::Icmp,
            Protocol::Other(number) => FlowProtocol::Other(number),
        }
    }

    /// Where it goes: to its destination, or where its rule sends it instead.
    pub(crate) fn target_address(&self) -> SocketAddr {
        match &self.decision {
            Decision::Permitted(permit) => {
                let target = permit.target(self.destination());
                if self.protocol().has_ports() { target } else { SocketAddr::new(target.ip(), 0) }
            }
            Decision::Denied { .. } => self.destination(),
        }
    }

    /// Whose it is, for targets that are told.
    pub(crate) fn origin(&self) -> Origin {
        Origin {
            source: self.key.tuple.source(),
            destination: self.destination(),
            user: Arc::clone(&self.device.identity.user),
            device: Arc::clone(&self.device.identity.device),
        }
    }

    /// Whether `permit` would send it to another target than it goes to.
    pub(crate) fn leads_elsewhere(&self, permit: &Permit) -> bool {
        match &self.decision {
            Decision::Permitted(now) => now.target(self.destination()) != permit.target(self.destination()),
            Decision::Denied { .. } => false,
        }
    }

    /// The address and port that the client sent it to.
    pub(crate) fn destination(&self) -> SocketAddr {
        self.key.tuple.destination()
    }

    /// Whether it counts as open: the policy allowed it.
    pub(crate) fn is_permitted(&self) -> bool {
        matches!(self.decision, Decision::Permitted(_))
    }
}

/// Flows by their place in the stack's table.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    places: Vec<Option<Box<Flow>>>,
    len: usize,
    permitted: usize,
}

impl Flows {
    /// Enters a flow.
    pub(crate) fn insert(&mut self, flow: Flow) {
        let index = flow.id.index();
        if self.places.len() <= index {
            self.places.resize_with(index + 1, || None);
        }
        self.len += 1;
        self.permitted += usize::from(flow.is_permitted());
        if let Some(place) = self.places.get_mut(index) {
            *place = Some(Box::new(flow));
        }
    }

    /// The flow with this name.
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.places.get_mut(id.index())?.as_deref_mut().filter(|flow| flow.id == id)
    }

    /// Takes a flow out.
    pub(crate) fn remove(&mut self, id: FlowId) -> Option<Box<Flow>> {
        let flow = self.places.get_mut(id.index())?.take_if(|flow| flow.id == id)?;
        self.len -= 1;
        self.permitted -= usize::from(flow.is_permitted());
        Some(flow)
    }

    /// How many flows there are, remembered refusals included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many permitted flows there are.
    pub(crate) fn permitted(&self) -> usize {
        self.permitted
    }

    /// Every flow.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.places.iter().flatten().map(|flow| &**flow)
    }

    /// How many places there are to look at; some are empty.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// The name of the flow at a place.
    pub(crate) fn at(&self, place: usize) -> Option<FlowId> {
        self.places.get(place)?.as_ref().map(|flow| flow.id)
    }
}
