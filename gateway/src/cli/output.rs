//! Printing: tables and JSON on standard output.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use jiff::Timestamp;

use super::ExitStatus;
use crate::config::{Config, ConfigProblem};
use crate::files;
use crate::telemetry::escape;

/// Prints `text`, which ends in a newline or gets one. A reader that went away is no failure.
pub fn print(text: &str) -> ExitStatus {
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    print_exactly(&format!("{text}{newline}"))
}

/// Prints `text` byte for byte. A reader that went away is no failure.
pub fn print_exactly(text: &str) -> ExitStatus {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitStatus::Done,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitStatus::Done,
        Err(error) => {
            let _ = writeln!(io::stderr(), "portcullis: cannot write to standard output: {error}");
            ExitStatus::Failed
        }
    }
}

/// The static configuration, or every problem on standard error.
pub fn load_config(path: &Path) -> Result<Config, ExitStatus> {
    Config::load(path).map_err(|problems| {
        let mut err = io::stderr().lock();
        for problem in &problems {
            let _ = writeln!(err, "{problem}");
        }
        ExitStatus::of_files(problems.iter().map(ConfigProblem::is_denied))
    })
}

/// The name and the text of a file that the command line names, or why it cannot be read on standard error.
pub fn read_named(path: &Path) -> Result<(String, String), ExitStatus> {
    let name = path.display().to_string();
    match files::read_text(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => {
            // Nobody reads standard error: the exit status still tells.
            let _ = writeln!(io::stderr(), "{name} {error}");
            Err(ExitStatus::of_files([error.is_denied()]))
        }
    }
}

/// Columns with a heading, each as wide as its widest cell. Control characters in cells are escaped.
pub fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut cells = vec![heading.map(str::to_owned)];
    cells.extend(rows.into_iter().map(|row| {
        row.map(|cell| {
            let mut text = String::with_capacity(cell.len());
            escape(&cell, &mut text);
            text
        })
    }));
    let mut widths = [0; N];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &cells {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Bytes as people read them: `987`, `12.3K`, `4.0G`.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut unit = "";
    for next in ["K", "M", "G", "T", "P"] {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit.is_empty() { n.to_string() } else { format!("{value:.1}{unit}") }
}

/// Seconds as people read them: `42s`, `3m5s`, `2h10m`, `4d3h`.
pub fn seconds(n: u64) -> String {
    match n {
        0..60 => format!("{n}s"),
        60..3_600 => format!("{}m{}s", n / 60, n % 60),
        3_600..86_400 => format!("{}h{}m", n / 3_600, n % 3_600 / 60),
        _ => format!("{}d{}h", n / 86_400, n % 86_400 / 3_600),
    }
}

/// How long before `now` something was, or `never`.
pub fn ago(at: Option<Timestamp>, now: Timestamp) -> String {
    let seconds_since = |at| u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0);
    at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", seconds(seconds_since(at))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_harmless() {
        let text =
            table(["ID", "DEVICE"], [["1".to_owned(), "a\x1b[2J\nb".to_owned()], ["1234".to_owned(), String::new()]]);
        assert_eq!(text, "ID    DEVICE\n1     a\\u{1b}[2J\\nb\n1234\n");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1_000, 1 << 20, u64::MAX].map(bytes), ["0", "999", "1.0K", "1.0M", "16384.0P"]);
        assert_eq!([0, 59, 60, 3_661, 90_000].map(seconds), ["0s", "59s", "1m0s", "1h1m", "1d1h"]);
        let now: Timestamp = "2027-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(ago(Some("2027-01-01T00:00:18Z".parse().unwrap()), now), "42s ago");
        assert_eq!(ago(Some("2027-01-01T00:02:00Z".parse().unwrap()), now), "0s ago");
        assert_eq!(ago(None, now), "never");
    }
}
