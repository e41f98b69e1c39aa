//! The WireGuard on-ramp: a UDP socket a shard, and the peers the shard owns.

pub mod handshake_limits;
pub mod owners;
pub mod peers;
mod reuseport;
pub mod socket;
