//! Where clients' packets come in.

pub mod tun;
pub mod wireguard;
