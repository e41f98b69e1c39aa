//! One TCP connection: first a held SYN, then a smoltcp socket on an interface of its own.

mod connect;
mod rings;
mod size;
mod transmit;

use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use super::CloseCause;
use super::memory::Allowance;
use super::recovery::{Recovery, wrap};
use crate::device::{FlowLink, Segmentation};
use crate::drop_reason::DropReason;
use crate::gate::Gate;
use crate::limits::StackLimits;
use crate::packet::{TcpSegment, build};
use crate::sequence::before;
use crate::tuple::FiveTuple;
pub(crate) use size::fit_maximum_segment_size;
use size::{LEAST_SEGMENT, headers, segment_size};

/// How long smoltcp stays in TIME-WAIT at least, its `CLOSE_DELAY`.
const TIME_WAIT: StackDuration = StackDuration::from_secs(10);
/// How often a client is asked that owes an acknowledgment while smoltcp has no timer running.
const WATCHDOG: StackDuration = StackDuration::from_secs(1);

/// How long a flow may be silent before memory of its empty ring towards the client goes back.
const REST: Duration = Duration::from_secs(10);

/// A TCP flow of the table.
pub(crate) enum TcpFlow {
    /// The client's SYN waits for a verdict and a dial. There is no socket and no buffer yet.
    Held(HeldSyn),
    /// The target answered; the client was, or is being, accepted.
    Open(Box<TcpSocket>),
}

/// A SYN that has not been answered.
pub(crate) struct HeldSyn {
    pub(crate) packet: Box<[u8]>,
    pub(crate) sequence: u32,
}

/// A smoltcp socket with the interface that serves only it.
pub(crate) struct TcpSocket {
    interface: Interface,
    tuple: FiveTuple,
    recovery: Recovery,
    segmentation: Segmentation,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    allowance: Allowance,
    /// Where the next byte towards the client is written in its ring, unless that is empty: then at the beginning.
    position: usize,
    /// Bytes of the client at the front of its ring that the target has already, but whose page is not complete.
    written: usize,
    /// How far from the beginning the client wrote, in order or not: no farther into its ring.
    reach: u64,
    /// The client's last bare acknowledgment, and whether one was the same as the one before.
    acknowledged: Option<u32>,
    repeated: bool,
    /// The client's initial sequence number, and the bytes of it that were taken since.
    first_sequence: u32,
    taken: u32,
    opened: Instant,
    /// We opened it, and this long the other end may take to answer.
    answer_by: Option<Instant>,
    /// Our SYN was sent again because of what came back.
    was_asked_again: bool,
    last_heard: Instant,
    last_active: Instant,
    /// Since when the client owes an acknowledgment.
    owed_since: Option<Instant>,
    cause: Option<CloseCause>,
    /// The client closed its half before ours was closed.
    client_closed_first: bool,
    /// Our half is to be closed once the handshake is over.
    close_wanted: bool,
    /// Until when smoltcp does not end TIME-WAIT.
    lingers_until: Option<StackInstant>,
    /// Nobody takes what is in the client's ring.
    let_go: bool,
    /// The client has told a closed window.
    was_shut: bool,
    gate: Gate,
    /// How far smoltcp's clock is ahead of ours: its retransmission timer is due when we say so.
    ahead: StackDuration,
}

/// A closed smoltcp socket with its two rings, alone in its set.
///
/// Making one is two mappings that are torn down again at the end. For a short connection that is more than all the
/// rest, so the stack keeps those that touched little of their memory.
pub(crate) struct Rings {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Rings {
    /// With `size` bytes each.
    pub(crate) fn new(size: usize) -> Self {
        let buffer = || SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(), buffer());
        // Ours bounds what the ring holds.
        socket.set_congestion_control(CongestionControl::None);
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { sockets, handle }
    }
}

/// The link as smoltcp's interface is told it, see [`crate::device`].
fn wide_link<'l>(tuple: &FiveTuple, link: &'l mut FlowLink<'_>) -> FlowLink<'l> {
    let mtu = if tuple.source.is_ipv4() { link.mtu } else { u16::MAX };
    FlowLink::new(link.batch, link.to, mtu)
}

/// Whether the step from one state to another means that the client has our FIN.
fn is_fin_acknowledged(from: State, to: State) -> bool {
    matches!(from, State::FinWait1 | State::Closing | State::LastAck)
        && matches!(to, State::FinWait2 | State::TimeWait | State::Closed)
}

/// smoltcp's clock: microseconds since `epoch`.
pub(crate) fn stack_time(epoch: Instant, now: Instant) -> StackInstant {
    // smoltcp treats 0 as "long ago" in places; starting at one second keeps clear of it.
    let since = now.saturating_duration_since(epoch) + Duration::from_secs(1);
    StackInstant::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The instant smoltcp means by `at`.
pub(crate) fn std_time(epoch: Instant, at: StackInstant) -> Instant {
    let micros = u64::try_from(at.total_micros()).unwrap_or(0).saturating_sub(1_000_000);
    epoch + Duration::from_micros(micros)
}

impl TcpSocket {
    /// Listens on the target's address and port for exactly this client.
    pub(crate) fn listen(
        parts: (Rings, Allowance),
        tuple: &FiveTuple,
        seed: u64,
        now: Instant,
        time: StackInstant,
        syn: &TcpSegment<'_>,
        link: &mut FlowLink<'_>,
    ) -> Self {
        let mut socket = Self::closed(parts, tuple, seed, now, time, link);
        socket.learn(now, syn, link.mtu);
        let local = IpListenEndpoint { addr: Some(tuple.destination.into()), port: tuple.destination_port };
        socket.socket().listen(local).expect("a closed socket listens on any port but 0, which parsing refused");
        socket
    }

    /// A socket that does nothing yet, alone on an interface with the address that its other end knows.
    fn closed(
        (Rings { sockets, handle }, allowance): (Rings, Allowance),
        tuple: &FiveTuple,
        seed: u64,
        now: Instant,
        time: StackInstant,
        link: &mut FlowLink<'_>,
    ) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        // It makes the initial sequence number: with smoltcp's default two flows would share one.
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wide_link(tuple, link), time);
        interface.update_ip_addrs(|addresses| {
            // Prefix length 0: every client is on-link, so no route is needed.
            let _ = addresses.push(IpCidr::new(tuple.destination.into(), 0));
        });
        Self {
            interface,
            tuple: *tuple,
            recovery: Recovery::new(now, LEAST_SEGMENT, false),
            segmentation: Segmentation { headers: headers(tuple), size: u16::MAX },
            sockets,
            handle,
            allowance,
            position: 0,
            written: 0,
            reach: 0,
            acknowledged: None,
            repeated: false,
            first_sequence: 0,
            taken: 0,
            opened: now,
            answer_by: None,
            was_asked_again: false,
            last_heard: now,
            last_active: now,
            owed_since: None,
            cause: None,
            client_closed_first: false,
            close_wanted: false,
            lingers_until: None,
            let_go: false,
            was_shut: false,
            gate: Gate::default(),
            ahead: StackDuration::ZERO,
        }
    }

    /// Takes over what the SYN of the other end says of it.
    fn learn(&mut self, now: Instant, syn: &TcpSegment<'_>, mtu: u16) {
        let size = segment_size(&self.tuple, mtu, syn);
        // As smoltcp chooses it: for a ring of 2^n bytes, n + 1 - 16.
        let bits = usize::BITS - self.allowance.capacity().leading_zeros();
        let window_shift = if syn.offers_window_scale() { bits.saturating_sub(16) } else { 0 };
        self.recovery = Recovery::new(now, size, syn.offers_selective());
        self.segmentation.size = u16::try_from(size).unwrap_or(u16::MAX);
        self.first_sequence = syn.sequence;
        self.gate = Gate::new(window_shift);
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.handle).state()
    }

    /// Feeds one packet of the client.
    pub(crate) fn handle_segment(
        &mut self,
        now: Instant,
        time: StackInstant,
        segment: &TcpSegment<'_>,
        link: &mut FlowLink<'_>,
    ) -> Result<(), DropReason> {
        let time = time + self.ahead;
        self.last_heard = now;
        if self.state() == State::SynSent {
            return self.handle_answer(now, time, segment, link);
        }
        self.note(segment);
        link.segmentation = Some(self.segmentation);
        if self.is_to_be_challenged(segment) {
            link.received = None;
            self.challenge(time, link);
            return Ok(());
        }
        let behind = self.is_behind_end(segment);
        let fits = if behind { 0 } else { self.admit(segment) };
        let cut = (behind || fits < segment.payload.len())
            .then(|| link.received.map(|packet| rings::cut(packet, segment, fits)));
        let outstanding = self.outstanding();
        let outside = self.is_outside(segment, fits);
        let before = self.state();
        let repeats = !outside && self.recovery.is_repeated(segment, outstanding);
        let queue = self.socket().send_queue();
        if repeats {
            // smoltcp has nothing to learn from it, and would learn the wrong thing.
            link.received = None;
        } else if let Some(Some(cut)) = &cut {
            link.received = None;
            self.feed(time, cut, link);
        } else {
            self.poll_ingress(time, link);
        }
        let after = self.state();
        let taken = queue - self.socket().send_queue() + usize::from(is_fin_acknowledged(before, after));
        if !outside && self.recovery.agrees(segment, taken) && after != State::SynReceived {
            // In LAST-ACK smoltcp challenges what acknowledges nothing new, and does not hear its window.
            let hears_window = before != State::LastAck || taken > 0;
            self.recovery.handle_segment(now, segment, taken, outstanding, hears_window);
        }
        // A client that keeps its window shut says so whenever it is asked. That is not using the flow.
        if outstanding.queued == 0 || !segment.payload.is_empty() || taken > 0 {
            self.last_active = now;
        }
        if after == State::CloseWait && before != after {
            self.client_closed_first = true;
        }
        self.was_shut |= segment.window == 0;
        if after == State::FinWait2 && before != after && self.was_shut {
            self.forget_probes(time, segment.acknowledgment, link);
        }
        if after == State::TimeWait && before != after {
            self.lingers_until = Some(time + TIME_WAIT);
        }
        if self.close_wanted {
            self.close();
        }
        self.note_debt(now);
        let cause = match after {
            State::Closed if segment.rst => Some(CloseCause::ClientReset),
            // smoltcp goes back to LISTEN when a reset answers its SYN-ACK.
            State::Listen if before == State::SynReceived => Some(CloseCause::ClientReset),
            State::Closed | State::TimeWait => Some(CloseCause::Orderly),
            State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => None,
        };
        self.cause = self.cause.or(cause);
        match cut {
            None => Ok(()),
            Some(_) if behind => Err(DropReason::UnacceptableSegment),
            Some(_) => Err(DropReason::QueueFull),
        }
    }

    /// Whether a segment with `len` bytes is not in smoltcp's window (RFC 9293 section 3.10.7.4), so that it takes nothing
    /// of what the segment says: not the client's window either, on which recovery must not think otherwise.
    fn is_outside(&self, segment: &TcpSegment<'_>, len: usize) -> bool {
        let Some(next) = self.next_from_client() else { return false };
        let edge = self.gate.edge().unwrap_or(next);
        let (start, end) = (segment.sequence, segment.sequence.wrapping_add(wrap(len)));
        let starts_inside = !before(start, next) && before(start, edge);
        if len == 0 {
            return if next == edge { start != next } else { !starts_inside };
        }
        next == edge || !(starts_inside || before(next, end) && !before(edge, end))
    }

    /// Whether a segment has text, or another FIN, from behind the client's FIN, which is to be ignored (RFC 9293 section
    /// 3.10.7.4). smoltcp takes the text, and it would reach the target; for the FIN it ignores all that the segment says,
    /// the window too, which recovery would then believe alone.
    fn is_behind_end(&self, segment: &TcpSegment<'_>) -> bool {
        let heard_fin = matches!(self.state(), State::CloseWait | State::Closing | State::LastAck);
        let len = wrap(segment.payload.len()).wrapping_add(u32::from(segment.fin));
        let end = segment.sequence.wrapping_add(len);
        heard_fin && len > 0 && self.next_from_client().is_some_and(|next| before(next, end))
    }

    /// Sequence number of the next byte of the client, once it is known.
    fn next_from_client(&self) -> Option<u32> {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        let fin = match socket.state() {
            State::Established | State::FinWait1 | State::FinWait2 => 0,
            State::CloseWait | State::Closing | State::LastAck => 1,
            State::Closed | State::Listen | State::SynSent | State::SynReceived | State::TimeWait => return None,
        };
        let received = wrap(socket.recv_queue()).wrapping_add(self.taken).wrapping_add(1 + fin);
        Some(self.first_sequence.wrapping_add(received))
    }

    /// Notes what decides whether the rings can be used again.
    fn note(&mut self, segment: &TcpSegment<'_>) {
        if segment.payload.is_empty() && segment.ack && !segment.syn && !segment.fin {
            self.repeated |= self.acknowledged == Some(segment.acknowledgment);
            self.acknowledged = Some(segment.acknowledgment);
        }
    }

    /// Whether a reset or SYN may be a forgery, or of a client that forgot the connection: RFC 5961 sections 3.2 and
    /// 4.2. smoltcp takes every reset in the window for one, and answers no SYN.
    pub(crate) fn is_to_be_challenged(&self, segment: &TcpSegment<'_>) -> bool {
        let Some(next) = self.next_from_client() else { return false };
        let ahead = segment.sequence.wrapping_sub(next);
        // Behind the window smoltcp drops it, which is what the RFC wants.
        segment.syn || (segment.rst && ahead != 0 && ahead.cast_signed() > 0)
    }

    /// A challenge ACK: the client says with an exact reset that it knows nothing of the connection, or goes on.
    fn challenge(&mut self, time: StackInstant, link: &mut FlowLink<'_>) {
        let Some((window, sequence, acknowledgment)) = self.recovery.echo() else { return };
        // What a keep-alive of the client looks like: smoltcp answers where it is, once a second at most.
        let (probe, len) = build::client_acknowledgment(&self.tuple, sequence.wrapping_sub(1), acknowledgment, window);
        self.feed(time, probe.get(..len).unwrap_or_default(), link);
    }

    /// smoltcp's timer for probes of a closed window runs on when nothing is left to be sent, and then it acknowledges
    /// without an end. It hears that the window is open, for nothing will use it. `acknowledgment`: of the FIN, also where
    /// recovery did not believe the segment that said so.
    fn forget_probes(&mut self, time: StackInstant, acknowledgment: u32, link: &mut FlowLink<'_>) {
        let Some(sequence) = self.next_from_client() else { return };
        let (opened, len) = build::client_acknowledgment(&self.tuple, sequence, acknowledgment, 1);
        self.feed(time, opened.get(..len).unwrap_or_default(), link);
    }

    /// Feeds smoltcp a packet of our own as one of the client.
    fn feed(&mut self, time: StackInstant, packet: &[u8], link: &mut FlowLink<'_>) {
        let mut inner = FlowLink::new(link.batch, link.to, link.mtu);
        inner.received = Some(packet);
        inner.segmentation = link.segmentation;
        self.poll_ingress(time, &mut inner);
        link.sent += inner.sent;
    }

    fn poll_ingress(&mut self, time: StackInstant, link: &mut FlowLink<'_>) {
        link.gate = std::mem::take(&mut self.gate);
        let result = self.interface.poll_ingress_single(time, link, &mut self.sockets);
        debug_assert_ne!(result, PollIngressSingleResult::None, "the link had a packet");
        self.gate = std::mem::take(&mut link.gate);
    }

    /// Resets the client, RFC 9293 section 3.10.7.
    pub(crate) fn abort(&mut self, time: StackInstant, link: &mut FlowLink<'_>) {
        self.socket().abort();
        self.poll_egress(time + self.ahead, link);
    }

    /// Closes the half towards the client, after everything sent.
    pub(crate) fn close(&mut self) {
        // smoltcp takes the acknowledgment of its SYN for one of the FIN when it is closed before.
        self.close_wanted = !self.is_established();
        if !self.close_wanted {
            self.socket().close();
        }
    }

    /// Notes since when the client owes an acknowledgment.
    fn note_debt(&mut self, now: Instant) {
        self.owed_since = self.unacknowledged().then(|| self.owed_since.unwrap_or(now));
    }

    /// When smoltcp wants to be called.
    fn poll_at(&mut self, time: StackInstant) -> Option<StackInstant> {
        let at = self.interface.poll_at(time, &self.sockets);
        if at.is_some() || self.owed_since.is_none() || !self.is_established() {
            return at;
        }
        // After a client shrank its window, or opened it while segments were lost, smoltcp has no timer running and
        // would be silent for ever. A keep-alive makes the client say where it is.
        self.socket().set_keep_alive(Some(WATCHDOG));
        self.interface.poll_at(time, &self.sockets)
    }

    /// Lets `read` fill free space of the ring towards the client; it returns how many bytes it wrote.
    /// `None`: the half is closed or not open yet, or the ring is full.
    pub(crate) fn send_with<R>(
        &mut self,
        now: Instant,
        read: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Option<(usize, R)> {
        let socket: &mut Socket<'_> = self.sockets.get_mut(self.handle);
        let queued = socket.send_queue();
        if queued == 0 {
            self.position = 0;
        }
        let room = self.recovery.room(queued).min(self.allowance.room_down(self.position));
        if room == 0 || !socket.can_send() {
            return None;
        }
        let sent = socket
            .send(|ring| {
                let room = room.min(ring.len());
                let (len, result) = read(ring.get_mut(..room).unwrap_or_default());
                (len, (len, result))
            })
            .ok()?;
        if sent.0 > 0 {
            self.position = (self.position + sent.0) % self.allowance.capacity();
            self.recovery.handle_queued(now, queued, queued + sent.0);
            self.last_active = now;
            self.note_debt(now);
        }
        Some(sent)
    }

    /// The rings, for another connection: when the client wrote to no more than the first `touched` bytes of its ring,
    /// and repeated nothing. A listening smoltcp socket forgets its last connection but for what it knew of repeated
    /// acknowledgments.
    pub(crate) fn into_rings(self, touched: u64) -> Option<Rings> {
        if self.reach > touched || self.repeated {
            return None;
        }
        let Self { mut sockets, handle, .. } = self;
        let socket: &mut Socket<'_> = sockets.get_mut(handle);
        socket.abort();
        socket.set_keep_alive(None);
        Some(Rings { sockets, handle })
    }

    /// Whether the client closed its half and every byte before that has been taken.
    pub(crate) fn client_finished(&mut self) -> bool {
        let heard_fin = matches!(
            self.state(),
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait | State::Closed
        );
        if heard_fin && self.socket().recv_queue() <= self.written {
            self.complete();
        }
        // At the end of TIME-WAIT smoltcp forgets that there was a FIN.
        let closed = self.cause == Some(CloseCause::Orderly) && self.socket().recv_queue() == 0;
        closed || self.socket().recv(|_| (0, ())) == Err(RecvError::Finished)
    }

    /// Whether the handshake is over.
    pub(crate) fn is_established(&self) -> bool {
        !matches!(self.state(), State::Listen | State::SynSent | State::SynReceived)
    }

    /// Why the connection is over, when it is. It may still linger to answer retransmissions.
    pub(crate) fn cause(&self) -> Option<CloseCause> {
        self.cause
    }

    /// Whether nothing is left to be done for the client: no retransmission to answer.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.state(), State::Closed | State::Listen) && self.cause.is_some()
    }

    /// Says that the target has every byte it is to have. smoltcp takes bytes from behind the client's end, too, and those
    /// are nobody's.
    pub(crate) fn let_go(&mut self) {
        self.let_go = true;
    }

    /// Whether smoltcp must not be asked to do anything: the end of TIME-WAIT would empty the ring, and the target
    /// must have every byte before.
    fn is_held_open(&self, time: StackInstant) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        socket.state() == State::TimeWait
            && !self.let_go
            && socket.recv_queue() > 0
            && self.lingers_until.is_none_or(|until| time >= until)
    }

    /// Whether the client's FIN came before ours was asked for.
    pub(crate) fn client_closed_first(&self) -> bool {
        self.client_closed_first
    }

    /// Whether a bare SYN now means a new connection: the old one is over, RFC 9293 section 3.10.7.4. To one of our own
    /// nobody opens another.
    pub(crate) fn may_be_reused(&self) -> bool {
        self.cause.is_some() && !self.is_own()
    }

    /// Whether the client owes an acknowledgment.
    pub(crate) fn unacknowledged(&self) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        socket.send_queue() > 0 || matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck)
    }

    /// The earliest time at which something must be done without a packet.
    pub(crate) fn deadline(&mut self, epoch: Instant, time: StackInstant, limits: &StackLimits) -> Instant {
        let mut deadline = self.idle_deadline(limits);
        if self.is_held_open(time + self.ahead) {
            return deadline;
        }
        if let Some(at) = self.poll_at(time + self.ahead) {
            deadline = deadline.min(std_time(epoch, at - self.ahead));
        }
        if let Some(at) = self.recovery.deadline(self.outstanding()) {
            deadline = deadline.min(at);
        }
        if self.may_shrink() {
            deadline = deadline.min(self.last_active + REST);
        }
        deadline.min(self.patience(limits))
    }

    /// When it ends unless something moves.
    pub(crate) fn idle_deadline(&self, limits: &StackLimits) -> Instant {
        self.last_active + limits.tcp_idle
    }

    /// When the client is given up.
    fn patience(&self, limits: &StackLimits) -> Instant {
        if self.cause.is_some() {
            // TIME-WAIT ends by smoltcp's own timer, but the target may never take what is left.
            self.idle_deadline(limits)
        } else if !self.is_established() {
            self.answer_by.unwrap_or(self.opened + limits.syn_received)
        } else if let Some(since) = self.owed_since {
            (self.last_heard.max(since) + limits.tcp_user_timeout).min(self.idle_deadline(limits))
        } else {
            self.idle_deadline(limits)
        }
    }

    /// Notes what the passing of time did to the connection.
    pub(crate) fn handle_timeout(&mut self, now: Instant, limits: &StackLimits) {
        self.note_debt(now);
        if self.may_shrink() && now >= self.last_active + REST {
            self.shrink();
        }
        let ended = self.cause.is_some_and(|cause| cause != CloseCause::Orderly);
        if !ended && now >= self.patience(limits) {
            self.cause = Some(CloseCause::Timeout);
        }
    }
}
