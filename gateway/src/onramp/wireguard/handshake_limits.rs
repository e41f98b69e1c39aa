//! How many handshakes are worked on: for one source address, for one peer, and in all.
//!
//! A handshake message comes here once its first MAC holds and, under load, its cookie. What a message costs is counted in
//! scalar multiplications, which are nearly all of it: a stranger's initiation costs one until its key is known, a
//! peer's costs some more. Sources that have asked for nothing lately may use all of what there is, the others leave
//! a part of it: so a newcomer gets in while others that are answered too ask as often as they may.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Handshake messages of one source address. An IPv6 source is its /64, which is what one customer has.
pub const SOURCE: Rate = Rate { per_second: 20, burst: 5 };
/// Handshakes answered for one peer.
pub const PEER: Rate = Rate { per_second: 50, burst: 5 };
/// Scalar multiplications for handshakes, of all shards. One takes 30 to 40 µs, so this is under a quarter of a core,
/// and nearly 1,000 handshakes answered in a second.
pub const WORK: Rate = Rate { per_second: 6_000, burst: 600 };

/// What is done for an initiation before the peer is known, and once more before it is known not to be a replay.
pub(super) const OPEN: u32 = 1;
/// What is done for a good initiation after the peer is known, with the tables of a new one.
pub(super) const ANSWER: u32 = 5;
/// What is done for a response to an initiation of ours.
pub(super) const FINISH: u32 = 2;
/// The part of the work only sources may use that have asked for nothing lately: one in this many.
const RESERVE: u32 = 3;

/// Sources are kept in sets of this many, by their hash; the fullest bucket of a set makes room.
const WAYS: usize = 8;
/// Sets of sources.
const SETS: usize = 1_024;
/// Most sources that are remembered at once.
pub const MAX_SOURCES: usize = SETS * WAYS;

/// So many in a second for long, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In a second.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

impl Rate {
    /// How long `tokens` take to come.
    fn time_for(self, tokens: u32) -> Duration {
        Duration::from_secs(1) * tokens / self.per_second.max(1)
    }
}

/// A token bucket, full when new.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    /// When it will be full again; in the past when it is.
    full_at: Option<Instant>,
}

impl Bucket {
    /// How long it takes to be full.
    fn missing(self, now: Instant) -> Duration {
        self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Whether it holds `tokens`.
    pub fn holds(self, now: Instant, rate: Rate, tokens: u32) -> bool {
        self.missing(now) + rate.time_for(tokens) <= rate.time_for(rate.burst)
    }

    /// Takes `tokens`, whether or not it holds so many: what it owes comes off what will come.
    pub fn take(&mut self, now: Instant, rate: Rate, tokens: u32) {
        self.full_at = now.checked_add(self.missing(now) + rate.time_for(tokens));
    }
}

/// A limit on handshakes. The word is a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeLimit {
    /// [`SOURCE`].
    Source,
    /// [`PEER`].
    Peer,
    /// [`WORK`].
    Work,
}

impl HandshakeLimit {
    /// Every limit.
    pub const ALL: [Self; 3] = [Self::Source, Self::Peer, Self::Work];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Peer => "peer",
            Self::Work => "work",
        }
    }

    /// Position in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What all shards share. Its memory is of one size, whoever asks.
#[derive(Debug)]
pub struct HandshakeLimits {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    work: Bucket,
    sources: Sources,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { state: Mutex::new(State { work: Bucket::default(), sources: Sources::new() }) }
    }
}

impl HandshakeLimits {
    /// Asks for one handshake message of `source`, whose address is in its [canonical form](IpAddr::to_canonical).
    ///
    /// # Errors
    /// The limit it is over.
    pub fn admit(&self, now: Instant, source: IpAddr) -> Result<(), HandshakeLimit> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { work, sources } = &mut *state;
        let slot = sources.slot(now, source);
        if !slot.bucket.holds(now, SOURCE, 1) {
            return Err(HandshakeLimit::Source);
        }
        let newcomer = slot.bucket.missing(now).is_zero();
        // Who is refused for want of work has asked all the same: he is no newcomer the next moment.
        slot.bucket.take(now, SOURCE, 1);
        let left_alone = if newcomer { 0 } else { WORK.burst / RESERVE };
        if !work.holds(now, WORK, OPEN + left_alone) {
            return Err(HandshakeLimit::Work);
        }
        work.take(now, WORK, OPEN);
        Ok(())
    }

    /// Notes work done for a message that was admitted.
    pub fn spend(&self, now: Instant, multiplications: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.work.take(now, WORK, multiplications);
    }
}

/// A bucket with the hash of its source. A bucket that is full again is as good as none.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    source: u64,
    bucket: Bucket,
}

/// The buckets of sources. The hash is keyed: nobody knows whom he shares a set with.
#[derive(Debug)]
struct Sources {
    hasher: RandomState,
    sets: Box<[[Slot; WAYS]]>,
    /// Lent when there are no sets at all, which never happens.
    spare: Slot,
}

impl Sources {
    fn new() -> Self {
        let sets = vec![[Slot::default(); WAYS]; SETS].into_boxed_slice();
        Self { hasher: RandomState::new(), sets, spare: Slot::default() }
    }

    /// The slot of `source`: the one it has, or the fullest of its set, with a full bucket.
    fn slot(&mut self, now: Instant, source: IpAddr) -> &mut Slot {
        let hash = self.hasher.hash_one(prefix(source));
        let set = usize::try_from(hash).unwrap_or(usize::MAX) % SETS;
        let Some(set) = self.sets.get_mut(set) else { return &mut self.spare };
        let kept = set.iter().position(|slot| slot.source == hash);
        let place = kept.or_else(|| (0..WAYS).min_by_key(|&way| set.get(way).map(|slot| slot.bucket.missing(now))));
        let Some(slot) = place.and_then(|place| set.get_mut(place)) else { return &mut self.spare };
        if slot.source != hash {
            *slot = Slot { source: hash, bucket: Bucket::default() };
        }
        slot
    }
}

/// What counts as one source.
fn prefix(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn v4(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    /// How many of `tries` in each millisecond of `time` are admitted.
    fn admitted(
        limits: &HandshakeLimits,
        from: Instant,
        time: Duration,
        tries: impl Fn(u128) -> Vec<IpAddr>,
    ) -> (usize, usize) {
        let mut counts = (0, 0);
        for ms in 0..time.as_millis() {
            let now = from + Duration::from_millis(ms as u64);
            for source in tries(ms) {
                match limits.admit(now, source) {
                    Ok(()) => counts.0 += 1,
                    Err(_) => counts.1 += 1,
                }
            }
        }
        counts
    }

    #[test]
    fn t04_a_source_has_its_burst_and_then_its_rate() {
        let (limits, start) = (HandshakeLimits::default(), Instant::now());
        for _ in 0..SOURCE.burst {
            assert_eq!(limits.admit(start, v4(1)), Ok(()));
        }
        assert_eq!(limits.admit(start, v4(1)), Err(HandshakeLimit::Source));
        assert_eq!(limits.admit(start, v4(2)), Ok(()), "another one is not touched");
        let (passed, refused) = admitted(&limits, start + SECOND, 10 * SECOND, |_| vec![v4(1)]);
        assert!((200..=206).contains(&passed), "{passed} in ten seconds");
        assert_eq!(passed + refused, 10_000);
    }

    #[test]
    fn t04_a_source_in_ipv6_is_a_64() {
        let (limits, now) = (HandshakeLimits::default(), Instant::now());
        let host = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, n, n, n, n]);
        for n in 0..5 {
            assert_eq!(limits.admit(now, host(n)), Ok(()));
        }
        assert_eq!(limits.admit(now, host(77)), Err(HandshakeLimit::Source));
        assert_eq!(limits.admit(now, "2001:db8:0:2::1".parse().unwrap()), Ok(()));
    }

    #[test]
    fn t04_all_together_have_their_share_of_a_core_and_a_newcomer_gets_in() {
        let (limits, start) = (HandshakeLimits::default(), Instant::now());
        // 1,000 sources that answer cookies, each every 10 ms.
        let flood = |ms: u128| (0..100).map(|n| v4((ms as u32 % 10) * 100 + n)).collect();
        let (passed, refused) = admitted(&limits, start, 10 * SECOND, flood);
        assert!(refused > 0 && passed as u32 <= 10 * WORK.per_second + WORK.burst + 10, "{passed}");
        assert!(passed as u32 >= 9 * WORK.per_second, "{passed}: nothing is refused while there is room");
        let now = start + 10 * SECOND;
        // They take what they may.
        let hurried: Vec<_> = (0..1_000).map(|n| limits.admit(now, v4(n))).collect();
        assert!(hurried.contains(&Err(HandshakeLimit::Work)));
        for newcomer in 2_000..2_050 {
            assert_eq!(limits.admit(now, v4(newcomer)), Ok(()));
        }
    }

    #[test]
    fn t04_what_is_answered_counts_for_more() {
        let (limits, start) = (HandshakeLimits::default(), Instant::now());
        let mut answered = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            // Each source comes once: only the work limits them.
            if limits.admit(now, v4(ms as u32)).is_ok() {
                limits.spend(now, ANSWER);
                answered += 1;
            }
            if limits.admit(now, v4(1_000_000 + ms as u32)).is_ok() {
                limits.spend(now, ANSWER);
                answered += 1;
            }
        }
        assert!((9_900..=10_200).contains(&answered), "{answered} in ten seconds");
    }

    #[test]
    fn t04_sources_without_end_take_no_more_memory() {
        let (limits, start) = (HandshakeLimits::default(), Instant::now());
        let mut passed = 0;
        for number in 0..1_000_000 {
            let now = start + Duration::from_micros(u64::from(number) * 100);
            passed += u32::from(limits.admit(now, v4(number)).is_ok());
        }
        // Durations are whole nanoseconds.
        assert!(passed <= 100 * WORK.per_second + WORK.burst + 10, "{passed}");
        let state = limits.state.lock().unwrap();
        assert_eq!(state.sources.sets.len() * WAYS, MAX_SOURCES);
        assert!(size_of_val(&*state.sources.sets) <= 256 << 10);
    }

    #[test]
    fn t04_the_fullest_bucket_makes_room() {
        let (mut sources, now) = (Sources::new(), Instant::now());
        // One that is used up stays while there are fuller ones to forget.
        sources.slot(now, v4(0)).bucket.take(now, SOURCE, 5);
        for number in 1..4 * MAX_SOURCES as u32 {
            sources.slot(now, v4(number)).bucket.take(now, SOURCE, 1);
        }
        assert!(!sources.slot(now, v4(0)).bucket.holds(now, SOURCE, 1));
    }

    #[test]
    fn t04_a_bucket_that_owes_pays_first() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        bucket.take(now, PEER, 55);
        assert!(!bucket.holds(now + Duration::from_millis(999), PEER, 1));
        assert!(bucket.holds(now + Duration::from_millis(1020), PEER, 1));
        assert!(bucket.holds(now + 3600 * SECOND, PEER, PEER.burst));
        assert!(!bucket.holds(now + 3600 * SECOND, PEER, PEER.burst + 1));
    }
}
