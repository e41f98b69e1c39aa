//! Portcullis, the gateway: the only crate with IO.

pub mod config;
pub mod directory;
pub mod flow_record;
pub mod host;
pub mod metrics;
pub mod offramp;
pub mod shard;
mod sys;
