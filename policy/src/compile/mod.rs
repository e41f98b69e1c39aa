//! From `policy.json` to a ruleset.

mod context;
mod groups;
mod names;
mod rule;
mod testcase;
mod warn;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

pub use context::{Context, KnownDevice, KnownUser};
use names::{check_label, check_resource_name};
use testcase::Undecided;

use crate::address::parse_net_or_address;
use crate::json::{Document, Kind, Node, Object, Problem};
use crate::posture::{Condition, Expected, Posture};
use crate::set::{NetSet, Resource, ServiceSelector, ServiceSet};
use crate::{Revision, Ruleset};

/// The only version of the document there is.
const VERSION: u64 = 1;

/// Everything a rule may refer to. A name whose definition is wrong is known without a meaning, so that one mistake is not
/// reported again wherever the name is used.
struct Names<'c> {
    context: &'c Context<'c>,
    groups: groups::Defined,
    resources: BTreeMap<Arc<str>, Option<Arc<Resource>>>,
    postures: BTreeMap<Arc<str>, Option<Arc<Posture>>>,
}

impl Names<'_> {
    /// Whether the directory or the policy has the group.
    fn has_group(&self, name: &str) -> bool {
        self.context.groups.contains(name) || self.groups.names.contains(name)
    }

    fn group_names(&self) -> impl Iterator<Item = &str> {
        self.groups.names.iter().map(|name| &**name).chain(self.context.groups.iter().copied())
    }
}

pub(crate) fn compile(
    text: &[u8],
    context: &Context<'_>,
    revision: Revision,
    now: Timestamp,
) -> Result<Ruleset, Vec<Problem>> {
    let document = Document::parse(text)?;
    let read = || {
        let known = ["$schema", "version", "groups", "resources", "postures", "rules", "tests"];
        let object = document.root().object(&known)?;
        let schema = object.read_or("$schema", None, |node| node.string().map(Some));
        let version = object.read("version", version);
        let groups = object.read_or("groups", groups::Defined::default(), |node| groups::read(node, context));
        let resources =
            object.read_or("resources", BTreeMap::new(), |node| definitions(node, check_resource_name, resource));
        let postures = object.read_or("postures", BTreeMap::new(), |node| definitions(node, check_label, posture));
        let names = Names {
            context,
            groups: groups.unwrap_or_default(),
            resources: resources.unwrap_or_default(),
            postures: postures.unwrap_or_default(),
        };
        let rules = object.read("rules", |node| rule::rules(node, &names));
        let tests = object.read_or("tests", Vec::new(), |node| node.list(|node| testcase::read(node, &names)));
        schema?;
        version?;
        let mut ruleset = Ruleset::new(revision, rules?, names.groups.groups);
        let mut warnings = Vec::new();
        for test in tests? {
            test.check_rule(&ruleset);
            if document.is_good() && test.run(&ruleset, now) == Some(Undecided) {
                warnings.push((
                    test.node().clone(),
                    "no rule decides this test, it is denied because none matches".to_owned(),
                ));
            }
        }
        if document.is_good() {
            let resources: Vec<&Arc<Resource>> = names.resources.values().flatten().collect();
            warnings.extend(warn::nodes(&object, ruleset.findings(context, resources)));
            ruleset.warn(warn::placed(warnings));
        }
        Some(ruleset)
    };
    document.finish(read())
}

fn version(node: &Node<'_>) -> Option<()> {
    let version = node.integer(0..=u64::MAX)?;
    if version != VERSION {
        node.problem(format!("version {version} is not supported; this program reads version {VERSION}"));
        return None;
    }
    Some(())
}

/// The definitions of an object with free names.
fn definitions<T>(
    node: &Node<'_>,
    check: impl Fn(&str) -> Result<(), names::NameError>,
    read: impl Fn(&Arc<str>, &Node<'_>) -> Option<T>,
) -> Option<BTreeMap<Arc<str>, Option<Arc<T>>>> {
    let mut definitions = BTreeMap::new();
    for entry in node.entries()? {
        if let Err(error) = check(&entry.name) {
            entry.key.problem(error.to_string());
        }
        let name: Arc<str> = Arc::from(&*entry.name);
        let meaning = read(&name, &entry.value).map(Arc::new);
        definitions.insert(name, meaning);
    }
    Some(definitions)
}

fn resource(name: &Arc<str>, node: &Node<'_>) -> Option<Resource> {
    let object = node.object(&["addresses", "services", "description"])?;
    let addresses = object.read("addresses", |node| {
        node.non_empty_list("is empty, so the resource is nowhere", |node| node.parsed(parse_net_or_address))
    });
    let services = services(&object);
    object.read_or("description", None, |node| node.string().map(Some))?;
    Some(Resource { name: Arc::clone(name), addresses: NetSet::new(addresses?), services: services? })
}

/// The `services` of a rule or resource; absent means every one.
fn services(object: &Object<'_>) -> Option<Option<ServiceSet>> {
    object.read_or("services", None, |node| {
        let empty = "is empty, so nothing would match; leave it out to mean every service";
        let list = node.non_empty_list(empty, |node| node.parsed(ServiceSelector::parse))?;
        Some(Some(ServiceSet::new(list)))
    })
}

fn posture(name: &Arc<str>, node: &Node<'_>) -> Option<Posture> {
    let entries = node.entries()?;
    if entries.is_empty() {
        node.problem("is empty, so every device would have it");
        return None;
    }
    let conditions: Vec<Option<Condition>> = entries
        .iter()
        .map(|entry| {
            let expected = match entry.value.kind() {
                Kind::Array => {
                    let empty = "is empty, so no device would have it";
                    entry.value.non_empty_list(empty, expected).map(|choices| Expected::AnyOf(choices.into()))
                }
                Kind::Object | Kind::String | Kind::Number | Kind::Bool | Kind::Null => expected(&entry.value),
            };
            Some(Condition { fact: Arc::from(&*entry.name), expected: expected? })
        })
        .collect();
    Some(Posture { name: Arc::clone(name), conditions: conditions.into_iter().collect::<Option<Vec<_>>>()?.into() })
}

fn expected(node: &Node<'_>) -> Option<Expected> {
    match node.scalar()? {
        serde_json::Value::Bool(expected) => Some(Expected::Bool(expected)),
        serde_json::Value::Number(expected) => Some(Expected::Number(expected)),
        serde_json::Value::String(text) => Expected::parse(&text).map_err(|error| node.problem(error.to_string())).ok(),
        serde_json::Value::Null | serde_json::Value::Array(_) | serde_json::Value::Object(_) => None,
    }
}

#[cfg(test)]
mod refusals;
#[cfg(test)]
mod tests;
