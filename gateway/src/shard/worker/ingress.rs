//! The way in: datagrams, frames and mail, up to the flow they belong to.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use jiff::Timestamp;
use portcullis_netstack::packet::build::Unreachable;
use portcullis_netstack::packet::{Arrival, ChecksumPolicy, IpFragment, IpPacket, Transport};
use portcullis_netstack::segment::Offload;
use portcullis_netstack::{Coalescer, DropReason, FlowId, Handled, Ingress, IngressId};

use super::{Shard, TUN, Wireguard, egress, peer_ingress};
use crate::directory::Device;
use crate::flow_record::OnrampKind;
use crate::metrics::counters::ShardCounters;
use crate::onramp::tun::FrameInfo;
use crate::onramp::wireguard::peers::{Party, Peers, Route, Surroundings};
use crate::onramp::wireguard::socket::{Endpoint, ReceiveBuffers, Received, WireguardSocket};
use crate::shard::link::Snapshot;
use crate::shard::mail::Mail;
use crate::shard::returns::Via;

/// Packets read from the TUN device before anything else has its turn.
const TUN_PACKETS_A_TURN: usize = 128;
/// Bytes after which no more packets are read before anything else has its turn. What the flows' rings get in a turn is
/// copied on to the targets in the same turn, and should be in the processor's cache still.
const TUN_BYTES_A_TURN: usize = 512 * 1024;
/// Datagrams after which no more are read before anything else has its turn.
const DATAGRAMS_A_TURN: usize = 128;
/// Batches of mail read before anything else has its turn.
const MAIL_A_TURN: usize = 16;

/// What takes in a batch of datagrams. Nothing in it changes between two datagrams but the peers themselves.
struct Intake<'w> {
    around: Surroundings<'w>,
    peers: &'w mut Peers,
    coalescer: &'w mut Coalescer<Arc<Party>>,
    mtu: u16,
}

impl Wireguard {
    fn intake<'w>(
        &'w mut self,
        clock: Instant,
        snapshot: &'w Snapshot,
        counters: &'w ShardCounters,
    ) -> (&'w WireguardSocket, &'w mut ReceiveBuffers, Intake<'w>) {
        let Self { socket, memory, outbox, peers, coalescer, mtu, .. } = self;
        let around = Surroundings { directory: &snapshot.directory, now: Timestamp::now(), clock, counters, outbox };
        (socket, memory, Intake { around, peers, coalescer, mtu: *mtu })
    }
}

impl Intake<'_> {
    /// Sends a packet on to the peer with this public key. Returns how many packets were lost.
    fn send(&mut self, key: &[u8; 32], packet: (&[u8], Option<Offload>), scratch: &mut Vec<u8>) -> usize {
        match self.peers.slot(key) {
            Some(slot) => egress::send_each(packet.0, packet.1, scratch, |packet| {
                self.peers.send_on(slot, packet, self.around.outbox)
            }),
            None => egress::packets(packet.0, packet.1, scratch),
        }
    }
}

impl Shard {
    pub(super) fn poll_mail(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        for _ in 0..MAIL_A_TURN {
            let Poll::Ready(Some(mails)) = self.mailbox.poll_receive(cx) else { return false };
            self.take_mail(now, mails);
        }
        true
    }

    pub(super) fn poll_wireguard(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(mut wireguard) = self.wireguard.take() else { return false };
        let snapshot = Arc::clone(&self.snapshot);
        let counters = Arc::clone(&self.counters);
        let (socket, memory, mut intake) = wireguard.intake(now, &snapshot, &counters);
        let mut taken = 0;
        let mut polled;
        loop {
            polled = socket.poll_receive(cx, memory, |from, datagram| {
                taken += 1;
                self.take_datagram(now, &mut intake, from, datagram, false);
            });
            // Where every datagram comes alone, one call brings few.
            if taken >= DATAGRAMS_A_TURN || !matches!(polled, Poll::Ready(Ok(Received::All))) {
                break;
            }
        }
        self.finish_intake(now, intake);
        self.wireguard = Some(wireguard);
        match polled {
            Poll::Ready(Ok(_)) => true,
            Poll::Ready(Err(error)) => {
                // An ICMP error about a datagram sent earlier, or memory pressure: the next call goes on.
                tracing::debug!(%error, "receiving from WireGuard clients");
                true
            }
            Poll::Pending => false,
        }
    }

    fn take_mail(&mut self, now: Instant, mails: Vec<Mail>) {
        let snapshot = Arc::clone(&self.snapshot);
        let counters = Arc::clone(&self.counters);
        let mut wireguard = self.wireguard.take();
        let mut intake = wireguard.as_mut().map(|wireguard| wireguard.intake(now, &snapshot, &counters).2);
        for mail in mails {
            match (mail, &mut intake) {
                (Mail::Datagram(from, datagram), Some(intake)) => {
                    self.take_datagram(now, intake, from, &datagram, true);
                }
                (Mail::Datagram(..), None) => self.drop_packet(DropReason::UnknownPeer),
                (Mail::Packet(packet, info), _) => self.handle_tun_packet(now, &snapshot, &packet, info),
                (Mail::Onward(key, packet, offload), intake) => {
                    let lost =
                        intake.as_mut().map_or(1, |intake| intake.send(&key, (&packet, offload), &mut self.segment));
                    self.drop_packets(DropReason::SendFailed, lost);
                }
                (Mail::Back(key, packet, info), _) => match info.parse(&packet) {
                    Ok(arrival) => self.take_back(now, key, &arrival),
                    Err(reason) => self.drop_packet(reason),
                },
            }
        }
        if let Some(intake) = intake {
            self.finish_intake(now, intake);
        }
        self.wireguard = wireguard;
    }

    fn take_datagram(
        &mut self,
        now: Instant,
        intake: &mut Intake<'_>,
        from: Endpoint,
        datagram: &[u8],
        verified: bool,
    ) {
        let Intake { around, peers, coalescer, mtu } = intake;
        let route =
            peers.handle_datagram(around, from, datagram, verified, |slot, party, packet| {
                // The tunnel has authenticated every byte from the client on.
                let arrival = match Arrival::parse(packet, ChecksumPolicy::Trusted) {
                    Ok(arrival) => arrival,
                    Err(reason) => return self.drop_packet(reason),
                };
                let source = match &arrival {
                    Arrival::Packet(packet) => packet.tuple().source,
                    Arrival::Fragment(fragment) => fragment.source(),
                    Arrival::Icmp(message) => message.source(),
                };
                let device = party.device.as_deref().filter(|device| device.may_send_from(source));
                // Behind a site is whoever flows were sent on to.
                if device.is_none() && party.site.is_none() {
                    return self.drop_packet(DropReason::SpoofedSource);
                }
                // Only what a peer sent: a stranger must not bring the shard to rest.
                self.moderation.count();
                let (from, via) = (peer_ingress(slot), Via::Peer(party.key));
                let mut push = |shard: &mut Self, packet: &IpPacket<'_>| {
                    coalescer.push(from, party, packet, |id, party, packet| {
                        shard.handle_peer_packet(now, Ingress { id, mtu: *mtu }, party, packet);
                    });
                };
                match arrival {
                    Arrival::Packet(packet) => push(self, &packet),
                    Arrival::Fragment(fragment) => {
                        // Behind a site, too, each stranger has a share of its own.
                        let stranger: Arc<str>;
                        let name = if let Some(device) = device {
                            &device.identity.device
                        } else {
                            stranger = format!("from {source}").into();
                            &stranger
                        };
                        self.handle_fragment(now, from, name, &fragment, ChecksumPolicy::Trusted, |shard, whole| {
                            match whole {
                                Arrival::Packet(packet) => push(shard, &packet),
                                Arrival::Icmp(message) => shard.take_message(now, from, via, device, &message),
                                Arrival::Fragment(_) => shard.drop_packet(DropReason::Fragment),
                            }
                        });
                    }
                    Arrival::Icmp(message) => self.take_message(now, from, via, device, &message),
                }
            });
        match route {
            Ok(Route::Here) => {}
            Ok(Route::Elsewhere(shard)) => self.mail(shard, Mail::Datagram(from, datagram.into())),
            Err(reason) => {
                if reason == DropReason::HandshakeLimit {
                    // There are many of them: in batches they cost less, and what comes beside them waits for a rest at
                    // the most. Whoever does not know our key brings the shard to no rest.
                    self.moderation.count();
                }
                self.drop_packet(reason);
            }
        }
    }

    fn finish_intake(&mut self, now: Instant, intake: Intake<'_>) {
        let Intake { coalescer, mtu, peers, .. } = intake;
        coalescer.flush(|id, party, packet| self.handle_peer_packet(now, Ingress { id, mtu }, party, packet));
        while let Some(slot) = peers.poll_returned() {
            for flow in self.flows.iter().filter(|flow| flow.key.ingress == peer_ingress(slot)) {
                self.stack.try_again(now, flow.id);
            }
        }
    }

    pub(super) fn poll_tun(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(mut reader) = self.tun_reader.take() else { return false };
        let snapshot = Arc::clone(&self.snapshot);
        let mut busy = true;
        let mut taken = 0;
        for _ in 0..TUN_PACKETS_A_TURN {
            // Where the batch is full, what goes on as it is waits to be sent.
            if taken >= TUN_BYTES_A_TURN || self.stack.batch().is_full() {
                break;
            }
            let read = reader.poll_read(cx, |packet, info| {
                self.handle_tun_packet(now, &snapshot, packet, info);
                packet.len()
            });
            match read {
                Poll::Ready(Ok(len)) => taken += len,
                Poll::Ready(Err(error)) => {
                    // A device that is only down has nothing to read. This one was deleted, and its routes with it:
                    // the backstop refuses what was routed here.
                    tracing::error!(%error, "the TUN device is gone: restart the gateway");
                    return false;
                }
                Poll::Pending => {
                    busy = false;
                    break;
                }
            }
        }
        self.tun_reader = Some(reader);
        busy
    }

    fn handle_tun_packet(&mut self, now: Instant, snapshot: &Snapshot, bytes: &[u8], info: FrameInfo) {
        let Some(source) = source_address(bytes) else { return self.drop_packet(DropReason::Malformed) };
        let device = snapshot.directory.device_by_network(source);
        if device.is_none() && !self.forwards {
            return self.drop_packet(DropReason::UnknownDevice);
        }
        match info.parse(bytes) {
            Ok(Arrival::Fragment(fragment)) => {
                // No device has such a name: each stranger has a share of its own.
                let stranger: Arc<str>;
                let owner = if let Some(device) = device {
                    &device.identity.device
                } else {
                    stranger = format!("from {source}").into();
                    &stranger
                };
                // Whoever cut the packet completed its checksum before.
                self.handle_fragment(now, TUN, owner, &fragment, ChecksumPolicy::Verify, |shard, whole| {
                    shard.handle_tun_arrival(now, device, &whole, true);
                });
            }
            Ok(arrival) => self.handle_tun_arrival(now, device, &arrival, false),
            Err(reason) => self.drop_packet(reason),
        }
    }

    /// A whole packet of the TUN device. `cut`: it came in fragments.
    fn handle_tun_arrival(&mut self, now: Instant, device: Option<&Arc<Device>>, arrival: &Arrival<'_>, cut: bool) {
        match (arrival, device) {
            // By flow, whoever sends it: a target may be a device, too.
            (Arrival::Packet(packet), _) if self.forwards && self.take_return(now, Via::Tun, packet) => {}
            (Arrival::Packet(packet), Some(device)) => {
                // The kernel did not see whose it is, so it may have come to any shard.
                let elsewhere = if cut { self.places.find(&packet.tuple()) } else { None };
                match elsewhere.filter(|shard| *shard != self.index) {
                    Some(shard) => self.mail_packet(shard, packet),
                    None => {
                        let ingress = Ingress { id: TUN, mtu: self.tun_mtu };
                        self.handle_packet(now, OnrampKind::Tun, ingress, device, packet);
                    }
                }
            }
            (Arrival::Packet(_), None) => self.drop_packet(DropReason::UnknownDevice),
            (Arrival::Icmp(message), _) => self.take_message(now, TUN, Via::Tun, device.map(AsRef::as_ref), message),
            (Arrival::Fragment(_), _) => self.drop_packet(DropReason::Fragment),
        }
    }

    /// Keeps a fragment of the device that is named until its packet is complete, which is then taken as if it had come so.
    fn handle_fragment(
        &mut self,
        now: Instant,
        from: IngressId,
        owner: &Arc<str>,
        fragment: &IpFragment<'_>,
        checksums: ChecksumPolicy,
        take: impl FnOnce(&mut Self, Arrival<'_>),
    ) {
        let mut fragments = std::mem::take(&mut self.fragments);
        let whole = fragments.handle_fragment(now, from, owner, fragment);
        match whole.and_then(|whole| whole.map(|bytes| Arrival::parse(bytes, checksums)).transpose()) {
            Ok(Some(Arrival::Packet(packet))) => take(self, Arrival::Packet(packet.of_fragments())),
            Ok(Some(arrival)) => take(self, arrival),
            Ok(None) => {}
            Err(reason) => self.drop_packet(reason),
        }
        self.fragments = fragments;
        self.count_lost_fragments();
    }

    /// Forgets fragments that waited too long for the rest. Returns whether there were any.
    pub(super) fn expire_fragments(&mut self, now: Instant) -> bool {
        let due = self.fragments.poll_timeout().is_some_and(|at| at <= now);
        if due {
            self.fragments.handle_timeout(now);
            self.count_lost_fragments();
        }
        due
    }

    fn count_lost_fragments(&mut self) {
        while let Some((reason, count)) = self.fragments.poll_lost() {
            self.drop_packets(reason, count);
        }
    }

    /// A packet out of the tunnel of a peer: of a flow that its device opens, or back to one that goes on to it.
    fn handle_peer_packet(&mut self, now: Instant, from: Ingress, party: &Party, packet: &IpPacket<'_>) {
        if self.returns.any_by_peers()
            && !self.has_permitted(from.id, packet)
            && self.take_return(now, Via::Peer(party.key), packet)
        {
            return;
        }
        match &party.device {
            Some(device) if device.may_send_from(packet.tuple().source) => {
                if packet.hop_limit() <= 1 {
                    return self.give_up(now, from, packet, DropReason::HopLimit, Unreachable::HopLimit);
                }
                self.handle_packet(now, OnrampKind::Wireguard, from, device, packet);
            }
            Some(_) => self.drop_packets(DropReason::SpoofedSource, packet.count()),
            None => self.drop_packets(DropReason::NoFlow, packet.count()),
        }
    }

    /// Whether a packet belongs to a flow that its sender opened. A refused one is remembered, and yields to a flow that the
    /// packet comes back to.
    fn has_permitted(&mut self, from: IngressId, packet: &IpPacket<'_>) -> bool {
        let flow = self.stack.find(from, packet.tuple()).and_then(|id| self.flows.get_mut(id));
        flow.is_some_and(|flow| flow.is_permitted())
    }

    /// A packet whose device and source are known goes into the stack, and its flow to the policy where it is new.
    fn handle_packet(
        &mut self,
        now: Instant,
        onramp: OnrampKind,
        from: Ingress,
        device: &Arc<Device>,
        packet: &IpPacket<'_>,
    ) {
        match self.stack.handle_packet(now, from, packet) {
            Ok(Handled::Opened(id)) => {
                if onramp == OnrampKind::Tun
                    && let Some(shard) = self.places.find(&packet.tuple()).filter(|shard| *shard != self.index)
                {
                    self.stack.remove(id);
                    return self.mail_packet(shard, packet);
                }
                self.open(now, id, onramp, device, packet.tuple());
                if !self.send_first(now, id, (from, onramp), packet) {
                    self.deliver(id, onramp, packet);
                }
            }
            Ok(Handled::Known(id)) => self.deliver(id, onramp, packet),
            Ok(Handled::Passes(_, passage)) => self.send_on(now, passage, (from, onramp), packet),
            Err(reason) => self.drop_packets(reason, packet.count()),
        }
    }

    /// Hands a packet of the TUN device to the shard that has its flow.
    pub(in crate::shard) fn mail_packet(&mut self, shard: usize, packet: &IpPacket<'_>) {
        self.mail(shard, Mail::Packet(packet.bytes().into(), FrameInfo::known(packet)));
    }

    fn deliver(&mut self, id: FlowId, onramp: OnrampKind, packet: &IpPacket<'_>) {
        let hops = match onramp {
            OnrampKind::Wireguard => packet.hop_limit().saturating_sub(1),
            // The kernel of this host took it on to the device, and counted the hop.
            OnrampKind::Tun => packet.hop_limit(),
        };
        match packet.transport() {
            Transport::Tcp(_) => {}
            Transport::Udp(datagrams) => self.deliver_datagrams(id, datagrams, hops),
            Transport::Echo(echo) => self.deliver_echo(id, packet.tuple().destination, echo, hops),
            Transport::Other(_) => self.deliver_opaque(id),
        }
    }
}

/// The source address of a packet that is not yet validated.
fn source_address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.first()? >> 4 {
        4 => <[u8; 4]>::try_from(bytes.get(12..16)?).ok().map(Into::into),
        6 => <[u8; 16]>::try_from(bytes.get(8..24)?).ok().map(Into::into),
        _ => None,
    }
}
