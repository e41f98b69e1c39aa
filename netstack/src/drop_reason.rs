//! Why a packet was dropped.

use std::fmt;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $text:literal,)+) => {
        /// Why a packet or datagram was discarded. The word is log field, metric label and test value.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every reason.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$name),+];

            /// The word used in logs and as metric label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

drop_reasons! {
    /// Lengths, versions or header fields contradict each other.
    Malformed => "malformed",
    /// A checksum does not hold.
    Checksum => "checksum",
    /// A fragment that can be part of no datagram, or came before.
    Fragment => "fragment",
    /// A fragment of a datagram whose fragments overlap (RFC 5722).
    FragmentOverlap => "fragment_overlap",
    /// A fragment over the limits of reassembly.
    FragmentLimit => "fragment_limit",
    /// A fragment whose datagram was never completed.
    FragmentTimeout => "fragment_timeout",
    /// An IPv6 extension header that is unknown, a routing header, or too many of them.
    ExtensionHeader => "extension_header",
    /// A transport protocol the gateway does not carry.
    Protocol => "protocol",
    /// The destination can never be reached through the gateway.
    ForbiddenDestination => "forbidden_destination",
    /// The source address can never be a client's.
    ForbiddenSource => "forbidden_source",
    /// The source address is not the device's own.
    SpoofedSource => "spoofed_source",
    /// No device is known by this source address.
    UnknownDevice => "unknown_device",
    /// The device is disabled, revoked or expired.
    DeviceDisabled => "device_disabled",
    /// A TCP segment that belongs to no flow and opens none.
    NoFlow => "no_flow",
    /// An ICMP message that is not an echo request.
    IcmpType => "icmp_type",
    /// A packet that may take no hop more.
    HopLimit => "hop_limit",
    /// A packet that does not fit where it is to go, and may not be cut.
    TooBig => "too_big",
    /// A limit on flows was reached.
    Limit => "limit",
    /// The flow's policy says to drop in silence.
    DeniedSilently => "denied_silently",
    /// A TCP segment unacceptable in its flow (RFC 5961).
    UnacceptableSegment => "unacceptable_segment",
    /// An answer that was not made: its client caused too many.
    AnswerLimit => "answer_limit",
    /// An echo request too many.
    EchoLimit => "echo_limit",
    /// The gateway is draining and opens no new flow.
    Draining => "draining",
    /// A queue towards a target or another shard is full.
    QueueFull => "queue_full",
    /// A WireGuard datagram for no known peer or session.
    UnknownPeer => "unknown_peer",
    /// A WireGuard datagram that fails authentication or is a replay.
    Unauthentic => "unauthentic",
    /// A WireGuard handshake over its limits.
    HandshakeLimit => "handshake_limit",
    /// The kernel refused to send it.
    SendFailed => "send_failed",
}

impl DropReason {
    /// Position in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
