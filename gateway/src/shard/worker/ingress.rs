//! The way in: datagrams, frames and mail, up to the flow they belong to.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use jiff::Timestamp;
use portcullis_netstack::packet::{ChecksumPolicy, IpPacket, Transport};
use portcullis_netstack::{DropReason, FlowId, Handled, Ingress};

use super::{Shard, TUN, Wireguard, peer_ingress};
use crate::directory::Device;
use crate::flow_record::OnrampKind;
use crate::onramp::tun::FrameInfo;
use crate::onramp::wireguard::peers::{Peers, Route, Surroundings};
use crate::onramp::wireguard::socket::{Endpoint, Outbox};
use crate::shard::mail::Mail;

/// Packets read from the TUN device before anything else has its turn.
const TUN_PACKETS_A_TURN: usize = 128;
/// Batches of mail read before anything else has its turn.
const MAIL_A_TURN: usize = 16;

impl Shard {
    pub(super) fn poll_mail(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        for _ in 0..MAIL_A_TURN {
            let Poll::Ready(Some(mails)) = self.mailbox.poll_recv(cx) else { return false };
            for mail in mails {
                match mail {
                    Mail::Datagram(from, datagram) => self.handle_datagram(now, from, &datagram, true),
                    Mail::Packet(packet, info) => self.handle_tun_packet(now, &packet, info),
                }
            }
        }
        true
    }

    pub(super) fn poll_wireguard(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(mut wireguard) = self.wireguard.take() else { return false };
        let Wireguard { socket, memory, outbox, peers, mtu, .. } = &mut wireguard;
        let polled = socket.poll_receive(cx, memory, |from, datagram| {
            self.take_datagram(now, peers, outbox, *mtu, from, datagram, false);
        });
        self.wireguard = Some(wireguard);
        match polled {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                // An ICMP error about a datagram sent earlier, or memory pressure: the next call goes on.
                tracing::debug!(%error, "receiving from WireGuard clients");
                true
            }
            Poll::Pending => false,
        }
    }

    fn handle_datagram(&mut self, now: Instant, from: Endpoint, datagram: &[u8], verified: bool) {
        let Some(mut wireguard) = self.wireguard.take() else { return };
        let Wireguard { outbox, peers, mtu, .. } = &mut wireguard;
        self.take_datagram(now, peers, outbox, *mtu, from, datagram, verified);
        self.wireguard = Some(wireguard);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of the on-ramp are borrowed one by one")]
    fn take_datagram(
        &mut self,
        now: Instant,
        peers: &mut Peers,
        outbox: &mut Outbox,
        mtu: u16,
        from: Endpoint,
        datagram: &[u8],
        verified: bool,
    ) {
        let snapshot = Arc::clone(&self.snapshot);
        let counters = Arc::clone(&self.counters);
        let mut around =
            Surroundings { directory: &snapshot.directory, now: Timestamp::now(), counters: &counters, outbox };
        let route = peers.handle_datagram(&mut around, from, datagram, verified, |slot, device, packet| {
            let ingress = Ingress { id: peer_ingress(slot), mtu };
            // The tunnel has authenticated every byte from the client on.
            self.handle_packet(now, OnrampKind::Wireguard, ingress, device, packet, FrameInfo::TRUSTED);
        });
        match route {
            Ok(Route::Here) => {}
            Ok(Route::Elsewhere(shard)) => self.mail(shard, Mail::Datagram(from, datagram.into())),
            Err(reason) => self.drop_packet(reason),
        }
    }

    pub(super) fn poll_tun(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(mut reader) = self.tun_reader.take() else { return false };
        let mut busy = true;
        for _ in 0..TUN_PACKETS_A_TURN {
            match reader.poll_read(cx, |packet, info| self.route_tun_packet(now, packet, info)) {
                Poll::Ready(Ok(())) => {}
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

    /// Hands a packet to the shard that owns its flow.
    fn route_tun_packet(&mut self, now: Instant, packet: &[u8], info: FrameInfo) {
        if self.neighbours.len() > 1
            && let Ok(parsed) = IpPacket::parse(packet, ChecksumPolicy::Trusted)
        {
            let owner = spread(&parsed.tuple(), self.neighbours.len());
            if owner != self.index {
                return self.mail(owner, Mail::Packet(packet.into(), info));
            }
        }
        self.handle_tun_packet(now, packet, info);
    }

    fn handle_tun_packet(&mut self, now: Instant, bytes: &[u8], info: FrameInfo) {
        let Some(source) = source_address(bytes) else { return self.drop_packet(DropReason::Malformed) };
        let snapshot = Arc::clone(&self.snapshot);
        let Some(device) = snapshot.directory.device_by_network(source) else {
            return self.drop_packet(DropReason::UnknownDevice);
        };
        let ingress = Ingress { id: TUN, mtu: self.tun_mtu };
        self.handle_packet(now, OnrampKind::Tun, ingress, device, bytes, info);
    }

    /// A packet whose device is known: validated, its source checked, then into the stack.
    fn handle_packet(
        &mut self,
        now: Instant,
        onramp: OnrampKind,
        from: Ingress,
        device: &Arc<Device>,
        bytes: &[u8],
        info: FrameInfo,
    ) {
        let packet = match info.parse(bytes) {
            Ok(packet) => packet,
            Err(reason) => return self.drop_packet(reason),
        };
        if onramp == OnrampKind::Wireguard && !device.addresses.contains(&packet.tuple().source) {
            return self.drop_packet(DropReason::SpoofedSource);
        }
        match self.stack.handle_packet(now, from, &packet) {
            Ok(Handled::Opened(id)) => {
                self.open(now, id, onramp, device, packet.tuple());
                self.deliver(id, &packet);
            }
            Ok(Handled::Known(id)) => self.deliver(id, &packet),
            Err(reason) => self.drop_packet(reason),
        }
    }

    fn deliver(&mut self, id: FlowId, packet: &IpPacket<'_>) {
        match packet.transport() {
            Transport::Tcp(_) => {}
            Transport::Udp(datagrams) => self.deliver_datagrams(id, datagrams),
            Transport::Echo(echo) => self.deliver_echo(id, packet.tuple().destination, echo),
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

/// The shard that owns a flow from the TUN device.
fn spread(tuple: &portcullis_netstack::FiveTuple, shards: usize) -> usize {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    tuple.hash(&mut hasher);
    usize::try_from(hasher.finish() % shards.max(1) as u64).unwrap_or(0)
}
