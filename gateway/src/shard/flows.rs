//! The life of a flow: opened, judged, dialled ([`super::dialling`]), moved, judged again, ended.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis_netstack::packet::Echo;
use portcullis_netstack::packet::build::Unreachable;
use portcullis_netstack::{DropReason, FiveTuple, FlowId, FlowKey, ForwardEnd, IngressId, Protocol, Refusal, Stack};

use super::calls::Caller;
use super::datagrams;
use super::dialling::expiry;
use super::flow::{Decision, Flow, Onward, Target};
use super::judge::{self, Occasion, Refused};
use super::link::FlowFilter;
use super::ready::FlowWaker;
use super::splice::{self, Progress};
use super::worker::{Shard, clock};
use crate::directory::Device;
use crate::flow_record::{FlowEnd, FlowRecord, OnrampKind};
use crate::limits::{Owner, Resource, Share};
use crate::offramp::NextHop;

/// How long the SYNs of a silently denied client are no new flows: about its own patience.
const SILENCE: Duration = Duration::from_secs(60);

/// Closed TCP flows of a shard that may linger to answer the client's retransmissions. Of those beyond it a client that
/// missed the last acknowledgment gets a reset after it has everything.
const LINGERING: usize = 4_096;

impl Shard {
    /// A packet opened a flow, which is in the table: judge it, then dial.
    pub(super) fn open(
        &mut self,
        now: Instant,
        id: FlowId,
        onramp: OnrampKind,
        device: &Arc<Device>,
        tuple: FiveTuple,
    ) {
        if self.draining {
            self.stack.refuse(id, Refusal::Silent);
            return self.drop_packet(DropReason::Draining);
        }
        let wall = Timestamp::now();
        if !device.usable_at(wall) {
            self.stack.refuse(id, Refusal::Prohibited);
            return self.drop_packet(DropReason::DeviceDisabled);
        }
        let Some(key) = self.stack.key(id) else { return };
        let owner = self.loads.owner(device);
        if let Err(limit) = owner.admit(now) {
            // Not even judged: it must cost less than what it is refused for.
            if !self.refuse_pace(now, id, &owner, limit) {
                return;
            }
            let revision = self.snapshot.ruleset.revision();
            let mut flow = self.new_flow(now, wall, id, key, onramp, device, Decision::Denied { rule: None, revision });
            flow.limit = Some(limit);
            return self.refuse(flow, FlowEnd::Limit, Refusal::Prohibited);
        }
        let verdict =
            judge::judge(&self.snapshot, &self.config.local_services, device, &tuple, wall, Occasion::Opening);
        match verdict {
            Ok(permit) => {
                self.counters.allowed.add(1);
                let mut flow = self.new_flow(now, wall, id, key, onramp, device, Decision::Permitted(permit));
                match self.share_of_new_flow(now, onramp, device, &owner, tuple.protocol) {
                    Ok(share) => {
                        flow.share = Some(share);
                        self.dial(now, flow)
                    }
                    Err(limit) => self.refuse_over(flow, limit, Refusal::Prohibited),
                }
            }
            Err(refused) => {
                self.counters.denied.add(1);
                let Refused { rule, revision, silent, forbidden } = refused;
                let decision = Decision::Denied { rule, revision };
                let mut flow = self.new_flow(now, wall, id, key, onramp, device, decision);
                flow.target = Target::Nobody { silent };
                self.deny(now, flow, &owner, silent, forbidden);
            }
        }
    }

    /// Answers and writes down a denied flow. Where there is room it is remembered, so that its next packet is no new
    /// one: a reset needs no memory, the client knows.
    fn deny(&mut self, now: Instant, mut flow: Flow, owner: &Arc<Owner>, silent: bool, forbidden: bool) {
        let protocol = flow.key.tuple.protocol;
        let keep = (protocol != Protocol::Tcp || silent) && self.remember(&mut flow, owner);
        if forbidden {
            self.drop_packet(DropReason::ForbiddenDestination);
        } else if silent && (protocol == Protocol::Tcp || !keep) {
            self.drop_packet(DropReason::DeniedSilently);
        }
        let refusal = if silent { Refusal::Silent } else { Refusal::Prohibited };
        match (protocol, silent) {
            _ if !keep => self.refuse(flow, FlowEnd::Denied, refusal),
            (Protocol::Tcp, false) => self.refuse(flow, FlowEnd::Denied, refusal),
            (Protocol::Tcp, true) => self.linger(now, flow, FlowEnd::Denied, refusal, SILENCE),
            // Packets of the association are answered as they are delivered, this one too.
            (Protocol::Udp | Protocol::Echo | Protocol::Other(_), _) => {
                let record = flow.record(now, self.stack.traffic(flow.id), Some(FlowEnd::Denied));
                self.write_down(record, FlowEnd::Denied);
                self.enter(flow);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "everything a flow begins with")]
    fn new_flow(
        &mut self,
        now: Instant,
        wall: Timestamp,
        id: FlowId,
        key: FlowKey,
        onramp: OnrampKind,
        device: &Arc<Device>,
        decision: Decision,
    ) -> Flow {
        // The shard's number in the upper bits keeps the numbers of one process apart. JSON readers keep 53 bits.
        let record_id = (self.index as u64) << 40 | self.next_record;
        self.next_record += 1;
        let flow_waker = FlowWaker::new(id, &self.ready);
        Flow {
            id,
            record_id,
            key,
            onramp,
            device: Arc::clone(device),
            start: wall,
            opened: now,
            decision,
            offramp: None,
            expiry: None,
            watched: None,
            dial: None,
            target: Target::Nobody { silent: true },
            tried: Vec::new(),
            share: None,
            port: None,
            listed: None,
            limit: None,
            waker: Waker::from(Arc::clone(&flow_waker)),
            flow_waker,
        }
    }

    /// Puts a flow among the open and the remembered ones.
    pub(super) fn enter(&mut self, mut flow: Flow) {
        let id = flow.id;
        if flow.onramp == OnrampKind::Tun {
            self.places.take(&flow.key.tuple, self.index);
        }
        if flow.is_permitted() && flow.key.tuple.protocol != Protocol::Tcp {
            let at = self.stack.last_active(id).unwrap_or(flow.opened);
            flow.listed = Some(at);
            self.associations.enter(&flow.device.identity.device, at, id);
        }
        self.flows.insert(flow);
        self.watch_expiry(id);
        self.counters.flows_open.set(self.flows.permitted() as u64);
    }

    /// Takes a flow out of them.
    pub(super) fn take(&mut self, id: FlowId) -> Option<Box<Flow>> {
        let mut flow = self.flows.remove(id)?;
        if flow.onramp == OnrampKind::Tun {
            self.places.release(&flow.key.tuple, self.index);
        }
        if let Target::Forward(onward) = &flow.target {
            // A newer flow may have what comes back: then the entry is that one's.
            let back = onward.back();
            let now = self.stack.forwarded_of(onward.passage.to.id, back.tuple);
            if now.is_none_or(|(other, _)| other == id) {
                self.returns.release(&back, self.index);
            }
        }
        if let Some(at) = flow.listed.take() {
            self.associations.forget(&flow.device.identity.device, at, id);
        }
        self.counters.flows_open.set(self.flows.permitted() as u64);
        Some(flow)
    }

    /// Answers and writes down a TCP flow, and keeps it for a while so that repeated SYNs are no new flows.
    pub(super) fn linger(&mut self, now: Instant, mut flow: Flow, end: FlowEnd, refusal: Refusal, time: Duration) {
        self.stack.answer_refused(flow.id, refusal);
        let record = flow.record(now, self.stack.traffic(flow.id), Some(end));
        self.write_down(record, end);
        if let Some(owner) = flow.share.as_ref().map(|share| Arc::clone(share.owner()))
            && !self.remember(&mut flow, &owner)
        {
            return self.stack.remove(flow.id);
        }
        flow.port = None;
        flow.decision = Decision::Denied { rule: flow.decision.rule().cloned(), revision: flow.decision.revision() };
        flow.target = Target::Nobody { silent: true };
        flow.expiry = Some(now + time);
        self.enter(flow);
    }

    /// Answers and writes down a flow that was not entered among the open ones.
    pub(super) fn refuse(&mut self, flow: Flow, end: FlowEnd, refusal: Refusal) {
        self.stack.answer_refused(flow.id, refusal);
        let record = flow.record(clock(), self.stack.traffic(flow.id), Some(end));
        self.stack.remove(flow.id);
        self.write_down(record, end);
    }

    /// Moves what can be moved of one flow.
    pub(super) fn move_flow(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else {
            match self.calls.caller(id) {
                // It has bytes to move, or hears what came of its call.
                Some(Caller::Flow(caller)) => return self.move_flow(now, caller),
                Some(Caller::Probe) => return self.move_probe(now, id),
                None => {}
            }
            // Written down already: it only lingers to answer the other end's retransmissions.
            self.stack.transmit(now, id);
            if self.stack.is_gone(id) {
                self.stack.remove(id);
                self.forget_call(id);
            }
            return;
        };
        flow.flow_waker.clear();
        let mut cx = Context::from_waker(&flow.waker);
        let more = match &mut flow.target {
            Target::Tcp(target) => {
                note_established(&mut self.stack, id, flow.share.as_mut());
                let progress = splice::tcp(&mut self.stack, id, target, now, &mut cx);
                return self.follow(now, id, progress);
            }
            Target::Call(target) => {
                note_established(&mut self.stack, id, flow.share.as_mut());
                let progress = splice::call(&mut self.stack, id, target, now);
                return self.follow(now, id, progress);
            }
            Target::Udp(socket) => {
                // A tunnel takes its packets one by one anyway.
                let together = flow.onramp == OnrampKind::Tun;
                let more = splice::udp(&mut self.stack, id, socket, together, now, &mut self.scratch, &mut cx);
                if socket.is_over() {
                    return self.end(now, id, FlowEnd::OfframpDown);
                }
                more
            }
            Target::Ping(socket) => splice::echo(&mut self.stack, id, socket, now, &mut self.scratch, &mut cx),
            Target::Calling(connection) => {
                let connection = *connection;
                return self.move_calling(now, id, connection);
            }
            Target::Dialling { .. } => {
                if self.stack.cause(id).is_some() {
                    return self.end(now, id, FlowEnd::ClientReset);
                }
                false
            }
            Target::Forward(_) => match self.watch_forwarded(now, id) {
                None => false,
                Some(end @ (ForwardEnd::ClientClosed | ForwardEnd::TargetClosed)) => {
                    return self.finish(now, id, end.into());
                }
                Some(end) => return self.end(now, id, end.into()),
            },
            Target::Nobody { .. } => false,
        };
        if more {
            self.stack.mark_changed(id);
        }
    }

    /// Does what the progress of a TCP flow asks for.
    fn follow(&mut self, now: Instant, id: FlowId, progress: Progress) {
        match progress {
            Progress::Waiting => {}
            Progress::More => self.stack.mark_changed(id),
            Progress::Finished(end) => self.finish(now, id, end),
            Progress::Broken(end) => self.end(now, id, end),
        }
    }

    /// Sends a client's echo request to its target.
    pub(super) fn deliver_echo(&mut self, id: FlowId, destination: IpAddr, echo: &Echo<'_>, hops: u8) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        match &flow.target {
            Target::Ping(socket) => {
                if !socket.has_hop_limit(hops) {
                    socket.set_hop_limit(hops);
                }
                let request = echo_request(&mut self.scratch, destination, echo);
                let sent = datagrams::send(&mut self.stack, &self.counters, id, socket, request, request.len());
                if sent > 0 {
                    self.stack.delivered(id, echo.data.len());
                }
            }
            Target::Nobody { silent } => {
                let silent = *silent;
                self.deny_again(id, silent, 1);
            }
            Target::Tcp(_)
            | Target::Call(_)
            | Target::Calling(_)
            | Target::Udp(_)
            | Target::Dialling { .. }
            | Target::Forward(_) => {}
        }
    }

    /// A packet that can only go on as it is, of a flow whose packets do not.
    pub(super) fn deliver_opaque(&mut self, id: FlowId) {
        if let Some(Flow { target: Target::Nobody { silent }, .. }) = self.flows.get_mut(id) {
            let silent = *silent;
            self.deny_again(id, silent, 1);
        }
    }

    /// More packets of a denied association. Those that came as one are answered as one.
    pub(super) fn deny_again(&mut self, id: FlowId, silent: bool, packets: usize) {
        if silent {
            for _ in 0..packets {
                self.drop_packet(DropReason::DeniedSilently);
            }
        } else {
            self.stack.send_unreachable(id, Unreachable::Prohibited);
        }
    }

    /// Judges a live flow again. A loser ends: by `FlowEnd::Expired` when time did it, else by `FlowEnd::Revoked`.
    /// Returns whether it goes on.
    pub(super) fn rejudge(&mut self, now: Instant, wall: Timestamp, id: FlowId, loser: FlowEnd) -> bool {
        let Some(flow) = self.flows.get_mut(id) else { return false };
        let device = match judge::current_device(&self.snapshot, flow.onramp, &flow.device, &flow.key.tuple, wall) {
            Ok(device) => device,
            Err(end) => {
                self.end(now, id, end);
                return false;
            }
        };
        if device.identity.network != flow.device.identity.network {
            // The same address is another target there.
            self.end(now, id, loser);
            return false;
        }
        let reached = if let Target::Forward(Onward { hop: NextHop::Device(key), .. }) = &flow.target {
            match judge::device_reached(&self.snapshot, key, &device.identity.network, flow.target_address().ip(), wall)
            {
                Ok(reached) => Some(reached),
                Err(end) => {
                    self.end(now, id, end);
                    return false;
                }
            }
        } else {
            None
        };
        if !flow.is_permitted() {
            // The next packet is judged as if it were the first.
            self.forget(id);
            return false;
        }
        match judge::judge(&self.snapshot, &self.config.local_services, &device, &flow.key.tuple, wall, Occasion::Again)
        {
            Ok(permit) if flow.leads_elsewhere(&permit) => {
                // Allowed, but not to where it goes.
                self.end(now, id, loser);
                false
            }
            Ok(permit) => {
                flow.expiry = expiry(now, &permit, std::iter::once(&*device).chain(reached.as_deref()));
                flow.device = device;
                flow.decision = Decision::Permitted(permit);
                self.watch_expiry(id);
                true
            }
            Err(refused) => {
                self.end_as(now, id, loser, Some(refused));
                false
            }
        }
    }

    /// Makes sure that a flow is looked at when its permit ends. A later look is not entered again: the earlier one
    /// comes first and finds the time.
    fn watch_expiry(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if let Some(at) = flow.expiry
            && flow.watched.is_none_or(|watched| at < watched)
        {
            flow.watched = Some(at);
            self.expiries.push(Reverse((at, id)));
        }
    }

    /// An entry of a flow came up: judge it again, or wait for the time that is now right.
    pub(super) fn expiry_due(&mut self, now: Instant, at: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id).filter(|flow| flow.watched == Some(at)) else { return };
        flow.watched = None;
        match flow.expiry {
            Some(expiry) if expiry <= now => {
                self.rejudge(now, Timestamp::now(), id, FlowEnd::Expired);
            }
            Some(_) => self.watch_expiry(id),
            None => {}
        }
    }

    /// Ends an open flow at both ends.
    pub(super) fn end(&mut self, now: Instant, id: FlowId, end: FlowEnd) {
        self.end_as(now, id, end, None);
    }

    fn end_as(&mut self, now: Instant, id: FlowId, end: FlowEnd, refused: Option<Refused>) {
        let Some(flow) = self.take(id) else { return };
        flow.target.reset_on_drop();
        if let Some(connection) = flow.target.own_connection() {
            self.hang_up(now, connection);
        }
        let traffic = self.stack.traffic(id);
        if end == FlowEnd::ClientReset {
            self.stack.remove(id);
        } else {
            self.stack.abort(now, id);
        }
        self.close(now, &flow, traffic, end, refused);
    }

    /// Both ends closed in order: write it down, and let the stack answer the client's retransmissions.
    fn finish(&mut self, now: Instant, id: FlowId, end: FlowEnd) {
        let Some(mut flow) = self.take(id) else { return };
        if end == FlowEnd::ClientClosed
            && let Some(port) = &mut flow.port
        {
            // Our side closed first towards the target, so the kernel keeps the port in TIME-WAIT.
            port.rest(now);
        }
        let traffic = self.stack.traffic(id);
        if let Some(connection) = flow.target.own_connection() {
            self.let_go(connection);
            self.forget_call(connection);
        }
        self.let_go(id);
        self.close(now, &flow, traffic, end, None);
    }

    /// Lets a connection that both ends closed linger, where there are not too many that do.
    fn let_go(&mut self, id: FlowId) {
        if self.stack.len().saturating_sub(self.flows.len() + self.calls.len()) < LINGERING {
            self.stack.release(id);
        } else {
            self.stack.remove(id);
        }
    }

    /// Forgets a denied association, which was written down when it began.
    fn forget(&mut self, id: FlowId) {
        if self.take(id).is_some() {
            self.stack.remove(id);
        }
    }

    fn close(
        &mut self,
        now: Instant,
        flow: &Flow,
        traffic: portcullis_netstack::Traffic,
        end: FlowEnd,
        refused: Option<Refused>,
    ) {
        if !flow.is_permitted() {
            return;
        }
        let mut record = flow.record(now, traffic, Some(end));
        if let Some(refused) = refused {
            // It was admitted, so the verdict stays; the rule is the one that ended it. Where no rule matches any more
            // the one that had admitted it says more than none.
            if refused.rule.is_some() {
                record.rule = refused.rule;
            }
            record.revision = refused.revision.0;
        }
        self.count_bytes();
        self.write_down(record, end);
    }

    /// Shows a scrape the bytes of flows that still go on, too.
    pub(super) fn count_bytes(&self) {
        let (up, down) = self.stack.total_bytes();
        self.counters.bytes_up.set(up);
        self.counters.bytes_down.set(down);
    }

    /// Hands a record to the log. A log that cannot keep up loses it, and that is counted.
    fn write_down(&mut self, record: FlowRecord, end: FlowEnd) {
        self.counters.flow_ended(end);
        if self.records.try_send(record).is_err() {
            self.counters.records_lost.add(1);
        }
    }

    /// Ends the flows an administrator named. Returns how many.
    pub(super) fn kill(&mut self, now: Instant, filter: &FlowFilter) -> usize {
        let doomed: Vec<FlowId> = self
            .flows
            .iter()
            .filter(|flow| flow.is_permitted() && filter.matches(&flow.record(now, self.stack.traffic(flow.id), None)))
            .map(|flow| flow.id)
            .collect();
        for &id in &doomed {
            self.end(now, id, FlowEnd::Killed);
        }
        doomed.len()
    }

    /// Ends every flow of a peer.
    pub(super) fn end_ingress(&mut self, now: Instant, ingress: IngressId, end: FlowEnd) {
        let doomed: Vec<FlowId> =
            self.flows.iter().filter(|flow| flow.key.ingress == ingress).map(|flow| flow.id).collect();
        for id in doomed {
            self.end(now, id, end);
        }
    }

    /// Ends every flow.
    pub(super) fn end_all(&mut self, now: Instant, end: FlowEnd) {
        let doomed: Vec<FlowId> = self.flows.iter().map(|flow| flow.id).collect();
        for id in doomed {
            self.end(now, id, end);
        }
    }
}

/// Gives back the place among the half-open flows of one whose handshake with the client is over.
fn note_established(stack: &mut Stack, id: FlowId, share: Option<&mut Share>) {
    if let Some(share) = share
        && share.holds(Resource::HalfOpen)
        && stack.is_established(id)
    {
        share.release(Resource::HalfOpen);
    }
}

/// An echo request with the client's sequence number and data. The kernel fills in identifier and checksum.
fn echo_request<'s>(scratch: &'s mut [u8], destination: IpAddr, echo: &Echo<'_>) -> &'s [u8] {
    let kind = if destination.is_ipv4() { 8 } else { 128 };
    let [high, low] = echo.sequence.to_be_bytes();
    let [id_high, id_low] = echo.identifier.to_be_bytes();
    let header = [kind, 0, 0, 0, id_high, id_low, high, low];
    let len = header.len() + echo.data.len();
    if let Some((to_header, to_data)) = scratch.get_mut(..len).and_then(|s| s.split_at_mut_checked(header.len())) {
        to_header.copy_from_slice(&header);
        to_data.copy_from_slice(echo.data);
    }
    scratch.get(..len).unwrap_or_default()
}
