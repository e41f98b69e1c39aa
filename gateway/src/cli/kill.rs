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
    match answer.value.killed {
        _ if args.json => print(&answer.text),
        1 => print("1 flow ended"),
        killed => print(&format!("{killed} flows ended")),
    }
}
