//! Loss recovery towards the client, in front of smoltcp.
//!
//! smoltcp 0.14 alone does not live with loss: it takes a duplicate acknowledgment whose window moved (every one of
//! Linux's) for a window update, ignores all of them in LAST-ACK, knows nothing of what arrived behind a hole, and waits
//! for a timer that is never under a second. So its congestion control is off, and what it knows how to do, going
//! back to the first unacknowledged byte and sending everything again, is only the means: here it is decided which
//! bytes really leave, see [`Gate`](crate::gate::Gate).
//!
//! Loss: by selective acknowledgments as in RFC 6675, everything that is lost in one round trip and no more than the
//! [window](super::congestion) allows. A lost tail is probed (RFC 8985 section 7), and then a timer, RFC 6298 with the
//! floor of 200 ms that Linux has, takes all for lost. A client without selective acknowledgments says with duplicate ones
//! that something is lost (RFC 5681 section 3.2), and with partial ones what is lost next (RFC 6582): a segment in each
//! round trip.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;

use super::congestion::Congestion;
use super::scoreboard::Scoreboard;
use crate::packet::TcpSegment;
use crate::sequence::{Range, before};

/// Duplicate acknowledgments that make the first segment a loss.
const DUPLICATES: u32 = 3;
/// Least retransmission timeout.
const MINIMUM_RTO: Duration = Duration::from_millis(200);
/// Largest retransmission timeout.
const MAXIMUM_RTO: Duration = Duration::from_secs(60);
/// Least time after which a retransmission that changed nothing is taken for lost.
const MINIMUM_REPEAT: Duration = Duration::from_millis(10);
/// Least time after which a tail that is not acknowledged is probed, RFC 8985 section 7.2.
const MINIMUM_PROBE: Duration = Duration::from_millis(10);
/// How long a client may keep back the acknowledgment of a single segment.
const DELAYED_ACKNOWLEDGMENT: Duration = Duration::from_millis(50);
/// Losses are repeated so often in a round trip: each time smoltcp goes through all that is under way.
const PASSES: u32 = 4;
/// Least time between two passes.
const MINIMUM_PASS: Duration = Duration::from_millis(1);
/// By how much a window is scaled at most, RFC 7323 section 2.3.
const MAXIMUM_SHIFT: u8 = 14;
/// Holes repeated in one pass; others have theirs.
pub(crate) const HOLES: usize = 32;

/// What is to leave again, in order.
pub(crate) type Wanted = ArrayVec<Range, HOLES>;

/// What is under way, as far as it is known outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outstanding {
    /// Bytes that are not acknowledged, sent or not, and one for a FIN.
    pub(crate) queued: usize,
    /// Where the highest segment that was sent ended.
    pub(crate) frontier: u32,
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Recovery {
    mss: usize,
    congestion: Congestion,
    scoreboard: Scoreboard,
    /// First unacknowledged sequence number; `None` before the first acknowledgment.
    una: Option<u32>,
    /// Window field of the client's last segment.
    window_field: u16,
    /// Sequence number the client's next segment begins with.
    client_next: u32,
    /// The client tells what arrived behind a hole.
    selective: bool,
    duplicates: u32,
    /// Bytes that arrived behind a hole as far as a client lets see that does not tell, RFC 5681 section 3.2.
    arrived: usize,
    /// Where the losses end that were mended last: duplicates of it say nothing new, `recover` of RFC 6582.
    recovered: Option<u32>,
    /// While losses of one window are mended: the end of that window.
    point: Option<u32>,
    /// After a timeout: everything before it that did not arrive is lost.
    lost_before: Option<u32>,
    /// While losses are mended: what is lost before it was sent again.
    resent: u32,
    /// When the first of that left, and when the last.
    round: Instant,
    pass: Instant,
    /// When something was last acknowledged or taken for lost.
    moved: Instant,
    /// A sequence number and when it was handed to the ring.
    sample: Option<(u32, Instant)>,
    /// The tail is to be sent again; it was since the last acknowledgment.
    probe: bool,
    probed: bool,
    backoff: u32,
}

impl Recovery {
    /// A connection whose segments carry at most `mss` bytes, with a client that acknowledges selectively or does not.
    pub(crate) fn new(now: Instant, mss: usize, selective: bool) -> Self {
        Self {
            mss,
            congestion: Congestion::new(mss),
            scoreboard: Scoreboard::default(),
            una: None,
            window_field: 0,
            client_next: 0,
            selective,
            duplicates: 0,
            arrived: 0,
            recovered: None,
            point: None,
            lost_before: None,
            resent: 0,
            round: now,
            pass: now,
            moved: now,
            sample: None,
            probe: false,
            probed: false,
            backoff: 0,
        }
    }

    /// Takes the other end's answer to a SYN of ours, which acknowledges that and nothing else.
    pub(crate) fn answered(&mut self, syn: &TcpSegment<'_>) {
        self.una = Some(syn.acknowledgment);
        self.client_next = syn.sequence.wrapping_add(1);
        // Other than those that follow it is not scaled (RFC 7323 section 2.2).
        let scaled = syn.window >> syn.window_shift().unwrap_or(0).min(MAXIMUM_SHIFT);
        self.window_field = scaled.max(syn.window.min(1));
    }

    /// Segments carry at most `mss` bytes from now on.
    pub(crate) fn lower_segment_size(&mut self, mss: usize) {
        self.mss = mss;
    }

    /// How many bytes more the ring may take when it holds `queued`.
    pub(crate) fn room(&self, queued: usize) -> usize {
        self.congestion.window().saturating_sub(queued.saturating_sub(self.scoreboard.bytes() + self.arrived))
    }

    /// Notes that the ring was filled to `queued` bytes.
    pub(crate) fn handle_queued(&mut self, now: Instant, before: usize, queued: usize) {
        if before == 0 {
            self.moved = now;
        }
        if let Some(una) = self.una
            && self.sample.is_none()
            && self.point.is_none()
        {
            self.sample = Some((una.wrapping_add(wrap(queued)), now));
        }
    }

    /// Notes that the FIN was sent, with nothing else unacknowledged.
    pub(crate) fn handle_fin(&mut self, now: Instant) {
        self.moved = now;
    }

    /// Whether a segment only repeats what was acknowledged, and tells what arrived behind a hole.
    pub(crate) fn is_repeated(&self, segment: &TcpSegment<'_>, out: Outstanding) -> bool {
        self.repeats(segment) && out.queued > 0 && segment.sacked().next().is_some()
    }

    /// Whether a segment is a duplicate acknowledgment of a client that tells no more, RFC 5681 section 2.
    fn is_duplicate(&self, segment: &TcpSegment<'_>, out: Outstanding) -> bool {
        let under_way = self.una.is_some_and(|una| before(una, out.frontier));
        !self.selective && self.repeats(segment) && under_way && segment.window > 0
    }

    /// Whether a segment has nothing but the acknowledgment and the window of the last.
    fn repeats(&self, segment: &TcpSegment<'_>) -> bool {
        let pure = segment.ack && segment.payload.is_empty() && !(segment.syn || segment.fin || segment.rst);
        pure && self.una == Some(segment.acknowledgment) && segment.window == self.window_field
    }

    /// Whether smoltcp, which let go of `taken` bytes, believed what a segment acknowledges.
    pub(crate) fn agrees(&self, segment: &TcpSegment<'_>, taken: usize) -> bool {
        self.una.is_none_or(|una| segment.acknowledgment.wrapping_sub(una) as usize == taken)
    }

    /// Takes a segment of the client after smoltcp, which let go of `advance` bytes, and took over the client's window where
    /// it `hears_window`. `out` is from before.
    pub(crate) fn handle_segment(
        &mut self,
        now: Instant,
        segment: &TcpSegment<'_>,
        advance: usize,
        out: Outstanding,
        hears_window: bool,
    ) {
        if !segment.ack || segment.syn || segment.rst {
            return;
        }
        let duplicate = self.is_duplicate(segment, out);
        if hears_window {
            self.window_field = segment.window;
        }
        self.client_next = segment.sequence.wrapping_add(segment.sequence_len());
        let ack = segment.acknowledgment;
        if self.una.is_none() {
            self.una = Some(ack);
            return;
        }
        let mut selective = false;
        for run in segment.sacked() {
            selective = true;
            // What is not in what is under way is a repetition (RFC 2883), or nonsense, as what would be no hole is.
            let under_way = Range { start: ack, end: out.frontier };
            if run.common(under_way) == Some(run) && run.start != ack {
                self.scoreboard.add(run);
            }
        }
        if advance > 0 {
            self.acknowledged(now, ack, advance, out);
            if self.scoreboard.begins_at(ack) {
                // It had what comes next, and has it no more.
                self.take_all_for_lost(now, ack, out);
            }
        } else if duplicate || (selective && out.queued > 0) {
            self.duplicates += 1;
            self.note_arrival(out);
        }
        self.detect(now, out);
    }

    /// A duplicate acknowledgment of a client that does not tell what: one segment more has left the path.
    fn note_arrival(&mut self, out: Outstanding) {
        if self.selective {
            return;
        }
        let under_way = self.una.map_or(0, |una| out.frontier.wrapping_sub(una) as usize);
        if self.point.is_some() {
            self.arrived = (self.arrived + self.mss).min(under_way.saturating_sub(self.mss));
        }
    }

    /// New data is acknowledged.
    fn acknowledged(&mut self, now: Instant, ack: u32, advance: usize, out: Outstanding) {
        self.una = Some(ack);
        self.scoreboard.acknowledge(ack);
        self.duplicates = 0;
        self.backoff = 0;
        self.moved = now;
        self.probed = false;
        if let Some((end, sent)) = self.sample
            && !before(ack, end)
        {
            self.sample = None;
            self.congestion.sample(now.saturating_duration_since(sent));
        }
        // The target, not the window, was the limit: nothing was learnt about the path.
        let limited = out.queued + self.mss >= self.congestion.window() / 2;
        if self.recovered.is_some_and(|recovered| before(recovered, ack)) {
            self.recovered = None;
        }
        match self.point {
            Some(point) if before(ack, point) => {
                if !self.selective && self.lost_before.is_none() {
                    // Partial: what follows is the next that is lost. What is acknowledged now arrived before.
                    self.arrived = self.arrived.saturating_sub(advance.saturating_sub(self.mss));
                    self.start_round(now, ack);
                } else if before(self.resent, ack) {
                    self.resent = ack;
                }
                if !self.selective {
                    // Nothing else tells that what was sent again arrives.
                    self.round = now;
                }
                // After a timeout it begins again slowly.
                if self.lost_before.is_some() {
                    self.congestion.grow(now, advance);
                }
            }
            Some(point) => {
                self.point = None;
                self.lost_before = None;
                self.arrived = 0;
                self.recovered = (point == ack).then_some(point);
            }
            None if limited => self.congestion.grow(now, advance),
            None => {}
        }
    }

    /// Looks whether something is lost that was not before.
    fn detect(&mut self, now: Instant, out: Outstanding) {
        let Some(una) = self.una else { return };
        if self.point.is_none() {
            let duplicates = self.duplicates >= DUPLICATES && (self.selective || self.recovered != Some(una));
            if !duplicates && self.scoreboard.lost_before(self.mss).is_none() {
                return;
            }
            if !self.selective {
                self.arrived = DUPLICATES as usize * self.mss;
            }
            self.point = Some(out.frontier);
            self.congestion.reduce(now);
            self.sample = None;
            self.start_round(now, una);
        } else if before(una, self.resent) && now.saturating_duration_since(self.round) > self.repeat_after() {
            // The first hole was sent again a round trip ago and is still there: that was lost too.
            self.start_round(now, una);
        }
    }

    fn start_round(&mut self, now: Instant, una: u32) {
        self.resent = una;
        self.round = now;
        self.pass = now.checked_sub(MAXIMUM_RTO).unwrap_or(now);
    }

    /// Before which everything is lost that did not arrive.
    fn lost_edge(&self, una: u32) -> u32 {
        let first = una.wrapping_add(wrap(self.mss));
        let selective = self.scoreboard.lost_before(self.mss).unwrap_or(first);
        match self.lost_before {
            Some(all) if before(selective, all) => all,
            _ => selective,
        }
    }

    /// What is lost and was not sent again yet.
    fn lost(&self, una: u32, frontier: u32) -> Option<Range> {
        self.point?;
        let start = if before(self.resent, una) { una } else { self.resent };
        let range = Range { start, end: self.lost_edge(una) };
        range.common(Range { start: una, end: frontier })
    }

    /// What is to be sent again now, as far as the window allows.
    pub(crate) fn repeat(&mut self, now: Instant, out: Outstanding, wanted: &mut Wanted) {
        let Some(una) = self.una else { return };
        if std::mem::take(&mut self.probe) {
            let tail = out.frontier.wrapping_sub(wrap(self.mss));
            let start = if before(tail, una) { una } else { tail };
            if before(start, out.frontier) {
                wanted.push(Range { start, end: out.frontier });
            }
            return;
        }
        let Some(lost) = self.lost(una, out.frontier) else { return };
        if now < self.next_pass() {
            return;
        }
        let mut allowed = self.allowed(una, lost, out);
        let holes = self.scoreboard.holes(lost);
        for mut hole in holes.take(HOLES) {
            if hole.len() > allowed {
                hole.end = hole.start.wrapping_add(wrap(allowed));
            }
            if hole.len() == 0 {
                break;
            }
            allowed -= hole.len();
            self.resent = hole.end;
            wanted.push(hole);
        }
        if !wanted.is_empty() {
            self.pass = now;
            self.moved = now;
        }
    }

    /// Bytes of `lost` that may leave again: what the window has room for beside all that is still under way (`pipe` of
    /// RFC 6675).
    fn allowed(&self, una: u32, lost: Range, out: Outstanding) -> usize {
        let missing: usize = self.scoreboard.holes(lost).map(Range::len).sum();
        let unacknowledged = out.frontier.wrapping_sub(una) as usize;
        let pipe = unacknowledged.saturating_sub(self.scoreboard.bytes() + missing);
        let allowed = self.congestion.window().saturating_sub(pipe);
        if self.resent == una {
            // The first retransmission waits for nothing.
            allowed.max(self.mss)
        } else if allowed < self.mss.min(missing) {
            0
        } else {
            allowed
        }
    }

    fn next_pass(&self) -> Instant {
        let pause = self.congestion.round_trip.map_or(MINIMUM_PASS, |rtt| (rtt.smoothed / PASSES).max(MINIMUM_PASS));
        self.pass + pause
    }

    /// Looks whether a timer is due. Returns whether everything is taken for lost, whatever was to be repeated before.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: Outstanding) -> bool {
        if let Some(at) = self.probe_at(out)
            && now >= at
        {
            self.probe = true;
            self.probed = true;
        }
        let Some(una) = self.una else { return false };
        if self.timeout_at(out).is_none_or(|at| now < at) {
            return false;
        }
        self.backoff += 1;
        self.probe = false;
        self.take_all_for_lost(now, una, out);
        true
    }

    /// The client can be reached again after a silence: what went unanswered is taken for lost now and not when the next
    /// timeout is due, which may be a minute (RFC 6069 section 4). Returns whether there was anything.
    pub(crate) fn try_again(&mut self, now: Instant, out: Outstanding) -> bool {
        let Some(una) = self.una.filter(|_| self.backoff > 0 && self.timeout_at(out).is_some()) else { return false };
        self.backoff = 0;
        self.probe = false;
        self.take_all_for_lost(now, una, out);
        true
    }

    /// Everything under way is lost. What arrived behind a hole may have been thrown away since, RFC 2018 section 8.
    fn take_all_for_lost(&mut self, now: Instant, una: u32, out: Outstanding) {
        self.scoreboard = Scoreboard::default();
        self.arrived = 0;
        self.moved = now;
        self.sample = None;
        if self.point.is_none() {
            self.congestion.reduce(now);
        }
        self.congestion.restart();
        self.point = Some(out.frontier);
        self.lost_before = Some(out.frontier);
        self.start_round(now, una);
    }

    /// When [`handle_timeout`](Self::handle_timeout) or [`repeat`](Self::repeat) want to be called.
    pub(crate) fn deadline(&self, out: Outstanding) -> Option<Instant> {
        let timeout = self.timeout_at(out)?;
        let una = self.una?;
        // Without room the next acknowledgment makes it.
        let lost = self.lost(una, out.frontier).filter(|lost| self.allowed(una, *lost, out) > 0);
        let pass = lost.filter(|lost| self.scoreboard.holes(*lost).next().is_some()).map(|_| self.next_pass());
        [self.probe_at(out), pass].into_iter().flatten().fold(timeout, Instant::min).into()
    }

    fn timeout_at(&self, out: Outstanding) -> Option<Instant> {
        // A client that closed its window is probed by smoltcp.
        if out.queued == 0 || self.una.is_none() || self.window_field == 0 {
            return None;
        }
        let rtt = self.congestion.round_trip;
        let once = rtt.map_or(Duration::from_secs(1), |rtt| rtt.smoothed + 4 * rtt.variation);
        let factor = 1u32 << self.backoff.min(8);
        Some(self.moved + (once.max(MINIMUM_RTO) * factor).min(MAXIMUM_RTO))
    }

    fn probe_at(&self, out: Outstanding) -> Option<Instant> {
        let rtt = self.congestion.round_trip?;
        if self.probed || self.point.is_some() || out.queued == 0 || self.window_field == 0 {
            return None;
        }
        let patience = if out.queued <= self.mss { DELAYED_ACKNOWLEDGMENT } else { Duration::ZERO };
        Some(self.moved + (2 * rtt.smoothed).max(MINIMUM_PROBE) + patience)
    }

    /// The window field, and the sequence and acknowledgment number, of a segment the client might send now.
    pub(crate) fn echo(&self) -> Option<(u16, u32, u32)> {
        Some((self.window_field, self.client_next, self.una?))
    }

    /// The first unacknowledged sequence number.
    pub(crate) fn una(&self) -> Option<u32> {
        self.una
    }

    /// Whether the client's window is closed.
    pub(crate) fn is_shut(&self) -> bool {
        self.window_field == 0
    }

    fn repeat_after(&self) -> Duration {
        let rtt = self.congestion.round_trip;
        rtt.map_or(MINIMUM_RTO, |rtt| (rtt.smoothed + 4 * rtt.variation).max(MINIMUM_REPEAT))
    }
}

/// A length in sequence space. Rings are far smaller than it.
pub(super) fn wrap(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
