//! UDP associations, echo exchanges, and what is known of protocols that go on as they are: no connection, only a memory of who spoke when.

use std::time::Instant;

use crate::limits::StackLimits;
use crate::packet::build::{self, QUOTE};
use crate::packet::{IpPacket, Transport};
use crate::tuple::{FiveTuple, Protocol};

const DNS: u16 = 53;

/// A UDP association, an echo exchange, or the packets of another protocol.
#[derive(Clone)]
pub(crate) struct DatagramFlow {
    last_up: Instant,
    last_down: Option<Instant>,
    quote: [u8; QUOTE],
    quote_len: usize,
}

impl DatagramFlow {
    /// Opened by `packet` at `now`.
    pub(crate) fn new(now: Instant, packet: &IpPacket<'_>) -> Self {
        let mut flow = Self { last_up: now, last_down: None, quote: [0; QUOTE], quote_len: 0 };
        flow.heard_client(now, packet);
        flow
    }

    /// Notes a packet from the client.
    pub(crate) fn heard_client(&mut self, now: Instant, packet: &IpPacket<'_>) {
        self.last_up = now;
        let bytes = packet.bytes();
        // Of a super-packet the first datagram is remembered.
        let first = match packet.transport() {
            Transport::Udp(udp) => bytes.len() - udp.payload.len() + udp.size(),
            Transport::Tcp(_) | Transport::Echo(_) | Transport::Other(_) => bytes.len(),
        };
        self.quote_len = first.min(QUOTE);
        let (Some(to), Some(from)) = (self.quote.get_mut(..self.quote_len), bytes.get(..self.quote_len)) else {
            return;
        };
        to.copy_from_slice(from);
        if let Transport::Udp(udp) = packet.transport()
            && udp.count() > 1
        {
            build::set_udp_lengths(to, bytes.len() - udp.payload.len(), udp.size());
        }
    }

    /// When somebody last spoke.
    pub(crate) fn last_active(&self) -> Instant {
        self.last_down.map_or(self.last_up, |down| down.max(self.last_up))
    }

    /// Notes a packet from the target. Returns whether it is the first: another time counts from then on, which may be over
    /// sooner.
    pub(crate) fn heard_target(&mut self, now: Instant) -> bool {
        self.last_down.replace(now).is_none()
    }

    /// Makes the remembered packet the echo request with this sequence number: the client knows its own by that.
    pub(crate) fn quote_sequence(&mut self, sequence: u16) {
        let first = self.quote.first().copied().unwrap_or_default();
        let header = if first >> 4 == 4 { usize::from(first & 15) * 4 } else { build::IPV6_HEADER };
        build::put16(&mut self.quote, header + 6, sequence);
    }

    /// The beginning of the client's last packet, for ICMP errors.
    pub(crate) fn quote(&self) -> &[u8] {
        self.quote.get(..self.quote_len).unwrap_or_default()
    }

    /// When it ends unless somebody speaks, RFC 4787 section 4.3.
    pub(crate) fn deadline(&self, tuple: &FiveTuple, limits: &StackLimits) -> Instant {
        let idle = match (tuple.protocol, self.last_down) {
            (Protocol::Echo | Protocol::Tcp, _) => limits.echo_idle,
            (Protocol::Udp, Some(_)) if tuple.destination_port != DNS => limits.udp_idle,
            (Protocol::Other(_), Some(_)) => limits.udp_idle,
            (Protocol::Udp | Protocol::Other(_), _) => limits.udp_idle_one_way,
        };
        self.last_down.map_or(self.last_up, |down| down.max(self.last_up)) + idle
    }
}
