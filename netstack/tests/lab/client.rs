//! A client: smoltcp's own TCP on an interface of its own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::lab::{DOWN, MTU, UP, compare, fill};

#[derive(Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        capabilities
    }
}

/// One connection of the client and what its application does.
pub(crate) struct Connection {
    handle: SocketHandle,
    /// Bytes it will send.
    pub(crate) send: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// It closes its half once everything is sent.
    pub(crate) closes: bool,
    /// It closes its half once the target closed its own.
    pub(crate) closes_after_target: bool,
    /// It saw the target's end.
    pub(crate) target_finished: bool,
    closed: bool,
}

/// A host with connections.
pub(crate) struct Client {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    pub(crate) connections: Vec<Connection>,
    next_port: u16,
}

fn smol(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap() + 1_000_000)
}

impl Client {
    pub(crate) fn new() -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 99;
        let mut interface = Interface::new(config, &mut wire, smol(Duration::ZERO));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new("100.96.0.2".parse().unwrap(), 0)).unwrap();
            addresses.push(IpCidr::new("fd00:96::2".parse().unwrap(), 0)).unwrap();
        });
        Self { wire, interface, sockets: SocketSet::new(Vec::new()), connections: Vec::new(), next_port: 40_000 }
    }

    /// Opens a connection that sends `send` bytes and then closes its half. Returns its number.
    pub(crate) fn connect(&mut self, to: SocketAddr, send: u64, buffer: usize) -> usize {
        let ring = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(ring(), ring());
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_nagle_enabled(false);
        socket.connect(self.interface.context(), to, self.next_port).unwrap();
        self.next_port += 1;
        let handle = self.sockets.add(socket);
        self.connections.push(Connection {
            handle,
            send,
            sent: 0,
            received: 0,
            closes: true,
            closes_after_target: false,
            target_finished: false,
            closed: false,
        });
        self.connections.len() - 1
    }

    pub(crate) fn state(&self, connection: usize) -> State {
        self.sockets.get::<Socket<'_>>(self.connections[connection].handle).state()
    }

    /// Resets a connection.
    pub(crate) fn abort(&mut self, connection: usize) {
        self.sockets.get_mut::<Socket<'_>>(self.connections[connection].handle).abort();
    }

    pub(crate) fn receive(&mut self, packet: Vec<u8>) {
        self.wire.received.push_back(packet);
    }

    /// Does what there is to do and returns the packets made.
    pub(crate) fn poll(&mut self, now: Duration) -> Vec<Vec<u8>> {
        self.interface.poll(smol(now), &mut self.wire, &mut self.sockets);
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
            while connection.sent < connection.send && socket.can_send() {
                let sent = socket
                    .send(|ring| {
                        let left = usize::try_from(connection.send - connection.sent).unwrap();
                        let len = ring.len().min(left);
                        fill(UP, connection.sent, &mut ring[..len]);
                        (len, len)
                    })
                    .unwrap();
                connection.sent += sent as u64;
            }
            while socket.can_recv() {
                let received = socket
                    .recv(|ring| {
                        compare(DOWN, connection.received, ring);
                        (ring.len(), ring.len())
                    })
                    .unwrap();
                connection.received += received as u64;
            }
            connection.target_finished |= socket.recv(|_| (0, ())) == Err(RecvError::Finished);
            let sent = connection.sent == connection.send && socket.may_send();
            let due = connection.closes || (connection.closes_after_target && connection.target_finished);
            if sent && due && !connection.closed {
                connection.closed = true;
                socket.close();
            }
        }
        self.interface.poll(smol(now), &mut self.wire, &mut self.sockets);
        self.wire.sent.drain(..).collect()
    }

    /// When it wants to be polled without a packet.
    pub(crate) fn next_timeout(&mut self, now: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(smol(now), &self.sockets)?;
        let micros = u64::try_from(at.total_micros()).unwrap().saturating_sub(1_000_000);
        Some(Duration::from_micros(micros).max(now + Duration::from_micros(1)))
    }
}
