//! `[limits]`: one table of all limits, for reading them and for printing their defaults.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::duration::format_duration;
pub(super) use super::resolved::Limits;

/// One limit.
pub(super) struct Limit<'l> {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) value: LimitValue<'l>,
}

/// What a limit bounds.
pub(super) enum LimitValue<'l> {
    Count { value: &'l mut usize, range: RangeInclusive<usize> },
    Time { value: &'l mut Duration, range: RangeInclusive<Duration> },
}

/// What `portcullis check --defaults` prints about one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitDefault {
    /// Its key.
    pub name: &'static str,
    /// Its value, as `gateway.toml` would have it.
    pub value: String,
    /// What it bounds.
    pub about: &'static str,
}

const COUNT: RangeInclusive<usize> = 1..=16_777_216;
/// A TCP window has no more (RFC 7323, section 2.2).
const BUFFER: RangeInclusive<usize> = 4_096..=1 << 30;
const TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);

fn count<'l>(name: &'static str, about: &'static str, value: &'l mut usize) -> Limit<'l> {
    Limit { name, about, value: LimitValue::Count { value, range: COUNT } }
}

fn time<'l>(name: &'static str, about: &'static str, value: &'l mut Duration) -> Limit<'l> {
    Limit { name, about, value: LimitValue::Time { value, range: TIME } }
}

impl Limits {
    /// The keys of `[limits]`.
    pub(super) const NAMES: [&'static str; 11] = [
        "flows",
        "flows_per_device",
        "half_open_per_device",
        "half_open",
        "tcp_buffer",
        "dial_timeout",
        "tcp_idle",
        "tcp_user_timeout",
        "udp_idle_one_way",
        "udp_idle",
        "icmp_idle",
    ];

    /// Every limit, to read or to change. The pattern makes a field without an entry a compile error.
    pub(super) fn entries(&mut self) -> Vec<Limit<'_>> {
        let Self {
            flows,
            flows_per_device,
            half_open_per_device,
            half_open,
            tcp_buffer,
            dial_timeout,
            tcp_idle,
            tcp_user_timeout,
            udp_idle_one_way,
            udp_idle,
            icmp_idle,
        } = self;
        vec![
            count("flows", "open flows of any kind", flows),
            count("flows_per_device", "open flows of one device", flows_per_device),
            count("half_open_per_device", "TCP flows held or dialling, of one device", half_open_per_device),
            count("half_open", "TCP flows held or dialling", half_open),
            Limit {
                name: "tcp_buffer",
                about: "bytes of each of a TCP flow's two buffers",
                value: LimitValue::Count { value: tcp_buffer, range: BUFFER },
            },
            time("dial_timeout", "how long a dial may take", dial_timeout),
            time("tcp_idle", "a TCP flow without a byte either way ends after this", tcp_idle),
            time(
                "tcp_user_timeout",
                "a TCP client that acknowledges nothing for this long is given up",
                tcp_user_timeout,
            ),
            time(
                "udp_idle_one_way",
                "end of a UDP association where only the client spoke, or to port 53",
                udp_idle_one_way,
            ),
            time("udp_idle", "end of a UDP association where both sides spoke", udp_idle),
            time("icmp_idle", "end of an echo exchange without a packet", icmp_idle),
        ]
    }

    /// Every limit with its default.
    pub fn defaults() -> Vec<LimitDefault> {
        let mut limits = Self::default();
        let printed = |limit: Limit<'_>| LimitDefault {
            name: limit.name,
            about: limit.about,
            value: match limit.value {
                LimitValue::Count { value, .. } => value.to_string(),
                LimitValue::Time { value, .. } => format!("\"{}\"", format_duration(*value)),
            },
        };
        limits.entries().into_iter().map(printed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_entries_agree() {
        let names: Vec<_> = Limits::defaults().iter().map(|limit| limit.name).collect();
        assert_eq!(names, Limits::NAMES);
    }

    #[test]
    fn every_default_is_within_its_own_bounds() {
        for limit in Limits::default().entries() {
            match limit.value {
                LimitValue::Count { value, range } => {
                    assert!(range.contains(value), "{}", limit.name)
                }
                LimitValue::Time { value, range } => {
                    assert!(range.contains(value), "{}", limit.name)
                }
            }
        }
    }
}
