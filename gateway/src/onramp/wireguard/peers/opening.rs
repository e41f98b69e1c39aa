//! Handshakes that the gateway opens, with peers it remembers; and what there is to remember.

use std::time::Duration;

use boringtun::noise::TunnResult;

use super::{MESSAGE_INITIATION, Peer, Peers, Surroundings, TICK, word};
use crate::onramp::wireguard::owners::PeerIndex;
use crate::onramp::wireguard::socket::{Endpoint, Outbox};

/// Looks at the timers after which an initiation without an answer is sent again: one and three seconds. A datagram may
/// be lost, and `boringtun` itself waits five.
const AGAIN: [u32; 2] = [4, 12];
/// Looks at the timers after which a peer that never answered is forgotten: it is not there, or elsewhere. Sooner than
/// `boringtun` would send once more, which would be to thousands at the same moment.
const GIVE_UP: u32 = 28;
/// After this long without a datagram a peer may be elsewhere: WireGuard's Rekey-Timeout.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// Most initiations of ours to one peer whose answers are no matter for the limits. Earlier ones are long given up when
/// there are more: `boringtun` ends a handshake after 90 seconds, and sends it every five.
const MAX_ASKED: u32 = 18;

// They are counted in ticks.
const _: () = assert!(TICK.as_millis() == 250);

/// What becomes of a peer that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Nothing yet, or it is not waited for.
    On,
    /// It is to be asked again.
    Again,
    /// It is to be forgotten.
    Over,
}

impl Peers {
    /// Opens a handshake with the peer that was last heard of at `to`, unless it is known here or elsewhere already, or
    /// may not be connected.
    pub fn open(&mut self, around: &mut Surroundings<'_>, key: &[u8; 32], to: Endpoint) {
        let Ok(party) = self.identity.party(around.directory, key, around.now) else { return };
        if self.by_key.contains_key(key) || self.identity.owners.claim(key, self.shard) != self.shard {
            return;
        }
        let Some(peer) = self.slot_for(party).and_then(|slot| self.slots.get_mut(slot)) else { return };
        peer.endpoint = Some(to);
        peer.opening = Some(0);
        peer.initiate(&mut self.scratch, around.outbox);
    }

    /// Opens a handshake with the peer of a site where it is, or at `to`, where it is now looked for. Not where another shard
    /// has it.
    pub fn reach(&mut self, around: &mut Surroundings<'_>, key: &[u8; 32], to: Option<Endpoint>) {
        match (self.slot(key).and_then(|slot| self.slots.get_mut(slot)), to) {
            (Some(peer), to) => {
                // Where it was heard of just now it still is.
                let heard = peer.heard_at.is_some_and(|at| around.clock.saturating_duration_since(at) < LOST_AFTER);
                peer.endpoint = to.filter(|_| !heard).or(peer.endpoint);
                peer.opening = Some(0);
                peer.initiate(&mut self.scratch, around.outbox);
            }
            (None, Some(to)) => self.open(around, key, to),
            (None, None) => {}
        }
    }

    /// Sends one more initiation to a peer that is due for it. Returns whether there was one.
    pub fn ask_again(&mut self, outbox: &mut Outbox) -> bool {
        let Some(key) = self.again.pop_front() else { return false };
        let peer = self.by_key.get(&key).and_then(|slot| self.slots.get_mut(*slot));
        if let Some(peer) = peer.filter(|peer| peer.opening.is_some()) {
            peer.initiate(&mut self.scratch, outbox);
        }
        true
    }

    /// Whether a peer is due to be asked again.
    pub fn is_to_ask(&self) -> bool {
        !self.again.is_empty()
    }

    /// Whether the peer that a receiver index names is of this shard.
    pub(super) fn is_mine(&self, receiver_index: Option<u32>) -> bool {
        receiver_index.is_some_and(|index| PeerIndex::decode(index, self.shards).shard == self.shard)
    }

    /// Whether the peer that a receiver index names was asked for a handshake where a response comes from, and has not
    /// answered. The limits are for handshakes that others begin: answers to ours come by the hundred from behind one
    /// address, after a restart and when those sessions are renewed, and a cookie in return for one of them would leave
    /// its sender without a session.
    pub(super) fn expects_answer(&self, from: Endpoint, receiver_index: Option<u32>) -> bool {
        let slot = receiver_index.map(|index| PeerIndex::decode(index, self.shards).slot);
        slot.and_then(|slot| self.slots.get(slot)).is_some_and(|peer| peer.expects_answer(from))
    }

    /// Key and endpoint of each peer that moved since the last call.
    pub fn take_moved(&mut self) -> Vec<([u8; 32], Endpoint)> {
        let moved = self.slots.iter_mut().filter_map(|(_, peer)| std::mem::take(&mut peer.moved).then_some(peer));
        moved.filter_map(|peer| Some((peer.party.key, peer.endpoint?))).collect()
    }

    /// The next call of [`take_moved`](Self::take_moved) has this peer again.
    pub fn mark_moved(&mut self, key: &[u8; 32]) {
        if let Some(peer) = self.by_key.get(key).and_then(|slot| self.slots.get_mut(*slot)) {
            peer.moved = true;
        }
    }
}

impl Peer {
    /// Sends an initiation to where the peer was.
    fn initiate(&mut self, scratch: &mut [u8], outbox: &mut Outbox) {
        let Some(endpoint) = self.endpoint else { return };
        if let TunnResult::WriteToNetwork(initiation) = self.tunnel.format_handshake_initiation(scratch, true) {
            self.sent(initiation);
            outbox.queue(endpoint, initiation);
        }
    }

    /// Notes what the tunnel gave out for the wire.
    pub(super) fn sent(&mut self, datagram: &[u8]) {
        self.bytes_sent += datagram.len() as u64;
        if word(datagram, 0) == Some(MESSAGE_INITIATION) {
            self.asked = self.asked.saturating_add(1).min(MAX_ASKED);
        }
    }

    fn expects_answer(&self, from: Endpoint) -> bool {
        self.asked > 0 && self.endpoint.is_some_and(|to| to.address == from.address)
    }

    /// Takes one answer off those that are expected, and returns whether it was: whoever makes up answers to an
    /// initiation has work done for as many as were asked for.
    pub(super) fn takes_answer(&mut self, from: Endpoint) -> bool {
        let expected = self.expects_answer(from);
        self.asked -= u32::from(expected);
        expected
    }

    /// One look more at a peer that was asked for a handshake.
    pub(super) fn wait_for_answer(&mut self) -> Waiting {
        let Some(ticks) = &mut self.opening else { return Waiting::On };
        *ticks += 1;
        if AGAIN.contains(ticks) {
            return Waiting::Again;
        }
        if *ticks < GIVE_UP {
            return Waiting::On;
        }
        // It may have begun a handshake itself, whose first datagram is not here yet. A site is looked for until it is
        // found.
        if self.last_handshake.is_none() && self.unused_sessions == 0 && self.party.site.is_none() {
            return Waiting::Over;
        }
        self.opening = None;
        Waiting::On
    }
}
