//! `groups`: members of each group, by name.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::Context;
use super::names::check_label;
use super::rule::require;
use crate::groups::{Groups, Member};
use crate::json::{Node, quoted};

/// The most memberships that the groups of a policy may add to those of the directory, of all users together.
const MAX_MEMBERSHIPS: usize = 1 << 19;
/// How many groups of a cycle are shown.
const SHOWN: usize = 32;

/// The groups that a policy defines.
#[derive(Default)]
pub(super) struct Defined {
    /// Their names, those with a bad definition included.
    pub(super) names: BTreeSet<Arc<str>>,
    pub(super) groups: Groups,
}

/// One group of the document.
struct Group<'d> {
    name: Arc<str>,
    members: Vec<(Member, Node<'d>)>,
}

pub(super) fn read(node: &Node<'_>, context: &Context<'_>) -> Option<Defined> {
    let entries = node.entries()?;
    let names: BTreeSet<Arc<str>> = entries.iter().map(|entry| Arc::from(&*entry.name)).collect();
    let mut defined = Vec::with_capacity(entries.len());
    for entry in &entries {
        if let Err(error) = check_label(&entry.name) {
            entry.key.problem(error.to_string());
        }
        let members = entry.value.non_empty_list("is empty, so nobody would be in the group", |node| {
            member(node, &names, context).map(|member| (member, node.clone()))
        });
        defined.push(Group { name: Arc::from(&*entry.name), members: members.unwrap_or_default() });
    }
    refuse_cycles(&defined);
    let mut groups = Groups::default();
    for group in defined {
        for (member, _) in group.members {
            groups.add(&group.name, member);
        }
    }
    let mut room = MAX_MEMBERSHIPS;
    for (name, user) in &context.users {
        let own = user.groups.len();
        match room.checked_sub(groups.count(name, user.groups, own + room + 1).saturating_sub(own)) {
            Some(rest) => room = rest,
            None => {
                node.problem(format!("the groups add more than {MAX_MEMBERSHIPS} memberships of users"));
                break;
            }
        }
    }
    Some(Defined { names, groups })
}

fn member(node: &Node<'_>, names: &BTreeSet<Arc<str>>, context: &Context<'_>) -> Option<Member> {
    let text = node.string()?;
    match text.split_once(':') {
        Some(("user", name)) => {
            require(context.users.contains_key(name), node, "user", name, context.users.keys().copied())?;
            Some(Member::User(name.into()))
        }
        Some(("group", name)) => {
            let known = names.iter().map(|name| &**name).chain(context.groups.iter().copied());
            require(names.contains(name) || context.groups.contains(name), node, "group", name, known)?;
            Some(Member::Group(name.into()))
        }
        None | Some(_) => {
            let of_kind = [
                ("user", context.users.contains_key(text.as_str())),
                ("group", names.contains(text.as_str()) || context.groups.contains(text.as_str())),
            ];
            let kind = of_kind.iter().find(|(_, exists)| *exists);
            let hint = kind.map(|(kind, _)| format!("; did you mean {}?", quoted(&format!("{kind}:{text}"))));
            let hint = hint.unwrap_or_default();
            node.problem(format!("{} is no member; expected user:NAME or group:NAME{hint}", quoted(&text)));
            None
        }
    }
}

/// Notes every membership that closes a cycle, with the whole cycle. Goes as deep as groups are nested without recursion.
fn refuse_cycles(groups: &[Group<'_>]) {
    let numbers: HashMap<&str, usize> = groups.iter().zip(0..).map(|(group, number)| (&*group.name, number)).collect();
    /// How far a group has been looked at.
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        /// It is in the path, at this depth.
        At(usize),
        Whole,
    }
    let mut seen = vec![Seen::Not; groups.len()];
    for start in 0..groups.len() {
        // Groups of the path, each with the members that are still to be followed.
        let mut path: Vec<(usize, std::slice::Iter<'_, (Member, Node<'_>)>)> = Vec::new();
        let mut enter = Some(start).filter(|start| seen.get(*start) == Some(&Seen::Not));
        loop {
            if let Some(number) = enter.take()
                && let (Some(group), Some(state)) = (groups.get(number), seen.get_mut(number))
            {
                *state = Seen::At(path.len());
                path.push((number, group.members.iter()));
            }
            let Some((number, members)) = path.last_mut() else { break };
            let Some((member, node)) = members.next() else {
                if let Some(state) = seen.get_mut(*number) {
                    *state = Seen::Whole;
                }
                path.pop();
                continue;
            };
            let Member::Group(name) = member else { continue };
            let Some(inner) = numbers.get(&**name).copied() else { continue };
            match seen.get(inner) {
                Some(Seen::Not) => enter = Some(inner),
                Some(Seen::At(depth)) => {
                    let cycle = path.get(*depth..).unwrap_or_default().iter();
                    let names: Vec<&str> =
                        cycle.filter_map(|(number, _)| groups.get(*number)).map(|group| &*group.name).collect();
                    node.problem_with(|| format!("the group would be a member of itself: {}", shown(&names, name)));
                }
                Some(Seen::Whole) | None => {}
            }
        }
    }
}

/// A cycle for people, cut where it gets too long to read.
fn shown(cycle: &[&str], closing: &str) -> String {
    let mut names: Vec<String> = cycle.iter().take(SHOWN).map(|name| (*name).to_owned()).collect();
    if cycle.len() > SHOWN {
        names.push(format!("({} more)", cycle.len() - SHOWN));
    }
    names.push(closing.to_owned());
    names.join(" → ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::super::KnownUser;
    use super::*;
    use crate::{Revision, Ruleset};

    const USERS: [(&str, &[&str]); 3] = [("ann", &["dba"]), ("bob", &["eng"]), ("eve", &[])];

    fn own(groups: &[&str]) -> Arc<[Arc<str>]> {
        groups.iter().map(|group| Arc::from(*group)).collect()
    }

    fn compile(text: &str) -> Result<Ruleset, Vec<String>> {
        let groups = USERS.map(|(user, groups)| (user, own(groups)));
        let context = Context {
            users: groups
                .iter()
                .map(|(user, groups)| (*user, KnownUser { groups, network: "default", disabled: false }))
                .collect(),
            devices: BTreeMap::new(),
            groups: BTreeSet::from(["dba", "eng"]),
            networks: BTreeSet::from(["default", "lab"]),
            offramps: BTreeSet::from(["direct"]),
        };
        Ruleset::compile(text.as_bytes(), &context, Revision(1), "2027-01-01T12:00:00Z".parse().unwrap())
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    fn groups(groups: &Value, tests: &Value) -> Result<Ruleset, Vec<String>> {
        let rule =
            json!({ "id": "r", "action": "allow", "from": ["group:tech"], "not_from": ["group:out"], "to": ["*"] });
        compile(&json!({ "version": 1, "groups": groups, "rules": [rule], "tests": tests }).to_string())
    }

    #[test]
    fn members_of_members_are_members() {
        let test = |user: &str, expect: &str| json!({ "from": user, "to": "10.0.0.1:22/tcp", "expect": expect });
        let nested = json!({ "tech": ["group:eng"], "eng": ["group:dba", "user:eve"], "out": ["user:eve"] });
        let ruleset =
            groups(&nested, &json!([test("ann", "allow"), test("bob", "allow"), test("eve", "deny")])).unwrap();
        for (user, groups, all) in [
            // The directory's group of the same name has the members of both.
            ("ann", own(&["dba"]), own(&["dba", "eng", "tech"])),
            ("bob", own(&["eng"]), own(&["eng", "tech"])),
            ("eve", own(&[]), own(&["eng", "out", "tech"])),
            ("mallory", own(&["hr"]), own(&["hr"])),
        ] {
            assert_eq!(ruleset.groups_of(user, &groups), all, "{user}");
        }
    }

    #[test]
    fn a_cycle_is_shown_whole_where_it_closes() {
        let refused = |groups: &str, expected: &[&str]| {
            let text = format!("{{\"version\": 1, \"rules\": [], \"groups\": {{\n{groups}\n}}}}");
            assert_eq!(compile(&text).unwrap_err(), expected, "{groups}");
        };
        let cycle = "the group would be a member of itself";
        refused(
            "\"eng\": [\"group:dba\"],\n\"dba\": [\"user:ann\", \"group:eng\"]",
            &[&format!("3:21: groups.dba[1]: {cycle}: eng → dba → eng")],
        );
        refused("\"eng\": [\"group:eng\"]", &[&format!("2:9: groups.eng[0]: {cycle}: eng → eng")]);
        // What leads into the cycle is no part of it, and each cycle is one problem.
        refused(
            "\"a\": [\"group:b\"],\n\"b\": [\"group:c\", \"group:d\"],\n\"c\": [\"group:b\"],\n\"d\": [\"group:b\"]",
            &[&format!("4:7: groups.c[0]: {cycle}: b → c → b"), &format!("5:7: groups.d[0]: {cycle}: b → d → b")],
        );
        // A group that is a member of two is no cycle.
        assert!(compile(r#"{"version": 1, "rules": [], "groups": {"a": ["group:b", "group:c"], "b": ["group:c"], "c": ["user:ann"]}}"#).is_ok());
    }

    #[test]
    fn a_hundred_thousand_levels_are_read_without_recursion() {
        let chain = |last: &str| {
            let links: Vec<String> = (1..100_000).map(|n| format!("\"g{n}\": [\"group:g{}\"]", n - 1)).collect();
            let groups = format!("\"g0\": [\"{last}\"], {}", links.join(", "));
            compile(&format!("{{\"version\": 1, \"rules\": [], \"groups\": {{{groups}}}}}"))
        };
        let ruleset = chain("user:eve").unwrap();
        assert_eq!(ruleset.groups_of("eve", &own(&[])).len(), 100_000);
        let problems = chain("group:g99999").unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].contains(": g0 → g99999 → g99998") && problems[0].ends_with("(99968 more) → g0"),
            "{problems:?}"
        );
    }

    #[test]
    fn memberships_are_bounded() {
        let links: Vec<String> = (1..100_000).map(|n| format!("\"{n:x}\":[\"group:{:x}\"]", n - 1)).collect();
        let users: BTreeMap<String, ()> = (0..10).map(|n| (format!("u{n}"), ())).collect();
        let context = Context {
            users: users
                .keys()
                .map(|user| (&**user, KnownUser { groups: &[], network: "default", disabled: false }))
                .collect(),
            ..Context::default()
        };
        let compile = |members: usize| {
            let members: Vec<String> = users.keys().take(members).map(|user| format!("\"user:{user}\"")).collect();
            let groups = format!("\"0\":[{}],{}", members.join(","), links.join(","));
            let text = format!("{{\"version\":1,\"rules\":[],\"groups\":{{{groups}}}}}");
            Ruleset::compile(text.as_bytes(), &context, Revision(1), "2027-01-01T12:00:00Z".parse().unwrap())
        };
        assert!(compile(5).is_ok());
        let problems = compile(6).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].to_string(), "1:34: groups: the groups add more than 524288 memberships of users");
    }
}
