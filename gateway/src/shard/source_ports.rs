//! Source ports of what leaves with an address of ours.
//!
//! Hash-based selection, RFC 6056 section 3.3.3: towards one target each port comes again only after all others, so that
//! neither the target nor anything on the way still holds the last connection from it (TIME-WAIT, RFC 9293 section
//! 3.6.1); and who sees those towards one target knows nothing of those towards another.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

/// The first of them: those before belong to the system (RFC 6335).
const FIRST: u16 = 1024;
const SPAN: u64 = u16::MAX as u64 - FIRST as u64 + 1;
/// How many are tried for one flow.
const TRIED: usize = 64;

/// The ports of one shard.
#[derive(Debug)]
pub(super) struct SourcePorts {
    secret: RandomState,
    /// Goes up in steps of as many shards as there are, so that they do not get into each other's way.
    next: u64,
    step: u64,
}

impl SourcePorts {
    /// Of the shard `index` of `shards`. `secret`: of all of them.
    pub(super) fn new(secret: RandomState, index: usize, shards: usize) -> Self {
        Self { secret, next: index as u64, step: shards.max(1) as u64 }
    }

    /// The next ports for a flow towards `target`.
    pub(super) fn towards(&mut self, target: SocketAddr) -> impl Iterator<Item = u16> {
        let offset = self.secret.hash_one(target);
        std::iter::repeat_with(move || {
            let at = offset.wrapping_add(self.next) % SPAN;
            self.next += self.step;
            u16::try_from(at).map_or(FIRST, |at| FIRST + at)
        })
        .take(TRIED)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_port_comes_again_after_all_others() {
        let secret = RandomState::new();
        let target = "192.0.2.1:443".parse().unwrap();
        let mut ports = [0, 1].map(|index| SourcePorts::new(secret.clone(), index, 2));
        let span = usize::try_from(SPAN).unwrap();
        let mut seen = HashSet::new();
        for turn in 0..span {
            let port = ports[turn % 2].towards(target).next().unwrap();
            assert!(port >= FIRST && seen.insert(port), "{port}");
        }
        assert!(seen.contains(&ports[0].towards(target).next().unwrap()));
    }
}
