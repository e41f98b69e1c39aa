//! `portcullis flows`.

use super::{ExitStatus, FlowsArgs};

/// Runs the verb.
pub fn run(_args: FlowsArgs) -> ExitStatus {
    ExitStatus::Failed
}
