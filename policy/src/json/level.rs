//! One level of an object or array, its members left as borrowed text.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::MAX_ENTRIES;

/// The members of an object, in order, repeated keys and all.
pub(super) struct Members<'t>(pub(super) Bounded<(&'t RawValue, &'t RawValue)>);

/// The items of an array.
pub(super) struct Items<'t>(pub(super) Bounded<&'t RawValue>);

/// Entries up to [`MAX_ENTRIES`], and whether there were more.
pub(super) struct Bounded<T> {
    pub(super) entries: Vec<T>,
    pub(super) overflow: bool,
}

impl<'de: 't, 't> Deserialize<'de> for Members<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

struct MembersVisitor<'t>(PhantomData<&'t ()>);

impl<'de: 't, 't> Visitor<'de> for MembersVisitor<'t> {
    type Value = Members<'t>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while entries.len() < MAX_ENTRIES {
            let Some(entry) = map.next_entry()? else {
                return Ok(Members(Bounded { entries, overflow: false }));
            };
            entries.push(entry);
        }
        let mut overflow = false;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            overflow = true;
        }
        Ok(Members(Bounded { entries, overflow }))
    }
}

impl<'de: 't, 't> Deserialize<'de> for Items<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ItemsVisitor(PhantomData))
    }
}

struct ItemsVisitor<'t>(PhantomData<&'t ()>);

impl<'de: 't, 't> Visitor<'de> for ItemsVisitor<'t> {
    type Value = Items<'t>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while entries.len() < MAX_ENTRIES {
            let Some(entry) = items.next_element()? else {
                return Ok(Items(Bounded { entries, overflow: false }));
            };
            entries.push(entry);
        }
        let mut overflow = false;
        while items.next_element::<IgnoredAny>()?.is_some() {
            overflow = true;
        }
        Ok(Items(Bounded { entries, overflow }))
    }
}

/// What serde_json says, without the position it appends.
pub(super) fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(position.as_str()).map(str::to_owned).unwrap_or(text)
}
