//! WireGuard keys: making them, reading them strictly, and keeping private ones private.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::secret::{self, SecretFileError};

/// A WireGuard private key. Never printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; 32]);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Why a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the one base64 spelling of 32 bytes.
    #[error("is not a key: 32 bytes in base64, 44 characters as `wg pubkey` and `wg genkey` print them")]
    NotAKey,
    /// All bytes are zero.
    #[error("is all zeros, which is no key")]
    Zero,
    /// A point of low order, with which anyone can agree on a known secret (RFC 7748, section 6.1).
    #[error("is a point of low order, which keeps nothing secret")]
    LowOrder,
    /// It is not below 2^255 - 19, so that the same point has another encoding (RFC 7748, section 5), which is the one
    /// that keys are written in.
    #[error("is not the way its point is written; `wg pubkey` prints it")]
    NotCanonical,
}

/// Why a private key file is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be had, or is open to others.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// What it holds is no key.
    #[error("what {path} holds {error}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        error: KeyError,
    },
}

impl KeyFileError {
    /// The caller may not read it, which says nothing about what is in it.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::File(error) if error.is_denied())
    }
}

impl PrivateKey {
    /// A new key from the system's random source.
    ///
    /// # Errors
    ///
    /// The system has no randomness to give.
    pub fn generate() -> io::Result<Self> {
        random().map(Self)
    }

    /// Parses the one base64 spelling.
    ///
    /// # Errors
    ///
    /// It is no key, or all zeros.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        parse_key(text).map(Self)
    }

    /// Reads a key file that nobody but us and root may use.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is open to others, belongs to a stranger, or holds no key.
    pub fn read_file(path: &Path) -> Result<Self, KeyFileError> {
        let text = secret::read(path)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        Self::parse(line).map_err(|error| KeyFileError::Key { path: path.to_owned(), error })
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(self.0)).to_bytes()
    }

    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Base64, for the one place where it is shown or written.
    pub fn to_base64(&self) -> String {
        encode_key(&self.0)
    }
}

/// The points of low order below 2^255 - 19 but zero, as <https://cr.yp.to/ecdh.html#validate> has them. A directory may
/// hold thousands of keys, and a restart has two seconds for all: a look costs less than the multiplication that would
/// find out.
const LOW_ORDER: [[u8; 32]; 4] = [
    [
        0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ],
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
];

/// Whether a point is of low order. A clamped scalar is a multiple of the cofactor, so exactly those give zero.
fn is_of_low_order(key: [u8; 32]) -> bool {
    !StaticSecret::from([0x42; 32]).diffie_hellman(&PublicKey::from(key)).was_contributory()
}

/// Parses a peer's public key.
///
/// # Errors
///
/// It is no key, all zeros, of low order, or not below 2^255 - 19.
pub fn parse_public_key(text: &str) -> Result<[u8; 32], KeyError> {
    /// 2^255 - 19, the lowest byte first.
    const PRIME: [u8; 32] = {
        let mut prime = [0xff; 32];
        (prime[0], prime[31]) = (0xed, 0x7f);
        prime
    };
    let key = parse_key(text)?;
    // Two devices with one key, or one with the gateway's own, would not be noticed otherwise.
    if key.iter().rev().ge(PRIME.iter().rev()) {
        return Err(if is_of_low_order(key) { KeyError::LowOrder } else { KeyError::NotCanonical });
    }
    if LOW_ORDER.contains(&key) {
        return Err(KeyError::LowOrder);
    }
    Ok(key)
}

/// Parses a preshared key.
///
/// # Errors
///
/// It is no key, or all zeros, which WireGuard takes for none.
pub fn parse_preshared_key(text: &str) -> Result<[u8; 32], KeyError> {
    parse_key(text)
}

/// Base64 of a key.
pub fn encode_key(key: &[u8; 32]) -> String {
    STANDARD.encode(key)
}

/// 32 random bytes, as a preshared key is.
///
/// # Errors
///
/// The system has no randomness to give.
pub fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn parse_key(text: &str) -> Result<[u8; 32], KeyError> {
    let bytes = STANDARD.decode(text).map_err(|_| KeyError::NotAKey)?;
    let key = <[u8; 32]>::try_from(bytes).map_err(|_| KeyError::NotAKey)?;
    if key == [0; 32] { Err(KeyError::Zero) } else { Ok(key) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use nix::unistd::geteuid;

    use super::*;

    /// RFC 7748, section 6.1.
    const ALICE: [u8; 32] = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
        0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
    ];

    #[test]
    fn public_key_of_the_rfc() {
        assert_eq!(encode_key(&PrivateKey(ALICE).public()), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn new_keys_differ_and_survive_base64() {
        let (a, b) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        assert_ne!(a, b);
        assert_eq!(PrivateKey::parse(&a.to_base64()), Ok(a.clone()));
        assert_eq!(parse_public_key(&encode_key(&a.public())), Ok(a.public()));
        assert_eq!(format!("{a:?}"), "PrivateKey(..)");
    }

    #[test]
    fn one_spelling_only() {
        let good = encode_key(&[7; 32]);
        assert!(parse_preshared_key(&good).is_ok());
        for text in [
            "",
            good.trim_end_matches('='),
            &format!("{good}\n"),
            &format!(" {good}"),
            &good.replace("Bwc=", "Bwd="),
            &STANDARD.encode([7; 31]),
            &STANDARD.encode([7; 33]),
            &good.replace('B', "-"),
        ] {
            assert_eq!(parse_preshared_key(text), Err(KeyError::NotAKey), "{text:?}");
        }
        assert_eq!(parse_preshared_key(&encode_key(&[0; 32])), Err(KeyError::Zero));
    }

    #[test]
    fn the_points_of_low_order_are_those() {
        assert!(LOW_ORDER.into_iter().all(is_of_low_order));
        // Every encoding of one is refused, see below; those of others are not.
        let other = |first| [&[first][..], &[0; 31]].concat();
        for first in 2..40 {
            let key = other(first).try_into().unwrap();
            assert_eq!(is_of_low_order(key), parse_public_key(&encode_key(&key)).is_err(), "{first}");
        }
    }

    #[test]
    fn low_order_points_are_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        let mut minus_one = [0xff; 32];
        (minus_one[0], minus_one[31]) = (0xec, 0x7f);
        let mut prime = minus_one;
        prime[0] = 0xed;
        let order_8 = [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
            0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ];
        let mut high_bit = one;
        high_bit[31] = 0x80;
        for point in [one, minus_one, prime, order_8, high_bit] {
            assert_eq!(parse_public_key(&encode_key(&point)), Err(KeyError::LowOrder), "{point:x?}");
        }
        assert_eq!(parse_public_key(&encode_key(&[0; 32])), Err(KeyError::Zero));
    }

    #[test]
    fn key_files_open_to_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        fs::write(&path, format!("{}\n", encode_key(&ALICE))).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o644, 0o610, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = PrivateKey::read_file(&path).unwrap_err();
            assert!(
                matches!(error, KeyFileError::File(SecretFileError::Mode { mode: found, .. }) if found == mode),
                "{mode:o}"
            );
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(PrivateKey::read_file(&path).unwrap(), PrivateKey(ALICE));
        }
    }

    #[test]
    fn key_files_of_strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        fs::write(&path, encode_key(&ALICE)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(PrivateKey::read_file(&path).is_ok());
        // Only root can give a file away.
        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            let message = PrivateKey::read_file(&path).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("{} belongs to user 12345, who is neither root nor user 0, as whom this runs", path.display())
            );
        }
    }

    #[test]
    fn key_files_with_something_else_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        let message = || PrivateKey::read_file(&path).unwrap_err().to_string();
        assert!(message().contains("cannot be read: No such file"), "{}", message());
        for content in ["", "x", &format!("{}\n\n", encode_key(&ALICE))] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(message().contains("is not a key"), "{}", message());
        }
    }
}
