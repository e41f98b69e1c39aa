//! Packets as an attacker makes them: sent from a client by raw sockets, as they are.
//!
//! The kernel sends an IPv6 packet as it is. Of an IPv4 packet it writes the total length and the header checksum.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{FAMILIES, Family, Host};
use crate::netns::Netns;
use crate::world::Client;

/// `IPPROTO_RAW`.
const RAW: i32 = 255;
/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// Destination options.
pub const DESTINATION_OPTIONS: u8 = 60;
/// Options that are nothing but padding.
pub const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

/// The raw sockets of a client.
#[derive(Debug)]
pub struct RawSender {
    sockets: [Socket; 2],
}

impl RawSender {
    /// Opens them in the client's namespace.
    ///
    /// # Panics
    ///
    /// When the process may not.
    pub fn new(client: &Client<'_>) -> Self {
        Self::inside(client.netns)
    }

    /// Opens them in any namespace.
    ///
    /// # Panics
    ///
    /// When the process may not.
    pub fn inside(netns: &Netns) -> Self {
        let open = |domain| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW))).expect("root may open raw sockets");
            socket.set_send_buffer_size(1 << 20).expect("a larger buffer");
            socket
        };
        Self { sockets: netns.run(|| [open(Domain::IPV4), open(Domain::IPV6)]) }
    }

    /// Sends a packet into the way to the private network, wherever it says that it goes to.
    ///
    /// # Panics
    ///
    /// When the kernel does not send it.
    pub fn send(&self, packet: &[u8]) {
        let family = if packet[0] >> 4 == 6 { Family::V6 } else { Family::V4 };
        self.send_by(Host::Open.address(family), packet);
    }

    /// Sends a packet by the route to `way`.
    ///
    /// # Panics
    ///
    /// When the kernel does not send it.
    pub fn send_by(&self, way: IpAddr, packet: &[u8]) {
        let family = if packet[0] >> 4 == 6 { Family::V6 } else { Family::V4 };
        let way = SocketAddr::new(way, 0);
        let socket = &self.sockets[usize::from(family == Family::V6)];
        let sent = socket.send_to(packet, &way.into()).unwrap_or_else(|error| panic!("{error}: {packet:02x?}"));
        assert_eq!(sent, packet.len());
    }
}

fn ip(from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// A TCP SYN.
///
/// # Panics
///
/// When the addresses are of two families.
pub fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    let tcp = ip(from.ip(), to.ip()).tcp(from.port(), to.port(), 7, 65_000).syn();
    tcp.write(&mut packet, &[]).expect("memory takes everything");
    packet
}

/// A UDP datagram.
///
/// # Panics
///
/// When the addresses are of two families.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip(from.ip(), to.ip()).udp(from.port(), to.port()).write(&mut packet, payload).expect("memory takes everything");
    packet
}

/// An IPv6 packet with an extension header of eight octets more, in front of what it has.
pub fn with_header(packet: &[u8], kind: u8, options: [u8; 6]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let next = std::mem::replace(&mut packet[6], kind);
    let [a, b, c, d, e, f] = options;
    packet.splice(40..40, [next, 0, a, b, c, d, e, f]);
    set_length(&mut packet);
    packet
}

/// `data` at `offset` of the datagram that `packet` is, as a fragment.
///
/// # Panics
///
/// When the offset is none.
pub fn fragment(packet: &[u8], identification: u16, offset: usize, data: &[u8], more: bool) -> Vec<u8> {
    let units = u16::try_from(offset / 8).expect("an offset of less than 65,536");
    let [id_high, id_low] = identification.to_be_bytes();
    let mut fragment;
    if packet[0] >> 4 == 4 {
        let [high, low] = (units | if more { 0x2000 } else { 0 }).to_be_bytes();
        fragment = packet[..20].to_vec();
        fragment[4..8].copy_from_slice(&[id_high, id_low, high, low]);
    } else {
        let [high, low] = (units << 3 | u16::from(more)).to_be_bytes();
        fragment = packet[..40].to_vec();
        let next = std::mem::replace(&mut fragment[6], FRAGMENT);
        fragment.extend([next, 0, high, low, 0, 0, id_high, id_low]);
    }
    fragment.extend(data);
    set_length(&mut fragment);
    fragment
}

/// What follows the IP header.
pub fn body(packet: &[u8]) -> &[u8] {
    &packet[if packet[0] >> 4 == 4 { 20 } else { 40 }..]
}

fn set_length(packet: &mut [u8]) {
    let (at, length) = if packet[0] >> 4 == 4 { (2, packet.len()) } else { (4, packet.len() - 40) };
    packet[at..at + 2].copy_from_slice(&u16::try_from(length).expect("a packet's length").to_be_bytes());
}

/// The client's address and `port` in each family, and `host` with `service`.
pub fn pairs(client: &Client<'_>, port: u16, host: Host, service: u16) -> [(SocketAddr, SocketAddr); 2] {
    FAMILIES.map(|family| {
        (SocketAddr::new(client.inner_address(family), port), SocketAddr::new(host.address(family), service))
    })
}

/// An echo request.
///
/// # Panics
///
/// When the addresses are of two families.
pub fn echo_request(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    let ip = ip(from, to);
    let written = match from {
        IpAddr::V4(_) => ip.icmpv4_echo_request(7, 1).write(&mut packet, b"echo"),
        IpAddr::V6(_) => ip.icmpv6_echo_request(7, 1).write(&mut packet, b"echo"),
    };
    written.expect("memory takes everything");
    packet
}

/// How many [`errors`] there are in IPv4.
pub const ERRORS_V4: u32 = 8;
/// How many there are in IPv6.
pub const ERRORS_V6: u32 = 7;

/// Every kind of ICMP error, too big for less than anybody needs among them, about the packet `quote`.
///
/// # Panics
///
/// When the addresses are of two families.
pub fn errors(from: IpAddr, to: IpAddr, quote: &[u8]) -> Vec<Vec<u8>> {
    let v4: [(u8, u8, u32); ERRORS_V4 as usize] =
        [(3, 1, 0), (3, 3, 0), (3, 4, 68), (3, 4, 576), (4, 0, 0), (5, 1, 0x0a14_0001), (11, 0, 0), (12, 0, 0)];
    let v6: [(u8, u8, u32); ERRORS_V6 as usize] =
        [(1, 0, 0), (1, 4, 0), (2, 0, 68), (2, 0, 1280), (3, 0, 0), (4, 0, 0), (137, 0, 0)];
    let made = |&(kind, code, word): &(u8, u8, u32)| {
        let mut packet = Vec::new();
        let ip = ip(from, to);
        let written = match from {
            IpAddr::V4(_) => ip.icmpv4_raw(kind, code, word.to_be_bytes()).write(&mut packet, quote),
            IpAddr::V6(_) => ip.icmpv6_raw(kind, code, word.to_be_bytes()).write(&mut packet, quote),
        };
        written.expect("memory takes everything");
        packet
    };
    if from.is_ipv4() { v4.iter().map(made).collect() } else { v6.iter().map(made).collect() }
}
