//! How many handshakes are worked on: for one source address, for one peer, and in all.
//!
//! A handshake message comes here once its first MAC holds. With a good cookie its source is *proven*; without, anybody
//! may have written the address on it, so that it is worked on while there are few, and answered with a cookie else:
//! the address it names loses nothing by it. What a message costs is counted in scalar multiplications, which are
//! nearly all of it: a stranger's initiation costs one until its key is known, a peer's costs some more. A part of the
//! work is left to proven sources that have not asked lately, so that a newcomer gets in while others that answer
//! cookies too ask as often as they may.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Handshake messages of one source address, as many again without proof. An IPv6 source is its /64, which is what one
/// customer has.
pub const SOURCE: Rate = Rate { per_second: 20, burst: 5 };
/// Handshake messages without proof of their source, from all. So many clients may come back at once, after a restart.
pub const UNPROVEN: Rate = Rate { per_second: 200, burst: 1_000 };
/// Handshakes answered for one peer.
pub const PEER: Rate = Rate { per_second: 50, burst: 5 };
/// Scalar multiplications for handshakes, of all shards. One takes 30 to 40 µs, so this is a sixth of a core, and with
/// the cookies for those who must prove their source first about a quarter; 660 handshakes are answered in a second.
pub const WORK: Rate = Rate { per_second: 4_000, burst: 4_000 };

/// What is done for an initiation before the peer is known, and once more before it is known not to be a replay.
pub(super) const OPEN: u32 = 1;
/// What is done for a good initiation after the peer is known, with the tables of a new one.
pub(super) const ANSWER: u32 = 5;
/// What is done for a response to an initiation of ours.
pub(super) const FINISH: u32 = 2;
/// The part of the work that is left to newcomers: one in this many.
const RESERVE: u32 = 3;
/// A proven source is a newcomer when it has not asked for this long. Clients ask again after five seconds.
const NEWCOMER: Duration = Duration::from_secs(4);

/// Sources are kept in sets of this many, by their hash; the one that has not asked for longest makes room.
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
    /// [`UNPROVEN`].
    Unproven,
    /// [`SOURCE`].
    Source,
    /// [`PEER`].
    Peer,
    /// [`WORK`].
    Work,
}

impl HandshakeLimit {
    /// Every limit.
    pub const ALL: [Self; 4] = [Self::Unproven, Self::Source, Self::Peer, Self::Work];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
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

/// Whether a message carries a cookie that was sent to its source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// It does.
    Proven,
    /// It does not.
    Unproven,
}

/// What all shards share. Its memory is of one size, whoever asks.
#[derive(Debug)]
pub struct HandshakeLimits {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    work: Bucket,
    unproven: Bucket,
    sources: Sources,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self {
            state: Mutex::new(State { work: Bucket::default(), unproven: Bucket::default(), sources: Sources::new() }),
        }
    }
}

impl HandshakeLimits {
    /// Asks for one handshake message of an address in its [canonical form](IpAddr::to_canonical).
    ///
    /// # Errors
    /// The limit it is over.
    pub fn admit(&self, now: Instant, address: IpAddr, source: Source) -> Result<(), HandshakeLimit> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { work, unproven, sources } = &mut *state;
        let slot = sources.slot(address, source);
        let lately = slot.asked_at.is_some_and(|at| now.saturating_duration_since(at) < NEWCOMER);
        // Who is refused has asked all the same: he is no newcomer the next moment.
        slot.asked_at = Some(now);
        if !slot.bucket.holds(now, SOURCE, 1) {
            return Err(HandshakeLimit::Source);
        }
        let newcomer = match source {
            Source::Proven => !lately,
            Source::Unproven if !unproven.holds(now, UNPROVEN, 1) => return Err(HandshakeLimit::Unproven),
            Source::Unproven => false,
        };
        let left_alone = if newcomer { 0 } else { WORK.burst / RESERVE };
        if !work.holds(now, WORK, OPEN + left_alone) {
            return Err(HandshakeLimit::Work);
        }
        slot.bucket.take(now, SOURCE, 1);
        if source == Source::Unproven {
            unproven.take(now, UNPROVEN, 1);
        }
        work.take(now, WORK, OPEN);
        Ok(())
    }

    /// Whether all the work may be done that may be done at once.
    #[cfg(test)]
    pub(super) fn owes_nothing(&self, now: Instant) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).work.holds(now, WORK, WORK.burst)
    }

    /// Notes work done for a message that was admitted.
    pub fn spend(&self, now: Instant, multiplications: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.work.take(now, WORK, multiplications);
    }
}

/// A source by its hash.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    hash: u64,
    bucket: Bucket,
    /// When it asked last.
    asked_at: Option<Instant>,
}

/// The sources that asked last. The hash is keyed: nobody knows whom he shares a set with.
#[derive(Debug)]
struct Sources {
    hasher: RandomState,
    sets: Box<[[Slot; WAYS]; SETS]>,
}

impl Sources {
    fn new() -> Self {
        Self { hasher: RandomState::new(), sets: Box::new([[Slot::default(); WAYS]; SETS]) }
    }

    /// The slot of a source: the one it has, or that of the one in its set that has not asked for longest.
    fn slot(&mut self, address: IpAddr, source: Source) -> &mut Slot {
        let hash = self.hasher.hash_one((prefix(address), source));
        let set = usize::try_from(hash).unwrap_or_default() % SETS;
        #[expect(clippy::indexing_slicing, reason = "it is a remainder")]
        let set = &mut self.sets[set];
        let kept = set.iter().position(|slot| slot.hash == hash);
        let oldest = || set.iter().enumerate().min_by_key(|(_, slot)| slot.asked_at).map(|(way, _)| way);
        let way = kept.or_else(oldest).unwrap_or_default();
        #[expect(clippy::indexing_slicing, reason = "it was found there")]
        let slot = &mut set[way];
        if slot.hash != hash {
            *slot = Slot { hash, ..Slot::default() };
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

    /// How many of `tries`, all proven, in each millisecond of `time` are admitted, and how many are not.
    fn admitted(
        limits: &HandshakeLimits,
        from: Instant,
        time: Duration,
        tries: impl Fn(u32) -> Vec<IpAddr>,
    ) -> (u32, u32) {
        let mut counts = (0, 0);
        for ms in 0..time.as_millis() as u32 {
            let now = from + Duration::from_millis(ms.into());
            for source in tries(ms) {
                match limits.admit(now, source, Source::Proven) {
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
            assert_eq!(limits.admit(start, v4(1), Source::Proven), Ok(()));
        }
        assert_eq!(limits.admit(start, v4(1), Source::Proven), Err(HandshakeLimit::Source));
        assert_eq!(limits.admit(start, v4(2), Source::Proven), Ok(()), "another one is not touched");
        let (passed, refused) = admitted(&limits, start + SECOND, 10 * SECOND, |_| vec![v4(1)]);
        assert!((200..=206).contains(&passed), "{passed} in ten seconds");
        assert_eq!(passed + refused, 10_000);
    }

    #[test]
    fn t04_a_source_in_ipv6_is_a_64() {
        let (limits, now) = (HandshakeLimits::default(), Instant::now());
        let host = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, n, n, n, n]);
        for n in 0..5 {
            assert_eq!(limits.admit(now, host(n), Source::Proven), Ok(()));
        }
        assert_eq!(limits.admit(now, host(77), Source::Proven), Err(HandshakeLimit::Source));
        assert_eq!(limits.admit(now, "2001:db8:0:2::1".parse().unwrap(), Source::Proven), Ok(()));
    }

    #[test]
    fn t04_who_is_named_on_forged_messages_loses_nothing() {
        let (limits, now) = (HandshakeLimits::default(), Instant::now());
        let forged = (0..100).filter(|_| limits.admit(now, v4(1), Source::Unproven).is_ok()).count();
        assert_eq!(forged, SOURCE.burst as usize);
        for _ in 0..SOURCE.burst {
            assert_eq!(limits.admit(now, v4(1), Source::Proven), Ok(()));
        }
    }

    #[test]
    fn t04_messages_without_proof_are_few() {
        let (limits, now) = (HandshakeLimits::default(), Instant::now());
        let of =
            |from: u32| (from..from + 1_000).map(|n| limits.admit(now, v4(n), Source::Unproven)).collect::<Vec<_>>();
        let first = of(0);
        assert_eq!(first.iter().filter(|admitted| admitted.is_ok()).count(), UNPROVEN.burst as usize);
        assert!(of(1_000).iter().all(|admitted| *admitted == Err(HandshakeLimit::Unproven)));
        assert_eq!(limits.admit(now, v4(5_000), Source::Proven), Ok(()));
    }

    /// 2,000 proven sources that ask 19 times a second, so never too often by themselves.
    fn flood(ms: u32) -> Vec<IpAddr> {
        (0..2_000).filter(|n| n % 53 == ms % 53).map(v4).collect()
    }

    #[test]
    fn t04_all_together_have_their_share_of_a_core_and_a_newcomer_gets_in() {
        let (limits, start) = (HandshakeLimits::default(), Instant::now());
        let (passed, refused) = admitted(&limits, start, 10 * SECOND, flood);
        // Durations are whole nanoseconds, hence some more.
        assert!(refused > 0 && passed <= 10 * WORK.per_second + WORK.burst + 10, "{passed}");
        assert!(passed >= 9 * WORK.per_second, "{passed}: nothing is refused while there is room");
        for ms in 0..1_000 {
            let now = start + 10 * SECOND + Duration::from_millis(ms.into());
            let answers: Vec<_> = flood(ms).into_iter().map(|one| limits.admit(now, one, Source::Proven)).collect();
            assert!(answers.contains(&Err(HandshakeLimit::Work)), "{answers:?}");
            assert_eq!(limits.admit(now, v4(10_000 + ms), Source::Proven), Ok(()), "a newcomer");
        }
    }

    #[test]
    fn t04_what_is_answered_counts_for_more() {
        let (limits, start) = (HandshakeLimits::default(), Instant::now());
        let mut answered = 0;
        for source in 0..20_000 {
            // Each source comes once: only the work limits them.
            let now = start + Duration::from_micros(u64::from(source) * 500);
            if limits.admit(now, v4(source), Source::Proven).is_ok() {
                limits.spend(now, ANSWER);
                answered += 1;
            }
        }
        let expected = (10 * WORK.per_second + WORK.burst) / (OPEN + ANSWER);
        assert!((expected - 100..=expected + 100).contains(&answered), "{answered} in ten seconds");
    }

    #[test]
    fn t04_sources_without_end_take_no_more_memory() {
        let (limits, start) = (HandshakeLimits::default(), Instant::now());
        let mut passed = 0;
        for number in 0..200_000 {
            let now = start + Duration::from_micros(u64::from(number) * 100);
            passed += u32::from(limits.admit(now, v4(number), Source::Proven).is_ok());
        }
        assert!(passed <= 20 * WORK.per_second + WORK.burst + 10, "{passed}");
        let state = limits.state.lock().unwrap();
        assert!(size_of_val(&*state.sources.sets) <= 400 << 10);
        let kept = state.sources.sets.iter().flatten().filter(|slot| slot.asked_at.is_some()).count();
        assert!(kept > MAX_SOURCES * 9 / 10 && kept <= MAX_SOURCES, "{kept}");
    }

    #[test]
    fn t04_who_has_not_asked_for_longest_makes_room() {
        let (limits, start) = (HandshakeLimits::default(), Instant::now());
        for number in 0..4 * MAX_SOURCES as u32 {
            let now = start + Duration::from_micros(number.into());
            let _ = limits.admit(now, v4(1_000_000), Source::Proven);
            let _ = limits.admit(now, v4(number), Source::Proven);
        }
        assert_eq!(limits.admit(start, v4(1_000_000), Source::Proven), Err(HandshakeLimit::Source));
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
