//! A range of local ports, and how devices share it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many ports of a range one dial tries by hand.
const MAX_PORT_TRIES: usize = 256;
/// How long Linux keeps the port of a connection that it closed first (`TCP_TIMEWAIT_LEN`).
const TIME_WAIT: Duration = Duration::from_secs(60);

/// The local ports an off-ramp may use.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) range: RangeInclusive<u16>,
    /// The kernel chooses within the range. It can only within its own range; outside of that it would ignore ours.
    pub(super) by_kernel: bool,
    next: AtomicU16,
    pub(super) shares: Arc<Shares>,
}

impl Ports {
    pub(super) fn new(range: RangeInclusive<u16>, kernel: Option<&RangeInclusive<u16>>) -> Self {
        let by_kernel = kernel.is_some_and(|kernel| kernel.contains(range.start()) && kernel.contains(range.end()));
        Self { next: AtomicU16::new(*range.start()), range, by_kernel, shares: Arc::default() }
    }

    /// The next port in turn.
    pub(super) fn next(&self) -> u16 {
        let after = |port| {
            if port >= *self.range.end() { *self.range.start() } else { port + 1 }
        };
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |port| Some(after(port)));
        taken.unwrap_or_else(|port| port)
    }

    /// How many ports there are.
    pub(super) fn len(&self) -> usize {
        self.range.len()
    }

    /// How many ports a dial may try.
    pub(super) fn tries(&self) -> usize {
        self.range.len().min(MAX_PORT_TRIES)
    }
}

/// A device, and the target towards which its ports are in use; `None`: towards any.
type Key = (Arc<str>, Option<SocketAddr>);

/// How many ports of a range each device has. Only flows that open and end by such an off-ramp come here, so the lock
/// is no packet's.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<InUse>);

#[derive(Debug, Default)]
struct InUse {
    ports: HashMap<Key, usize>,
    /// Ports in TIME-WAIT, with the end of it.
    resting: VecDeque<(Instant, Key)>,
}

impl InUse {
    fn give_back(&mut self, key: &Key) {
        if let Some(ports) = self.ports.get_mut(key) {
            *ports -= 1;
            if *ports == 0 {
                self.ports.remove(key);
            }
        }
    }
}

impl Shares {
    /// Takes one of `range` ports towards a target for a device, which leaves a third of them to others. `None`: it has
    /// its share.
    pub(super) fn take(
        self: &Arc<Self>,
        now: Instant,
        device: &Arc<str>,
        towards: Option<SocketAddr>,
        range: usize,
    ) -> Option<PortShare> {
        let mut in_use = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while in_use.resting.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, key)) = in_use.resting.pop_front() {
                in_use.give_back(&key);
            }
        }
        let key = (Arc::clone(device), towards);
        let ports = in_use.ports.entry(key.clone()).or_default();
        if *ports >= (range * 2 / 3).max(1) {
            return None;
        }
        *ports += 1;
        Some(PortShare { shares: Arc::clone(self), key, rests_until: None })
    }
}

/// One port that a flow has of an off-ramp's range. Given back when it is dropped, or after TIME-WAIT.
#[derive(Debug)]
pub(crate) struct PortShare {
    shares: Arc<Shares>,
    key: Key,
    rests_until: Option<Instant>,
}

impl PortShare {
    /// The connection is closed and the kernel keeps its port.
    pub(crate) fn rest(&mut self, now: Instant) {
        self.rests_until = self.key.1.map(|_| now + TIME_WAIT);
    }
}

impl Drop for PortShare {
    fn drop(&mut self) {
        let mut in_use = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        match self.rests_until {
            Some(until) => in_use.resting.push_back((until, self.key.clone())),
            None => in_use.give_back(&self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 20, 0, 1], port)))
    }

    #[test]
    fn a_device_leaves_a_third_of_the_ports_to_others() {
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let (shares, now) = (Arc::new(Shares::default()), Instant::now());
        let take = |device, to| shares.take(now, device, to, 9);
        let mut of_ann: Vec<_> = (0..6).map(|_| take(&ann, target(1)).unwrap()).collect();
        assert!(take(&ann, target(1)).is_none());
        assert!(take(&ann, target(2)).is_some(), "a port serves another target as well");
        assert!(take(&bob, target(1)).is_some());
        of_ann.pop();
        assert!(take(&ann, target(1)).is_some());
        drop(of_ann);
        assert!(shares.0.lock().unwrap().ports.is_empty());
        assert!(shares.take(now, &ann, None, 1).is_some(), "a range of one is somebody's");
    }

    #[test]
    fn a_port_in_time_wait_is_still_the_device_s() {
        let ann: Arc<str> = "ann".into();
        let (shares, now) = (Arc::new(Shares::default()), Instant::now());
        for _ in 0..2 {
            shares.take(now, &ann, target(1), 3).unwrap().rest(now);
        }
        assert!(shares.take(now + TIME_WAIT / 2, &ann, target(1), 3).is_none());
        assert!(shares.take(now + TIME_WAIT, &ann, target(1), 3).is_some());
        let in_use = shares.0.lock().unwrap();
        assert!(in_use.ports.is_empty() && in_use.resting.is_empty());
    }
}
