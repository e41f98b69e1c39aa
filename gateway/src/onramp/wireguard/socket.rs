//! The UDP socket of a shard: batches in by GRO and recvmmsg, batches out by GSO.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use super::reuseport;

/// Bytes of each receive buffer: the kernel joins at most this much by GRO.
const RECEIVE_BUFFER: usize = 65_536;
/// Receive buffers of one call.
const RECEIVE_BATCH: usize = 16;
/// Bytes asked for as kernel socket buffers.
const SOCKET_BUFFER: usize = 4 << 20;
/// Most datagrams of one GSO send, UDP_MAX_SEGMENTS of the kernel before 6.9.
const MAX_SEGMENTS: usize = 64;
/// Most bytes of one GSO send: an IP packet's worth, less the headers.
const MAX_RUN: usize = 65_000;
/// Bytes that may wait for the kernel. Flows wait before it comes to this; answers to what keeps coming in are lost.
const MAX_OUTBOX: usize = 4 << 20;

/// Where a peer is, and which of our addresses it speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer's address and port, as the socket gave it.
    pub address: SocketAddr,
    /// The local address it sent to: answers leave from there.
    pub local: Option<IpAddr>,
}

impl Endpoint {
    /// The peer's address and port, an IPv4 one in its own form. A link-local one keeps the interface it is of (its scope,
    /// RFC 4007 section 6), without which nothing can be sent to it.
    pub fn canonical(&self) -> SocketAddr {
        match self.address {
            SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
                Some(v4) => SocketAddr::new(v4.into(), v6.port()),
                None => SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id())),
            },
            SocketAddr::V4(_) => self.address,
        }
    }
}

/// Datagrams to one endpoint that go out in one call: all of `segment` bytes, but the last may be shorter.
#[derive(Debug)]
struct Run {
    to: Endpoint,
    start: usize,
    end: usize,
    segment: usize,
    datagrams: usize,
}

/// A bound UDP socket.
#[derive(Debug)]
pub struct WireguardSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
}

/// Memory that batches are received into.
#[derive(Debug)]
pub struct ReceiveBuffers(Box<[u8]>);

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self(vec![0; RECEIVE_BUFFER * RECEIVE_BATCH].into_boxed_slice())
    }
}

/// How much of what there was room for came in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Every buffer was used: there is probably more.
    All,
    /// Some were not.
    Some,
}

/// Datagrams on their way out. Its memory is kept, so that no datagram costs an allocation.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Of these, the first `used` are datagrams that wait; what follows is left from earlier ones.
    bytes: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
    /// How many of `runs` are sent.
    sent: usize,
}

/// Binds the sockets of `shards` shards to one address, in their order. The kernel hands messages of a session to the shard
/// they are for, and spreads initiations, and what is no message, by their sender.
///
/// # Errors
/// What the kernel says about a socket, an option or the address.
pub fn bind(listen: SocketAddr, shards: usize, fwmark: Option<u32>) -> io::Result<Vec<std::net::UdpSocket>> {
    let mut listen = listen;
    let mut sockets = Vec::with_capacity(shards);
    for shard in 0..shards {
        let socket = open(listen, fwmark)?;
        // The first binds alone: sockets that share a port do not mind a stranger's that does, and a second gateway would
        // take half the clients.
        if shard > 0 {
            socket.set_reuse_port(true)?;
        }
        // CAP_NET_ADMIN may pass the kernel's own limits. Without it they clip, which is no reason not to start.
        if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
            let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        }
        socket.set_nonblocking(true)?;
        socket.bind(&listen.into())?;
        if shard == 0 && shards > 1 {
            socket.set_reuse_port(true)?;
        }
        let socket = std::net::UdpSocket::from(socket);
        // Port 0 is chosen once, for all.
        listen.set_port(socket.local_addr()?.port());
        sockets.push(socket);
    }
    if let Err(error) = reuseport::steer(&sockets) {
        tracing::debug!(%error, "the kernel does not look at receiver indexes: shards hand datagrams to each other");
    }
    Ok(sockets)
}

fn open(listen: SocketAddr, fwmark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if let Some(mark) = fwmark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

impl Outbox {
    /// Appends a datagram of at most `room` bytes. `fill` writes it and says how long it is; 0 means none.
    pub fn queue_with(&mut self, to: Endpoint, room: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        let start = self.used;
        if self.bytes.len() < start + room {
            self.bytes.resize(start + room, 0);
        }
        let len = fill(self.bytes.get_mut(start..start + room).unwrap_or_default()).min(room);
        if len == 0 {
            return;
        }
        let end = start + len;
        self.used = end;
        if self.runs.len() > self.sent
            && let Some(run) = self.runs.last_mut()
            && run.to == to
            && run.datagrams < MAX_SEGMENTS
            && (run.end - run.start) == run.datagrams * run.segment
            && len <= run.segment
            && end - run.start <= MAX_RUN
        {
            run.end = end;
            run.datagrams += 1;
        } else {
            self.runs.push(Run { to, start, end, segment: len, datagrams: 1 });
        }
    }

    /// Appends a ready-made datagram, unless the outbox [is full](Self::is_full).
    pub fn queue(&mut self, to: Endpoint, datagram: &[u8]) {
        if self.is_full() {
            return;
        }
        self.queue_with(to, datagram.len(), |room| {
            room.copy_from_slice(datagram);
            datagram.len()
        });
    }

    /// Whether more datagrams would only be kept: the kernel has taken none for a while.
    pub fn is_full(&self) -> bool {
        self.used >= MAX_OUTBOX
    }

    /// What waits to be sent, and where to.
    pub fn datagrams(&self) -> impl Iterator<Item = (Endpoint, &[u8])> {
        self.runs.iter().skip(self.sent).flat_map(|run| {
            let bytes = self.bytes.get(run.start..run.end).unwrap_or_default();
            bytes.chunks(run.segment.max(1)).map(|datagram| (run.to, datagram))
        })
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.used = 0;
        self.sent = 0;
    }

    /// Whether everything was sent.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

impl WireguardSocket {
    /// Adopts a bound socket. Must be called on the shard's runtime.
    ///
    /// # Errors
    /// What the kernel says about a socket option.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        // The inner MTU is fixed by configuration: a smaller outer path must cost speed, not reachability.
        // quinn-udp sets "don't fragment", which QUIC needs and WireGuard does not.
        let ipv6 = socket.local_addr()?.is_ipv6();
        crate::sys::allow_fragments(socket.as_fd(), ipv6)?;
        // It also has the kernel say of each datagram when it came and how it was marked (RFC 3168), which nobody reads here.
        let quiet = [
            setsockopt(&socket, sockopt::ReceiveTimestampns, &false),
            setsockopt(&socket, sockopt::IpRecvTos, &false),
            if ipv6 { setsockopt(&socket, sockopt::Ipv6RecvTClass, &false) } else { Ok(()) },
        ];
        if let Some(error) = quiet.into_iter().find_map(Result::err) {
            tracing::debug!(%error, "the kernel says more of each datagram than is read");
        }
        let io = tokio::net::UdpSocket::from_std(socket)?;
        Ok(Self { io, state })
    }

    /// Receives one batch and hands each datagram to `each`. Ready means there may be more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        memory: &mut ReceiveBuffers,
        mut each: impl FnMut(Endpoint, &[u8]),
    ) -> Poll<io::Result<Received>> {
        let mut metas = [RecvMeta::default(); RECEIVE_BATCH];
        loop {
            match self.io.poll_recv_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let mut chunks = memory.0.chunks_mut(RECEIVE_BUFFER);
            let mut buffers: [IoSliceMut<'_>; RECEIVE_BATCH] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            let io = &self.io;
            let received = io.try_io(Interest::READABLE, || self.state.recv(io.into(), &mut buffers, &mut metas));
            let count = match received {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            };
            for (buffer, meta) in buffers.iter().zip(&metas).take(count) {
                let from = Endpoint { address: meta.addr, local: meta.dst_ip };
                let bytes = buffer.get(..meta.len).unwrap_or_default();
                if bytes.is_empty() {
                    each(from, bytes);
                }
                for datagram in bytes.chunks(meta.stride.max(1)) {
                    each(from, datagram);
                }
            }
            return Poll::Ready(Ok(if count == RECEIVE_BATCH { Received::All } else { Received::Some }));
        }
    }

    /// Sends what is queued. Pending: the kernel's buffer is full; `failed` is told of datagrams that were lost.
    pub fn poll_flush(
        &self,
        cx: &mut Context<'_>,
        outbox: &mut Outbox,
        mut failed: impl FnMut(&io::Error, usize),
    ) -> Poll<()> {
        while let Some(run) = outbox.runs.get(outbox.sent) {
            let bytes = outbox.bytes.get(run.start..run.end).unwrap_or_default();
            match self.send(run, bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.io.poll_send_ready(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(_) => continue,
                },
                Err(error) => failed(&error, run.datagrams),
            }
            outbox.sent += 1;
        }
        outbox.clear();
        Poll::Ready(())
    }

    /// One call for the whole run; one by one when the path does not take it so.
    fn send(&self, run: &Run, bytes: &[u8]) -> io::Result<()> {
        // quinn-udp counts down to 1 what it knows the kernel to take.
        let gso = self.state.max_gso_segments() >= run.datagrams;
        let segment = (run.datagrams > 1).then_some(run.segment);
        if segment.is_some() && !gso {
            return self.send_each(run, bytes);
        }
        match self.try_send(run.to, bytes, segment) {
            // EINVAL, EIO: no GSO on this path. EMSGSIZE: a segment does not fit it, but may go in fragments.
            Err(error)
                if segment.is_some()
                    && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE)) =>
            {
                self.send_each(run, bytes)
            }
            other => other,
        }
    }

    fn send_each(&self, run: &Run, bytes: &[u8]) -> io::Result<()> {
        for datagram in bytes.chunks(run.segment.max(1)) {
            match self.try_send(run.to, datagram, None) {
                // The rest of the run is lost, as packets may be.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    fn try_send(&self, to: Endpoint, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit = Transmit { destination: to.address, ecn: None, contents, segment_size, src_ip: to.local };
        self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), &transmit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_a_port_and_a_second_gateway_does_not() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 2, None).unwrap();
        let taken = first[0].local_addr().unwrap();
        assert_eq!(first[1].local_addr().unwrap(), taken);
        for shards in [1, 2] {
            assert_eq!(bind(taken, shards, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn an_endpoint_in_its_own_form_can_be_sent_to() {
        let canonical = |address: SocketAddr| Endpoint { address, local: None }.canonical();
        for (address, own) in [
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("[::ffff:192.0.2.1]:1", "192.0.2.1:1"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
            ("[fe80::1%7]:1", "[fe80::1%7]:1"),
        ] {
            assert_eq!(canonical(address.parse().unwrap()), own.parse().unwrap());
        }
    }

    #[test]
    fn an_outbox_nobody_empties_is_bounded() {
        let to = Endpoint { address: "192.0.2.1:51820".parse().unwrap(), local: None };
        let mut outbox = Outbox::default();
        for _ in 0..100_000 {
            outbox.queue(to, &[0; 148]);
        }
        assert!(outbox.is_full());
        assert!(outbox.used < MAX_OUTBOX + 148 && outbox.bytes.len() < MAX_OUTBOX + 148, "{}", outbox.used);
    }
}
