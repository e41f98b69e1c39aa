//! `portcullis kill`.

use super::output::{load_config, print};
use super::{ExitStatus, KillArgs, client};
use crate::control::api::{KillReport, KillRequest};

/// Runs the verb. A flow that is not there is a failure; a device or user without flows is not.
pub fn run(args: KillArgs) -> ExitStatus {
    let config = match load_config(&args.config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    let request = KillRequest { flow: args.flow, device: args.device, user: args.user };
    let answer = match client::post::<KillReport>(&config.control, "/v1/kill", &request) {
        Ok(answer) => answer,
        Err(error) => return error.report(),
    };
    let killed = answer.value.killed;
    let printed = if args.json { print(&answer.text) } else { print(&format!("{killed} flows ended")) };
    if killed == 0 && request.flow.is_some() { ExitStatus::Failed } else { printed }
}
