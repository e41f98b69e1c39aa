//! Packets: parsed once, then trusted.

pub mod build;
pub(crate) mod checksum;
mod parse;

pub use parse::{ChecksumPolicy, Echo, IpPacket, TcpSegment, Transport, UdpDatagram};
