//! How much may be under way to a client: CUBIC, RFC 9438, from ten segments (RFC 6928), leaving slow start when the
//! round trip grows (the delay test of RFC 9406).

use std::time::{Duration, Instant};

/// Multiplicative decrease, RFC 9438 section 4.6.
const BETA: f64 = 0.7;
/// Aggressiveness of the cubic curve in segments a cubic second, RFC 9438 section 5.
const C: f64 = 0.4;
/// Slope of the Reno-friendly window, RFC 9438 section 4.3.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// Segments of the first window, RFC 6928.
const INITIAL_WINDOW: usize = 10;
/// Segments of the least window, and of the one after a timeout.
const MINIMUM_WINDOW: usize = 2;
/// Growth of the round trip that ends slow start, RFC 9406 section 4.2.
const DELAY_THRESHOLD: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(16));
/// Samples in a row that must show it.
const DELAYED_SAMPLES: u32 = 8;

/// Round trip time, RFC 6298 section 2.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundTrip {
    pub(super) smoothed: Duration,
    pub(super) variation: Duration,
    least: Duration,
}

/// The window of one connection.
#[derive(Debug)]
pub(super) struct Congestion {
    mss: usize,
    window: usize,
    ssthresh: usize,
    w_max: f64,
    w_est: f64,
    /// When the present stage of congestion avoidance began.
    stage: Option<Instant>,
    pub(super) round_trip: Option<RoundTrip>,
    delayed: u32,
}

impl Congestion {
    pub(super) fn new(mss: usize) -> Self {
        Self {
            mss,
            window: INITIAL_WINDOW * mss,
            ssthresh: usize::MAX,
            w_max: 0.0,
            w_est: 0.0,
            stage: None,
            round_trip: None,
            delayed: 0,
        }
    }

    /// Bytes that may be under way.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// A round trip took so long.
    pub(super) fn sample(&mut self, took: Duration) {
        let Some(rtt) = &mut self.round_trip else {
            self.round_trip = Some(RoundTrip { smoothed: took, variation: took / 2, least: took });
            return;
        };
        rtt.variation = (3 * rtt.variation + rtt.smoothed.abs_diff(took)) / 4;
        rtt.smoothed = (7 * rtt.smoothed + took) / 8;
        rtt.least = rtt.least.min(took);
        if self.window < self.ssthresh {
            let threshold = (rtt.least / 8).clamp(DELAY_THRESHOLD.0, DELAY_THRESHOLD.1);
            self.delayed = if took > rtt.least + threshold { self.delayed + 1 } else { 0 };
            if self.delayed >= DELAYED_SAMPLES {
                self.ssthresh = self.window;
            }
        }
    }

    /// Loss: less from now on, RFC 9438 section 4.6 and 4.7.
    pub(super) fn reduce(&mut self, now: Instant) {
        let window = self.window as f64;
        self.w_max = if window < self.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        self.window = self.at_least_minimum(window * BETA);
        self.ssthresh = self.window;
        self.w_est = self.window as f64;
        self.stage = Some(now);
    }

    /// Nothing comes back: from the beginning, RFC 5681 section 3.1.
    pub(super) fn restart(&mut self) {
        self.window = MINIMUM_WINDOW * self.mss;
        self.stage = None;
    }

    /// `acked` bytes arrived: more from now on, RFC 9438 section 4.2 to 4.4.
    pub(super) fn grow(&mut self, now: Instant, acked: usize) {
        if self.window < self.ssthresh {
            self.window += acked;
            return;
        }
        let mss = self.mss as f64;
        let window = self.window as f64;
        let stage = *self.stage.get_or_insert_with(|| {
            self.w_max = self.w_max.max(window);
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
        self.window = self.at_least_minimum(grown.max(self.w_est));
    }

    fn at_least_minimum(&self, window: f64) -> usize {
        (window as usize).max(MINIMUM_WINDOW * self.mss)
    }
}
