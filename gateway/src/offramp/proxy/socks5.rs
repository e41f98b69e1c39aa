//! A SOCKS5 proxy (RFC 1928), with user and password where there are credentials (RFC 1929).
//!
//! Our own few lines: of the libraries one panics on a reply code it does not know, others resolve a name that the proxy
//! answers with, connect where it says, or carry no UDP. A proxy is no friend that could be trusted with that.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hyper::body::Bytes;
use nix::errno::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Proxy, ProxyError};
use crate::offramp::DialError;
use crate::offramp::stream::{ProxyStream, TargetStream};

const VERSION: u8 = 5;
/// Version of the exchange of user and password.
const AUTH_VERSION: u8 = 1;
const NO_AUTHENTICATION: u8 = 0;
const USER_PASSWORD: u8 = 2;
const CONNECT: u8 = 1;
const UDP_ASSOCIATE: u8 = 3;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Method negotiation, and who we are: the proxy has not heard of a target yet.
pub(super) async fn greet(proxy: &Proxy, stream: &mut ProxyStream) -> Result<(), DialError> {
    let methods: &[u8] = match proxy.credentials {
        None => &[VERSION, 1, NO_AUTHENTICATION],
        Some(_) => &[VERSION, 2, NO_AUTHENTICATION, USER_PASSWORD],
    };
    say(proxy, stream, methods).await?;
    let [version, method] = hear(proxy, stream).await?;
    if version != VERSION {
        return Err(proxy.protocol(format_args!("its version is {version}")));
    }
    match (method, &proxy.credentials) {
        (NO_AUTHENTICATION, _) => Ok(()),
        (USER_PASSWORD, Some(credentials)) => {
            let mut message = vec![AUTH_VERSION];
            for part in [&credentials.user, &credentials.password] {
                message.push(length(part.len()));
                message.extend(part.as_bytes());
            }
            say(proxy, stream, &message).await?;
            match hear(proxy, stream).await? {
                [_, 0] => Ok(()),
                [_, _] => Err(proxy.error(ProxyError::Credentials)),
            }
        }
        (_, _) => Err(proxy.error(ProxyError::Credentials)),
    }
}

/// CONNECT, after the greeting.
pub(super) async fn connect(proxy: &Proxy, mut stream: ProxyStream, to: SocketAddr) -> Result<TargetStream, DialError> {
    request(proxy, &mut stream, CONNECT, to).await?;
    Ok(TargetStream::proxied(stream, Bytes::new()))
}

/// UDP ASSOCIATE, after the greeting. Returns the address of the relay.
pub(super) async fn associate(proxy: &Proxy, stream: &mut ProxyStream) -> Result<SocketAddr, DialError> {
    // Where our datagrams will come from is not known yet.
    let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let relay = match request(proxy, stream, UDP_ASSOCIATE, anywhere).await? {
        Bound::At(relay) if relay.port() != 0 => relay,
        Bound::At(_) | Bound::Name => return Err(proxy.protocol("it has no address for datagrams")),
    };
    // "Where you found me". Nowhere else: it could send our datagrams to places that no policy can open.
    if relay.ip().is_unspecified() || relay.ip() == proxy.address.ip() {
        Ok(SocketAddr::new(proxy.address.ip(), relay.port()))
    } else {
        Err(proxy.protocol(format_args!("its datagrams would go to {relay}")))
    }
}

/// The address that an answer names.
enum Bound {
    At(SocketAddr),
    Name,
}

async fn request(proxy: &Proxy, stream: &mut ProxyStream, command: u8, to: SocketAddr) -> Result<Bound, DialError> {
    let mut message = vec![VERSION, command, 0];
    match to.ip() {
        IpAddr::V4(v4) => {
            message.push(IPV4);
            message.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            message.push(IPV6);
            message.extend(v6.octets());
        }
    }
    message.extend(to.port().to_be_bytes());
    say(proxy, stream, &message).await?;
    let [version, code, _, kind] = hear(proxy, stream).await?;
    if version != VERSION {
        return Err(proxy.protocol(format_args!("its version is {version}")));
    }
    if code != 0 {
        return Err(meaning(proxy, code));
    }
    let address = match kind {
        IPV4 => IpAddr::from(hear::<4>(proxy, stream).await?),
        IPV6 => IpAddr::from(hear::<16>(proxy, stream).await?).to_canonical(),
        NAME => {
            let [len] = hear(proxy, stream).await?;
            let mut name = vec![0; usize::from(len) + 2];
            stream.read_exact(&mut name).await.map_err(|error| proxy.protocol(error))?;
            return Ok(Bound::Name);
        }
        _ => return Err(proxy.protocol(format_args!("it has a kind {kind} of address"))),
    };
    Ok(Bound::At(SocketAddr::new(address, u16::from_be_bytes(hear(proxy, stream).await?))))
}

async fn say(proxy: &Proxy, stream: &mut ProxyStream, message: &[u8]) -> Result<(), DialError> {
    stream.write_all(message).await.map_err(|error| proxy.protocol(error))?;
    stream.flush().await.map_err(|error| proxy.protocol(error))
}

/// No byte more than that: the target's may be right behind.
async fn hear<const LEN: usize>(proxy: &Proxy, stream: &mut ProxyStream) -> Result<[u8; LEN], DialError> {
    let mut heard = [0; LEN];
    stream.read_exact(&mut heard).await.map_err(|error| proxy.protocol(error))?;
    Ok(heard)
}

/// A length of at most 255, which the reading of credentials saw to.
fn length(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

/// What a reply code means: RFC 1928 section 6.
fn meaning(proxy: &Proxy, code: u8) -> DialError {
    match code {
        2 => DialError::Unreachable(Errno::EACCES),
        3 => DialError::Unreachable(Errno::ENETUNREACH),
        5 => DialError::Refused,
        // There is no word for a target that did not answer: proxies say that its TTL expired.
        6 => DialError::Timeout,
        7 => proxy.cannot_carry("this"),
        8 => proxy.cannot_carry("this kind of address"),
        // 1 is a general failure and 4 an unreachable host; the rest has no meaning yet.
        _ => DialError::Unreachable(Errno::EHOSTUNREACH),
    }
}
