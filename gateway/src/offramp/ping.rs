//! Ping sockets: echo requests without raw sockets.

use std::io::{self, IoSliceMut, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvmsg};
use socket2::Socket;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A connected ICMP or ICMPv6 echo socket (`SOCK_DGRAM`).
///
/// Messages are whole ICMP messages without an IP header. The kernel writes its own identifier and checksum into what is
/// sent, and hands up replies to that identifier with it inside and the checksum verified: the caller puts the client's
/// identifier back and computes the checksum anew.
#[derive(Debug)]
pub struct PingSocket {
    socket: AsyncFd<Socket>,
    target: IpAddr,
}

impl PingSocket {
    pub(super) fn new(socket: Socket, target: IpAddr) -> io::Result<Self> {
        Ok(Self {
            socket: sys::register(socket)?,
            target,
        })
    }

    /// The next ICMP message from the target, cut off at the length of `message`.
    ///
    /// An ICMP error that came back shows as an `io::Error` (`ECONNREFUSED`, `EHOSTUNREACH`); the socket goes on.
    pub fn poll_recv(
        &self,
        context: &mut Context<'_>,
        message: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            match ready.try_io(|socket| self.receive(socket.get_ref(), message)) {
                // The kernel looks at the identifier only: this came from somebody else.
                Ok(Ok(None)) => {}
                Ok(Ok(Some(length))) => return Poll::Ready(Ok(length)),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }

    /// Waits for the next ICMP message from the target. See [`poll_recv`](Self::poll_recv).
    pub async fn recv(&self, message: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_recv(context, message)).await
    }

    /// Sends an echo request. `WouldBlock` when the socket's buffer is full.
    pub fn try_send(&self, icmp_message: &[u8]) -> io::Result<()> {
        self.socket.get_ref().write(icmp_message).map(|_all| ())
    }

    /// One message; `None` when it is not from the target.
    fn receive(&self, socket: &Socket, message: &mut [u8]) -> io::Result<Option<usize>> {
        let mut parts = [IoSliceMut::new(message)];
        let received =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, None, MsgFlags::empty())
                .map_err(io::Error::from)?;
        let from = received.address.as_ref().and_then(|from| {
            let v4 = from.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| from.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        });
        Ok((from == Some(self.target)).then_some(received.bytes))
    }
}
