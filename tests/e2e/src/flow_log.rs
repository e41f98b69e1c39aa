//! Reading the flow log as SPEC section 8 writes it.

use std::net::SocketAddr;

use serde::Deserialize;

/// One line of the flow log. Every key of the contract must be there.
#[derive(Debug, Clone, Deserialize)]
pub struct FlowLine {
    /// Unique in the gateway's life.
    pub id: serde_json::Value,
    /// RFC 3339, UTC, microseconds.
    pub start: String,
    /// RFC 3339, UTC, microseconds.
    pub end: String,
    /// Device name.
    pub device: String,
    /// User name.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// `wireguard` or `tun`.
    pub onramp: String,
    /// Inner source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// Service, such as `tcp/443`.
    pub service: String,
    /// `allow` or `deny`.
    pub verdict: String,
    /// Deciding rule.
    pub rule: Option<String>,
    /// Policy revision.
    pub revision: u64,
    /// Off-ramp.
    pub offramp: Option<String>,
    /// Payload bytes from the client.
    pub bytes_up: u64,
    /// Payload bytes to the client.
    pub bytes_down: u64,
    /// Packets from the client.
    pub packets_up: u64,
    /// Packets to the client.
    pub packets_down: u64,
    /// Dial time in milliseconds.
    pub dial_ms: Option<f64>,
    /// Duration in milliseconds.
    pub duration_ms: f64,
    /// Why it ended.
    pub ended: String,
    /// Which limit was reached, when one was.
    pub limit: Option<String>,
    /// Where its rule sent it instead.
    pub target: Option<SocketAddr>,
}

/// Every whole line of a flow log.
///
/// # Panics
///
/// When a line is not a record of the contract, naming the line.
pub fn parse(text: &str) -> Vec<FlowLine> {
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| {
            let record: FlowLine =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("not a flow record ({error}): {line}"));
            for time in [&record.start, &record.end] {
                assert!(is_utc_with_microseconds(time), "{time:?} in {line}");
            }
            record
        })
        .collect()
}

/// `2026-01-02T03:04:05.678901Z`.
fn is_utc_with_microseconds(time: &str) -> bool {
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000000Z"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_shape() {
        assert!(is_utc_with_microseconds("2026-01-02T03:04:05.678901Z"));
        for wrong in ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678901+00:00", "2026-01-02 03:04:05.678901Z"] {
            assert!(!is_utc_with_microseconds(wrong));
        }
    }
}
