//! Connections of the stack's own, to targets that are reached through the tunnel of a site: what a socket is elsewhere.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use portcullis_netstack::{CloseCause, FiveTuple, FlowId, Protocol, RingMemory};
use tokio::sync::oneshot;

use super::dialling::seed;
use super::flow::{CalledTarget, Flow, Target};
use super::flow_memory::FlowMemory;
use super::returns::{Return, Via};
use super::worker::Shard;
use crate::flow_record::FlowEnd;
use crate::offramp::DialError;
use crate::offramp::health::LONGEST_PROBE;
use crate::offramp::site::Site;

/// The connections by their names in the stack. One that is over stays until nothing of its target needs an answer: until
/// then its port is no other's.
#[derive(Debug, Default)]
pub(super) struct Calls {
    calls: HashMap<FlowId, Call>,
    /// How many have a caller.
    called: usize,
}

/// One of them.
#[derive(Debug)]
struct Call {
    back: Return,
    caller: Option<Caller>,
    /// Who waits to hear whether the target answers.
    probe: Option<oneshot::Sender<Result<(), DialError>>>,
}

/// Whose a connection is; it has none when it only lingers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// The flow whose target it is.
    Flow(FlowId),
    /// A probe of the off-ramp.
    Probe,
}

impl Calls {
    /// Whether there are any, lingering ones included.
    pub(super) fn any(&self) -> bool {
        !self.calls.is_empty()
    }

    /// How many have a caller.
    pub(super) fn len(&self) -> usize {
        self.called
    }

    /// Whose a connection is.
    pub(super) fn caller(&self, connection: FlowId) -> Option<Caller> {
        self.calls.get(&connection)?.caller
    }

    fn enter(&mut self, connection: FlowId, call: Call) {
        self.called += usize::from(call.caller.is_some());
        self.calls.insert(connection, call);
    }

    fn take_probe(&mut self, connection: FlowId) -> Option<oneshot::Sender<Result<(), DialError>>> {
        self.calls.get_mut(&connection)?.probe.take()
    }

    fn lose_caller(&mut self, connection: FlowId) {
        let caller = self.calls.get_mut(&connection).and_then(|call| call.caller.take());
        self.called -= usize::from(caller.is_some());
    }

    fn remove(&mut self, connection: FlowId) -> Option<Call> {
        self.lose_caller(connection);
        self.calls.remove(&connection)
    }
}

impl Shard {
    /// Opens a connection to the target of a permitted TCP flow through the tunnel of `site`.
    pub(super) fn call(&mut self, now: Instant, mut flow: Flow, site: &Site) {
        let Some(owner) = flow.share.as_ref().map(|share| Arc::clone(share.owner())) else {
            return self.stack.remove(flow.id);
        };
        let counters = Arc::clone(&self.counters);
        let memory =
            || -> Box<dyn RingMemory + Send> { Box::new(FlowMemory::new(Arc::clone(&owner), Arc::clone(&counters))) };
        let answer_by = flow.opened + self.config.limits.dial_timeout;
        let source = site.keeps_client().then(|| flow.key.tuple.source());
        match self.connect((now, answer_by), site, source, flow.target_address(), memory) {
            Ok((connection, back)) => {
                self.calls.enter(connection, Call { back, caller: Some(Caller::Flow(flow.id)), probe: None });
                flow.target = Target::Calling(connection);
                self.enter(flow);
            }
            Err(error) => self.dial_failed(now, flow, &error),
        }
    }

    /// Opens a connection to `target` through the tunnel of `site`: from `source`, or from our own address there.
    fn connect(
        &mut self,
        times: (Instant, Instant),
        site: &Site,
        source: Option<SocketAddr>,
        target: SocketAddr,
        memory: impl Fn() -> Box<dyn RingMemory + Send>,
    ) -> Result<(FlowId, Return), DialError> {
        let to = self.peer(&site.public_key).ok_or(DialError::NoTunnel)?;
        let own = match source {
            Some(source) => source.ip(),
            None => site.own_address(target.ip()).ok_or(DialError::NoSiteAddress)?,
        };
        if own.is_ipv4() != target.is_ipv4() {
            return Err(DialError::OtherFamily);
        }
        let others = self.source_ports.towards(target).take_while(|_| source.is_none());
        for port in source.map(|source| source.port()).into_iter().chain(others) {
            let tuple = FiveTuple {
                protocol: Protocol::Tcp,
                source: target.ip(),
                source_port: target.port(),
                destination: own,
                destination_port: port,
            };
            let back = Return { via: Via::Peer(site.public_key), tuple };
            // Claimed first: another shard may be at the same port.
            if !self.returns.claim(back, self.index) {
                continue;
            }
            if let Some(connection) = self.stack.connect(times, to, tuple, seed(), memory()) {
                return Ok((connection, back));
            }
            self.returns.release(&back, self.index);
        }
        Err(DialError::PortsExhausted)
    }

    /// Opens a connection to `to` through the tunnel of `site`, only to see whether it answers.
    pub(super) fn probe(
        &mut self,
        now: Instant,
        site: &Site,
        to: SocketAddr,
        answer: oneshot::Sender<Result<(), DialError>>,
    ) {
        let memory = || -> Box<dyn RingMemory + Send> { Box::new(()) };
        match self.connect((now, now + LONGEST_PROBE), site, None, to, memory) {
            Ok((connection, back)) => {
                self.calls.enter(connection, Call { back, caller: Some(Caller::Probe), probe: Some(answer) });
            }
            // Nobody may wait for it any more.
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// Looks whether the target of a probe has answered.
    pub(super) fn move_probe(&mut self, now: Instant, connection: FlowId) {
        self.stack.transmit(now, connection);
        let Some(answered) = self.answered(connection) else { return };
        if let Some(answer) = self.calls.take_probe(connection) {
            let _ = answer.send(answered);
        }
        self.hang_up(now, connection);
    }

    /// What came of a call, once something has.
    fn answered(&mut self, connection: FlowId) -> Option<Result<(), DialError>> {
        match self.stack.cause(connection) {
            None => self.stack.is_established(connection).then_some(Ok(())),
            // It answered, and closed at once.
            Some(CloseCause::Orderly) => Some(Ok(())),
            Some(CloseCause::ClientReset) => Some(Err(DialError::Refused)),
            Some(CloseCause::Unreachable) => Some(Err(DialError::Unreachable(Errno::EHOSTUNREACH))),
            Some(CloseCause::Timeout) => Some(Err(DialError::Timeout)),
        }
    }

    /// Looks whether the target of the flow `id` has answered.
    pub(super) fn move_calling(&mut self, now: Instant, id: FlowId, connection: FlowId) {
        if self.stack.cause(id).is_some() {
            return self.end(now, id, FlowEnd::ClientReset);
        }
        self.stack.transmit(now, connection);
        let Some(result) = self.answered(connection) else { return };
        let Some(opened) = self.flows.get_mut(id).map(|flow| flow.opened) else { return };
        let Some(mut flow) = self.take_dialled(now, id, now.saturating_duration_since(opened)) else { return };
        match result {
            Ok(()) => {
                flow.target = Target::Call(CalledTarget { connection, shut: false, finished: false });
                self.accept(now, *flow);
            }
            Err(error) => self.dial_failed(now, *flow, &error),
        }
    }

    /// Ends a connection of ours: its target hears a reset.
    pub(super) fn hang_up(&mut self, now: Instant, connection: FlowId) {
        self.stack.abort(now, connection);
        self.forget_call(connection);
    }

    /// Nobody is behind a connection of ours any more. Its port is free once it is gone.
    pub(super) fn forget_call(&mut self, connection: FlowId) {
        if self.stack.key(connection).is_some() {
            self.calls.lose_caller(connection);
        } else if let Some(call) = self.calls.remove(connection) {
            self.returns.release(&call.back, self.index);
        }
    }
}
