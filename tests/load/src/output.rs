//! Results on standard output.

use std::fmt::Display;
use std::io::{self, Write};

use crate::error::LoadError;

/// Prints one line, at once.
pub(crate) fn line(result: &impl Display) -> Result<(), LoadError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{result}").and_then(|()| out.flush()).map_err(LoadError::doing("write to standard output"))
}
