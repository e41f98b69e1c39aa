//! Files that hold a secret: read only when nobody but us and root may use them.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::files::{ReadError, read_open};

/// Why a file with a secret is refused.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error("{path} {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// Group or others have rights on it.
    #[error("{path} has mode {mode:04o}: others than its owner may use it; set it with `chmod 600 {path}`")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns it.
    #[error("{path} belongs to user {owner}, who is neither root nor user {us}, as whom this runs")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The effective user of this process.
        us: u32,
    },
}

impl SecretFileError {
    /// The caller may not read it, which says nothing about what is in it.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.is_denied())
    }
}

/// Reads a text file that nobody but us and root may use.
///
/// # Errors
///
/// The file cannot be read, is open to others, or belongs to a stranger.
pub fn read(path: &Path) -> Result<String, SecretFileError> {
    let unreadable = |source| SecretFileError::Read { path: path.to_owned(), source };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| unreadable(error.into()))?;
    // Asked of the open file, so that it cannot be exchanged between the question and the reading.
    let metadata = file.metadata().map_err(|error| unreadable(error.into()))?;
    let (mode, owner, us) = (metadata.mode() & 0o7777, metadata.uid(), geteuid().as_raw());
    if owner != us && owner != 0 {
        return Err(SecretFileError::Owner { path: path.to_owned(), owner, us });
    }
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Mode { path: path.to_owned(), mode });
    }
    read_open(&file).map_err(unreadable)
}
