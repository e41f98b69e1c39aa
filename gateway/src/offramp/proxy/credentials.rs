//! Who we are to a proxy.

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::offramp::OfframpFileError;
use crate::secret;

/// A user and its password. Never printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads a file with one line `user:password`, which nobody else may read.
    pub(super) fn load(path: &Path) -> Result<Self, OfframpFileError> {
        let text = secret::read(path)?;
        Self::parse(text.strip_suffix('\n').unwrap_or(&text))
            .ok_or_else(|| OfframpFileError::Credentials { path: path.to_owned() })
    }

    /// SOCKS5 has room for 1 to 255 bytes of each (RFC 1929); a user has no colon (RFC 7617).
    fn parse(line: &str) -> Option<Self> {
        let (user, password) = line.split_once(':')?;
        let fits = |part: &str| (1..=255).contains(&part.len()) && !part.contains(char::is_control);
        (fits(user) && fits(password)).then(|| Self { user: user.to_owned(), password: password.to_owned() })
    }

    /// The value of `Proxy-Authorization`: RFC 7617.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_with_user_and_password() {
        let parsed = Credentials::parse("Aladdin:open sesame").unwrap();
        // RFC 7617, section 2.
        assert_eq!(parsed.basic(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(format!("{parsed:?}"), "Credentials { user: \"Aladdin\", .. }");
        assert_eq!(Credentials::parse("a:b:c").map(|it| it.password), Some("b:c".to_owned()));
        let long = "x".repeat(256);
        for wrong in ["", "a", ":b", "a:", "a:b\nc", &format!("{long}:b"), &format!("a:{long}")] {
            assert_eq!(Credentials::parse(wrong), None, "{wrong}");
        }
    }
}
