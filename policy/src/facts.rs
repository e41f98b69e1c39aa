//! What is known of a device.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

/// Posture facts of a device by name: JSON booleans, strings or numbers.
///
/// A fact stands, as the directory has it, or was reported, at some time and perhaps for some time only. A report goes before
/// what stands; when its time is over, what stands counts again, and a fact that does not stand is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<String, Fact>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fact {
    standing: Option<Value>,
    reported: Option<Report>,
}

/// A fact that somebody reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What it is.
    pub value: Value,
    /// When that was said.
    pub at: Timestamp,
    /// The first instant at which it counts no more; `None`: it counts until another report.
    pub until: Option<Timestamp>,
}

impl Report {
    /// Whether it counts at `now`.
    pub fn counts_at(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Facts {
    /// Has a fact stand, in the place of one that stood.
    pub fn insert(&mut self, name: String, value: Value) {
        self.0.entry(name).or_default().standing = Some(value);
    }

    /// Takes a report, in the place of an earlier one.
    pub fn report(&mut self, name: String, report: Report) {
        self.0.entry(name).or_default().reported = Some(report);
    }

    /// The facts that stand, without any report.
    #[must_use]
    pub fn standing(&self) -> Self {
        self.0.iter().filter_map(|(name, fact)| Some((name.clone(), fact.standing.clone()?))).collect()
    }

    /// What counts at `now`; `None` when the fact is missing.
    pub fn at(&self, name: &str, now: Timestamp) -> Option<&Value> {
        let fact = self.0.get(name)?;
        fact.counting(now).map(|report| &report.value).or(fact.standing.as_ref())
    }

    /// The report that counts at `now`, or the one whose time is over.
    pub fn reported(&self, name: &str) -> Option<&Report> {
        self.0.get(name)?.reported.as_ref()
    }

    /// The first instant after `now` at which another value counts, by nothing but the time.
    pub fn changes_at(&self, name: &str, now: Timestamp) -> Option<Timestamp> {
        self.0.get(name)?.counting(now)?.until
    }

    /// Every fact that counts at `now`, by name.
    pub fn iter_at(&self, now: Timestamp) -> impl Iterator<Item = (&str, &Value)> {
        self.0.keys().filter_map(move |name| Some((&**name, self.at(name, now)?)))
    }
}

impl Fact {
    fn counting(&self, now: Timestamp) -> Option<&Report> {
        self.reported.as_ref().filter(|report| report.counts_at(now))
    }
}

/// Facts that stand.
impl FromIterator<(String, Value)> for Facts {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(facts: I) -> Self {
        let fact = |(name, value)| (name, Fact { standing: Some(value), reported: None });
        Self(facts.into_iter().map(fact).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_report_counts_for_its_time_and_then_what_stands() {
        let mut facts: Facts = [("disk".to_owned(), json!(false))].into_iter().collect();
        let report = |until| Report { value: json!(true), at: second(10), until };
        facts.report("disk".to_owned(), report(Some(second(20))));
        facts.report("os".to_owned(), report(Some(second(30))));
        facts.report("av".to_owned(), report(None));
        for (now, disk, os, all) in [
            (10, json!(true), Some(json!(true)), 3),
            (19, json!(true), Some(json!(true)), 3),
            (20, json!(false), Some(json!(true)), 3),
            (30, json!(false), None, 2),
        ] {
            assert_eq!(facts.at("disk", second(now)), Some(&disk), "{now}");
            assert_eq!(facts.at("os", second(now)), os.as_ref(), "{now}");
            assert_eq!(facts.iter_at(second(now)).count(), all, "{now}");
        }
        assert_eq!(facts.changes_at("disk", second(19)), Some(second(20)));
        assert_eq!(facts.changes_at("disk", second(20)), None);
        assert_eq!(facts.changes_at("av", second(20)), None);
        assert_eq!(facts.changes_at("none", second(20)), None);
        assert_eq!(facts.standing(), [("disk".to_owned(), json!(false))].into_iter().collect());
    }
}
