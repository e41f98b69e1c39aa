//! How a verb ends.

use std::process::ExitCode;

/// The exit codes of every verb; the numbers above 1 are those of `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done.
    Done = 0,
    /// It was tried and failed.
    Failed = 1,
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
