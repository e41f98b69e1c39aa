//! Values of a document and the typed ways to read them.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::rc::Rc;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::level::{self, Bounded, Items, Members};
use super::{Document, MAX_ENTRIES, Place, hint, quoted};

/// The way from the root to a value; shared between siblings, written out only for a problem.
#[derive(Debug, Clone, Default)]
pub(super) struct Path(Option<Rc<Step>>);

#[derive(Debug)]
struct Step {
    parent: Path,
    segment: Segment,
}

#[derive(Debug)]
enum Segment {
    Key(Rc<str>),
    Index(usize),
}

impl Path {
    fn join(&self, segment: Segment) -> Self {
        Self(Some(Rc::new(Step { parent: self.clone(), segment })))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = Vec::new();
        let mut here = self.0.as_deref();
        while let Some(step) = here {
            steps.push(&step.segment);
            here = step.parent.0.as_deref();
        }
        let bare = |key: &str| {
            key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && key.len() <= 80
                && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        match steps.last() {
            Some(Segment::Key(key)) if bare(key) => {}
            _ => f.write_str("$")?,
        }
        for (depth, segment) in steps.iter().rev().enumerate() {
            match segment {
                Segment::Key(key) if bare(key) && depth == 0 => f.write_str(key)?,
                Segment::Key(key) if bare(key) => write!(f, ".{key}")?,
                Segment::Key(key) => write!(f, "[{}]", quoted(key))?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// The kinds of JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    String,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// `null`
    Null,
}

/// One value of a [`Document`], at a known place.
///
/// The readers return `None` when the value is not what they read; the problem is then noted in the document.
#[derive(Debug, Clone)]
pub struct Node<'d> {
    document: &'d Document<'d>,
    text: &'d str,
    path: Path,
}

/// One member of an object whose keys are free names.
#[derive(Debug, Clone)]
pub struct Entry<'d> {
    /// The key.
    pub name: Rc<str>,
    /// The key's own place, for problems with the name.
    pub key: Node<'d>,
    /// The value.
    pub value: Node<'d>,
}

/// An object with known keys.
#[derive(Debug)]
pub struct Object<'d> {
    node: Node<'d>,
    members: HashMap<Rc<str>, Node<'d>>,
}

impl<'d> Object<'d> {
    /// The value of a key that must be there; its absence is a problem.
    pub fn required(&self, key: &str) -> Option<Node<'d>> {
        let found = self.optional(key);
        if found.is_none() {
            self.node.problem(format!("the key {} is missing", quoted(key)));
        }
        found
    }

    /// The value of a key that may be left out.
    pub fn optional(&self, key: &str) -> Option<Node<'d>> {
        self.members.get(key).cloned()
    }

    /// Reads the value of a key that must be there.
    pub fn read<T>(&self, key: &str, read: impl FnOnce(&Node<'d>) -> Option<T>) -> Option<T> {
        self.required(key).and_then(|node| read(&node))
    }

    /// Reads the value of a key that may be left out, which then means `default`. `None` only when it is there and wrong.
    pub fn read_or<T>(&self, key: &str, default: T, read: impl FnOnce(&Node<'d>) -> Option<T>) -> Option<T> {
        match self.optional(key) {
            Some(node) => read(&node),
            None => Some(default),
        }
    }

    /// The object itself, for problems that are no single member's.
    pub fn node(&self) -> &Node<'d> {
        &self.node
    }
}

impl<'d> Node<'d> {
    pub(super) fn new(document: &'d Document<'d>, text: &'d str, path: Path) -> Self {
        Self { document, text, path }
    }

    /// Notes a problem with this value.
    pub fn problem(&self, message: impl Into<String>) {
        self.document.note(self.document.offset_in_text(self.text), &self.path, || message.into());
    }

    /// Like [`problem`](Self::problem), for a message that is costly to make: it is made only when it will be listed.
    pub fn problem_with(&self, message: impl FnOnce() -> String) {
        self.document.note(self.document.offset_in_text(self.text), &self.path, message);
    }

    /// Where it is. Counting the column takes time in proportion to the length of the line; keep a clone of the node instead
    /// where the place may never be needed.
    pub fn place(&self) -> Place {
        let (line, column) = self.document.position(self.document.offset_in_text(self.text));
        Place { line, column, path: self.path.to_string() }
    }

    /// The line it is on, from 1.
    pub fn line(&self) -> usize {
        self.document.line(self.document.offset_in_text(self.text))
    }

    /// What kind of value it is.
    pub fn kind(&self) -> Kind {
        match self.text.as_bytes().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') | None => Kind::Null,
            Some(_) => Kind::Number,
        }
    }

    /// An object whose keys are all among `known`; an unknown or repeated key is a problem.
    pub fn object(&self, known: &[&str]) -> Option<Object<'d>> {
        let mut members = HashMap::new();
        for Entry { name, key, value } in self.entries()? {
            if !known.contains(&&*name) {
                key.problem_with(|| format!("unknown key {}{}", quoted(&name), hint(&name, known.iter().copied())));
            }
            members.insert(name, value);
        }
        Some(Object { node: self.clone(), members })
    }

    /// The members of an object with free keys, in order; a repeated key is a problem.
    pub fn entries(&self) -> Option<Vec<Entry<'d>>> {
        self.expect(Kind::Object, "an object")?;
        let Members(members) = self.decode()?;
        let mut first: HashMap<Rc<str>, Node<'d>> = HashMap::new();
        let mut entries = Vec::new();
        for (key, value) in self.bounded(members) {
            let unnamed = Node::new(self.document, key.get(), self.path.clone());
            let Some(name) = unnamed.string() else {
                continue;
            };
            let name: Rc<str> = name.into();
            let path = self.path.join(Segment::Key(Rc::clone(&name)));
            let key = Node { path: path.clone(), ..unnamed };
            if let Some(earlier) = first.get(&name) {
                let line = earlier.line();
                key.problem(format!("the key {} is already used on line {line}", quoted(&name)));
                continue;
            }
            first.insert(Rc::clone(&name), key.clone());
            entries.push(Entry { name, key, value: Node::new(self.document, value.get(), path) });
        }
        Some(entries)
    }

    /// The items of an array.
    pub fn items(&self) -> Option<Vec<Self>> {
        self.expect(Kind::Array, "an array")?;
        let Items(items) = self.decode()?;
        let node = |(index, item): (usize, &'d RawValue)| {
            Node::new(self.document, item.get(), self.path.join(Segment::Index(index)))
        };
        Some(self.bounded(items).into_iter().enumerate().map(node).collect())
    }

    /// The items of an array, each read by `read`; every item is read even when an earlier one fails.
    pub fn list<T>(&self, mut read: impl FnMut(&Self) -> Option<T>) -> Option<Vec<T>> {
        let items: Vec<Option<T>> = self.items()?.iter().map(&mut read).collect();
        items.into_iter().collect()
    }

    /// Like [`list`](Self::list), of at least one item; `empty` says what is wrong with none.
    pub fn non_empty_list<T>(&self, empty: &str, read: impl FnMut(&Self) -> Option<T>) -> Option<Vec<T>> {
        let list = self.list(read)?;
        if list.is_empty() && self.items()?.is_empty() {
            self.problem(empty);
            return None;
        }
        Some(list)
    }

    /// A string, without NUL.
    pub fn string(&self) -> Option<String> {
        self.expect(Kind::String, "a string")?;
        let string: String = self.decode()?;
        if string.contains('\0') {
            self.problem("holds a NUL character");
            return None;
        }
        Some(string)
    }

    /// A string that `parse` understands; its error is the problem's message.
    pub fn parsed<T, E: fmt::Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let string = self.string()?;
        parse(&string).map_err(|error| self.problem(error.to_string())).ok()
    }

    /// One word of a closed set, and what it stands for.
    pub fn word<T: Clone>(&self, words: &[(&str, T)]) -> Option<T> {
        let string = self.string()?;
        let found = words.iter().find(|(word, _)| *word == string).map(|(_, meaning)| meaning.clone());
        if found.is_none() {
            let known: Vec<String> = words.iter().map(|(word, _)| quoted(word)).collect();
            self.problem(format!("expected {}, found {}", known.join(" or "), quoted(&string)));
        }
        found
    }

    /// An instant written as RFC 3339 says.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.parsed(crate::schedule::parse_timestamp)
    }

    /// `true` or `false`.
    pub fn bool(&self) -> Option<bool> {
        self.expect(Kind::Bool, "true or false")?;
        Some(self.text == "true")
    }

    /// A whole number within `range`.
    pub fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = self.text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() || self.kind() != Kind::Number {
            let bounds = match (*range.start(), *range.end()) {
                (0, u64::MAX) => String::new(),
                (from, to) => format!(" from {from} to {to}"),
            };
            self.problem(format!("expected a whole number{bounds}, found {}", self.found()));
            return None;
        }
        number
    }

    /// A boolean, number or string, as posture facts are.
    pub fn scalar(&self) -> Option<serde_json::Value> {
        match self.kind() {
            Kind::String => self.string().map(serde_json::Value::String),
            Kind::Bool | Kind::Number => self.decode(),
            Kind::Object | Kind::Array | Kind::Null => {
                self.problem(format!("expected true, false, a number or a string, found {}", self.found()));
                None
            }
        }
    }

    fn expect(&self, kind: Kind, expected: &str) -> Option<()> {
        if self.kind() == kind {
            return Some(());
        }
        self.problem(format!("expected {expected}, found {}", self.found()));
        None
    }

    fn found(&self) -> String {
        match self.kind() {
            Kind::Object => "an object".to_owned(),
            Kind::Array => "an array".to_owned(),
            Kind::String => "a string".to_owned(),
            Kind::Null => "null".to_owned(),
            Kind::Bool | Kind::Number => self.text.chars().take(40).collect(),
        }
    }

    /// The syntax is known to be good, so this fails only on what serde_json skips over unread, such as a lone surrogate.
    fn decode<T: serde::Deserialize<'d>>(&self) -> Option<T> {
        serde_json::from_str(self.text).map_err(|error| self.problem(level::message(&error))).ok()
    }

    fn bounded<T>(&self, level: Bounded<T>) -> Vec<T> {
        if level.overflow {
            self.problem(format!("more than {MAX_ENTRIES} entries"));
        }
        level.entries
    }
}
