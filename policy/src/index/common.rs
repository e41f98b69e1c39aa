//! The rule numbers that several unions of sets have in common.

use arrayvec::ArrayVec;

use super::set::{PAGE, Page, Set, WORD};

/// The union of up to `N` sets; of more, everything.
#[derive(Debug, Default)]
pub(super) struct Union<'s, const N: usize> {
    sets: ArrayVec<&'s Set, N>,
    /// What the sets have of the page that is open.
    open: ArrayVec<&'s Page, N>,
    /// All ones when there are more sets than `N`.
    floor: u64,
}

impl<'s, const N: usize> Union<'s, N> {
    pub(super) fn add(&mut self, set: &'s Set) {
        if self.sets.try_push(set).is_err() {
            self.floor = u64::MAX;
        }
    }

    /// Opens a page and says which of its words may not be zero.
    fn open(&mut self, number: u32) -> u64 {
        self.open.clear();
        let mut present = self.floor;
        for page in self.sets.iter().filter_map(|set| set.page(number)) {
            present |= page.present();
            self.open.push(page);
        }
        present
    }

    fn word(&self, number: u32) -> u64 {
        self.open.iter().fold(self.floor, |word, page| word | page.word(number))
    }
}

/// The numbers that three unions have in common.
#[derive(Debug, Default)]
pub(super) struct Common<'s, const A: usize, const B: usize, const C: usize>(
    pub(super) Union<'s, A>,
    pub(super) Union<'s, B>,
    pub(super) Union<'s, C>,
);

impl<const A: usize, const B: usize, const C: usize> Common<'_, A, B, C> {
    /// Calls `found` with the numbers below `rules` (or a little beyond), ascending, until it returns something.
    pub(super) fn find<T>(&mut self, rules: u32, mut found: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let Self(a, b, c) = self;
        for page in 0..=rules >> PAGE {
            let mut words = a.open(page);
            if words != 0 {
                words &= b.open(page);
            }
            if words != 0 {
                words &= c.open(page);
            }
            for word in ones(words) {
                let mut rules = a.word(word);
                if rules != 0 {
                    rules &= b.word(word);
                }
                if rules != 0 {
                    rules &= c.word(word);
                }
                for rule in ones(rules) {
                    let decided = found(page << PAGE | word << WORD | rule);
                    if decided.is_some() {
                        return decided;
                    }
                }
            }
        }
        None
    }
}

/// The positions of the ones, ascending.
fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let lowest = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (lowest < u64::BITS).then_some(lowest)
    })
}
