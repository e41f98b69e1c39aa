//! The policy engine of Portcullis.
#![forbid(unsafe_code)]

pub mod address;
pub mod identity;
pub mod json;
mod request;
mod ruleset;
pub mod schedule;
mod verdict;

pub use identity::Identity;
pub use request::{Request, Service};
pub use ruleset::Ruleset;
pub use verdict::{Denial, Permit, Revision, Verdict};
