//! What every scenario expects of flow records and metrics.

use std::net::{IpAddr, SocketAddr};

use crate::flow_log::FlowLine;
use crate::lab::Family;
use crate::metrics::{DROPPED, ENDED, VERDICTS};
use crate::nft::Counter;
use crate::setup::user;
use crate::wait;
use crate::world::{Client, World};

/// Waits for the record of a client's flow to `to` and checks who, how, where and why it ended.
///
/// # Panics
///
/// When it does not come, or says something else.
pub fn record(world: &World<'_>, client: &Client<'_>, to: SocketAddr, ended: &str) -> FlowLine {
    let mut found = records(world, client, to, 1, ended);
    assert_eq!(found.len(), 1, "more than one flow to {to}: {found:#?}");
    found.remove(0)
}

/// As [`record`], for `count` flows or more.
///
/// # Panics
///
/// When fewer come, or one says something else.
pub fn records(world: &World<'_>, client: &Client<'_>, to: SocketAddr, count: usize, ended: &str) -> Vec<FlowLine> {
    let of_client = |line: &FlowLine| line.device == client.device && line.destination == to;
    let found = world.gateway.wait_for_flows(&format!("{} to {to}", client.device), count, of_client);
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    for line in &found {
        assert_eq!(line.ended, ended, "{line:#?}");
        assert_eq!(line.user, user(client.index), "{line:#?}");
        assert_eq!(line.groups, ["eng"], "{line:#?}");
        assert_eq!(line.onramp, client.ramp.as_str(), "{line:#?}");
        assert_eq!(line.source.ip(), client.inner_address(family), "{line:#?}");
        // The verdict that decided last: a revoked flow was allowed, and dialled, before it was denied.
        let (verdict, offramp) = match ended {
            "denied" => ("deny", None),
            "revoked" => ("allow", Some("direct")),
            _ => ("allow", Some("direct")),
        };
        assert_eq!((line.verdict.as_str(), line.offramp.as_deref()), (verdict, offramp), "{line:#?}");
        let service = match line.protocol.as_str() {
            "icmp" => "icmp".to_owned(),
            protocol => format!("{protocol}/{}", to.port()),
        };
        assert_eq!(line.service, service, "{line:#?}");
        assert!(line.duration_ms >= 0.0 && line.start <= line.end, "{line:#?}");
    }
    found
}

/// Where an echo exchange is recorded to go.
pub fn echo(to: IpAddr) -> SocketAddr {
    SocketAddr::new(to, 0)
}

/// Waits until so many flows are counted as ended this way.
///
/// # Panics
///
/// When it becomes another number.
pub fn ended(world: &World<'_>, end: &str, count: u32) {
    world.gateway.wait_for_metric(ENDED, Some(("end", end)), f64::from(count));
}

/// Waits until so many verdicts are counted.
///
/// # Panics
///
/// When it becomes another number.
pub fn verdicts(world: &World<'_>, verdict: &str, count: u32) {
    world.gateway.wait_for_metric(VERDICTS, Some(("verdict", verdict)), f64::from(count));
}

/// Waits until at least so many packets are counted as dropped for this reason.
///
/// # Panics
///
/// When they are not.
pub fn dropped(world: &World<'_>, reason: &str, at_least: u32) {
    wait::until(&format!("{at_least} packets dropped as {reason}"), || {
        has_dropped(world, reason, at_least).then_some(())
    });
}

/// Whether at least so many packets are counted as dropped for this reason.
pub fn has_dropped(world: &World<'_>, reason: &str, at_least: u32) -> bool {
    world.gateway.metrics().sum(DROPPED, Some(("reason", reason))) >= f64::from(at_least)
}

/// Counts every IP packet that reaches the private side for `address`.
pub fn arrivals<'a>(world: &World<'a>, name: &str, address: IpAddr) -> Counter<'a> {
    Counter::arriving(world.private(), name, &format!("{} daddr {address}", ip_word(address)))
}

/// Counts the SYN-ACKs a client gets from `address`.
pub fn syn_acks<'a>(client: &Client<'a>, name: &str, address: IpAddr) -> Counter<'a> {
    let matching = format!("{} saddr {address} tcp flags & (syn | ack) == (syn | ack)", ip_word(address));
    Counter::arriving(client.netns, name, &matching)
}

fn ip_word(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}
