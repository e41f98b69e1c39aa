//! What stands in the kernel of what `gateway.toml` wants steered, and the ip(8) lines that make it so.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use serde::Serialize;

use super::kernel::{Kernel, destination, destination_of_rule, metric, table_of_rule};
use super::{MAIN, PROTOCOL, RULE_PRIORITY, RouteError, Rule, SteeredRoutes, Target};
use crate::config::resolved::TunConfig;

/// How a route or rule stands to `gateway.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is there, as the file wants.
    InForce,
    /// The file wants it, and it is not there.
    Missing,
    /// It is there, is ours, and the file does not want it.
    Left,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InForce => "in force",
            Self::Missing => "missing",
            Self::Left => "left",
        })
    }
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

impl Family {
    fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::Ipv4,
            IpNet::V6(_) => Self::Ipv6,
        }
    }

    /// As ip(8) takes it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Ipv4 => "-4",
            Self::Ipv6 => "-6",
        }
    }
}

/// One route or rule of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// How it stands to the file.
    pub state: State,
    /// Whose it is.
    pub family: Family,
    /// `route` or `rule`.
    pub kind: &'static str,
    /// The rest of it as ip(8) spells it.
    pub spec: String,
}

impl Entry {
    /// The ip(8) command that makes it as the file wants; `None` when it is already.
    pub fn command(&self) -> Option<String> {
        let verb = match (self.state, self.kind) {
            (State::InForce, _) => return None,
            (State::Missing, "route") => "replace",
            (State::Missing, _) => "add",
            (State::Left, _) => "del",
        };
        Some(format!("ip {} {} {verb} {}", self.family.flag(), self.kind, self.spec))
    }
}

/// Every route and rule that `config` wants, and what else there is of ours in its table, in the order in which a change
/// is made. Call on a tokio runtime.
///
/// # Errors
///
/// The kernel does not tell.
pub async fn report(config: &TunConfig) -> Result<Vec<Entry>, RouteError> {
    let index = nix::net::if_::if_nametoindex(config.name.as_str()).unwrap_or(0);
    let wanted = SteeredRoutes::wanted(config, index);
    let kernel = Kernel::connect()?;
    let there = kernel.routes(config.table).await?;
    let state = |there: bool| if there { State::InForce } else { State::Missing };
    let mut entries: Vec<Entry> = wanted
        .wanted
        .iter()
        .map(|route| {
            let state = state(there.iter().any(|found| route.is(found)));
            let kind = word(&route.kind());
            let via = matches!(route.target, Target::Device(_)).then_some(config.name.as_str());
            Entry {
                state,
                family: Family::of(&route.net),
                kind: "route",
                spec: spec(kind, &route.net, via, config.table, route.metric(), route.mtu),
            }
        })
        .collect();
    let ours = there.iter().filter(|route| route.header.protocol == RouteProtocol::Other(PROTOCOL));
    for found in ours.filter(|found| !wanted.wanted.iter().any(|route| route.is(found))) {
        entries.push(left(found, config));
    }
    for (version, family) in [(AddressFamily::Inet, Family::Ipv4), (AddressFamily::Inet6, Family::Ipv6)] {
        let rules = wanted.rules(version);
        let mut there = wanted.rules_of_device(&kernel, version).await?;
        let steering = kernel.rules(version, RULE_PRIORITY).await?;
        there.extend(steering.into_iter().filter(|found| table_of_rule(found) == Some(wanted.table)));
        for rule in &rules {
            let state = state(there.iter().any(|found| rule.is(found)));
            entries.push(Entry { state, family, kind: "rule", spec: rule.to_string() });
        }
        for found in there.iter().filter(|found| !rules.iter().any(|rule| rule.is(found))) {
            entries.push(Entry { state: State::Left, family, kind: "rule", spec: left_rule(found) });
        }
    }
    Ok(entries)
}

/// What ip(8) puts before the destination of a route.
fn word(kind: &RouteType) -> &'static str {
    if *kind == RouteType::Unreachable {
        "unreachable "
    } else if *kind == RouteType::Throw {
        "throw "
    } else {
        ""
    }
}

fn spec(kind: &str, net: &IpNet, via: Option<&str>, table: u32, metric: u32, mtu: Option<u16>) -> String {
    let via = via.map(|device| format!(" dev {device}")).unwrap_or_default();
    let mtu = mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
    format!("{kind}{net}{via} table {table} metric {metric} proto {PROTOCOL}{mtu}")
}

fn left_rule(found: &RuleMessage) -> String {
    let to = destination_of_rule(found).map(|to| format!("to {to} ")).unwrap_or_default();
    let interface = found.attributes.iter().find_map(|attribute| {
        if let RuleAttribute::Iifname(interface) = attribute { Some(interface.as_str()) } else { None }
    });
    let iif = interface.map(|interface| format!("iif {interface} ")).unwrap_or_default();
    let not = if found.header.flags.contains(RuleFlags::Invert) { "not " } else { "" };
    // The kernel leaves a preference of 0 out.
    let priority = found
        .attributes
        .iter()
        .find_map(|attribute| if let RuleAttribute::Priority(priority) = attribute { Some(*priority) } else { None });
    let priority = priority.unwrap_or(0);
    format!("pref {priority} {not}{to}{iif}{} protocol {PROTOCOL}", action(table_of_rule(found)))
}

/// What a rule does that looks up this table.
fn action(table: Option<u32>) -> String {
    match table {
        Some(MAIN) => "lookup main".to_owned(),
        Some(table) => format!("lookup {table}"),
        None => "unreachable".to_owned(),
    }
}

fn left(found: &RouteMessage, config: &TunConfig) -> Entry {
    let net = destination(found);
    let spec = spec(word(&found.header.kind), &net, None, config.table, metric(found).unwrap_or(0), None);
    Entry { state: State::Left, family: Family::of(&net), kind: "route", spec }
}

impl fmt::Display for Rule<'_> {
    /// As ip(8) takes it after `ip rule add`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.inverted { "not " } else { "" };
        let to = self.to.map(|to| format!("to {to} ")).unwrap_or_default();
        let Self { priority, interface, .. } = self;
        write!(f, "pref {priority} {not}{to}iif {interface} {} protocol {PROTOCOL}", action(self.table))
    }
}
