//! Which of a connection's bytes really leave.
//!
//! smoltcp goes back to the first unacknowledged byte when it repeats something, and sends everything from there. The
//! gate lets through what was never sent and what [recovery](crate::flow::recovery) wants repeated, and nothing else.

use std::ops::Range as Bytes;

use crate::flow::recovery::Wanted;
use crate::segment::Layout;
use crate::sequence::{Range, before};

/// What of a packet leaves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// All of it.
    Whole,
    /// These parts of its payload; the last of them with the FIN when it is wanted.
    Parts(Vec<Part>),
    /// Nothing but its acknowledgment, from this sequence number.
    Bare(u32),
    /// Nothing.
    Nothing,
}

/// Part of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) payload: Bytes<usize>,
    /// It ends where the segment does.
    pub(crate) last: bool,
}

/// The gate of one connection.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Where the highest segment that left ended.
    frontier: Option<u32>,
    /// What is to leave again.
    pub(crate) wanted: Wanted,
    /// The first unacknowledged byte.
    pub(crate) una: u32,
    /// smoltcp may send keep-alives.
    pub(crate) keep_alive: bool,
    /// The client's window is closed: one byte is only a question.
    pub(crate) shut: bool,
    /// Acknowledgment and window of the last packet that left.
    told: Option<(u32, u16)>,
    /// What the windows that smoltcp tells are shifted by.
    window_shift: u32,
    /// Where the window ends that smoltcp told last.
    edge: Option<u32>,
    /// smoltcp went back since somebody looked.
    pub(crate) went_back: bool,
    /// smoltcp sent a keep-alive since somebody looked: it does that only while no retransmission is timed.
    pub(crate) kept_alive: bool,
}

impl Gate {
    /// Of a connection whose windows are told shifted by `window_shift`.
    pub(crate) fn new(window_shift: u32) -> Self {
        Self { window_shift, ..Self::default() }
    }

    /// Where the highest segment that left ended.
    pub(crate) fn frontier(&self) -> Option<u32> {
        self.frontier
    }

    /// Where the window ends that smoltcp told last.
    pub(crate) fn edge(&self) -> Option<u32> {
        self.edge
    }

    /// Decides about a packet that smoltcp made.
    pub(crate) fn admit(&mut self, packet: &[u8], layout: Layout) -> Passage {
        let Some(header) = layout.header(packet) else { return Passage::Whole };
        if !header.rst {
            // A reset tells no window.
            self.edge = Some(header.acknowledgment.wrapping_add(u32::from(header.window) << self.window_shift));
        }
        let told = Some((header.acknowledgment, header.window));
        if header.syn || header.rst {
            return Passage::Whole;
        }
        let payload = packet.len() - layout.payload;
        let length = u32::try_from(payload).unwrap_or(u32::MAX).wrapping_add(u32::from(header.fin));
        let segment = Range { start: header.sequence, end: header.sequence.wrapping_add(length) };
        let passage = match self.frontier {
            _ if length == 0 => self.bare(segment.start),
            Some(frontier) if before(segment.start, frontier) => self.again(segment, frontier, payload),
            _ => {
                if !self.shut {
                    self.frontier = Some(segment.end);
                }
                Passage::Whole
            }
        };
        match passage {
            // What it had to tell must not be lost with it.
            Passage::Nothing if self.told != told => {
                self.told = told;
                self.bare(segment.start)
            }
            Passage::Nothing => Passage::Nothing,
            Passage::Whole | Passage::Parts(_) | Passage::Bare(_) => {
                self.told = told;
                passage
            }
        }
    }

    /// An acknowledgment begins where the next new byte will: the client ignores one from before.
    fn bare(&self, sequence: u32) -> Passage {
        match self.frontier {
            Some(frontier) if before(sequence, frontier) => Passage::Bare(frontier),
            _ => Passage::Whole,
        }
    }

    /// A segment of which something has left before.
    fn again(&mut self, segment: Range, frontier: u32, payload: usize) -> Passage {
        let mut parts = Vec::new();
        let wanted = std::mem::take(&mut self.wanted);
        let new = Range { start: frontier, end: segment.end };
        let new = (!self.shut && before(frontier, segment.end)).then_some(new);
        for range in wanted.iter().copied().chain(new) {
            if let Some(range) = range.common(segment) {
                let at = |sequence: u32| (sequence.wrapping_sub(segment.start) as usize).min(payload);
                let last = range.end == segment.end;
                parts.push(Part { payload: at(range.start)..at(range.end), last });
            }
        }
        if parts.is_empty() && payload == 1 && self.shut && segment.start == self.una {
            self.wanted = wanted;
            return Passage::Whole;
        }
        if parts.is_empty() && payload == 1 && self.keep_alive && [frontier, self.una].contains(&segment.end) {
            self.wanted = wanted;
            self.kept_alive = true;
            // smoltcp's keep-alive is a byte of nothing where a real one stands: without it, from before everything
            // that is not acknowledged, it is as good a question (RFC 9293 section 3.8.4) and does no harm.
            return Passage::Bare(self.una.wrapping_sub(1));
        }
        self.went_back = true;
        if let Some(new) = new {
            self.frontier = Some(new.end);
        }
        // What smoltcp has gone past it will not send unless it goes back once more.
        self.wanted = wanted.into_iter().filter(|range| before(segment.end, range.end)).collect();
        if parts.is_empty() { Passage::Nothing } else { Passage::Parts(parts) }
    }
}

#[cfg(test)]
mod tests;
