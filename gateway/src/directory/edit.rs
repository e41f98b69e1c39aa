//! Changing `directory.json` in place: every byte that is not part of the change stays as it is.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Why an edit cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The text is no JSON object where one is needed.
    #[error("is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// A member that must be there is not.
    #[error("has no {0:?}")]
    Missing(String),
}

/// `text` with `"name": value` added at the end of the object `section`. `value` is JSON.
///
/// # Errors
///
/// `text` has no such section.
pub fn add(text: &str, section: &str, name: &str, value: &str) -> Result<String, EditError> {
    let object = object_at(text, &[section])?;
    Ok(insert(text, &object, name, value))
}

/// `text` without the member `name` of the object `section`.
///
/// # Errors
///
/// `text` has no such member.
pub fn remove(text: &str, section: &str, name: &str) -> Result<String, EditError> {
    let object = object_at(text, &[section])?;
    let missing = || EditError::Missing(name.to_owned());
    let index = object.members.iter().position(|member| member.name == name).ok_or_else(missing)?;
    let member = object.members.get(index).ok_or_else(missing)?;
    let previous = index.checked_sub(1).and_then(|index| object.members.get(index));
    let (from, to) = match (previous, object.members.get(index + 1)) {
        (Some(previous), _) => (previous.end, member.end),
        (None, Some(next)) => (member.key, next.key),
        (None, None) => (object.open + 1, object.close),
    };
    Ok(splice(text, from, to, ""))
}

/// `text` with `"key": value` in the member `name` of the object `section`, in place of the old value when there is one.
///
/// # Errors
///
/// `text` has no such member.
pub fn set(text: &str, section: &str, name: &str, key: &str, value: &str) -> Result<String, EditError> {
    let object = object_at(text, &[section, name])?;
    match object.members.iter().find(|member| member.name == key) {
        Some(member) => Ok(splice(text, member.value, member.end, value)),
        None => Ok(insert(text, &object, key, value)),
    }
}

/// Where an object and its members stand, as byte offsets.
struct Object {
    open: usize,
    close: usize,
    members: Vec<Member>,
}

struct Member {
    name: String,
    key: usize,
    value: usize,
    end: usize,
}

fn object_at(text: &str, path: &[&str]) -> Result<Object, EditError> {
    let start = text.len() - text.trim_start().len();
    let mut object = locate(text, start, text.trim_end().len())?;
    for name in path {
        let missing = || EditError::Missing((*name).to_owned());
        let member = object.members.iter().find(|member| member.name == *name).ok_or_else(missing)?;
        object = locate(text, member.value, member.end)?;
    }
    Ok(object)
}

fn locate(text: &str, start: usize, end: usize) -> Result<Object, EditError> {
    let part = text.get(start..end).unwrap_or_default();
    let Members(pairs) = serde_json::from_str(part)?;
    let offset = |raw: &RawValue| raw.get().as_ptr() as usize - text.as_ptr() as usize;
    let mut members = Vec::new();
    for (key, value) in pairs {
        let from = offset(value);
        members.push(Member {
            name: serde_json::from_str(key.get())?,
            key: offset(key),
            value: from,
            end: from + value.get().len(),
        });
    }
    Ok(Object { open: start, close: end.saturating_sub(1), members })
}

fn insert(text: &str, object: &Object, name: &str, value: &str) -> String {
    let name = serde_json::Value::from(name);
    let Some(last) = object.members.last() else {
        // An empty object opens up, one step deeper than the line it stands on.
        let line = text.get(..object.open).unwrap_or_default().rsplit('\n').next().unwrap_or_default();
        let indent: String = line.chars().take_while(|c| matches!(c, ' ' | '\t')).collect();
        let new = format!("{{\n{indent}  {name}: {value}\n{indent}}}");
        return splice(text, object.open, object.close + 1, &new);
    };
    // What stands between the comma (or brace) and the last key: its line break and indentation, or the lack of them.
    let before = text.get(object.open + 1..last.key).unwrap_or_default();
    let gap = before.len() - before.trim_end().len();
    let gap = text.get(last.key - gap..last.key).unwrap_or_default();
    let gap = if gap.is_empty() { " " } else { gap };
    splice(text, last.end, last.end, &format!(",{gap}{name}: {value}"))
}

fn splice(text: &str, from: usize, to: usize, new: &str) -> String {
    let (head, tail) = (text.get(..from).unwrap_or_default(), text.get(to..).unwrap_or_default());
    format!("{head}{new}{tail}")
}

struct Members<'t>(Vec<(&'t RawValue, &'t RawValue)>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Members(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "{\n  \"users\": {},\n  \"devices\": {\n    \"a\": { \"x\": 15.10 },\n\n    \"b\": {}\n  }\n}\n";

    #[test]
    fn adding_keeps_the_rest_to_the_byte() {
        assert_eq!(
            add(FILE, "devices", "c\"", "{ \"y\": 1 }").unwrap(),
            FILE.replace("\"b\": {}", "\"b\": {},\n\n    \"c\\\"\": { \"y\": 1 }")
        );
        assert_eq!(
            add(FILE, "users", "u", "{}").unwrap(),
            FILE.replace("\"users\": {}", "\"users\": {\n    \"u\": {}\n  }")
        );
        assert_eq!(add("{\"d\":{\"a\":1}}", "d", "b", "2").unwrap(), "{\"d\":{\"a\":1, \"b\": 2}}");
    }

    #[test]
    fn removing_takes_one_comma() {
        assert_eq!(remove(FILE, "devices", "a").unwrap(), FILE.replace("\"a\": { \"x\": 15.10 },\n\n    ", ""));
        assert_eq!(remove(FILE, "devices", "b").unwrap(), FILE.replace(",\n\n    \"b\": {}", ""));
        assert_eq!(remove("{\"d\": { \"a\" : 1 } }", "d", "a").unwrap(), "{\"d\": {} }");
        assert!(matches!(remove(FILE, "devices", "c"), Err(EditError::Missing(name)) if name == "c"));
    }

    #[test]
    fn setting_replaces_or_adds() {
        assert_eq!(set(FILE, "devices", "a", "x", "true").unwrap(), FILE.replace("15.10", "true"));
        assert_eq!(
            set(FILE, "devices", "a", "revoked", "true").unwrap(),
            FILE.replace("15.10", "15.10, \"revoked\": true")
        );
        assert!(matches!(set(FILE, "devices", "c", "x", "1"), Err(EditError::Missing(_))));
        assert!(matches!(add("[]", "devices", "c", "1"), Err(EditError::NotJson(_))));
    }
}
