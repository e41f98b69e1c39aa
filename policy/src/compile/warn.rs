//! Warnings, with the places of what they are about.

use std::collections::HashMap;
use std::sync::Arc;

use super::Context;
use crate::json::{Node, Object, Place, Problem};
use crate::lint::{Finding, Known};

/// The most warnings that are listed for one document; the rest is only counted.
const MAX_WARNINGS: usize = 100;

impl Known for Context<'_> {
    fn own_groups(&self, user: &str) -> Arc<[Arc<str>]> {
        self.users.get(user).map(|user| user.groups.into()).unwrap_or_default()
    }

    fn user_of(&self, device: &str) -> Option<(Arc<str>, Arc<str>)> {
        let identity = self.devices.get(device)?.identity;
        Some((Arc::clone(&identity.user), Arc::clone(&identity.network)))
    }
}

/// What each finding is about, in the document whose root is `object`.
pub(super) fn nodes<'d>(object: &Object<'d>, findings: Vec<Finding>) -> Vec<(Node<'d>, String)> {
    if findings.is_empty() {
        return Vec::new();
    }
    let rules = object.optional("rules").and_then(|node| node.items()).unwrap_or_default();
    let resources = object.optional("resources").and_then(|node| node.entries()).unwrap_or_default();
    let resources: HashMap<&str, &Node<'d>> = resources.iter().map(|entry| (&*entry.name, &entry.key)).collect();
    let node = |finding| match finding {
        Finding::Rule(number, message) => Some((rules.get(number)?.clone(), message)),
        Finding::Resource(name, message) => Some(((*resources.get(&*name)?).clone(), message)),
    };
    findings.into_iter().filter_map(node).collect()
}

/// The warnings in the order of their places.
pub(super) fn placed(warnings: Vec<(Node<'_>, String)>) -> Vec<Problem> {
    let more = warnings.len().saturating_sub(MAX_WARNINGS);
    let mut listed: Vec<Problem> = warnings
        .into_iter()
        .take(MAX_WARNINGS)
        .map(|(node, message)| Problem { place: node.place(), message })
        .collect();
    listed.sort();
    if more > 0 {
        let place = Place { line: 1, column: 1, path: "$".to_owned() };
        listed.push(Problem { place, message: format!("{more} more warnings are not listed") });
    }
    listed
}
