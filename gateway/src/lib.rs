//! Portcullis, the gateway: the only crate with IO.

pub mod cli;
pub mod config;
pub mod directory;
pub mod files;
pub mod flow_record;
pub mod keys;
pub mod metrics;
pub mod prefix;
pub mod shard;
pub mod telemetry;
