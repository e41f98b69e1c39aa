//! A strict JSON reader that knows where everything is.
//!
//! serde_json parses; this module asks it for one level at a time, as borrowed [`RawValue`]s, so that repeated keys are seen
//! and the place of every key and value is known from its address in the text. A reader walks the [`Node`]s it expects;
//! whatever does not fit is noted as a [`Problem`] in the [`Document`] and reading goes on, so that one pass finds everything:
//!
//! ```
//! use portcullis_policy::json::Document;
//!
//! let document = Document::parse(br#"{ "port": 70000, "nmae": "a" }"#)?;
//! let read = || {
//!     let object = document.root().object(&["port", "name"])?;
//!     let port = object.required("port").and_then(|node| node.integer(1..=65_535));
//!     let name = object.optional("name").and_then(|node| node.string());
//!     Some((port?, name))
//! };
//! let problems = document.finish(read()).unwrap_err();
//! assert_eq!(problems[0].in_file("f.json").to_string(), "f.json:1:11: port: expected a whole number from 1 to 65535, found 70000");
//! assert_eq!(problems[1].in_file("f.json").to_string(), "f.json:1:18: nmae: unknown key \"nmae\"; did you mean \"name\"?");
//! # Ok::<(), Vec<portcullis_policy::json::Problem>>(())
//! ```
//!
//! [`RawValue`]: serde_json::value::RawValue

mod level;
mod node;
mod problem;

use std::cell::{OnceCell, RefCell};

use node::Path;
pub use node::{Entry, Kind, Node, Object};
pub use problem::{Place, Problem, hint, nearest, quoted};

/// The longest document that is read, in bytes.
pub const MAX_BYTES: usize = 16 << 20;
/// The most entries one object or array may have.
pub const MAX_ENTRIES: usize = 1 << 20;
/// The most problems that are listed for one document; the rest is only counted.
pub const MAX_PROBLEMS: usize = 100;

/// A JSON document whose syntax is good, and the problems found in it so far.
#[derive(Debug)]
pub struct Document<'t> {
    text: &'t str,
    /// Where each line begins; made when the first place is asked for.
    lines: OnceCell<Vec<usize>>,
    problems: RefCell<Problems>,
}

#[derive(Debug, Default)]
struct Problems {
    listed: Vec<Problem>,
    unlisted: usize,
}

impl<'t> Document<'t> {
    /// Checks size, encoding and syntax of the whole text. Memory is bounded by its length, whatever its nesting.
    ///
    /// # Errors
    ///
    /// The one problem that stops any further reading.
    pub fn parse(bytes: &'t [u8]) -> Result<Self, Vec<Problem>> {
        let whole = |line, column, message: String| {
            vec![Problem { place: Place { line, column, path: "$".to_owned() }, message }]
        };
        if bytes.len() > MAX_BYTES {
            return Err(whole(1, 1, format!("{} bytes are more than the {MAX_BYTES} that are read", bytes.len())));
        }
        let (text, broken) = match std::str::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => {
                let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
                (std::str::from_utf8(good).unwrap_or_default(), Some("is not UTF-8"))
            }
        };
        let document = Self { text, lines: OnceCell::new(), problems: RefCell::default() };
        let stop = |offset, message: &str| {
            let (line, column) = document.position(offset);
            Err(whole(line, column, message.to_owned()))
        };
        if let Some(message) = broken {
            return stop(text.len(), message);
        }
        if text.starts_with('\u{feff}') {
            return stop(0, "begins with a byte order mark; save it as plain UTF-8");
        }
        if let Some(offset) = text.find('\0') {
            return stop(offset, "holds a NUL byte");
        }
        if text.trim().is_empty() {
            return stop(0, "is empty");
        }
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
            let offset = document.offset_of(error.line(), error.column());
            return stop(offset, &format!("is not JSON: {}", level::message(&error)));
        }
        Ok(document)
    }

    /// The outermost value.
    pub fn root(&self) -> Node<'_> {
        Node::new(self, self.text.trim_matches([' ', '\t', '\n', '\r']), Path::default())
    }

    /// Whether nothing was found wrong so far.
    pub fn is_good(&self) -> bool {
        let problems = self.problems.borrow();
        problems.listed.is_empty() && problems.unlisted == 0
    }

    /// What was read, when nothing was found wrong.
    ///
    /// # Errors
    ///
    /// Every problem found, in the order of their places.
    pub fn finish<T>(&self, read: Option<T>) -> Result<T, Vec<Problem>> {
        match read {
            Some(read) if self.is_good() => Ok(read),
            read => {
                if read.is_none() && self.is_good() {
                    self.root().problem("cannot be read");
                }
                Err(self.take_problems())
            }
        }
    }

    fn take_problems(&self) -> Vec<Problem> {
        let Problems { mut listed, unlisted } = self.problems.take();
        listed.sort();
        listed.dedup();
        if unlisted > 0 {
            let place = Place { line: 1, column: 1, path: "$".to_owned() };
            listed.push(Problem { place, message: format!("{unlisted} more problems are not listed") });
        }
        listed
    }

    /// Notes a problem at a byte offset. `path` and `message` are made only when there is room.
    fn note(&self, offset: usize, path: &Path, message: impl FnOnce() -> String) {
        if self.problems.borrow().listed.len() >= MAX_PROBLEMS {
            self.problems.borrow_mut().unlisted += 1;
            return;
        }
        let (line, column) = self.position(offset);
        let problem = Problem { place: Place { line, column, path: path.to_string() }, message: message() };
        self.problems.borrow_mut().listed.push(problem);
    }

    fn lines(&self) -> &[usize] {
        self.lines.get_or_init(|| {
            let breaks = self.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
            std::iter::once(0).chain(breaks).collect()
        })
    }

    /// Line of a byte offset, from 1.
    fn line(&self, offset: usize) -> usize {
        self.lines().partition_point(|start| *start <= offset).max(1)
    }

    /// Line and column of a byte offset, both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line(offset);
        let start = self.lines().get(line - 1).copied().unwrap_or_default();
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }

    /// Byte offset of the line and byte column serde_json reports.
    fn offset_of(&self, line: usize, column: usize) -> usize {
        let start = self.lines().get(line.saturating_sub(1)).copied().unwrap_or_default();
        let mut offset = (start + column.saturating_sub(1)).min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    /// Byte offset of `part`, which is borrowed from this document's text.
    fn offset_in_text(&self, part: &str) -> usize {
        (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize)
    }
}

#[cfg(test)]
mod tests;
