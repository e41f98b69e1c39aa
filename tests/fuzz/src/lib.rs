//! Inputs from outside, made up at random: none may panic, and what can be said cheaply about an answer must hold.
//!
//! Each target is a plain function of bytes, so that a fuzzer can call it. The corpora in `corpus/` are replayed by
//! `cargo test`, which also tries some thousand mutations of them, always the same ones.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is how a target says that something is wrong"
)]

mod datagram;
mod documents;
mod evaluate;
mod fragments;
mod input;
pub mod mutate;
mod packets;
mod plan;
mod policies;
mod stack;

pub use datagram::datagram;
pub use documents::{config, directory, policy};
pub use evaluate::evaluate;
pub use packets::packet;
pub use plan::plan;
pub use stack::stack;

/// A target.
pub type Target = fn(&[u8]);

/// Every target with the name of its corpus.
pub const TARGETS: [(&str, Target); 8] = [
    ("packet", packet),
    ("policy", policy),
    ("directory", directory),
    ("config", config),
    ("stack", stack),
    ("datagram", datagram),
    ("evaluate", evaluate),
    ("plan", plan),
];
