//! A WireGuard client: boringtun's tunnel over a real socket, smoltcp's TCP inside.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use portcullis::metrics::counters::ShardCounters;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device as Phy, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::gateway::{Device, Gateway, MTU, public_key};

/// How long it waits for a datagram before it looks at its timers.
const TURN: Duration = Duration::from_millis(2);
/// How often the tunnel looks at its timers.
const TICK: Duration = Duration::from_millis(100);
/// Bytes of each buffer of a connection.
const BUFFER: usize = 256 * 1024;
/// How long the tests wait for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Phy for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        capabilities
    }
}

/// A connection of a client.
#[derive(Debug, Clone, Copy)]
pub struct Connection(SocketHandle);

/// A device with its tunnel.
pub struct Client {
    device: Device,
    tunnel: Tunn,
    socket: UdpSocket,
    gateway: SocketAddr,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
    began: Instant,
    next_tick: Instant,
    /// Inner packets that are not TCP.
    pub packets: VecDeque<Vec<u8>>,
    /// Outer datagrams that came.
    pub datagrams: usize,
    counters: Vec<Arc<ShardCounters>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("device", &self.device).finish_non_exhaustive()
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(TURN)).unwrap();
    socket
}

impl Client {
    /// The tunnel of `device`, whose first packet will open it.
    pub fn new(device: Device, gateway: &Gateway) -> Self {
        let mut wire = Wire::default();
        let began = Instant::now();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from(std::process::id()) << 8 | u64::from(device.number);
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let v4: IpAddr = [100, 96, 0, device.number].into();
            let v6: IpAddr = [0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(device.number)].into();
            addresses.push(IpCidr::new(v4.into(), 0)).unwrap();
            addresses.push(IpCidr::new(v6.into(), 0)).unwrap();
        });
        Self {
            device,
            tunnel: Tunn::new(device.private_key(), public_key(), None, None, u32::from(device.number), None),
            socket: socket(),
            gateway: gateway.address,
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            next_port: 40_000,
            began,
            next_tick: began,
            packets: VecDeque::new(),
            datagrams: 0,
            counters: gateway.counters(),
        }
    }

    /// Goes on from another port, as a device does that moved to another network.
    pub fn roam(&mut self) -> SocketAddr {
        self.socket = socket();
        self.socket.local_addr().unwrap()
    }

    /// Begins a TCP connection.
    pub fn connect(&mut self, address: &str, port: u16) -> Connection {
        let ring = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        let to = SocketAddr::new(address.parse().unwrap(), port);
        socket.connect(self.interface.context(), to, self.next_port).unwrap();
        self.next_port += 1;
        Connection(self.sockets.add(socket))
    }

    /// The socket of a connection.
    pub fn tcp(&mut self, connection: Connection) -> &mut Socket<'static> {
        self.sockets.get_mut(connection.0)
    }

    /// Sends one inner packet.
    pub fn send_packet(&mut self, packet: &[u8]) {
        let mut datagram = vec![0; (packet.len() + 32).max(148)];
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.encapsulate(packet, &mut datagram) {
            self.socket.send_to(datagram, self.gateway).unwrap();
        }
    }

    /// Sends an outer datagram as it is.
    pub fn send_datagram(&mut self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.gateway).unwrap();
    }

    /// One turn: timers, TCP, what comes in.
    pub fn turn(&mut self) {
        let mut buffer = vec![0; 65_536];
        if Instant::now() >= self.next_tick {
            self.next_tick += TICK;
            if let TunnResult::WriteToNetwork(datagram) = self.tunnel.update_timers(&mut buffer) {
                self.socket.send_to(datagram, self.gateway).unwrap();
            }
        }
        let now = smoltcp::time::Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap());
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let sent = std::mem::take(&mut self.wire.sent);
        for packet in &sent {
            self.send_packet(packet);
        }
        let mut datagram = vec![0; 65_536];
        self.socket.set_nonblocking(!sent.is_empty()).unwrap();
        loop {
            match self.socket.recv(&mut datagram) {
                Ok(len) => self.receive(&datagram[..len], &mut buffer),
                // A refused datagram: the gateway is gone, which the test sees by what it waits for.
                // An interrupted call: the machine was stopped for a moment.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => {}
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                    return;
                }
            }
            self.socket.set_nonblocking(true).unwrap();
        }
    }

    fn receive(&mut self, datagram: &[u8], buffer: &mut [u8]) {
        self.datagrams += 1;
        match self.tunnel.decapsulate(None, datagram, buffer) {
            TunnResult::WriteToTunnelV4(packet, _) => self.take_packet(packet.to_vec(), 9),
            TunnResult::WriteToTunnelV6(packet, _) => self.take_packet(packet.to_vec(), 6),
            TunnResult::WriteToNetwork(answer) => {
                self.socket.send_to(answer, self.gateway).unwrap();
                while let TunnResult::WriteToNetwork(waiting) = self.tunnel.decapsulate(None, &[], buffer) {
                    self.socket.send_to(waiting, self.gateway).unwrap();
                }
            }
            TunnResult::Done => {}
            TunnResult::Err(error) => panic!("{error:?}"),
        }
    }

    fn take_packet(&mut self, packet: Vec<u8>, protocol_at: usize) {
        const TCP: u8 = 6;
        if packet[protocol_at] == TCP {
            self.wire.received.push_back(packet);
        } else {
            self.packets.push_back(packet);
        }
    }

    /// Takes turns until `done`, at most for `patience`. Returns whether it was done.
    pub fn run(&mut self, patience: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = Instant::now() + patience;
        loop {
            if done(self) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            self.turn();
        }
    }

    /// Takes turns until `done`, which must happen.
    pub fn until(&mut self, what: &str, done: impl FnMut(&mut Self) -> bool) {
        assert!(self.run(PATIENCE, done), "{what}: did not happen within {PATIENCE:?}; {:#?}", self.counters);
    }

    /// Opens a TCP connection and waits until it is established.
    pub fn open(&mut self, address: &str, port: u16) -> Connection {
        let connection = self.connect(address, port);
        self.until("connected", |client| client.tcp(connection).may_send());
        connection
    }

    /// Sends `len` bytes to an echo service and checks that the same come back.
    pub fn exchange(&mut self, connection: Connection, len: usize) {
        let byte = |at: usize| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8;
        let (mut sent, mut received) = (0, 0);
        self.until("echoed", |client| {
            let socket = client.tcp(connection);
            while sent < len && socket.can_send() {
                sent += socket
                    .send(|ring| {
                        let take = ring.len().min(len - sent);
                        ring[..take].iter_mut().zip(sent..).for_each(|(to, at)| *to = byte(at));
                        (take, take)
                    })
                    .unwrap();
            }
            while socket.can_recv() {
                received += socket
                    .recv(|ring| {
                        assert!(ring.iter().zip(received..).all(|(got, at)| *got == byte(at)), "a byte is wrong");
                        (ring.len(), ring.len())
                    })
                    .unwrap();
            }
            received == len
        });
    }
}
