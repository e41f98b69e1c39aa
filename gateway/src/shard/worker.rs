//! The loop of a shard: read everything that is ready, feed it, move each changed flow once, flush.

mod egress;
mod ingress;
mod opening;
mod statuses;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis_netstack::{Coalescer, DropReason, FlowId, IngressId, Reassembler, Stack, StackLimits};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Sleep;

use super::associations::Associations;
use super::calls::Calls;
use super::datagrams::Gathered;
use super::flow::Flows;
use super::hops::Hops;
use super::link::{Command, Snapshot};
use super::mail::{Mail, Mailbox, Neighbour};
use super::moderation::Moderation;
use super::places::Places;
use super::ready::ReadyList;
use super::returns::Returns;
use super::source_ports::SourcePorts;
use crate::config::Config;
use crate::config::resolved::OfframpKind;
use crate::flow_record::{FlowEnd, FlowRecord};
use crate::host::TunDevice;
use crate::limits::{Loads, SharedLoads};
use crate::metrics::counters::ShardCounters;
use crate::offramp::{DatagramSocket, DialError, Offramps, TargetStream};
use crate::onramp::tun::{TunReader, TunWriter};
use crate::onramp::wireguard::peers::{Party, Peer, Peers, TICK, WireguardIdentity};
use crate::onramp::wireguard::socket::{Outbox, ReceiveBuffers, WireguardSocket};
use crate::state::Remembered;

/// The TUN device as an ingress; WireGuard peers follow.
pub(super) const TUN: IngressId = IngressId(0);
/// Changed flows looked at before anything else has its turn.
const FLOWS_A_TURN: usize = 256;
/// Bytes of packets made before they are sent.
const BATCH: usize = 512 * 1024;
/// Live flows judged again before anything else has its turn.
const REJUDGED_A_TURN: usize = 256;
/// Turns before the runtime may look for new events.
const TURNS: usize = 8;
/// A client that was answered must complete the handshake within this.
const SYN_RECEIVED: Duration = Duration::from_secs(10);

/// What a shard is made of.
pub(super) struct Parts {
    pub(super) index: usize,
    pub(super) config: Arc<Config>,
    pub(super) identity: Option<Arc<WireguardIdentity>>,
    pub(super) socket: Option<std::net::UdpSocket>,
    pub(super) tun: Option<TunDevice>,
    pub(super) offramps: Arc<Offramps>,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) records: mpsc::Sender<FlowRecord>,
    pub(super) counters: Arc<ShardCounters>,
    pub(super) loads: Arc<SharedLoads>,
    pub(super) mailbox: Mailbox,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) places: Arc<Places>,
    pub(super) returns: Arc<Returns>,
}

/// The body of a shard's thread.
pub(super) fn run(parts: Parts) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The loop does its own batching: look for new events after each of its turns.
        .event_interval(1)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "cannot start the runtime of a shard"),
    };
    let index = parts.index;
    LocalSet::new().block_on(&runtime, async move {
        match Shard::new(parts) {
            Ok(mut shard) => tokio::task::unconstrained(poll_fn(|cx| shard.turns(cx))).await,
            Err(error) => tracing::error!(shard = index, %error, "cannot start a shard"),
        }
    });
}

/// The WireGuard on-ramp of a shard.
struct Wireguard {
    socket: WireguardSocket,
    memory: ReceiveBuffers,
    outbox: Outbox,
    peers: Peers,
    coalescer: Coalescer<Arc<Party>>,
    mtu: u16,
    /// Peers to open handshakes with.
    opening: VecDeque<Remembered>,
    /// Whether the socket is of IPv6, and carries IPv4 in mapped addresses.
    ipv6: bool,
}

/// What a dial came to.
pub(super) struct Dialled {
    pub(super) flow: FlowId,
    pub(super) took: Duration,
    pub(super) result: Result<Connection, DialError>,
}

/// What an off-ramp was asked for.
pub(super) enum Connection {
    Tcp(TargetStream),
    Udp(DatagramSocket),
}

/// A pass over live flows after a new snapshot.
#[derive(Default)]
pub(super) struct Pass {
    /// The place to go on at; `None`: no pass is under way.
    pub(super) next: Option<usize>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// A data-plane thread's state. One owner, no lock.
pub(super) struct Shard {
    pub(super) index: usize,
    pub(super) config: Arc<Config>,
    pub(super) stack: Stack,
    pub(super) flows: Flows,
    pub(super) ready: Arc<ReadyList>,
    ready_now: Vec<FlowId>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) snapshot: Arc<Snapshot>,
    commands: mpsc::Receiver<Command>,
    pub(super) records: mpsc::Sender<FlowRecord>,
    pub(super) counters: Arc<ShardCounters>,
    pub(super) offramps: Arc<Offramps>,
    pub(super) dials: JoinSet<Dialled>,
    wireguard: Option<Wireguard>,
    pub(super) tun: Option<TunWriter>,
    tun_reader: Option<TunReader>,
    pub(super) tun_mtu: u16,
    /// The kernel gets packets of some flows as they are, and others come back from it.
    forwards: bool,
    pub(super) identity: Option<Arc<WireguardIdentity>>,
    pub(super) hops: Hops,
    /// Connections of the stack's own.
    pub(super) calls: Calls,
    mailbox: Mailbox,
    neighbours: Vec<Neighbour>,
    /// Where the flows of the TUN device live.
    pub(super) places: Arc<Places>,
    /// Where the flows live whose packets come back by it, or by peers.
    pub(super) returns: Arc<Returns>,
    pub(super) source_ports: SourcePorts,
    outgoing_mail: Vec<Vec<Mail>>,
    pub(super) pass: Pass,
    /// When permits end by themselves.
    pub(super) expiries: BinaryHeap<Reverse<(Instant, FlowId)>>,
    pub(super) loads: Loads,
    pub(super) associations: Associations<FlowId>,
    pub(super) next_record: u64,
    pub(super) draining: bool,
    drained: Vec<oneshot::Sender<()>>,
    stopping: Option<oneshot::Sender<()>>,
    pub(super) scratch: Box<[u8]>,
    /// Packets of which only a part is here, by the name of their device.
    fragments: Reassembler<Arc<str>>,
    /// Datagrams towards targets that came in this turn.
    pub(super) gathered: Gathered,
    /// Memory for one segment of a super-packet.
    segment: Vec<u8>,
    timer: Pin<Box<Sleep>>,
    moderation: Moderation,
    next_tick: Option<Instant>,
}

impl Shard {
    fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts {
            index,
            config,
            identity,
            socket,
            tun,
            offramps,
            mut snapshots,
            commands,
            records,
            counters,
            loads,
            mailbox,
            neighbours,
            places,
            returns,
        } = parts;
        let now = clock();
        let limits = &config.limits;
        let stack = Stack::new(
            StackLimits {
                tcp_buffer: limits.tcp_buffer,
                opening: limits.dial_timeout,
                syn_received: SYN_RECEIVED,
                tcp_user_timeout: limits.tcp_user_timeout,
                tcp_idle: limits.tcp_idle,
                udp_idle_one_way: limits.udp_idle_one_way,
                udp_idle: limits.udp_idle,
                echo_idle: limits.icmp_idle,
                batch: BATCH,
            },
            now,
        );
        let wireguard = match (&identity, socket, &config.wireguard) {
            (Some(identity), Some(socket), Some(settings)) => Some(Wireguard {
                socket: WireguardSocket::new(socket)?,
                memory: ReceiveBuffers::default(),
                outbox: Outbox::default(),
                peers: Peers::new(Arc::clone(identity), index, config.shards),
                coalescer: Coalescer::default(),
                mtu: settings.mtu,
                opening: VecDeque::new(),
                ipv6: settings.listen.is_ipv6(),
            }),
            _ => None,
        };
        let tun = tun.map(Arc::new);
        let tun_reader = tun.clone().map(TunReader::new).transpose()?;
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        counters.revision.set(snapshot.ruleset.revision().0);
        Ok(Self {
            index,
            stack,
            flows: Flows::default(),
            ready: Arc::default(),
            ready_now: Vec::new(),
            snapshots,
            snapshot,
            commands,
            records,
            counters,
            offramps,
            dials: JoinSet::new(),
            next_tick: wireguard.is_some().then_some(now + TICK),
            wireguard,
            tun_mtu: config.tun.as_ref().map_or(1500, |tun| tun.mtu),
            forwards: config.offramps.iter().any(|offramp| offramp.kind == OfframpKind::Kernel),
            identity,
            hops: Hops::default(),
            calls: Calls::default(),
            tun: tun.map(TunWriter::new),
            tun_reader,
            mailbox,
            outgoing_mail: neighbours.iter().map(|_| Vec::new()).collect(),
            neighbours,
            places,
            source_ports: SourcePorts::new(returns.secret(), index, config.shards),
            returns,
            pass: Pass::default(),
            expiries: BinaryHeap::new(),
            loads: Loads::new(loads),
            associations: Associations::default(),
            next_record: 1,
            draining: false,
            drained: Vec::new(),
            stopping: None,
            scratch: vec![0; 65_536].into_boxed_slice(),
            fragments: Reassembler::default(),
            gathered: Gathered::default(),
            segment: Vec::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            moderation: Moderation::new(now),
            config,
        })
    }

    /// Some turns of the loop. Ready when the shard was stopped.
    fn turns(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ready.register(cx.waker());
        for _ in 0..TURNS {
            let now = clock();
            let mut busy = self.poll_commands(cx, now);
            busy |= self.adopt_snapshot(now);
            busy |= self.poll_mail(cx, now);
            busy |= self.poll_wireguard(cx, now);
            busy |= self.poll_tun(cx, now);
            self.send_gathered();
            busy |= self.poll_dials(cx, now);
            busy |= self.handle_timers(now);
            busy |= self.open_handshakes(now);
            busy |= self.pump(now);
            busy |= self.continue_pass(now);
            self.count_bytes();
            self.answer_drained();
            self.flush(cx);
            // Changed flows waited while there were datagrams to send: now there may be none.
            busy |= self.stack.changed() > 0 && self.may_move_flows();
            self.send_mail();
            busy |= self.arm_timer(cx);
            if self.is_stopped() {
                return Poll::Ready(());
            }
            if let Some(rest) = self.moderation.rest_after(now) {
                std::thread::sleep(rest);
                // Other sockets may have become ready meanwhile.
                break;
            }
            if !busy {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_commands(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut busy = false;
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            busy = true;
            match command {
                Command::Flows(filter, answer) => {
                    let records = self.flows.iter().filter(|flow| flow.is_permitted());
                    let records = records.map(|flow| flow.record(now, self.stack.traffic(flow.id), None));
                    let _ = answer.send(records.filter(|record| filter.matches(record)).collect());
                }
                Command::Kill(filter, answer) => {
                    let _ = answer.send(self.kill(now, &filter));
                }
                Command::Leave(offramp, answer) => {
                    let _ = answer.send(self.leave(now, &offramp));
                }
                Command::Peers(answer) => {
                    let _ = answer.send(self.peers());
                }
                Command::Sites(answer) => {
                    let _ = answer.send(self.sites(now));
                }
                Command::Probe(site, to, answer) => self.probe(now, &site, to, answer),
                Command::Reach(key, to) => self.reach(now, key, to),
                Command::Moved(answer) => self.tell_moved(answer),
                Command::Open(peers) => self.look_for(peers),
                Command::Ping(answer) => {
                    let _ = answer.send(());
                }
                Command::Rejudge(answer) => {
                    // The snapshot is adopted before the next slice of the pass.
                    self.pass.next = Some(0);
                    self.pass.waiting.push(answer);
                }
                Command::Drain(answer) => {
                    self.draining = true;
                    self.drained.push(answer);
                }
                Command::Stop(answer) => {
                    self.end_all(now, FlowEnd::Drained);
                    self.stopping = Some(answer);
                }
            }
        }
        busy
    }

    /// Answers those who wait for the last flow to end. Whatever ended it, nothing else may wake the loop after that.
    fn answer_drained(&mut self) {
        if self.draining && self.flows.permitted() == 0 {
            for answer in self.drained.drain(..) {
                let _ = answer.send(());
            }
        }
    }

    /// Takes over a new snapshot, if there is one: peers at once, flows in slices.
    fn adopt_snapshot(&mut self, now: Instant) -> bool {
        if !self.snapshots.has_changed().unwrap_or(false) {
            return false;
        }
        self.snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        self.pass.next = Some(0);
        let directory = Arc::clone(&self.snapshot.directory);
        self.loads.keep(|device| directory.device(device).is_some());
        if let Some(wireguard) = &mut self.wireguard {
            let gone = wireguard.peers.apply(&self.snapshot.directory, Timestamp::now());
            if !gone.is_empty() {
                self.dismiss(now, gone, FlowEnd::DeviceGone);
                // A site that was another device may be a new one.
                if let Some(wireguard) = &mut self.wireguard {
                    wireguard.peers.apply(&self.snapshot.directory, Timestamp::now());
                }
            }
        }
        true
    }

    /// Ends the flows of WireGuard peers, tells the clients so while their tunnels still stand, and forgets the peers.
    fn dismiss(&mut self, now: Instant, slots: Vec<usize>, end: FlowEnd) {
        if slots.is_empty() {
            return;
        }
        for &slot in &slots {
            self.end_ingress(now, peer_ingress(slot), end);
        }
        self.hand_over();
        if let Some(wireguard) = &mut self.wireguard {
            for slot in slots {
                wireguard.peers.remove(slot);
            }
        }
    }

    /// Judges a slice of the live flows again. Returns whether there are more.
    fn continue_pass(&mut self, now: Instant) -> bool {
        let Some(start) = self.pass.next else { return false };
        let wall = Timestamp::now();
        let end = (start + REJUDGED_A_TURN).min(self.flows.places());
        for place in start..end {
            if let Some(id) = self.flows.at(place) {
                self.rejudge(now, wall, id, FlowEnd::Revoked);
            }
        }
        if end < self.flows.places() {
            self.pass.next = Some(end);
            return true;
        }
        self.pass.next = None;
        self.counters.revision.set(self.snapshot.ruleset.revision().0);
        for answer in self.pass.waiting.drain(..) {
            let _ = answer.send(());
        }
        // What was revoked has answers to flush.
        true
    }

    fn poll_dials(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut busy = false;
        while let Poll::Ready(Some(joined)) = self.dials.poll_join_next(cx) {
            busy = true;
            // An aborted dial's flow is gone already.
            if let Ok(dialled) = joined {
                self.dialled(now, dialled);
            }
        }
        busy
    }

    /// Does what is due. Returns whether anything was.
    fn handle_timers(&mut self, now: Instant) -> bool {
        let mut busy = self.expire_fragments(now);
        if self.stack.poll_timeout().is_some_and(|at| at <= now) {
            busy = true;
            let mut idle = Vec::new();
            self.stack.handle_timeout(now, |id| idle.push(id));
            for id in idle {
                self.end(now, id, FlowEnd::Idle);
            }
        }
        while self.expiries.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            busy = true;
            if let Some(Reverse((at, id))) = self.expiries.pop() {
                self.expiry_due(now, at, id);
            }
        }
        if self.next_tick.is_some_and(|at| at <= now) {
            self.next_tick = Some(now + TICK);
            self.tick(now);
        }
        busy
    }

    /// Has the loop woken when the next thing is due. It comes last in a turn: whatever moved set deadlines. Returns
    /// whether something is due already.
    fn arm_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let expiry = self.expiries.peek().map(|Reverse((at, _))| *at);
        let next = [self.stack.poll_timeout(), self.fragments.poll_timeout(), expiry, self.next_tick];
        let Some(next) = next.into_iter().flatten().min() else { return false };
        let next = tokio::time::Instant::from_std(next);
        if self.timer.deadline() != next {
            self.timer.as_mut().reset(next);
        }
        self.timer.as_mut().poll(cx).is_ready()
    }

    /// Lets the tunnels look at their timers, and forgets those of expired devices.
    fn tick(&mut self, now: Instant) {
        let Self { wireguard, loads, hops, identity, returns, .. } = self;
        if let Some(identity) = identity {
            hops.find_again(|key| identity.owner(key));
        }
        let Some(wireguard) = wireguard else { return };
        let in_use = |party: &Party| {
            let opens = party.device.as_ref().is_some_and(|device| loads.flows(&device.identity.device) > 0);
            opens || returns.come_by(&party.key)
        };
        wireguard.peers.tick(&mut wireguard.outbox, in_use);
        let wall = Timestamp::now();
        let is_expired = |peer: &Peer| peer.party().device.as_ref().is_some_and(|device| !device.usable_at(wall));
        let expired: Vec<usize> =
            wireguard.peers.iter().filter(|(_, peer)| is_expired(peer)).map(|(slot, _)| slot).collect();
        self.dismiss(now, expired, FlowEnd::Expired);
    }

    /// Whether there is room for what flows send.
    fn may_move_flows(&self) -> bool {
        self.wireguard.as_ref().is_none_or(|wireguard| wireguard.outbox.is_empty())
    }

    /// Moves each changed flow once, as long as there is room for what they send.
    fn pump(&mut self, now: Instant) -> bool {
        let mut ready = std::mem::take(&mut self.ready_now);
        self.ready.take(&mut ready);
        for id in ready.drain(..) {
            self.stack.mark_changed(id);
        }
        self.ready_now = ready;
        if !self.may_move_flows() {
            // The kernel takes no more datagrams for now: the flush registered for when it does.
            return false;
        }
        for _ in 0..self.stack.changed().min(FLOWS_A_TURN) {
            if self.stack.batch().is_full() {
                break;
            }
            let Some(id) = self.stack.poll_changed() else { break };
            self.move_flow(now, id);
        }
        self.stack.changed() > 0
    }

    /// Whether the loop is to end: asked to, and the last packets are on their way.
    fn is_stopped(&mut self) -> bool {
        match self.stopping.take() {
            Some(answer) => {
                let _ = answer.send(());
                true
            }
            None => false,
        }
    }

    /// Counts a dropped packet.
    pub(super) fn drop_packet(&self, reason: DropReason) {
        self.drop_packets(reason, 1);
    }

    /// Counts packets that were dropped together.
    pub(super) fn drop_packets(&self, reason: DropReason, count: usize) {
        for _ in 0..count {
            self.counters.drop_packet(reason);
        }
        tracing::trace!(%reason, count, "packets dropped");
    }
}

/// The time, by the runtime's clock, so that a test can hold it.
pub(super) fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn peer_ingress(slot: usize) -> IngressId {
    IngressId(u32::try_from(slot).map_or(u32::MAX, |slot| slot.saturating_add(1)))
}

fn peer_slot(ingress: IngressId) -> Option<usize> {
    ingress.0.checked_sub(1).map(|slot| slot as usize)
}
