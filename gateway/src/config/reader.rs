//! Walking a TOML document so that every problem is found in one pass, each with its place.

use std::ops::RangeInclusive;
use std::time::Duration;

use portcullis_policy::json::nearest;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::duration::parse_duration;
use super::problem::{ConfigError, Findings, Place};

/// A value with its key path and place, for checks that come later.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) key: String,
    pub(super) place: Place,
}

/// What all readings share: the text, for places, and what was found wrong.
pub(super) struct Reader<'t> {
    text: &'t str,
    pub(super) findings: Findings,
}

/// A value of the document that was not looked at yet.
pub(super) struct Value<'t> {
    key: String,
    place: Place,
    value: &'t DeValue<'t>,
}

impl Value<'_> {
    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    pub(super) fn is_empty_list(&self) -> bool {
        matches!(self.value, DeValue::Array(items) if items.is_empty())
    }
}

/// A table of the document, whose keys are all known.
pub(super) struct Table<'t> {
    path: String,
    pub(super) place: Place,
    table: &'t DeTable<'t>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, findings: Findings::default() }
    }

    pub(super) fn place(&self, offset: usize) -> Place {
        Place::of(self.text, offset)
    }

    /// Opens a table and reports keys that are not among `known`.
    pub(super) fn open(
        &mut self,
        path: &str,
        place: Place,
        table: &'t DeTable<'t>,
        known: &'static [&'static str],
    ) -> Table<'t> {
        for (name, _) in table.iter() {
            if known.contains(&name.get_ref().as_ref()) {
                continue;
            }
            let error = match nearest(name.get_ref(), known.iter().copied()) {
                Some(near) => ConfigError::UnknownKeyNear(near),
                None => ConfigError::UnknownKey(known),
            };
            let key = join(path, name.get_ref());
            self.findings.add(self.place(name.span().start), key, error);
        }
        Table { path: path.to_owned(), place, table }
    }

    /// The value of `key`, if it is there.
    pub(super) fn value(&self, table: &Table<'t>, key: &str) -> Option<Value<'t>> {
        let value = table.table.get(key)?;
        Some(self.locate(join(&table.path, key), value))
    }

    /// The value of `key`; that it is missing is a problem.
    pub(super) fn required(&mut self, table: &Table<'t>, key: &str) -> Option<Value<'t>> {
        let value = self.value(table, key);
        if value.is_none() {
            self.findings.add(table.place, join(&table.path, key), ConfigError::Missing);
        }
        value
    }

    pub(super) fn table(&mut self, value: &Value<'t>, known: &'static [&'static str]) -> Option<Table<'t>> {
        if let DeValue::Table(table) = value.value {
            Some(self.open(&value.key, value.place, table, known))
        } else {
            self.wrong_type(value, "a table", value.value)
        }
    }

    pub(super) fn list(&mut self, value: &Value<'t>) -> Vec<Value<'t>> {
        let DeValue::Array(array) = value.value else {
            return self.wrong_type(value, "a list", value.value).unwrap_or_default();
        };
        array.iter().enumerate().map(|(i, item)| self.locate(format!("{}[{i}]", value.key), item)).collect()
    }

    pub(super) fn string(&mut self, value: &Value<'t>) -> Option<&'t str> {
        if let DeValue::String(text) = value.value {
            Some(text)
        } else {
            self.wrong_type(value, "a string", value.value)
        }
    }

    pub(super) fn boolean(&mut self, value: &Value<'t>) -> Option<bool> {
        if let DeValue::Boolean(boolean) = value.value {
            Some(*boolean)
        } else {
            self.wrong_type(value, "true or false", value.value)
        }
    }

    pub(super) fn integer(&mut self, value: &Value<'t>, range: RangeInclusive<u64>) -> Option<u64> {
        let DeValue::Integer(integer) = value.value else {
            return self.wrong_type(value, "an integer", value.value);
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|n| range.contains(n));
        if number.is_none() {
            return self.problem(value, ConfigError::OutOfRange { min: *range.start(), max: *range.end() });
        }
        number
    }

    pub(super) fn duration(&mut self, value: &Value<'t>, range: RangeInclusive<Duration>) -> Option<Duration> {
        let duration =
            self.parsed(value, |text| parse_duration(text).ok_or_else(|| ConfigError::NotADuration(text.to_owned())))?;
        if range.contains(&duration) {
            return Some(duration);
        }
        self.problem(value, ConfigError::DurationOutOfRange { min: *range.start(), max: *range.end() })
    }

    /// A string that `parse` understands.
    pub(super) fn parsed<T, E: Into<ConfigError>>(
        &mut self,
        value: &Value<'t>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(self.string(value)?) {
            Ok(parsed) => Some(parsed),
            Err(error) => self.problem(value, error.into()),
        }
    }

    /// Like [`Self::parsed`], keeping the place.
    pub(super) fn located<T, E: Into<ConfigError>>(
        &mut self,
        value: &Value<'t>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Located<T>> {
        let parsed = self.parsed(value, parse)?;
        Some(Located { value: parsed, key: value.key.clone(), place: value.place })
    }

    /// The strings of a list that `parse` understands, each with its place.
    pub(super) fn located_list<T, E: Into<ConfigError>>(
        &mut self,
        value: Option<Value<'t>>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<Located<T>> {
        let Some(value) = value else {
            return Vec::new();
        };
        let items = self.list(&value);
        items.iter().filter_map(|item| self.located(item, &parse)).collect()
    }

    pub(super) fn problem<T>(&mut self, value: &Value<'t>, error: ConfigError) -> Option<T> {
        self.findings.add(value.place, value.key.clone(), error);
        None
    }

    fn locate(&self, key: String, value: &'t Spanned<DeValue<'t>>) -> Value<'t> {
        Value { key, place: self.place(value.span().start), value: value.get_ref() }
    }

    fn wrong_type<T>(&mut self, value: &Value<'t>, expected: &'static str, found: &DeValue<'_>) -> Option<T> {
        let found = match found {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.problem(value, ConfigError::WrongType { expected, found })
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
