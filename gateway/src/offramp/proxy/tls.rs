//! TLS towards a proxy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::resolved::{ProxyConfig, TlsConfig};
use crate::offramp::OfframpFileError;
use crate::{files, secret};

/// Most bytes of a flow that may be encrypted and wait for room in the socket: one record.
const MAX_UNSENT: usize = 16 * 1024;

/// What a connection to the proxy is secured with. TLS 1.3 only: in 1.2 the end of one direction is the end of both (RFC 5246
/// section 7.2.1), and half-closes must hold.
pub(super) struct Tls {
    connector: TlsConnector,
    server_name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files that `tls` names.
    pub(super) fn load(proxy: &ProxyConfig, tls: &TlsConfig) -> Result<Self, OfframpFileError> {
        let server_name = match &tls.server_name {
            Some(name) => ServerName::try_from(name.clone()).map_err(|_| OfframpFileError::ServerName(name.clone()))?,
            None => ServerName::from(proxy.address.ip()),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(OfframpFileError::Tls)?
            .with_root_certificates(authorities(tls)?);
        let config = match &tls.identity {
            None => builder.with_no_client_auth(),
            Some((certificate_file, key_file)) => {
                let chain = certificates(certificate_file)?;
                let pem = secret::read(key_file)?;
                let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
                    .map_err(|source| OfframpFileError::NoKey { path: key_file.clone(), source })?;
                builder.with_client_auth_cert(chain, key).map_err(|source| OfframpFileError::Identity {
                    certificate: certificate_file.clone(),
                    key: key_file.clone(),
                    source,
                })?
            }
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name })
    }

    /// Makes the handshake.
    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let mut stream = self.connector.connect(self.server_name.clone(), stream).await?;
        stream.get_mut().1.set_buffer_limit(Some(MAX_UNSENT));
        Ok(stream)
    }
}

/// Who may vouch for the proxy.
fn authorities(tls: &TlsConfig) -> Result<RootCertStore, OfframpFileError> {
    let mut store = RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                store.add(certificate).map_err(|source| OfframpFileError::Authority { path: path.clone(), source })?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(system.certs);
            if store.is_empty() {
                return Err(OfframpFileError::NoAuthorities);
            }
        }
    }
    Ok(store)
}

/// The certificates of a PEM file, of which there is at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OfframpFileError> {
    let path = || PathBuf::from(path);
    let text = files::read_text(&path()).map_err(|source| OfframpFileError::Read { path: path(), source })?;
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| OfframpFileError::Pem { path: path(), source })?;
    if certificates.is_empty() { Err(OfframpFileError::NoCertificate { path: path() }) } else { Ok(certificates) }
}
