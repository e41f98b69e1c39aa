//! Connected datagram sockets: UDP, in runs of datagrams both ways, and ICMP echo without raw sockets.

mod errors;
pub(super) mod relay;

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, cmsg_space, recvmsg, sendmsg, setsockopt, sockopt,
};
use portcullis_netstack::packet::build::Reported;
use socket2::{SockRef, Socket};
use tokio::io::unix::AsyncFd;

use self::relay::Relay;
use crate::sys;

/// Most datagrams of a run that is sent: `UDP_MAX_SEGMENTS` of the kernel before 6.9.
pub const MAX_RUN_DATAGRAMS: usize = 64;
/// Most bytes of a run that is sent: an IP packet's worth, less the headers.
pub const MAX_RUN: usize = 65_000;
/// Somebody who allows a datagram no more hops than this measures the path: traceroute and mtr go up to 30. All others get
/// the kernel's own limit, which costs no call.
const MEASURING: u8 = 32;
/// Bytes of the headers that a datagram's path MTU has to hold besides its payload, without IP options.
const HEADERS: u32 = 40 + 8;

/// A socket that talks to one target, or to the relay of a proxy that does.
///
/// *UDP*: a message is a datagram's payload, or a run: the payloads of several datagrams one after the other, all of one
/// size but the last, which may be shorter. A run costs one call, and one journey through the kernel's own stack as far
/// as the devices there take it (`UDP_SEGMENT`, `UDP_GRO`: udp(7)).
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
    /// What it is connected to: the target, or the relay. Port 0 for an echo socket.
    peer: SocketAddr,
    /// Between it and the target.
    relay: Option<Relay>,
    /// The kernel refuses runs towards this target.
    one_by_one: Cell<bool>,
    /// The hop limit of what is sent, where it is not the kernel's own.
    hop_limit: Cell<Option<u8>>,
    /// ICMP errors that nobody has asked for yet.
    reported: RefCell<Vec<Reported>>,
}

/// What was received: `bytes` of the caller's buffer, which are one datagram or a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// How many bytes.
    pub bytes: usize,
    /// Bytes of each datagram but the last.
    pub datagram: usize,
}

/// The datagrams of a run. An empty one is one empty datagram.
pub fn datagrams(run: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    let (first, rest) = run.split_at(size.min(run.len()));
    std::iter::once(first).chain(rest.chunks(size.max(1)))
}

impl DatagramSocket {
    /// Takes over a socket that is connected to its target. Call on a tokio runtime.
    pub(super) fn new(socket: Socket, target: SocketAddr) -> io::Result<Self> {
        Self::connected(socket, target, None)
    }

    /// Takes over a UDP socket that is connected to `peer`, a relay. Call on a tokio runtime.
    pub(super) fn relayed(socket: Socket, peer: SocketAddr, relay: Relay) -> io::Result<Self> {
        Self::connected(socket, peer, Some(relay))
    }

    fn connected(socket: Socket, peer: SocketAddr, relay: Option<Relay>) -> io::Result<Self> {
        // Without it the kernel keeps most ICMP errors to itself.
        if peer.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        sys::set_errors_wake_reader(socket.as_fd())?;
        if peer.port() != 0 && relay.is_none() {
            // A kernel before 5.0 hands up one datagram at a time.
            let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        }
        let one_by_one = Cell::new(relay.is_some());
        Ok(Self {
            socket: sys::register_for_reading(socket)?,
            peer,
            relay,
            one_by_one,
            hop_limit: Cell::new(None),
            reported: RefCell::default(),
        })
    }

    /// Whether the proxy it goes through ended it: nothing comes or goes any more.
    pub fn is_over(&self) -> bool {
        self.relay.as_ref().is_some_and(Relay::is_over)
    }

    /// The next message or run from the target, cut off at the length of `message`.
    pub fn poll_recv(&self, context: &mut Context<'_>, message: &mut [u8]) -> Poll<io::Result<Received>> {
        if self.relay.as_ref().is_some_and(|relay| relay.poll_over(context)) {
            return Poll::Pending;
        }
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            if let Ok(result) = ready.try_io(|socket| self.receive(socket.get_ref(), message)) {
                return Poll::Ready(result);
            }
        }
    }

    /// Waits for the next message or run from the target, cut off at the length of `message`.
    pub async fn recv(&self, message: &mut [u8]) -> io::Result<Received> {
        std::future::poll_fn(|context| self.poll_recv(context, message)).await
    }

    /// Waits until [`try_recv`](Self::try_recv) has something to say.
    pub fn poll_recv_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(context).map_ok(drop)
    }

    /// The next message or run from the target if there is one, else `WouldBlock`.
    pub fn try_recv(&self, message: &mut [u8]) -> io::Result<Received> {
        self.socket.try_io(tokio::io::Interest::READABLE, |socket| self.receive(socket, message))
    }

    /// Sends a message. `WouldBlock` when the kernel's buffer is full: it is to be dropped, as a network would.
    pub fn try_send(&self, message: &[u8]) -> io::Result<()> {
        let mut socket = self.socket.get_ref();
        let sent = match &self.relay {
            None => socket.write(message),
            Some(relay) => socket.write_vectored(&[IoSlice::new(relay.header()), IoSlice::new(message)]),
        };
        self.with_reported(sent.map(|_all| ()))
    }

    /// Sends a run of at most [`MAX_RUN_DATAGRAMS`] and [`MAX_RUN`] bytes, all of it or none. Of one datagram it is
    /// [`try_send`](Self::try_send).
    ///
    /// # Errors
    /// `None`: it cannot go as a run, each of its datagrams must be sent by itself. Otherwise what the kernel says.
    pub fn try_send_run(&self, run: &[u8], size: usize) -> Result<(), Option<io::Error>> {
        let segment = match u16::try_from(size) {
            Ok(segment) if run.len() > size => segment,
            _ => return self.try_send(run).map_err(Some),
        };
        if self.one_by_one.get() {
            return Err(None);
        }
        let parts = [IoSlice::new(run)];
        let sizes = [ControlMessage::UdpGsoSegments(&segment)];
        let socket = self.socket.get_ref().as_raw_fd();
        let sent = sendmsg::<SockaddrStorage>(socket, &parts, &sizes, MsgFlags::empty(), None);
        match self.with_reported(sent.map(|_all| ()).map_err(io::Error::from)) {
            Ok(()) => Ok(()),
            // A datagram larger than the path takes goes in fragments, which no run does. Which of the two it is called
            // depends on the kernel.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE)) => {
                let fits = self.path_mtu().is_ok_and(|mtu| u32::from(segment) + HEADERS <= mtu);
                if fits && error.raw_os_error() != Some(libc::EMSGSIZE) {
                    tracing::debug!(target = %self.peer, %error, "the kernel refuses runs of datagrams");
                    self.one_by_one.set(true);
                }
                Err(None)
            }
            Err(error) => Err(Some(error)),
        }
    }

    /// The ICMP errors behind the errors of the last calls.
    pub fn take_reported(&self) -> Vec<Reported> {
        self.reported.take()
    }

    /// Whether what is sent may take `hops` as it is set.
    pub fn has_hop_limit(&self, hops: u8) -> bool {
        match self.hop_limit.get() {
            // Behind a relay the hops are the proxy's.
            _ if self.relay.is_some() => true,
            Some(limit) => limit == hops,
            None => hops > MEASURING,
        }
    }

    /// What is sent from now on may take `hops` hops.
    pub fn set_hop_limit(&self, hops: u8) {
        let (socket, hops_32) = (SockRef::from(self.socket.get_ref()), u32::from(hops));
        let set = if self.peer.is_ipv4() { socket.set_ttl_v4(hops_32) } else { socket.set_unicast_hops_v6(hops_32) };
        match set {
            Ok(()) => self.hop_limit.set(Some(hops)),
            Err(error) => tracing::debug!(target = %self.peer, %error, hops, "cannot set the hop limit"),
        }
    }

    /// Sending took the error of an earlier datagram off the socket.
    fn with_reported<T>(&self, sent: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &sent
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.take_errors(self.socket.get_ref(), error);
        }
        sent
    }

    fn take_errors(&self, socket: &Socket, error: &io::Error) {
        let mut reported = self.reported.borrow_mut();
        errors::take(socket, self.peer, &mut reported);
        if let Some(relay) = &self.relay {
            // They are about the way to the proxy.
            reported.clear();
            if error.kind() == io::ErrorKind::ConnectionRefused {
                relay.end();
            }
        }
    }

    /// Whether what the kernel says of it is about the proxy, and not the target.
    pub fn is_relayed(&self) -> bool {
        self.relay.is_some()
    }

    /// Bytes of the largest IP packet that goes to the target whole, as far as the kernel knows.
    pub fn path_mtu(&self) -> io::Result<u32> {
        let header = self.relay.as_ref().map_or(0, |relay| relay.header().len());
        let mtu = sys::path_mtu(self.as_fd(), self.peer.is_ipv6())?;
        Ok(mtu.saturating_sub(u32::try_from(header).unwrap_or(u32::MAX)))
    }

    /// The address its packets come from.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = self.socket.get_ref().local_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// One message or run from the target.
    fn receive(&self, socket: &Socket, message: &mut [u8]) -> io::Result<Received> {
        loop {
            match receive(socket, message, MsgFlags::empty()) {
                // From somebody else: an echo socket does not look at addresses, and a UDP socket takes anything in the
                // moment between getting its port and being connected.
                Ok((_, from)) if from != Some(self.peer) => {}
                Ok((received, _)) => {
                    let Some(relay) = &self.relay else { return Ok(received) };
                    let unwrapped = message.get_mut(..received.bytes).and_then(|message| relay.unwrap(message));
                    // One that is not the target's is no reason to go on: there may be any number of them.
                    return match unwrapped {
                        Some(bytes) => Ok(Received { bytes, datagram: bytes }),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    self.take_errors(socket, &error);
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

/// Memory for the control message with the size of a run's datagrams.
#[repr(align(8))]
struct Control([u8; cmsg_space::<libc::c_int>()]);

/// Receives a message or run, and where it came from.
fn receive(socket: &Socket, message: &mut [u8], flags: MsgFlags) -> io::Result<(Received, Option<SocketAddr>)> {
    let mut parts = [IoSliceMut::new(message)];
    let mut control = Control([0; cmsg_space::<libc::c_int>()]);
    let received = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control.0), flags)?;
    let from = received.address.as_ref().and_then(|from| {
        let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
        v4.or_else(|| from.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
    });
    let size = received.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|message| {
            let ControlMessageOwned::UdpGroSegments(size) = message else { return None };
            usize::try_from(size).ok().filter(|size| *size > 0)
        })
    });
    Ok((Received { bytes: received.bytes, datagram: size.unwrap_or(received.bytes) }, from))
}

#[cfg(test)]
mod tests;
