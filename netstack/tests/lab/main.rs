//! The lab: real and hand-made clients against the stack, over a link with latency, loss, reordering and an MTU, in
//! virtual time. Everything is seeded, so every run is the same run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends where its world is not what it says"
)]

mod answers;
mod bulk;
mod client;
mod closing;
mod connecting;
mod datagrams;
mod forwarding;
mod giving_up;
mod handshake;
mod lab;
mod link;
mod memory;
mod pressure;
mod properties;
mod raw;
mod translation;
mod world;
