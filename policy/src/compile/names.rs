//! Names that a policy defines.

use thiserror::Error;

use crate::json::quoted;

const LONGEST: usize = 128;

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum NameError {
    #[error("a name must not be empty")]
    Empty,
    #[error("{} is longer than {LONGEST} bytes", quoted(.0))]
    Long(String),
    #[error("{} begins or ends with a space or holds a control character", quoted(.0))]
    Unprintable(String),
    #[error("{} could be taken for an address; a resource name has no colon, slash or asterisk and not only digits and dots", quoted(.0))]
    LikeAddress(String),
}

/// A name that can be shown in a log line.
pub(super) fn check_label(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > LONGEST {
        return Err(NameError::Long(name.to_owned()));
    }
    if name.trim() != name || name.chars().any(char::is_control) {
        return Err(NameError::Unprintable(name.to_owned()));
    }
    Ok(())
}

/// A name that can stand beside addresses in `to`.
pub(super) fn check_resource_name(name: &str) -> Result<(), NameError> {
    check_label(name)?;
    if is_like_address(name) || name.contains('*') { Err(NameError::LikeAddress(name.to_owned())) } else { Ok(()) }
}

/// Whether an entry of `to` is read as an address rather than as a resource name.
pub(super) fn is_like_address(text: &str) -> bool {
    text.contains([':', '/']) || text.chars().all(|c| c.is_ascii_digit() || c == '.')
}
