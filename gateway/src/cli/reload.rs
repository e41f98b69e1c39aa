//! `portcullis reload`.

use std::io::{self, Write as _};

use super::output::{load_config, print};
use super::{ExitStatus, ReloadArgs, client};
use crate::control::api::ReloadReport;

/// Runs the verb.
pub fn run(args: ReloadArgs) -> ExitStatus {
    let config = match load_config(&args.config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    match client::post::<ReloadReport>(&config.control, "/v1/reload", &()) {
        Ok(answer) if args.json => print(&answer.text),
        Ok(answer) => {
            for warning in &answer.value.warnings {
                // Nobody reads standard error: the exit status still tells.
                let _ = writeln!(io::stderr(), "warning: {warning}");
            }
            print(&page(&answer.value))
        }
        Err(error) => error.report(),
    }
}

pub(super) fn page(report: &ReloadReport) -> String {
    let mut out = format!("revision {} in force\n", report.revision);
    if report.changes.is_empty() {
        out.push_str("unchanged\n");
    }
    for change in &report.changes {
        out.push_str(&format!("{change}\n"));
    }
    if !report.judged {
        out.push_str("not every live flow has been judged again yet\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Change;

    #[test]
    fn pages() {
        let mut report = ReloadReport { revision: 4, changes: Vec::new(), judged: true, warnings: Vec::new() };
        assert_eq!(page(&report), "revision 4 in force\nunchanged\n");
        let change = |kind: &str, name: &str, change: &str| Change {
            kind: kind.to_owned(),
            name: name.to_owned(),
            change: change.to_owned(),
        };
        report.changes = vec![change("rule", "eng", "changed"), change("rules", "", "reordered")];
        report.judged = false;
        assert_eq!(
            page(&report),
            "revision 4 in force\nrule eng changed\nrules reordered\nnot every live flow has been judged again yet\n"
        );
    }
}
