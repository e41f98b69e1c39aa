//! Portcullis, the gateway: the only crate with IO.

pub mod cli;
pub mod config;
pub mod destination;
pub mod directory;
pub mod files;
pub mod flow_record;
pub mod host;
pub mod keys;
pub mod metrics;
pub mod offramp;
pub mod onramp;
pub mod prefix;
pub mod shard;
mod sys;
