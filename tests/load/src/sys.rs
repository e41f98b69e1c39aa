//! What is asked of the system beyond sockets.

use std::net::UdpSocket;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

/// Descriptors asked for: the kernel's own default for the most a process may have.
const DESCRIPTORS: u64 = 1 << 20;
/// Bytes asked for as a receive buffer.
const RECEIVE_BUFFER: usize = 16 << 20;

/// Raises the number of descriptors this process may have: to 2^20 as root, else to what it may raise it to.
pub(crate) fn raise_descriptors() {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if hard >= DESCRIPTORS || setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_err() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(DESCRIPTORS), hard);
    }
}

/// Gives a socket a receive buffer that a burst fits into, past the system's limit where that is allowed.
pub(crate) fn widen_receive_buffer(socket: &UdpSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
}
