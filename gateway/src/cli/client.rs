//! The client side of the control socket.

use crate::config::Config;

/// Why the running gateway did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the control socket.
    #[error("the gateway is not running (nothing answers at {0})")]
    NotRunning(std::path::PathBuf),
}

/// Asks the running gateway to load policy and directory again; answers lines that say what changed.
pub fn reload(config: &Config) -> Result<Vec<String>, ClientError> {
    Err(ClientError::NotRunning(config.control.clone()))
}

impl ClientError {
    /// Says it on standard error.
    pub fn report(&self) -> super::ExitStatus {
        match self {
            Self::NotRunning(_) => super::ExitStatus::NotRunning,
        }
    }
}
