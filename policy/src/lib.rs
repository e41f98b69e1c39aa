//! The policy engine of Portcullis.
#![forbid(unsafe_code)]

pub mod identity;
mod request;
mod ruleset;
mod verdict;

pub use identity::Identity;
pub use request::{Request, Service};
pub use ruleset::Ruleset;
pub use verdict::{Denial, Permit, Revision, Verdict};
