//! Which shard's socket the kernel hands a datagram to.
//!
//! Left alone, it goes by a hash of the addresses: a peer that moved, or whose client was started again, sends to whatever
//! shard that names, and each of its datagrams would be mailed on to the one that has its tunnel. The number of the shard
//! is in the receiver index, so a classic BPF program of the socket group (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)) finds it
//! there. Initiations have none; datagrams that the kernel joined (UDP_GRO) go together, by the first of them. What gets to
//! the wrong shard all the same is mailed on as before.
//!
//! The choice is the sender's, who need not know a key. A flood of one index fills the queue of one shard, whatever the
//! number of its sources: peers of that shard suffer sooner than from one that is spread, and those of all others less.

use std::io;
use std::os::fd::AsFd;

use super::peers::{MESSAGE_COOKIE, MESSAGE_DATA, MESSAGE_RESPONSE};
use crate::sys;

/// Where the receiver index stands in a handshake response (WireGuard paper, section 5.4).
const IN_RESPONSE: u32 = 8;
/// Where it stands in a cookie reply and in transport data.
const IN_OTHERS: u32 = 4;
/// No socket of any group has this number: the kernel goes by the hash.
const BY_HASH: u32 = u32::MAX;

/// Has the kernel hand each datagram to the socket of the shard that its receiver index names. `sockets` share a port and
/// were bound in the order of the shards.
///
/// # Errors
/// What the kernel says: Linux before 4.5 has no such programs.
pub(super) fn steer(sockets: &[std::net::UdpSocket]) -> io::Result<()> {
    let [first, _, ..] = sockets else { return Ok(()) };
    let shards = u32::try_from(sockets.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    sys::attach_reuseport_program(first.as_fd(), &program(shards))
}

/// Number of the first statement for a response.
const RESPONSE_AT: u8 = 5;
/// Number of the first for other messages of a session.
const OTHERS_AT: u8 = RESPONSE_AT + 11;

/// The program. A datagram too short for what it reads goes to the first socket, where it is dropped.
fn program(shards: u32) -> Vec<libc::sock_filter> {
    let shard_of = |at: u32| -> [_; (OTHERS_AT - RESPONSE_AT) as usize] {
        let byte = |at: u32| statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at);
        // A becomes X << 8 | byte, through X.
        let shift = statement(libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K, 8);
        let to_x = statement(libc::BPF_MISC | libc::BPF_TAX, 0);
        let or_x = statement(libc::BPF_ALU | libc::BPF_OR | libc::BPF_X, 0);
        [
            // Little-endian, and the lowest byte counts sessions: see `PeerIndex`.
            byte(at + 3),
            shift,
            to_x,
            byte(at + 2),
            or_x,
            shift,
            to_x,
            byte(at + 1),
            or_x,
            statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, shards),
            statement(libc::BPF_RET | libc::BPF_A, 0),
        ]
    };
    let mut program = vec![
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0),
        jump(1, MESSAGE_DATA, OTHERS_AT),
        jump(2, MESSAGE_COOKIE, OTHERS_AT),
        jump(3, MESSAGE_RESPONSE, RESPONSE_AT),
        statement(libc::BPF_RET | libc::BPF_K, BY_HASH),
    ];
    program.extend(shard_of(IN_RESPONSE));
    program.extend(shard_of(IN_OTHERS));
    program
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// The statement with the number `from`: where A is `value`, the one with the number `to` is next.
fn jump(from: u8, value: u32, to: u8) -> libc::sock_filter {
    // Counted from the one behind.
    let jt = to - from - 1;
    libc::sock_filter { jt, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::super::owners::PeerIndex;
    use super::super::peers::MESSAGE_INITIATION;
    use super::super::socket::bind;
    use super::*;

    /// A message of this type with a receiver index at `at`.
    fn message(kind: u32, at: u32, receiver: u32) -> Vec<u8> {
        let mut message = vec![0xff; 64];
        message[..4].copy_from_slice(&kind.to_le_bytes());
        message[at as usize..][..4].copy_from_slice(&receiver.to_le_bytes());
        message
    }

    /// Which of the sockets got the only datagram there is.
    fn taken_by(sockets: &[UdpSocket], wait: Duration) -> Option<usize> {
        let until = std::time::Instant::now() + wait;
        loop {
            let got = sockets.iter().position(|socket| socket.recv(&mut [0; 128]).is_ok());
            if got.is_some() || std::time::Instant::now() >= until {
                return got;
            }
        }
    }

    #[test]
    fn the_receiver_index_chooses_the_shard_whatever_the_sender() {
        // 256 is 1 modulo 3 or 5, where the order of the bytes would not matter.
        const SHARDS: usize = 7;
        for (listen, from) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::]:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0")] {
            let sockets = bind(listen.parse().unwrap(), SHARDS, None).unwrap();
            let port = sockets[0].local_addr().unwrap().port();
            for turn in 0..28 {
                // Another sender each time, so another hash.
                let sender = UdpSocket::bind(from).unwrap();
                let to = (sender.local_addr().unwrap().ip(), port);
                let owner = PeerIndex { slot: 1 + turn * 70_001, shard: turn % SHARDS };
                let receiver = owner.encode(SHARDS) << 8 | 0xa5;
                for (kind, at) in [(MESSAGE_DATA, 4), (MESSAGE_COOKIE, 4), (MESSAGE_RESPONSE, 8)] {
                    sender.send_to(&message(kind, at, receiver), to).unwrap();
                    assert_eq!(taken_by(&sockets, Duration::from_secs(5)), Some(owner.shard), "{listen} {kind}");
                }
            }
        }
    }

    #[test]
    fn what_names_no_shard_is_taken_by_any() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 4, None).unwrap();
        let to = sockets[0].local_addr().unwrap();
        let mut seen = [false; 4];
        for _ in 0..200 {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(&message(MESSAGE_INITIATION, 4, 7), to).unwrap();
            seen[taken_by(&sockets, Duration::from_secs(5)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 4], "by the hash of the sender");
        for short in [&[][..], &[4], &[4, 0, 0, 0, 1], &[2, 0, 0, 0, 1, 2, 3, 4, 5]] {
            UdpSocket::bind("127.0.0.1:0").unwrap().send_to(short, to).unwrap();
            assert_eq!(taken_by(&sockets, Duration::from_secs(5)), Some(0), "{short:?}");
        }
    }
}
