//! Static configuration: `file` is what was written, `resolved` is what it means.

pub mod resolved;

pub use resolved::Config;
