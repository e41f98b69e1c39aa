//! Flows whose packets go on as they are: out by the TUN device, as if this host had only routed them, and back by it.

use std::time::Instant;

use portcullis_netstack::packet::{IcmpMessage, IpPacket, Transport};
use portcullis_netstack::{Direction, DropReason, FlowId, ForwardEnd, Handled, Ingress, IngressId, Protocol, Refusal};

use super::flow::{Flow, Target};
use super::mail::Mail;
use super::worker::{Shard, TUN};
use crate::directory::Device;
use crate::flow_record::{FlowEnd, OnrampKind};
use crate::limits::Resource;
use crate::offramp::DialError;
use crate::onramp::tun::FrameInfo;

impl Shard {
    /// Has the packets of a permitted flow go on as they are.
    pub(super) fn forward(&mut self, now: Instant, mut flow: Flow) {
        let id = flow.id;
        if flow.target_address() != flow.destination() {
            return self.dial_failed(now, flow, &DialError::CannotRewrite);
        }
        if let Some(share) = &mut flow.share {
            // Nothing is dialled.
            share.release(Resource::Dials);
        }
        if !self.stack.forward(now, id, self.away()) {
            // The client took its SYN back, or the target has a flow of its own with the same addresses and ports.
            return self.refuse(flow, FlowEnd::Error, Refusal::Reset);
        }
        // Another off-ramp was tried: of its datagrams only the payload is here.
        let held = std::mem::replace(&mut flow.target, Target::Forward).take_held();
        self.drop_packets(DropReason::QueueFull, held.len());
        let opened = flow.key.tuple.protocol != Protocol::Tcp;
        self.enter(flow);
        if opened {
            self.counters.flows_opened.add(1);
        }
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
    pub(super) fn send_first(&mut self, id: FlowId, onramp: OnrampKind, packet: &IpPacket<'_>) -> bool {
        if !matches!(self.flows.get_mut(id), Some(Flow { target: Target::Forward, .. })) {
            return false;
        }
        match packet.transport() {
            // The stack sent the SYN on.
            Transport::Tcp(_) => return true,
            Transport::Udp(udp) => self.stack.delivered(id, udp.payload.len()),
            Transport::Echo(echo) => self.stack.delivered(id, echo.data.len()),
        }
        self.send_on(self.away(), onramp, packet);
        true
    }

    /// Sends on a packet of a forwarded flow. One that goes back into the device that it came from goes at once, from the
    /// memory it was read into.
    pub(super) fn send_on(&mut self, to: Ingress, onramp: OnrampKind, packet: &IpPacket<'_>) {
        let whole = packet.offload().is_some() || packet.bytes().len() <= usize::from(to.mtu);
        if onramp == OnrampKind::Tun
            && to.id == TUN
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
        if let Err(reason) = self.stack.send_on(to, packet) {
            self.drop_packets(reason, packet.count());
        }
    }

    /// Takes a packet of the TUN device that comes back to the client of a forwarded flow. Returns whether it is one.
    pub(super) fn take_return(&mut self, now: Instant, packet: &IpPacket<'_>) -> bool {
        let tuple = packet.tuple();
        match self.stack.forwarded_of(TUN, tuple) {
            Some((_, Direction::Down)) => {
                let from = Ingress { id: TUN, mtu: self.tun_mtu };
                match self.stack.handle_packet(now, from, packet) {
                    Ok(Handled::Passes(_, to)) => self.send_on(to, OnrampKind::Tun, packet),
                    // It is of no other flow.
                    Ok(Handled::Known(_) | Handled::Opened(_)) => {}
                    Err(reason) => self.drop_packets(reason, packet.count()),
                }
                true
            }
            Some((_, Direction::Up)) => false,
            None => match self.returns.find(&tuple).filter(|shard| *shard != self.index) {
                Some(shard) => {
                    self.mail_packet(shard, packet);
                    true
                }
                None => false,
            },
        }
    }

    /// Takes an ICMP message that opens no flow: it is for one that is forwarded, or for nobody. `device`: whose address it
    /// comes from.
    pub(super) fn take_message(
        &mut self,
        now: Instant,
        from: IngressId,
        device: Option<&Device>,
        message: &IcmpMessage<'_>,
    ) {
        match self.stack.forwarded_by(from, message) {
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
                let elsewhere = self.returns.find(&tuple).or_else(|| self.places.find(&tuple));
                match elsewhere.filter(|shard| from == TUN && *shard != self.index) {
                    Some(shard) => self.mail(shard, Mail::Packet(message.bytes().into(), FrameInfo::TRUSTED)),
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
        let wireguard = self.config.wireguard.as_ref().map_or(0, |wireguard| wireguard.mtu);
        Ingress { id: TUN, mtu: self.tun_mtu.max(wireguard) }
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
