//! What a device must be like: conditions on its facts.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Number, Value};
use thiserror::Error;

use crate::Facts;
use crate::json::quoted;
use crate::set::write_list;

/// A named posture: every condition must hold.
#[derive(Debug)]
pub(crate) struct Posture {
    pub(crate) name: Arc<str>,
    pub(crate) conditions: Box<[Condition]>,
}

/// One fact and what it must be. A fact the device does not have holds nothing.
#[derive(Debug, PartialEq)]
pub(crate) struct Condition {
    pub(crate) fact: Arc<str>,
    pub(crate) expected: Expected,
}

impl Posture {
    /// The first condition that the facts do not meet at `now`.
    pub(crate) fn unmet(&self, facts: &Facts, now: Timestamp) -> Option<&Condition> {
        self.conditions.iter().find(|condition| {
            let fact = facts.at(&condition.fact, now);
            !fact.is_some_and(|fact| condition.expected.is_met_by(fact))
        })
    }

    /// The first instant after `now` at which the time alone can change what is unmet.
    pub(crate) fn changes_at(&self, facts: &Facts, now: Timestamp) -> Option<Timestamp> {
        self.conditions.iter().filter_map(|condition| facts.changes_at(&condition.fact, now)).min()
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.fact, self.expected)
    }
}

/// What a fact must be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expected {
    Bool(bool),
    Number(Number),
    Text(Box<str>),
    Version(Comparison, Box<str>),
    AnyOf(Box<[Self]>),
}

/// How a version compares with the one written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Less,
    AtMost,
    Equal,
    AtLeast,
    Greater,
}

impl Comparison {
    const ALL: [(&'static str, Self); 5] =
        [("<=", Self::AtMost), (">=", Self::AtLeast), ("==", Self::Equal), ("<", Self::Less), (">", Self::Greater)];

    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::AtMost => ordering.is_le(),
            Self::Equal => ordering.is_eq(),
            Self::AtLeast => ordering.is_ge(),
            Self::Greater => ordering.is_gt(),
        }
    }

    fn sign(self) -> &'static str {
        Self::ALL.iter().find(|(_, comparison)| *comparison == self).map_or("", |(sign, _)| sign)
    }
}

/// What is wrong with an expected text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ExpectedError {
    #[error("{} is not a version; expected numbers with dots between, such as 14.2", quoted(.0))]
    NotAVersion(String),
    #[error("{} begins with an unknown comparison; there are <, <=, ==, >= and >", quoted(.0))]
    Comparison(String),
}

impl Expected {
    /// Reads a text, which may begin with a comparison.
    pub(crate) fn parse(text: &str) -> Result<Self, ExpectedError> {
        let signed =
            Comparison::ALL.iter().find_map(|(sign, comparison)| Some((*comparison, text.strip_prefix(sign)?)));
        match signed {
            Some((comparison, version)) if is_version(version) => Ok(Self::Version(comparison, version.into())),
            Some((Comparison::Equal, text)) => Ok(Self::Text(text.into())),
            Some((_, version)) => Err(ExpectedError::NotAVersion(version.to_owned())),
            None if text.starts_with(['=', '!', '~']) => Err(ExpectedError::Comparison(text.to_owned())),
            None => Ok(Self::Text(text.into())),
        }
    }

    fn is_met_by(&self, fact: &Value) -> bool {
        match (self, fact) {
            (Self::AnyOf(choices), fact) => choices.iter().any(|choice| choice.is_met_by(fact)),
            (Self::Bool(expected), Value::Bool(fact)) => expected == fact,
            (Self::Number(expected), Value::Number(fact)) => same_number(expected, fact),
            (Self::Text(expected), Value::String(fact)) => **expected == **fact,
            (Self::Version(comparison, version), Value::String(fact)) => {
                compare_versions(fact, version).is_some_and(|ordering| comparison.holds(ordering))
            }
            (Self::Version(comparison, version), Value::Number(fact)) => {
                compare_versions(&fact.to_string(), version).is_some_and(|ordering| comparison.holds(ordering))
            }
            _ => false,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(expected) => write!(f, "{expected}"),
            Self::Number(expected) => write!(f, "{expected}"),
            Self::Text(expected) => f.write_str(&quoted(expected)),
            Self::Version(comparison, version) => write!(f, "{}{version}", comparison.sign()),
            Self::AnyOf(choices) => {
                f.write_str("any of ")?;
                write_list(f, choices.iter())
            }
        }
    }
}

fn same_number(a: &Number, b: &Number) -> bool {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => a == b,
        _ => a.as_f64() == b.as_f64(),
    }
}

fn is_version(text: &str) -> bool {
    let number = |part: &str| (1..=18).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').all(number)
}

/// Compares part by part as numbers, a missing part being 0; `None` when either is no version.
fn compare_versions(a: &str, b: &str) -> Option<Ordering> {
    if !is_version(a) || !is_version(b) {
        return None;
    }
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let (left, right) = (a.next(), b.next());
        if left.is_none() && right.is_none() {
            return Some(Ordering::Equal);
        }
        let number = |part: Option<&str>| part.map_or(Ok(0_u64), str::parse);
        match number(left).ok()?.cmp(&number(right).ok()?) {
            Ordering::Equal => {}
            unequal @ (Ordering::Less | Ordering::Greater) => return Some(unequal),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        for (expected, fact, met) in [
            (">=14", json!("15.1"), true),
            (">=14", json!("14"), true),
            (">=14", json!("14.0.0"), true),
            (">=14", json!("9.9"), false),
            (">=14", json!(14), true),
            (">=14", json!(13.9), false),
            (">=14", json!("14-beta"), false),
            (">=14", json!("macos"), false),
            (">=14", json!(true), false),
            (">=14", json!(null), false),
            ("<15", json!("14.99"), true),
            ("<15", json!("15.0"), false),
            ("<=15", json!("15.0"), true),
            (">15", json!("15.0.1"), true),
            ("==15", json!("15.0"), true),
            ("==15", json!("15.1"), false),
            ("==macos", json!("macos"), true),
            ("macos", json!("macos"), true),
            ("macos", json!("MacOS"), false),
            ("15", json!("15"), true),
            ("15", json!(15), false),
        ] {
            assert_eq!(Expected::parse(expected).unwrap().is_met_by(&fact), met, "{expected} {fact}");
        }
        for text in [">=", ">=x", "<1.", "<.1", ">=1..2", "=14", "!=14", "~14", "> 14", ">=99999999999999999999"] {
            assert!(Expected::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_and_lists() {
        let number = |value: Value| Expected::Number(value.as_number().unwrap().clone());
        assert!(number(json!(14)).is_met_by(&json!(14.0)));
        assert!(!number(json!(14)).is_met_by(&json!("14")));
        assert!(!number(json!(u64::MAX)).is_met_by(&json!(u64::MAX - 1)));
        let list = Expected::AnyOf([Expected::Text("linux".into()), Expected::Bool(true)].into());
        assert!(list.is_met_by(&json!("linux")) && list.is_met_by(&json!(true)) && !list.is_met_by(&json!(false)));
    }

    #[test]
    fn a_missing_fact_is_unmet() {
        let posture = Posture {
            name: "p".into(),
            conditions: [Condition { fact: "disk".into(), expected: Expected::Bool(false) }].into(),
        };
        assert!(posture.unmet(&Facts::default(), Timestamp::UNIX_EPOCH).is_some());
        let facts = [("disk".to_owned(), json!(false))].into_iter().collect();
        assert!(posture.unmet(&facts, Timestamp::UNIX_EPOCH).is_none());
    }
}
