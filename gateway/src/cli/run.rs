//! `portcullis run`.

use std::error::Error as _;

use tokio::sync::mpsc;

use super::output::load_config;
use super::{ExitStatus, RunArgs};
use crate::app::{Gateway, Outcome, StartError};
use crate::config::Config;
use crate::host::routes::RouteError;
use crate::host::tun::TunError;
use crate::signals::Signals;
use crate::telemetry;

/// Signals that have come and are not looked at yet.
const SIGNALS: usize = 8;

/// Runs the verb: the gateway, until it is told to stop.
pub fn run(args: RunArgs) -> ExitStatus {
    let config = match load_config(&args.config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    telemetry::init();
    // Control only: the shards bring runtimes of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitStatus::Failed;
        }
    };
    let status = runtime.block_on(gateway(config));
    // A shard that hangs, or a disk, must not hold the end up.
    runtime.shutdown_background();
    status
}

async fn gateway(config: Config) -> ExitStatus {
    let mut signals = match Signals::bind() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "cannot listen to signals");
            return ExitStatus::Failed;
        }
    };
    let (sender, receiver) = mpsc::channel(SIGNALS);
    tokio::spawn(async move { while sender.send(signals.next().await).await.is_ok() {} });
    let served = match Gateway::bind(config).await {
        Ok(gateway) => gateway.serve(receiver).await,
        Err(error) => Err(error),
    };
    match served {
        Ok(Outcome::Stopped) => ExitStatus::Done,
        Ok(Outcome::Cut | Outcome::Broken(_)) => ExitStatus::Failed,
        Err(error) => refused(&error),
    }
}

/// Says why there is no gateway.
fn refused(error: &StartError) -> ExitStatus {
    match error {
        StartError::Files(problems) => {
            for problem in problems {
                tracing::error!("{problem}");
            }
            tracing::error!("not started: a gateway without a good policy and directory would have to guess");
            ExitStatus::of_files(problems.iter().map(|problem| problem.denied))
        }
        StartError::Key(error) => {
            tracing::error!("{error}");
            ExitStatus::of_files([error.is_denied()])
        }
        StartError::Tun(TunError::NotPermitted { .. }) | StartError::Routes(RouteError::NotPermitted { .. }) => {
            tracing::error!("not started: {error}");
            ExitStatus::NotPermitted
        }
        StartError::Control(_)
        | StartError::Tun(_)
        | StartError::Routes(_)
        | StartError::Thread(_)
        | StartError::State(_)
        | StartError::Metrics { .. }
        | StartError::FlowLog { .. }
        | StartError::OwnAddresses(_)
        | StartError::Shards(_) => {
            let mut reason = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                reason.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            tracing::error!("not started: {reason}");
            ExitStatus::Failed
        }
    }
}
