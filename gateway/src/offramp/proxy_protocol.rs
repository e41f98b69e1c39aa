//! What a target is told of the connection it gets: the PROXY protocol, version 2
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ppp::v2::{Addresses, Builder, Command, Protocol, Version};

/// TLV with the name of the user. The types from 0xE0 on are for own use (section 2.2.8 there).
const USER: u8 = 0xE0;
/// TLV with the name of the device.
const DEVICE: u8 = 0xE1;

/// Whose connection it is.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The client's address and port.
    pub source: SocketAddr,
    /// The address and port that the client asked for.
    pub destination: SocketAddr,
    /// The user of its device.
    pub user: Arc<str>,
    /// Its device.
    pub device: Arc<str>,
}

/// The header in front of a connection; `None` is one of the gateway's own, as a probe.
pub(super) fn header(origin: Option<&Origin>) -> io::Result<Vec<u8>> {
    let Some(origin) = origin else {
        return Builder::with_addresses(Version::Two | Command::Local, Protocol::Unspecified, Addresses::Unspecified)
            .build();
    };
    Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, (origin.source, origin.destination))
        .write_tlv(USER, origin.user.as_bytes())?
        .write_tlv(DEVICE, origin.device.as_bytes())?
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_who_and_whereto() {
        let origin = Origin {
            source: "100.96.0.2:40000".parse().unwrap(),
            destination: "10.0.5.12:5432".parse().unwrap(),
            user: "ann@example.com".into(),
            device: "ann-laptop".into(),
        };
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x2b".to_vec();
        expected.extend([100, 96, 0, 2, 10, 0, 5, 12, 0x9c, 0x40, 0x15, 0x38]);
        expected.extend(b"\xe0\0\x0fann@example.com\xe1\0\x0aann-laptop");
        assert_eq!(header(Some(&origin)).unwrap(), expected);
        let v6 = Origin {
            source: "[fd00:96::2]:40000".parse().unwrap(),
            destination: "[fd10::1]:443".parse().unwrap(),
            ..origin
        };
        let header_v6 = header(Some(&v6)).unwrap();
        assert_eq!(header_v6.get(12..14), Some(&[0x21, 0x21][..]));
        assert_eq!(header(None).unwrap(), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }
}
