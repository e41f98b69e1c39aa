//! Prometheus metrics.

pub mod counters;
pub mod exporter;
pub mod server;
