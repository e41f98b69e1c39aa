//! The policy engine of Portcullis: documents in, verdicts out. It has no clock and does no IO; both are arguments.
//!
//! ```text
//!  policy.json ──> json ──────────> compile ─────────> Ruleset ──────────> Verdict
//!  (bytes)         Document, Node   names resolved,    immutable, shared   Permit or Denial,
//!                  every problem    selectors made     by every shard      rule, revision, until
//!                  with its place   into sets, tests   evaluate, explain
//!                                   of the file run
//!  directory ─────> Context (the names that exist) ─┘       └─ Request (Identity, source, destination, Service), now
//! ```
//!
//! - [`json`] reads documents strictly: serde_json parses, and every key and value keeps its place, so that all problems of a
//!   document are reported at once with JSON path, line and column. [`address`] and [`schedule`] read what strings mean; each
//!   thing has one spelling. The gateway reads `directory.json` with the same modules.
//! - [`Ruleset::compile`] resolves every name against the [`Context`] and makes selectors into sorted sets that answer without
//!   allocating. A document with any problem, a failing test of its own included, makes no ruleset.
//! - An index of the compiled rules (`index`) says in some tenths of a microsecond which of 10,000 rules may match; only these
//!   are asked. It narrows and never decides, so a rule's own selectors have the last word.
//! - [`Ruleset::evaluate`] asks the rules in order; the first that matches decides, and none is a denial. A rule's selectors are
//!   asked before its clock, so an answer also says until when it holds ([`Verdict::until`]): the first instant at which the
//!   clock, or the end of a report about the device, could change what any rule asked so far says. Until then the same question has the same answer, and a flow needs to
//!   be judged again only then or when the policy or directory changes.
//! - [`Ruleset::explain`] asks every rule up to the deciding one, without the index, and says what each would have needed.
//! - What is good and yet surely not meant, such as a rule that earlier ones leave nothing, is a warning (`lint`,
//!   [`Ruleset::warnings`]).
//! - [`Ruleset::difference`] says exactly what another ruleset would open and close ([`plan`]).
//! - A [`Permit`] can be made only here, and the gateway dials nothing without one.
//!
//! # What selectors mean
//!
//! - `from`: any one entry selects; `not_from`: none may. Posture names in `when.posture` must all hold.
//! - A group of the policy (`groups`) has users and groups as members, and those of a group are its own too, however deep; a cycle
//!   is refused. Where the directory has a group of the same name, it is one group with the members of both: what the policy
//!   adds can never take somebody out. Rules, tests, explanations and the flow log see all groups of a user alike.
//! - `to`: a prefix holds every service, a resource only its own; the rule's `services` narrow both. In `not_to` a resource
//!   likewise stands for its addresses with its services.
//! - `rewrite` is the target of a rule's flows instead of the destination that the rule was asked about; no rule is asked about
//!   the target.
//! - `days` and `hours` follow the clock on the wall in `zone`; a window past midnight belongs to the day on which it begins.
//!   `not_before` is included, `not_after` is not.
//! - A posture fact is met by an equal boolean, number or string; a string that begins with `<`, `<=`, `==`, `>=` or `>` compares
//!   versions (numbers with dots between, a missing part being 0); a list is met by any of its entries. A fact that is missing or
//!   of another kind meets nothing. Facts stand in the directory or are reported, a report perhaps for some time only
//!   ([`Facts`]); tests of a policy know only those that stand, so that a load does not hang on what was reported.
#![forbid(unsafe_code)]

pub mod address;
mod compile;
mod explain;
mod facts;
mod groups;
pub mod identity;
mod index;
pub mod json;
mod lint;
pub mod plan;
mod posture;
mod request;
mod rewrite;
mod rule;
mod ruleset;
pub mod schedule;
mod set;
mod verdict;

pub use compile::{Context, KnownDevice, KnownUser};
pub use explain::{Explanation, Outcome, Step};
pub use facts::{Facts, Report};
pub use identity::{DEFAULT_NETWORK, Identity};
pub use request::{DestinationError, Request, Service, parse_destination};
pub use rule::{Action, Selector};
pub use ruleset::{RuleSummary, Ruleset};
pub use verdict::{Denial, Permit, Revision, Verdict};
