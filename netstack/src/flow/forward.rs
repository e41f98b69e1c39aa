//! Flows whose packets go on. Both ends speak to each other; we look on, to know when it is over and where
//! each of them is, so that a word of ours would be heard.

use std::time::{Duration, Instant};

use super::datagram::DatagramFlow;
use crate::limits::StackLimits;
use crate::packet::TcpSegment;
use crate::sequence::before;
use crate::stack::Ingress;
use crate::tuple::{FiveTuple, FlowKey};

/// How long what still comes of a connection that we ended is answered with a reset.
const LINGER: Duration = Duration::from_secs(10);
/// The largest shift of a window, RFC 7323 section 2.3.
const LARGEST_SHIFT: u8 = 14;

/// A flow whose packets go on as they are.
pub(crate) struct ForwardFlow {
    /// Where they go on, and come back from.
    pub(crate) out: Ingress,
    /// What they carry there.
    pub(crate) sent: FiveTuple,
    /// We are one of the hops on the way, there and back.
    pub(crate) hop: bool,
    pub(crate) watch: Watch,
}

/// What is known of it.
pub(crate) enum Watch {
    Tcp(Box<Connection>),
    Datagram(DatagramFlow),
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// Why a forwarded connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardEnd {
    /// Both halves were closed, the client's first.
    ClientClosed,
    /// Both halves were closed, the target's first.
    TargetClosed,
    /// The client sent a reset.
    ClientReset,
    /// The target sent a reset.
    TargetReset,
    /// The target answered the SYN with a reset.
    TargetRefused,
    /// The target did not answer, and somebody said that it cannot be reached.
    TargetUnreachable,
    /// The target did not answer in time.
    NoAnswer,
    /// Nothing was said for too long.
    Idle,
}

impl ForwardFlow {
    /// The key of packets that come back.
    pub(crate) fn back(&self) -> FlowKey {
        FlowKey { ingress: self.out.id, tuple: self.sent.turned() }
    }

    /// When it is to be looked at next.
    pub(crate) fn deadline(&self, tuple: &FiveTuple, limits: &StackLimits) -> Instant {
        match &self.watch {
            Watch::Tcp(connection) => connection.deadline(limits),
            Watch::Datagram(datagram) => datagram.deadline(tuple, limits),
        }
    }
}

/// A TCP connection between two others.
pub(crate) struct Connection {
    up: Half,
    down: Half,
    state: State,
    /// The target took the SYN.
    answered: bool,
    /// Whose FIN came first.
    first: Option<Direction>,
    /// When anything was last said.
    heard: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The SYN went on.
    Opening { unreachable: bool },
    /// The target answered it.
    Open,
    /// It is over.
    Over(ForwardEnd),
    /// We ended it.
    Aborted,
}

/// What one side sends.
#[derive(Default)]
struct Half {
    /// The sequence number after everything seen of it.
    next: u32,
    /// Of these the other side acknowledged the ones before.
    acknowledged: u32,
    /// The widest window that the other side told.
    window: u32,
    /// The shift of windows that this side tells, where it offered one.
    shift: Option<u8>,
    /// The sequence number after its FIN.
    fin: Option<u32>,
}

impl Half {
    fn is_closed(&self) -> bool {
        self.fin.is_some_and(|fin| !before(self.acknowledged, fin))
    }

    /// Whether the other side takes something at this place.
    fn is_in_window(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.acknowledged) <= self.window
    }
}

impl Connection {
    /// Opened by the SYN `segment`.
    pub(crate) fn new(now: Instant, segment: &TcpSegment<'_>) -> Self {
        let mut connection = Self {
            up: Half::default(),
            down: Half::default(),
            state: State::Opening { unreachable: false },
            answered: false,
            first: None,
            heard: now,
        };
        connection.begin(segment);
        connection
    }

    fn begin(&mut self, syn: &TcpSegment<'_>) {
        let next = syn.sequence.wrapping_add(syn.sequence_len());
        // Repeated without the data that the first one had, an answer to that one still counts (RFC 7413).
        let repeated = self.up.next != 0 && self.up.acknowledged == syn.sequence && before(next, self.up.next);
        self.up = Half {
            next: if repeated { self.up.next } else { next },
            acknowledged: syn.sequence,
            shift: syn.window_shift(),
            ..Half::default()
        };
        self.down.window = u32::from(syn.window);
    }

    /// Looks at a segment that goes on. Returns whether that made it open, or over.
    pub(crate) fn see(&mut self, now: Instant, direction: Direction, segment: &TcpSegment<'_>) -> bool {
        let before_it = self.state;
        match self.state {
            State::Opening { .. } => self.see_opening(now, direction, segment),
            State::Open => self.see_open(now, direction, segment),
            State::Over(_) | State::Aborted => {}
        }
        self.state != before_it
    }

    fn see_opening(&mut self, now: Instant, direction: Direction, segment: &TcpSegment<'_>) {
        match direction {
            Direction::Up if segment.rst => self.state = State::Over(ForwardEnd::ClientReset),
            // Another try after the client gave up; one that is repeated says the same again.
            Direction::Up if segment.is_bare_syn() => self.begin(segment),
            Direction::Up => {}
            // RFC 9293 section 3.10.7.3: nothing counts that does not acknowledge the SYN, with its data or without.
            Direction::Down
                if !segment.ack
                    || !before(self.up.acknowledged, segment.acknowledgment)
                    || before(self.up.next, segment.acknowledgment) => {}
            Direction::Down if segment.rst => self.state = State::Over(ForwardEnd::TargetRefused),
            Direction::Down if segment.syn => {
                self.heard = now;
                self.up.acknowledged = segment.acknowledgment;
                self.up.window = u32::from(segment.window);
                let next = segment.sequence.wrapping_add(segment.sequence_len());
                self.down = Half {
                    next,
                    acknowledged: segment.sequence,
                    shift: segment.window_shift(),
                    ..std::mem::take(&mut self.down)
                };
                if self.up.shift.is_none() || self.down.shift.is_none() {
                    // RFC 7323 section 2.2: scaled when both offer it.
                    (self.up.shift, self.down.shift) = (None, None);
                }
                self.state = State::Open;
                self.answered = true;
            }
            Direction::Down => {}
        }
    }

    fn see_open(&mut self, now: Instant, direction: Direction, segment: &TcpSegment<'_>) {
        let (sent, heard) = match direction {
            Direction::Up => (&mut self.up, &mut self.down),
            Direction::Down => (&mut self.down, &mut self.up),
        };
        if segment.rst {
            // A reset ends what is certain to hear it: it stands where its receiver waits, or among what is under way to it.
            // Elsewhere the receiver asks back (RFC 5961 section 3.2), and that passes.
            if !before(segment.sequence, sent.acknowledged) && !before(sent.next, segment.sequence) {
                self.state = State::Over(match direction {
                    Direction::Up => ForwardEnd::ClientReset,
                    Direction::Down => ForwardEnd::TargetReset,
                });
            }
            return;
        }
        let end = segment.sequence.wrapping_add(segment.sequence_len());
        let expected = sent.is_in_window(end) || end == sent.next;
        // A keep-alive stands right before what is expected (RFC 9293 section 3.8.4).
        if expected || end.wrapping_add(1) == sent.acknowledged {
            self.heard = now;
        }
        if expected {
            if before(sent.next, end) {
                sent.next = end;
            }
            if segment.fin {
                sent.fin = Some(end);
                self.first.get_or_insert(direction);
            }
        }
        if segment.ack && !before(heard.next, segment.acknowledgment) {
            if before(heard.acknowledged, segment.acknowledgment) {
                heard.acknowledged = segment.acknowledgment;
            }
            let shift = if segment.syn { 0 } else { sent.shift.unwrap_or(0).min(LARGEST_SHIFT) };
            heard.window = heard.window.max(u32::from(segment.window) << shift);
        }
        if self.up.is_closed() && self.down.is_closed() {
            self.state = State::Over(match self.first {
                Some(Direction::Down) => ForwardEnd::TargetClosed,
                Some(Direction::Up) | None => ForwardEnd::ClientClosed,
            });
        }
    }

    /// Hears that a segment of this sequence number, which went in this direction, did not arrive. Returns whether it can
    /// be one of this connection (RFC 5927 section 4.1).
    pub(crate) fn hear_error(&mut self, direction: Direction, sequence: u32, unreachable: bool) -> bool {
        let sent = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        let in_flight = !before(sequence, sent.acknowledged) && before(sequence, sent.next);
        if in_flight
            && unreachable
            && let State::Opening { unreachable } = &mut self.state
        {
            *unreachable = true;
        }
        in_flight
    }

    /// Whether the target answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Why it is over, when it is.
    pub(crate) fn end(&self) -> Option<ForwardEnd> {
        if let State::Over(end) = self.state { Some(end) } else { None }
    }

    /// Whether we ended it: what still comes is answered with a reset.
    pub(crate) fn is_aborted(&self) -> bool {
        self.state == State::Aborted
    }

    /// Ends it. Returns what to say to the client, where it is to hear anything, and to the target, as segments of each that a
    /// reset answers; `None`: they know already.
    pub(crate) fn abort(&mut self, now: Instant) -> Option<(Option<TcpSegment<'static>>, TcpSegment<'static>)> {
        let (opening, heard) = match self.state {
            State::Opening { .. } => (true, false),
            // A target that answers after all is to hear that nobody waits any more. Its client still asks, which is a new flow.
            State::Over(ForwardEnd::NoAnswer | ForwardEnd::TargetUnreachable) => (true, true),
            // Of silence they know nothing.
            State::Open | State::Over(ForwardEnd::Idle) => (false, false),
            State::Over(_) | State::Aborted => return None,
        };
        self.state = State::Aborted;
        self.heard = now;
        let segment = |sequence: u32, acknowledgment: Option<u32>| TcpSegment {
            sequence,
            acknowledgment: acknowledgment.unwrap_or(0),
            syn: false,
            ack: acknowledgment.is_some(),
            rst: false,
            fin: false,
            window: 0,
            options: &[],
            payload: &[],
        };
        // The client takes a reset where it waits for the next byte; one that waits for an answer to its SYN, one that
        // acknowledges that. The target may have heard of neither.
        let client = segment(self.up.next, (!opening).then_some(self.down.acknowledged));
        let target = segment(0, Some(if opening { self.up.next } else { self.up.acknowledged }));
        Some((Some(client).filter(|_| !heard), target))
    }

    /// Ends what is due. Returns whether it is to be looked at: over now, or gone when it was over before.
    pub(crate) fn handle_timeout(&mut self, now: Instant, limits: &StackLimits) -> bool {
        if now < self.deadline(limits) {
            return false;
        }
        match self.state {
            State::Opening { unreachable: true } => self.state = State::Over(ForwardEnd::TargetUnreachable),
            State::Opening { unreachable: false } => self.state = State::Over(ForwardEnd::NoAnswer),
            State::Open => self.state = State::Over(ForwardEnd::Idle),
            State::Over(_) | State::Aborted => {}
        }
        true
    }

    fn deadline(&self, limits: &StackLimits) -> Instant {
        self.heard
            + match self.state {
                State::Opening { .. } => limits.opening,
                State::Open => limits.tcp_idle,
                State::Over(_) | State::Aborted => LINGER,
            }
    }
}
