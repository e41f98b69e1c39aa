//! Flows whose packets go on: by the TUN device, as if this host had only routed them, or through the tunnel of a WireGuard
//! peer; and back the same way.

use std::time::Instant;

use ipnet::IpNet;
use nix::errno::Errno;
use portcullis_netstack::packet::build::Unreachable;
use portcullis_netstack::packet::{Arrival, IcmpMessage, IpPacket, Transport};
use portcullis_netstack::{
    Direction, DropReason, FiveTuple, FlowId, ForwardEnd, Handled, Ingress, IngressId, Passage, Protocol, Refusal,
};

use super::flow::{Flow, Onward, Target};
use super::mail::Mail;
use super::returns::{Return, Via};
use super::worker::{Shard, TUN};
use crate::directory::Device;
use crate::flow_record::{FlowEnd, OnrampKind};
use crate::limits::Resource;
use crate::offramp::{DialError, NextHop};
use crate::onramp::tun::FrameInfo;

impl Shard {
    /// Has the packets of a permitted flow go on to `hop`.
    pub(super) fn forward(&mut self, now: Instant, mut flow: Flow, hop: NextHop) {
        let onward = match self.way_on(now, &flow, hop) {
            Ok(Some(onward)) => onward,
            // The client took its SYN back, or the target has a flow of its own with the same addresses and ports.
            Ok(None) => return self.refuse(flow, FlowEnd::Error, Refusal::Reset),
            Err(error) => return self.dial_failed(now, flow, &error),
        };
        if let Some(share) = &mut flow.share {
            // Nothing is dialled.
            share.release(Resource::Dials);
        }
        // Another off-ramp was tried: of its datagrams only the payload is here.
        let held = std::mem::replace(&mut flow.target, Target::Forward(onward)).take_held();
        self.drop_packets(DropReason::QueueFull, held.len());
        let opened = flow.key.tuple.protocol != Protocol::Tcp;
        self.enter(flow);
        if opened {
            self.counters.flows_opened.add(1);
        }
    }

    /// Finds how the packets of a flow go on, and has them do so. `None`: not like this.
    fn way_on(&mut self, now: Instant, flow: &Flow, hop: NextHop) -> Result<Option<Onward>, DialError> {
        let target = flow.target_address();
        let client = flow.key.tuple;
        if self.stack.client_gave_up(flow.id) {
            return Ok(None);
        }
        if target.is_ipv4() != client.source.is_ipv4() {
            return Err(match hop {
                // There is no other way to it.
                NextHop::Device(_) => DialError::Unreachable(Errno::EHOSTUNREACH),
                NextHop::Kernel | NextHop::Site(_) => DialError::OtherFamily,
            });
        }
        let to = match &hop {
            NextHop::Kernel => self.away(),
            NextHop::Site(site) => self.peer(&site.public_key).ok_or(DialError::NoTunnel)?,
            NextHop::Device(key) => self.peer(key).ok_or(DialError::Unreachable(Errno::EHOSTUNREACH))?,
        };
        let sent = FiveTuple { destination: target.ip(), destination_port: target.port(), ..client };
        // The kernel counts its own hops, before us and after us.
        let counts = flow.onramp == OnrampKind::Wireguard && hop != NextHop::Kernel;
        let mut onward = Onward { hop, passage: Passage { to, tuple: sent, hop: counts } };
        if let NextHop::Site(site) = &onward.hop
            && !site.keeps_client()
        {
            let own = site.own_address(client.source).ok_or(DialError::NoSiteAddress)?;
            // Not the client's own port: another may have had it just now, and what is still on its way to that one would come
            // to this (RFC 6056).
            for port in self.source_ports.towards(target) {
                onward.passage.tuple = FiveTuple { source: own, source_port: port, ..sent };
                let back = onward.back();
                // Claimed first: another shard may be at the same port.
                if !self.returns.claim(back, self.index) {
                    continue;
                }
                if self.stack.forward(now, flow.id, onward.passage) {
                    return Ok(Some(onward));
                }
                self.returns.release(&back, self.index);
            }
            return Err(DialError::PortsExhausted);
        }
        let back = onward.back();
        // A rule may lead two destinations to one target; of the client's own there is only one.
        let is_anothers = sent != client && self.returns.find(&back).is_some_and(|shard| shard != self.index);
        if is_anothers || !self.stack.forward(now, flow.id, onward.passage) {
            return Ok(None);
        }
        self.returns.take(back, self.index);
        Ok(Some(onward))
    }

    /// The tunnel of the peer with this public key as a way out, where some shard has it.
    pub(super) fn peer(&mut self, key: &[u8; 32]) -> Option<Ingress> {
        let shard = self.identity.as_ref()?.owner(key)?;
        Some(Ingress { id: self.hops.number(key, shard), mtu: self.tunnel_mtu() })
    }

    /// Looks at a forwarded connection that was changed. Returns why it is over, when it is.
    pub(super) fn watch_forwarded(&mut self, now: Instant, id: FlowId) -> Option<ForwardEnd> {
        let flow = self.flows.get_mut(id)?;
        if let Some(share) = &mut flow.share
            && share.holds(Resource::HalfOpen)
            && self.stack.is_established(id)
        {
            share.release(Resource::HalfOpen);
            let took = now.saturating_duration_since(flow.opened);
            flow.dial = Some(took);
            self.counters.dial.observe(took);
            self.counters.flows_opened.add(1);
        }
        self.stack.forward_end(id)
    }

    /// Sends on the datagram, or echo request, that opened a forwarded flow. Returns whether it opened such a flow.
    pub(super) fn send_first(
        &mut self,
        now: Instant,
        id: FlowId,
        (from, onramp): (Ingress, OnrampKind),
        packet: &IpPacket<'_>,
    ) -> bool {
        let Some(Flow { target: Target::Forward(onward), .. }) = self.flows.get_mut(id) else { return false };
        let passage = onward.passage;
        match packet.transport() {
            // The stack sent the SYN on.
            Transport::Tcp(_) => return true,
            Transport::Udp(udp) => self.stack.delivered(id, udp.payload.len()),
            Transport::Echo(echo) => self.stack.delivered(id, echo.data.len()),
            Transport::Other(data) => self.stack.delivered(id, data.len()),
        }
        self.send_on(now, passage, (from, onramp), packet);
        true
    }

    /// Sends on a packet of a forwarded flow, which came from `from`. One that goes back into the TUN device that it came from
    /// goes at once, from the memory it was read into.
    pub(super) fn send_on(
        &mut self,
        now: Instant,
        passage: Passage,
        (from, onramp): (Ingress, OnrampKind),
        packet: &IpPacket<'_>,
    ) {
        let whole = packet.offload().is_some() || packet.bytes().len() <= usize::from(passage.to.mtu);
        if onramp == OnrampKind::Tun
            && passage.to.id == TUN
            && passage.tuple == packet.tuple()
            && whole
            && packet.is_plain()
            && let Some(tun) = &mut self.tun
        {
            match tun.write_as_read(packet.bytes(), packet.offload()) {
                Ok(true) => return,
                // It needs more than that.
                Ok(false) => {}
                Err(_) => return self.drop_packets(DropReason::SendFailed, packet.count()),
            }
        }
        match self.stack.send_on(passage, packet) {
            Ok(()) => {}
            Err(DropReason::HopLimit) => self.give_up(now, from, packet, DropReason::HopLimit, Unreachable::HopLimit),
            Err(DropReason::TooBig) => {
                self.give_up(now, from, packet, DropReason::TooBig, Unreachable::TooBig(passage.to.mtu));
            }
            Err(reason) => self.drop_packets(reason, packet.count()),
        }
    }

    /// Drops a packet that can go no farther, and tells its sender: we are a hop, as any router is.
    pub(super) fn give_up(
        &mut self,
        now: Instant,
        from: Ingress,
        packet: &IpPacket<'_>,
        reason: DropReason,
        error: Unreachable,
    ) {
        self.drop_packets(reason, packet.count());
        let (source, target) = (packet.tuple().source, packet.tuple().destination);
        // What a packet of ours may come from is for the peer to say; only from its own target it surely takes one, and the
        // kernel takes nothing from the TUN device that says it comes from this host. Where a path ends is for the client
        // to see.
        let names_us = error == Unreachable::HopLimit && from.id != TUN && self.hops.get(from.id).is_none();
        let mut own = self.config.wireguard.iter().flat_map(|wireguard| &wireguard.addresses).map(IpNet::addr);
        let own = own.find(|own| names_us && own.is_ipv4() == source.is_ipv4());
        self.stack.answer_error(now, from, packet, error, own.unwrap_or(target));
    }

    /// Takes a packet that comes back to the client of a forwarded flow. Returns whether it is one.
    pub(super) fn take_return(&mut self, now: Instant, via: Via, packet: &IpPacket<'_>) -> bool {
        let (number, onramp, mtu) = match via {
            Via::Tun => (Some(TUN), OnrampKind::Tun, self.tun_mtu),
            Via::Peer(key) => (self.hops.find(&key), OnrampKind::Wireguard, self.tunnel_mtu()),
        };
        let tuple = packet.tuple();
        if let Some(number) = number
            && self.calls.any()
            && self.stack.own_connection(number, tuple).is_some()
        {
            if let Err(reason) = self.stack.handle_packet(now, Ingress { id: number, mtu }, packet) {
                self.drop_packets(reason, packet.count());
            }
            return true;
        }
        let flow = number.and_then(|number| Some((number, self.stack.forwarded_of(number, tuple)?)));
        match flow {
            Some((number, (_, Direction::Down))) => {
                let from = Ingress { id: number, mtu };
                match self.stack.handle_packet(now, from, packet) {
                    Ok(Handled::Passes(_, passage)) => self.send_on(now, passage, (from, onramp), packet),
                    // It is of no other flow.
                    Ok(Handled::Known(_) | Handled::Opened(_)) => {}
                    Err(reason) => self.drop_packets(reason, packet.count()),
                }
                true
            }
            Some((_, (_, Direction::Up))) => false,
            None => match self.returns.find(&Return { via, tuple }).filter(|shard| *shard != self.index) {
                Some(shard) => {
                    self.mail_return(shard, via, packet.bytes(), FrameInfo::known(packet));
                    true
                }
                None => false,
            },
        }
    }

    fn mail_return(&mut self, shard: usize, via: Via, packet: &[u8], info: FrameInfo) {
        let mail = match via {
            Via::Tun => Mail::Packet(packet.into(), info),
            Via::Peer(key) => Mail::Back(key, packet.into(), info),
        };
        self.mail(shard, mail);
    }

    /// Takes a packet that came back by a peer of another shard.
    pub(super) fn take_back(&mut self, now: Instant, key: [u8; 32], arrival: &Arrival<'_>) {
        match arrival {
            Arrival::Packet(packet) => {
                if !self.take_return(now, Via::Peer(key), packet) {
                    // Its flow ended meanwhile.
                    self.drop_packets(DropReason::NoFlow, packet.count());
                }
            }
            Arrival::Icmp(message) => match self.hops.find(&key) {
                Some(number) => self.take_message(now, number, Via::Peer(key), None, message),
                None => self.drop_packet(DropReason::IcmpType),
            },
            Arrival::Fragment(_) => self.drop_packet(DropReason::Fragment),
        }
    }

    /// Takes an ICMP message that opens no flow: it is for one that is forwarded, or for nobody. It came from `from`, and
    /// with what comes back by `via`. `device`: whose address it comes from.
    pub(super) fn take_message(
        &mut self,
        now: Instant,
        from: IngressId,
        via: Via,
        device: Option<&Device>,
        message: &IcmpMessage<'_>,
    ) {
        let as_hop = match via {
            Via::Tun => None,
            Via::Peer(key) => self.hops.find(&key),
        };
        if let Some(own) = as_hop.and_then(|hop| self.stack.own_connection(hop, message.about().turned())) {
            if let Err(reason) = self.stack.hear_error(now, own, message) {
                self.drop_packet(reason);
            }
            return;
        }
        let flow = self.stack.forwarded_by(from, message);
        match flow.or_else(|| self.stack.forwarded_by(as_hop?, message)) {
            // Any router on the way to the target may say it, but on the client's side only the flow's own device.
            Some((id, Direction::Up)) if !self.is_flow_of(id, device) => self.drop_packet(DropReason::SpoofedSource),
            Some(flow) => {
                // A tunnel takes from us only what comes from where its client sends to.
                let ours = from == TUN && self.snapshot.own_addresses.binary_search(&message.source()).is_ok();
                if let Err(reason) = self.stack.pass_message(now, flow, message, ours) {
                    self.drop_packet(reason);
                }
            }
            None => {
                let tuple = message.about().turned();
                let of_tun = || self.places.find(&tuple).filter(|_| via == Via::Tun);
                let elsewhere = self.returns.find(&Return { via, tuple }).or_else(of_tun);
                match elsewhere.filter(|shard| *shard != self.index) {
                    Some(shard) => self.mail_return(shard, via, message.bytes(), FrameInfo::TRUSTED),
                    None => self.drop_packet(DropReason::IcmpType),
                }
            }
        }
    }

    fn is_flow_of(&mut self, id: FlowId, device: Option<&Device>) -> bool {
        let flow = self.flows.get_mut(id);
        flow.zip(device).is_some_and(|(flow, device)| flow.device.identity.device == device.identity.device)
    }

    /// Where packets leave as they are: this host's kernel, which cuts what does not fit where they go.
    fn away(&self) -> Ingress {
        Ingress { id: TUN, mtu: self.tun_mtu.max(self.tunnel_mtu()) }
    }

    fn tunnel_mtu(&self) -> u16 {
        self.config.wireguard.as_ref().map_or(0, |wireguard| wireguard.mtu)
    }
}

impl From<ForwardEnd> for FlowEnd {
    fn from(end: ForwardEnd) -> Self {
        match end {
            ForwardEnd::ClientClosed => Self::ClientClosed,
            ForwardEnd::TargetClosed => Self::TargetClosed,
            ForwardEnd::ClientReset => Self::ClientReset,
            ForwardEnd::TargetReset => Self::TargetReset,
            ForwardEnd::TargetRefused => Self::TargetRefused,
            ForwardEnd::TargetUnreachable => Self::TargetUnreachable,
            ForwardEnd::NoAnswer => Self::DialTimeout,
            ForwardEnd::Idle => Self::Idle,
        }
    }
}
