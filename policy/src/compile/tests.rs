//! Whole policies: what the specification shows, tests in the file, and explanations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{Identity, Request, Service, Verdict};

struct Directory {
    groups: BTreeMap<&'static str, Vec<Arc<str>>>,
    laptop: Identity,
    phone: Identity,
}

fn identity(device: &str, user: &str, groups: &[&str], posture: Value) -> Identity {
    Identity {
        device: device.into(),
        user: user.into(),
        groups: groups.iter().map(|group| Arc::from(*group)).collect(),
        network: "default".into(),
        posture: posture.as_object().unwrap().clone().into_iter().collect(),
    }
}

impl Directory {
    fn new() -> Self {
        let managed = json!({ "disk_encrypted": true, "os": "macos", "os_version": "15.1" });
        let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
        Self {
            groups: BTreeMap::from([("ann@example.com", names(&["dba", "eng"])), ("bob@example.com", names(&["eng"]))]),
            laptop: identity("ann-laptop", "ann@example.com", &["dba", "eng"], managed),
            phone: identity("bob-phone", "bob@example.com", &["eng"], json!({})),
        }
    }

    fn context(&self) -> Context<'_> {
        let user = |(name, groups)| (name, KnownUser { groups, network: "default", disabled: false });
        let device = |identity, source: &str| KnownDevice { identity, disabled: false, source: source.parse().ok() };
        Context {
            users: self.groups.iter().map(|(name, groups)| user((*name, groups.as_slice()))).collect(),
            devices: BTreeMap::from([
                ("ann-laptop", device(&self.laptop, "100.96.0.2")),
                ("bob-phone", device(&self.phone, "100.96.0.3")),
            ]),
            groups: BTreeSet::from(["dba", "eng"]),
            networks: BTreeSet::from(["default", "lab"]),
            offramps: BTreeSet::from(["direct", "office"]),
        }
    }
}

/// A Wednesday noon in Berlin.
const NOW: &str = "2027-01-13T11:00:00Z";

fn compiled(policy: &Value) -> Result<Ruleset, Vec<String>> {
    let directory = Directory::new();
    Ruleset::compile(policy.to_string().as_bytes(), &directory.context(), Revision(7), NOW.parse().unwrap())
        .map_err(|problems| problems.iter().map(|problem| problem.message.clone()).collect())
}

fn request<'a>(identity: &'a Identity, destination: &str, service: Service) -> Request<'a> {
    Request { identity, source: "100.96.0.2".parse().unwrap(), destination: destination.parse().unwrap(), service }
}

/// The example of the specification, with more tests.
fn specified() -> Value {
    json!({
        "version": 1,
        "resources": {
            "prod-db": { "addresses": ["10.0.5.12/32"], "services": ["tcp/5432"] },
            "intranet": { "addresses": ["10.0.8.0/24"], "services": ["tcp/80", "tcp/443"] }
        },
        "postures": { "managed": { "disk_encrypted": true, "os_version": ">=14" } },
        "rules": [
            { "id": "dba-to-prod", "action": "allow", "from": ["group:dba"], "to": ["prod-db"],
              "when": { "posture": ["managed"], "days": "mon-fri", "hours": "08:00-18:00", "zone": "Europe/Berlin" } },
            { "id": "no-ssh", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"] },
            { "id": "eng", "action": "allow", "from": ["group:eng"], "not_from": ["user:bob@example.com"],
              "to": ["intranet", "10.0.9.0/24"], "services": ["tcp/8000-8100", "icmp", "tcp/443"] }
        ],
        "tests": [
            { "from": "ann@example.com", "to": "10.0.5.12:22/tcp", "expect": "deny", "rule": "no-ssh" },
            { "from": "ann@example.com", "to": "10.0.5.12:5432/tcp", "expect": "deny", "at": "2027-01-13T11:00:00Z" },
            { "from": "ann@example.com", "to": "10.0.5.12:5432/tcp", "expect": "allow", "at": "2027-01-13T11:00:00Z",
              "posture": { "disk_encrypted": true, "os_version": "14" } },
            { "from": "device:ann-laptop", "to": "10.0.5.12:5432/tcp", "expect": "allow", "rule": "dba-to-prod",
              "at": "2027-01-13T07:00:00Z" },
            { "from": "device:ann-laptop", "to": "10.0.5.12:5432/tcp", "expect": "deny", "at": "2027-01-13T06:59:59Z" },
            { "from": "device:ann-laptop", "to": "10.0.5.12:5432/tcp", "expect": "deny", "at": "2027-01-16T11:00:00Z" },
            { "from": "ann@example.com", "to": "10.0.8.1:443/tcp", "expect": "allow", "rule": "eng" },
            { "from": "ann@example.com", "to": "10.0.8.1:80/tcp", "expect": "deny", "description": "not a service of the rule" },
            { "from": "ann@example.com", "to": "10.0.8.1:8000/tcp", "expect": "deny", "description": "not of the resource" },
            { "from": "ann@example.com", "to": "10.0.9.1:8000/tcp", "expect": "allow" },
            { "from": "ann@example.com", "to": "10.0.9.1/icmp", "expect": "allow" },
            { "from": "bob@example.com", "to": "10.0.9.1/icmp", "expect": "deny" }
        ]
    })
}

#[test]
fn the_example_of_the_specification() {
    let ruleset = compiled(&specified()).unwrap();
    let ids: Vec<&str> = ruleset.rules().map(|rule| &**rule.id).collect();
    assert_eq!(ids, ["dba-to-prod", "no-ssh", "eng"]);
    assert_eq!((ruleset.len(), ruleset.revision()), (3, Revision(7)));
}

#[test]
fn a_test_without_a_time_runs_at_the_time_of_compiling() {
    let mut policy = specified();
    policy["tests"] = json!([{ "from": "device:ann-laptop", "to": "10.0.5.12:5432/tcp", "expect": "deny" }]);
    let messages = compiled(&policy).unwrap_err();
    assert_eq!(messages, ["test failed: expected deny, but rule \"dba-to-prod\" decides: allow"]);
}

#[test]
fn tests_ask_from_an_address() {
    let policy = |test: Value| {
        json!({ "version": 1,
            "rules": [{ "id": "lan", "action": "allow", "from": ["net:100.96.0.2/32"], "to": ["*"] }], "tests": [test] })
    };
    for (test, good) in [
        (json!({ "from": "device:ann-laptop", "to": "10.0.0.1:1/tcp", "expect": "allow" }), true),
        (json!({ "from": "device:bob-phone", "to": "10.0.0.1:1/tcp", "expect": "deny" }), true),
        (
            json!({ "from": "device:bob-phone", "source": "100.96.0.2", "to": "10.0.0.1:1/tcp", "expect": "allow" }),
            true,
        ),
        (json!({ "from": "ann@example.com", "to": "10.0.0.1:1/tcp", "expect": "allow" }), false),
    ] {
        assert_eq!(compiled(&policy(test.clone())).is_ok(), good, "{test}");
    }
}

#[test]
fn one_mistake_is_not_reported_where_it_is_used() {
    let messages = compiled(&json!({ "version": 1,
        "resources": { "db": { "addresses": ["10.0.0.1/8"] } },
        "postures": { "p": {} },
        "rules": [{ "id": "r", "action": "allow", "from": ["*"], "to": ["db"], "when": { "posture": ["p"] } }] }))
    .unwrap_err();
    assert_eq!(messages.len(), 2, "{messages:?}");
}

#[test]
fn an_empty_policy_denies() {
    let ruleset = compiled(&json!({ "version": 1, "rules": [] })).unwrap();
    assert!(ruleset.is_empty());
    let directory = Directory::new();
    let verdict = ruleset.evaluate(&request(&directory.laptop, "10.0.0.1", Service::Tcp(1)), NOW.parse().unwrap());
    assert!(
        !verdict.is_allowed() && verdict.rule().is_none() && verdict.until().is_none() && verdict.audited().is_empty()
    );
}

#[test]
fn audit_reports_and_decides_nothing() {
    let ruleset = compiled(&json!({ "version": 1, "rules": [
        { "id": "a", "action": "deny", "mode": "audit", "from": ["*"], "to": ["*"], "when": { "not_after": "2027-02-01T00:00:00Z" } },
        { "id": "b", "action": "allow", "from": ["*"], "to": ["10.0.0.0/8"], "offramp": "office" },
        { "id": "c", "action": "deny", "mode": "audit", "from": ["*"], "to": ["*"] },
        { "id": "d", "action": "deny", "silent": true, "from": ["*"], "to": ["192.0.2.0/24"] }
    ] }))
    .unwrap();
    let directory = Directory::new();
    let ask = |to| ruleset.evaluate(&request(&directory.laptop, to, Service::Icmp), NOW.parse().unwrap());
    let Verdict::Allow(permit) = ask("10.0.0.1") else { panic!("denied") };
    assert_eq!((&**permit.rule(), permit.offramp().map(|name| &**name)), ("b", Some("office")));
    assert_eq!(permit.audited().iter().map(|id| &**id).collect::<Vec<_>>(), ["a"]);
    assert_eq!(permit.until(), Some("2027-02-01T00:00:00Z".parse().unwrap()), "the report changes then");
    let Verdict::Deny(denial) = ask("192.0.2.1") else { panic!("allowed") };
    assert!(denial.silent() && denial.rule().is_some_and(|rule| &**rule == "d"));
    assert_eq!(denial.audited().len(), 2);
    assert_eq!(denial.until(), permit.until());
}

#[test]
fn a_rule_that_misses_by_the_clock_bounds_the_answer() {
    let ruleset = compiled(&specified()).unwrap();
    let directory = Directory::new();
    let asked = request(&directory.laptop, "10.0.5.12", Service::Tcp(5432));
    let at = |text: &str| ruleset.evaluate(&asked, text.parse().unwrap());
    let until = |text: &str| at(text).until().map(|until| until.to_string());
    assert!(at(NOW).is_allowed());
    assert_eq!(until(NOW).as_deref(), Some("2027-01-13T17:00:00Z"));
    assert!(!at("2027-01-16T11:00:00Z").is_allowed());
    assert_eq!(until("2027-01-16T11:00:00Z").as_deref(), Some("2027-01-18T07:00:00Z"));
    let other = request(&directory.phone, "10.0.5.12", Service::Tcp(5432));
    assert_eq!(ruleset.evaluate(&other, NOW.parse().unwrap()).until(), None, "the clock does not matter to bob");
}

#[test]
fn explanations_say_what_each_rule_would_have_needed() {
    let ruleset = compiled(&specified()).unwrap();
    let directory = Directory::new();
    let explain = |identity: &Identity, to: &str, service, at: &str| {
        ruleset.explain(&request(identity, to, service), at.parse().unwrap())
    };
    let text = explain(&directory.laptop, "10.0.5.12", Service::Tcp(5432), "2027-01-16T11:00:00Z").to_string();
    assert_eq!(
        text,
        "deny: ann-laptop to 10.0.5.12 tcp/5432, because no rule matches (revision 7, at 2027-01-16T11:00:00Z)\n  \
         the clock may change that at 2027-01-18T07:00:00Z\n  \
         dba-to-prod (allow): does not match by time: has sat 12:00 Europe/Berlin; needs mon,tue,wed,thu,fri 08:00-18:00 Europe/Berlin\n  \
         no-ssh (deny): does not match by services: has tcp/5432; needs tcp/22\n  \
         eng (allow): does not match by to: has 10.0.5.12; needs intranet, 10.0.9.0/24"
    );
    let text = explain(&directory.phone, "10.0.8.1", Service::Tcp(22), NOW).to_string();
    assert_eq!(
        text,
        "deny: bob-phone to 10.0.8.1 tcp/22 by rule no-ssh (revision 7, at 2027-01-13T11:00:00Z)\n  \
         dba-to-prod (allow): does not match by from: has user bob@example.com of eng on device bob-phone from 100.96.0.2; \
         needs group:dba\n  \
         no-ssh (deny): matches and decides"
    );
    let miss = |identity: &Identity, to: &str, service, rule: usize| {
        let explanation = explain(identity, to, service, NOW);
        serde_json::to_value(&explanation.steps[rule]).unwrap()
    };
    assert_eq!(
        miss(&directory.laptop, "10.0.8.1", Service::Tcp(8000), 2),
        json!({ "rule": "eng", "action": "allow", "outcome": "missed", "selector": "services",
                "found": "tcp/8000", "needed": "tcp/80, tcp/443 of intranet" })
    );
    assert_eq!(miss(&directory.laptop, "10.0.8.1", Service::Tcp(80), 2)["needed"], "tcp/8000-8100, icmp, tcp/443");
    assert_eq!(miss(&directory.phone, "10.0.9.1", Service::Icmp, 2)["found"], "user:bob@example.com");
    let mut old = directory.laptop.clone();
    old.posture.insert("os_version".to_owned(), json!("13.9"));
    let posture = miss(&old, "10.0.5.12", Service::Tcp(5432), 0);
    assert_eq!(
        (&posture["found"], &posture["needed"]),
        (&json!("os_version is \"13.9\""), &json!("os_version >=14 (posture managed)"))
    );
    old.posture = json!({ "os_version": "15" }).as_object().unwrap().clone().into_iter().collect();
    assert_eq!(miss(&old, "10.0.5.12", Service::Tcp(5432), 0)["found"], "disk_encrypted is missing");
    let whole = serde_json::to_value(explain(&directory.laptop, "10.0.9.1", Service::Icmp, NOW)).unwrap();
    assert_eq!(
        (&whole["verdict"], &whole["rule"], &whole["steps"][2]["outcome"]),
        (&json!("allow"), &json!("eng"), &json!("decided"))
    );
}

#[test]
fn an_exception_takes_a_resource_with_its_services() {
    let ruleset = compiled(&json!({ "version": 1,
        "resources": { "db": { "addresses": ["10.0.0.1"], "services": ["tcp/5432"] } },
        "rules": [{ "id": "r", "action": "allow", "from": ["*"], "to": ["10.0.0.0/8"], "not_to": ["db", "10.0.0.2"] }] }))
    .unwrap();
    let directory = Directory::new();
    for (to, service, allowed, excluding) in [
        ("10.0.0.1", Service::Tcp(5432), false, "anything but db"),
        ("10.0.0.1", Service::Tcp(80), true, ""),
        ("10.0.0.2", Service::Tcp(80), false, "anything but 10.0.0.2/32"),
    ] {
        let explanation = ruleset.explain(&request(&directory.laptop, to, service), NOW.parse().unwrap());
        assert_eq!(explanation.rule.is_some(), allowed, "{to} {service}");
        assert!(explanation.to_string().contains(excluding), "{explanation}");
    }
}
