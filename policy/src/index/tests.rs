//! Sets against the numbers they were made of, prefixes against a look at all of them, and rules that are far apart.

use std::collections::BTreeSet;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::common::{Common, Union};
use super::prefixes::Prefixes;
use super::set::Set;
use crate::{Context, Facts, Identity, Request, Revision, Ruleset, Service, Verdict};

/// Some numbers over several pages: some alone, some by the thousand.
fn numbers() -> impl Strategy<Value = BTreeSet<u32>> {
    let run = (0..20_000_u32, prop_oneof![2 => Just(1), 1 => 2..200_u32, 1 => Just(5_000_u32)], 1..70_usize);
    prop::collection::vec(run, 0..5).prop_map(|runs| {
        runs.into_iter().flat_map(|(first, length, step)| (first..first + length).step_by(step)).collect()
    })
}

fn union<const N: usize>(sets: &[Set]) -> Union<'_, N> {
    let mut union = Union::default();
    sets.iter().for_each(|set| union.add(set));
    union
}

proptest! {
    #[test]
    fn what_unions_have_in_common(lists in prop::array::uniform3(prop::collection::vec(numbers(), 0..4))) {
        let sets = lists.each_ref().map(|list| {
            list.iter().map(|numbers| Set::new(&Vec::from_iter(numbers.iter().copied()))).collect::<Vec<_>>()
        });
        let mut common = Common::<4, 4, 4>(union(&sets[0]), union(&sets[1]), union(&sets[2]));
        let mut found = Vec::new();
        prop_assert_eq!(common.find(25_000, |number| { found.push(number); None::<()> }), None);
        let [a, b, c] = lists.map(|list| list.into_iter().flatten().collect::<BTreeSet<u32>>());
        let expected = Vec::from_iter(a.into_iter().filter(|number| b.contains(number) && c.contains(number)));
        prop_assert_eq!(&found, &expected);
        if let Some(middle) = expected.get(expected.len() / 2) {
            let stopped = common.find(25_000, |number| (number >= *middle).then_some(number));
            prop_assert_eq!(stopped, Some(*middle));
        }
    }

    #[test]
    fn every_prefix_that_holds_a_value(
        prefixes in prop::collection::btree_set((any::<u8>(), 0..=8_u32), 0..40),
    ) {
        let ends = |(bits, length): (u8, u32)| {
            let rest = u8::MAX.checked_shr(length).unwrap_or(0);
            (bits & !rest, bits | rest)
        };
        let mut ranges: Vec<(u8, u8)> = prefixes.into_iter().map(ends).collect();
        ranges.sort_unstable_by_key(|(first, last)| (*first, u8::MAX - last));
        ranges.dedup();
        let set = |first: u8, last: u8| Set::new(&[u32::from(first) << 8 | u32::from(last)]);
        let found = Prefixes::new(ranges.iter().map(|(first, last)| (*first, *last, set(*first, *last))));
        for value in 0..=u8::MAX {
            let mut expected: Vec<(u8, u8)> =
                ranges.iter().copied().filter(|(first, last)| (*first..=*last).contains(&value)).collect();
            expected.reverse();
            let found = found.at(value).map(|set| {
                let sets = [set.clone()];
                let mut common = Common::<1, 1, 1>(union(&sets), union(&sets), union(&sets));
                common.find(u32::from(u16::MAX), Some).map(|number| ((number >> 8) as u8, number as u8))
            });
            prop_assert_eq!(found.collect::<Option<Vec<_>>>(), Some(expected));
        }
    }
}

fn compiled(rules: Vec<Value>, groups: &[String]) -> Ruleset {
    let context = Context { groups: groups.iter().map(String::as_str).collect(), ..Context::default() };
    let with_id = |(number, mut rule): (usize, Value)| {
        rule["id"] = format!("rule-{number}").into();
        rule["action"] = "allow".into();
        rule
    };
    let rules: Vec<Value> = rules.into_iter().enumerate().map(with_id).collect();
    let policy = json!({ "version": 1, "rules": rules });
    Ruleset::compile(policy.to_string().as_bytes(), &context, Revision(1), Timestamp::UNIX_EPOCH).unwrap()
}

fn ask(ruleset: &Ruleset, groups: &[String], destination: &str, service: Service) -> Option<String> {
    let identity = Identity {
        device: "laptop".into(),
        user: "ann".into(),
        groups: groups.iter().map(|name| name.as_str().into()).collect(),
        network: "default".into(),
        posture: Facts::default(),
    };
    let source = "100.96.0.2".parse().unwrap();
    let request = Request { identity: &identity, source, destination: destination.parse().unwrap(), service };
    let verdict: Verdict = ruleset.evaluate(&request, Timestamp::UNIX_EPOCH);
    verdict.rule().map(ToString::to_string)
}

#[test]
fn rules_of_different_pages_are_found() {
    let rule = |number: usize| {
        json!({ "from": ["*"], "to": [format!("10.0.{}.{}", number / 250, number % 250), format!("fd00::{:x}", number + 1)],
            "services": [format!("tcp/{}", 1 + number)] })
    };
    let ruleset = compiled((0..9_000).map(rule).collect(), &[]);
    for number in [0, 1, 63, 64, 4_095, 4_096, 8_191, 8_192, 8_999] {
        let own = format!("rule-{number}");
        let v4 = format!("10.0.{}.{}", number / 250, number % 250);
        let port = 1 + number as u16;
        assert_eq!(ask(&ruleset, &[], &v4, Service::Tcp(port)).as_ref(), Some(&own));
        assert_eq!(ask(&ruleset, &[], &format!("fd00::{:x}", number + 1), Service::Tcp(port)).as_ref(), Some(&own));
        assert_eq!(ask(&ruleset, &[], &v4, Service::Tcp(port + 1)), None);
        assert_eq!(ask(&ruleset, &[], &v4, Service::Udp(port)), None);
    }
}

#[test]
fn more_groups_than_are_taken_into_account_still_match() {
    let mut groups: Vec<String> = (0..super::SOURCES * 2).map(|number| format!("group-{number}")).collect();
    let rule = |group: &String| json!({ "from": [format!("group:{group}")], "to": ["10.0.0.0/8"] });
    let ruleset = compiled(groups.iter().map(rule).collect(), &groups);
    let mut own = groups.split_off(1);
    assert_eq!(ask(&ruleset, &own, "10.0.0.1", Service::Icmp).as_deref(), Some("rule-1"));
    own.reverse();
    assert_eq!(ask(&ruleset, &own, "10.0.0.1", Service::Icmp).as_deref(), Some("rule-1"));
    assert_eq!(ask(&ruleset, &own[..1], "10.0.0.1", Service::Icmp).as_deref(), Some("rule-127"));
    assert_eq!(ask(&ruleset, &own, "192.0.2.1", Service::Icmp), None);
}

#[test]
fn addresses_below_more_prefixes_than_are_taken_into_account_still_match() {
    let rule =
        |length: u8| json!({ "from": ["*"], "to": [ipnet::IpNet::new("fd00::".parse().unwrap(), length).unwrap()] });
    let ruleset = compiled((8..=128).rev().map(rule).collect(), &[]);
    assert_eq!(ask(&ruleset, &[], "fd00::", Service::Icmp).as_deref(), Some("rule-0"));
    assert_eq!(ask(&ruleset, &[], "fd00::1", Service::Icmp).as_deref(), Some("rule-1"));
    assert_eq!(ask(&ruleset, &[], "fd80::", Service::Icmp).as_deref(), Some("rule-120"));
    assert_eq!(ask(&ruleset, &[], "fe00::", Service::Icmp), None);
}
