//! What is wrong with a document, and where.

use std::fmt;

use serde::Serialize;

/// A place in a JSON document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// JSON path such as `rules[3].to[0]`; `$` is the whole document.
    pub path: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.path)
    }
}

/// One mistake in a document. Ordered by place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// What is wrong, in one line.
    pub message: String,
}

impl Problem {
    /// The problem as one line that begins with `file`, as compilers write it: `policy.json:12:7: rules[3].to[0]: …`.
    pub fn in_file<'a, F: fmt::Display + 'a>(&'a self, file: F) -> impl fmt::Display + 'a {
        InFile { file, problem: self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for Problem {}

struct InFile<'a, F> {
    file: F,
    problem: &'a Problem,
}

impl<F: fmt::Display> fmt::Display for InFile<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.problem)
    }
}

/// `text` in quotes, escaped as JSON and cut to a length that fits in a line.
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    serde_json::Value::String(shown).to_string()
}

/// The name among `known` that `name` was probably meant to be.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Beyond this the search costs more than the hint is worth.
    const CONSIDERED: usize = 2_000;
    const LONGEST: usize = 128;
    if name.len() > LONGEST {
        return None;
    }
    let allowed = if name.chars().count() < 3 { 1 } else { 2 };
    known
        .into_iter()
        .take(CONSIDERED)
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= allowed * 4 && candidate.len() <= LONGEST)
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean …?` when something in `known` is near `name`, else nothing.
pub fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map(|near| format!("; did you mean {}?", quoted(near))).unwrap_or_default()
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut next = Vec::with_capacity(row.len());
        next.push(left);
        for (pair, to) in row.windows(2).zip(&b) {
            let &[diagonal, above] = pair else { continue };
            left = (diagonal + usize::from(from != *to)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_near_or_absent() {
        let known = ["rules", "resources", "version"];
        assert_eq!(nearest("rule", known), Some("rules"));
        assert_eq!(nearest("resorces", known), Some("resources"));
        assert_eq!(nearest("banana", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn long_text_is_cut_and_controls_are_escaped() {
        assert_eq!(quoted("a\n\"b"), r#""a\n\"b""#);
        assert!(quoted(&"x".repeat(10_000)).chars().count() < 100);
    }
}
