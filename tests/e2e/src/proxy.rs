//! Proxies of the private network.
//!
//! The SOCKS5 half is another library than the gateway's, so that the two do not agree on a mistake.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fast_socks5::server::{Socks5ServerProtocol, run_tcp_proxy, run_udp_proxy};
use fast_socks5::{ReplyError, Socks5Command};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::netns::Netns;
use crate::tools;

/// The only user of a proxy that wants one.
pub const USER: &str = "gateway";
/// Its password.
pub const PASSWORD: &str = "open:sesame";

/// How long a target may take to say something before the proxy's own answer goes out: it is sent with that.
const FIRST_WORD: Duration = Duration::from_millis(5);

/// What a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// SOCKS5 with UDP ASSOCIATE, for [`USER`] only.
    Socks5,
    /// HTTP/1.1 CONNECT, for [`USER`] only.
    HttpConnect,
}

/// A proxy. Dropping it cuts everything that goes through it.
#[derive(Debug)]
pub struct Proxy(Option<tokio::runtime::Runtime>);

impl Proxy {
    /// Serves at `address` inside `netns`.
    ///
    /// # Panics
    ///
    /// When the address cannot be bound.
    pub fn serve(netns: &Netns, address: SocketAddr, speaks: Speaks, tls: Option<&Certificates>) -> Self {
        let acceptor = tls.map(Certificates::acceptor);
        // Its threads are of the namespace they are made in.
        let runtime = netns.run(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let runtime = runtime.expect("a runtime");
            let listener = runtime.block_on(TcpListener::bind(address));
            let listener = listener.unwrap_or_else(|error| panic!("bind {address}: {error}"));
            runtime.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        // What goes wrong is seen at both ends.
                        match acceptor {
                            None => handle(stream, speaks, address).await,
                            Some(acceptor) => match acceptor.accept(stream).await {
                                Ok(stream) => handle(stream, speaks, address).await,
                                Err(_refused) => {}
                            },
                        }
                    });
                }
            });
            runtime
        });
        Self(Some(runtime))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn handle(stream: impl AsyncRead + AsyncWrite + Unpin, speaks: Speaks, address: SocketAddr) {
    let _ = match speaks {
        Speaks::Socks5 => socks5(stream, address).await,
        Speaks::HttpConnect => http_connect(stream).await.map_err(fast_socks5::SocksError::from),
    };
}

async fn socks5(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
) -> Result<(), fast_socks5::SocksError> {
    let known = |user, password| user == USER && password == PASSWORD;
    let (protocol, _known) = Socks5ServerProtocol::accept_password_auth(stream, known).await?;
    let (protocol, command, target) = protocol.read_command().await?;
    match command {
        Socks5Command::TCPConnect => {
            run_tcp_proxy(protocol, &target, Duration::from_secs(5), true).await?;
        }
        Socks5Command::UDPAssociate => {
            run_udp_proxy(protocol, &target, Some(address.ip()), address.ip(), None).await?;
        }
        Socks5Command::TCPBind => protocol.reply_error(&ReplyError::CommandNotSupported).await?,
    }
    Ok(())
}

async fn http_connect(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    // `gateway:open:sesame`, in lower case.
    if !head.contains("\r\nproxy-authorization: basic z2f0zxdhetpvcgvuonnlc2ftzq==\r\n") {
        return stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n").await;
    }
    let target = head.split_whitespace().nth(1).and_then(|target| target.parse::<SocketAddr>().ok());
    let Some(target) = target.filter(|_| head.starts_with("connect ")) else {
        return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    };
    let Ok(mut target) = TcpStream::connect(target).await else {
        return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
    };
    let mut answer = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n".to_vec();
    // No word within the time is no word.
    let _ = tokio::time::timeout(FIRST_WORD, target.read_buf(&mut answer)).await;
    stream.write_all(&answer).await?;
    copy_bidirectional(&mut stream, &mut target).await.map(drop)
}

/// An authority, and certificates it vouches for: `proxy.pem` for the name `proxy.example.com`, `client.pem` for who may
/// come; keys beside them.
#[derive(Debug)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Makes them in `dir`.
    ///
    /// # Panics
    ///
    /// When openssl cannot.
    pub fn make(dir: &Path) -> Self {
        let openssl = |arguments: &str| {
            tools::run(Command::new("openssl").current_dir(dir).args(arguments.split_whitespace()));
        };
        let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
        for (name, common_name) in [("proxy", "proxy.example.com"), ("client", "gateway")] {
            openssl(&format!(
                "req -x509 {new_key} -CA ca.pem -CAkey ca.key -keyout {name}.key -out {name}.pem -days 2 \
                 -subj /CN={common_name} -addext subjectAltName=DNS:{common_name} \
                 -addext basicConstraints=critical,CA:FALSE"
            ));
        }
        Self(dir.to_owned())
    }

    /// TLS of a proxy that wants a certificate of its clients.
    fn acceptor(&self) -> TlsAcceptor {
        let certificate = |name| CertificateDer::from_pem_file(self.0.join(name)).expect("a certificate");
        let mut authorities = RootCertStore::empty();
        authorities.add(certificate("ca.pem")).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider));
        let key = PrivateKeyDer::from_pem_file(self.0.join("proxy.key")).expect("a key");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_client_cert_verifier(clients.build().expect("a verifier"))
            .with_single_cert(vec![certificate("proxy.pem")], key)
            .expect("a certificate and its key");
        TlsAcceptor::from(Arc::new(config))
    }
}
