//! Warnings about whole policies, and against brute force: whatever is warned about never happens.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a wrong assumption shall fail the test")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use portcullis_policy::{Context, Facts, Identity, KnownDevice, KnownUser, Request, Revision, Ruleset, Service};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

/// Users with their groups of the directory, and devices with their users.
const USERS: [(&str, &[&str]); 3] = [("ann", &["dba", "eng"]), ("bob", &["eng"]), ("eve", &[])];
const DEVICES: [(&str, &str); 3] = [("laptop", "ann"), ("phone", "bob"), ("branch", "eve")];
const NOW: &str = "2027-01-13T11:00:00Z";

fn own(user: &str) -> Arc<[Arc<str>]> {
    let groups = USERS.iter().find(|(name, _)| *name == user).map(|(_, groups)| *groups).unwrap_or_default();
    groups.iter().map(|group| Arc::from(*group)).collect()
}

fn compile(text: &str) -> Ruleset {
    let groups = USERS.map(|(name, _)| (name, own(name)));
    let identities = DEVICES.map(|(device, user)| Identity {
        device: device.into(),
        user: user.into(),
        groups: own(user),
        network: "default".into(),
        posture: Facts::default(),
    });
    let known = |identity| KnownDevice { identity, disabled: false, source: None };
    let context = Context {
        users: groups
            .iter()
            .map(|(name, groups)| (*name, KnownUser { groups, network: "default", disabled: false }))
            .collect(),
        devices: identities.iter().map(|identity| (&*identity.device, known(identity))).collect(),
        groups: BTreeSet::from(["dba", "eng"]),
        networks: BTreeSet::from(["default", "lab"]),
        offramps: BTreeSet::from(["direct"]),
    };
    Ruleset::compile(text.as_bytes(), &context, Revision(1), NOW.parse().unwrap())
        .unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
}

fn warnings(text: &str) -> Vec<String> {
    compile(text).warnings().iter().map(ToString::to_string).collect()
}

/// What is said of rules with these members beside id and action; `a` is the first of them.
fn of_rules(rules: &[&str]) -> Vec<String> {
    let rule = |(number, members): (usize, &&str)| {
        let id = char::from(b'a' + u8::try_from(number).unwrap());
        format!("{{ \"id\": \"{id}\", \"action\": \"allow\", {members} }}")
    };
    let rules: Vec<String> = rules.iter().enumerate().map(rule).collect();
    warnings(&format!(
        "{{ \"version\": 1, \"groups\": {{ \"all\": [\"group:eng\", \"user:eve\"] }},\n{}\n\"rules\": [\n{}\n] }}",
        r#""resources": { "db": { "addresses": ["10.0.5.12"], "services": ["tcp/5432", "tcp/80"] } }, "postures": { "p": { "disk": true } },"#,
        rules.join(",\n")
    ))
}

#[test]
fn rules_that_earlier_ones_cover_are_named() {
    let any = r#""from": ["*"], "to": ["*"]"#;
    let covered = |rules: &[&str], by: &str| {
        let (last, place) = (char::from(b'a' + u8::try_from(rules.len() - 1).unwrap()), rules.len() - 1);
        let expected =
            format!("{}:1: rules[{place}]: rule \"{last}\" never decides: {by} first everything it could", place + 4);
        let all = of_rules(rules);
        assert!(all.contains(&expected), "{rules:?}: {all:?}");
    };
    covered(&[any, any], "\"a\" matches");
    covered(
        &[any, r#""from": ["group:dba", "net:10.0.0.0/8"], "to": ["db"], "services": ["tcp/80"]"#],
        "\"a\" matches",
    );
    covered(&[any, r#""from": ["user:ann"], "to": ["*"], "when": { "posture": ["p"] }"#], "\"a\" matches");
    // By what the directory and the policy know of users, devices and groups.
    covered(
        &[r#""from": ["group:eng"], "to": ["*"]"#, r#""from": ["user:bob", "device:laptop"], "to": ["*"]"#],
        "\"a\" matches",
    );
    covered(&[r#""from": ["group:all"], "to": ["*"]"#, r#""from": ["group:eng"], "to": ["db"]"#], "\"a\" matches");
    covered(&[r#""from": ["user:bob"], "to": ["*"]"#, r#""from": ["device:phone"], "to": ["db"]"#], "\"a\" matches");
    covered(
        &[r#""from": ["net:10.0.0.0/8"], "to": ["*"]"#, r#""from": ["net:10.1.0.0/16"], "to": ["db"]"#],
        "\"a\" matches",
    );
    // Together: halves of a network, halves of the ports, and one rule for each source.
    let half = |net: &str| format!("\"from\": [\"*\"], \"to\": [\"{net}\"]");
    covered(&[&half("10.0.0.0/9"), &half("10.128.0.0/9"), &half("10.0.0.0/8")], "\"a\" and \"b\" match");
    let ports = |ports: &str| format!("\"from\": [\"*\"], \"to\": [\"10.0.0.0/8\"], \"services\": [\"tcp/{ports}\"]");
    covered(&[&ports("1-99"), &ports("100-200"), &ports("90-110")], "\"a\" and \"b\" match");
    covered(
        &[
            r#""from": ["user:ann"], "to": ["*"]"#,
            r#""from": ["user:bob"], "to": ["*"]"#,
            r#""from": ["user:ann", "user:bob"], "to": ["db"]"#,
        ],
        "\"a\" and \"b\" match",
    );
    // Under the same condition, or within it.
    let when = |when: &str| format!("{any}, \"when\": {{ {when} }}");
    covered(&[&when(r#""posture": ["p"]"#), &when(r#""posture": ["p"], "days": "mon""#)], "\"a\" matches");
    covered(
        &[&when(r#""days": "mon-fri", "hours": "08:00-18:00""#), &when(r#""days": "tue", "hours": "08:00-18:00""#)],
        "\"a\" matches",
    );
    covered(
        &[&when(r#""not_after": "2030-01-01T00:00:00Z""#), &when(r#""not_after": "2029-01-01T00:00:00Z""#)],
        "\"a\" matches",
    );
    // Its own exception is what an earlier rule leaves.
    covered(
        &[
            r#""from": ["*"], "not_from": ["user:bob"], "to": ["*"], "not_to": ["10.1.0.0/16"]"#,
            r#""from": ["*"], "not_from": ["user:bob"], "to": ["*"], "not_to": ["10.0.0.0/8"]"#,
        ],
        "\"a\" matches",
    );
}

#[test]
fn rules_that_something_is_left_for_are_not() {
    let any = r#""from": ["*"], "to": ["*"]"#;
    for earlier in [
        r#""from": ["*"], "to": ["*"], "mode": "audit""#,
        r#""from": ["*"], "to": ["*"], "not_from": ["device:phone"]"#,
        r#""from": ["*"], "to": ["*"], "not_to": ["db"]"#,
        r#""from": ["*"], "to": ["0.0.0.0/0"]"#,
        r#""from": ["*"], "to": ["*"], "services": ["tcp/*", "udp/*", "icmp"]"#,
        r#""from": ["*"], "to": ["*"], "when": { "days": "mon" }"#,
        r#""from": ["*"], "to": ["*"], "when": { "posture": ["p"] }"#,
        r#""from": ["*"], "to": ["*"], "when": { "not_before": "2020-01-01T00:00:00Z" }"#,
        r#""from": ["group:all", "net:0.0.0.0/0", "net:::/0"], "to": ["*"]"#,
        r#""from": ["*"], "to": ["db"]"#,
    ] {
        assert_eq!(of_rules(&[earlier, any]), [""; 0], "{earlier}");
    }
    let night = r#""from": ["*"], "to": ["*"], "when": { "hours": "22:00-06:00" }"#;
    let other_zone = r#""from": ["*"], "to": ["*"], "when": { "hours": "22:00-06:00", "zone": "Europe/Berlin" }"#;
    assert_eq!(of_rules(&[night, other_zone]), [""; 0]);
    assert_eq!(of_rules(&[r#""from": ["group:dba"], "to": ["*"]"#, r#""from": ["group:eng"], "to": ["db"]"#]), [""; 0]);
}

#[test]
fn rules_that_exclude_themselves_are_named() {
    let said = of_rules(&[
        r#""from": ["*"], "to": ["*"]"#,
        r#""from": ["user:ann"], "to": ["10.0.0.0/9"], "not_to": ["10.0.0.0/8"]"#,
    ]);
    assert_eq!(
        said,
        [r#"5:1: rules[1]: rule "b" never decides: nothing is left of its "to" by its services and "not_to""#]
    );
    let said = of_rules(&[r#""from": ["*"], "to": ["db"], "services": ["udp/80"], "mode": "audit""#]);
    assert!(said.iter().any(|line| line.contains(r#"rule "a" never reports: nothing is left"#)), "{said:?}");
    let said = of_rules(&[r#""from": ["user:ann"], "not_from": ["user:ann"], "to": ["db"]"#]);
    assert!(said.iter().any(|line| line.contains(r#"excludes everything in its "from""#)), "{said:?}");
}

#[test]
fn resources_and_tests_that_nobody_thought_of() {
    let policy = |rules: &str| {
        warnings(&format!(
            "{{ \"version\": 1, \"resources\": {{ \"db\": {{ \"addresses\": [\"10.0.5.12\"], \"services\": [\"tcp/5432\"] }} }},\n\"rules\": [{rules}] }}"
        ))
    };
    let rule = |action: &str, members: &str| {
        format!("{{ \"id\": \"{action}\", \"action\": \"{action}\", \"from\": [\"*\"], {members} }}")
    };
    let unused = [r#"1:32: resources.db: resource "db": no rule uses it, and no allow rule lets anybody reach it"#];
    let unreached = [r#"1:32: resources.db: resource "db": no allow rule lets anybody reach it"#];
    assert_eq!(policy(""), unused);
    assert_eq!(policy(&rule("deny", r#""to": ["*"]"#)), unused);
    assert_eq!(policy(&rule("deny", r#""to": ["db"]"#)), unreached);
    assert_eq!(policy(&rule("allow", r#""to": ["db"], "mode": "audit""#)), unreached);
    assert_eq!(policy(&rule("allow", r#""to": ["10.0.5.0/24"], "services": ["tcp/80"]"#)), unused);
    assert_eq!(policy(&format!("{}, {}", rule("deny", r#""to": ["*"]"#), rule("allow", r#""to": ["db"]"#))).len(), 2);
    for reached in [r#""to": ["db"]"#, r#""to": ["*"]"#, r#""to": ["10.0.5.0/24"], "services": ["tcp/5000-6000"]"#] {
        assert_eq!(policy(&rule("allow", reached)), [""; 0], "{reached}");
    }
    let test = |members: &str| {
        let test = format!("{{ \"from\": \"ann\", \"to\": \"10.0.0.1:22/tcp\", \"expect\": \"deny\"{members} }}");
        warnings(&format!(
            "{{ \"version\": 1, \"rules\": [{}],\n\"tests\": [{test}] }}",
            rule("deny", r#""to": ["10.0.0.1"], "when": { "posture": ["p"] }"#)
                .replace(r#", "when": { "posture": ["p"] }"#, "")
        ))
    };
    assert_eq!(test(""), [""; 0]);
    let elsewhere = warnings(
        "{ \"version\": 1, \"rules\": [],\n\"tests\": [{ \"from\": \"ann\", \"to\": \"10.0.0.1:22/tcp\", \"expect\": \"deny\" }] }",
    );
    assert_eq!(elsewhere, ["2:11: tests[0]: no rule decides this test, it is denied because none matches"]);
}

#[test]
fn ten_thousand_rules_are_looked_at_within_the_bound() {
    // Neighbours cover each other in pairs; far more is covered than is listed.
    let rules: Vec<Value> = (0..10_000_u32)
        .map(|n| {
            let net = format!("10.{}.{}.0/24", n / 2 / 256, n / 2 % 256);
            json!({ "id": format!("r{n}"), "action": "allow", "from": ["*"], "to": [net], "services": ["tcp/443", "udp/1-1024"] })
        })
        .collect();
    let said = warnings(&json!({ "version": 1, "rules": rules }).to_string());
    assert_eq!(said.len(), 101);
    assert!(said[0].ends_with(r#"rule "r1" never decides: "r0" matches first everything it could"#), "{}", said[0]);
    assert!(said[100].ends_with("4900 more warnings are not listed"), "{}", said[100]);
}

const NETS: [&str; 7] =
    ["10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "0.0.0.0/0", "fd00::/8", "10.1.2.3/32"];
const ADDRESSES: [&str; 9] = [
    "10.0.0.0",
    "10.1.2.3",
    "10.127.255.255",
    "10.128.0.0",
    "10.255.255.255",
    "11.0.0.0",
    "fd00::1",
    "fe00::",
    "0.0.0.0",
];
const SERVICES: [&str; 7] = ["tcp/1-99", "tcp/100-200", "tcp/50-150", "tcp/*", "icmp", "proto/47", "*"];
const ASKED: [Service; 8] = [
    Service::Tcp(0),
    Service::Tcp(50),
    Service::Tcp(99),
    Service::Tcp(100),
    Service::Tcp(201),
    Service::Udp(53),
    Service::Icmp,
    Service::Protocol(47),
];

fn rule() -> impl Strategy<Value = Value> {
    let sources = vec![
        "*",
        "user:ann",
        "user:bob",
        "group:eng",
        "group:dba",
        "group:all",
        "device:laptop",
        "device:phone",
        "net:10.0.0.0/8",
        "net:10.1.0.0/16",
    ];
    let targets = vec!["*", "db", "10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "0.0.0.0/0", "fd00::/8"];
    let not = |list: &[&'static str]| list.iter().copied().filter(|entry| *entry != "*").collect::<Vec<_>>();
    let when =
        vec![json!({ "posture": ["p"] }), json!({ "days": "mon" }), json!({ "not_after": "2027-06-01T00:00:00Z" })];
    (
        subsequence(sources.clone(), 1..4),
        prop::option::weighted(0.15, subsequence(not(&sources), 1..2)),
        subsequence(targets.clone(), 1..3),
        prop::option::weighted(0.15, subsequence(not(&targets), 1..2)),
        prop::option::weighted(0.4, subsequence(SERVICES.to_vec(), 1..4)),
        prop::option::weighted(0.15, select(when)),
        select(vec![("allow", false), ("deny", false), ("deny", false), ("allow", true)]),
    )
        .prop_map(|(from, not_from, to, not_to, services, when, (action, audit))| {
            let mut rule = json!({ "action": action, "from": from, "to": to });
            let mut set = |key: &str, value: Option<Value>| {
                if let Some(value) = value {
                    rule[key] = value;
                }
            };
            set("not_from", not_from.map(Value::from));
            set("not_to", not_to.map(Value::from));
            set("services", services.map(Value::from));
            set("when", when);
            set("mode", audit.then(|| "audit".into()));
            rule
        })
}

/// What every user on every device asks, from everywhere and at every time, each with every posture.
fn all_requests(ruleset: &Ruleset, mut ask: impl FnMut(&Request<'_>, Timestamp)) {
    let addresses: Vec<IpAddr> = ADDRESSES.iter().map(|address| address.parse().unwrap()).collect();
    let times: [Timestamp; 2] = ["2027-01-13T11:00:00Z", "2027-07-05T11:00:00Z"].map(|at| at.parse().unwrap());
    for (device, user) in DEVICES {
        for disk in [true, false] {
            let posture = [("disk".to_owned(), json!(disk))].into_iter().collect();
            let groups = ruleset.groups_of(user, &own(user));
            let identity =
                Identity { device: device.into(), user: user.into(), groups, network: "default".into(), posture };
            for source in [addresses[1], addresses[3], addresses[6]] {
                for destination in &addresses {
                    for service in ASKED {
                        let request = Request { identity: &identity, source, destination: *destination, service };
                        times.iter().for_each(|at| ask(&request, *at));
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_warned_about_never_happens(mut rules in prop::collection::vec(rule(), 2..8), offered in subsequence(SERVICES.to_vec(), 1..3), net in select(NETS.to_vec())) {
        for (index, rule) in rules.iter_mut().enumerate() {
            rule["id"] = format!("r{index}").into();
        }
        let policy = json!({ "version": 1, "groups": { "all": ["group:eng", "user:eve"] }, "postures": { "p": { "disk": true } },
            "resources": { "db": { "addresses": [net], "services": offered } }, "rules": rules });
        let ruleset = compile(&policy.to_string());
        let about = |path: String| ruleset.warnings().iter().any(|warning| warning.place.path == path);
        let never: Vec<bool> = (0..rules.len()).map(|index| about(format!("rules[{index}]"))).collect();
        let unreached = about("resources.db".to_owned());
        let db = json!({ "version": 1, "rules": [{ "id": "r", "action": "allow", "from": ["*"], "to": ["db"] }],
            "resources": policy["resources"] });
        let is_db = compile(&db.to_string());
        let mut wrong = None;
        all_requests(&ruleset, |request, at| {
            let verdict = ruleset.evaluate(request, at);
            let mut said = verdict.audited().iter().chain(verdict.rule());
            let needless = said.any(|id| id.strip_prefix('r').and_then(|n| n.parse().ok()).is_some_and(|n: usize| never[n]));
            let reached = unreached && verdict.is_allowed() && is_db.evaluate(request, at).is_allowed();
            if needless || reached {
                wrong = Some(format!("{request:?} {verdict:?}"));
            }
        });
        prop_assert!(wrong.is_none(), "{} {:?} {}", policy, ruleset.warnings(), wrong.unwrap());
    }
}
