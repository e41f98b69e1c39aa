//! One rule of the document.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::names::{check_label, is_like_address};
use super::{Names, services};
use crate::address::{parse_net, parse_net_or_address};
use crate::json::{Kind, Node, Object, hint, quoted};
use crate::posture::Posture;
use crate::rewrite::Rewrite;
use crate::rule::{Action, Rule};
use crate::schedule::{Days, Hours, Schedule, Times, parse_zone};
use crate::set::{SourceSelector, SourceSet, Target, TargetSet};

/// The rules in order; every id is used once.
pub(super) fn rules(node: &Node<'_>, names: &Names<'_>) -> Option<Vec<Rule>> {
    let mut ids = HashMap::new();
    node.list(|node| {
        let object = node.object(&[
            "id",
            "action",
            "mode",
            "silent",
            "description",
            "from",
            "not_from",
            "to",
            "not_to",
            "services",
            "when",
            "offramp",
            "rewrite",
        ])?;
        let id = object.read("id", |node| {
            let id = node.string()?;
            if let Err(error) = check_label(&id) {
                node.problem(error.to_string());
                return None;
            }
            let id: Arc<str> = id.into();
            if let Some(earlier) = ids.insert(Arc::clone(&id), node.line()) {
                node.problem(format!("the rule id {} is already used on line {earlier}", quoted(&id)));
            }
            Some(id)
        });
        rule(&object, id, names)
    })
}

fn rule(object: &Object<'_>, id: Option<Arc<str>>, names: &Names<'_>) -> Option<Rule> {
    let action = object.read("action", |node| node.word(&[("allow", Action::Allow), ("deny", Action::Deny)]));
    let audit = object.read_or("mode", false, |node| node.word(&[("audit", true), ("enforce", false)]));
    let silent = object.read_or("silent", false, |node| {
        let silent = node.bool()?;
        if silent && action == Some(Action::Allow) {
            node.problem("only a deny rule can be silent");
        }
        Some(silent)
    });
    let offramp = object.read_or("offramp", None, |node| {
        let name = node.string()?;
        if action == Some(Action::Deny) {
            node.problem("a deny rule has no use for an off-ramp");
        }
        let known = &names.context.offramps;
        require(known.contains(name.as_str()), node, "off-ramp", &name, known.iter().copied())?;
        Some(Some(name.into()))
    });
    let rewrite = object.read_or("rewrite", None, |node| {
        let rewrite = node.parsed(Rewrite::parse)?;
        if action == Some(Action::Deny) {
            node.problem("a deny rule sends nothing anywhere");
        }
        Some(Some(rewrite))
    });
    let description = object.read_or("description", None, |node| node.string().map(|text| Some(text.into())));
    let from = object
        .read("from", |node| node.non_empty_list("is empty, so the rule selects nobody", |node| source(node, names)));
    let not_from = object.read_or("not_from", Vec::new(), |node| {
        excluded(node, |node| source(node, names), |selector| *selector == SourceSelector::Any)
    });
    let to = object
        .read("to", |node| node.non_empty_list("is empty, so the rule leads nowhere", |node| target(node, names)));
    let not_to = object.read_or("not_to", Vec::new(), |node| {
        excluded(node, |node| target(node, names), |target| matches!(target, Target::Any))
    });
    let services = services(object);
    let when = object.read_or("when", (Vec::new(), Times::default()), |node| when(node, names));
    let (postures, times) = when?;
    Some(Rule {
        id: id?,
        action: action?,
        audit: audit?,
        silent: silent?,
        offramp: offramp?,
        rewrite: rewrite?,
        description: description?,
        from: SourceSet::new(from?),
        not_from: SourceSet::new(not_from?),
        to: TargetSet::new(to?),
        not_to: TargetSet::new(not_to?),
        services: services?,
        postures: postures.into(),
        times,
    })
}

/// A list of exceptions, none of which may be everything.
fn excluded<T>(
    node: &Node<'_>,
    read: impl Fn(&Node<'_>) -> Option<T>,
    everything: impl Fn(&T) -> bool,
) -> Option<Vec<T>> {
    node.list(|node| {
        let read = read(node)?;
        if everything(&read) {
            node.problem("excludes everything, so the rule would never match");
        }
        Some(read)
    })
}

fn source(node: &Node<'_>, names: &Names<'_>) -> Option<SourceSelector> {
    let text = node.string()?;
    let context = names.context;
    match text.split_once(':') {
        None if text == "*" => Some(SourceSelector::Any),
        Some(("user", name)) => {
            require(context.users.contains_key(name), node, "user", name, context.users.keys().copied())?;
            Some(SourceSelector::User(name.into()))
        }
        Some(("group", name)) => {
            require(names.has_group(name), node, "group", name, names.group_names())?;
            Some(SourceSelector::Group(name.into()))
        }
        Some(("device", name)) => {
            require(context.devices.contains_key(name), node, "device", name, context.devices.keys().copied())?;
            Some(SourceSelector::Device(name.into()))
        }
        Some(("network", name)) => {
            require(context.networks.contains(name), node, "network", name, context.networks.iter().copied())?;
            Some(SourceSelector::Network(name.into()))
        }
        Some(("net", net)) => match parse_net(net) {
            Ok(net) => Some(SourceSelector::Net(net)),
            Err(error) => {
                node.problem(error.to_string());
                None
            }
        },
        None | Some(_) => {
            let of_kind = [
                ("user", context.users.contains_key(text.as_str())),
                ("group", names.has_group(&text)),
                ("device", context.devices.contains_key(text.as_str())),
                ("network", context.networks.contains(text.as_str())),
                ("net", parse_net(&text).is_ok()),
            ];
            let kind = of_kind.iter().find(|(_, exists)| *exists);
            let hint = kind.map(|(kind, _)| format!("; did you mean {}?", quoted(&format!("{kind}:{text}"))));
            let expected = "expected *, user:NAME, group:NAME, device:NAME, network:NAME or net:PREFIX";
            node.problem(format!("{} selects nobody; {expected}{}", quoted(&text), hint.unwrap_or_default()));
            None
        }
    }
}

fn target(node: &Node<'_>, names: &Names<'_>) -> Option<Target> {
    let text = node.string()?;
    if text == "*" {
        return Some(Target::Any);
    }
    if is_like_address(&text) {
        return node.parsed(parse_net_or_address).map(Target::Net);
    }
    let exists = names.resources.contains_key(text.as_str());
    require(exists, node, "resource", &text, names.resources.keys().map(|name| &**name))?;
    names.resources.get(text.as_str())?.clone().map(Target::Resource)
}

/// Notes that a name does not exist, with the one that was probably meant.
pub(super) fn require<'a>(
    exists: bool,
    node: &Node<'_>,
    kind: &str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> Option<()> {
    if !exists {
        node.problem_with(|| format!("there is no {kind} {}{}", quoted(name), hint(name, known)));
    }
    exists.then_some(())
}

fn when(node: &Node<'_>, names: &Names<'_>) -> Option<(Vec<Arc<Posture>>, Times)> {
    let object = node.object(&["posture", "days", "hours", "zone", "not_before", "not_after"])?;
    let postures = object.read_or("posture", Vec::new(), |node| {
        node.non_empty_list("is empty; leave it out to mean any posture", |node| {
            let name = node.string()?;
            let exists = names.postures.contains_key(name.as_str());
            require(exists, node, "posture", &name, names.postures.keys().map(|name| &**name))?;
            names.postures.get(name.as_str())?.clone()
        })
    });
    let days = object.read_or("days", Days::ALL, days);
    let hours = object.read_or("hours", None, |node| node.parsed(Hours::parse).map(Some));
    let zone = object.read_or("zone", TimeZone::UTC, |node| node.parsed(parse_zone));
    let not_before = object.read_or("not_before", None, |node| node.timestamp().map(Some));
    let not_after = object.read_or("not_after", None, |node| {
        let end = node.timestamp()?;
        if not_before.flatten().is_some_and(|start| end <= start) {
            node.problem("is not later than not_before, so the rule would never match");
        }
        Some(Some(end))
    });
    let schedule = Schedule::new(days?, hours?, zone?);
    Some((postures?, Times { schedule, not_before: not_before?, not_after: not_after? }))
}

/// Days as one string or as a list of such.
fn days(node: &Node<'_>) -> Option<Days> {
    if node.kind() != Kind::Array {
        return node.parsed(Days::parse);
    }
    let list = node.non_empty_list("is empty, so the rule would never match", |node| node.parsed(Days::parse))?;
    list.into_iter().reduce(Days::union)
}
