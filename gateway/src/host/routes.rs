//! Steering traffic into the TUN device, fail closed.
//!
//! Three rules a family. `not iif lo lookup T` sends what this host forwards through table T. There each network of
//! `routes` stands twice: towards the device with a low metric, and `unreachable` with a high one. When the process dies
//! the kernel takes the device and the routes through it away, and what was routed in is refused.
//! A network of `exclude` is a `throw` route: the search goes on in the tables after ours. Before it, `iif DEVICE lookup
//! main` keeps our own answers from it: clients may live in a network of `routes` themselves. What that table has no way for
//! is `unreachable`: it would come back to the device until its hop limit is used up.
//!
//! Why `iif lo`: to the kernel, what this host sends itself comes in by `lo`, whatever address or mark it has. A packet of
//! the host is no device's, so the gateway could only drop it: steered, the host would lose its own connections with the
//! networks of `routes`, sshd's answers to an administrator there among them. Nor can our off-ramps' sockets loop back
//! in. The mark they carry is for the administrator's own rules.
//!
//! A strict `rp_filter` lets both kinds of answers pass. For a packet to this host, such as a target's to an off-ramp, the
//! kernel looks the reverse path up as coming in by `lo`: the table does not count. For a packet it forwards, such as ours
//! from the device to a client, it looks it up as coming in where the packet would leave: the way back is the device.
//!
//! Where an off-ramp sends the packets of WireGuard clients on as they are ([`TunConfig::returns`]), their tunnel network
//! is steered too, so that answers come back, and with a rule of its own also for this host's packets: as a router it has
//! ICMP errors for these clients. The routes towards them have the tunnel's MTU, so the kernel tells senders what does not
//! fit.
//!
//! Everything we add carries [`PROTOCOL`], so that a later start recognises what an earlier process left. It is replaced
//! in place, backstops first: there is no moment in which routed traffic passes by.

mod claim;
mod kernel;
pub mod report;
mod watch;

use std::io;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::holder::{self, Holder};
use crate::config::resolved::{OnStop, TunConfig};
pub use claim::TableClaim;
use kernel::{Kernel, destination, destination_of_rule, device, family_of, metric, mtu, table_of_rule};
pub use watch::{Steering, WatchedRoutes};

/// The number our routes and rules carry in the kernel's protocol field (`ip route show proto 81`).
pub const PROTOCOL: u8 = 81;
/// Preference of our rules: after `local`, before `main`.
pub const RULE_PRIORITY: u32 = 5188;
/// Preference of the rule for what comes out of the device.
pub const ANSWERS_PRIORITY: u32 = RULE_PRIORITY - 2;
/// Preference of the rule for what comes out of the device and has no way.
pub const NO_WAY_PRIORITY: u32 = RULE_PRIORITY - 1;
/// Metric of `throw` routes. Not 0, which IPv6 reads as 1024.
const EXCLUDE_METRIC: u32 = 10;
/// Metric of routes towards the device.
const DEVICE_METRIC: u32 = 20;
/// Metric of the `unreachable` backstops.
const BACKSTOP_METRIC: u32 = 1_000_000;
/// The main table.
const MAIN: u32 = 254;
/// Where this host's own packets come in.
const LOOPBACK: &str = "lo";
/// How many foreign routes an error names.
const SHOWN: usize = 5;

/// Why traffic could not be steered.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The table is one of the system's.
    #[error("[tun] table {0} belongs to the system: choose one of your own, such as 51880")]
    ReservedTable(u32),
    /// Another gateway uses the table.
    #[error(
        "another gateway has routing table {table}{}: {}; stop it, or set another [tun] table and name",
        .device.as_ref().map(|device| format!(", whose routes lead to {device}")).unwrap_or_default(),
        holder::in_words(.holder.as_ref())
    )]
    InUse {
        /// The table.
        table: u32,
        /// The device that its routes lead to.
        device: Option<String>,
        /// Whose they are, where it can be seen.
        holder: Option<Holder>,
    },
    /// Somebody else uses the table.
    #[error(
        "routing table {table} holds routes that are not ours ({routes}): remove them with `ip route flush table {table}`, or set another [tun] table"
    )]
    ForeignRoutes {
        /// The table.
        table: u32,
        /// Some of them.
        routes: String,
    },
    /// Not allowed to.
    #[error("not permitted to {doing}: run as root or with CAP_NET_ADMIN")]
    NotPermitted {
        /// What was tried.
        doing: String,
    },
    /// The kernel refused.
    #[error("cannot {doing}: {source}")]
    Kernel {
        /// What was tried.
        doing: String,
        /// Its answer.
        source: io::Error,
    },
}

/// Routes and rules in force. Dropping this changes nothing: [`remove`](Self::remove) does.
#[derive(Debug, Clone)]
#[must_use = "routes stay in force until `remove`"]
pub struct SteeredRoutes {
    table: u32,
    /// Name of the device.
    device: String,
    /// Its index.
    index: u32,
    /// Every route, backstops first.
    wanted: Vec<Route>,
    /// Networks to which this host's own packets go by the device, too.
    returns: Vec<IpNet>,
}

impl SteeredRoutes {
    /// Puts rules and routes of `config` in force towards the device with index `device`.
    ///
    /// What an earlier process left in the table is taken over. The main table is never touched. After an error
    /// everything is as it was, unless there was something to take over: then it keeps refusing what it can. Call on a
    /// tokio runtime.
    pub async fn install(config: &TunConfig, device: u32) -> Result<Self, RouteError> {
        let table = config.table;
        if matches!(table, 0 | 253..=255) {
            return Err(RouteError::ReservedTable(table));
        }
        let kernel = Kernel::connect()?;
        let left = kernel.routes(table).await?;
        let foreign = left.iter().filter(|route| route.header.protocol != RouteProtocol::Other(PROTOCOL));
        let named: Vec<String> = foreign.take(SHOWN).map(|route| destination(route).to_string()).collect();
        if !named.is_empty() {
            return Err(RouteError::ForeignRoutes { table, routes: named.join(", ") });
        }
        let installed = Self::wanted(config, device);
        match installed.put_in_force(&kernel, &left).await {
            Ok(()) => Ok(installed),
            Err(error) => {
                if left.is_empty()
                    && let Err(second) = installed.remove(OnStop::Remove).await
                {
                    tracing::warn!(error = %second, "routes of a failed start stay");
                }
                Err(error)
            }
        }
    }

    /// What `config` wants towards the device with index `device`.
    fn wanted(config: &TunConfig, device: u32) -> Self {
        let returns = config.returns.as_ref().map(|returns| returns.networks.clone()).unwrap_or_default();
        Self {
            table: config.table,
            device: config.name.clone(),
            index: device,
            wanted: wanted_routes(config, device),
            returns,
        }
    }

    async fn put_in_force(&self, kernel: &Kernel, left: &[RouteMessage]) -> Result<(), RouteError> {
        let table = self.table;
        for route in &self.wanted {
            kernel.put_route(table, route).await?;
        }
        for route in left.iter().filter(|route| !self.wanted.iter().any(|wanted| wanted.takes_the_place_of(route))) {
            kernel.delete_route(route).await?;
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let needed = self.rules(family);
            for rule in &needed {
                // The one for answers is first: there is no moment in which they come back in.
                kernel.add_rule(rule.message(family)).await?;
            }
            let is_needed = |found: &RuleMessage| needed.iter().any(|rule| rule.is(found));
            for found in self.rules_of_device(kernel, family).await? {
                if !is_needed(&found) {
                    kernel.delete_rule(found).await?;
                }
            }
            for found in kernel.rules(family, RULE_PRIORITY).await? {
                match table_of_rule(&found) {
                    Some(other) if other != table => tracing::warn!(
                        table = other,
                        "a rule of another gateway, or of this one before its [tun] table changed; `ip rule del lookup {other}` removes it"
                    ),
                    Some(_) | None if !is_needed(&found) => kernel.delete_rule(found).await?,
                    Some(_) | None => {}
                }
            }
        }
        Ok(())
    }

    /// Steers what `config` says instead, in the same table and towards the same device: what is new first, then away with
    /// what is not wanted any more. Returns the difference.
    ///
    /// # Errors
    ///
    /// What the kernel refused; then it steers what it did before, as far as the kernel takes that.
    async fn change_to(&mut self, config: &TunConfig) -> Result<Vec<SteeringChange>, RouteError> {
        let next = Self { table: self.table, device: self.device.clone(), ..Self::wanted(config, self.index) };
        let changes = next.changes_since(self);
        if changes.is_empty() {
            return Ok(changes);
        }
        let kernel = Kernel::connect()?;
        if let Err(error) = next.replace(&kernel).await {
            if let Err(second) = self.replace(&kernel).await {
                tracing::warn!(error = %second, "what was steered before is not all back");
            }
            return Err(error);
        }
        *self = next;
        Ok(changes)
    }

    /// Puts these in force in the place of what is there of ours.
    async fn replace(&self, kernel: &Kernel) -> Result<(), RouteError> {
        let mut left = kernel.routes(self.table).await?;
        left.retain(|route| route.header.protocol == RouteProtocol::Other(PROTOCOL));
        self.put_in_force(kernel, &left).await
    }

    /// Networks that are steered, or excluded, and were not, and the other way round.
    fn changes_since(&self, before: &Self) -> Vec<SteeringChange> {
        let only = |these: &Self, others: &Self, added: bool| {
            let missing = |route: &&Route| !others.wanted.contains(route);
            let change = |route: &Route| match route.target {
                Target::Backstop => None,
                Target::Exclude | Target::Device(_) => {
                    Some(SteeringChange { net: route.net, excluded: route.target == Target::Exclude, added })
                }
            };
            these.wanted.iter().filter(missing).filter_map(change).collect::<Vec<_>>()
        };
        let mut changes = only(self, before, true);
        changes.extend(only(before, self, false));
        changes
    }

    /// Whether a network of this family is steered.
    fn steers(&self, family: AddressFamily) -> bool {
        self.wanted.iter().any(|route| route.target == Target::Backstop && family_of(&route.net) == family)
    }

    /// The rules of a family: none when nothing of it is steered.
    fn rules(&self, family: AddressFamily) -> Vec<Rule<'_>> {
        if !self.steers(family) {
            return Vec::new();
        }
        let steer =
            Rule { priority: RULE_PRIORITY, interface: LOOPBACK, inverted: true, to: None, table: Some(self.table) };
        let returns = self.returns.iter().filter(|net| family_of(net) == family);
        let returns = returns.map(|net| Rule { inverted: false, to: Some(*net), ..steer });
        let answers =
            Rule { priority: ANSWERS_PRIORITY, interface: &self.device, inverted: false, to: None, table: Some(MAIN) };
        let no_way = Rule { priority: NO_WAY_PRIORITY, table: None, ..answers };
        [answers, no_way, steer].into_iter().chain(returns).collect()
    }

    /// Our rules for what comes out of the device, as the kernel has them, in the order in which they may go away.
    async fn rules_of_device(&self, kernel: &Kernel, family: AddressFamily) -> Result<Vec<RuleMessage>, RouteError> {
        let mut rules = kernel.rules(family, NO_WAY_PRIORITY).await?;
        rules.extend(kernel.rules(family, ANSWERS_PRIORITY).await?);
        rules.retain(|rule| has_interface(rule, &self.device));
        Ok(rules)
    }

    /// Takes everything away, or with [`OnStop::Block`] everything but rules, exclusions and backstops. Call while the
    /// device still exists, on a tokio runtime.
    pub async fn remove(self, on_stop: OnStop) -> Result<(), RouteError> {
        let kernel = Kernel::connect()?;
        if on_stop == OnStop::Remove {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                for rule in kernel.rules(family, RULE_PRIORITY).await? {
                    if table_of_rule(&rule) == Some(self.table) {
                        kernel.delete_rule(rule).await?;
                    }
                }
                for rule in self.rules_of_device(&kernel, family).await? {
                    kernel.delete_rule(rule).await?;
                }
            }
        }
        for route in kernel.routes(self.table).await? {
            let ours = route.header.protocol == RouteProtocol::Other(PROTOCOL);
            if ours && (on_stop == OnStop::Remove || route.header.kind == RouteType::Unicast) {
                kernel.delete_route(&route).await?;
            }
        }
        Ok(())
    }
}

/// A network that is steered from now on, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SteeringChange {
    /// The network.
    pub net: IpNet,
    /// It is one of `exclude`, and not of `routes`.
    pub excluded: bool,
    /// It is new.
    pub added: bool,
}

/// One route we want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    net: IpNet,
    target: Target,
    /// Largest packet in bytes, where it is not the device's own.
    mtu: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Backstop,
    Exclude,
    Device(u32),
}

/// Every route of `config`, backstops first.
fn wanted_routes(config: &TunConfig, device: u32) -> Vec<Route> {
    let route = |net: &IpNet, target, mtu| Route { net: net.trunc(), target, mtu };
    let returns: Vec<(&IpNet, Option<u16>)> =
        config.returns.iter().flat_map(|returns| returns.networks.iter().map(|net| (net, Some(returns.mtu)))).collect();
    // Its own entry of the same network says less.
    let steered = config.routes.iter().filter(|net| !returns.iter().any(|(other, _)| other == net));
    let steered: Vec<(&IpNet, Option<u16>)> = steered.map(|net| (net, None)).chain(returns.iter().copied()).collect();
    let mut routes: Vec<Route> = steered.iter().map(|(net, _)| route(net, Target::Backstop, None)).collect();
    routes.extend(config.exclude.iter().map(|net| route(net, Target::Exclude, None)));
    routes.extend(steered.iter().map(|(net, mtu)| route(net, Target::Device(device), *mtu)));
    routes
}

impl Route {
    fn kind(&self) -> RouteType {
        match self.target {
            Target::Backstop => RouteType::Unreachable,
            Target::Exclude => RouteType::Throw,
            Target::Device(_) => RouteType::Unicast,
        }
    }

    fn metric(&self) -> u32 {
        match self.target {
            Target::Backstop => BACKSTOP_METRIC,
            Target::Exclude => EXCLUDE_METRIC,
            Target::Device(_) => DEVICE_METRIC,
        }
    }

    fn message(&self, table: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family_of(&self.net),
            destination_prefix_length: self.net.prefix_len(),
            protocol: RouteProtocol::Other(PROTOCOL),
            kind: self.kind(),
            scope: match (self.target, self.net) {
                (Target::Device(_), IpNet::V4(_)) => RouteScope::Link,
                _ => RouteScope::Universe,
            },
            ..RouteHeader::default()
        };
        message.attributes = vec![
            RouteAttribute::Destination(self.net.addr().into()),
            RouteAttribute::Table(table),
            RouteAttribute::Priority(self.metric()),
        ];
        if let Target::Device(index) = self.target {
            message.attributes.push(RouteAttribute::Oif(index));
        }
        if let Some(mtu) = self.mtu {
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(u32::from(mtu))]));
        }
        message
    }

    /// Whether `found`, of our table, was this route or makes way for it: the kernel knows a route by these two.
    fn takes_the_place_of(&self, found: &RouteMessage) -> bool {
        destination(found) == self.net && metric(found) == Some(self.metric())
    }

    /// Whether `found`, of our table, is this route.
    fn is(&self, found: &RouteMessage) -> bool {
        self.takes_the_place_of(found)
            && found.header.kind == self.kind()
            && match self.target {
                Target::Device(index) => device(found) == Some(index) && mtu(found) == self.mtu.map(u32::from),
                Target::Backstop | Target::Exclude => true,
            }
    }
}

/// One rule we want, for either family.
#[derive(Debug, Clone, Copy)]
struct Rule<'a> {
    priority: u32,
    interface: &'a str,
    /// Everything but what comes in by the interface.
    inverted: bool,
    /// Only what goes there.
    to: Option<IpNet>,
    /// Where its way is looked up; `None`: it has none.
    table: Option<u32>,
}

impl Rule<'_> {
    fn message(&self, family: AddressFamily) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.header.action = self.action();
        message.header.flags = if self.inverted { RuleFlags::Invert } else { RuleFlags::empty() };
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Iifname(self.interface.to_owned()),
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        ];
        message.attributes.extend(self.table.map(RuleAttribute::Table));
        if let Some(to) = self.to {
            message.header.dst_len = to.prefix_len();
            message.attributes.push(RuleAttribute::Destination(to.addr()));
        }
        message
    }

    fn is(&self, found: &RuleMessage) -> bool {
        found.header.action == self.action()
            && found.header.flags.contains(RuleFlags::Invert) == self.inverted
            && found.attributes.contains(&RuleAttribute::Priority(self.priority))
            && has_interface(found, self.interface)
            && destination_of_rule(found) == self.to
            && table_of_rule(found) == self.table
    }

    fn action(&self) -> RuleAction {
        if self.table.is_some() { RuleAction::ToTable } else { RuleAction::Unreachable }
    }
}

fn has_interface(rule: &RuleMessage, interface: &str) -> bool {
    rule.attributes.iter().any(|attribute| matches!(attribute, RuleAttribute::Iifname(name) if name == interface))
}

#[cfg(test)]
mod tests;
