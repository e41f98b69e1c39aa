//! Who is at the other end of the control socket, and what that one may do.

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::listener::Bounded;
use super::server::{ApiError, Context};

/// Credentials of a process, taken from the kernel when it connected (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process, when it is in our PID namespace.
    pub pid: Option<i32>,
}

impl Peer {
    /// Whether it may change anything: root, and the user the gateway runs as. Whoever can open the socket may read.
    pub fn may_change(self, own_uid: u32) -> bool {
        self.uid == 0 || self.uid == own_uid
    }
}

/// The peer of a connection; `None` when the kernel did not say, and then it may only read.
#[derive(Debug, Clone, Copy)]
pub struct MaybePeer(pub Option<Peer>);

impl Connected<IncomingStream<'_, Bounded<UnixListener>>> for MaybePeer {
    fn connect_info(stream: IncomingStream<'_, Bounded<UnixListener>>) -> Self {
        let credentials = stream.io().inner().peer_cred().ok();
        Self(credentials.map(|c| Peer { uid: c.uid(), gid: c.gid(), pid: c.pid() }))
    }
}

/// Proof that the request came from somebody who may change things. A handler that changes anything takes one.
#[derive(Debug, Clone, Copy)]
pub struct Admin(pub Peer);

impl FromRequestParts<Context> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, ApiError> {
        match parts.extensions.get::<ConnectInfo<MaybePeer>>() {
            Some(ConnectInfo(MaybePeer(Some(peer)))) if peer.may_change(context.own_uid) => Ok(Self(*peer)),
            Some(ConnectInfo(MaybePeer(peer))) => {
                tracing::warn!(
                    uid = peer.map(|p| p.uid),
                    path = parts.uri.path(),
                    "refused a change over the control socket"
                );
                Err(ApiError::Forbidden)
            }
            None => Err(ApiError::Forbidden),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_gateway_itself_change_things() {
        let may = |uid, own| Peer { uid, gid: 0, pid: None }.may_change(own);
        assert!(may(0, 0) && may(0, 990) && may(990, 990));
        assert!(!may(1000, 0) && !may(1000, 990) && !may(991, 990));
    }
}
