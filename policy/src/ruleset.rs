//! The compiled policy.

use jiff::Timestamp;

use crate::{Denial, Request, Revision, Verdict};

/// A compiled, immutable policy.
#[derive(Debug)]
pub struct Ruleset {
    revision: Revision,
}

impl Ruleset {
    /// The revision it was compiled as.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The verdict on `request` at `now`: the first rule that matches decides, none is a denial.
    pub fn evaluate(&self, request: &Request<'_>, now: Timestamp) -> Verdict {
        let _ = (request, now);
        Verdict::Deny(Denial {
            rule: None,
            revision: self.revision,
            silent: false,
        })
    }
}
