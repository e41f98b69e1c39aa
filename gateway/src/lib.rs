//! Portcullis, the gateway: the only crate with IO.

pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod destination;
pub mod directory;
pub mod drain;
pub mod explain;
pub mod files;
pub mod flow_log;
pub mod flow_record;
pub mod metrics;
pub mod nearest;
pub mod prefix;
pub mod rulesets;
pub mod shard;
pub mod signals;
pub mod telemetry;
