//! `portcullis reload`.

use super::{ExitStatus, ReloadArgs};

/// Runs the verb.
pub fn run(_args: ReloadArgs) -> ExitStatus {
    ExitStatus::Failed
}
