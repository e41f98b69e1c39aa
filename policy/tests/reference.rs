//! The compiled ruleset against a naive reading of the same documents, for random policies and questions that sit on the edges
//! of ports, prefixes and times.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a wrong assumption shall fail the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::tz::TimeZoneDatabase;
use jiff::{SignedDuration, Timestamp};
use portcullis_policy::{
    Context, Identity, KnownDevice, KnownUser, Request, Revision, Ruleset, Service, Verdict,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

const USERS: [&str; 3] = ["ann", "bob", "eve"];
const GROUPS: [&str; 3] = ["dba", "eng", "ops"];
const DEVICES: [&str; 3] = ["laptop", "phone", "branch"];
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
const SERVICES: [&str; 10] = [
    "tcp/443",
    "tcp/100-200",
    "tcp/201",
    "tcp/*",
    "udp/1-1024",
    "udp/65535",
    "icmp",
    "proto/47",
    "proto/0",
    "*",
];
const PORTS: [u16; 14] = [
    0, 1, 99, 100, 200, 201, 202, 442, 443, 444, 1024, 1025, 65534, 65535,
];
const ZONES: [&str; 4] = [
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",
    "Australia/Lord_Howe",
];
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

/// What a verdict comes to.
#[derive(Debug, PartialEq)]
struct Answer {
    allowed: bool,
    rule: Option<String>,
    silent: bool,
    offramp: Option<String>,
    audited: Vec<String>,
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        let (silent, offramp) = match &verdict {
            Verdict::Allow(permit) => (false, permit.offramp().map(ToString::to_string)),
            Verdict::Deny(denial) => (denial.silent(), None),
        };
        Self {
            allowed: verdict.is_allowed(),
            rule: verdict.rule().map(ToString::to_string),
            silent,
            offramp,
            audited: verdict.audited().iter().map(ToString::to_string).collect(),
        }
    }
}

/// The verdict, read straight from the document.
fn reference(policy: &Value, request: &Request<'_>, now: Timestamp) -> Answer {
    let mut audited = Vec::new();
    for rule in policy["rules"].as_array().unwrap() {
        if !matches(policy, rule, request, now) {
            continue;
        }
        let id = rule["id"].as_str().unwrap().to_owned();
        if rule["mode"] == "audit" {
            audited.push(id);
            continue;
        }
        let allowed = rule["action"] == "allow";
        let offramp = rule["offramp"].as_str().map(str::to_owned);
        return Answer {
            allowed,
            rule: Some(id),
            silent: rule["silent"] == true,
            offramp,
            audited,
        };
    }
    Answer {
        allowed: false,
        rule: None,
        silent: false,
        offramp: None,
        audited,
    }
}

fn matches(policy: &Value, rule: &Value, request: &Request<'_>, now: Timestamp) -> bool {
    let from = |key: &str| {
        list(&rule[key])
            .iter()
            .any(|entry| is_source(entry, request))
    };
    let to = |key: &str| {
        list(&rule[key])
            .iter()
            .any(|entry| is_target(policy, entry, request))
    };
    from("from")
        && !from("not_from")
        && to("to")
        && !to("not_to")
        && offers(&rule["services"], request.service)
        && list(&rule["when"]["posture"])
            .iter()
            .all(|name| has_posture(&policy["postures"][name.as_str()], request.identity))
        && is_time(&rule["when"], now)
}

fn list(value: &Value) -> Vec<String> {
    value
        .as_array()
        .map(|list| {
            list.iter()
                .map(|entry| entry.as_str().unwrap().to_owned())
                .collect()
        })
        .unwrap_or_default()
}

fn is_source(entry: &str, request: &Request<'_>) -> bool {
    let identity = request.identity;
    entry == "*"
        || entry == format!("user:{}", identity.user)
        || entry == format!("device:{}", identity.device)
        || identity
            .groups
            .iter()
            .any(|group| entry == format!("group:{group}"))
        || entry
            .strip_prefix("net:")
            .is_some_and(|net| holds(net, request.source))
}

fn is_target(policy: &Value, entry: &str, request: &Request<'_>) -> bool {
    match policy["resources"].get(entry) {
        Some(resource) => {
            list(&resource["addresses"])
                .iter()
                .any(|net| holds(net, request.destination))
                && offers(&resource["services"], request.service)
        }
        None => entry == "*" || holds(entry, request.destination),
    }
}

/// Compares the leading bits, one by one.
fn holds(net: &str, address: IpAddr) -> bool {
    let bits = |address: IpAddr| -> String {
        match address {
            IpAddr::V4(address) => address
                .octets()
                .iter()
                .map(|octet| format!("{octet:08b}"))
                .collect(),
            IpAddr::V6(address) => address
                .octets()
                .iter()
                .map(|octet| format!("{octet:08b}"))
                .collect(),
        }
    };
    let (network, length) = net.split_once('/').unwrap();
    let (network, length): (IpAddr, usize) = (network.parse().unwrap(), length.parse().unwrap());
    network.is_ipv4() == address.is_ipv4() && bits(network)[..length] == bits(address)[..length]
}

fn offers(services: &Value, service: Service) -> bool {
    let one = |entry: &String| {
        let (name, number) = match service {
            Service::Tcp(port) => ("tcp/", port),
            Service::Udp(port) => ("udp/", port),
            Service::Protocol(number) => ("proto/", u16::from(number)),
            Service::Icmp => return entry == "icmp" || entry == "*",
        };
        entry == "*"
            || entry
                .strip_prefix(name)
                .is_some_and(|range| match range.split_once('-') {
                    None => range == "*" || range == number.to_string(),
                    Some((first, last)) => {
                        (first.parse().unwrap()..=last.parse().unwrap()).contains(&number)
                    }
                })
    };
    services.is_null() || list(services).iter().any(one)
}

fn has_posture(posture: &Value, identity: &Identity) -> bool {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        let mut numbers = text
            .split('.')
            .map(|part| part.parse().ok())
            .collect::<Option<Vec<u64>>>()?;
        numbers.resize(4, 0);
        Some(numbers)
    };
    posture.as_object().unwrap().iter().all(|(fact, expected)| {
        let Some(fact) = identity.posture.get(fact) else {
            return false;
        };
        match expected {
            Value::Array(choices) => choices.contains(fact),
            Value::String(text) if text.starts_with(">=") => fact
                .as_str()
                .and_then(numbers)
                .is_some_and(|fact| fact >= numbers(&text[2..]).unwrap()),
            expected => expected == fact,
        }
    })
}

/// Lays the windows out over the minutes of a week.
fn is_time(when: &Value, now: Timestamp) -> bool {
    let instant = |key: &str| {
        when[key]
            .as_str()
            .map(|text| text.parse::<Timestamp>().unwrap())
    };
    let zone = TimeZoneDatabase::bundled()
        .get(when["zone"].as_str().unwrap_or("UTC"))
        .unwrap();
    let local = zone.to_datetime(now);
    let minute = local.weekday().to_monday_zero_offset() as usize * 1440
        + local.hour() as usize * 60
        + local.minute() as usize;
    let days: &[usize] = match when["days"].as_str() {
        None => &[0, 1, 2, 3, 4, 5, 6],
        Some("mon-fri") => &[0, 1, 2, 3, 4],
        Some("sat,sun") => &[5, 6],
        Some("sun") => &[6],
        Some("fri-mon") => &[4, 5, 6, 0],
        Some("mon,wed-thu") => &[0, 2, 3],
        Some(days) => panic!("unknown days {days}"),
    };
    let hours = when["hours"].as_str().unwrap_or("00:00-24:00");
    let clock = |range: std::ops::Range<usize>| hours[range].parse::<usize>().unwrap();
    let (start, end) = (
        clock(0..2) * 60 + clock(3..5),
        clock(6..8) * 60 + clock(9..11),
    );
    let length = if end > start {
        end - start
    } else {
        end + 1440 - start
    };
    let open = days
        .iter()
        .any(|day| (0..length).any(|step| (day * 1440 + start + step) % 10080 == minute));
    open && instant("not_before").is_none_or(|start| now >= start)
        && instant("not_after").is_none_or(|end| now < end)
}

/// Addresses on both sides of both edges of every prefix.
fn edge_addresses() -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for net in NETS {
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

fn instants() -> impl Strategy<Value = Timestamp> {
    let quarters = (-1_000_i64..1_000).prop_map(|quarters| quarters * 900_000_000_000);
    let near = select(vec![-1_i64, 0, 1, 1_000_000_000, -60_000_000_000]);
    (
        select(INSTANTS.to_vec()),
        prop_oneof![Just(0_i64), quarters],
        near,
    )
        .prop_map(|(base, quarters, near)| {
            base.parse::<Timestamp>().unwrap() + SignedDuration::from_nanos(quarters + near)
        })
}

fn sources() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just("*".to_owned()),
        2 => select(USERS.to_vec()).prop_map(|name| format!("user:{name}")),
        3 => select(GROUPS.to_vec()).prop_map(|name| format!("group:{name}")),
        2 => select(DEVICES.to_vec()).prop_map(|name| format!("device:{name}")),
        2 => select(NETS.to_vec()).prop_map(|net| format!("net:{net}")),
    ]
}

fn targets() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just("*".to_owned()),
        3 => select(vec!["db".to_owned(), "web".to_owned(), "all".to_owned()]),
        3 => select(NETS.to_vec()).prop_map(str::to_owned),
    ]
}

fn some_services() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(SERVICES.to_vec(), 1..4)
}

fn when() -> impl Strategy<Value = Value> {
    let bounds = prop::option::of((0..INSTANTS.len(), 0..INSTANTS.len()));
    let posture = prop::option::weighted(0.2, subsequence(vec!["managed", "unix"], 1..=2));
    let days = prop::option::of(select(DAYS.to_vec()));
    let hours = prop::option::of(select(HOURS.to_vec()));
    (days, hours, select(ZONES.to_vec()), bounds, posture).prop_map(
        |(days, hours, zone, bounds, posture)| {
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
            set(
                "not_before",
                bounds.map(|(first, last)| INSTANTS[first.min(last)].into()),
            );
            set(
                "not_after",
                bounds.map(|(first, last)| INSTANTS[first.max(last)].into()),
            );
            when
        },
    )
}

fn rules() -> impl Strategy<Value = Value> {
    let exception = |list: Vec<String>| -> Vec<String> {
        list.into_iter().filter(|entry| entry != "*").collect()
    };
    let from = (
        prop::collection::vec(sources(), 1..4),
        prop::collection::vec(sources(), 0..2).prop_map(exception),
    );
    let to = (
        prop::collection::vec(targets(), 1..4),
        prop::collection::vec(targets(), 0..2).prop_map(exception),
    );
    let services = prop::option::of(some_services());
    (from, to, services, prop::option::of(when()), 0..6_u8).prop_map(
        |((from, not_from), (to, not_to), services, when, kind)| {
            let mut rule =
                json!({ "from": from, "not_from": not_from, "to": to, "not_to": not_to });
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

fn policies() -> impl Strategy<Value = Value> {
    let resource = || {
        (
            subsequence(NETS.to_vec(), 1..3),
            prop::option::of(some_services()),
        )
    };
    (resource(), resource(), prop::collection::vec(rules(), 0..7)).prop_map(|(db, web, mut rules)| {
        for (index, rule) in rules.iter_mut().enumerate() {
            rule["id"] = format!("rule-{index}").into();
        }
        let resource = |(addresses, services): (Vec<&str>, Option<Vec<&str>>)| match services {
            Some(services) => json!({ "addresses": addresses, "services": services }),
            None => json!({ "addresses": addresses }),
        };
        json!({
            "version": 1,
            "resources": { "db": resource(db), "web": resource(web), "all": { "addresses": ["0.0.0.0/0", "::/0"] } },
            "postures": { "managed": { "disk": true, "version": ">=14.1" }, "unix": { "os": ["linux", "macos"] } },
            "rules": rules
        })
    })
}

#[derive(Debug, Clone)]
struct Question {
    identity: Identity,
    source: IpAddr,
    destination: IpAddr,
    service: Service,
    now: Timestamp,
}

impl Question {
    fn request(&self) -> Request<'_> {
        Request {
            identity: &self.identity,
            source: self.source,
            destination: self.destination,
            service: self.service,
        }
    }
}

fn questions() -> impl Strategy<Value = Question> {
    let fact = |values: Vec<Value>| prop::option::of(select(values));
    let posture = (
        fact(vec![json!(true), json!(false)]),
        fact(vec![
            json!("14"),
            json!("14.1"),
            json!("14.1.0"),
            json!("9.9"),
            json!("15"),
            json!("new"),
        ]),
        fact(vec![json!("linux"), json!("windows")]),
    );
    let identity = (
        select(DEVICES.to_vec()),
        select(USERS.to_vec()),
        subsequence(GROUPS.to_vec(), 0..=3),
        posture,
    )
        .prop_map(|(device, user, groups, (disk, version, os))| {
            let facts = [("disk", disk), ("version", version), ("os", os)];
            Identity {
                device: device.into(),
                user: user.into(),
                groups: groups.into_iter().map(Arc::from).collect(),
                posture: facts
                    .into_iter()
                    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                    .collect(),
            }
        });
    let service = prop_oneof![
        4 => select(PORTS.to_vec()).prop_map(Service::Tcp),
        3 => select(PORTS.to_vec()).prop_map(Service::Udp),
        1 => Just(Service::Icmp),
        1 => select(vec![0_u8, 4, 46, 47, 48]).prop_map(Service::Protocol),
    ];
    let address = || select(edge_addresses());
    (identity, address(), address(), service, instants()).prop_map(
        |(identity, source, destination, service, now)| Question {
            identity,
            source,
            destination,
            service,
            now,
        },
    )
}

fn compile(policy: &Value) -> Ruleset {
    let identity = Identity {
        device: "any".into(),
        user: "any".into(),
        groups: [].into(),
        posture: BTreeMap::new(),
    };
    let device = KnownDevice {
        identity: &identity,
        disabled: false,
        source: None,
    };
    let context = Context {
        users: USERS
            .map(|name| {
                (
                    name,
                    KnownUser {
                        groups: &[],
                        disabled: false,
                    },
                )
            })
            .into(),
        devices: DEVICES.map(|name| (name, device)).into(),
        groups: BTreeSet::from(GROUPS),
        offramps: BTreeSet::from(["direct"]),
    };
    Ruleset::compile(
        policy.to_string().as_bytes(),
        &context,
        Revision(1),
        Timestamp::UNIX_EPOCH,
    )
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn evaluate_is_the_naive_reading(policy in policies(), questions in prop::collection::vec(questions(), 20)) {
        let ruleset = compile(&policy);
        for question in questions {
            let request = question.request();
            let answer = Answer::from(ruleset.evaluate(&request, question.now));
            prop_assert_eq!(&answer, &reference(&policy, &request, question.now), "{:?}", question);
            let explanation = ruleset.explain(&request, question.now);
            prop_assert_eq!(explanation.rule.as_deref(), answer.rule.as_deref());
            let decided = explanation.steps.iter().filter(|step| step.outcome == portcullis_policy::Outcome::Decided);
            prop_assert_eq!(decided.map(|step| &*step.rule).collect::<Vec<_>>(), answer.rule.as_deref().into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_verdict_holds_until_it_says(
        policy in policies(),
        question in questions(),
        later in prop::collection::vec(instants(), 8),
        parts in prop::collection::vec(0.0..1.0_f64, 12),
    ) {
        let ruleset = compile(&policy);
        let request = question.request();
        let verdict = ruleset.evaluate(&request, question.now);
        let until = verdict.until();
        let answer = Answer::from(verdict);
        let mut moments: Vec<Timestamp> = later.into_iter().filter(|at| *at >= question.now).collect();
        if let Some(until) = until {
            prop_assert!(until > question.now);
            let length = until.duration_since(question.now);
            moments.extend(parts.iter().map(|part| question.now + length.mul_f64(*part)));
            moments.push(until - SignedDuration::from_nanos(1));
            moments.retain(|at| *at < until);
        }
        for at in moments {
            prop_assert_eq!(&answer, &reference(&policy, &request, at), "at {} until {:?}", at, until);
            prop_assert_eq!(ruleset.evaluate(&request, at).until(), until, "at {}", at);
        }
    }

    #[test]
    fn one_rule_changes_its_answer_exactly_then(when in when(), now in instants()) {
        let policy = json!({ "version": 1, "postures": { "managed": { "disk": true }, "unix": { "disk": true } },
            "rules": [{ "id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": when }] });
        let ruleset = compile(&policy);
        let identity = Identity {
            device: "laptop".into(),
            user: "ann".into(),
            groups: [].into(),
            posture: BTreeMap::from([("disk".to_owned(), json!(true))]),
        };
        let address = "10.0.0.1".parse().unwrap();
        let request = Request { identity: &identity, source: address, destination: address, service: Service::Icmp };
        let bound = |key: &str| policy["rules"][0]["when"][key].as_str().map(|text| text.parse::<Timestamp>().unwrap());
        let verdict = ruleset.evaluate(&request, now);
        if let Some(until) = verdict.until() {
            let changes = verdict.is_allowed() != ruleset.evaluate(&request, until).is_allowed();
            let bounded = bound("not_before") == Some(until) || bound("not_after") == Some(until);
            prop_assert!(changes || bounded, "{:?} at {} until {}", verdict, now, until);
        }
    }
}
