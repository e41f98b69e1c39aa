//! The control side: what administrators ask of a running gateway.
//!
//! HTTP/1.1 and JSON over a Unix socket. Who asks is known from the kernel ([`peer`]), what may be asked is in
//! [`api`], the answers come from [`server`].

pub mod api;
pub mod changes;
pub mod history;
pub mod listener;
pub mod peer;
pub mod plan;
pub mod posture;
mod revisions;
pub mod server;
pub mod shards;
pub mod socket;

#[cfg(test)]
pub(crate) mod tests;
