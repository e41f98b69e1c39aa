//! Whose turn it is: labs share the machine, heavy ones have it alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Labs that may run side by side.
const PLACES: usize = 2;

#[derive(Debug)]
struct Queue {
    next_ticket: u64,
    serving: u64,
    taken: usize,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { next_ticket: 0, serving: 0, taken: 0 });
static CHANGED: Condvar = Condvar::new();

/// A share of the machine, given back when dropped.
#[derive(Debug)]
pub struct Turn {
    places: usize,
}

impl Turn {
    /// Waits for one of two places.
    pub fn shared() -> Self {
        Self::take(1)
    }

    /// Waits until nothing else runs.
    pub fn alone() -> Self {
        Self::take(PLACES)
    }

    /// First come, first served: a heavy test is never overtaken for ever by light ones.
    fn take(places: usize) -> Self {
        let mut queue = lock();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        while queue.serving != ticket || queue.taken + places > PLACES {
            queue = CHANGED.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.serving += 1;
        queue.taken += places;
        CHANGED.notify_all();
        Self { places }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock().taken -= self.places;
        CHANGED.notify_all();
    }
}

fn lock() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}
