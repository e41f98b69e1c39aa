//! How often a client is answered with packets of our own making: resets for segments of no flow, ICMP errors, challenges.
//!
//! None of them costs a destination anything, but a client that causes them without end would have the gateway work for
//! nothing (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f), RFC 5961 section 7). Echo requests are limited in the
//! same way: each becomes one towards the target.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::tuple::IngressId;

/// Addresses with a bucket of their own. Beyond, those that were silent make way, and else all share one.
pub(crate) const MAX_BUCKETS: usize = 4096;

/// A rate and what may come at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

/// Our own answers to one address.
pub(crate) const ANSWERS: Rate = Rate { per_second: 200, burst: 400 };
/// Echo requests of one address.
pub(crate) const ECHOES: Rate = Rate { per_second: 1000, burst: 1000 };

/// A bucket for each address of each on-ramp.
#[derive(Debug)]
pub(crate) struct Buckets {
    rate: Rate,
    buckets: HashMap<(IngressId, IpAddr), Bucket>,
    shared: Option<Bucket>,
}

/// A bucket that is empty until an instant: the time it takes to fill is what was taken out (GCRA, ITU-T I.371).
#[derive(Debug, Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

impl Buckets {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new(), shared: None }
    }

    /// Takes one out of the bucket of an address. `false`: there is none in it.
    pub(crate) fn take(&mut self, now: Instant, from: IngressId, address: IpAddr) -> bool {
        let key = (from, address);
        if !self.buckets.contains_key(&key) && self.buckets.len() >= MAX_BUCKETS {
            self.buckets.retain(|_, bucket| bucket.full_at > now);
        }
        let bucket = if self.buckets.len() < MAX_BUCKETS || self.buckets.contains_key(&key) {
            self.buckets.entry(key).or_insert(Bucket { full_at: now })
        } else {
            self.shared.get_or_insert(Bucket { full_at: now })
        };
        bucket.take(now, self.rate)
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let each = Duration::from_secs(1) / rate.per_second.max(1);
        let full_at = self.full_at.max(now) + each;
        let allowed = full_at.saturating_duration_since(now) <= each * rate.burst;
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 20 };

    #[expect(clippy::disallowed_methods, reason = "any instant will do to begin with")]
    fn begin() -> Instant {
        Instant::now()
    }

    fn client(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    fn taken(buckets: &mut Buckets, now: Instant, client: IpAddr, tries: usize) -> usize {
        (0..tries).filter(|_| buckets.take(now, IngressId(1), client)).count()
    }

    #[test]
    fn a_burst_then_the_rate_for_each_address() {
        let mut now = begin();
        let mut buckets = Buckets::new(RATE);
        assert_eq!(taken(&mut buckets, now, client(1), 1000), 20);
        assert_eq!(taken(&mut buckets, now, client(2), 1000), 20, "another has its own");
        for _ in 0..10 {
            now += Duration::from_secs(1);
            assert_eq!(taken(&mut buckets, now, client(1), 1000), 10);
        }
        now += Duration::from_secs(3600);
        assert_eq!(taken(&mut buckets, now, client(1), 1000), 20, "no more than a burst is saved up");
    }

    #[test]
    fn addresses_without_end_cost_no_memory() {
        let mut now = begin();
        let mut buckets = Buckets::new(RATE);
        for number in 0..3 * u32::try_from(MAX_BUCKETS).unwrap() {
            buckets.take(now, IngressId(0), client(number));
            assert!(buckets.buckets.len() <= MAX_BUCKETS);
        }
        let newcomers = (0..1000).filter(|number| buckets.take(now, IngressId(0), client(1 << 30 | number))).count();
        assert_eq!(newcomers, 0, "those who come when it is full share a bucket, which is empty by now");
        now += Duration::from_secs(1);
        assert_eq!(taken(&mut buckets, now, client(1 << 31), 1000), 20, "the silent ones made way");
        assert_eq!(buckets.buckets.len(), 1);
    }
}
