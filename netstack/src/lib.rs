//! The userspace stack of Portcullis.
#![forbid(unsafe_code)]

mod drop_reason;

pub use drop_reason::DropReason;
