//! Which sets belong to the prefixes that hold an address.

use super::set::Set;

/// Ranges of which any two are nested or apart, as prefixes are, each with a set.
#[derive(Debug)]
pub(super) struct Prefixes<T> {
    /// Where each begins, ascending; of those that begin together the widest is first.
    starts: Box<[T]>,
    nodes: Box<[Node<T>]>,
}

#[derive(Debug)]
struct Node<T> {
    /// Included.
    last: T,
    /// The smallest other range that holds this one, as the position after it; 0 when there is none.
    parent: usize,
    set: Set,
}

impl<T: Copy + Ord> Prefixes<T> {
    /// From ranges with inclusive ends, sorted by where they begin, the wider first.
    pub(super) fn new(sorted: impl IntoIterator<Item = (T, T, Set)>) -> Self {
        let (mut starts, mut nodes) = (Vec::new(), Vec::<Node<T>>::new());
        for (start, last, set) in sorted {
            let mut parent = nodes.len();
            while let Some(node) = parent.checked_sub(1).and_then(|before| nodes.get(before)) {
                if last <= node.last {
                    break;
                }
                parent = node.parent;
            }
            starts.push(start);
            nodes.push(Node { last, parent, set });
        }
        Self { starts: starts.into(), nodes: nodes.into() }
    }

    /// The sets of all ranges that hold `value`, the smallest first.
    pub(super) fn at(&self, value: T) -> impl Iterator<Item = &Set> {
        // The last range that begins at or before the value may have ended, but every range that holds the value then
        // holds that one too.
        let mut after = self.starts.partition_point(|start| *start <= value);
        std::iter::from_fn(move || {
            loop {
                let node = self.nodes.get(after.checked_sub(1)?)?;
                after = node.parent;
                if value <= node.last {
                    return Some(&node.set);
                }
            }
        })
    }
}
