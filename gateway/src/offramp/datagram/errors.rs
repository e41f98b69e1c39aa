//! What routers and targets say in ICMP about datagrams that were sent: the error queue of a socket, ip(7).

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, cmsg_space, recvmsg};
use portcullis_netstack::packet::build::{Reported, Unreachable};
use socket2::Socket;

/// How many queued errors are taken at once.
const MAX_QUEUED: usize = 64;
/// Of a message that an error is about: the ICMP header of an echo request.
const ABOUT: usize = 8;
/// ICMP types: RFC 792 and RFC 4443.
const UNREACHABLE_V4: u8 = 3;
const TIME_EXCEEDED_V4: u8 = 11;
const UNREACHABLE_V6: u8 = 1;
const TIME_EXCEEDED_V6: u8 = 3;
/// Code of [`UNREACHABLE_V4`]: too big, of which the kernel itself keeps what it believes.
const FRAGMENTATION_NEEDED: u8 = 4;

/// Memory for the control message with an error and who reported it.
#[repr(align(8))]
struct Control([u8; cmsg_space::<(libc::sock_extended_err, libc::sockaddr_in6)>()]);

/// Empties the error queue into `reported`, as far as there is room: what says more than the error of a call does.
pub(super) fn take(socket: &Socket, peer: SocketAddr, reported: &mut Vec<Reported>) {
    let own = socket.local_addr().ok().and_then(|own| own.as_socket()).map(|own| own.ip());
    for _ in 0..MAX_QUEUED {
        let mut about = [0; ABOUT];
        let mut control = Control([0; size_of::<Control>()]);
        let (len, error) = {
            let mut parts = [IoSliceMut::new(&mut about)];
            let flags = MsgFlags::MSG_ERRQUEUE;
            let Ok(received) = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control.0), flags)
            else {
                return;
            };
            let error = received.cmsgs().ok().and_then(|mut messages| messages.find_map(|message| error(&message)));
            (received.bytes, error)
        };
        let Some((error, from)) = error else { continue };
        // A rule may have sent the flow to another target than the client knows of; and what this host's own kernel says
        // (nobody has the address on the link) is no router's word: a host behind the TUN would not even take it.
        let from = from.filter(|from| *from != peer.ip() && Some(*from) != own && is_router(*from));
        let [_, _, _, _, _, _, high, low] = about;
        let sequence = (peer.port() == 0 && len >= ABOUT).then(|| u16::from_be_bytes([high, low]));
        if reported.len() < MAX_QUEUED {
            reported.push(Reported { error, from, sequence });
        }
    }
}

/// The error that came by ICMP, and from where.
fn error(message: &ControlMessageOwned) -> Option<(Unreachable, Option<IpAddr>)> {
    if let ControlMessageOwned::Ipv4RecvErr(error, from) = message
        && error.ee_origin == libc::SO_EE_ORIGIN_ICMP
    {
        let from = from.map(|from| IpAddr::from(from.sin_addr.s_addr.to_ne_bytes()));
        return error_v4(error.ee_type, error.ee_code).map(|error| (error, from));
    }
    if let ControlMessageOwned::Ipv6RecvErr(error, from) = message
        && error.ee_origin == libc::SO_EE_ORIGIN_ICMP6
    {
        let from = from.map(|from| IpAddr::from(from.sin6_addr.s6_addr));
        return error_v6(error.ee_type, error.ee_code).map(|error| (error, from));
    }
    None
}

/// RFC 792, and RFC 1812 section 5.2.7.1 for the codes from 6 on.
fn error_v4(kind: u8, code: u8) -> Option<Unreachable> {
    match (kind, code) {
        (UNREACHABLE_V4, FRAGMENTATION_NEEDED) => None,
        (UNREACHABLE_V4, 0 | 6 | 11) => Some(Unreachable::Network),
        (UNREACHABLE_V4, 2 | 3) => Some(Unreachable::Port),
        (UNREACHABLE_V4, 9 | 10 | 13) => Some(Unreachable::Prohibited),
        (UNREACHABLE_V4, _) => Some(Unreachable::Host),
        (TIME_EXCEEDED_V4, 0) => Some(Unreachable::HopLimit),
        _ => None,
    }
}

/// RFC 4443 section 3.
fn error_v6(kind: u8, code: u8) -> Option<Unreachable> {
    match (kind, code) {
        (UNREACHABLE_V6, 0) => Some(Unreachable::Network),
        (UNREACHABLE_V6, 1 | 5 | 6) => Some(Unreachable::Prohibited),
        (UNREACHABLE_V6, 4) => Some(Unreachable::Port),
        (UNREACHABLE_V6, _) => Some(Unreachable::Host),
        (TIME_EXCEEDED_V6, 0) => Some(Unreachable::HopLimit),
        _ => None,
    }
}

/// Whether a client may be told that an error is from there.
fn is_router(from: IpAddr) -> bool {
    let link_local = match from {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || from.is_unspecified() || from.is_loopback() || from.is_multicast())
}
