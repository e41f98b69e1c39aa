//! A set of rule numbers that can be asked for 64 of them at once.

use std::sync::Arc;

/// How many rules a word tells apart, as a power of two, and how many a page of as many words.
pub(super) const WORD: u32 = 6;
pub(super) const PAGE: u32 = 2 * WORD;

/// A set of rule numbers: pages for 4,096 rules each. Clones share what does not fit into the set itself.
#[derive(Debug, Clone)]
pub(super) struct Set {
    /// The number of its first page.
    lowest: u32,
    pages: Pages,
}

#[derive(Debug, Clone)]
enum Pages {
    One(Page),
    Run(Arc<[Page]>),
}

/// A part of a set: which of 64 words are not zero, and the words.
#[derive(Debug, Clone)]
pub(super) struct Page {
    present: u64,
    words: Words,
}

#[derive(Debug, Clone)]
enum Words {
    One(u64),
    /// Those that are not zero.
    Packed(Arc<[u64]>),
    All(Arc<[u64; 64]>),
}

impl Set {
    /// The set of ascending numbers.
    pub(super) fn new(rules: &[u32]) -> Self {
        let lowest = rules.first().map_or(0, |rule| rule >> PAGE);
        let mut pages = Vec::new();
        for rules in rules.chunk_by(|a, b| a >> PAGE == b >> PAGE) {
            let number = rules.first().map_or(0, |rule| rule >> PAGE);
            pages.resize((number - lowest) as usize, Page::new(&[]));
            pages.push(Page::new(rules));
        }
        let pages = match pages.pop() {
            Some(page) if pages.is_empty() => Pages::One(page),
            last => Pages::Run(pages.into_iter().chain(last).collect()),
        };
        Self { lowest, pages }
    }

    /// The page of a number; `None` when nothing in it is in the set.
    pub(super) fn page(&self, number: u32) -> Option<&Page> {
        let step = number.wrapping_sub(self.lowest);
        match &self.pages {
            Pages::One(page) => (step == 0).then_some(page),
            Pages::Run(pages) => pages.get(step as usize),
        }
    }
}

impl Page {
    fn new(rules: &[u32]) -> Self {
        /// From so many words on, finding a word at once is worth the room of those that are zero.
        const MANY: u32 = u64::BITS / 4;
        let mut all = [0; 64];
        let mut present = 0;
        for rule in rules {
            let number = rule >> WORD;
            present |= bit(number);
            if let Some(word) = all.get_mut((number % u64::BITS) as usize) {
                *word |= bit(*rule);
            }
        }
        let kept = all.iter().copied().filter(|word| *word != 0);
        let words = match present.count_ones() {
            0 | 1 => Words::One(kept.sum()),
            MANY.. => Words::All(Arc::new(all)),
            _ => Words::Packed(kept.collect()),
        };
        Self { present, words }
    }

    /// Which words are not zero.
    pub(super) fn present(&self) -> u64 {
        self.present
    }

    /// The word of a number from 0 to 63.
    pub(super) fn word(&self, number: u32) -> u64 {
        match &self.words {
            Words::All(words) => words.get((number % u64::BITS) as usize).copied().unwrap_or_default(),
            Words::One(_) | Words::Packed(_) if self.present & bit(number) == 0 => 0,
            Words::One(word) => *word,
            Words::Packed(words) => {
                let before = (self.present & (bit(number) - 1)).count_ones();
                words.get(before as usize).copied().unwrap_or_default()
            }
        }
    }
}

/// The bit that stands for a rule in its word, or for a word in its page.
fn bit(number: u32) -> u64 {
    1 << (number % u64::BITS)
}
