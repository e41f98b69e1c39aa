//! The log on standard error: one event, one line.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What is logged when the environment says nothing.
const DEFAULT_FILTER: &str = "info";
/// The library calls it an error when a peer has been silent: that is DEBUG at most, names nobody, and whoever has a
/// key can cause it. Who asks for it by name gets it.
const QUIET: &str = "boringtun";
/// Most lines a second of one kind at INFO or above that packets cause.
pub const LINES_A_SECOND: u64 = 20;

/// How many lines of one kind were written in a second.
#[derive(Debug)]
pub struct LineLimit {
    second: AtomicI64,
    lines: AtomicU64,
}

impl LineLimit {
    /// Of a kind that was never written.
    pub const fn new() -> Self {
        Self { second: AtomicI64::new(i64::MIN), lines: AtomicU64::new(0) }
    }

    /// Asks for a line in this second of whatever clock. `Some`: it may be written, and should say that so many were
    /// left out before it. Two threads at the turn of a second may write some more, or lose count of some.
    pub fn admit(&self, second: i64) -> Option<u64> {
        if self.second.swap(second, Ordering::Relaxed) != second {
            let lines = self.lines.swap(1, Ordering::Relaxed);
            return Some(lines.saturating_sub(LINES_A_SECOND));
        }
        (self.lines.fetch_add(1, Ordering::Relaxed) < LINES_A_SECOND).then_some(0)
    }
}

impl Default for LineLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// Starts the log. The level comes from `PORTCULLIS_LOG`, else `RUST_LOG`, in the syntax of [`EnvFilter`].
///
/// Under systemd (`JOURNAL_STREAM` is set and stderr is no terminal) lines carry a priority prefix and no time.
/// A second call does nothing.
pub fn init() {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let (filter, bad) = filter(std::env::var("PORTCULLIS_LOG").or_else(|_| std::env::var("RUST_LOG")).ok());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_writer(Stderr { journal });
    let started = if journal { builder.without_time().try_init() } else { builder.try_init() };
    if let (Ok(()), Some(bad)) = (started, bad) {
        tracing::warn!(filter = bad, "log filter not understood, logging at {DEFAULT_FILTER}");
    }
}

fn filter(wanted: Option<String>) -> (EnvFilter, Option<String>) {
    let wanted = wanted.filter(|text| !text.trim().is_empty());
    let quiet = |text: &str| if text.contains(QUIET) { text.to_owned() } else { format!("{text},{QUIET}=off") };
    match wanted.as_deref().map(|text| EnvFilter::try_new(quiet(text))) {
        None => (EnvFilter::new(quiet(DEFAULT_FILTER)), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(_)) => (EnvFilter::new(quiet(DEFAULT_FILTER)), wanted),
    }
}

/// Makes a writer for each event.
struct Stderr {
    journal: bool,
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = OneLine<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine { to: io::stderr(), prefix: "" }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        OneLine { to: io::stderr(), prefix: if self.journal { priority(*meta.level()) } else { "" } }
    }
}

/// Priority prefix of `sd-daemon(3)`.
fn priority(level: Level) -> &'static str {
    if level == Level::ERROR {
        "<3>"
    } else if level == Level::WARN {
        "<4>"
    } else if level == Level::INFO {
        "<6>"
    } else {
        "<7>"
    }
}

/// Writes an event as one line: control characters that came in with a field are escaped.
struct OneLine<W> {
    to: W,
    prefix: &'static str,
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut line = String::with_capacity(event.len() + 8);
        line.push_str(self.prefix);
        escape(&String::from_utf8_lossy(event.strip_suffix(b"\n").unwrap_or(event)), &mut line);
        line.push('\n');
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Appends `text` to `out` with every control character escaped.
pub fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let mut writer = OneLine { to: Vec::new(), prefix: "<4>" };
        let event = b"WARN reload user=ann\n<0>forged\x1b[2J \xc2\x9b end\n";
        assert_eq!(writer.write(event).unwrap(), event.len());
        assert_eq!(
            String::from_utf8(writer.to).unwrap(),
            "<4>WARN reload user=ann\\n<0>forged\\u{1b}[2J \\u{9b} end\n"
        );
    }

    #[test]
    fn a_bad_filter_falls_back() {
        assert_eq!(filter(Some("=,=info=".to_owned())).1.as_deref(), Some("=,=info="));
        assert_eq!(filter(Some(String::new())).1, None);
        let parts = |wanted: Option<&str>| {
            let text = filter(wanted.map(str::to_owned)).0.to_string();
            let mut parts: Vec<String> = text.split(',').map(str::to_owned).collect();
            parts.sort();
            parts
        };
        assert_eq!(parts(Some("debug")), ["boringtun=off", "debug"]);
        assert_eq!(parts(Some("trace,boringtun=trace")), ["boringtun=trace", "trace"]);
        assert_eq!(parts(None), ["boringtun=off", "info"]);
    }

    #[test]
    fn t33_lines_that_packets_cause_are_few_and_say_how_many_are_missing() {
        let limit = LineLimit::new();
        let written = |second| (0..1_000).filter(|_| limit.admit(second).is_some()).count() as u64;
        assert_eq!(written(7), LINES_A_SECOND);
        assert_eq!(limit.admit(8), Some(1_000 - LINES_A_SECOND));
        assert_eq!(written(8), LINES_A_SECOND - 1);
        assert_eq!(limit.admit(3600), Some(1_001 - LINES_A_SECOND));
    }
}
