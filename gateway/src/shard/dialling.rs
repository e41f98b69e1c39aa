//! The way of a permitted flow to its target: over the first off-ramp that will do, and another where that one cannot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use portcullis_netstack::packet::build::Unreachable;
use portcullis_netstack::{FlowId, Protocol, Refusal};
use portcullis_policy::Permit;

use super::datagrams::Held;
use super::flow::{Decision, Flow, Target, TcpTarget};
use super::flow_memory::FlowMemory;
use super::worker::{Connection, Dialled, Shard, clock};
use crate::directory::Device;
use crate::flow_record::FlowEnd;
use crate::limits::Resource;
use crate::offramp::{DialError, NextHop, Opening, Way};

/// A permit that ends by time is looked at at least this often, so that a step of the wall clock is noticed.
const LONGEST_TRUST: Duration = Duration::from_secs(30);
/// How long SYNs are no new flows after an unreachable: Linux repeats one on the ICMP error itself (RFC 6069).
const REPEATED_SYN: Duration = Duration::from_secs(1);

impl Shard {
    /// Takes a permitted flow to the first off-ramp that will do and that it has not tried.
    pub(super) fn dial(&mut self, now: Instant, mut flow: Flow) {
        let Decision::Permitted(permit) = &flow.decision else { return };
        let target = flow.target_address();
        if flow.key.tuple.protocol == Protocol::Echo && target.is_ipv4() != flow.destination().is_ipv4() {
            // A rule sends it to the other family, whose echo is another protocol.
            return self.refuse(flow, FlowEnd::TargetUnreachable, Refusal::Unreachable(Unreachable::Host));
        }
        let directory = Arc::clone(&self.snapshot.directory);
        if permit.offramp().is_none()
            && let Some(device) = directory.device_by_tunnel(&flow.device.identity.network, target.ip())
            && let Some(key) = device.public_key
        {
            // Its own tunnel leads there, whatever the routes say of the tunnel network.
            flow.offramp = Some(format!("device:{}", device.identity.device).into());
            flow.expiry = expiry(now, permit, [&flow.device, device].map(AsRef::as_ref));
            if !device.usable_at(Timestamp::now()) {
                return self.dial_failed(now, flow, &DialError::Unreachable(Errno::EHOSTUNREACH));
            }
            return self.forward(now, flow, NextHop::Device(key));
        }
        if permit.offramp().is_none() && self.config.is_of_tunnel(target.ip()) {
            // No device has it now. By any other way it would leave for wherever the host's routes lead, in the clear.
            return self.refuse(flow, FlowEnd::TargetUnreachable, Refusal::Unreachable(Unreachable::Host));
        }
        let Some(offramp) =
            self.offramps.select(permit, &flow.device.identity.network, target.ip(), &flow.tried).map(Arc::clone)
        else {
            return self.refuse(flow, FlowEnd::TargetUnreachable, Refusal::Unreachable(Unreachable::Network));
        };
        flow.offramp = Some(Arc::clone(offramp.name()));
        flow.expiry = expiry(now, permit, [&*flow.device]);
        if !offramp.carries(flow.protocol()) {
            let error = DialError::CannotCarry(flow.protocol());
            return self.dial_failed(now, flow, &error);
        }
        // One that was taken on the way before goes back first.
        flow.port = None;
        match offramp.way(permit, flow.protocol()) {
            // Nothing gets through, and there was no other way to choose.
            Way::Forward(NextHop::Site(site)) | Way::Call(site) if !site.state.is_up() => {
                return self.dial_failed(now, flow, &DialError::NoTunnel);
            }
            Way::Forward(hop) => return self.forward(now, flow, hop),
            Way::Call(site) => return self.call(now, flow, &site),
            Way::Dial => {}
        }
        match offramp.port_share(now, &flow.device.identity.device, flow.protocol(), target) {
            Ok(port) => flow.port = port,
            Err(error) => return self.dial_failed(now, flow, &error),
        }
        let opened = match flow.key.tuple.protocol {
            Protocol::Tcp => {
                let dial = offramp.dial_tcp(permit, target, &flow.origin());
                Ok(self.spawn_dial(now, &flow, async { dial.await.map(Connection::Tcp) }))
            }
            Protocol::Udp => offramp.open_udp(permit, target).map(|opening| match opening {
                Opening::Open(socket) => Target::Udp(socket),
                Opening::Asking(dial) => self.spawn_dial(now, &flow, async { dial.await.map(Connection::Udp) }),
            }),
            Protocol::Echo => offramp.open_ping(permit, target.ip()).map(Target::Ping),
            Protocol::Other(_) => Err(DialError::CannotCarry(flow.protocol())),
        };
        match opened {
            Ok(target) => {
                if matches!(target, Target::Dialling { .. })
                    && let Some(share) = &mut flow.share
                    && let Err(limit) = share.take(Resource::Dials)
                {
                    // Mostly it holds one already; an association asks for one only where a proxy is asked for it.
                    return self.refuse_over(flow, limit, Refusal::Prohibited);
                }
                let held = std::mem::replace(&mut flow.target, target).take_held();
                if let Target::Dialling { held: waiting, .. } = &mut flow.target {
                    *waiting = held;
                    self.enter(flow);
                } else {
                    self.begin(flow, &held);
                }
            }
            Err(error) => self.dial_failed(now, flow, &error),
        }
    }

    /// A flow of datagrams has its socket: what waited for that goes first.
    fn begin(&mut self, mut flow: Flow, held: &Held) {
        let id = flow.id;
        if let Some(share) = &mut flow.share {
            // Of a proxy that was asked, maybe in vain.
            share.release(Resource::Dials);
        }
        self.enter(flow);
        self.counters.flows_opened.add(1);
        self.send_held(id, held);
        self.stack.mark_changed(id);
    }

    /// Has `dial` done for a flow, in what is left of its time: another off-ramp may have had its part.
    fn spawn_dial(
        &mut self,
        now: Instant,
        flow: &Flow,
        dial: impl Future<Output = Result<Connection, DialError>> + 'static,
    ) -> Target {
        let (id, opened) = (flow.id, flow.opened);
        let patience = (opened + self.config.limits.dial_timeout).saturating_duration_since(now);
        let task = self.dials.spawn_local(async move {
            let result = tokio::time::timeout(patience, dial).await.unwrap_or(Err(DialError::Timeout));
            Dialled { flow: id, took: clock().saturating_duration_since(opened), result }
        });
        Target::Dialling { task, held: Held::default() }
    }

    pub(super) fn dial_failed(&mut self, now: Instant, mut flow: Flow, error: &DialError) {
        if let Some(connection) = flow.target.own_connection() {
            self.hang_up(now, connection);
            flow.target = Target::Nobody { silent: true };
        }
        tracing::debug!(target = %flow.target_address(), offramp = flow.offramp.as_deref(), %error, "dial failed");
        if error.is_of_the_way()
            && let Some(offramp) = flow.offramp.clone()
            && let Decision::Permitted(permit) = &flow.decision
        {
            flow.tried.push(offramp);
            if self
                .offramps
                .select(permit, &flow.device.identity.network, flow.target_address().ip(), &flow.tried)
                .is_some()
            {
                return self.dial(now, flow);
            }
        }
        if let Some(share) = &mut flow.share {
            share.release(Resource::Dials);
        }
        if let Some(limit) = error.limit() {
            return self.refuse_over(flow, limit, Refusal::Reset);
        }
        let end = error.flow_end();
        if matches!(end, FlowEnd::TargetUnreachable | FlowEnd::OfframpDown | FlowEnd::DialTimeout) {
            self.linger(now, flow, end, Refusal::Unreachable(Unreachable::Host), REPEATED_SYN);
        } else {
            self.refuse(flow, end, Refusal::Reset);
        }
    }

    /// A dial returned. Policy, directory or what is known of the device may have changed meanwhile, and not every such
    /// change is a revision: nothing is accepted on an old verdict.
    pub(super) fn dialled(&mut self, now: Instant, dialled: Dialled) {
        let Dialled { flow: id, took, result } = dialled;
        let Some(mut flow) = self.take_dialled(now, id, took) else { return };
        match result {
            Ok(Connection::Udp(socket)) => {
                let held = std::mem::replace(&mut flow.target, Target::Udp(socket)).take_held();
                self.begin(*flow, &held);
            }
            Ok(Connection::Tcp(stream)) => {
                flow.target = Target::Tcp(TcpTarget { stream, shut: false, finished: false });
                self.accept(now, *flow);
            }
            Err(error) => self.dial_failed(now, *flow, &error),
        }
    }

    /// Takes out a flow whose dial took so long and is over. `None`: it may not be any more.
    pub(super) fn take_dialled(&mut self, now: Instant, id: FlowId, took: Duration) -> Option<Box<Flow>> {
        self.counters.dial.observe(took);
        self.flows.get_mut(id)?.dial = Some(took);
        if !self.rejudge(now, Timestamp::now(), id, FlowEnd::Revoked) {
            return None;
        }
        self.take(id)
    }

    /// Answers the client of a TCP flow that has its target.
    pub(super) fn accept(&mut self, now: Instant, mut flow: Flow) {
        let id = flow.id;
        let Some(share) = &mut flow.share else { return self.stack.remove(id) };
        share.release(Resource::Dials);
        let memory = FlowMemory::new(Arc::clone(share.owner()), Arc::clone(&self.counters));
        self.enter(flow);
        self.counters.flows_opened.add(1);
        if !self.stack.accept(now, id, seed(), Box::new(memory)) {
            self.end(now, id, FlowEnd::Error);
        }
    }

    /// Ends the flows over an off-ramp that is down, where they have another way that is up. Returns how many.
    pub(super) fn leave(&mut self, now: Instant, offramp: &str) -> usize {
        let leaves = |flow: &&Flow| match &flow.decision {
            Decision::Permitted(permit) => {
                flow.offramp.as_deref() == Some(offramp)
                    && self.offramps.has_better(
                        offramp,
                        permit,
                        &flow.device.identity.network,
                        flow.target_address().ip(),
                    )
            }
            Decision::Denied { .. } => false,
        };
        let leaving: Vec<FlowId> = self.flows.iter().filter(leaves).map(|flow| flow.id).collect();
        for &id in &leaving {
            self.end(now, id, FlowEnd::OfframpDown);
        }
        leaving.len()
    }
}

/// When the permit, or one of the devices, ends by itself.
pub(super) fn expiry<'d>(
    now: Instant,
    permit: &Permit,
    devices: impl IntoIterator<Item = &'d Device>,
) -> Option<Instant> {
    let of_devices = devices.into_iter().map(|device| device.expires);
    let until = of_devices.chain([permit.until()]).flatten().min()?;
    let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    // Not before the instant itself: timers are kept in whole milliseconds.
    Some(now + (left + Duration::from_millis(1)).min(LONGEST_TRUST))
}

/// A number nobody can guess, for initial sequence numbers.
pub(super) fn seed() -> u64 {
    getrandom::u64().expect("the system's random source is there from boot on")
}
