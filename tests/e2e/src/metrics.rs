//! Reading the gateway's metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::netns::Netns;

/// Where every gateway of these tests serves its metrics, inside its own namespace.
pub const LISTEN: &str = "127.0.0.1:9464";

/// Packets dropped, by `reason`.
pub const DROPPED: &str = "portcullis_packets_dropped_total";
/// Flows opened.
pub const OPENED: &str = "portcullis_flows_opened_total";
/// Flows ended, by `end`.
pub const ENDED: &str = "portcullis_flows_ended_total";
/// What limits did not allow, by `limit`.
pub const LIMITS: &str = "portcullis_limits_reached_total";
/// Open flows.
pub const OPEN: &str = "portcullis_flows_open";
/// Verdicts, by `verdict`.
pub const VERDICTS: &str = "portcullis_verdicts_total";
/// Payload bytes, by `direction`.
pub const BYTES: &str = "portcullis_bytes_total";
/// WireGuard handshakes completed.
pub const HANDSHAKES: &str = "portcullis_handshakes_total";
/// Dial times.
pub const DIALS: &str = "portcullis_dial_seconds_count";

/// One scrape.
#[derive(Debug)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// Scrapes the gateway in `netns`.
    ///
    /// # Panics
    ///
    /// When it does not answer with 200.
    pub fn scrape(netns: &Netns) -> Self {
        let (status, text) = get(netns, "/metrics").expect("the gateway serves its metrics");
        assert_eq!(status, 200, "{text}");
        Self { text }
    }

    /// The sum of all samples of this name that carry `label`, or of all when there is none to ask for.
    ///
    /// # Panics
    ///
    /// When the gateway has no such metric at all.
    pub fn sum(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        assert!(self.text.lines().any(|line| sample(line).is_some_and(|s| s.0 == name)), "no metric {name}");
        let wanted = label.map(|(key, value)| format!("{key}=\"{value}\""));
        self.text
            .lines()
            .filter_map(sample)
            .filter(|(found, labels, _)| {
                *found == name && wanted.as_ref().is_none_or(|w| labels.split(',').any(|label| label == w))
            })
            .map(|(_, _, value)| value)
            .sum()
    }

    /// The text as scraped.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Name, labels and value of a line that is a sample.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').map_or((series, ""), |(n, l)| (n, l.trim_end_matches('}')));
    Some((name, labels, value.parse().ok()?))
}

/// Status and body of a GET on the metrics listener, `None` while nobody listens.
pub fn get(netns: &Netns, path: &str) -> Option<(u16, String)> {
    let mut stream = netns.run(|| TcpStream::connect(LISTEN)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: gateway\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split_whitespace().nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n")?.1.to_owned();
    Some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_added_by_label() {
        let metrics = Metrics {
            text: "# TYPE a counter\na{shard=\"0\",end=\"idle\"} 2\na{shard=\"1\",end=\"idle\"} 3\na{shard=\"1\",end=\"limit\"} 5\nb 7\n"
                .to_owned(),
        };
        assert_eq!(metrics.sum("a", None), 10.0);
        assert_eq!(metrics.sum("a", Some(("end", "idle"))), 5.0);
        assert_eq!(metrics.sum("b", None), 7.0);
    }
}
