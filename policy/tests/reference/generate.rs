//! Random policies, and questions that sit on their edges.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use portcullis_policy::{Facts, Identity, Report, Request, Ruleset, Service};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

pub(crate) const USERS: [&str; 3] = ["ann", "bob", "eve"];
pub(crate) const GROUPS: [&str; 3] = ["dba", "eng", "ops"];
/// Groups that every policy here defines; the last has a group of the same name in the directory.
const NESTED: [&str; 3] = ["all", "tech", "eng"];
pub(crate) const POSTURES: [&str; 5] = ["managed", "unix", "old", "odd", "built"];
pub(crate) const DEVICES: [&str; 3] = ["laptop", "phone", "branch"];
const NETS: [&str; 10] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "0.0.0.0/0",
    "192.0.2.128/25",
    "fd00::/8",
    "fd00:1::/32",
    "fd00:1::5/128",
    "::/0",
];
const SERVICES: [&str; 10] =
    ["tcp/443", "tcp/100-200", "tcp/201", "tcp/*", "udp/1-1024", "udp/65535", "icmp", "proto/47", "proto/0", "*"];
pub(crate) const PORTS: [u16; 14] = [0, 1, 99, 100, 200, 201, 202, 442, 443, 444, 1024, 1025, 65534, 65535];
const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"];
const DAYS: [&str; 5] = ["mon-fri", "sat,sun", "sun", "fri-mon", "mon,wed-thu"];
const HOURS: [&str; 8] = [
    "08:00-18:00",
    "22:00-06:00",
    "02:00-03:00",
    "01:30-02:30",
    "00:00-24:00",
    "00:00-00:01",
    "23:59-00:00",
    "18:00-08:00",
];
/// Around these the clocks of the zones are put forward or back, weeks and years begin, and bounds lie.
const INSTANTS: [&str; 10] = [
    "2027-01-01T00:00:00Z",
    "2027-01-15T12:00:00Z",
    "2027-03-14T05:30:00Z",
    "2027-03-28T01:00:00Z",
    "2027-04-03T15:00:00Z",
    "2027-07-04T22:00:00Z",
    "2027-10-02T15:30:00Z",
    "2027-10-31T01:00:00Z",
    "2027-11-07T04:30:00Z",
    "2027-12-31T23:59:59Z",
];

pub(crate) fn few_nets() -> Vec<String> {
    NETS.map(str::to_owned).into()
}

/// Prefixes of every length around a few addresses, so that many are in each other.
pub(crate) fn nested_nets() -> Vec<String> {
    let around = |address: &str, longest: u8| {
        let net = |length| ipnet::IpNet::new(address.parse().unwrap(), length).unwrap().trunc().to_string();
        (0..=longest).map(net).collect::<Vec<_>>()
    };
    [around("10.1.2.3", 32), around("10.1.2.131", 32), around("192.0.2.129", 32), around("fd00:1::5", 128)].concat()
}

/// Addresses on both sides of both edges of every prefix.
pub(crate) fn edge_addresses(nets: &[String]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for net in nets {
        match net.parse().unwrap() {
            ipnet::IpNet::V4(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                let edges = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                addresses.extend(edges.map(|bits| IpAddr::V4(bits.into())));
            }
            ipnet::IpNet::V6(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                let edges = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                addresses.extend(edges.map(|bits| IpAddr::V6(bits.into())));
            }
        }
    }
    addresses
}

pub(crate) fn instants() -> impl Strategy<Value = Timestamp> {
    let quarters = (-1_000_i64..1_000).prop_map(|quarters| quarters * 900_000_000_000);
    let near = select(vec![-1_i64, 0, 1, 1_000_000_000, -60_000_000_000]);
    (select(INSTANTS.to_vec()), prop_oneof![Just(0_i64), quarters], near).prop_map(|(base, quarters, near)| {
        base.parse::<Timestamp>().unwrap() + SignedDuration::from_nanos(quarters + near)
    })
}

fn sources(nets: &[String]) -> impl Strategy<Value = String> + use<> {
    prop_oneof![
        2 => Just("*".to_owned()),
        2 => select(USERS.to_vec()).prop_map(|name| format!("user:{name}")),
        3 => select([&GROUPS[..], &NESTED[..]].concat()).prop_map(|name| format!("group:{name}")),
        2 => select(DEVICES.to_vec()).prop_map(|name| format!("device:{name}")),
        1 => select(vec!["network:default", "network:lab"]).prop_map(ToOwned::to_owned),
        2 => select(nets.to_vec()).prop_map(|net| format!("net:{net}")),
    ]
}

fn targets(nets: &[String]) -> impl Strategy<Value = String> + use<> {
    prop_oneof![
        2 => Just("*".to_owned()),
        3 => select(vec!["db".to_owned(), "web".to_owned(), "all".to_owned()]),
        3 => select(nets.to_vec()),
    ]
}

fn some_services() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(SERVICES.to_vec(), 1..4)
}

pub(crate) fn when() -> impl Strategy<Value = Value> {
    let bounds = prop::option::of((0..INSTANTS.len(), 0..INSTANTS.len()));
    let posture = prop::option::weighted(0.2, subsequence(POSTURES.to_vec(), 1..=2));
    let days = prop::option::of(select(DAYS.to_vec()));
    let hours = prop::option::of(select(HOURS.to_vec()));
    (days, hours, select(ZONES.to_vec()), bounds, posture).prop_map(|(days, hours, zone, bounds, posture)| {
        let mut when = json!({ "zone": zone });
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                when[key] = value;
            }
        };
        set("days", days.map(Value::from));
        set("hours", hours.map(Value::from));
        set("posture", posture.map(Value::from));
        let bounds = bounds.filter(|(first, last)| first != last);
        set("not_before", bounds.map(|(first, last)| INSTANTS[first.min(last)].into()));
        set("not_after", bounds.map(|(first, last)| INSTANTS[first.max(last)].into()));
        when
    })
}

fn rules(nets: &[String]) -> impl Strategy<Value = Value> + use<> {
    let exception = |list: Vec<String>| -> Vec<String> { list.into_iter().filter(|entry| entry != "*").collect() };
    let from =
        (prop::collection::vec(sources(nets), 1..4), prop::collection::vec(sources(nets), 0..2).prop_map(exception));
    let to =
        (prop::collection::vec(targets(nets), 1..4), prop::collection::vec(targets(nets), 0..2).prop_map(exception));
    let services = prop::option::of(some_services());
    (from, to, services, prop::option::of(when()), 0..6_u8).prop_map(
        |((from, not_from), (to, not_to), services, when, kind)| {
            let mut rule = json!({ "from": from, "not_from": not_from, "to": to, "not_to": not_to });
            rule["action"] = if kind < 4 { "allow" } else { "deny" }.into();
            if kind == 0 {
                rule["mode"] = "audit".into();
            }
            if kind == 1 {
                rule["offramp"] = "direct".into();
            }
            if kind == 5 {
                rule["silent"] = true.into();
            }
            if let Some(services) = services {
                rule["services"] = services.into();
            }
            if let Some(when) = when {
                rule["when"] = when;
            }
            rule
        },
    )
}

/// Every comparison, lists, and both kinds of values to compare with.
pub(crate) fn postures() -> Value {
    json!({
        "managed": { "disk": true, "version": ">=14.1" },
        "unix": { "os": ["linux", "macos"] },
        "old": { "version": "<14.1" },
        "odd": { "version": ["==15", "<=9.9", "new"], "os": ["==linux", true] },
        "built": { "build": [7, ">6.5"] },
    })
}

/// Groups in groups, and one that adds to the group of the directory of the same name.
fn groups() -> impl Strategy<Value = Value> {
    let all = subsequence(vec!["group:tech", "group:ops", "user:bob"], 1..=3);
    let tech = subsequence(vec!["group:eng", "group:dba", "user:ann"], 1..=3);
    let eng = subsequence(vec!["group:dba", "user:eve", "group:ops"], 1..=2);
    (all, tech, eng).prop_map(|(all, tech, eng)| json!({ "all": all, "tech": tech, "eng": eng }))
}

/// A handful of rules.
pub(crate) fn policies() -> impl Strategy<Value = Value> {
    policies_of(&few_nets(), prop::collection::vec(rules(&few_nets()), 0..7).boxed())
}

/// Hundreds of rules over prefixes that nest. Most only audit, so that a verdict names all of them that match.
pub(crate) fn large_policies() -> impl Strategy<Value = Value> {
    let audits = |mut rules: Vec<Value>| {
        for (_, rule) in rules.iter_mut().enumerate().filter(|(index, _)| index % 40 != 39) {
            rule["mode"] = "audit".into();
        }
        rules
    };
    let rules = prop::collection::vec(rules(&nested_nets()), 200..300).prop_map(audits);
    policies_of(&nested_nets(), rules.boxed())
}

fn policies_of(nets: &[String], rules: BoxedStrategy<Vec<Value>>) -> impl Strategy<Value = Value> + use<> {
    let resource = || (subsequence(nets.to_vec(), 1..3), prop::option::of(some_services()));
    (resource(), resource(), groups(), rules).prop_map(|(db, web, groups, mut rules)| {
        for (index, rule) in rules.iter_mut().enumerate() {
            rule["id"] = format!("rule-{index}").into();
        }
        let resource = |(addresses, services): (Vec<String>, Option<Vec<&str>>)| match services {
            Some(services) => json!({ "addresses": addresses, "services": services }),
            None => json!({ "addresses": addresses }),
        };
        json!({
            "version": 1,
            "resources": { "db": resource(db), "web": resource(web), "all": { "addresses": ["0.0.0.0/0", "::/0"] } },
            "groups": groups,
            "postures": postures(),
            "rules": rules
        })
    })
}

#[derive(Debug, Clone)]
pub(crate) struct Question {
    identity: Identity,
    source: IpAddr,
    destination: IpAddr,
    service: Service,
    pub(crate) now: Timestamp,
}

impl Question {
    /// What is asked, by somebody in the groups of the directory only.
    pub(crate) fn request(&self) -> Request<'_> {
        self.request_as(&self.identity)
    }

    /// The same, asked by `identity`.
    pub(crate) fn request_as<'a>(&self, identity: &'a Identity) -> Request<'a> {
        Request { identity, source: self.source, destination: self.destination, service: self.service }
    }

    /// Who asks, in the groups that a ruleset adds too.
    pub(crate) fn identity_in(&self, ruleset: &Ruleset) -> Identity {
        let Identity { user, groups, .. } = &self.identity;
        Identity { groups: ruleset.groups_of(user, groups), ..self.identity.clone() }
    }
}

pub(crate) fn questions(nets: &[String]) -> impl Strategy<Value = Question> + use<> {
    let fact = |values: Vec<Value>| {
        let report = (select(values.clone()), prop::option::of(instants()));
        (prop::option::of(select(values)), prop::option::weighted(0.2, report))
    };
    let posture = (
        fact(vec![json!(true), json!(false)]),
        fact(vec![
            json!("14"),
            json!("14.1"),
            json!("14.1.0"),
            json!("9.9"),
            json!("15"),
            json!("new"),
            json!(15),
            json!(14.1),
        ]),
        fact(vec![json!("linux"), json!("windows"), json!(true)]),
        fact(vec![json!(7), json!(7.0), json!(6.5), json!("7"), json!("6.5.1")]),
    );
    let networks = select(vec!["default", "default", "lab"]);
    let identity =
        (select(DEVICES.to_vec()), select(USERS.to_vec()), subsequence(GROUPS.to_vec(), 0..=3), networks, posture)
            .prop_map(|(device, user, groups, network, (disk, version, os, build))| {
                let mut posture = Facts::default();
                for (name, (standing, reported)) in [("disk", disk), ("version", version), ("os", os), ("build", build)]
                {
                    if let Some(value) = standing {
                        posture.insert(name.to_owned(), value);
                    }
                    if let Some((value, until)) = reported {
                        posture.report(name.to_owned(), Report { value, at: Timestamp::UNIX_EPOCH, until });
                    }
                }
                Identity {
                    device: device.into(),
                    user: user.into(),
                    groups: groups.into_iter().map(Arc::from).collect(),
                    network: network.into(),
                    posture,
                }
            });
    let service = prop_oneof![
        4 => select(PORTS.to_vec()).prop_map(Service::Tcp),
        3 => select(PORTS.to_vec()).prop_map(Service::Udp),
        1 => Just(Service::Icmp),
        1 => select(vec![0_u8, 4, 46, 47, 48]).prop_map(Service::Protocol),
    ];
    let addresses = edge_addresses(nets);
    let address = || select(addresses.clone());
    (identity, address(), address(), service, instants()).prop_map(|(identity, source, destination, service, now)| {
        Question { identity, source, destination, service, now }
    })
}
