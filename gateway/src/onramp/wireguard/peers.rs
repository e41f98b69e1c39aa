//! The WireGuard peers of one shard: who they are, their tunnels, where they are.

mod identity;
mod opening;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::PublicKey;
use jiff::Timestamp;
use portcullis_netstack::DropReason;
use slab::Slab;

pub use self::identity::{Party, WireguardIdentity};
use self::opening::Waiting;
use super::handshake_limits::{self, Bucket, HandshakeLimit, Source};
use super::owners::{PeerIndex, ShardIndex};
use super::socket::{Endpoint, Outbox};
use crate::directory::Directory;
use crate::metrics::counters::ShardCounters;

/// How often tunnels look at their timers.
pub const TICK: Duration = Duration::from_millis(250);
/// Bytes a datagram is longer than the packet in it, WireGuard paper section 5.4.6.
const DATA_OVERHEAD: usize = 32;
/// Longest handshake message.
const HANDSHAKE_MESSAGE: usize = 148;
/// WireGuard's Reject-After-Messages, 2^64 - 2^13 - 1: counters from here on are never used by an honest peer, and
/// `boringtun` adds to them.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Sessions that `boringtun` keeps for a tunnel: a new one takes the place of the one this many before it.
const SESSIONS: u32 = 8;
/// Sessions answered for but not yet used, from which on no more are begun while one is in use: its place is next but
/// one.
const MAX_UNUSED_SESSIONS: u32 = SESSIONS - 2;
/// A session is in use for this long after its last datagram: WireGuard's Keepalive-Timeout and Rekey-Timeout, after
/// which a client that hears nothing begins a new one.
const IN_USE: Duration = Duration::from_secs(15);
/// Of a peer that roams without a pause what was lost meanwhile comes again by itself.
const SILENCE: Duration = Duration::from_secs(1);
/// Longest datagram the kernel hands up, and so the least length of a buffer `boringtun` decrypts into.
const SCRATCH: usize = 65_536;

/// Types of WireGuard's messages (its paper, section 5.4), with three zero bytes behind.
pub(super) const MESSAGE_INITIATION: u32 = 1;
pub(super) const MESSAGE_RESPONSE: u32 = 2;
pub(super) const MESSAGE_COOKIE: u32 = 3;
pub(super) const MESSAGE_DATA: u32 = 4;

/// One peer with its tunnel.
pub struct Peer {
    tunnel: Tunn,
    party: Arc<Party>,
    endpoint: Option<Endpoint>,
    last_handshake: Option<Timestamp>,
    bytes_received: u64,
    bytes_sent: u64,
    /// Looks at the timers since a handshake was opened with it that nothing came of yet.
    opening: Option<u32>,
    /// Initiations that left for it and have neither been answered nor made up for: so many answers are expected.
    asked: u32,
    /// It is not remembered where, or when, it was heard of last.
    moved: bool,
    /// Handshakes it may begin.
    handshakes: Bucket,
    /// A packet went to it since its last authentic datagram.
    unanswered: bool,
    /// There is a session to send in, as of the last look at the timers or a datagram since.
    has_session: bool,
    /// Places of sessions that were answered for and have brought nothing yet, a bit each.
    unused_sessions: u8,
    /// When its last authentic datagram came.
    heard_at: Option<Instant>,
}

impl Peer {
    /// Whose key it is.
    pub fn party(&self) -> &Arc<Party> {
        &self.party
    }

    /// Whether it was asked for a handshake and has not answered.
    pub fn is_asked(&self) -> bool {
        self.asked > 0
    }

    /// Whether a packet went to it since its last authentic datagram.
    pub fn is_unanswered(&self) -> bool {
        self.unanswered
    }

    /// When its last authentic datagram came.
    pub fn heard_at(&self) -> Option<Instant> {
        self.heard_at
    }

    /// Where its last authentic datagram came from.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
    }

    /// When its last handshake was completed: when the new session brought the first datagram.
    pub fn last_handshake(&self) -> Option<Timestamp> {
        self.last_handshake
    }

    /// Outer bytes received and sent in sessions.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_received, self.bytes_sent)
    }
}

/// What one datagram needs besides the peers.
pub struct Surroundings<'a> {
    /// Who exists now.
    pub directory: &'a Directory,
    /// The wall clock.
    pub now: Timestamp,
    /// The clock of limits.
    pub clock: Instant,
    /// Where things are counted.
    pub counters: &'a ShardCounters,
    /// Where answers go.
    pub outbox: &'a mut Outbox,
}

/// Where a datagram belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// It was taken in here.
    Here,
    /// Another shard owns its peer.
    Elsewhere(ShardIndex),
}

/// The peers a shard owns.
pub struct Peers {
    identity: Arc<WireguardIdentity>,
    shard: ShardIndex,
    shards: usize,
    slots: Slab<Peer>,
    by_key: HashMap<[u8; 32], usize>,
    /// Peers to send an initiation to once more.
    again: VecDeque<[u8; 32]>,
    /// Peers that came back from elsewhere after a silence: what was sent to them meanwhile went nowhere.
    returned: Vec<usize>,
    scratch: Box<[u8]>,
}

impl Peers {
    /// An empty table of shard `shard` of `shards`.
    pub fn new(identity: Arc<WireguardIdentity>, shard: ShardIndex, shards: usize) -> Self {
        let scratch = vec![0; SCRATCH].into_boxed_slice();
        let (slots, by_key, again, returned) = (Slab::new(), HashMap::new(), VecDeque::new(), Vec::new());
        Self { identity, shard, shards, slots, by_key, again, returned, scratch }
    }

    /// The peer in a slot.
    pub fn get(&self, slot: usize) -> Option<&Peer> {
        self.slots.get(slot)
    }

    /// The slot of a peer that came back from elsewhere after a silence, each once.
    pub fn poll_returned(&mut self) -> Option<usize> {
        self.returned.pop()
    }

    /// Every peer with its slot.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Peer)> {
        self.slots.iter()
    }

    /// Takes one datagram. A packet that comes out is handed to `deliver` with the slot of its peer, and who that is.
    ///
    /// `verified`: another shard has already applied the handshake limits.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle_datagram(
        &mut self,
        around: &mut Surroundings<'_>,
        from: Endpoint,
        datagram: &[u8],
        verified: bool,
        deliver: impl FnOnce(usize, &Arc<Party>, &[u8]),
    ) -> Result<Route, DropReason> {
        match word(datagram, 0) {
            Some(MESSAGE_DATA) => {
                if counter(datagram).is_none_or(|counter| counter >= REJECT_AFTER_MESSAGES) {
                    return Err(DropReason::Unauthentic);
                }
                self.handle_for_index(around, from, datagram, word(datagram, 4), deliver)
            }
            Some(MESSAGE_INITIATION) => {
                if !verified {
                    self.verify(around, from, datagram)?;
                }
                self.handle_initiation(around, from, datagram, verified)
            }
            Some(MESSAGE_RESPONSE) => {
                // Never verified elsewhere: only the owner knows whether it asked.
                if self.is_mine(word(datagram, 8)) && !self.expects_answer(from, word(datagram, 8)) {
                    self.verify(around, from, datagram)?;
                }
                self.handle_for_index(around, from, datagram, word(datagram, 8), deliver)
            }
            Some(MESSAGE_COOKIE) => self.handle_for_index(around, from, datagram, word(datagram, 4), deliver),
            _ => Err(DropReason::Malformed),
        }
    }

    /// Checks the MACs and the limits: silence for strangers, a cookie for who is over a limit and may not be who the
    /// source address says.
    fn verify(&self, around: &mut Surroundings<'_>, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason> {
        let Self { identity, .. } = self;
        let address = from.address.ip().to_canonical();
        let mut reply = [0; HANDSHAKE_MESSAGE];
        match identity.cookies.verify_packet(Some(address), datagram, &mut reply) {
            Ok(_) => {
                let admitted = identity.limits.admit(around.clock, address, Source::Proven);
                admitted.map_err(|limit| around.over(limit))
            }
            Err(TunnResult::WriteToNetwork(cookie)) => {
                let admitted = identity.limits.admit(around.clock, address, Source::Unproven);
                admitted.map_err(|limit| {
                    around.outbox.queue(from, cookie);
                    around.counters.cookie_replies.add(1);
                    around.over(limit)
                })
            }
            Err(_) => {
                around.counters.handshakes_refused.add(1);
                Err(DropReason::Unauthentic)
            }
        }
    }

    fn handle_initiation(
        &mut self,
        around: &mut Surroundings<'_>,
        from: Endpoint,
        datagram: &[u8],
        verified: bool,
    ) -> Result<Route, DropReason> {
        let refuse = |reason| {
            around.counters.handshakes_refused.add(1);
            Err(reason)
        };
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return refuse(DropReason::Malformed);
        };
        let Ok(half) = parse_handshake_anon(&self.identity.private, &self.identity.public, &initiation) else {
            return refuse(DropReason::Unauthentic);
        };
        let key = half.peer_static_public;
        let party = match self.identity.party(around.directory, &key, around.now) {
            Ok(party) => party,
            Err(reason) => return refuse(reason),
        };
        if verified {
            self.identity.limits.spend(around.clock, handshake_limits::OPEN);
        }
        let owner = self.identity.owners.claim(&key, self.shard);
        if owner != self.shard {
            return Ok(Route::Elsewhere(owner));
        }
        let is_new = !self.by_key.contains_key(&key);
        let Some(slot) = self.slot_for(party) else {
            return refuse(DropReason::HandshakeLimit);
        };
        let Some(peer) = self.slots.get_mut(slot) else { return refuse(DropReason::UnknownPeer) };
        if !peer.may_begin(around.clock) {
            return Err(around.over(HandshakeLimit::Peer));
        }
        let source = Some(from.address.ip().to_canonical());
        let limits = &self.identity.limits;
        let TunnResult::WriteToNetwork(response) = peer.tunnel.decapsulate(source, datagram, &mut self.scratch) else {
            limits.spend(around.clock, handshake_limits::OPEN);
            around.counters.handshakes_refused.add(1);
            if is_new {
                // Whoever knows both public keys could have it stay.
                self.remove(slot);
            }
            return Err(DropReason::Unauthentic);
        };
        limits.spend(around.clock, handshake_limits::ANSWER);
        // Nothing else of the peer moves yet: it may be a replay. What is replayed to an end is not new to the tunnel,
        // and uses up nothing of the peer's limit.
        peer.handshakes.take(around.clock, handshake_limits::PEER, 1);
        if let Some(session) = word(response, 4) {
            peer.unused_sessions |= place(session);
        }
        around.outbox.queue(from, response);
        Ok(Route::Here)
    }

    /// The slot of the peer that is `party`, a new one where there is none.
    fn slot_for(&mut self, party: Party) -> Option<usize> {
        if let Some(&slot) = self.by_key.get(&party.key) {
            return Some(slot);
        }
        let slot = self.slots.vacant_key();
        if slot >= PeerIndex::max_slots(self.shards) {
            self.identity.owners.release(&party.key, self.shard);
            return None;
        }
        let index = PeerIndex { slot, shard: self.shard }.encode(self.shards);
        let tunnel = Tunn::new(
            self.identity.private.clone(),
            PublicKey::from(party.key),
            party.preshared_key().map(|key| key.0),
            party.site.as_ref().and_then(|site| site.keepalive),
            index,
            Some(Arc::clone(&self.identity.unlimited)),
        );
        self.by_key.insert(party.key, slot);
        self.slots.insert(Peer {
            tunnel,
            party: Arc::new(party),
            endpoint: None,
            last_handshake: None,
            bytes_received: 0,
            bytes_sent: 0,
            opening: None,
            asked: 0,
            moved: false,
            handshakes: Bucket::default(),
            unanswered: false,
            has_session: false,
            unused_sessions: 0,
            heard_at: None,
        });
        Some(slot)
    }

    fn handle_for_index(
        &mut self,
        around: &mut Surroundings<'_>,
        from: Endpoint,
        datagram: &[u8],
        receiver_index: Option<u32>,
        deliver: impl FnOnce(usize, &Arc<Party>, &[u8]),
    ) -> Result<Route, DropReason> {
        let index = PeerIndex::decode(receiver_index.ok_or(DropReason::Malformed)?, self.shards);
        if index.shard != self.shard {
            return Ok(Route::Elsewhere(index.shard));
        }
        let peer = self.slots.get_mut(index.slot).ok_or(DropReason::UnknownPeer)?;
        let source = Some(from.address.ip().to_canonical());
        let kind = word(datagram, 0);
        let result = peer.tunnel.decapsulate(source, datagram, &mut self.scratch);
        if kind == Some(MESSAGE_RESPONSE) && was_worked_on(&result) && !peer.takes_answer(from) {
            self.identity.limits.spend(around.clock, handshake_limits::FINISH);
        }
        match result {
            TunnResult::Done => {
                // A cookie reply can be forged by whoever saw our initiation: only a session moves the endpoint.
                if kind == Some(MESSAGE_DATA) && peer.heard(around, from, datagram) {
                    self.returned.push(index.slot);
                }
                Ok(Route::Here)
            }
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                if peer.heard(around, from, datagram) {
                    self.returned.push(index.slot);
                }
                deliver(index.slot, &peer.party, packet);
                Ok(Route::Here)
            }
            TunnResult::WriteToNetwork(answer) => {
                if peer.heard(around, from, datagram) {
                    self.returned.push(index.slot);
                }
                if kind == Some(MESSAGE_RESPONSE) {
                    peer.asked = 0;
                    peer.last_handshake = Some(around.now);
                    around.counters.handshakes.add(1);
                }
                peer.bytes_sent += answer.len() as u64;
                around.outbox.queue(from, answer);
                // Packets that waited for the session.
                while let TunnResult::WriteToNetwork(waiting) = peer.tunnel.decapsulate(None, &[], &mut self.scratch) {
                    peer.bytes_sent += waiting.len() as u64;
                    around.outbox.queue(from, waiting);
                }
                Ok(Route::Here)
            }
            TunnResult::Err(WireGuardError::InvalidPacket) => Err(DropReason::Malformed),
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) => {
                Err(DropReason::UnknownPeer)
            }
            TunnResult::Err(_) => Err(DropReason::Unauthentic),
        }
    }

    /// Encrypts one packet towards a peer. `false`: there is no such peer, nobody knows where it is, or the kernel has
    /// taken nothing for so long that the outbox is full.
    pub fn send(&mut self, slot: usize, packet: &[u8], outbox: &mut Outbox) -> bool {
        if outbox.is_full() {
            return false;
        }
        let Some(peer) = self.slots.get_mut(slot) else { return false };
        let Some(endpoint) = peer.endpoint else { return false };
        peer.unanswered = true;
        let room = (packet.len() + DATA_OVERHEAD).max(HANDSHAKE_MESSAGE);
        outbox.queue_with(endpoint, room, |buffer| {
            let TunnResult::WriteToNetwork(datagram) = peer.tunnel.encapsulate(packet, buffer) else {
                // Without a session the packet waits in the tunnel for the handshake.
                return 0;
            };
            peer.sent(datagram);
            datagram.len()
        });
        true
    }

    /// Encrypts one packet of somebody else's flow towards a peer. Without a session a handshake is begun and the packet is
    /// lost: kept in the tunnel, as [`send`](Self::send) has it, it could leave after the flow was ended. Returns whether it
    /// went.
    pub fn send_on(&mut self, slot: usize, packet: &[u8], outbox: &mut Outbox) -> bool {
        match self.slots.get_mut(slot) {
            Some(peer) if !peer.has_session => {
                if let (Some(endpoint), TunnResult::WriteToNetwork(initiation)) =
                    (peer.endpoint, peer.tunnel.format_handshake_initiation(&mut self.scratch, false))
                {
                    peer.sent(initiation);
                    outbox.queue(endpoint, initiation);
                }
                false
            }
            Some(_) => self.send(slot, packet, outbox),
            None => false,
        }
    }

    /// The slot of the peer with this public key.
    pub fn slot(&self, key: &[u8; 32]) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// Lets every tunnel look at its timers; wants to be called about four times a second. Peers whose session is
    /// long over and who have no flow (`in_use`) are forgotten, sites excepted.
    pub fn tick(&mut self, outbox: &mut Outbox, in_use: impl Fn(&Party) -> bool) {
        let Self { slots, by_key, again, scratch, identity, shard, .. } = self;
        slots.retain(|_, peer| {
            match peer.wait_for_answer() {
                Waiting::On => {}
                Waiting::Again => again.push_back(peer.party.key),
                Waiting::Over => {
                    by_key.remove(&peer.party.key);
                    identity.owners.release(&peer.party.key, *shard);
                    return false;
                }
            }
            let result = peer.tunnel.update_timers(scratch);
            peer.has_session = peer.tunnel.time_since_last_handshake().is_some();
            if let TunnResult::WriteToNetwork(message) = result {
                if let Some(endpoint) = peer.endpoint {
                    peer.sent(message);
                    outbox.queue(endpoint, message);
                }
                return true;
            }
            let over = matches!(result, TunnResult::Err(WireGuardError::ConnectionExpired))
                && peer.party.site.is_none()
                && !in_use(&peer.party);
            if over {
                by_key.remove(&peer.party.key);
                identity.owners.release(&peer.party.key, *shard);
            }
            !over
        });
    }

    /// Compares every peer with a new directory. Those who may not go on are named, to be [removed](Self::remove).
    pub fn apply(&mut self, directory: &Directory, now: Timestamp) -> Vec<usize> {
        let mut gone = Vec::new();
        for (slot, peer) in &mut self.slots {
            match self.identity.party(directory, &peer.party.key, now) {
                Ok(next) if peer.party.becomes(&next) => peer.party = Arc::new(next),
                Ok(_) | Err(_) => gone.push(slot),
            }
        }
        gone
    }

    /// Forgets a peer and its session. A site that was a device, too, is one no longer, and keeps its tunnel.
    pub fn remove(&mut self, slot: usize) {
        if let Some(peer) = self.slots.get_mut(slot)
            && peer.party.site.is_some()
            && peer.party.device.is_some()
        {
            let alone = Party { device: None, ..Party::clone(&peer.party) };
            if alone.preshared_key() == peer.party.preshared_key() {
                peer.party = Arc::new(alone);
                return;
            }
        }
        if let Some(peer) = self.slots.try_remove(slot) {
            self.by_key.remove(&peer.party.key);
            self.identity.owners.release(&peer.party.key, self.shard);
        }
    }
}

impl Peer {
    /// Notes an authentic datagram: the peer is where it came from, and a session it is the first of is in use. Returns whether
    /// it was silent for a while and comes from elsewhere now.
    fn heard(&mut self, around: &Surroundings<'_>, from: Endpoint, datagram: &[u8]) -> bool {
        let was_silent = self.heard_at.is_some_and(|at| around.clock.saturating_duration_since(at) >= SILENCE);
        let returned = was_silent && self.endpoint != Some(from);
        self.moved |= self.endpoint != Some(from) || word(datagram, 0) == Some(MESSAGE_RESPONSE);
        self.opening = None;
        self.endpoint = Some(from);
        self.heard_at = Some(around.clock);
        self.has_session = true;
        self.unanswered = false;
        self.bytes_received += datagram.len() as u64;
        if word(datagram, 0) == Some(MESSAGE_DATA)
            && word(datagram, 4).is_some_and(|session| self.unused_sessions & place(session) != 0)
        {
            self.unused_sessions = 0;
            // What we asked for meanwhile is not needed any more.
            self.asked = 0;
            self.moved = true;
            self.last_handshake = Some(around.now);
            around.counters.handshakes.add(1);
        }
        returned
    }

    /// Whether one more session may be begun for it.
    fn may_begin(&self, clock: Instant) -> bool {
        // Initiations somebody has kept are new to a gateway that was started again. So many of them that the tunnel
        // would forget the session in use are not let in.
        let in_use = self.heard_at.is_some_and(|at| clock.saturating_duration_since(at) < IN_USE);
        let crowded = in_use && self.unused_sessions.count_ones() >= MAX_UNUSED_SESSIONS;
        !crowded && self.handshakes.holds(clock, handshake_limits::PEER, 1)
    }
}

impl Surroundings<'_> {
    /// Counts a handshake message that is over a limit.
    fn over(&self, limit: HandshakeLimit) -> DropReason {
        self.counters.handshakes_refused.add(1);
        if let Some(counter) = self.counters.handshakes_limited.get(limit.index()) {
            counter.add(1);
        }
        DropReason::HandshakeLimit
    }
}

/// Whether what came of a response cost its scalar multiplications: its MAC held, and an initiation waits for it.
fn was_worked_on(result: &TunnResult<'_>) -> bool {
    use WireGuardError::{InvalidMac, InvalidPacket, UnexpectedPacket};
    !matches!(result, TunnResult::Err(InvalidMac | InvalidPacket | UnexpectedPacket))
}

/// The place of a session in its tunnel, as a bit.
fn place(session: u32) -> u8 {
    1 << (session % SESSIONS)
}

/// The little-endian word at `offset`.
fn word(datagram: &[u8], offset: usize) -> Option<u32> {
    datagram.get(offset..offset + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// The counter of a data message.
fn counter(datagram: &[u8]) -> Option<u64> {
    datagram.get(8..16)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
