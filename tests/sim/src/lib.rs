//! The data plane in one process: real shards, a WireGuard client in the test, targets of this host, all in a network
//! namespace of the test's own. Needs root.
//!
//! ```text
//!  Client: smoltcp over boringtun --- UDP on 127.0.0.1 ---> shards ---> Targets on 10.20.0.1 and fd00:20::1
//! ```
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test harness ends where its world is not what it says"
)]

pub mod client;
pub mod gateway;
pub mod initiator;
pub mod namespace;
pub mod targets;

pub use client::Client;
pub use gateway::Gateway;
pub use initiator::Initiator;
pub use namespace::in_namespace;
pub use targets::Targets;
