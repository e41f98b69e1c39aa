//! What a plan says against asking both policies, for every request of a small universe.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use portcullis_policy::plan::{Kind, Subject};
use portcullis_policy::{Identity, Request, Ruleset, Service, Verdict};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::compile;
use crate::generate::{PORTS, edge_addresses, few_nets, instants, policies};

fn identities() -> Vec<(Identity, Vec<IpNet>)> {
    let one = |device: &str, user: &str, groups: &[&str], posture: Value, sources: &[&str]| {
        let facts = posture.as_object().unwrap().clone();
        let identity = Identity {
            device: device.into(),
            user: user.into(),
            groups: groups.iter().map(|group| (*group).into()).collect(),
            network: "default".into(),
            posture: facts.into_iter().collect(),
        };
        (identity, sources.iter().map(|net| net.parse().unwrap()).collect())
    };
    vec![
        one(
            "laptop",
            "ann",
            &["dba", "eng"],
            json!({ "disk": true, "version": "15", "os": "linux" }),
            &["10.1.2.3/32"],
        ),
        one("phone", "bob", &["eng"], json!({ "disk": true, "version": "14.1" }), &["192.0.2.1/32", "fd00:1::5/128"]),
        one("branch", "eve", &[], json!({}), &["10.0.0.0/8", "fd00::/7"]),
    ]
}

/// The same devices as a policy sees them, in the groups that it adds too.
fn seen_by(rules: &Ruleset, identities: &[(Identity, Vec<IpNet>)]) -> Vec<Identity> {
    let seen = |identity: &Identity| {
        let Identity { user, groups, .. } = identity;
        Identity { groups: rules.groups_of(user, groups), ..identity.clone() }
    };
    identities.iter().map(|(identity, _)| seen(identity)).collect()
}

fn subjects<'a>(
    now: &'a [Identity],
    then: &'a [Identity],
    identities: &'a [(Identity, Vec<IpNet>)],
) -> Vec<Subject<'a>> {
    let sides = now.iter().zip(then);
    sides.zip(identities).map(|((now, then), (_, sources))| Subject { now, then, sources }).collect()
}

fn effect(verdict: &Verdict) -> (bool, Option<String>) {
    match verdict {
        Verdict::Allow(permit) => (true, permit.offramp().map(ToString::to_string)),
        Verdict::Deny(denial) => (false, denial.silent().then(|| "silent".to_owned())),
    }
}

fn check(now: &Ruleset, then: &Ruleset, at: Timestamp, later: &[Timestamp]) -> Result<(), TestCaseError> {
    let identities = identities();
    let [as_now, as_then] = [now, then].map(|rules| seen_by(rules, &identities));
    let subjects = subjects(&as_now, &as_then, &identities);
    let plan = now.difference(then, &subjects, at);
    prop_assert!(plan.complete);
    let addresses = edge_addresses(&few_nets());
    let ports = PORTS.iter().flat_map(|port| [Service::Tcp(*port), Service::Udp(*port)]);
    let services: Vec<Service> =
        ports.chain([Service::Icmp, Service::Protocol(0), Service::Protocol(46), Service::Protocol(47)]).collect();
    for Subject { now: identity, then: identity_then, sources } in subjects {
        for source in addresses.iter().filter(|address| sources.iter().any(|net| net.contains(*address))) {
            let here: Vec<_> = plan
                .changes
                .iter()
                .filter(|change| {
                    change.who.iter().any(|who| {
                        *who.device == *identity.device && who.sources.iter().any(|net| net.contains(source))
                    })
                })
                .collect();
            for destination in addresses.iter().filter(|to: &&IpAddr| to.is_ipv4() == source.is_ipv4()) {
                for service in &services {
                    let request = Request { identity, source: *source, destination: *destination, service: *service };
                    let request_then = Request { identity: identity_then, ..request };
                    let saying: Vec<_> = here
                        .iter()
                        .filter(|change| change.destinations.iter().any(|net| net.contains(destination)))
                        .filter(|change| change.services.iter().any(|range| range.contains(*service)))
                        .collect();
                    prop_assert!(saying.len() < 2, "{:?} is said twice", request);
                    let (before, after) = (now.evaluate(&request, at), then.evaluate(&request_then, at));
                    let expected = match (effect(&before), effect(&after)) {
                        ((false, _), (true, _)) => Some(Kind::Opens),
                        ((true, _), (false, _)) => Some(Kind::Closes),
                        (before, after) if before == after => None,
                        ((allowed, _), _) => Some(if allowed { Kind::Offramp } else { Kind::Answer }),
                    };
                    match (saying.first(), expected) {
                        (Some(change), Some(kind)) => {
                            prop_assert_eq!(change.kind, kind, "{:?}", request);
                            prop_assert_eq!(change.rule_now.as_ref(), before.rule());
                            prop_assert_eq!(change.rule_then.as_ref(), after.rule());
                        }
                        (Some(change), None) => prop_assert_eq!(change.kind, Kind::Schedule, "{:?}", request),
                        (None, Some(kind)) => prop_assert!(false, "{:?} of {:?} is not said", kind, request),
                        (None, None) => {
                            for at in later.iter().filter(|later| **later >= at) {
                                let answers = [(now, &request), (then, &request_then)]
                                    .map(|(rules, request)| effect(&rules.evaluate(request, *at)));
                                prop_assert_eq!(&answers[0], &answers[1], "{:?} at {}", request, at);
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_says_exactly_what_changes(
        before in policies(),
        after in policies(),
        at in instants(),
        later in prop::collection::vec(instants(), 3),
    ) {
        check(&compile(&before), &compile(&after), at, &later)?;
    }

    #[test]
    fn a_plan_of_a_small_edit_says_exactly_what_changes(
        before in policies(),
        edit in 0..6_u8,
        place in any::<prop::sample::Index>(),
        at in instants(),
        later in prop::collection::vec(instants(), 3),
    ) {
        let mut before = before;
        if edit > 3 {
            // Groups matter, and little else.
            for rule in before["rules"].as_array_mut().unwrap() {
                rule["from"] = if edit == 4 { json!(["group:tech"]) } else { json!(["group:eng"]) };
                rule["not_from"] = json!([]);
                rule.as_object_mut().unwrap().remove("when");
            }
        }
        let mut after = before.clone();
        match edit {
            4 => after["groups"]["tech"] = json!(["user:bob"]),
            5 => after["groups"]["eng"] = json!(["user:eve", "group:dba"]),
            _ => {}
        }
        let rules = after["rules"].as_array_mut().unwrap();
        if !rules.is_empty() {
            let place = place.index(rules.len());
            match edit {
                0 => drop(rules.remove(place)),
                1 => rules.rotate_left(place),
                4 | 5 => {}
                2 => rules[place]["action"] = if rules[place]["action"] == "allow" { "deny" } else { "allow" }.into(),
                _ => rules[place]["when"] = json!({ "hours": "08:00-18:00", "zone": "UTC" }),
            }
            for rule in rules.iter_mut() {
                let fields = rule.as_object_mut().unwrap();
                if fields["action"] == "allow" {
                    fields.remove("silent");
                } else {
                    fields.remove("offramp");
                }
            }
        }
        check(&compile(&before), &compile(&after), at, &later)?;
    }
}

#[test]
fn the_same_policy_changes_nothing_and_a_moved_window_is_said() {
    let policy = |hours: &str, to: &str| {
        compile(&json!({ "version": 1, "rules": [{ "id": "a", "action": "allow", "from": ["group:eng"], "to": [to],
            "services": ["tcp/443"], "when": { "hours": hours } }] }))
    };
    let identities = identities();
    let as_both = seen_by(&policy("08:00-18:00", "10.0.0.0/24"), &identities);
    let subjects = subjects(&as_both, &as_both, &identities);
    let noon: Timestamp = "2027-01-15T12:00:00Z".parse().unwrap();
    let now = policy("08:00-18:00", "10.0.0.0/24");
    assert!(now.difference(&policy("08:00-18:00", "10.0.0.0/24"), &subjects, noon).is_nothing());

    let moved = now.difference(&policy("08:00-17:00", "10.0.0.0/24"), &subjects, noon);
    assert_eq!(moved.changes.len(), 1);
    assert_eq!(moved.changes[0].kind, Kind::Schedule);

    let wider = now.difference(&policy("08:00-18:00", "10.0.0.0/23"), &subjects, noon);
    let said = serde_json::to_value(&wider).unwrap();
    assert_eq!(
        said,
        json!({ "complete": true, "changes": [{
            "kind": "opens", "rule_now": null, "rule_then": "a",
            "who": [
                { "user": "ann", "device": "laptop", "sources": ["10.1.2.3/32"] },
                { "user": "bob", "device": "phone", "sources": ["192.0.2.1/32"] }
            ],
            "destinations": ["10.0.1.0/24"], "services": ["tcp/443"]
        }] })
    );
}

#[test]
fn whoever_comes_into_a_group_is_said() {
    let text = |groups: serde_json::Value| {
        json!({ "version": 1, "groups": groups, "rules": [
            { "id": "a", "action": "allow", "from": ["group:dba"], "to": ["10.0.0.0/24"], "services": ["tcp/443"] },
            { "id": "b", "action": "allow", "from": ["user:eve"], "to": ["10.0.0.0/24"], "services": ["tcp/443"] }
        ] })
    };
    let (now, then) = (compile(&text(json!({}))), compile(&text(json!({ "dba": ["user:bob"] }))));
    let identities = identities();
    let [as_now, as_then] = [&now, &then].map(|rules| seen_by(rules, &identities));
    let subjects = subjects(&as_now, &as_then, &identities);
    let noon: Timestamp = "2027-01-15T12:00:00Z".parse().unwrap();
    let told = |difference: &portcullis_policy::plan::Difference| {
        let one = |change: &portcullis_policy::plan::Change| {
            let who: Vec<String> = change.who.iter().map(|who| who.user.to_string()).collect();
            (change.kind, who)
        };
        difference.changes.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(told(&now.difference(&then, &subjects, noon)), [(Kind::Opens, vec!["bob".to_owned()])]);
    let back: Vec<Subject<'_>> =
        subjects.iter().map(|subject| Subject { now: subject.then, then: subject.now, ..*subject }).collect();
    assert_eq!(told(&then.difference(&now, &back, noon)), [(Kind::Closes, vec!["bob".to_owned()])]);
}
