//! The real binary between network namespaces, one scenario after another.
//!
//! One program for all of them: linked once, and what one waits for another uses.

mod attacks_front;
mod attacks_limits;
mod attacks_packets;
mod bulk;
mod crash;
mod failover;
mod forwarding;
mod guarded;
mod history;
mod lab;
mod lifecycle;
mod live_policy;
mod paths;
mod posture;
mod protocols;
mod proxies;
mod readme;
mod refused;
mod revoked;
mod rewrite;
mod shards;
mod sites;
mod steering;
mod swaps;
mod tcp;
mod udp_and_ping;
mod watch;
mod wireguard;
