//! The userspace stack of Portcullis.
#![forbid(unsafe_code)]
