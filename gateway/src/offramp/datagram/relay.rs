//! Datagrams through the relay of a SOCKS5 proxy: RFC 1928 section 7.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::Context;

use tokio::io::{AsyncRead, ReadBuf};

use super::super::stream::ProxyStream;

/// What a socket towards a relay must know.
#[derive(Debug)]
pub(in crate::offramp) struct Relay {
    target: SocketAddr,
    /// In front of each datagram to it: no fragment, and the target.
    header: Box<[u8]>,
    /// The association ends with it.
    control: RefCell<ProxyStream>,
    over: Cell<bool>,
}

/// Where a datagram behind a relay is from, and what is in it. `None`: it is part of one, or makes no sense.
fn parse(message: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (address, rest): (IpAddr, &[u8]) = match message {
        [0, 0, 0, 1, rest @ ..] => rest.split_first_chunk::<4>().map(|(v4, rest)| (IpAddr::from(*v4), rest))?,
        // Of a relay that has one socket for both families.
        [0, 0, 0, 4, rest @ ..] => {
            rest.split_first_chunk::<16>().map(|(v6, rest)| (IpAddr::from(*v6).to_canonical(), rest))?
        }
        _ => return None,
    };
    let (port, payload) = rest.split_first_chunk()?;
    Some((SocketAddr::new(address, u16::from_be_bytes(*port)), payload))
}

impl Relay {
    /// A relay towards `target` for as long as `control` is open.
    pub(in crate::offramp) fn new(target: SocketAddr, control: ProxyStream) -> Self {
        let mut header = vec![0, 0, 0];
        match target.ip() {
            IpAddr::V4(v4) => {
                header.push(1);
                header.extend(v4.octets());
            }
            IpAddr::V6(v6) => {
                header.push(4);
                header.extend(v6.octets());
            }
        }
        header.extend(target.port().to_be_bytes());
        Self { target, header: header.into(), control: RefCell::new(control), over: Cell::new(false) }
    }

    /// What goes in front of each datagram.
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    /// Takes the header off a datagram in `message`: the rest is moved to the front. Returns its length. `None`: it is not
    /// from the target, or a part of one.
    pub(super) fn unwrap(&self, message: &mut [u8]) -> Option<usize> {
        let (from, payload) = parse(message)?;
        if from != self.target {
            return None;
        }
        let len = payload.len();
        message.copy_within(message.len() - len.., 0);
        Some(len)
    }

    /// The proxy ended the association, as its port tells.
    pub(super) fn end(&self) {
        self.over.set(true);
    }

    /// Whether the proxy ended the association.
    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Looks whether the proxy ended the association, and has the task woken when it does.
    pub(super) fn poll_over(&self, cx: &mut Context<'_>) -> bool {
        if !self.over.get() {
            let mut ignored = [0; 16];
            let read = Pin::new(&mut *self.control.borrow_mut()).poll_read(cx, &mut ReadBuf::new(&mut ignored));
            // It has nothing to say: whatever it says is the end.
            self.over.set(read.is_ready());
        }
        self.over.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_of_a_datagram_says_where_it_is_from() {
        let v4: SocketAddr = "10.20.0.10:53".parse().unwrap();
        assert_eq!(parse(b"\0\0\0\x01\x0a\x14\0\x0a\0\x35hello"), Some((v4, &b"hello"[..])));
        let mapped = b"\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\x14\0\x0a\0\x35";
        assert_eq!(parse(mapped), Some((v4, &[][..])));
        for wrong in [
            &b""[..],
            b"\0\0\0\x01\x0a\x14\0\x0a\0",
            b"\0\0\x01\x01\x0a\x14\0\x0a\0\x35part",
            b"\0\x01\0\x01\x0a\x14\0\x0a\0\x35reserved",
            b"\0\0\0\x03\x01x\0\x35name",
        ] {
            assert_eq!(parse(wrong), None);
        }
    }
}
