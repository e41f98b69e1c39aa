//! One gateway a state directory: the database has one writer.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::files;
use crate::host::holder::{self, Holder};

/// Name of the lock in the state directory.
const FILE: &str = "lock";
/// Bytes of a process id.
const PID: u64 = 20;

/// Another gateway has the state directory.
#[derive(Debug, thiserror::Error)]
#[error("another gateway has the state directory {}: {}; stop it, or set another state_dir", .path.display(), holder::in_words(.holder.as_ref()))]
pub struct StateInUse {
    /// The directory.
    pub path: PathBuf,
    /// Whose it is, where that can be seen.
    pub holder: Option<Holder>,
}

/// A state directory that no other gateway has, for as long as this lives. The lock goes with the process.
#[derive(Debug)]
pub struct StateLock {
    _lock: Option<Flock<File>>,
}

impl StateLock {
    /// Locks a state directory. One that cannot be written has nothing to lock.
    ///
    /// # Errors
    ///
    /// Another gateway has it.
    pub fn take(directory: &Path) -> Result<Self, StateInUse> {
        let nothing = |error: io::Error| {
            tracing::warn!(path = %directory.display(), %error, "the state directory cannot be locked: make it writable for this user");
            Ok(Self { _lock: None })
        };
        let file = files::open_private(&directory.join(FILE));
        let file = match file {
            Ok(file) => file,
            Err(error) => return nothing(error),
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                // For the one that comes second; without room it only cannot say who was first.
                if let Err(error) = sign(&mut lock) {
                    tracing::debug!(%error, "the lock of the state directory does not say whose it is");
                }
                Ok(Self { _lock: Some(lock) })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                Err(StateInUse { path: directory.to_owned(), holder: signature(file).and_then(Holder::of_process) })
            }
            Err((_, errno)) => nothing(errno.into()),
        }
    }
}

fn sign(file: &mut File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn signature(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::take(dir.path()).unwrap();
        let error = StateLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        StateLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        StateLock::take(&dir.path().join("missing")).unwrap();
    }
}
