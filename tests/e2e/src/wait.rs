//! Waiting for something to become true, with an end.

use std::io;
use std::time::{Duration, Instant};

/// How often a condition that sends no event is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long most things may take on a busy machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks at `condition` until it gives a value.
///
/// # Panics
///
/// After [`PATIENCE`], naming `what`.
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, condition)
}

/// Looks at `condition` until it gives a value, for `patience` at most.
///
/// # Panics
///
/// When the time is over, naming `what`.
pub fn until_within<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        std::thread::sleep(INTERVAL);
    }
}

/// Makes a system call again that was interrupted: a machine that is stopped for a moment does that to every call with
/// a timeout.
///
/// # Errors
///
/// Any other error of the call.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
