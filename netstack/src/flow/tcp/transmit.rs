//! The way out of a connection: what is new, and what is lost.

use std::time::Instant;

use smoltcp::iface::PollResult;
use smoltcp::socket::tcp::Socket;
use smoltcp::time::Instant as StackInstant;

use super::super::recovery::Outstanding;
use super::TcpSocket;
use crate::device::FlowLink;
use crate::sequence::before;

/// Most packets one flow may send before the next flow has its turn.
const PACKETS_A_TURN: u32 = 64;
/// How often smoltcp is asked to go back: what it wants to do before comes first.
const LOOKS: usize = 4;

impl TcpSocket {
    /// The client can be reached again. Returns whether that changes anything.
    pub(crate) fn try_again(&mut self, now: Instant) -> bool {
        let outstanding = self.outstanding();
        let again = self.recovery.try_again(now, outstanding);
        if again {
            self.gate.wanted.clear();
        }
        again
    }

    /// Lets smoltcp make a packet. Returns whether it made one.
    pub(super) fn poll_egress(&mut self, time: StackInstant, link: &mut FlowLink<'_>) -> bool {
        let before = link.made;
        link.gate = std::mem::take(&mut self.gate);
        let result = self.interface.poll_egress(time, link, &mut self.sockets);
        self.gate = std::mem::take(&mut link.gate);
        result != PollResult::None && link.made != before
    }

    /// Makes smoltcp go back to the first unacknowledged byte: its retransmission timer is made to be due.
    fn go_back(&mut self, time: StackInstant, link: &mut FlowLink<'_>) {
        self.gate.went_back = false;
        self.gate.kept_alive = false;
        for _ in 0..LOOKS {
            let now = time + self.ahead;
            if let Some(at) = self.interface.poll_at(now, &self.sockets)
                && at > now
            {
                self.ahead += at - now;
            }
            let made = self.poll_egress(time + self.ahead, link);
            if self.gate.kept_alive && !self.gate.went_back {
                // There is no timer that could be made due: the client's answers to keep-alives have it go back. Until
                // then what is wanted would be wanted, and the clock moved, without an end.
                self.gate.wanted.clear();
                return;
            }
            if !made || self.gate.went_back {
                return;
            }
        }
    }

    /// Sends what may be sent now. Returns whether there is more than a turn's worth.
    pub(crate) fn transmit(&mut self, now: Instant, time: StackInstant, link: &mut FlowLink<'_>) -> bool {
        if self.is_held_open(time + self.ahead) {
            return false;
        }
        link.segmentation = Some(self.segmentation);
        if self.owed_since.is_none() && self.socket().keep_alive().is_some() {
            self.socket().set_keep_alive(None);
        }
        self.gate.shut = self.recovery.is_shut();
        self.gate.keep_alive = self.socket().keep_alive().is_some();
        self.gate.una = self.recovery.una().unwrap_or_default();
        let outstanding = self.outstanding();
        let una = self.gate.una;
        if self.recovery.handle_timeout(now, outstanding) {
            self.gate.wanted.clear();
        }
        self.gate.wanted.retain(|range| before(una, range.end));
        if self.gate.shut {
            // Nothing but smoltcp's questions may leave. It does not go back either, so what is wanted would be wanted, and
            // its clock moved, without an end.
            self.gate.wanted.clear();
        } else if self.gate.wanted.is_empty() {
            self.recovery.repeat(now, outstanding, &mut self.gate.wanted);
        }
        if !self.gate.wanted.is_empty() {
            self.go_back(time, link);
        }
        let first = self.outstanding().frontier;
        let more = self.transmit_turn(time + self.ahead, link);
        if !more {
            // What smoltcp did not come to, for the client's window is smaller now, the timer takes up again.
            self.gate.wanted.clear();
        }
        let outstanding = self.outstanding();
        if first != outstanding.frontier && outstanding.queued == 1 && self.socket().send_queue() == 0 {
            self.recovery.handle_fin(now);
        }
        more
    }

    fn transmit_turn(&mut self, time: StackInstant, link: &mut FlowLink<'_>) -> bool {
        let first = link.sent;
        loop {
            if !self.poll_egress(time, link) {
                return link.batch.is_full()
                    && self.interface.poll_at(time, &self.sockets).is_some_and(|at| at <= time);
            }
            if link.sent - first >= PACKETS_A_TURN {
                return true;
            }
        }
    }

    /// What is not acknowledged.
    pub(super) fn outstanding(&self) -> Outstanding {
        let queue = self.sockets.get::<Socket<'_>>(self.handle).send_queue();
        let una = self.recovery.una().unwrap_or_default();
        let frontier = self.gate.frontier().filter(|frontier| !before(*frontier, una)).unwrap_or(una);
        // A FIN that was sent is one more than the ring holds.
        Outstanding { queued: queue.max(frontier.wrapping_sub(una) as usize), frontier }
    }
}
