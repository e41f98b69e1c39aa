//! `portcullis routes`.

use std::io::{self, Write as _};

use serde::Serialize;

use super::output::{load_config, print};
use super::{ExitStatus, RoutesArgs};
use crate::config::resolved::TunConfig;
use crate::host::routes::{self, RouteError, report::Entry};

#[derive(Debug, Serialize)]
struct Page<'a> {
    table: u32,
    device: &'a str,
    entries: &'a [Entry],
}

/// Runs the verb.
pub fn run(args: RoutesArgs) -> ExitStatus {
    let config = match load_config(&args.config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    let Some(tun) = &config.tun else {
        return print(&format!("{} has no [tun] table, so nothing is steered\n", config.source.display()));
    };
    let entries = match look(tun) {
        Ok(entries) => entries,
        Err(error) => {
            // Nobody reads standard error: the exit status still tells.
            let _ = writeln!(io::stderr(), "{error}");
            return if matches!(error, RouteError::NotPermitted { .. }) {
                ExitStatus::NotPermitted
            } else {
                ExitStatus::Failed
            };
        }
    };
    if args.json {
        let page = Page { table: tun.table, device: &tun.name, entries: &entries };
        return print(&serde_json::to_string_pretty(&page).expect("a report is plain data"));
    }
    if args.dry_run {
        let lines: Vec<String> = entries.iter().filter_map(Entry::command).collect();
        return print(&if lines.is_empty() {
            "# everything is in force\n".to_owned()
        } else {
            lines.join("\n") + "\n"
        });
    }
    print(&page(&entries))
}

fn look(tun: &TunConfig) -> Result<Vec<Entry>, RouteError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| RouteError::Kernel { doing: "start a runtime".to_owned(), source })?;
    runtime.block_on(routes::report::report(tun))
}

fn page(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "nothing is steered: [tun] routes is empty\n".to_owned();
    }
    let line = |entry: &Entry| format!("{:<9} {} {:<5} {}\n", entry.state, entry.family.flag(), entry.kind, entry.spec);
    entries.iter().map(line).collect()
}
