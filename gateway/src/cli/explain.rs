//! `portcullis explain`.

use super::{ExitStatus, ExplainArgs};

/// Runs the verb.
pub fn run(_args: ExplainArgs) -> ExitStatus {
    ExitStatus::Failed
}
