//! Small random changes, the same in every run.

/// A generator of numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// Changes `data` in one to four places; `other` is where pieces come from.
pub fn mutate(data: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        match random.below(8) {
            0 => data.truncate(at),
            1 => data.insert(at, random.byte()),
            2 if at < data.len() => drop(data.remove(at)),
            3 => {
                let from = random.below(other.len() + 1);
                let len = random.below(other.len() - from + 1).min(64);
                data.splice(at..at, other[from..from + len].iter().copied());
            }
            4 => {
                let len = random.below(data.len() - at + 1).min(64);
                let piece = data[at..at + len].to_vec();
                let to = random.below(data.len() + 1);
                data.splice(to..to, piece);
            }
            5 if at < data.len() => data[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'0'][random.below(8)],
            _ if at < data.len() => data[at] ^= 1 << random.below(8),
            _ => data.push(random.byte()),
        }
    }
}
