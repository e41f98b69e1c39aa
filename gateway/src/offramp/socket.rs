//! Making the kernel's sockets: marked, bound to source, ports and interface, and connecting.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use super::DialError;
use super::ports::Ports;
use crate::config::resolved::OfframpConfig;
use crate::sys::{self, is_errno};

/// Receive buffer asked for a UDP socket, in bytes; the kernel caps it at `net.core.rmem_max`.
const UDP_RECEIVE_BUFFER: usize = 1 << 20;

/// What a socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
    Ping,
}

/// How the sockets of one off-ramp are made.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) mark: Option<u32>,
    source_v4: Option<Ipv4Addr>,
    source_v6: Option<Ipv6Addr>,
    pub(super) ports: Option<Arc<Ports>>,
    interface: Option<String>,
}

impl Sockets {
    /// As `config` says, on a host whose kernel chooses local ports from `kernel_ports`.
    pub(super) fn new(config: &OfframpConfig, mark: Option<u32>, kernel_ports: Option<&RangeInclusive<u16>>) -> Self {
        let v4 = |address: &IpAddr| {
            if let IpAddr::V4(v4) = address { Some(*v4) } else { None }
        };
        let v6 = |address: &IpAddr| {
            if let IpAddr::V6(v6) = address { Some(*v6) } else { None }
        };
        Self {
            mark,
            source_v4: config.source.iter().find_map(v4),
            source_v6: config.source.iter().find_map(v6),
            ports: config.ports.clone().map(|ports| Arc::new(Ports::new(ports, kernel_ports))),
            interface: config.interface.clone(),
        }
    }

    /// A TCP connection, which begins at once. The future ends after `patience` at the latest.
    pub(super) fn connect_tcp(
        &self,
        to: SocketAddr,
        patience: Duration,
    ) -> impl Future<Output = Result<TcpStream, DialError>> + Send + use<> {
        let started = self.start(Transport::Tcp, to);
        async move {
            let stream = TcpStream::from_std(started?.into())?;
            match tokio::time::timeout(patience, stream.writable()).await {
                Ok(writable) => writable?,
                Err(_elapsed) => return Err(DialError::Timeout),
            }
            match stream.take_error()? {
                Some(error) => Err(error.into()),
                None => Ok(stream),
            }
        }
    }

    /// A socket whose connection towards `to` has begun (TCP) or is made (others).
    pub(super) fn start(&self, transport: Transport, to: SocketAddr) -> Result<Socket, DialError> {
        let socket = self.prepare(transport, to)?;
        let Some(ports) = self.ports.as_ref().filter(|_| transport != Transport::Ping) else {
            return self.connect_from_any_port(transport, socket, to);
        };
        if ports.by_kernel {
            match sys::set_local_port_range(socket.as_fd(), &ports.range) {
                Ok(()) => return self.connect_from_any_port(transport, socket, to),
                // A kernel before 6.3: by hand.
                Err(error) if is_errno(&error, Errno::ENOPROTOOPT) => {}
                Err(error) => return Err(DialError::Io(error)),
            }
        }
        self.connect_from_port_in_turn(transport, ports, to)
    }

    /// The kernel chooses the port when it knows the target, so that one port serves many targets.
    fn connect_from_any_port(&self, transport: Transport, socket: Socket, to: SocketAddr) -> Result<Socket, DialError> {
        if let Some(source) = self.source(to) {
            if transport != Transport::Ping {
                setsockopt(&socket, IpBindAddressNoPort, &true).map_err(io::Error::from).map_err(DialError::Io)?;
            }
            socket.bind(&SocketAddr::new(source, 0).into()).map_err(|error| bind_error(error, source))?;
        }
        connect(&socket, to)?;
        Ok(socket)
    }

    /// Binds one port after the other until one is free towards the target.
    fn connect_from_port_in_turn(
        &self,
        transport: Transport,
        ports: &Ports,
        to: SocketAddr,
    ) -> Result<Socket, DialError> {
        let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let source = self.source(to).unwrap_or(any);
        for _ in 0..ports.tries() {
            let socket = self.prepare(transport, to)?;
            if transport == Transport::Tcp {
                // A port may be in use towards other targets; the connection's four-tuple is what must be free.
                socket.set_reuse_address(true).map_err(DialError::Io)?;
            }
            match socket.bind(&SocketAddr::new(source, ports.next()).into()) {
                Ok(()) => {}
                Err(error) if is_errno(&error, Errno::EADDRINUSE) => continue,
                Err(error) => return Err(bind_error(error, source)),
            }
            match connect(&socket, to) {
                Ok(()) => return Ok(socket),
                Err(DialError::PortsExhausted) => {}
                Err(error) => return Err(error),
            }
        }
        Err(DialError::PortsExhausted)
    }

    /// A socket with every option set, not bound yet.
    fn prepare(&self, transport: Transport, to: SocketAddr) -> Result<Socket, DialError> {
        let (kind, protocol) = match (transport, to) {
            (Transport::Tcp, _) => (Type::STREAM, Protocol::TCP),
            (Transport::Udp, _) => (Type::DGRAM, Protocol::UDP),
            (Transport::Ping, SocketAddr::V4(_)) => (Type::DGRAM, Protocol::ICMPV4),
            (Transport::Ping, SocketAddr::V6(_)) => (Type::DGRAM, Protocol::ICMPV6),
        };
        let socket = Socket::new(Domain::for_address(to), kind.nonblocking(), Some(protocol)).map_err(|error| {
            if transport == Transport::Ping && error.kind() == io::ErrorKind::PermissionDenied {
                return DialError::PingNotPermitted;
            }
            error.into()
        })?;
        let set = |result: io::Result<()>| result.map_err(DialError::Io);
        if let Some(mark) = self.mark {
            set(socket.set_mark(mark))?;
        }
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes())).map_err(|error| match error {
                error if is_errno(&error, Errno::ENODEV) => DialError::InterfaceUnavailable(interface.clone()),
                error => DialError::Io(error),
            })?;
        }
        if to.is_ipv6() && transport != Transport::Ping {
            set(socket.set_only_v6(true))?;
        }
        match transport {
            Transport::Tcp => set(socket.set_tcp_nodelay(true))?,
            // Best effort: a smaller buffer loses datagrams of a burst, nothing else.
            Transport::Udp => drop(socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER)),
            Transport::Ping => {}
        }
        Ok(socket)
    }

    /// The source address for targets of this family, when one is configured.
    fn source(&self, to: SocketAddr) -> Option<IpAddr> {
        match to {
            SocketAddr::V4(_) => self.source_v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.source_v6.map(IpAddr::V6),
        }
    }
}

fn connect(socket: &Socket, to: SocketAddr) -> Result<(), DialError> {
    match socket.connect(&to.into()) {
        Err(error) if !is_errno(&error, Errno::EINPROGRESS) => Err(error.into()),
        _ => Ok(()),
    }
}

fn bind_error(error: io::Error, source: IpAddr) -> DialError {
    if is_errno(&error, Errno::EADDRNOTAVAIL) {
        return DialError::SourceUnavailable(source);
    }
    error.into()
}
