//! Which association of a device was used last, so that the one not used for longest can make way.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

/// The associations of each device in one shard, in the order of an instant at which they were in use for certain.
///
/// A packet does not move an association: its own time tells when it was last used. The one that seems oldest is asked,
/// and put in its right place if it was used since; so a move is paid for by a packet that came before.
#[derive(Debug)]
pub(super) struct Associations<F> {
    devices: HashMap<Arc<str>, BTreeSet<(Instant, F)>>,
}

impl<F> Default for Associations<F> {
    fn default() -> Self {
        Self { devices: HashMap::new() }
    }
}

impl<F: Copy + Ord + Hash> Associations<F> {
    /// Enters an association that was in use at `at`.
    pub(super) fn enter(&mut self, device: &Arc<str>, at: Instant, flow: F) {
        self.devices.entry(Arc::clone(device)).or_default().insert((at, flow));
    }

    /// How many associations a device has here.
    pub(super) fn count(&self, device: &str) -> usize {
        self.devices.get(device).map_or(0, BTreeSet::len)
    }

    /// Forgets the entry of an association.
    pub(super) fn forget(&mut self, device: &str, at: Instant, flow: F) {
        let Some(entries) = self.devices.get_mut(device) else { return };
        entries.remove(&(at, flow));
        if entries.is_empty() {
            self.devices.remove(device);
        }
    }

    /// The association of `device` that was not used for longest. `used` tells when one was last used and notes the
    /// time of its new entry.
    pub(super) fn oldest(&mut self, device: &str, mut used: impl FnMut(F) -> Option<Instant>) -> Option<F> {
        let entries = self.devices.get_mut(device)?;
        loop {
            let &(at, flow) = entries.first()?;
            match used(flow) {
                Some(used) if used > at => {
                    entries.pop_first();
                    entries.insert((used, flow));
                }
                _ => return Some(flow),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_oldest_is_the_one_not_used_for_longest(
            steps in proptest::collection::vec((0u8..4, 0usize..20), 1..400),
        ) {
            let device: Arc<str> = "ann".into();
            let mut now = Instant::now();
            let mut associations = Associations::default();
            // What the flows know: last used, and entered at.
            let mut flows: HashMap<usize, (Instant, Instant)> = HashMap::new();
            for (step, flow) in steps {
                now += Duration::from_millis(1);
                match (step, flows.get_mut(&flow)) {
                    (0, None) => {
                        flows.insert(flow, (now, now));
                        associations.enter(&device, now, flow);
                    }
                    (0 | 1, Some((used, _))) => *used = now,
                    (2, Some((_, listed))) => {
                        associations.forget(&device, *listed, flow);
                        flows.remove(&flow);
                    }
                    (3, _) => {
                        let expected = flows.iter().min_by_key(|(_, (used, _))| *used).map(|(flow, _)| *flow);
                        let oldest = associations.oldest(&device, |flow| {
                            let (used, listed) = flows.get_mut(&flow)?;
                            *listed = *used;
                            Some(*used)
                        });
                        prop_assert_eq!(oldest, expected);
                    }
                    _ => {}
                }
                prop_assert_eq!(associations.count(&device), flows.len());
                prop_assert_eq!(associations.devices.is_empty(), flows.is_empty());
            }
        }
    }
}
