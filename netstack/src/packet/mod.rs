//! Packets: parsed once, then trusted.

pub mod build;
mod parse;

pub use parse::{ChecksumPolicy, Echo, IpPacket, TcpSegment, Transport, UdpDatagram};
