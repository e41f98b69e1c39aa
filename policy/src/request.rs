//! What is asked.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use thiserror::Error;

use crate::Identity;
use crate::address::{AddressError, parse_address};
use crate::json::quoted;
use crate::set::{named_protocol, plain};

/// Transport and port of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// ICMP or ICMPv6 echo.
    Icmp,
    /// Any other IP protocol, by its number.
    Protocol(u8),
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Icmp => f.write_str("icmp"),
            Self::Protocol(number) => write!(f, "proto/{number}"),
        }
    }
}

/// One question to the policy.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who asks.
    pub identity: &'a Identity,
    /// Address the packet came from.
    pub source: IpAddr,
    /// Address that would be dialled.
    pub destination: IpAddr,
    /// Transport and port that would be dialled.
    pub service: Service,
}

/// What is wrong with a destination written by a person.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DestinationError {
    /// It does not have the shape of one.
    #[error("{} is not a destination; expected ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/proto/NUMBER (an IPv6 address in brackets)", quoted(.0))]
    Shape(String),
    /// Its port is none.
    #[error("{} is not a port from 1 to 65535", quoted(.0))]
    Port(String),
    /// Its protocol number is none, or that of TCP, UDP or ICMP.
    #[error("{} is not the number of a protocol other than TCP, UDP and ICMP", quoted(.0))]
    Protocol(String),
    /// Its address is refused.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Reads a destination as commands and tests write it: `10.0.5.12:22/tcp`, `[fd00::1]:53/udp`, `10.0.5.12/icmp`, `[fd00::1]/proto/47`.
///
/// # Errors
///
/// Which part is wrong.
pub fn parse_destination(text: &str) -> Result<(IpAddr, Service), DestinationError> {
    let shape = || DestinationError::Shape(text.to_owned());
    let (place, protocol) = text.split_once('/').ok_or_else(shape)?;
    if let "tcp" | "udp" = protocol {
        let (host, port) = place.rsplit_once(':').ok_or_else(shape)?;
        let number = plain(port).filter(|port| *port != 0).ok_or_else(|| DestinationError::Port(port.to_owned()))?;
        let service = if protocol == "tcp" { Service::Tcp(number) } else { Service::Udp(number) };
        return Ok((parse_host(host).ok_or_else(shape)??, service));
    }
    let service = match protocol.strip_prefix("proto/") {
        None if protocol == "icmp" => Service::Icmp,
        None => return Err(shape()),
        Some(number) => plain(number)
            .filter(|number| named_protocol(*number).is_none())
            .map(Service::Protocol)
            .ok_or_else(|| DestinationError::Protocol(number.to_owned()))?,
    };
    Ok((parse_host(place).ok_or_else(shape)??, service))
}

/// An IPv4 address, or an IPv6 address in brackets; `None` when the brackets are wrong.
fn parse_host(text: &str) -> Option<Result<IpAddr, AddressError>> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match inner {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => Some(parse_address(inner)),
        None if !text.contains([':', '[', ']']) => Some(parse_address(text)),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_of_every_kind() {
        for (text, address, service) in [
            ("10.0.5.12:22/tcp", "10.0.5.12", Service::Tcp(22)),
            ("[fd00::1]:53/udp", "fd00::1", Service::Udp(53)),
            ("10.0.5.12/icmp", "10.0.5.12", Service::Icmp),
            ("[fd00::1]/icmp", "fd00::1", Service::Icmp),
            ("10.0.5.12/proto/47", "10.0.5.12", Service::Protocol(47)),
        ] {
            assert_eq!(parse_destination(text), Ok((address.parse().unwrap(), service)));
        }
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1:22",
            "10.0.0.1/tcp",
            "10.0.0.1:0/tcp",
            "10.0.0.1:022/tcp",
            "10.0.0.1:65536/tcp",
            "10.0.0.1:22/sctp",
            "10.0.0.1:22/icmp",
            "fd00::1:22/tcp",
            "fd00::1/icmp",
            "[10.0.0.1]:22/tcp",
            "[fd00::1:22/tcp",
            "010.0.0.1:22/tcp",
            "[::ffff:10.0.0.1]:22/tcp",
            "host:22/tcp",
            "10.0.0.1/proto/6",
            "10.0.0.1/proto/300",
            "10.0.0.0/8:22/tcp",
        ] {
            assert!(parse_destination(text).is_err(), "{text}");
        }
    }
}
