//! `portcullis policy explain`.

use std::io::{self, Write};
use std::sync::Arc;

use jiff::Timestamp;
use portcullis_policy::parse_destination;

use super::output::{load_config, print};
use super::{ExitStatus, ExplainArgs, client};
use crate::config::Config;
use crate::control::api::{ExplainRequest, Explanation};
use crate::destination;
use crate::explain::{ExplainError, explain};
use crate::offramp::Offramps;
use crate::rulesets;
use crate::telemetry::escape;

/// Runs the verb: asks the running gateway, or with `--policy` that file with the configured directory.
pub fn run(args: ExplainArgs) -> ExitStatus {
    if let Err(error) = parse_destination(&args.to) {
        // Nobody reads standard error: the exit status still tells.
        let _ = writeln!(io::stderr(), "portcullis: --to: {error}");
        return ExitStatus::Usage;
    }
    let mut config = match load_config(&args.config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    let question = ExplainRequest { device: args.device, user: args.user, to: args.to, at: args.at };
    let (value, json) = match args.policy {
        Some(policy) => {
            config.policy = policy;
            match from_files(config, &question) {
                Ok(value) => {
                    let json = args.json.then(|| serde_json::to_string(&value));
                    (value, json.and_then(Result::ok))
                }
                Err(status) => return status,
            }
        }
        None => match client::post::<Explanation>(&config.control, "/v1/explain", &question) {
            Ok(answer) => (answer.value, args.json.then_some(answer.text)),
            Err(error) => {
                let status = error.report();
                if status == ExitStatus::NotRunning {
                    let _ = writeln!(io::stderr(), "to ask a policy file without a gateway: --policy FILE");
                }
                return status;
            }
        },
    };
    print(&json.unwrap_or_else(|| page(&value)))
}

fn from_files(config: Config, question: &ExplainRequest) -> Result<Explanation, ExitStatus> {
    let mut err = io::stderr().lock();
    let own = destination::own_addresses(&config).map_err(|error| {
        let _ = writeln!(err, "portcullis: cannot list this host's addresses: {error}");
        ExitStatus::Failed
    })?;
    let config = Arc::new(config);
    let now = Timestamp::now();
    let snapshot = rulesets::load(&config, None, own, now).map_err(|problems| {
        for problem in &problems {
            let _ = writeln!(err, "{problem}");
        }
        ExitStatus::of_files(problems.iter().map(|problem| problem.denied))
    })?;
    let offramps = Offramps::new(&config).map_err(|error| {
        let _ = writeln!(err, "portcullis: {error}");
        ExitStatus::Failed
    })?;
    explain(&snapshot, (&config, &offramps), question, now, false).map_err(|error| {
        let _ = writeln!(err, "portcullis: {error}");
        match error {
            ExplainError::Target(_) | ExplainError::Who => ExitStatus::Usage,
            ExplainError::UnknownDevice(_) | ExplainError::UnknownUser(_) | ExplainError::NoDevice(_) => {
                ExitStatus::Failed
            }
        }
    })
}

fn page(explanation: &Explanation) -> String {
    let mut out = String::new();
    for answer in &explanation.answers {
        for line in answer.text.lines() {
            escape(line, &mut out);
            out.push('\n');
        }
    }
    out
}
