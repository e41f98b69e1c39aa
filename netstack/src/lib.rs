//! The userspace TCP/IP stack of Portcullis: packets and time in, packets and states of flows out. It has no clock, no
//! randomness and does no IO; all are arguments.
//!
//! ```text
//!  bytes ──> packet::Arrival::parse ──> Stack::handle_packet ──> Opened: judge, dial, then accept or refuse
//!            once, or a DropReason        FlowKey ─> flow         Known: poll_changed names it once
//!            Reassembler: fragments            │
//!            Coalescer joins neighbours        │
//!                                              │
//!  time ───> Stack::handle_timeout ────────────┤        TCP: recv_with, send_with, close, cause, transmit
//!            earliest deadline of all flows    │        UDP, echo: delivered, send_datagram, send_echo_reply
//!                                              v
//!                                         PacketBatch ──> the on-ramps
//! ```
//!
//! - A flow is found by where it entered and its five-tuple ([`FlowKey`]), and named by a [`FlowId`] that is never used
//!   again. Only a bare SYN, a UDP datagram or an echo request opens one.
//! - A flow may also be [forwarded](Stack::forward): its packets go on as they are, and the stack only watches both ends.
//! - A SYN is *held*: there is no socket and no buffer before [`Stack::accept`]. Then the flow gets a smoltcp interface
//!   with one socket of its own, and the SYN is played into it.
//! - Bytes move between the caller's sockets and smoltcp's rings without a buffer in between.
//! - What rings touch of their memory is bounded by who accepted the flow ([`RingMemory`]); a flow that gets no more goes
//!   on in a smaller ring.
//! - UDP datagrams may come and go many in one packet ([`packet::IpPacket::with_offload`], [`Stack::send_datagrams`]):
//!   parsed, looked up and built once, counted one by one.
//! - What smoltcp lacks stands in front of it: congestion control and recovery from loss (`flow::recovery`), timeouts
//!   for half-open, silent and idle connections, challenges of RFC 5961, a socket that survives until the target has
//!   every byte. What holds of RFC 9293, and what does not, is in [`rfc9293`].
//! - Answers of the stack's own making, and echo requests, have a rate for each address (`answers`).
//! - Each flow has at most one deadline in force; a heap knows the earliest. Nothing ticks over all flows.
#![forbid(unsafe_code)]

mod answers;
mod batch;
mod coalesce;
mod deadlines;
mod device;
mod drop_reason;
mod flow;
mod gate;
mod limits;
pub mod packet;
pub mod reassembly;
#[doc = include_str!("rfc9293.md")]
pub mod rfc9293 {}
pub mod segment;
mod sequence;
mod stack;
mod tuple;

pub use batch::PacketBatch;
pub use coalesce::Coalescer;
pub use drop_reason::DropReason;
pub use flow::forward::{Direction, ForwardEnd};
pub use flow::memory::RingMemory;
pub use flow::{CloseCause, Traffic};
pub use limits::{RING_FLOOR, StackLimits};
pub use reassembly::Reassembler;
pub use stack::{Handled, Ingress, Passage, Refusal, Stack};
pub use tuple::{FiveTuple, FlowId, FlowKey, IngressId, Protocol};
