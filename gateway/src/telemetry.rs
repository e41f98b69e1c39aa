//! The log on standard error: one event, one line.

use std::io::{self, IsTerminal, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What is logged when the environment says nothing.
const DEFAULT_FILTER: &str = "info";

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
    match wanted.as_deref().map(EnvFilter::try_new) {
        None => (EnvFilter::new(DEFAULT_FILTER), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(_)) => (EnvFilter::new(DEFAULT_FILTER), wanted),
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
        assert_eq!(filter(Some("debug".to_owned())).0.to_string(), "debug");
        assert_eq!(filter(None).0.to_string(), DEFAULT_FILTER);
    }
}
