//! One direction of a path: latency, loss and reordering from a seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// A small generator of numbers that are the same in every run (splitmix64).
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True in `permille` of a thousand cases.
    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.next() % 1000 < permille
    }
}

/// Bytes a path carries in a microsecond unless told otherwise: 100 Mbit/s. Packets come one after another, as on any real path; all at once
/// they would be acknowledged all at once.
const BYTES_A_MICROSECOND: f64 = 12.5;

/// How a path treats packets.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    pub(crate) latency: Duration,
    /// Packets lost, in a thousand.
    pub(crate) loss: u64,
    /// Packets that take half as long again, in a thousand.
    pub(crate) reordered: u64,
}

/// A path with its packets under way.
pub(crate) struct Link {
    pub(crate) path: Path,
    pub(crate) bytes_a_microsecond: f64,
    /// Packets that are lost from now on, three of four.
    pub(crate) drops: usize,
    random: Random,
    under_way: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
    serial: u64,
    /// When the last packet has left.
    busy_until: Duration,
}

impl Link {
    pub(crate) fn new(path: Path, seed: u64) -> Self {
        Self {
            path,
            bytes_a_microsecond: BYTES_A_MICROSECOND,
            drops: 0,
            random: Random::new(seed),
            under_way: BinaryHeap::new(),
            serial: 0,
            busy_until: Duration::ZERO,
        }
    }

    pub(crate) fn send(&mut self, now: Duration, packet: Vec<u8>) {
        if self.random.chance(self.path.loss) {
            return;
        }
        if self.drops > 0 && self.random.chance(750) {
            self.drops -= 1;
            return;
        }
        let late = if self.random.chance(self.path.reordered) { self.path.latency / 2 } else { Duration::ZERO };
        self.serial += 1;
        let takes = Duration::from_micros((packet.len() as f64 / self.bytes_a_microsecond) as u64);
        self.busy_until = self.busy_until.max(now) + takes;
        self.under_way.push(Reverse((self.busy_until + self.path.latency + late, self.serial, packet)));
    }

    /// The next packet that has arrived by `now`.
    pub(crate) fn receive(&mut self, now: Duration) -> Option<Vec<u8>> {
        let Reverse((at, ..)) = self.under_way.peek()?;
        if *at > now {
            return None;
        }
        self.under_way.pop().map(|Reverse((_, _, packet))| packet)
    }

    pub(crate) fn next_arrival(&self) -> Option<Duration> {
        self.under_way.peek().map(|Reverse((at, ..))| *at)
    }
}
