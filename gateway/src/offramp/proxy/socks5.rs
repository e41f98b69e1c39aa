//! A SOCKS5 proxy (RFC 1928), with user and password where there are credentials (RFC 1929).

use std::net::SocketAddr;

use async_socks5::{AddrKind, Auth, Error, SocksDatagram, UnsuccessfulReply};
use nix::errno::Errno;
use tokio::io::BufWriter;
use tokio::net::UdpSocket;

use hyper::body::Bytes;

use super::{Proxy, ProxyError};
use crate::offramp::DialError;
use crate::offramp::stream::{ProxyStream, TargetStream};

/// CONNECT.
pub(super) async fn connect(proxy: &Proxy, stream: ProxyStream, to: SocketAddr) -> Result<TargetStream, DialError> {
    // The library writes a byte at a time. What is read is not buffered: the target's bytes may be right behind.
    let mut stream = BufWriter::new(stream);
    match async_socks5::connect(&mut stream, to, auth(proxy)).await {
        Ok(_bound) => Ok(TargetStream::proxied(stream.into_inner(), Bytes::new())),
        Err(error) => Err(meaning(proxy, error)),
    }
}

/// UDP ASSOCIATE. Returns the connection that the association lives as long as, and the address of the relay.
pub(super) async fn associate(proxy: &Proxy, stream: ProxyStream) -> Result<(ProxyStream, SocketAddr), DialError> {
    // The library wants a socket to connect, which can be neither marked nor bound as ours must be.
    let unused = UdpSocket::bind(match proxy.address {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    })
    .await?;
    let associated = SocksDatagram::associate(BufWriter::new(stream), unused, auth(proxy), None::<SocketAddr>).await;
    let association = associated.map_err(|error| meaning(proxy, error))?;
    let relay = match association.proxy_addr() {
        // "Where you found me".
        AddrKind::Ip(relay) if relay.ip().is_unspecified() => SocketAddr::new(proxy.address.ip(), relay.port()),
        AddrKind::Ip(relay) => *relay,
        AddrKind::Domain(name, _) => return Err(proxy.protocol(format_args!("its relay has a name, {name}"))),
    };
    let (stream, _unused) = association.into_inner();
    Ok((stream.into_inner(), relay))
}

fn auth(proxy: &Proxy) -> Option<Auth> {
    proxy.credentials.as_ref().map(|it| Auth::new(it.user.clone(), it.password.clone()))
}

/// What the proxy, or the way to it, said.
fn meaning(proxy: &Proxy, error: Error) -> DialError {
    match error {
        Error::Response(reply) => match reply {
            UnsuccessfulReply::ConnectionRefused => DialError::Refused,
            UnsuccessfulReply::ConnectionNotAllowedByRules => DialError::Unreachable(Errno::EACCES),
            UnsuccessfulReply::NetworkUnreachable => DialError::Unreachable(Errno::ENETUNREACH),
            // There is no word for a target that did not answer: proxies say this.
            UnsuccessfulReply::TtlExpired => DialError::Timeout,
            UnsuccessfulReply::CommandNotSupported => proxy.cannot_carry("this"),
            UnsuccessfulReply::AddressTypeNotSupported => proxy.cannot_carry("this kind of address"),
            UnsuccessfulReply::HostUnreachable
            | UnsuccessfulReply::GeneralFailure
            | UnsuccessfulReply::Unassigned(_) => DialError::Unreachable(Errno::EHOSTUNREACH),
        },
        Error::NoAcceptableMethods | Error::InvalidAuthStatus(_) | Error::InvalidAuthMethod(_) => {
            proxy.error(ProxyError::Credentials)
        }
        error @ (Error::Io(_)
        | Error::FromUtf8(_)
        | Error::InvalidVersion(_)
        | Error::InvalidCommand(_)
        | Error::InvalidAtyp(_)
        | Error::InvalidReserved(_)
        | Error::InvalidAuthSubnegotiation(_)
        | Error::InvalidFragmentId(_)
        | Error::WrongVersion
        | Error::TooLongString(_)) => proxy.protocol(error),
    }
}
