//! Compiled selectors: each answers one question about a request without allocating.

mod net;
mod service;
mod source;
mod target;

pub(crate) use net::NetSet;
pub(crate) use service::{ServiceSelector, ServiceSet, named_protocol, plain};
pub(crate) use source::{SourceSelector, SourceSet};
pub(crate) use target::{Reach, Resource, Target, TargetSet};

use std::fmt;

/// Writes a list for people, cut where it gets too long to read.
pub(crate) fn write_list<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    items: impl IntoIterator<Item = T>,
) -> fmt::Result {
    const SHOWN: usize = 12;
    let mut items = items.into_iter();
    for (index, item) in items.by_ref().take(SHOWN).enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        item.fmt(f)?;
    }
    match items.count() {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

/// Sorts ranges with inclusive ends and joins those that touch.
fn merge<T: Copy + Ord>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if next(last.1).is_none_or(|after| start <= after) => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged.into()
}

/// Whether merged ranges hold `value`.
fn holds<T: Copy + Ord>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|(start, _)| *start <= value);
    after.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|(_, end)| value <= *end)
}
