//! The compiled ruleset against a naive reading of the same documents, for random policies and questions that sit on the edges
//! of ports, prefixes and times.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a wrong assumption shall fail the test")]

mod difference;
mod generate;
mod reading;

use std::collections::BTreeSet;

use generate::{
    DEVICES, GROUPS, POSTURES, Question, USERS, few_nets, instants, large_policies, nested_nets, policies, questions,
    when,
};
use jiff::{SignedDuration, Timestamp};
use portcullis_policy::{
    Context, Facts, Identity, KnownDevice, KnownUser, Outcome, Request, Revision, Ruleset, Service,
};
use proptest::prelude::*;
use reading::{Answer, reference};
use serde_json::{Value, json};

/// `PROPTEST_CASES` makes all of these as many times more as it is more than its default of 256: with 12800 each of 50,000
/// policies is asked 20 questions.
fn cases(usual: u32) -> u32 {
    usual.saturating_mul(ProptestConfig::default().cases) / 256
}

fn compile(policy: &Value) -> Ruleset {
    let identity = Identity {
        device: "any".into(),
        user: "any".into(),
        groups: [].into(),
        network: "default".into(),
        posture: Facts::default(),
    };
    let device = KnownDevice { identity: &identity, disabled: false, source: None };
    let context = Context {
        users: USERS.map(|name| (name, KnownUser { groups: &[], network: "default", disabled: false })).into(),
        devices: DEVICES.map(|name| (name, device)).into(),
        groups: BTreeSet::from(GROUPS),
        networks: BTreeSet::from(["default", "lab"]),
        offramps: BTreeSet::from(["direct"]),
    };
    Ruleset::compile(policy.to_string().as_bytes(), &context, Revision(1), Timestamp::UNIX_EPOCH).unwrap()
}

fn compare(policy: &Value, questions: &[Question]) -> Result<(), TestCaseError> {
    let ruleset = compile(policy);
    for question in questions {
        let identity = question.identity_in(&ruleset);
        let request = question.request_as(&identity);
        let answer = Answer::from(ruleset.evaluate(&request, question.now));
        prop_assert_eq!(&answer, &reference(policy, &question.request(), question.now), "{:?}", question);
        let explanation = ruleset.explain(&request, question.now);
        prop_assert_eq!(explanation.rule.as_deref(), answer.rule.as_deref());
        let with = |outcome: &Outcome| {
            explanation.steps.iter().filter(|step| step.outcome == *outcome).map(|step| &*step.rule).collect::<Vec<_>>()
        };
        prop_assert_eq!(with(&Outcome::Decided), answer.rule.as_deref().into_iter().collect::<Vec<_>>());
        prop_assert_eq!(with(&Outcome::Audited), answer.audited);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(60), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn many_rules_are_read_the_same_way(
        policy in large_policies(),
        questions in prop::collection::vec(questions(&nested_nets()), 20),
    ) {
        compare(&policy, &questions)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(1_000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn evaluate_is_the_naive_reading(policy in policies(), questions in prop::collection::vec(questions(&few_nets()), 20)) {
        compare(&policy, &questions)?;
    }

    #[test]
    fn a_verdict_holds_until_it_says(
        policy in policies(),
        question in questions(&few_nets()),
        later in prop::collection::vec(instants(), 8),
        parts in prop::collection::vec(0.0..1.0_f64, 12),
    ) {
        let ruleset = compile(&policy);
        let identity = question.identity_in(&ruleset);
        let request = question.request_as(&identity);
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
            prop_assert_eq!(&answer, &reference(&policy, &question.request(), at), "at {} until {:?}", at, until);
            prop_assert_eq!(ruleset.evaluate(&request, at).until(), until, "at {}", at);
        }
    }

    #[test]
    fn one_rule_changes_its_answer_exactly_then(when in when(), now in instants()) {
        let policy = json!({ "version": 1, "postures": POSTURES.map(|name| (name.to_owned(), json!({ "disk": true }))).into_iter().collect::<serde_json::Map<_, _>>(),
            "rules": [{ "id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": when }] });
        let ruleset = compile(&policy);
        let identity = Identity {
            device: "laptop".into(),
            user: "ann".into(),
            groups: [].into(),
            network: "default".into(), posture: [("disk".to_owned(), json!(true))].into_iter().collect(),
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
