//! What is reported of devices while the gateway runs: posture facts over those that the directory has.
//!
//! A report belongs to a device by its name and its WireGuard key. Whoever comes under the same name with another key is
//! another device, of which nothing is known yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use portcullis_policy::{Facts, Report};
use serde_json::Value;

use crate::directory::{Device, Directory};
use crate::state::Key;

/// Most facts that may be reported of one device.
pub const MAX_FACTS: usize = 64;
/// Longest name of a fact, and longest text, in bytes.
pub const MAX_TEXT: usize = 256;

/// Why a report is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The name of a fact cannot be one.
    #[error("{} cannot be the name of a fact: 1 to {MAX_TEXT} bytes without control characters or `=`", quoted(.0))]
    Name(String),
    /// A value that no condition could ask for.
    #[error("{}: a fact is true, false, a number or a text of at most {MAX_TEXT} bytes", quoted(.0))]
    Value(String),
    /// Too many facts.
    #[error("device {}: more than {MAX_FACTS} reported facts", quoted(.0))]
    TooMany(String),
}

fn quoted(text: &str) -> String {
    format!("`{}`", text.escape_debug())
}

/// What somebody says of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statement {
    /// Reports that are taken back first.
    pub clear: Clear,
    /// Facts, each with the end of its time.
    pub facts: BTreeMap<String, (Value, Option<Timestamp>)>,
}

/// Which reports are taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clear {
    /// Every one.
    All,
    /// Those of these facts.
    These(Vec<String>),
}

impl Default for Clear {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

/// What was reported of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfDevice {
    /// The device's key when it was; `None` for one that is known by its networks.
    pub key: Option<Key>,
    /// By name of the fact.
    pub facts: BTreeMap<String, Report>,
}

/// Every report, by name of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reports(BTreeMap<Arc<str>, Arc<OfDevice>>);

impl Reports {
    /// Takes in what is said of `device` at `now`.
    ///
    /// # Errors
    ///
    /// Nothing has changed then.
    pub fn take(&mut self, device: &Device, statement: &Statement, now: Timestamp) -> Result<(), ReportError> {
        let name = &device.identity.device;
        let mut next = match self.of(device) {
            Some(known) if statement.clear != Clear::All => known.clone(),
            Some(_) | None => OfDevice { key: device.public_key, facts: BTreeMap::new() },
        };
        if let Clear::These(facts) = &statement.clear {
            facts.iter().for_each(|fact| drop(next.facts.remove(fact)));
        }
        for (fact, (value, until)) in &statement.facts {
            check(fact, value)?;
            next.facts.insert(fact.clone(), Report { value: value.clone(), at: now, until: *until });
        }
        if next.facts.len() > MAX_FACTS {
            return Err(ReportError::TooMany(name.to_string()));
        }
        if next.facts.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(Arc::clone(name), Arc::new(next));
        }
        Ok(())
    }

    /// Remembers what was reported of the device called `name` in an earlier life.
    pub(crate) fn insert(&mut self, name: &str, of: OfDevice) {
        self.0.insert(name.into(), Arc::new(of));
    }

    /// What was reported of `device`.
    pub fn of(&self, device: &Device) -> Option<&OfDevice> {
        self.0.get(&device.identity.device).map(|of| &**of).filter(|of| of.key == device.public_key)
    }

    /// What was reported under this name, whoever had it then.
    pub(crate) fn under(&self, name: &str) -> Option<&OfDevice> {
        self.0.get(name).map(|of| &**of)
    }

    /// Forgets what was reported of devices that `directory` does not have. Returns their names.
    pub fn forget_strangers(&mut self, directory: &Directory) -> Vec<Arc<str>> {
        let known = |name: &str, of: &OfDevice| directory.device(name).is_some_and(|d| d.public_key == of.key);
        let strangers = self.0.iter().filter(|(name, of)| !known(name, of)).map(|(name, _)| Arc::clone(name));
        let strangers: Vec<Arc<str>> = strangers.collect();
        strangers.iter().for_each(|name| drop(self.0.remove(name)));
        strangers
    }

    /// The facts of `device`, those reported over those that stand.
    pub fn over(&self, device: &Device) -> Facts {
        let mut facts = device.identity.posture.standing();
        for (name, report) in self.of(device).into_iter().flat_map(|of| &of.facts) {
            facts.report(name.clone(), report.clone());
        }
        facts
    }
}

fn check(fact: &str, value: &Value) -> Result<(), ReportError> {
    if fact.is_empty() || fact.len() > MAX_TEXT || fact.contains('=') || fact.chars().any(char::is_control) {
        return Err(ReportError::Name(fact.chars().take(MAX_TEXT).collect()));
    }
    match value {
        Value::Bool(_) | Value::Number(_) => Ok(()),
        Value::String(text) if text.len() <= MAX_TEXT => Ok(()),
        Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => Err(ReportError::Value(fact.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::directory::DirectoryContext;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn directory(devices: &[(&str, u8)]) -> Directory {
        let device = |(name, key): &(&str, u8)| {
            let key = crate::keys::encode_key(&[*key; 32]);
            let address = format!("100.96.0.{}", name.len() + 1);
            (
                (*name).to_owned(),
                json!({ "user": "ann", "public_key": key, "addresses": [address],
                "posture": { "disk": false } }),
            )
        };
        let devices: serde_json::Map<String, Value> = devices.iter().map(device).collect();
        let context = DirectoryContext {
            tunnel: vec!["100.96.0.250/16".parse().unwrap()],
            own_public_key: None,
            networks: Vec::new(),
        };
        let text = json!({ "users": { "ann": {} }, "devices": devices }).to_string();
        Directory::parse(&text, &context).unwrap()
    }

    fn statement(facts: Value, clear: Clear) -> Statement {
        let facts = facts.as_object().unwrap().clone();
        Statement { clear, facts: facts.into_iter().map(|(fact, value)| (fact, (value, None))).collect() }
    }

    #[test]
    fn reports_go_over_what_stands_and_can_be_taken_back() {
        let directory = directory(&[("laptop", 20)]);
        let mut reports = Reports::default();
        let mut take = |facts, clear| {
            reports.take(directory.device("laptop").unwrap(), &statement(facts, clear), NOW).map(|()| {
                let with = directory.with_reports(&reports);
                let facts = &with.device("laptop").unwrap().identity.posture;
                facts.iter_at(NOW).map(|(name, value)| (name.to_owned(), value.clone())).collect::<Value>()
            })
        };
        let none = || Clear::These(Vec::new());
        assert_eq!(take(json!({}), none()), Ok(json!({ "disk": false })));
        assert_eq!(take(json!({ "disk": true, "os": "x" }), none()), Ok(json!({ "disk": true, "os": "x" })));
        let these = Clear::These(vec!["disk".to_owned(), "unknown".to_owned()]);
        assert_eq!(take(json!({ "av": 7 }), these), Ok(json!({ "disk": false, "os": "x", "av": 7 })));
        for (facts, error) in [
            (json!({ "fine": 1, "": 1 }), ReportError::Name(String::new())),
            (json!({ "a=b": 1 }), ReportError::Name("a=b".to_owned())),
            (json!({ "a\n": 1 }), ReportError::Name("a\n".to_owned())),
            (json!({ "list": [] }), ReportError::Value("list".to_owned())),
            (json!({ "long": "x".repeat(MAX_TEXT + 1) }), ReportError::Value("long".to_owned())),
            ((0..MAX_FACTS).map(|n| (format!("f{n}"), json!(n))).collect(), ReportError::TooMany("laptop".to_owned())),
        ] {
            assert_eq!(take(facts, none()), Err(error));
        }
        assert_eq!(take(json!({}), none()), Ok(json!({ "disk": false, "os": "x", "av": 7 })), "nothing has changed");
        assert_eq!(take(json!({}), Clear::All), Ok(json!({ "disk": false })));
        assert_eq!(reports, Reports::default());
    }

    #[test]
    fn a_report_is_about_a_key() {
        let first = directory(&[("laptop", 20), ("phone", 21)]);
        let mut reports = Reports::default();
        for name in ["laptop", "phone"] {
            let said = statement(json!({ "disk": true }), Clear::default());
            reports.take(first.device(name).unwrap(), &said, NOW).unwrap();
        }
        let disk = |reports: &Reports, directory: &Directory, name| {
            let with = directory.with_reports(reports);
            with.device(name).unwrap().identity.posture.at("disk", NOW).cloned()
        };
        let second = directory(&[("laptop", 22), ("phone", 21)]);
        assert_eq!(disk(&reports, &second, "laptop"), Some(json!(false)));
        assert_eq!(disk(&reports, &second, "phone"), Some(json!(true)));
        // A directory that has reports over it, and is given fewer, has no more than those.
        let with = first.with_reports(&reports);
        assert_eq!(disk(&Reports::default(), &with, "laptop"), Some(json!(false)));
        assert_eq!(reports.forget_strangers(&second), ["laptop".into()]);
        assert_eq!(disk(&reports, &first, "laptop"), Some(json!(false)));
        assert_eq!(disk(&reports, &first, "phone"), Some(json!(true)));
    }
}
