//! Off-ramps through a proxy: it is asked to go to the target, and then stands in for it.

mod credentials;
mod http_connect;
mod socks5;
mod tls;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::stream::{ProxyStream, TargetStream};
use super::trouble::{Attempt, Trouble};
use super::{DialError, OfframpFileError};
use crate::config::resolved::{ProxyConfig, ProxyScheme};
use credentials::Credentials;
use tls::Tls;

/// What is wrong with a proxy, which says nothing of the target.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// There is no connection to it.
    #[error("cannot be reached: {0}")]
    Unreachable(Box<DialError>),
    /// It takes the connection and does not answer, before it has heard of a target.
    #[error("does not answer")]
    Silent,
    /// It cannot be spoken to in TLS, or is not who it should be.
    #[error("cannot be trusted or does not speak TLS: {0}")]
    Tls(io::Error),
    /// It wants other credentials than ours.
    #[error("does not take our credentials")]
    Credentials,
    /// It said something that means nothing.
    #[error("does not speak {scheme}: {why}")]
    Protocol {
        /// What it should speak.
        scheme: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It cannot do this for any target.
    #[error("does not carry {0}")]
    CannotCarry(&'static str),
}

/// A proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    scheme: ProxyScheme,
    address: SocketAddr,
    credentials: Option<Credentials>,
    tls: Option<Tls>,
    trouble: Arc<Trouble>,
}

impl Proxy {
    /// That of the off-ramp `name`. Reads the files that `config` names.
    pub(super) fn load(name: &Arc<str>, config: &ProxyConfig) -> Result<Self, OfframpFileError> {
        Ok(Self {
            scheme: config.scheme,
            address: config.address,
            credentials: config.credentials_file.as_deref().map(Credentials::load).transpose()?,
            tls: config.tls.as_ref().map(|tls| Tls::load(config, tls)).transpose()?,
            trouble: Arc::new(Trouble::new(name)),
        })
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What dials say of it.
    pub(super) fn trouble(&self) -> &Arc<Trouble> {
        &self.trouble
    }

    /// Whether it carries UDP.
    pub(super) fn carries_udp(&self) -> bool {
        self.scheme == ProxyScheme::Socks5
    }

    /// That it cannot carry `what` to any target.
    pub(super) fn cannot_carry(&self, what: &'static str) -> DialError {
        self.error(ProxyError::CannotCarry(what))
    }

    /// Asks over the connection that `connecting` becomes for one to the target `to`. Until the proxy hears of that it may
    /// take `patience`.
    pub(super) async fn open(
        &self,
        mut attempt: Attempt,
        connecting: impl Future<Output = Result<TcpStream, DialError>>,
        to: SocketAddr,
        patience: Duration,
    ) -> Result<TargetStream, DialError> {
        let stream = attempt.met(self.met(connecting, patience).await)?;
        let opened = match self.scheme {
            ProxyScheme::Socks5 => socks5::connect(self, stream, to).await,
            ProxyScheme::HttpConnect => http_connect::connect(self, stream, to).await,
        };
        let opened = attempt.asked(opened)?;
        // From here on it ends as a connection does.
        SockRef::from(opened.tcp()).set_linger(None).map_err(DialError::Io)?;
        Ok(opened)
    }

    /// Asks over the connection that `connecting` becomes for a relay of datagrams. Returns the connection, with which the
    /// relay ends, and where it is. Until the proxy hears what is wanted it may take `patience`.
    pub(super) async fn associate(
        &self,
        mut attempt: Attempt,
        connecting: impl Future<Output = Result<TcpStream, DialError>>,
        patience: Duration,
    ) -> Result<(ProxyStream, SocketAddr), DialError> {
        let mut stream = attempt.met(self.met(connecting, patience).await)?;
        // One that carries no datagrams carries connections all the same.
        let relay = attempt.asked(socks5::associate(self, &mut stream).await)?;
        Ok((stream, relay))
    }

    /// A connection to the proxy that is ready for a request.
    async fn met(
        &self,
        connecting: impl Future<Output = Result<TcpStream, DialError>>,
        patience: Duration,
    ) -> Result<ProxyStream, DialError> {
        let meeting = async {
            let mut stream = self.secured(connecting.await).await?;
            if self.scheme == ProxyScheme::Socks5 {
                socks5::greet(self, &mut stream).await?;
            }
            Ok(stream)
        };
        tokio::time::timeout(patience, meeting).await.unwrap_or_else(|_elapsed| Err(self.error(ProxyError::Silent)))
    }

    /// What goes over the connection from now on.
    async fn secured(&self, connected: Result<TcpStream, DialError>) -> Result<ProxyStream, DialError> {
        let stream = match connected {
            Ok(stream) => stream,
            // That we have no room says nothing of it.
            Err(error) if error.limit().is_some() => return Err(error),
            Err(error) => return Err(self.error(ProxyError::Unreachable(Box::new(error)))),
        };
        // Every one goes to the same address and port: dropped before it is of use, it must not keep a port of ours in
        // TIME-WAIT.
        stream.set_zero_linger().map_err(DialError::Io)?;
        match &self.tls {
            None => Ok(ProxyStream::Plain(stream)),
            Some(tls) => match tls.connect(stream).await {
                Ok(tls) => Ok(ProxyStream::Tls(Box::new(tls))),
                Err(error) => Err(self.error(ProxyError::Tls(error))),
            },
        }
    }

    fn error(&self, why: ProxyError) -> DialError {
        DialError::Proxy { proxy: self.address, why }
    }

    /// The proxy's answer makes no sense.
    fn protocol(&self, why: impl fmt::Display) -> DialError {
        let scheme = match self.scheme {
            ProxyScheme::Socks5 => "SOCKS5",
            ProxyScheme::HttpConnect => "HTTP CONNECT",
        };
        self.error(ProxyError::Protocol { scheme, why: why.to_string() })
    }
}

#[cfg(test)]
mod tests;
