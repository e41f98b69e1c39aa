//! Why a file that an off-ramp needs is refused.

use std::path::PathBuf;

use crate::files::ReadError;
use crate::keys::KeyError;
use crate::secret::SecretFileError;

/// Why a file that an off-ramp needs is refused.
#[derive(Debug, thiserror::Error)]
pub enum OfframpFileError {
    /// One with a secret cannot be had, or is open to others.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// What one holds is no key.
    #[error("what {path} holds {error}", path = .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        error: KeyError,
    },
    /// One cannot be read.
    #[error("{path} {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// No credentials.
    #[error("{path} must hold one line, user:password, each of 1 to 255 bytes", path = .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
    },
    /// No PEM.
    #[error("{path} is not PEM: {source}", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM file without a certificate.
    #[error("{path} holds no certificate", path = .path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A PEM file without a private key.
    #[error("{path} holds no private key: {source}", path = .path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate that cannot vouch for another.
    #[error("{path} holds a certificate that is no authority's: {source}", path = .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Certificate and private key that do not belong together, or cannot be used.
    #[error(
        "{certificate} and {key} cannot be used: {source}",
        certificate = .certificate.display(),
        key = .key.display()
    )]
    Identity {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The system knows no certificate authority.
    #[error("this system has no certificate authorities: install ca-certificates, or give the off-ramp a `ca_file`")]
    NoAuthorities,
    /// No name that a certificate may have.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    ServerName(String),
    /// TLS cannot be set up at all.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
}

impl OfframpFileError {
    /// The caller may not read the file, which says nothing about what is in it.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Secret(error) => error.is_denied(),
            Self::Read { source, .. } => source.is_denied(),
            Self::Key { .. }
            | Self::Credentials { .. }
            | Self::Pem { .. }
            | Self::NoCertificate { .. }
            | Self::NoKey { .. }
            | Self::Authority { .. }
            | Self::Identity { .. }
            | Self::NoAuthorities
            | Self::ServerName(_)
            | Self::Tls(_) => false,
        }
    }
}
