//! `portcullis policy plan`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::output::{load_config, print, read_named};
use super::{ConfigArg, ExitStatus, client};
use crate::config::Config;
use crate::control::api::Problem;
use crate::control::plan::{AccessChange, EndingFlow, PlanReport, PlanRequest, Who};
use crate::telemetry::escape;
use crate::{destination, rulesets};

/// `portcullis policy plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// The policy that would take the place of the one in force
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Compare with the configured policy file instead of asking the running gateway
    #[arg(long)]
    pub offline: bool,
    /// Judge at this moment (RFC 3339) instead of now
    #[arg(long, value_name = "TIME")]
    pub at: Option<Timestamp>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb: [`ExitStatus::Changes`] when anything would change.
pub fn run(args: PlanArgs) -> ExitStatus {
    let config = match load_config(&args.config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    let (file, policy) = match read_named(&args.file) {
        Ok(read) => read,
        Err(status) => return status,
    };
    let request = PlanRequest { file, policy, at: args.at };
    let report = if args.offline {
        offline(&config, &request).map_err(|problems| {
            for problem in &problems {
                let _ = writeln!(io::stderr(), "{problem}");
            }
            ExitStatus::of_files(problems.iter().map(|problem| problem.denied))
        })
    } else {
        client::post::<PlanReport>(&config.control, "/v1/plan", &request).map(|answer| answer.value).map_err(|error| {
            let status = error.report();
            if status == ExitStatus::NotRunning {
                let _ = writeln!(io::stderr(), "to compare with the policy file without a gateway: --offline");
            }
            status
        })
    };
    let report = match report {
        Ok(report) => report,
        Err(status) => return status,
    };
    // Its fields are strings, numbers and lists of them, which always have a JSON form.
    let text = if args.json { serde_json::to_string(&report).unwrap_or_default() } else { page(&report) };
    let printed = print(&text);
    if printed == ExitStatus::Done && !report.is_nothing() { ExitStatus::Changes } else { printed }
}

fn offline(config: &Config, request: &PlanRequest) -> Result<PlanReport, Vec<Problem>> {
    let own = destination::own_addresses(config).map_err(|error| {
        let message = format!("cannot list this host's addresses: {error}");
        let file = config.source.display().to_string();
        vec![Problem { file, line: None, column: None, path: String::new(), message, denied: false }]
    })?;
    let now = Timestamp::now();
    let snapshot = rulesets::load(config, None, own, now)?;
    let report = crate::plan::plan(&snapshot, config, request, None, now)?;
    Ok(PlanReport { revision: None, ..report })
}

/// The plan for people: flows first, then access, each group on a line.
fn page(report: &PlanReport) -> String {
    /// Most flows and most changes that are shown.
    const SHOWN: usize = 40;
    let flows = report.flows.as_deref().unwrap_or_default();
    let mut lines: Vec<String> = flows.iter().take(SHOWN).map(flow_line).collect();
    let more = |all: usize| (all > SHOWN).then(|| format!("and {} more (--json has all)", all - SHOWN));
    lines.extend(more(flows.len()));
    lines.extend(report.changes.iter().take(SHOWN).map(change_line));
    lines.extend(more(report.changes.len()));
    if !report.complete {
        lines.push("the comparison was too much work and stopped: more may change than is said here".to_owned());
    }
    if report.is_nothing() {
        lines.push("nothing changes".to_owned());
    }
    let mut out = String::new();
    for line in lines {
        escape(&line, &mut out);
        out.push('\n');
    }
    out
}

fn flow_line(flow: &EndingFlow) -> String {
    let EndingFlow { id, user, device, service, .. } = flow;
    let (now, then) = (by(flow.rule_now.as_deref()), by(flow.rule_then.as_deref()));
    format!("ends    flow {id}  {user} ({device})  {}  {service}   {then} (now: {now})", flow.destination.ip())
}

fn change_line(change: &AccessChange) -> String {
    let what = match change.kind.as_str() {
        "opens" => "+ allow",
        "closes" => "- allow",
        "offramp" => "~ off-ramp",
        "rewrite" => "~ target",
        "answer" => "~ answer",
        _ => "~ changes with the clock",
    };
    let who = few(users(&change.who).into_iter());
    let to = few(change.destinations.iter().map(ToString::to_string));
    let services = few(change.services.iter().cloned());
    let (now, then) = (by(change.rule_now.as_deref()), by(change.rule_then.as_deref()));
    format!("{what}  {who}  {to}  {services}   {then} (now: {now})")
}

/// A user each, with the devices of theirs that it is about.
fn users(who: &[Who]) -> Vec<String> {
    // Sorted by user.
    who.chunk_by(|a, b| a.user == b.user)
        .filter_map(|of_user| {
            let devices = few(of_user.iter().map(|who| who.device.clone()));
            of_user.first().map(|who| format!("{} ({devices})", who.user))
        })
        .collect()
}

fn by(rule: Option<&str>) -> String {
    rule.map_or_else(|| "by default".to_owned(), |rule| format!("by {rule}"))
}

/// A list, cut where it gets too long to read.
fn few(items: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 4;
    let left = items.len().saturating_sub(SHOWN);
    let shown = items.take(SHOWN).collect::<Vec<_>>().join(", ");
    if left == 0 { shown } else { format!("{shown} and {left} more") }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::control::tests::{Files, POLICY};

    fn report(config: &Config, policy: &str) -> PlanReport {
        let request = PlanRequest { file: "next.json".to_owned(), policy: policy.to_owned(), at: None };
        offline(config, &request).unwrap()
    }

    #[test]
    fn the_same_policy_changes_nothing_and_another_says_what() {
        let files = Files::new();
        let same = report(&files.config, POLICY);
        assert!(same.is_nothing(), "{same:?}");
        assert_eq!(page(&same), "nothing changes\n");

        let none = report(&files.config, r#"{ "version": 1, "rules": [] }"#);
        assert!(!none.is_nothing() && none.changes.iter().all(|change| change.kind == "closes"), "{none:?}");
        let text = page(&none);
        assert!(text.starts_with("- allow  ann@example.com (ann-laptop)  "), "{text}");
        assert!(text.ends_with("by default (now: by eng)\n"), "{text}");
    }

    #[test]
    fn devices_of_a_user_stand_together() {
        let one = |user: &str, device: String| Who { user: user.to_owned(), device, sources: Vec::new() };
        let mut who = vec![one("ann", "laptop".to_owned()), one("ann", "phone".to_owned())];
        assert_eq!(users(&who), ["ann (laptop, phone)"]);
        who.extend((1..=6).map(|number| one("bob", format!("server-{number}"))));
        let bob = "bob (server-1, server-2, server-3, server-4 and 2 more)";
        assert_eq!(users(&who), ["ann (laptop, phone)", bob]);
    }

    #[test]
    fn a_bad_policy_is_said_with_its_own_name() {
        let files = Files::new();
        let request = PlanRequest { file: "next.json".to_owned(), policy: "{".to_owned(), at: None };
        let problems = offline(&files.config, &request).unwrap_err();
        assert!(problems.iter().all(|problem| Path::new(&problem.file) == Path::new("next.json")), "{problems:?}");
    }
}
