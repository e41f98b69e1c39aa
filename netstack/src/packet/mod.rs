//! Packets: parsed once, then trusted.

pub mod build;
pub(crate) mod checksum;
mod extension;
pub(crate) mod fragment;
mod parse;
mod transport;

pub use fragment::{Arrival, IpFragment};
pub use parse::{ChecksumPolicy, IpPacket};
pub use transport::{Echo, TcpSegment, Transport, UdpDatagram};
