//! `portcullis policy apply`, `confirm`, `history`, `show`, `diff` and `rollback`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output::{load_config, print, print_exactly, read_named, table};
use super::{ConfigArg, ExitStatus, client};
use crate::config::{Config, parse_duration};
use crate::control::history::{ApplyReport, ApplyRequest, ConfirmReport, Diff, History, RevisionText, RollbackRequest};
use crate::state::revisions::Entry;

/// `portcullis policy apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// The policy; it takes the place of the configured policy file too
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Go back by itself after this long (`60s`, `10m`), unless `policy confirm` is said before
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub confirm_within: Option<Duration>,
    /// What it is for; kept in the history
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis policy confirm` and `history`.
#[derive(Debug, Args)]
pub struct PlainArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis policy show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// The revision
    #[arg(value_name = "REV")]
    pub revision: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis policy diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// The older revision
    #[arg(value_name = "A")]
    pub from: u64,
    /// The newer revision
    #[arg(value_name = "B")]
    pub to: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis policy rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// The revision whose policy is to be in force again
    #[arg(value_name = "REV")]
    pub revision: u64,
    /// Why; kept in the history
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("expected a duration like 60s or 10m")
}

/// Asks the gateway, and prints its answer as it came or as `page` has it.
fn ask<T>(
    config: &ConfigArg,
    json: bool,
    question: impl FnOnce(&Config) -> Result<client::Answered<T>, client::ClientError>,
    page: impl FnOnce(&T) -> String,
) -> ExitStatus {
    ask_and(config, json, question, |answer| print(&page(answer)))
}

fn ask_and<T>(
    config: &ConfigArg,
    json: bool,
    question: impl FnOnce(&Config) -> Result<client::Answered<T>, client::ClientError>,
    show: impl FnOnce(&T) -> ExitStatus,
) -> ExitStatus {
    let config = match load_config(&config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    match question(&config) {
        Ok(answer) if json => print(&answer.text),
        Ok(answer) => show(&answer.value),
        Err(error) => error.report(),
    }
}

/// Runs `policy apply`.
pub fn apply(args: ApplyArgs) -> ExitStatus {
    let (file, policy) = match read_named(&args.file) {
        Ok(read) => read,
        Err(status) => return status,
    };
    let confirm_within_s = args.confirm_within.map(|within| within.as_secs());
    let request = ApplyRequest { file, policy, message: args.message, confirm_within_s };
    ask(&args.config, args.json, |config| client::post(&config.control, "/v1/apply", &request), applied)
}

/// Runs `policy rollback`.
pub fn rollback(args: RollbackArgs) -> ExitStatus {
    let request = RollbackRequest { revision: args.revision, reason: args.reason };
    ask(&args.config, args.json, |config| client::post(&config.control, "/v1/rollback", &request), applied)
}

fn applied(answer: &ApplyReport) -> String {
    let mut out = super::reload::page(&answer.report);
    if let Some(until) = answer.confirm_until {
        out.push_str(&format!("it goes back at {until:.0} unless you say: portcullis policy confirm\n"));
    }
    out
}

/// Runs `policy confirm`.
pub fn confirm(args: PlainArgs) -> ExitStatus {
    let page = |answer: &ConfirmReport| format!("revision {} stays\n", answer.revision);
    ask(&args.config, args.json, |config| client::post(&config.control, "/v1/confirm", &()), page)
}

/// Runs `policy history`.
pub fn history(args: PlainArgs) -> ExitStatus {
    ask(&args.config, args.json, |config| client::get(&config.control, "/v1/history"), history_page)
}

fn history_page(history: &History) -> String {
    let mark = |entry: &Entry| match &history.pending {
        Some(pending) if pending.revision == entry.revision => format!("to be confirmed by {:.0}", pending.until),
        Some(_) | None if entry.revision == history.in_force => "in force".to_owned(),
        Some(_) | None => String::new(),
    };
    let rows = history.revisions.iter().map(|entry| {
        let who = entry.who().unwrap_or_else(|| "-".to_owned());
        [entry.revision.to_string(), format!("{:.0}", entry.at), who, about(entry), mark(entry)]
    });
    table(["REVISION", "TIME", "BY", "WHAT", ""], rows)
}

fn about(entry: &Entry) -> String {
    let mut words = entry.source.as_str().to_owned();
    if let Some(back_to) = entry.back_to {
        words.push_str(&format!(" to {back_to}"));
    }
    if let Some(said) = entry.message.as_ref().or(entry.reason.as_ref()) {
        words.push_str(&format!(": {said}"));
    }
    words
}

/// Runs `policy show`.
pub fn show(args: ShowArgs) -> ExitStatus {
    let path = format!("/v1/revisions/{}", args.revision);
    let text = |answer: &RevisionText| print_exactly(&answer.policy);
    ask_and(&args.config, args.json, |config| client::get(&config.control, &path), text)
}

/// Runs `policy diff`.
pub fn diff(args: DiffArgs) -> ExitStatus {
    let path = format!("/v1/diff?from={}&to={}", args.from, args.to);
    ask(&args.config, args.json, |config| client::get(&config.control, &path), diff_page)
}

fn diff_page(diff: &Diff) -> String {
    let mut out: String = diff.changes.iter().map(|change| format!("{change}\n")).collect();
    if !diff.unified.is_empty() {
        out.push('\n');
        out.push_str(&diff.unified);
    }
    if out.is_empty() { "no difference\n".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::state::revisions::{Pending, Source};

    #[test]
    fn the_history_names_who_and_what() {
        let at: Timestamp = "2027-01-01T00:00:00Z".parse().unwrap();
        let entry = |revision, source| Entry {
            revision,
            at,
            source,
            uid: Some(0),
            policy_sha256: String::new(),
            directory_sha256: String::new(),
            message: None,
            reason: None,
            back_to: None,
        };
        let rollback =
            Entry { back_to: Some(1), reason: Some("too\u{1b}much".to_owned()), ..entry(3, Source::Rollback) };
        let start = Entry { uid: None, ..entry(1, Source::Start) };
        let apply =
            Entry { message: Some("contractors".to_owned()), uid: Some(4_000_000_000), ..entry(2, Source::Apply) };
        let mut history = History { in_force: 3, pending: None, revisions: vec![rollback, apply, start] };
        let page = history_page(&history);
        let lines: Vec<&str> = page.lines().map(str::trim_end).collect();
        assert!(lines[1].starts_with("3 ") && lines[1].contains("root"), "{page}");
        assert!(lines[1].ends_with("in force") && lines[1].contains("rollback to 1: too") && !page.contains('\u{1b}'));
        assert!(lines[2].contains("uid 4000000000") && lines[2].ends_with("apply: contractors"), "{page}");
        assert!(lines[3].ends_with("start"), "{page}");
        history.pending = Some(Pending { revision: 3, back_to: 2, until: at });
        assert!(history_page(&history).contains("to be confirmed by 2027-01-01T00:00:00Z"));
    }

    #[test]
    fn a_difference_is_told_by_name_and_by_line() {
        let none = Diff { changes: Vec::new(), unified: String::new() };
        assert_eq!(diff_page(&none), "no difference\n");
        let spaces = Diff { unified: "--- a\n+++ b\n".to_owned(), ..none };
        assert_eq!(diff_page(&spaces), "\n--- a\n+++ b\n");
    }
}
