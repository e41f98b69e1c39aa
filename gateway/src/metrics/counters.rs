//! Counters of a shard: one writer, read by a scrape at any time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use portcullis_netstack::DropReason;

use crate::flow_record::FlowEnd;
use crate::limits::LimitName;
use crate::onramp::wireguard::handshake_limits::HandshakeLimit;

/// A number with one writer. An addition is a plain load and store, never an atomic read-modify-write.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning shard may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets the value of a gauge.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds in seconds of the dial time histogram.
pub const DIAL_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// A histogram with one writer.
#[derive(Debug, Default)]
pub struct DialHistogram {
    buckets: [Counter; DIAL_BUCKETS.len()],
    count: Counter,
    sum_us: Counter,
}

impl DialHistogram {
    /// Counts one dial.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(DIAL_BUCKETS) {
            if seconds <= bound {
                bucket.add(1);
                break;
            }
        }
        self.count.add(1);
        self.sum_us.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Not cumulative: each bucket's own count with its bound, the total count, the sum in seconds.
    pub fn read(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let buckets = DIAL_BUCKETS.iter().zip(&self.buckets).map(|(b, c)| (*b, c.value())).collect();
        (buckets, self.count.value(), self.sum_us.value() as f64 / 1e6)
    }
}

/// Everything one shard counts.
#[derive(Debug, Default)]
pub struct ShardCounters {
    /// Packets and datagrams dropped, by [`DropReason::index`].
    pub dropped: [Counter; DropReason::ALL.len()],
    /// Flows opened (allowed and established).
    pub flows_opened: Counter,
    /// Flows ended, by position in [`FlowEnd::ALL`].
    pub flows_ended: [Counter; FlowEnd::ALL.len()],
    /// Flows refused or ended by a limit, and flows whose buffers were not let grow, by [`LimitName::index`].
    pub limits_reached: [Counter; LimitName::ALL.len()],
    /// Gauge: open flows.
    pub flows_open: Counter,
    /// Verdicts that allowed.
    pub allowed: Counter,
    /// Verdicts that denied.
    pub denied: Counter,
    /// Payload bytes from clients.
    pub bytes_up: Counter,
    /// Payload bytes to clients.
    pub bytes_down: Counter,
    /// Dial time.
    pub dial: DialHistogram,
    /// WireGuard handshakes completed: the new session has brought a datagram.
    pub handshakes: Counter,
    /// WireGuard handshakes refused (unknown key, disabled device, limits, bad MAC).
    pub handshakes_refused: Counter,
    /// WireGuard handshake messages over a limit, by [`HandshakeLimit::index`].
    pub handshakes_limited: [Counter; HandshakeLimit::ALL.len()],
    /// Cookie replies sent.
    pub cookie_replies: Counter,
    /// Flow records lost because the log could not keep up.
    pub records_lost: Counter,
    /// Gauge: policy revision in force in this shard (after its pass over live flows).
    pub revision: Counter,
}

impl ShardCounters {
    /// Counts one dropped packet.
    #[inline]
    pub fn drop_packet(&self, reason: DropReason) {
        if let Some(counter) = self.dropped.get(reason.index()) {
            counter.add(1);
        }
    }

    /// Counts something that a limit did not allow.
    #[inline]
    pub fn limit_reached(&self, limit: LimitName) {
        if let Some(counter) = self.limits_reached.get(limit.index()) {
            counter.add(1);
        }
    }

    /// Counts the end of a flow.
    pub fn flow_ended(&self, end: FlowEnd) {
        if let Some(counter) = FlowEnd::ALL.iter().position(|e| *e == end).and_then(|i| self.flows_ended.get(i)) {
            counter.add(1);
        }
    }
}
