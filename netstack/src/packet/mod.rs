//! Packets: parsed once, then trusted.

pub mod build;
pub(crate) mod checksum;
mod extension;
pub(crate) mod fragment;
mod icmp;
mod parse;
pub(crate) mod translate;
mod transport;

pub use fragment::{Arrival, IpFragment};
pub use icmp::{IcmpKind, IcmpMessage};
pub use parse::{ChecksumPolicy, IpPacket, goes_unseen};
pub use transport::{Echo, TcpSegment, Transport, UdpDatagram};
