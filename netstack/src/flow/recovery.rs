//! Congestion control and loss recovery towards the client, in front of smoltcp.
//!
//! smoltcp 0.14 alone does not live with loss: it takes a duplicate acknowledgment whose window moved (every one of
//! Linux's) for a window update and then waits for its retransmission timer, which is never under a second; and its
//! CUBIC cuts the window once for every lost segment of a window. So its congestion control is off. The window here
//! bounds what the ring may hold, and where a segment must go out again smoltcp is told in words it understands:
//! three acknowledgments that are the same to the letter (a *nudge*).
//!
//! Window: CUBIC, RFC 9438, from ten segments (RFC 6928), leaving slow start when the round trip grows (the delay test
//! of RFC 9406). Loss: by SACK as in RFC 6675 section 5, one segment a round trip as in RFC 6582; a retransmission
//! that is lost and a lost tail by a timer, RFC 6298 with the floor of 200 ms that Linux has.

use std::time::{Duration, Instant};

use crate::packet::TcpSegment;

/// Multiplicative decrease, RFC 9438 section 4.6.
const BETA: f64 = 0.7;
/// Aggressiveness of the cubic curve in segments a cubic second, RFC 9438 section 5.
const C: f64 = 0.4;
/// Slope of the Reno-friendly window, RFC 9438 section 4.3.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// Segments of the first window, RFC 6928.
const INITIAL_WINDOW: usize = 10;
/// Segments of the least window.
const MINIMUM_WINDOW: usize = 2;
/// Duplicate acknowledgments, or segments known to have arrived behind a hole, that make a hole a loss.
const DUPLICATES: u32 = 3;
/// Least retransmission timeout.
const MINIMUM_RTO: Duration = Duration::from_millis(200);
/// Largest retransmission timeout: from here on smoltcp's own is sooner.
const MAXIMUM_RTO: Duration = Duration::from_secs(60);
/// Least time after which a retransmission that changed nothing is taken for lost.
const MINIMUM_REPEAT: Duration = Duration::from_millis(10);
/// Growth of the round trip that ends slow start, RFC 9406 section 4.2.
const DELAY_THRESHOLD: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(16));
/// Samples in a row that must show it.
const DELAYED_SAMPLES: u32 = 8;

/// What is to be done with a segment of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Advice {
    /// smoltcp has nothing to learn from it, and would learn the wrong thing.
    pub(crate) swallow: bool,
    /// The first unacknowledged segment is to go out again.
    pub(crate) retransmit: bool,
}

/// Round trip time, RFC 6298 section 2.
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
    least: Duration,
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Recovery {
    mss: usize,
    /// First unacknowledged sequence number; `None` before the first acknowledgment.
    una: Option<u32>,
    /// Window field of the client's last segment.
    window_field: u16,
    /// Sequence number the client's next segment begins with.
    client_next: u32,
    cwnd: usize,
    ssthresh: usize,
    w_max: f64,
    w_est: f64,
    /// When the present stage of congestion avoidance began.
    stage: Option<Instant>,
    duplicates: u32,
    /// While losses of one window are mended: the end of that window.
    point: Option<u32>,
    /// When something was last retransmitted or acknowledged.
    moved: Instant,
    round_trip: Option<RoundTrip>,
    /// A sequence number and when it was handed to the ring.
    probe: Option<(u32, Instant)>,
    delayed: u32,
    backoff: u32,
}

impl Recovery {
    /// A connection whose segments carry at most `mss` bytes.
    pub(crate) fn new(now: Instant, mss: usize) -> Self {
        Self {
            mss,
            una: None,
            window_field: 0,
            client_next: 0,
            cwnd: INITIAL_WINDOW * mss,
            ssthresh: usize::MAX,
            w_max: 0.0,
            w_est: 0.0,
            stage: None,
            duplicates: 0,
            point: None,
            moved: now,
            round_trip: None,
            probe: None,
            delayed: 0,
            backoff: 0,
        }
    }

    /// How many bytes more the ring may take when it holds `queued`.
    pub(crate) fn room(&self, queued: usize) -> usize {
        self.cwnd.saturating_sub(queued)
    }

    /// Notes that the ring was filled to `queued` bytes.
    pub(crate) fn handle_queued(&mut self, now: Instant, before: usize, queued: usize) {
        if before == 0 {
            self.moved = now;
        }
        if let Some(una) = self.una
            && self.probe.is_none()
            && self.point.is_none()
        {
            self.probe = Some((una.wrapping_add(wrap(queued)), now));
        }
    }

    /// Takes a segment of the client, before smoltcp does. `queued`: bytes in the ring, all sent or to be sent.
    pub(crate) fn handle_segment(&mut self, now: Instant, segment: &TcpSegment<'_>, queued: usize) -> Advice {
        let nothing = Advice { swallow: false, retransmit: false };
        if !segment.ack || segment.syn || segment.rst {
            return nothing;
        }
        let same_window = segment.window == self.window_field;
        self.window_field = segment.window;
        self.client_next = segment.sequence.wrapping_add(segment.sequence_len());
        let Some(una) = self.una else {
            self.una = Some(segment.acknowledgment);
            return nothing;
        };
        let advance = segment.acknowledgment.wrapping_sub(una) as usize;
        if advance > 0 && advance <= queued + 1 {
            let retransmit = self.acknowledged(now, segment, advance, queued);
            return Advice { swallow: false, retransmit };
        }
        let Some(highest) = segment.highest_sacked() else { return nothing };
        if advance != 0 || queued == 0 {
            return nothing;
        }
        self.duplicates += 1;
        let arrived_behind = highest.wrapping_sub(una) as usize;
        let lost = self.duplicates >= DUPLICATES || arrived_behind > DUPLICATES as usize * self.mss;
        let retransmit = match self.point {
            None if lost => {
                self.point = Some(una.wrapping_add(wrap(queued)));
                self.reduce(now);
                true
            }
            // Later segments still arrive, but the retransmission does not: it was lost too.
            Some(_) => now.saturating_duration_since(self.moved) > self.repeat_after(),
            None => false,
        };
        if retransmit {
            self.moved = now;
        }
        let pure = segment.payload.is_empty() && !segment.fin;
        Advice { swallow: pure && same_window, retransmit }
    }

    /// New data is acknowledged. Returns whether the next segment is known to be lost as well.
    fn acknowledged(&mut self, now: Instant, segment: &TcpSegment<'_>, advance: usize, queued: usize) -> bool {
        let ack = segment.acknowledgment;
        self.una = Some(ack);
        self.duplicates = 0;
        self.backoff = 0;
        self.moved = now;
        if let Some((end, sent)) = self.probe
            && at_or_after(ack, end)
        {
            self.probe = None;
            self.sample(now.saturating_duration_since(sent));
        }
        match self.point {
            // A partial acknowledgment, RFC 6582 section 3.2: what follows is the next hole.
            Some(point) if !at_or_after(ack, point) => return true,
            Some(_) => self.point = None,
            None => self.grow(now, advance, queued),
        }
        false
    }

    /// Whether the timer says that the first unacknowledged segment must go out again. `queued`: bytes in the ring.
    pub(crate) fn handle_timeout(&mut self, now: Instant, queued: usize) -> bool {
        if self.deadline(queued).is_none_or(|deadline| now < deadline) {
            return false;
        }
        self.moved = now;
        self.probe = None;
        self.backoff += 1;
        if self.point.is_none() {
            self.point = self.una.map(|una| una.wrapping_add(wrap(queued)));
            self.reduce(now);
        }
        true
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub(crate) fn deadline(&self, queued: usize) -> Option<Instant> {
        // A client that closed its window is probed by smoltcp.
        if queued == 0 || self.una.is_none() || self.window_field == 0 {
            return None;
        }
        Some(self.moved + self.timeout())
    }

    /// The window field, and the sequence and acknowledgment number, of a segment the client might send now.
    pub(crate) fn echo(&self) -> Option<(u16, u32, u32)> {
        Some((self.window_field, self.client_next, self.una?))
    }

    /// The first unacknowledged sequence number.
    pub(crate) fn acknowledged_up_to(&self) -> Option<u32> {
        self.una
    }

    fn timeout(&self) -> Duration {
        let once = self.round_trip.map_or(Duration::from_secs(1), |rtt| rtt.smoothed + 4 * rtt.variation);
        let factor = 1u32 << self.backoff.min(8);
        (once.max(MINIMUM_RTO) * factor).min(MAXIMUM_RTO)
    }

    fn repeat_after(&self) -> Duration {
        self.round_trip.map_or(MINIMUM_RTO, |rtt| (rtt.smoothed + 4 * rtt.variation).max(MINIMUM_REPEAT))
    }

    fn sample(&mut self, took: Duration) {
        let Some(rtt) = &mut self.round_trip else {
            self.round_trip = Some(RoundTrip { smoothed: took, variation: took / 2, least: took });
            return;
        };
        rtt.variation = (3 * rtt.variation + rtt.smoothed.abs_diff(took)) / 4;
        rtt.smoothed = (7 * rtt.smoothed + took) / 8;
        rtt.least = rtt.least.min(took);
        if self.cwnd < self.ssthresh {
            let threshold = (rtt.least / 8).clamp(DELAY_THRESHOLD.0, DELAY_THRESHOLD.1);
            self.delayed = if took > rtt.least + threshold { self.delayed + 1 } else { 0 };
            if self.delayed >= DELAYED_SAMPLES {
                self.ssthresh = self.cwnd;
            }
        }
    }

    /// Loss: less from now on, RFC 9438 section 4.6 and 4.7.
    fn reduce(&mut self, now: Instant) {
        let window = self.cwnd as f64;
        self.w_max = if window < self.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        self.cwnd = self.at_least_minimum(window * BETA);
        self.ssthresh = self.cwnd;
        self.w_est = self.cwnd as f64;
        self.stage = Some(now);
        self.probe = None;
    }

    /// `acked` bytes arrived: more from now on, RFC 9438 section 4.2 to 4.4.
    fn grow(&mut self, now: Instant, acked: usize, queued: usize) {
        // The target, not the window, was the limit: nothing was learnt about the path.
        if queued + self.mss < self.cwnd / 2 {
            return;
        }
        if self.cwnd < self.ssthresh {
            self.cwnd += acked;
            return;
        }
        let mss = self.mss as f64;
        let window = self.cwnd as f64;
        let stage = *self.stage.get_or_insert_with(|| {
            self.w_max = window;
            self.w_est = window;
            now
        });
        let lookahead = self.round_trip.map_or(Duration::ZERO, |rtt| rtt.smoothed);
        let t = (now.saturating_duration_since(stage) + lookahead).as_secs_f64();
        let k = (self.w_max * (1.0 - BETA) / (C * mss)).max(0.0).cbrt();
        let target = (C * mss * (t - k).powi(3) + self.w_max).clamp(window, 1.5 * window);
        let slope = if self.w_est >= self.w_max { 1.0 } else { ALPHA };
        self.w_est += slope * mss * acked as f64 / window;
        let grown = window + (target - window) * acked as f64 / window;
        self.cwnd = self.at_least_minimum(grown.max(self.w_est));
    }

    fn at_least_minimum(&self, window: f64) -> usize {
        (window as usize).max(MINIMUM_WINDOW * self.mss)
    }
}

/// A length in sequence space. Rings are far smaller than it.
pub(super) fn wrap(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Whether `a` is not before `b`, RFC 9293 section 3.4.
fn at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() >= 0
}
