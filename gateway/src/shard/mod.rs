//! The data-plane thread.

pub mod link;
