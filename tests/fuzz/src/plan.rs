//! Two policies made of bytes: what a plan says of the step from one to the other is what asking both for everything says.

use ipnet::IpNet;
use portcullis_policy::plan::{Kind, Subject};
use portcullis_policy::{Identity, Request, Ruleset, Service, Verdict};
use serde_json::Value;

use crate::input::Input;
use crate::policies::{ADDRESSES, PORTS, PROTOCOLS, compile, identity, instant, policy, rule};

/// Plans the step from one policy to another, and asks both for every device, destination and service.
pub fn plan(data: &[u8]) {
    let _changed = try_plan(data);
}

/// How many answers change.
fn try_plan(data: &[u8]) -> usize {
    let mut input = Input(data);
    let at = instant(&mut input);
    let before = policy(&mut input);
    let after = if input.byte() % 4 == 0 { policy(&mut input) } else { edited(&mut input, &before) };
    let (now, then) = (compile(&before), compile(&after));
    let devices: Vec<(Identity, Identity, Vec<IpNet>)> = ["laptop", "phone", "branch"]
        .into_iter()
        .map(|device| {
            let one = Identity { device: device.into(), ..identity(&mut input) };
            let in_groups_of =
                |ruleset: &Ruleset| Identity { groups: ruleset.groups_of(&one.user, &one.groups), ..one.clone() };
            let sources = match device {
                "laptop" => ["10.1.2.3/32", "fd00::1/128"],
                "phone" => ["192.0.2.128/32", "9.255.255.255/32"],
                _ => ["10.0.0.0/8", "fd00::/7"],
            };
            (in_groups_of(&now), in_groups_of(&then), sources.map(|net| net.parse().unwrap()).to_vec())
        })
        .collect();
    let subjects: Vec<Subject<'_>> =
        devices.iter().map(|(now, then, sources)| Subject { now, then, sources }).collect();
    let difference = now.difference(&then, &subjects, at);
    assert!(difference.complete);
    let addresses: Vec<std::net::IpAddr> = ADDRESSES.iter().map(|address| address.parse().unwrap()).collect();
    let mut services: Vec<Service> = PORTS.iter().flat_map(|port| [Service::Tcp(*port), Service::Udp(*port)]).collect();
    services.push(Service::Icmp);
    services.extend(PROTOCOLS.map(Service::Protocol));
    let mut changed = 0;
    for (as_now, as_then, sources) in &devices {
        for source in addresses.iter().filter(|address| sources.iter().any(|net| net.contains(*address))) {
            for destination in addresses.iter().filter(|to| to.is_ipv4() == source.is_ipv4()) {
                for service in &services {
                    let ask = |rules: &Ruleset, identity: &Identity| {
                        let (source, destination) = (*source, *destination);
                        rules.evaluate(&Request { identity, source, destination, service: *service }, at)
                    };
                    let (old, new) = (ask(&now, as_now), ask(&then, as_then));
                    let expected = kind(&old, &new);
                    let mut saying = difference.changes.iter().filter(|change| {
                        change.destinations.iter().any(|net| net.contains(destination))
                            && change.services.iter().any(|range| range.contains(*service))
                            && change.who.iter().any(|who| {
                                who.device == as_now.device && who.sources.iter().any(|net| net.contains(source))
                            })
                    });
                    let place = || format!("{source} to {destination} {service} at {at}\n{before}\n{after}");
                    let said = saying.next();
                    assert!(saying.next().is_none(), "said twice: {}", place());
                    match (said, expected) {
                        (Some(change), Some(kind)) => {
                            changed += 1;
                            let rules = (change.rule_now.as_ref(), change.rule_then.as_ref());
                            assert_eq!((change.kind, rules), (kind, (old.rule(), new.rule())), "{}", place());
                        }
                        (Some(change), None) => assert_eq!(change.kind, Kind::Schedule, "{}", place()),
                        (None, Some(kind)) => panic!("{kind:?} is not said: {}", place()),
                        (None, None) => {}
                    }
                }
            }
        }
    }
    changed
}

fn kind(old: &Verdict, new: &Verdict) -> Option<Kind> {
    match (old, new) {
        (Verdict::Deny(_), Verdict::Allow(_)) => Some(Kind::Opens),
        (Verdict::Allow(_), Verdict::Deny(_)) => Some(Kind::Closes),
        (Verdict::Allow(old), Verdict::Allow(new)) => (old.offramp() != new.offramp()).then_some(Kind::Offramp),
        (Verdict::Deny(old), Verdict::Deny(new)) => (old.silent() != new.silent()).then_some(Kind::Answer),
    }
}

/// One rule goes, moves, becomes another, or comes.
fn edited(input: &mut Input<'_>, policy: &Value) -> Value {
    let mut policy = policy.clone();
    let rules = policy["rules"].as_array_mut().unwrap();
    let place = usize::from(input.byte()) % rules.len().max(1);
    let other = rule(input, u8::MAX);
    match input.byte() % 4 {
        0 if !rules.is_empty() => drop(rules.remove(place)),
        1 if !rules.is_empty() => {
            let moved = rules.remove(place);
            rules.insert(usize::from(input.byte()) % (rules.len() + 1), moved);
        }
        2 if !rules.is_empty() => {
            let id = rules[place]["id"].take();
            rules[place] = other;
            rules[place]["id"] = id;
        }
        _ => rules.insert(place, other),
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policies::seeds;

    #[test]
    fn seeds_change_answers() {
        seeds::are_in_corpus("plan");
        let changed: usize = (1..=6).map(|number| try_plan(&seeds::seed(number))).sum();
        assert!(changed > 10, "{changed} answers change");
    }
}
