//! How a verb ends.

use std::process::ExitCode;

/// The exit codes of every verb; the numbers above 2 are those of `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done.
    Done = 0,
    /// It was tried and failed.
    Failed = 1,
    /// Done, and something would change (`policy plan`).
    Changes = 2,
    /// The command line makes no sense (EX_USAGE).
    Usage = 64,
    /// The gateway is not running (EX_UNAVAILABLE).
    NotRunning = 69,
    /// The caller may not do this (EX_NOPERM).
    NotPermitted = 77,
    /// Configuration, policy or directory is bad (EX_CONFIG).
    BadConfig = 78,
}

impl ExitStatus {
    /// For files that are not taken: each says whether it could only not be read for want of permission.
    pub fn of_files(denied: impl IntoIterator<Item = bool>) -> Self {
        let all_denied = denied.into_iter().reduce(|all, denied| all && denied);
        if all_denied == Some(true) { Self::NotPermitted } else { Self::BadConfig }
    }

    /// The number the process exits with.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;
    use crate::config::ConfigProblem;
    use crate::files::ReadError;
    use crate::keys::KeyFileError;
    use crate::secret::SecretFileError;

    #[test]
    fn what_may_not_be_read_is_not_bad() {
        let config = |kind: io::ErrorKind| ConfigProblem {
            file: PathBuf::from("gateway.toml"),
            place: None,
            key: String::new(),
            error: ReadError::from(io::Error::from(kind)).into(),
        };
        let (denied, broken) = (config(io::ErrorKind::PermissionDenied), config(io::ErrorKind::StorageFull));
        assert_eq!(ExitStatus::of_files([denied.is_denied()]), ExitStatus::NotPermitted);
        assert_eq!(ExitStatus::of_files([broken.is_denied()]), ExitStatus::BadConfig);
        assert_eq!(ExitStatus::of_files([denied.is_denied(), broken.is_denied()]), ExitStatus::BadConfig);
        assert_eq!(ExitStatus::of_files([]), ExitStatus::BadConfig);
        let source = ReadError::from(io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(KeyFileError::from(SecretFileError::Read { path: PathBuf::from("key"), source }).is_denied());
        assert!(!KeyFileError::from(SecretFileError::Mode { path: PathBuf::from("key"), mode: 0o644 }).is_denied());
    }
}
