//! The policy engine of Portcullis.
#![forbid(unsafe_code)]
