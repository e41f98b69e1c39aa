//! Bounds of one stack.

use std::time::Duration;

/// Bytes of each of its two rings that a TCP flow may touch without asking for more, see [`RingMemory`](crate::RingMemory).
pub const RING_FLOOR: usize = 16 * 1024;

/// Timeouts and sizes of a stack. Every one is finite.
#[derive(Debug, Clone)]
pub struct StackLimits {
    /// Bytes of each of a TCP flow's two ring buffers.
    pub tcp_buffer: usize,
    /// The target of a connection whose packets go on as they are must answer within this.
    pub opening: Duration,
    /// A client that was answered with SYN-ACK must acknowledge within this.
    pub syn_received: Duration,
    /// A client with something to acknowledge that is silent for this long is given up, RFC 5482.
    pub tcp_user_timeout: Duration,
    /// A TCP flow without a packet from the client or a byte to it ends after this. Packets with which a client only says
    /// that its window is still shut do not count.
    pub tcp_idle: Duration,
    /// A UDP association where only the client spoke, or to port 53, ends after this.
    pub udp_idle_one_way: Duration,
    /// A UDP association where both sides spoke ends after this.
    pub udp_idle: Duration,
    /// An echo exchange ends after this without a packet.
    pub echo_idle: Duration,
    /// Bytes of packets made before the stack waits for them to be sent.
    pub batch: usize,
}
