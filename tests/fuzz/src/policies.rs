//! Policies, devices and questions made of bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use portcullis_policy::{Context, Identity, KnownUser, Revision, Ruleset, Service};
use serde_json::{Value, json};

use crate::input::Input;

const USERS: [&str; 3] = ["ann", "bob", "eve"];
const GROUPS: [&str; 3] = ["dba", "eng", "ops"];
const SOURCES: [&str; 13] = [
    "*",
    "user:ann",
    "user:bob",
    "group:dba",
    "group:eng",
    "group:ops",
    "group:all",
    "group:tech",
    "network:lab",
    "net:10.0.0.0/8",
    "net:10.1.2.3/32",
    "net:fd00::/8",
    "net:0.0.0.0/0",
];
const TARGETS: [&str; 9] =
    ["*", "db", "web", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.128/25", "fd00::/8", "0.0.0.0/0"];
const SERVICES: [&str; 10] =
    ["*", "tcp/443", "tcp/100-200", "tcp/201", "tcp/*", "udp/1-1024", "udp/65535", "icmp", "proto/47", "proto/0"];
pub(crate) const ADDRESSES: [&str; 10] = [
    "10.0.0.0",
    "10.1.2.3",
    "10.1.2.4",
    "10.255.255.255",
    "9.255.255.255",
    "192.0.2.127",
    "192.0.2.128",
    "fd00::1",
    "fe00::",
    "255.255.255.255",
];
pub(crate) const PORTS: [u16; 8] = [1, 99, 100, 201, 202, 443, 1024, 65535];
pub(crate) const PROTOCOLS: [u8; 4] = [0, 46, 47, 48];
const MEMBERS: [&str; 5] = ["user:ann", "user:bob", "user:eve", "group:dba", "group:eng"];
const DAYS: [&str; 5] = ["mon-fri", "sat,sun", "sun", "fri-mon", "mon,wed-thu"];
const HOURS: [&str; 5] = ["08:00-18:00", "22:00-06:00", "02:00-03:00", "00:00-00:01", "23:59-00:00"];
const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"];
const INSTANTS: [&str; 5] = [
    "2027-01-01T00:00:00Z",
    "2027-03-28T01:00:00Z",
    "2027-04-03T15:00:00Z",
    "2027-10-31T01:00:00Z",
    "2027-11-07T04:30:00Z",
];
/// The most rules of a policy, and questions asked of one.
pub(crate) const MOST: u8 = 24;

/// Compiles what [`policy`] made.
pub(crate) fn compile(policy: &Value) -> Ruleset {
    let own: Arc<[Arc<str>]> = Arc::default();
    let context = Context {
        users: USERS.map(|name| (name, KnownUser { groups: &own, network: "default", disabled: false })).into(),
        devices: BTreeMap::default(),
        groups: BTreeSet::from(GROUPS),
        networks: BTreeSet::from(["default", "lab"]),
        offramps: BTreeSet::from(["direct"]),
    };
    Ruleset::compile(policy.to_string().as_bytes(), &context, Revision(1), Timestamp::UNIX_EPOCH)
        .unwrap_or_else(|problems| panic!("{problems:?}\n{policy}"))
}

fn pick<'a>(input: &mut Input<'_>, from: &[&'a str]) -> &'a str {
    from[usize::from(input.byte()) % from.len()]
}

/// One to four different entries; none that is `*` when these are exceptions.
fn some<'a>(input: &mut Input<'_>, from: &[&'a str], exceptions: bool) -> Vec<&'a str> {
    let count = 1 + input.byte() % 4;
    let all: BTreeSet<&str> =
        (0..count).map(|_| pick(input, from)).filter(|entry| !exceptions || *entry != "*").collect();
    all.into_iter().collect()
}

pub(crate) fn policy(input: &mut Input<'_>) -> Value {
    let groups = json!({ "tech": some(input, &MEMBERS, false), "all": ["group:tech", pick(input, &MEMBERS)] });
    let resource = |input: &mut Input<'_>| {
        let mut resource = json!({ "addresses": some(input, &TARGETS[3..], false) });
        if input.byte() % 2 == 1 {
            resource["services"] = some(input, &SERVICES, false).into();
        }
        resource
    };
    let resources = json!({ "db": resource(input), "web": resource(input) });
    let rules: Vec<Value> = (0..input.byte() % MOST).map(|number| rule(input, number)).collect();
    json!({ "version": 1, "groups": groups, "resources": resources, "rules": rules,
        "postures": { "new": { "version": ">=14.1", "disk": true }, "known": { "os": ["linux", "==macos"], "version": "<15" } } })
}

pub(crate) fn rule(input: &mut Input<'_>, number: u8) -> Value {
    let kind = input.byte();
    let mut rule =
        json!({ "id": format!("r{number}"), "from": some(input, &SOURCES, false), "to": some(input, &TARGETS, false) });
    rule["action"] = if kind & 1 == 0 { "allow" } else { "deny" }.into();
    rule["mode"] = if kind & 2 == 0 { "enforce" } else { "audit" }.into();
    match kind & 5 {
        4 => rule["offramp"] = "direct".into(),
        5 => rule["silent"] = true.into(),
        _ => {}
    }
    if kind & 8 != 0 {
        rule["services"] = some(input, &SERVICES, false).into();
    }
    if kind & 16 != 0 {
        rule["not_from"] = some(input, &SOURCES, true).into();
    }
    if kind & 32 != 0 {
        rule["not_to"] = some(input, &TARGETS, true).into();
    }
    if kind & 64 != 0 {
        rule["when"] = when(input);
    }
    rule
}

fn when(input: &mut Input<'_>) -> Value {
    let kind = input.byte();
    let mut when = json!({ "zone": pick(input, &ZONES) });
    if kind & 1 != 0 {
        when["days"] = pick(input, &DAYS).into();
    }
    if kind & 2 != 0 {
        when["hours"] = pick(input, &HOURS).into();
    }
    if kind & 4 != 0 {
        when["posture"] = some(input, &["new", "known"], false).into();
    }
    if kind & 8 != 0 {
        when["not_before"] = INSTANTS[usize::from(input.byte()) % 3].into();
    }
    if kind & 16 != 0 {
        when["not_after"] = INSTANTS[3 + usize::from(input.byte()) % 2].into();
    }
    when
}

pub(crate) fn identity(input: &mut Input<'_>) -> Identity {
    let facts = [
        ("disk", [json!(true), json!(false), Value::Null]),
        ("version", [json!("14.1.0"), json!(14), json!("15")]),
        ("os", [json!("linux"), json!("macos"), Value::Null]),
    ];
    let groups = input.byte();
    Identity {
        device: "laptop".into(),
        user: pick(input, &USERS).into(),
        groups: GROUPS
            .iter()
            .enumerate()
            .filter(|(bit, _)| groups & 1 << bit != 0)
            .map(|(_, name)| Arc::from(*name))
            .collect(),
        network: if groups & 0x80 == 0 { "default" } else { "lab" }.into(),
        posture: facts
            .into_iter()
            .map(|(name, values)| (name.to_owned(), values[usize::from(input.byte()) % 3].clone()))
            .filter(|(_, value)| !value.is_null())
            .collect(),
    }
}

pub(crate) fn address(input: &mut Input<'_>) -> IpAddr {
    pick(input, &ADDRESSES).parse().unwrap()
}

pub(crate) fn service(input: &mut Input<'_>) -> Service {
    let number = usize::from(input.byte());
    let port = PORTS[number / 4 % PORTS.len()];
    match number % 4 {
        0 => Service::Tcp(port),
        1 => Service::Udp(port),
        2 => Service::Icmp,
        _ => Service::Protocol(PROTOCOLS[number / 4 % 4]),
    }
}

/// Around the instants at which clocks change or bounds lie, by quarters of an hour and a nanosecond.
pub(crate) fn instant(input: &mut Input<'_>) -> Timestamp {
    let base: Timestamp = pick(input, &INSTANTS).parse().unwrap();
    let quarters = i64::from(input.word()) - 0x8000;
    let near = i64::from(input.byte() % 3) - 1;
    base + jiff::SignedDuration::from_nanos(quarters / 32 * 900_000_000_000 + near)
}

#[cfg(test)]
pub(crate) mod seeds {
    use std::path::Path;

    /// Bytes of the corpora, so that they can be made again when the reading of bytes changes.
    pub(crate) fn seed(number: u64) -> Vec<u8> {
        let mut state = number;
        let mut bytes = vec![0; 2_000];
        for byte in &mut bytes {
            // Knuth's linear congruential generator (MMIX).
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = state.to_be_bytes()[0];
        }
        bytes
    }

    /// The corpus of `target` has the seeds 1 to 6.
    pub(crate) fn are_in_corpus(target: &str) {
        for number in 1..=6_u64 {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpus/{target}/random-{number}"));
            if std::env::var_os("PORTCULLIS_WRITE_SEEDS").is_some() {
                std::fs::write(&file, seed(number)).unwrap();
            }
            assert_eq!(std::fs::read(&file).unwrap(), seed(number), "PORTCULLIS_WRITE_SEEDS=1 writes it again");
        }
    }
}
