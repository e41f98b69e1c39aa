//! Sequence numbers of TCP, which go round: RFC 9293 section 3.4.

/// Sequence numbers `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Range {
    pub(crate) fn len(self) -> usize {
        self.end.wrapping_sub(self.start) as usize
    }

    /// What both have.
    pub(crate) fn common(self, other: Self) -> Option<Self> {
        let start = if before(self.start, other.start) { other.start } else { self.start };
        let end = if before(self.end, other.end) { self.end } else { other.end };
        before(start, end).then_some(Self { start, end })
    }
}

/// Whether `a` is before `b`, RFC 9293 section 3.4.
pub(crate) fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}
