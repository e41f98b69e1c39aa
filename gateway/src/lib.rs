//! Portcullis, the gateway: the only crate with IO.

pub mod cli;
pub mod config;
pub mod directory;
pub mod files;
pub mod flow_record;
pub mod metrics;
pub mod nearest;
pub mod prefix;
pub mod shard;
