//! What is different between two versions of a file, by name.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::api::Change;

/// What changed from one policy text to another. Both are known to compile.
pub fn policy(old: &str, new: &str) -> Vec<Change> {
    let (old, new) = (parse(old), parse(new));
    let mut changes = Vec::new();
    let (old_rules, new_rules) = (rules(&old), rules(&new));
    by_name("rule", &old_rules, &new_rules, &mut changes);
    if kept(&old_rules, &new_rules) != kept(&new_rules, &old_rules) {
        push("rules", "", "reordered", &mut changes);
    }
    for (key, kind) in [("resources", "resource"), ("postures", "posture")] {
        by_name(kind, &members(&old, key), &members(&new, key), &mut changes);
    }
    if old.get("tests") != new.get("tests") {
        push("tests", "", "changed", &mut changes);
    }
    changes
}

/// What changed from one directory text to another. Both are known to load.
pub fn directory(old: &str, new: &str) -> Vec<Change> {
    let (old, new) = (parse(old), parse(new));
    let mut changes = Vec::new();
    for (key, kind) in [("users", "user"), ("devices", "device")] {
        by_name(kind, &members(&old, key), &members(&new, key), &mut changes);
    }
    changes
}

fn parse(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

fn members(document: &Map<String, Value>, key: &str) -> Vec<(String, Value)> {
    let object = document.get(key).and_then(Value::as_object);
    object.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn rules(document: &Map<String, Value>) -> Vec<(String, Value)> {
    let list = document.get("rules").and_then(Value::as_array);
    let id = |rule: &Value| rule.get("id").and_then(Value::as_str).map(str::to_owned);
    list.into_iter().flatten().filter_map(|rule| Some((id(rule)?, rule.clone()))).collect()
}

/// Ids of `these` that are among `those`, in order.
fn kept<'a>(these: &'a [(String, Value)], those: &[(String, Value)]) -> Vec<&'a str> {
    let those: HashSet<_> = those.iter().map(|(id, _)| id.as_str()).collect();
    these.iter().map(|(id, _)| id.as_str()).filter(|id| those.contains(id)).collect()
}

fn push(kind: &str, name: &str, change: &str, changes: &mut Vec<Change>) {
    changes.push(Change { kind: kind.to_owned(), name: name.to_owned(), change: change.to_owned() });
}

fn by_name(kind: &str, old: &[(String, Value)], new: &[(String, Value)], changes: &mut Vec<Change>) {
    let old_by_name: HashMap<_, _> = old.iter().map(|(n, v)| (n, v)).collect();
    let new_by_name: HashMap<_, _> = new.iter().map(|(n, v)| (n, v)).collect();
    for (name, value) in new {
        match old_by_name.get(name) {
            None => push(kind, name, "added", changes),
            Some(before) if *before == value => {}
            Some(before) => push(kind, name, how(before, value), changes),
        }
    }
    for (name, _) in old.iter().filter(|(name, _)| !new_by_name.contains_key(name)) {
        push(kind, name, "removed", changes);
    }
}

/// `disabled` and `revoked` are what an administrator looks for.
fn how(before: &Value, after: &Value) -> &'static str {
    let is = |value: &Value, key| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    let off = |value| is(value, "disabled") || is(value, "revoked");
    match (off(before), off(after)) {
        (false, true) if is(after, "revoked") => "revoked",
        (false, true) => "disabled",
        (true, false) => "enabled",
        (true, true) | (false, false) => "changed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(changes: Vec<Change>) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn policies() {
        let old = r#"{"rules":[{"id":"a","x":1},{"id":"b"},{"id":"c"}],"resources":{"r":1,"s":1}}"#;
        let new = r#"{"rules":[{"id":"c"},{"id":"a","x":2},{"id":"d"}],"resources":{"s":2,"t":1},"tests":[]}"#;
        assert_eq!(
            lines(policy(old, new)),
            [
                "rule a changed",
                "rule d added",
                "rule b removed",
                "rules reordered",
                "resource s changed",
                "resource t added",
                "resource r removed",
                "tests changed"
            ]
        );
        assert!(policy(old, old).is_empty());
        assert_eq!(
            lines(policy(old, r#"{ "resources": {"s":1,"r":1}, "rules":[{"id":"b"},{"id":"c"}] }"#)),
            ["rule a removed"]
        );
    }

    #[test]
    fn directories() {
        let old =
            r#"{"users":{"ann":{},"bob":{}},"devices":{"a":{"user":"ann"},"b":{"user":"bob"},"c":{"revoked":true}}}"#;
        let new = r#"{"users":{"ann":{"disabled":true}},"devices":{"a":{"user":"ann","revoked":true},"b":{"user":"ann"},"c":{}}}"#;
        assert_eq!(
            lines(directory(old, new)),
            ["user ann disabled", "user bob removed", "device a revoked", "device b changed", "device c enabled"]
        );
    }
}
