//! The flows that were refused last, for whoever asks why.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::flow_record::FlowRecord;

/// How many refusals are kept in all.
pub const KEPT: usize = 8_192;
/// How many of one device: one that tries every port pushes out nobody else's.
pub const KEPT_OF_DEVICE: usize = 128;

/// The last refusals. The flow log has all of them.
#[derive(Debug, Default)]
pub struct Denied(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    /// By the order they came in.
    records: BTreeMap<u64, FlowRecord>,
    /// Those of each device, oldest first.
    of_device: HashMap<Arc<str>, VecDeque<u64>>,
    next: u64,
}

impl Denied {
    /// Keeps a record, when it is one of a flow that was not admitted.
    pub fn note(&self, record: &FlowRecord) {
        if record.allowed {
            return;
        }
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = ring.next;
        ring.next += 1;
        let own = ring.of_device.entry(Arc::clone(&record.device)).or_default();
        own.push_back(number);
        let oldest = (own.len() > KEPT_OF_DEVICE).then(|| own.pop_front()).flatten();
        if let Some(oldest) = oldest {
            ring.records.remove(&oldest);
        }
        ring.records.insert(number, record.clone());
        if ring.records.len() > KEPT {
            ring.forget_oldest();
        }
    }

    /// Those that `fits` says, oldest first.
    pub fn list(&self, fits: impl Fn(&FlowRecord) -> bool) -> Vec<FlowRecord> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.records.values().filter(|record| fits(record)).cloned().collect()
    }
}

impl Ring {
    fn forget_oldest(&mut self) {
        let Some((_, oldest)) = self.records.pop_first() else { return };
        let Some(own) = self.of_device.get_mut(&oldest.device) else { return };
        own.pop_front();
        if own.is_empty() {
            self.of_device.remove(&oldest.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow_record::tests::record;

    fn refused(id: u64, device: &str) -> FlowRecord {
        FlowRecord { allowed: false, device: device.into(), ..record(id) }
    }

    #[test]
    fn a_device_that_tries_everything_pushes_out_nobody_else() {
        let denied = Denied::default();
        denied.note(&refused(1, "quiet"));
        denied.note(&record(2));
        for id in 3..70_000 {
            denied.note(&refused(id, "scanner"));
        }
        denied.note(&refused(70_000, "quiet"));
        let ids = |fits: &dyn Fn(&FlowRecord) -> bool| -> Vec<u64> {
            denied.list(|record| fits(record)).iter().map(|record| record.id).collect()
        };
        assert_eq!(ids(&|record| &*record.device == "quiet"), [1, 70_000]);
        assert_eq!(ids(&|record| &*record.device == "scanner"), (69_872..70_000).collect::<Vec<_>>());
        assert_eq!(ids(&|_| true).len(), KEPT_OF_DEVICE + 2, "an admitted one is none");
    }

    #[test]
    fn the_oldest_of_all_go_first_and_leave_nothing() {
        let denied = Denied::default();
        let count = 2 * KEPT as u64;
        for id in 0..count {
            denied.note(&refused(id, &format!("device {id}")));
        }
        let kept = denied.list(|_| true);
        assert_eq!((kept.len(), kept[0].id, kept[KEPT - 1].id), (KEPT, count - KEPT as u64, count - 1));
        let ring = denied.0.lock().unwrap();
        assert_eq!(ring.of_device.len(), KEPT);
    }
}
