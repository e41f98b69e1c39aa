//! `[limits]`: one table of all limits, for reading them and for printing their defaults.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::duration::format_duration;
pub(super) use super::resolved::Limits;
use super::resolved::ShareLimit;
use crate::limits::{LimitName, Resource, Scope};

/// One limit.
pub(super) struct Limit<'l> {
    pub(super) name: &'static str,
    pub(super) about: String,
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
    pub about: String,
}

const COUNT: RangeInclusive<usize> = 1..=16_777_216;
/// A TCP window has no more (RFC 7323, section 2.2).
const BUFFER: RangeInclusive<usize> = 4_096..=1 << 30;
const MEMORY: RangeInclusive<usize> = 0..=1 << 40;
const TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);

/// The three limits on one resource: in all, of a user, of a device. `note`: what else there is to say about the last.
fn shares<'l>(
    resource: Resource,
    range: &RangeInclusive<usize>,
    about: &str,
    note: &str,
    value: &'l mut ShareLimit,
) -> [Limit<'l>; 3] {
    let ShareLimit { device, user, all } = value;
    let limit = |scope, of: &str, value: &'l mut usize| Limit {
        name: LimitName::Share(resource, scope).as_str(),
        about: format!("{about}, {of}"),
        value: LimitValue::Count { value, range: range.clone() },
    };
    [
        limit(Scope::All, "in all", all),
        limit(Scope::User, "of one user's devices", user),
        limit(Scope::Device, &format!("of one device{note}"), device),
    ]
}

fn time<'l>(name: &'static str, about: &'static str, value: &'l mut Duration) -> Limit<'l> {
    Limit { name, about: about.to_owned(), value: LimitValue::Time { value, range: TIME } }
}

impl Limits {
    /// The keys of `[limits]`.
    pub(super) const NAMES: [&'static str; 28] = [
        "flows",
        "flows_per_user",
        "flows_per_device",
        "half_open",
        "half_open_per_user",
        "half_open_per_device",
        "dials",
        "dials_per_user",
        "dials_per_device",
        "flow_rate",
        "flow_rate_per_user",
        "flow_rate_per_device",
        "associations",
        "associations_per_user",
        "associations_per_device",
        "refusals",
        "refusals_per_user",
        "refusals_per_device",
        "buffered",
        "buffered_per_user",
        "buffered_per_device",
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
            half_open,
            dials,
            flow_rate,
            associations,
            refusals,
            buffered,
            tcp_buffer,
            dial_timeout,
            tcp_idle,
            tcp_user_timeout,
            udp_idle_one_way,
            udp_idle,
            icmp_idle,
        } = self;
        let shared = [
            shares(Resource::Flows, &COUNT, "open flows of any kind", "", flows),
            shares(Resource::HalfOpen, &COUNT, "TCP flows whose client has not completed the handshake", "", half_open),
            shares(
                Resource::Dials,
                &COUNT,
                "TCP flows whose target has not answered",
                "; never more than 2/3 of all",
                dials,
            ),
            shares(Resource::FlowRate, &COUNT, "new flows a second, in bursts of twice as many", "", flow_rate),
            shares(
                Resource::Associations,
                &COUNT,
                "UDP associations and echo exchanges",
                "; the one not used for longest makes way",
                associations,
            ),
            shares(Resource::Refusals, &COUNT, "refused flows remembered, to know their next packet", "", refusals),
            shares(
                Resource::Buffered,
                &MEMORY,
                "bytes of TCP buffers beyond 32 KiB a flow",
                "; over it flows go on in what they have",
                buffered,
            ),
        ];
        let others = vec![
            Limit {
                name: "tcp_buffer",
                about: "most bytes of each of a TCP flow's two buffers".to_owned(),
                value: LimitValue::Count { value: tcp_buffer, range: BUFFER },
            },
            time("dial_timeout", "how long a dial may take", dial_timeout),
            time("tcp_idle", "a TCP flow without a byte either way, or a keep-alive, ends after this", tcp_idle),
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
        ];
        shared.into_iter().flatten().chain(others).collect()
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
