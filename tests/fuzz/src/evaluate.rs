//! Policies and questions made of bytes: the index and a naive reading of the same document give the same answer.

use portcullis_policy::{Identity, Request};

use crate::input::Input;
use crate::policies::{MOST, address, compile, identity, instant, policy, service};

// The reference of the property tests, which shares nothing with the crate it judges.
#[path = "../../../policy/tests/reference/reading.rs"]
mod reading;

use reading::{Answer, reference};

/// Compiles a policy and asks it, and compares every answer with the reference.
pub fn evaluate(data: &[u8]) {
    let _rules_matched = try_evaluate(data);
}

/// How many answers some rule decided.
fn try_evaluate(data: &[u8]) -> usize {
    let mut input = Input(data);
    let policy = policy(&mut input);
    let ruleset = compile(&policy);
    let mut decided = 0;
    for _ in 0..1 + input.byte() % MOST {
        let identity = identity(&mut input);
        let groups = ruleset.groups_of(&identity.user, &identity.groups);
        let effective = Identity { groups, ..identity.clone() };
        let (source, destination, service) = (address(&mut input), address(&mut input), service(&mut input));
        let asked = Request { identity: &effective, source, destination, service };
        let now = instant(&mut input);
        let verdict = ruleset.evaluate(&asked, now);
        decided += usize::from(verdict.rule().is_some());
        let expected = reference(&policy, &Request { identity: &identity, ..asked }, now);
        assert_eq!(Answer::from(verdict), expected, "{asked:?} at {now}\n{policy}");
    }
    decided
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policies::seeds;

    #[test]
    fn seeds_ask_what_rules_decide() {
        seeds::are_in_corpus("evaluate");
        let decided: usize = (1..=6).map(|number| try_evaluate(&seeds::seed(number))).sum();
        assert!(decided > 10, "{decided} answers were some rule's");
    }
}
