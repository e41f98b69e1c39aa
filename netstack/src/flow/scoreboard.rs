//! What the client has, of what it has not acknowledged: selective acknowledgments, RFC 2018 and RFC 6675.

use arrayvec::ArrayVec;

use crate::sequence::{Range, before};

/// Most separate runs that are remembered. A client tells at most four at a time; what is forgotten is sent again.
const RUNS: usize = 64;
/// Segments' worth of bytes that must have arrived behind a hole for it to be a loss and not a delay, `DupThresh` of
/// RFC 6675.
const BEHIND: usize = 3;

/// Runs that arrived behind a hole, in order, none touching another.
#[derive(Debug, Default)]
pub(super) struct Scoreboard {
    runs: ArrayVec<Range, RUNS>,
}

impl Scoreboard {
    /// Bytes that arrived.
    pub(super) fn bytes(&self) -> usize {
        self.runs.iter().map(|run| run.len()).sum()
    }

    /// Everything before `una` is acknowledged.
    pub(super) fn acknowledge(&mut self, una: u32) {
        self.runs.retain(|run| before(una, run.end));
        if let Some(first) = self.runs.first_mut()
            && before(first.start, una)
        {
            first.start = una;
        }
    }

    /// Whether the client has what comes next to `una`, which it acknowledges all the same as if it had not.
    pub(super) fn begins_at(&self, una: u32) -> bool {
        self.runs.first().is_some_and(|first| first.start == una)
    }

    /// The client has `run`.
    pub(super) fn add(&mut self, mut run: Range) {
        let mut at = 0;
        let mut index = 0;
        while let Some(&known) = self.runs.get(index) {
            if before(known.end, run.start) {
                index += 1;
                at = index;
            } else if before(run.end, known.start) {
                break;
            } else {
                run.start = if before(known.start, run.start) { known.start } else { run.start };
                run.end = if before(run.end, known.end) { known.end } else { run.end };
                self.runs.remove(index);
            }
        }
        // Too many: what is forgotten is sent once more than it must be.
        let _ = self.runs.try_insert(at, run);
    }

    /// Before which every hole is a loss, RFC 6675 `IsLost`: enough has arrived behind it.
    pub(super) fn lost_before(&self, mss: usize) -> Option<u32> {
        let mut arrived = 0;
        for (count, run) in self.runs.iter().rev().enumerate() {
            arrived += run.len();
            if arrived >= BEHIND * mss || count + 1 >= BEHIND {
                return Some(run.start);
            }
        }
        None
    }

    /// The holes of `within`, in order.
    pub(super) fn holes(&self, within: Range) -> impl Iterator<Item = Range> + '_ {
        let mut start = within.start;
        let runs = self.runs.iter().map(Some).chain(std::iter::once(None));
        runs.filter_map(move |run| {
            let hole = Range { start, end: run.map_or(within.end, |run| run.start) };
            start = run.map_or(within.end, |run| run.end);
            hole.common(within)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: u32 = u32::MAX - 50;

    fn range(start: u32, end: u32) -> Range {
        Range { start: BASE.wrapping_add(start), end: BASE.wrapping_add(end) }
    }

    proptest! {
        /// Against one flag a byte.
        #[test]
        fn it_knows_every_byte(
            runs in proptest::collection::vec((0u32..100, 1u32..20), 0..30), una in 0u32..60, from in 0u32..60, len in 1u32..60,
        ) {
            let mut board = Scoreboard::default();
            let mut flags = [false; 120];
            for (start, len) in runs {
                board.add(range(start, start + len));
                flags[start as usize..(start + len) as usize].fill(true);
            }
            board.acknowledge(BASE.wrapping_add(una));
            flags[..una as usize].fill(false);
            prop_assert_eq!(board.bytes(), flags.iter().filter(|flag| **flag).count());
            let from = from.max(una);
            let to = (from + len).min(120);
            let mut missing = [false; 120];
            for hole in board.holes(range(from, to)) {
                let start = hole.start.wrapping_sub(BASE) as usize;
                missing[start..start + hole.len()].fill(true);
            }
            for at in from..to {
                prop_assert_eq!(missing[at as usize], !flags[at as usize], "byte {}", at);
            }
        }
    }

    #[test]
    fn a_hole_is_lost_when_three_segments_arrived_behind_it() {
        let mut board = Scoreboard::default();
        board.add(range(10, 30));
        assert_eq!(board.lost_before(10), None);
        board.add(range(40, 50));
        assert_eq!(board.lost_before(10), Some(range(10, 0).start), "the hole between the two is not");
        board.add(range(30, 40));
        assert_eq!(board.lost_before(10), Some(range(10, 0).start));
        board.add(range(60, 90));
        assert_eq!(board.lost_before(10), Some(range(60, 0).start));
    }

    #[test]
    fn it_is_bounded() {
        let mut board = Scoreboard::default();
        for index in 0..1000 {
            board.add(range(index * 2, index * 2 + 1));
        }
        assert_eq!(board.bytes(), RUNS);
    }
}
