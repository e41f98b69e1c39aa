//! Prometheus metrics.

pub mod counters;
