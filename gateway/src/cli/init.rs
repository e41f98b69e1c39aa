//! `portcullis init`.

use super::{ExitStatus, InitArgs};

/// Runs the verb.
pub fn run(_args: InitArgs) -> ExitStatus {
    ExitStatus::Failed
}
