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
pub mod host;
pub mod keys;
pub mod metrics;
pub mod offramp;
pub mod onramp;
pub mod prefix;
pub mod rulesets;
pub mod shard;
pub mod signals;
mod sys;
pub mod telemetry;
