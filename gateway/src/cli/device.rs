//! `portcullis device`.

use super::{DeviceCommand, ExitStatus};

/// Runs the verb.
pub fn run(_command: DeviceCommand) -> ExitStatus {
    ExitStatus::Failed
}
