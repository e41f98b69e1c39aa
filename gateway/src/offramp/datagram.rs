//! Connected datagram sockets: UDP, and ICMP echo without raw sockets.

use std::io::{self, IoSliceMut, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::Socket;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// How many queued ICMP errors are discarded at once.
const MAX_QUEUED_ERRORS: usize = 64;

/// A socket that talks to one target.
///
/// *UDP*: a message is a datagram's payload.
///
/// *Echo*: a message is a whole ICMP or ICMPv6 message without an IP header. The kernel writes its own identifier and
/// checksum into what is sent, and hands up replies to that identifier, with it inside and the checksum verified: the
/// caller puts the client's identifier back and computes the checksum anew.
///
/// ICMP errors that come back wake a waiting reader and show as the error of the next receive or send: `ECONNREFUSED`,
/// `EHOSTUNREACH`, `ENETUNREACH`, `EACCES` (prohibited), `EMSGSIZE` (too big: see [`path_mtu`](Self::path_mtu)) and
/// others. The socket goes on after any of them.
#[derive(Debug)]
pub struct DatagramSocket {
    socket: AsyncFd<Socket>,
    /// Port 0 for an echo socket.
    target: SocketAddr,
}

impl DatagramSocket {
    /// Takes over a connected socket. Call on a tokio runtime.
    pub(super) fn new(socket: Socket, target: SocketAddr) -> io::Result<Self> {
        // Without it the kernel keeps most ICMP errors to itself.
        if target.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        sys::set_errors_wake_reader(socket.as_fd())?;
        Ok(Self { socket: sys::register_for_reading(socket)?, target })
    }

    /// The next message from the target, cut off at the length of `message`.
    pub fn poll_recv(&self, context: &mut Context<'_>, message: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            if let Ok(result) = ready.try_io(|socket| self.receive(socket.get_ref(), message)) {
                return Poll::Ready(result);
            }
        }
    }

    /// Waits for the next message from the target, cut off at the length of `message`.
    pub async fn recv(&self, message: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_recv(context, message)).await
    }

    /// Waits until [`try_recv`](Self::try_recv) has something to say.
    pub fn poll_recv_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(context).map_ok(drop)
    }

    /// The next message from the target if there is one, else `WouldBlock`.
    pub fn try_recv(&self, message: &mut [u8]) -> io::Result<usize> {
        self.socket.try_io(tokio::io::Interest::READABLE, |socket| self.receive(socket, message))
    }

    /// Sends a message. `WouldBlock` when the kernel's buffer is full: it is to be dropped, as a network would.
    pub fn try_send(&self, message: &[u8]) -> io::Result<()> {
        self.socket.get_ref().write(message).map(|_all| ())
    }

    /// Bytes of the largest IP packet that goes to the target whole, as far as the kernel knows.
    pub fn path_mtu(&self) -> io::Result<u32> {
        sys::path_mtu(self.as_fd(), self.target.is_ipv6())
    }

    /// The address its packets come from.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = self.socket.get_ref().local_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// One message from the target.
    fn receive(&self, socket: &Socket, message: &mut [u8]) -> io::Result<usize> {
        loop {
            match receive(socket, message, MsgFlags::empty()) {
                // From somebody else: an echo socket does not look at addresses, and a UDP socket takes anything in the
                // moment between getting its port and being connected.
                Ok((_, from)) if from != Some(self.target) => {}
                Ok((length, _)) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    forget_errors(socket);
                    return Err(error);
                }
            }
        }
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// Receives a message and where it came from.
fn receive(socket: &Socket, message: &mut [u8], flags: MsgFlags) -> io::Result<(usize, Option<SocketAddr>)> {
    let mut parts = [IoSliceMut::new(message)];
    let received = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, None, flags)?;
    let from = received.address.as_ref().and_then(|from| {
        let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
        v4.or_else(|| from.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
    });
    Ok((received.bytes, from))
}

/// Empties the queue where the kernel keeps ICMP errors with the packets they are about.
fn forget_errors(socket: &Socket) {
    for _ in 0..MAX_QUEUED_ERRORS {
        if receive(socket, &mut [], MsgFlags::MSG_ERRQUEUE).is_err() {
            break;
        }
    }
}
