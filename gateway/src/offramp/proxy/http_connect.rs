//! An HTTP/1.1 proxy and its CONNECT method (RFC 9110 section 9.3.6).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, PROXY_AUTHORIZATION};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;

use super::{Proxy, ProxyError};
use crate::offramp::DialError;
use crate::offramp::stream::{ProxyStream, TargetStream};

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 16 * 1024;

/// CONNECT.
pub(super) async fn connect(proxy: &Proxy, stream: ProxyStream, to: SocketAddr) -> Result<TargetStream, DialError> {
    let mut request = Request::connect(to.to_string()).header(HOST, to.to_string());
    if let Some(credentials) = &proxy.credentials {
        request = request.header(PROXY_AUTHORIZATION, credentials.basic());
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| proxy.protocol(error))?;
    let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
    let (mut sender, mut connection) = handshake.map_err(|error| proxy.protocol(error))?;
    let mut answer = pin!(sender.send_request(request));
    let mut over = false;
    let answered = poll_fn(|cx| {
        // However it ends, the answer tells: it may have come before.
        over = over || connection.poll_without_shutdown(cx).is_ready();
        answer.as_mut().poll(cx)
    })
    .await;
    let status = answered.map_err(|error| proxy.protocol(error))?.status();
    if !status.is_success() {
        return Err(meaning(proxy, status));
    }
    let parts = connection.into_parts();
    Ok(TargetStream::proxied(parts.io.into_inner(), parts.read_buf))
}

/// What it means that the proxy did not connect.
fn meaning(proxy: &Proxy, status: StatusCode) -> DialError {
    match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => proxy.error(ProxyError::Credentials),
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => proxy.cannot_carry("this"),
        StatusCode::GATEWAY_TIMEOUT => DialError::Timeout,
        // Refused, unreachable or no name for it: there is one word for all.
        status if status.is_server_error() => DialError::Unreachable(Errno::EHOSTUNREACH),
        status if status.is_client_error() => DialError::Unreachable(Errno::EACCES),
        status => proxy.protocol(format_args!("it answers {status}")),
    }
}
