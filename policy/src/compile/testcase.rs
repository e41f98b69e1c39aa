//! The tests a policy carries.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use jiff::Timestamp;

use super::Names;
use crate::address::parse_address;
use crate::json::{Node, Object, hint, quoted};
use crate::request::parse_destination;
use crate::rule::Action;
use crate::{Facts, Identity, Request, Ruleset, Service, Verdict};

/// One test, read.
pub(super) struct TestCase<'d> {
    node: Node<'d>,
    asker: Asker,
    source: Option<IpAddr>,
    destination: IpAddr,
    service: Service,
    expect: Action,
    rule: Option<(Node<'d>, String)>,
    at: Option<Timestamp>,
}

/// No rule decided a test that names none: it shows what nobody wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undecided;

struct Asker {
    identity: Identity,
    disabled: bool,
    source: Option<IpAddr>,
}

pub(super) fn read<'d>(node: &Node<'d>, names: &Names<'_>) -> Option<TestCase<'d>> {
    let object = node.object(&["from", "source", "posture", "to", "expect", "rule", "at", "description"])?;
    let asker = object.read("from", |node| asker(node, names));
    let posture = posture(&object);
    let source = object.read_or("source", None, |node| node.parsed(parse_address).map(Some));
    let to = object.read("to", |node| node.parsed(parse_destination));
    let expect = object.read("expect", |node| node.word(&[("allow", Action::Allow), ("deny", Action::Deny)]));
    let rule = object.read_or("rule", None, |node| Some(Some((node.clone(), node.string()?))));
    let at = object.read_or("at", None, |node| node.timestamp().map(Some));
    object.read_or("description", None, |node| node.string().map(Some))?;
    let (destination, service) = to?;
    let mut asker = asker?;
    for (name, value) in posture? {
        asker.identity.posture.insert(name, value);
    }
    Some(TestCase {
        node: node.clone(),
        asker,
        source: source?,
        destination,
        service,
        expect: expect?,
        rule: rule?,
        at: at?,
    })
}

/// Facts the test assumes, over those of the device.
fn posture(object: &Object<'_>) -> Option<BTreeMap<String, serde_json::Value>> {
    object.read_or("posture", BTreeMap::new(), |node| {
        node.entries()?.iter().map(|entry| Some((entry.name.to_string(), entry.value.scalar()?))).collect()
    })
}

fn asker(node: &Node<'_>, names: &Names<'_>) -> Option<Asker> {
    let context = names.context;
    let groups = |user: &str, own| names.groups.groups.of(user, own);
    let text = node.string()?;
    if let Some(name) = text.strip_prefix("device:") {
        let Some(device) = context.devices.get(name) else {
            node.problem_with(|| {
                format!("there is no device {}{}", quoted(name), hint(name, context.devices.keys().copied()))
            });
            return None;
        };
        let mut identity = device.identity.clone();
        identity.posture = identity.posture.standing();
        // What the directory says of the user: an identity may have groups that another policy gave it.
        let own =
            context.users.get(&*identity.user).map_or_else(|| Arc::clone(&identity.groups), |user| user.groups.into());
        identity.groups = groups(&identity.user, &own);
        return Some(Asker { identity, disabled: device.disabled, source: device.source });
    }
    let name = text.strip_prefix("user:").unwrap_or(&text);
    let Some(user) = context.users.get(name) else {
        node.problem_with(|| format!("there is no user {}{}", quoted(name), hint(name, context.users.keys().copied())));
        return None;
    };
    let identity = Identity {
        device: Arc::from(""),
        user: name.into(),
        groups: groups(name, &user.groups.into()),
        network: user.network.into(),
        posture: Facts::default(),
    };
    Some(Asker { identity, disabled: user.disabled, source: None })
}

impl<'d> TestCase<'d> {
    /// The test in the document.
    pub(super) fn node(&self) -> &Node<'d> {
        &self.node
    }

    /// Notes when the expected rule does not exist.
    pub(super) fn check_rule(&self, ruleset: &Ruleset) {
        let Some((node, rule)) = &self.rule else {
            return;
        };
        let ids = || ruleset.rules().map(|known| known.id.as_ref());
        if !ids().any(|id| id == rule) {
            node.problem_with(|| format!("there is no rule {}{}", quoted(rule), hint(rule, ids())));
        }
    }

    /// Notes when the ruleset answers otherwise than expected.
    pub(super) fn run(&self, ruleset: &Ruleset, now: Timestamp) -> Option<Undecided> {
        let expected_rule = self.rule.as_ref().map(|(_, rule)| rule.as_str());
        let by = expected_rule.map(|rule| format!(" by rule {}", quoted(rule))).unwrap_or_default();
        let failed =
            |instead: &str| self.node.problem(format!("test failed: expected {}{by}, but {instead}", self.expect));
        if self.asker.disabled {
            if self.expect != Action::Deny || expected_rule.is_some() {
                failed("the device or its user is disabled, which denies everything");
            }
            return None;
        }
        let unspecified = match self.destination {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let request = Request {
            identity: &self.asker.identity,
            source: self.source.or(self.asker.source).unwrap_or(unspecified),
            destination: self.destination,
            service: self.service,
        };
        let verdict = ruleset.evaluate(&request, self.at.unwrap_or(now));
        let action = match &verdict {
            Verdict::Allow(_) => Action::Allow,
            Verdict::Deny(_) => Action::Deny,
        };
        let decider = verdict.rule().map(|rule| &**rule);
        if action == self.expect && (expected_rule.is_none() || expected_rule == decider) {
            return decider.is_none().then_some(Undecided);
        }
        match decider {
            Some(rule) => failed(&format!("rule {} decides: {action}", quoted(rule))),
            None => failed("no rule matches: deny"),
        }
        None
    }
}
