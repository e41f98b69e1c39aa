//! A connection that we open ourselves, to a target that no kernel of ours leads to. The other end of it is what the
//! client is of any other: the one that packets come from.

use std::time::Instant;

use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{IpAddress, IpListenEndpoint};

use super::super::memory::Allowance;
use super::{Rings, TcpSocket, fit_maximum_segment_size};
use crate::device::FlowLink;
use crate::drop_reason::DropReason;
use crate::flow::CloseCause;
use crate::packet::TcpSegment;
use crate::packet::build::{LEAST_MTU_V4, LEAST_MTU_V6};
use crate::sequence::before;
use crate::tuple::FiveTuple;

impl TcpSocket {
    /// Opens a connection to where packets with `tuple` come from, which may answer until `answer_by`. The SYN leaves when
    /// the connection next [transmits](Self::transmit).
    pub(crate) fn connect(
        parts: (Rings, Allowance),
        tuple: &FiveTuple,
        seed: u64,
        (now, answer_by): (Instant, Instant),
        time: StackInstant,
        link: &mut FlowLink<'_>,
    ) -> Self {
        let mut socket = Self::closed(parts, tuple, seed, now, time, link);
        socket.answer_by = Some(answer_by);
        let local = IpListenEndpoint { addr: Some(tuple.destination.into()), port: tuple.destination_port };
        let Self { interface, sockets, handle, .. } = &mut socket;
        let inner: &mut Socket<'_> = sockets.get_mut(*handle);
        let remote = (IpAddress::from(tuple.source), tuple.source_port);
        if inner.connect(interface.context(), remote, local).is_err() {
            // A port 0, or an address that is none: nobody will answer.
            socket.cause = Some(CloseCause::Timeout);
        }
        socket
    }

    /// Takes what comes back for our SYN: the other end's, or a reset.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        time: StackInstant,
        segment: &TcpSegment<'_>,
        link: &mut FlowLink<'_>,
    ) -> Result<(), DropReason> {
        let Some(packet) = link.received.take() else { return Ok(()) };
        if segment.syn && !segment.ack {
            // Both at once: nobody there knows our port.
            return Err(DropReason::UnacceptableSegment);
        }
        if segment.syn {
            self.learn(now, segment, link.mtu);
            let mut packet = packet.to_vec();
            fit_maximum_segment_size(&self.tuple, link.mtu, &mut packet);
            self.feed(time, &packet, link);
        } else {
            self.feed(time, packet, link);
        }
        match self.state() {
            State::SynSent => {
                if segment.ack && !segment.syn && !segment.rst && !std::mem::replace(&mut self.was_asked_again, true) {
                    // The other end is still in TIME-WAIT of a former connection (RFC 9293 section 3.10.7.4). It has our
                    // reset, so the SYN is worth another try at once, as Linux has it.
                    self.repeat_syn(time, link);
                }
                return Err(DropReason::UnacceptableSegment);
            }
            State::Closed => self.cause = Some(CloseCause::ClientReset),
            State::Listen
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {
                self.recovery.answered(segment);
                self.last_active = now;
                // With the acknowledgment leaves the window, which what comes next is measured by.
                self.poll_egress(time, link);
            }
        }
        self.note_debt(now);
        Ok(())
    }

    /// Sends the SYN again, before its time.
    fn repeat_syn(&mut self, time: StackInstant, link: &mut FlowLink<'_>) {
        if let Some(at) = self.interface.poll_at(time, &self.sockets)
            && at > time
        {
            self.ahead += at - time;
            self.poll_egress(at, link);
        }
    }

    /// Whether we opened it.
    pub(crate) fn is_own(&self) -> bool {
        self.answer_by.is_some()
    }

    /// Says that it is over, and why. The other end is not told.
    pub(crate) fn give_up(&mut self, cause: CloseCause) {
        self.cause = self.cause.or(Some(cause));
    }

    /// Whether `sequence` is of something that is under way: only about that an ICMP error may speak (RFC 5927 section 4).
    pub(crate) fn has_under_way(&self, sequence: u32) -> bool {
        if self.state() == State::SynSent {
            // The one segment there is; smoltcp keeps its number to itself.
            return true;
        }
        let out = self.outstanding();
        let una = self.recovery.una();
        una.is_some_and(|una| !before(sequence, una) && before(sequence, out.frontier))
    }

    /// Packets of more than `mtu` bytes do not arrive: smaller ones leave from now on, and take up what was lost.
    pub(crate) fn lower_mtu(&mut self, mtu: u16) {
        let least = if self.tuple.source.is_ipv4() { LEAST_MTU_V4 } else { LEAST_MTU_V6 };
        let headers = u16::try_from(self.segmentation.headers).unwrap_or(u16::MAX);
        let size = mtu.max(least).saturating_sub(headers);
        if size < self.segmentation.size {
            self.segmentation.size = size;
            self.recovery.lower_segment_size(size.into());
        }
    }
}
