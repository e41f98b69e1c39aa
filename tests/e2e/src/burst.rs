//! Datagrams that enter and leave a kernel together, as those of a QUIC client or server do.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};

use crate::netns::Netns;
use crate::wait;

/// Sends the datagrams of `run`, of `size` bytes each, of which the last may be shorter, in one call. `to`: where to, of
/// a socket that is not connected.
///
/// # Errors
///
/// The system's.
pub fn send(socket: &UdpSocket, run: &[u8], size: usize, to: Option<SocketAddr>) -> io::Result<()> {
    let to = to.map(SockaddrStorage::from);
    let call = |bytes: &[u8], sizes: &[ControlMessage<'_>]| {
        wait::uninterrupted(|| {
            let parts = [IoSlice::new(bytes)];
            sendmsg(socket.as_raw_fd(), &parts, sizes, MsgFlags::empty(), to.as_ref()).map_err(io::Error::from)
        })
    };
    let segment = u16::try_from(size).expect("a datagram's size");
    if run.len() > size {
        match call(run, &[ControlMessage::UdpGsoSegments(&segment)]) {
            // No such thing on this path in this kernel.
            Err(error) if matches!(error.raw_os_error().map(nix::errno::Errno::from_raw), Some(nix::Error::EIO)) => {}
            sent => return sent.map(drop),
        }
    }
    let (first, rest) = run.split_at(size.min(run.len()));
    call(first, &[])?;
    rest.chunks(size.max(1)).try_for_each(|datagram| call(datagram, &[]).map(drop))
}

/// A UDP server that reads what came together, and sends it back together.
#[derive(Debug)]
pub struct BurstEcho {
    address: SocketAddr,
    socket: UdpSocket,
}

impl BurstEcho {
    /// Listens on a free port of `address` inside `netns`.
    ///
    /// # Panics
    ///
    /// When the address cannot be bound.
    pub fn serve(netns: &Netns, address: IpAddr) -> Self {
        let socket = netns.run(|| UdpSocket::bind((address, 0)).unwrap_or_else(|error| panic!("{address}: {error}")));
        setsockopt(&socket, sockopt::UdpGroSegment, &true).expect("UDP_GRO");
        let address = socket.local_addr().expect("a bound socket has an address");
        let answering = socket.try_clone().expect("a second handle of the socket");
        std::thread::spawn(move || {
            let mut memory = vec![0; 65_536];
            while let Ok((len, size, from)) = receive(&answering, &mut memory) {
                // An empty datagram from itself asks it to end.
                if from == Some(address) {
                    return;
                }
                // An answer that cannot be sent is one the client misses.
                let _ = send(&answering, &memory[..len], size, from);
            }
        });
        Self { address, socket }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for BurstEcho {
    fn drop(&mut self) {
        // When it is lost the thread ends with the process.
        let _ = self.socket.send_to(&[], self.address);
    }
}

/// Length of all, size of each, and the sender.
fn receive(socket: &UdpSocket, memory: &mut [u8]) -> io::Result<(usize, usize, Option<SocketAddr>)> {
    let mut control = cmsg_space!(i32);
    wait::uninterrupted(|| {
        let mut parts = [IoSliceMut::new(memory)];
        let flags = MsgFlags::empty();
        let received = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let size = received.cmsgs()?.find_map(|message| {
            let ControlMessageOwned::UdpGroSegments(size) = message else { return None };
            usize::try_from(size).ok()
        });
        let from = received.address.as_ref().and_then(|from| {
            let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
            v4.or_else(|| from.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
        });
        Ok((received.bytes, size.unwrap_or(received.bytes), from))
    })
}
