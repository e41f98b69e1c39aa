//! The kernel's routing tables and rules, with errors that say what was tried.

use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use nix::errno::Errno;
use rtnetlink::IpVersion;

use super::{PROTOCOL, RouteError};
use crate::host::netlink::{Netlink, system_error};
use crate::sys::is_errno;

/// The first attribute for which `$pattern` gives `$value`.
macro_rules! attribute {
    ($message:expr, $pattern:pat => $value:expr) => {
        $message.attributes.iter().find_map(|attribute| if let $pattern = attribute { Some($value) } else { None })
    };
}

/// The address family of a network.
pub(super) fn family_of(net: &IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

/// The table a rule looks up; `None`: it looks up none.
pub(super) fn table_of_rule(rule: &RuleMessage) -> Option<u32> {
    let table = attribute!(rule, RuleAttribute::Table(table) => *table).unwrap_or_else(|| u32::from(rule.header.table));
    Some(table).filter(|_| rule.header.action == RuleAction::ToTable)
}

/// The table a route is in.
pub(super) fn table_of_route(route: &RouteMessage) -> u32 {
    attribute!(route, RouteAttribute::Table(table) => *table).unwrap_or_else(|| u32::from(route.header.table))
}

/// The metric of a route.
pub(super) fn metric(route: &RouteMessage) -> Option<u32> {
    attribute!(route, RouteAttribute::Priority(metric) => *metric)
}

/// The largest packet that a route takes, where it says so.
pub(super) fn mtu(route: &RouteMessage) -> Option<u32> {
    let metrics = attribute!(route, RouteAttribute::Metrics(metrics) => metrics)?;
    metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None })
}

/// The network that a rule is about, where it is about one.
pub(super) fn destination_of_rule(rule: &RuleMessage) -> Option<IpNet> {
    let address = attribute!(rule, RuleAttribute::Destination(address) => *address)?;
    IpNet::new(address, rule.header.dst_len).ok()
}

/// The device a route goes by. IPv6 shows one for routes that refuse, too.
pub(super) fn device(route: &RouteMessage) -> Option<u32> {
    attribute!(route, RouteAttribute::Oif(index) => *index)
}

/// The destination of a route; a default route has none in its message.
pub(super) fn destination(route: &RouteMessage) -> IpNet {
    let v4 = attribute!(route, RouteAttribute::Destination(RouteAddress::Inet(v4)) => IpAddr::V4(*v4));
    let v6 = attribute!(route, RouteAttribute::Destination(RouteAddress::Inet6(v6)) => IpAddr::V6(*v6));
    let prefix = route.header.destination_prefix_length;
    let default = if route.header.address_family == AddressFamily::Inet6 {
        IpNet::V6(Ipv6Net::default())
    } else {
        IpNet::V4(Ipv4Net::default())
    };
    v4.or(v6).and_then(|address| IpNet::new(address, prefix).ok()).unwrap_or(default)
}

/// The kernel's tables, with errors that say what was tried.
pub(super) struct Kernel(Netlink);

impl Kernel {
    /// For other requests.
    pub(super) fn handle(&self) -> &rtnetlink::Handle {
        &self.0.handle
    }

    pub(super) fn connect() -> Result<Self, RouteError> {
        Netlink::connect().map(Self).map_err(failed("open a netlink socket"))
    }

    /// Routes of `table`, both families.
    pub(super) async fn routes(&self, table: u32) -> Result<Vec<RouteMessage>, RouteError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.attributes.push(RouteAttribute::Table(table));
            let mut routes = std::pin::pin!(self.0.handle.route().get(filter).execute());
            while let Some(route) = routes.try_next().await.map_err(system_error).map_err(failed("list routes"))? {
                // A kernel without IPv6 answers with the routes of other families.
                if table_of_route(&route) == table && route.header.address_family == family {
                    found.push(route);
                }
            }
        }
        Ok(found)
    }

    /// Rules that are ours, by protocol and priority, whatever their table.
    pub(super) async fn rules(&self, family: AddressFamily, priority: u32) -> Result<Vec<RuleMessage>, RouteError> {
        let version = if family == AddressFamily::Inet6 { IpVersion::V6 } else { IpVersion::V4 };
        let rules = self.0.handle.rule().get(version).execute().try_collect::<Vec<_>>();
        let rules = match rules.await.map_err(system_error) {
            Err(error) if is_errno(&error, Errno::EAFNOSUPPORT) => Vec::new(),
            result => result.map_err(failed("list rules"))?,
        };
        let ours = [RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)), RuleAttribute::Priority(priority)];
        Ok(rules.into_iter().filter(|rule| ours.iter().all(|mark| rule.attributes.contains(mark))).collect())
    }

    /// Adds a route, or replaces the one with its destination and metric.
    pub(super) async fn put_route(&self, table: u32, route: &super::Route) -> Result<(), RouteError> {
        let request = self.0.handle.route().add(route.message(table)).replace();
        let result = request.execute().await.map_err(system_error);
        result.map_err(|error| failed(format!("add the route {} to table {table}", route.net))(error))
    }

    /// Deletes a route that was listed. Gone already is well.
    pub(super) async fn delete_route(&self, route: &RouteMessage) -> Result<(), RouteError> {
        let mut message = RouteMessage::default();
        message.header = route.header.clone();
        message.attributes = route.attributes.clone();
        let unicast = route.header.kind == RouteType::Unicast;
        message.attributes.retain(|attribute| {
            matches!(attribute, RouteAttribute::Destination(_) | RouteAttribute::Table(_) | RouteAttribute::Priority(_))
                || (unicast && matches!(attribute, RouteAttribute::Oif(_)))
        });
        match self.0.handle.route().del(message).execute().await.map_err(system_error) {
            Err(error) if is_errno(&error, Errno::ESRCH) => Ok(()),
            result => result.map_err(|error| failed(format!("delete the route {}", destination(route)))(error)),
        }
    }

    /// Adds a rule. There already is well.
    pub(super) async fn add_rule(&self, rule: RuleMessage) -> Result<(), RouteError> {
        let mut request = self.0.handle.rule().add();
        *request.message_mut() = rule;
        match request.execute().await.map_err(system_error) {
            Err(error) if is_errno(&error, Errno::EEXIST) => Ok(()),
            result => result.map_err(failed("add a rule")),
        }
    }

    /// Deletes a rule that was listed. Gone already is well.
    pub(super) async fn delete_rule(&self, rule: RuleMessage) -> Result<(), RouteError> {
        match self.0.handle.rule().del(rule).execute().await.map_err(system_error) {
            Err(error) if is_errno(&error, Errno::ENOENT) => Ok(()),
            result => result.map_err(failed("delete a rule")),
        }
    }
}

fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> RouteError {
    let doing = doing.into();
    move |source| {
        if source.kind() == io::ErrorKind::PermissionDenied {
            RouteError::NotPermitted { doing }
        } else {
            RouteError::Kernel { doing, source }
        }
    }
}
