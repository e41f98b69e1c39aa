//! Policies of a chosen size in the shapes that matter to an index, with questions to each.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::Timestamp;
use portcullis_policy::{Context, Facts, Identity, KnownUser, Request, Revision, Ruleset, Service};
use serde_json::{Value, json};

const USERS: usize = 1_000;
const GROUPS: usize = 200;
const GROUPS_OF_A_USER: usize = 5;

/// How the rules of a policy are told apart, and which of them decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Groups to prefixes of their own, /24 and /32, below a few wide rules; any rule may decide.
    Prefixes,
    /// The same; the last rule decides.
    Last,
    /// The same; the prefix is known, but to another group.
    Nobody,
    /// Groups to resources of four addresses and two services.
    Resources,
    /// Every group has a rule for every one of as many prefixes.
    Grid,
    /// Everybody to prefixes.
    AnySource,
    /// Groups to everywhere, told apart by the port.
    AnyDestination,
    /// Everybody to everywhere, told apart by the port.
    PortsOnly,
    /// Every 64 rules in a row there are some for the user and some for the destination, but never one for both.
    Interleaved,
}

impl Shape {
    /// Every shape with its name.
    pub(crate) const ALL: [(&str, Self); 9] = [
        ("prefixes", Self::Prefixes),
        ("last", Self::Last),
        ("nobody", Self::Nobody),
        ("resources", Self::Resources),
        ("grid", Self::Grid),
        ("any_source", Self::AnySource),
        ("any_destination", Self::AnyDestination),
        ("ports_only", Self::PortsOnly),
        ("interleaved", Self::Interleaved),
    ];

    fn rule(self, number: usize, side: usize) -> Value {
        let group = |number: usize| format!("group:{}", group_name(number % GROUPS));
        let port = || format!("tcp/{}", 1 + number % 60_000);
        let (from, to, services) = match self {
            Self::Prefixes | Self::Last | Self::Nobody => match number {
                0 => return json!({ "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/23", "udp/69"] }),
                1 => {
                    return json!({ "action": "allow", "from": ["*"], "to": ["10.255.0.0/24"], "services": ["udp/53", "icmp"] });
                }
                2 => return json!({ "action": "deny", "from": ["net:100.96.4.0/24"], "to": ["10.0.0.0/8"] }),
                _ => {
                    let services = [&["tcp/443"][..], &["tcp/22", "tcp/400-499"], &["tcp/*", "icmp"], &["tcp/1-1024"]];
                    (group(number), prefix(number), json!(services[number % services.len()]))
                }
            },
            Self::Resources => (group(number), format!("resource-{}", number % resources(side * side)), Value::Null),
            Self::Grid => (group(number % side), prefix(number / side), json!(["tcp/443"])),
            Self::AnySource => ("*".to_owned(), prefix(number), json!(["tcp/443"])),
            Self::AnyDestination => (group(number), "*".to_owned(), json!([port()])),
            Self::PortsOnly => ("*".to_owned(), "*".to_owned(), json!([port()])),
            Self::Interleaved => (group(number % 2), prefix((number + 1) % 2), json!(["tcp/443"])),
        };
        let mut rule = json!({ "action": "allow", "from": [from], "to": [to] });
        if !services.is_null() {
            rule["services"] = services;
        }
        rule
    }

    /// The document with so many rules.
    pub(crate) fn policy(self, rules: usize) -> Vec<u8> {
        let side = rules.isqrt();
        let with_id = |number| {
            let mut rule = self.rule(number, side);
            rule["id"] = format!("rule-{number}").into();
            rule
        };
        let resource = |number: usize| {
            let addresses: Vec<String> =
                (0..4).map(|part| format!("10.{}.{}.{part}", 64 + number / 250, number % 250)).collect();
            (format!("resource-{number}"), json!({ "addresses": addresses, "services": ["tcp/443", "tcp/5432"] }))
        };
        let resources = if self == Self::Resources { resources(side * side) } else { 0 };
        json!({
            "version": 1,
            "resources": (0..resources).map(resource).collect::<serde_json::Map<_, _>>(),
            "rules": (0..rules).map(with_id).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes()
    }

    /// A question whose answer the rule of that number decides, or would if it were the user's.
    pub(crate) fn question(self, number: usize, rules: usize) -> Question {
        let side = rules.isqrt();
        let member = |group: usize| group % GROUPS + GROUPS * (number % (USERS / GROUPS));
        let stranger = |group: usize| {
            (0..USERS).map(|user| (user + number) % USERS).find(|user| !is_member(*user, group % GROUPS))
        };
        let (user, to, port) = match self {
            Self::Prefixes => (member(number), host(number), 443),
            Self::Last => (member(rules - 1), host(rules - 1), 443),
            Self::Nobody => (stranger(number).unwrap_or(0), host(number), 443),
            Self::Resources => {
                let number = number % resources(side * side);
                (member(number), Ipv4Addr::new(10, 64 + (number / 250) as u8, (number % 250) as u8, 1), 5432)
            }
            Self::Grid => (member(number % side), host(number / side), 443),
            Self::AnySource => (number % USERS, host(number), 443),
            Self::AnyDestination => (member(number), host(number), 1 + number % 60_000),
            Self::PortsOnly => (number % USERS, host(number), 1 + number % 60_000),
            // Of the first two groups, user 0 is in the first alone.
            Self::Interleaved => (0, host(0), 443),
        };
        Question { identity: identity(user), to: to.into(), service: Service::Tcp(port as u16) }
    }
}

fn resources(rules: usize) -> usize {
    (rules / 4).max(1)
}

fn group_name(number: usize) -> String {
    format!("department-{number}")
}

fn user_name(number: usize) -> String {
    format!("user-{number}@example.com")
}

/// Every user is in as many groups; in group N there are at least the users N, N + GROUPS and so on.
fn groups_of(user: usize) -> impl Iterator<Item = usize> {
    (0..GROUPS_OF_A_USER).map(move |step| (user % GROUPS + step * (user / GROUPS + 17)) % GROUPS)
}

fn is_member(user: usize, group: usize) -> bool {
    groups_of(user).any(|own| own == group)
}

/// A device of every user, and its address.
#[allow(dead_code, reason = "not everybody who includes this file compares policies")]
pub(crate) fn devices() -> Vec<(Arc<Identity>, IpAddr)> {
    let address = |user: usize| Ipv4Addr::new(100, 96, (user / 250) as u8, (user % 250) as u8);
    (0..USERS).map(|user| (identity(user), address(user).into())).collect()
}

fn identity(user: usize) -> Arc<Identity> {
    let groups: BTreeSet<Arc<str>> = groups_of(user).map(|group| group_name(group).into()).collect();
    Arc::new(Identity {
        device: format!("laptop-of-user-{user}").into(),
        user: user_name(user).into(),
        groups: groups.into_iter().collect(),
        network: "default".into(),
        posture: Facts::default(),
    })
}

/// A prefix of its own for every number: a /24, or a host.
fn prefix(number: usize) -> String {
    match number % 2 {
        0 => format!("10.{}.{}.0/24", number / 250, number % 250),
        _ => format!("{}/32", host(number)),
    }
}

fn host(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, (number / 250) as u8, (number % 250) as u8, 7)
}

/// A question that owns what it is about.
#[derive(Debug)]
pub(crate) struct Question {
    identity: Arc<Identity>,
    to: IpAddr,
    service: Service,
}

impl Question {
    /// The question itself.
    pub(crate) fn request(&self) -> Request<'_> {
        let source = IpAddr::V4(Ipv4Addr::new(100, 96, 1, 2));
        Request { identity: &self.identity, source, destination: self.to, service: self.service }
    }
}

/// The instant at which everything is asked.
pub(crate) const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Compiles a document of these shapes.
pub(crate) fn compile(policy: &[u8]) -> Ruleset {
    let users: Vec<String> = (0..USERS).map(user_name).collect();
    let groups: Vec<String> = (0..GROUPS).map(group_name).collect();
    let context = Context {
        users: users
            .iter()
            .map(|name| (name.as_str(), KnownUser { groups: &[], network: "default", disabled: false }))
            .collect(),
        groups: groups.iter().map(String::as_str).collect(),
        ..Context::default()
    };
    match Ruleset::compile(policy, &context, Revision(1), NOW) {
        Ok(ruleset) => ruleset,
        Err(problems) => panic!("{problems:?}"),
    }
}
