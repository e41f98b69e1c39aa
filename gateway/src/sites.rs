//! Keeps the tunnels to sites up: looks up where their peers are, opens handshakes, and goes on to the next address when
//! nobody answers. What the tunnel says is the health of its off-ramp.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::lookup_host;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::control::shards::Shards;
use crate::offramp::site::Site;
use crate::offramp::{Offramps, health};
use crate::shard::link::SiteStatus;

/// How often a tunnel is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Looks without an answer after which a peer is down and looked for elsewhere: WireGuard's Rekey-Timeout, after which
/// an initiation is sent again.
const PATIENCE: u32 = 5;
/// A site of which nothing was heard for this long is asked for a handshake. A tunnel is silent when nothing is to be said,
/// and WireGuard would not notice that the other end is gone: flows that only wait would wait for ever.
const SILENCE: Duration = Duration::from_secs(10);
/// The same for one that a packet went to meanwhile: most are answered sooner.
const SILENCE_AFTER_PACKETS: Duration = Duration::from_secs(3);
/// How long the look-up of a name may take.
const LOOKUP: Duration = Duration::from_secs(5);

/// Keeps the tunnels to all sites up for as long as the runtime lives. Call on a tokio runtime.
pub fn start(offramps: &Offramps, shards: &Shards) {
    for (index, site) in offramps.sites().enumerate() {
        let seeker = Seeker { site: Arc::clone(site), left: Vec::new(), looked_for: None, course: Course::default() };
        tokio::spawn(seeker.run(index % shards.len().max(1), shards.clone()));
    }
}

/// Looks for one site.
struct Seeker {
    site: Arc<Site>,
    /// Addresses of it not yet tried, the next one last.
    left: Vec<SocketAddr>,
    /// Where it was looked for last.
    looked_for: Option<SocketAddr>,
    course: Course,
}

impl Seeker {
    /// `home`: the shard that gets the tunnel where none has it.
    async fn run(mut self, home: usize, shards: Shards) {
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            // A shard that does not answer is for others to notice.
            let Ok(statuses) = shards.sites().await else { continue };
            let status = statuses.into_iter().find(|status| status.key == self.site.public_key);
            let shard = status.map_or(home, |status| status.shard);
            match self.course.next(status) {
                Next::Wait => {}
                Next::Up { first } => {
                    if self.site.state.set(true, None) || first {
                        tracing::info!(offramp = %self.site.name, "the site answers");
                    }
                }
                Next::Ask => shards.reach(shard, self.site.public_key, None).await,
                Next::Look => self.look(shard, &shards).await,
                Next::Down => {
                    let at = self.looked_for.map(|at| format!(" at {at}")).unwrap_or_default();
                    self.down(format!("no answer to handshakes{at}"), &shards).await;
                    self.look(shard, &shards).await;
                }
            }
        }
    }

    /// Has a handshake opened at the next address.
    async fn look(&mut self, shard: usize, shards: &Shards) {
        if self.left.is_empty() {
            self.left = match addresses(&self.site.endpoint).await {
                Ok(found) => found,
                Err(why) => return self.down(why, shards).await,
            };
        }
        let Some(to) = self.left.pop() else { return };
        tracing::debug!(offramp = %self.site.name, %to, "looking for the site");
        self.looked_for = Some(to);
        shards.reach(shard, self.site.public_key, Some(to)).await;
    }

    async fn down(&self, why: String, shards: &Shards) {
        let name = &self.site.name;
        let line = why.clone();
        if !self.site.state.set(false, Some(why)) {
            return;
        }
        tracing::warn!(offramp = %name, why = line, "the site is down");
        health::leave(name, shards).await;
    }
}

/// The addresses behind `endpoints`, the first one last.
async fn addresses(endpoints: &[String]) -> Result<Vec<SocketAddr>, String> {
    let mut found = Vec::new();
    let mut trouble = String::new();
    for endpoint in endpoints {
        match timeout(LOOKUP, lookup_host(endpoint)).await {
            Ok(Ok(addresses)) => found.extend(addresses),
            Ok(Err(error)) => trouble = format!("{endpoint} cannot be looked up: {error}"),
            Err(_elapsed) => trouble = format!("{endpoint} cannot be looked up: no answer within {LOOKUP:?}"),
        }
    }
    found.reverse();
    if found.is_empty() { Err(trouble) } else { Ok(found) }
}

/// What a row of looks at a tunnel comes to.
#[derive(Debug, Default)]
struct Course {
    /// Looks in a row at which it had not answered.
    unanswered: u32,
    last_handshake: Option<Timestamp>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing.
    Wait,
    /// It answered; for the first time.
    Up { first: bool },
    /// Nothing was heard of it for long: it is to show that it is there.
    Ask,
    /// It is to be looked for.
    Look,
    /// It has not answered, and is to be looked for elsewhere.
    Down,
}

impl Course {
    fn next(&mut self, status: Option<SiteStatus>) -> Next {
        let Some(status) = status else {
            // The first look had it opened; none after that means that it cannot be, such as over the other family.
            self.unanswered += 1;
            return match self.unanswered {
                1 => Next::Look,
                looks if looks.is_multiple_of(PATIENCE) => Next::Down,
                _ => Next::Wait,
            };
        };
        // A tunnel asks for a new session by itself, too, and one lost datagram of that is no trouble.
        let is_heard = status.silence.is_some_and(|silence| silence < EVERY * PATIENCE);
        let before = std::mem::replace(&mut self.last_handshake, status.last_handshake);
        if status.last_handshake > before || !status.asked || is_heard {
            self.unanswered = 0;
            let first = before.is_none();
            return match status {
                // It is known only because somebody began a handshake in its name.
                SiteStatus { last_handshake: None, asked: false, .. } => Next::Look,
                SiteStatus { last_handshake: None, .. } => Next::Wait,
                SiteStatus { silence: Some(silence), unanswered, .. }
                    if silence >= if unanswered { SILENCE_AFTER_PACKETS } else { SILENCE } =>
                {
                    Next::Ask
                }
                SiteStatus { .. } => Next::Up { first },
            };
        }
        self.unanswered += 1;
        if self.unanswered.is_multiple_of(PATIENCE) { Next::Down } else { Next::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_that_does_not_answer_is_down_until_it_does() {
        let mut course = Course::default();
        let mut next = |asked, handshake: Option<i64>| {
            let last_handshake = handshake.map(|at| Timestamp::from_second(at).unwrap());
            course.next(Some(SiteStatus {
                key: [1; 32],
                shard: 0,
                asked,
                unanswered: false,
                silence: None,
                last_handshake,
            }))
        };
        for _ in 0..2 {
            assert!((0..4).all(|_| next(true, None) == Next::Wait));
            assert_eq!(next(true, None), Next::Down);
        }
        assert_eq!(next(false, Some(5)), Next::Up { first: true });
        assert_eq!(next(false, Some(5)), Next::Up { first: false }, "silence is no trouble");
        assert!((0..4).all(|_| next(true, Some(5)) == Next::Wait));
        assert_eq!(next(true, Some(9)), Next::Up { first: false }, "it answered, and was asked once more");
        assert!((0..4).all(|_| next(true, Some(9)) == Next::Wait));
        assert_eq!(next(true, Some(9)), Next::Down);
        let last_handshake = Some(Timestamp::from_second(9).unwrap());
        let rekeys = SiteStatus {
            key: [1; 32],
            shard: 0,
            asked: true,
            unanswered: true,
            silence: Some(Duration::ZERO),
            last_handshake,
        };
        assert!((0..9).all(|_| course.next(Some(rekeys)) == Next::Up { first: false }));
        let never_asked = SiteStatus { asked: false, silence: None, last_handshake: None, ..rekeys };
        assert_eq!(course.next(Some(never_asked)), Next::Look);
        let without = [Next::Look, Next::Wait, Next::Wait, Next::Wait, Next::Down, Next::Wait];
        assert!(without.into_iter().all(|next| course.next(None) == next));
        let silent = SiteStatus {
            key: [1; 32],
            shard: 0,
            asked: false,
            unanswered: false,
            silence: Some(SILENCE),
            last_handshake,
        };
        assert_eq!(course.next(Some(silent)), Next::Ask);
        let waited_for = SiteStatus { silence: Some(SILENCE_AFTER_PACKETS), ..silent };
        assert_eq!(course.next(Some(waited_for)), Next::Up { first: false });
        assert_eq!(course.next(Some(SiteStatus { unanswered: true, ..waited_for })), Next::Ask);
    }

    #[tokio::test]
    async fn the_first_endpoint_comes_first() {
        let both = ["192.0.2.1:5".to_owned(), "[2001:db8::1]:6".to_owned()];
        let found: Vec<_> = addresses(&both).await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["[2001:db8::1]:6", "192.0.2.1:5"]);
    }
}
