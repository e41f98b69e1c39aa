//! `portcullis kill`.

use super::{ExitStatus, KillArgs};

/// Runs the verb.
pub fn run(_args: KillArgs) -> ExitStatus {
    ExitStatus::Failed
}
