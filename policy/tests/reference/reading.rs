//! The verdict, read straight from the document in the plainest way.

use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::TimeZoneDatabase;
use portcullis_policy::{Identity, Request, Service, Verdict};
use serde_json::Value;

/// What a verdict comes to.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) allowed: bool,
    pub(crate) rule: Option<String>,
    pub(crate) silent: bool,
    pub(crate) offramp: Option<String>,
    pub(crate) audited: Vec<String>,
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
pub(crate) fn reference(policy: &Value, request: &Request<'_>, now: Timestamp) -> Answer {
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
        return Answer { allowed, rule: Some(id), silent: rule["silent"] == true, offramp, audited };
    }
    Answer { allowed: false, rule: None, silent: false, offramp: None, audited }
}

fn matches(policy: &Value, rule: &Value, request: &Request<'_>, now: Timestamp) -> bool {
    let from = |key: &str| list(&rule[key]).iter().any(|entry| is_source(policy, entry, request));
    let to = |key: &str| list(&rule[key]).iter().any(|entry| is_target(policy, entry, request));
    from("from")
        && !from("not_from")
        && to("to")
        && !to("not_to")
        && offers(&rule["services"], request.service)
        && list(&rule["when"]["posture"])
            .iter()
            .all(|name| has_posture(&policy["postures"][name.as_str()], request.identity, now))
        && is_time(&rule["when"], now)
}

fn list(value: &Value) -> Vec<String> {
    value
        .as_array()
        .map(|list| list.iter().map(|entry| entry.as_str().unwrap().to_owned()).collect())
        .unwrap_or_default()
}

/// Groups are asked from the outermost inwards: does the directory say so, or is any of its members the user or a group that
/// holds the user?
fn is_source(policy: &Value, entry: &str, request: &Request<'_>) -> bool {
    let identity = request.identity;
    let is_in = |group: &str| {
        identity.groups.iter().any(|own| **own == *group)
            || list(&policy["groups"][group]).iter().any(|member| is_source(policy, member, request))
    };
    entry == "*"
        || entry == format!("user:{}", identity.user)
        || entry == format!("device:{}", identity.device)
        || entry == format!("network:{}", identity.network)
        || entry.strip_prefix("group:").is_some_and(is_in)
        || entry.strip_prefix("net:").is_some_and(|net| holds(net, request.source))
}

fn is_target(policy: &Value, entry: &str, request: &Request<'_>) -> bool {
    match policy["resources"].get(entry) {
        Some(resource) => {
            list(&resource["addresses"]).iter().any(|net| holds(net, request.destination))
                && offers(&resource["services"], request.service)
        }
        None => entry == "*" || holds(entry, request.destination),
    }
}

/// Compares the leading bits, one by one.
fn holds(net: &str, address: IpAddr) -> bool {
    let bits = |address: IpAddr| -> String {
        match address {
            IpAddr::V4(address) => address.octets().iter().map(|octet| format!("{octet:08b}")).collect(),
            IpAddr::V6(address) => address.octets().iter().map(|octet| format!("{octet:08b}")).collect(),
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
            || entry.strip_prefix(name).is_some_and(|range| match range.split_once('-') {
                None => range == "*" || range == number.to_string(),
                Some((first, last)) => (first.parse().unwrap()..=last.parse().unwrap()).contains(&number),
            })
    };
    services.is_null() || list(services).iter().any(one)
}

fn has_posture(posture: &Value, identity: &Identity, now: Timestamp) -> bool {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        let mut numbers = text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
        numbers.resize(4, 0);
        Some(numbers)
    };
    let text = |fact: &Value| fact.as_str().map(str::to_owned).or_else(|| fact.as_number().map(ToString::to_string));
    let met = |expected: &Value, fact: &Value| {
        let written = expected.as_str().unwrap_or_default();
        let sign: String = written.chars().take_while(|c| "<=>".contains(*c)).collect();
        let version = numbers(&written[sign.len()..]);
        match (sign.as_str(), version, text(fact).as_deref().and_then(numbers)) {
            ("", _, _) if expected.is_number() => expected.as_f64() == fact.as_f64(),
            ("", _, _) => expected == fact,
            ("==", None, _) => fact == &written[2..],
            (_, None, _) | (_, _, None) => false,
            ("<", Some(version), Some(fact)) => fact < version,
            ("<=", Some(version), Some(fact)) => fact <= version,
            ("==", Some(version), Some(fact)) => fact == version,
            (">=", Some(version), Some(fact)) => fact >= version,
            (">", Some(version), Some(fact)) => fact > version,
            (sign, _, _) => panic!("unknown comparison {sign}"),
        }
    };
    posture.as_object().unwrap().iter().all(|(fact, expected)| {
        let Some(fact) = identity.posture.at(fact, now) else {
            return false;
        };
        match expected.as_array() {
            Some(choices) => choices.iter().any(|choice| met(choice, fact)),
            None => met(expected, fact),
        }
    })
}

/// Lays the windows out over the minutes of a week.
fn is_time(when: &Value, now: Timestamp) -> bool {
    let instant = |key: &str| when[key].as_str().map(|text| text.parse::<Timestamp>().unwrap());
    let zone = TimeZoneDatabase::bundled().get(when["zone"].as_str().unwrap_or("UTC")).unwrap();
    let local = zone.to_datetime(now);
    let minute =
        local.weekday().to_monday_zero_offset() as usize * 1440 + local.hour() as usize * 60 + local.minute() as usize;
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
    let (start, end) = (clock(0..2) * 60 + clock(3..5), clock(6..8) * 60 + clock(9..11));
    let length = if end > start { end - start } else { end + 1440 - start };
    let open = days.iter().any(|day| (0..length).any(|step| (day * 1440 + start + step) % 10080 == minute));
    open && instant("not_before").is_none_or(|start| now >= start) && instant("not_after").is_none_or(|end| now < end)
}
