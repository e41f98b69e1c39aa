//! A set of services.

use std::fmt;

use thiserror::Error;

use super::{holds, merge, write_list};
use crate::Service;
use crate::index::service_number;
use crate::json::quoted;

/// One entry of `services`, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServiceSelector {
    Any,
    Tcp(u16, u16),
    Udp(u16, u16),
    Icmp,
    Protocol(u8),
}

/// What is wrong with an entry of `services`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ServiceError {
    #[error("{} is not a service; expected tcp/PORT, tcp/FIRST-LAST, tcp/*, udp/…, icmp, proto/NUMBER or *", quoted(.0))]
    Unknown(String),
    #[error("{} is not a port from 1 to 65535", quoted(.0))]
    Port(String),
    #[error("the range {} ends before it begins", quoted(.0))]
    Backwards(String),
    #[error("{} is not a protocol number from 0 to 255", quoted(.0))]
    Protocol(String),
    #[error("protocol {number} has a name here; write {name}")]
    Named { number: u8, name: &'static str },
}

impl ServiceSelector {
    pub(crate) fn parse(text: &str) -> Result<Self, ServiceError> {
        match text.split_once('/') {
            None if text == "*" => Ok(Self::Any),
            None if text == "icmp" => Ok(Self::Icmp),
            Some(("tcp", ports)) => parse_ports(ports).map(|(first, last)| Self::Tcp(first, last)),
            Some(("udp", ports)) => parse_ports(ports).map(|(first, last)| Self::Udp(first, last)),
            Some(("proto", number)) => {
                let number = plain(number).ok_or_else(|| ServiceError::Protocol(number.to_owned()))?;
                match named_protocol(number) {
                    Some(name) => Err(ServiceError::Named { number, name }),
                    None => Ok(Self::Protocol(number)),
                }
            }
            None | Some(_) => Err(ServiceError::Unknown(text.to_owned())),
        }
    }
}

/// How a protocol is selected that has a selector of its own.
pub(crate) fn named_protocol(number: u8) -> Option<&'static str> {
    match number {
        1 | 58 => Some("icmp"),
        6 => Some("tcp/*"),
        17 => Some("udp/*"),
        _ => None,
    }
}

/// A decimal number without sign or leading zeros.
pub(crate) fn plain<T: std::str::FromStr + fmt::Display>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

fn parse_ports(text: &str) -> Result<(u16, u16), ServiceError> {
    let port = |text: &str| plain(text).filter(|port| *port != 0).ok_or_else(|| ServiceError::Port(text.to_owned()));
    match text.split_once('-') {
        None if text == "*" => Ok((0, u16::MAX)),
        None => port(text).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            if first <= last { Ok((first, last)) } else { Err(ServiceError::Backwards(text.to_owned())) }
        }
    }
}

impl fmt::Display for ServiceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = |f: &mut fmt::Formatter<'_>, name, first, last| match (first, last) {
            (0, u16::MAX) => write!(f, "{name}/*"),
            (first, last) if first == last => write!(f, "{name}/{first}"),
            (first, last) => write!(f, "{name}/{first}-{last}"),
        };
        match *self {
            Self::Any => f.write_str("*"),
            Self::Tcp(first, last) => ports(f, "tcp", first, last),
            Self::Udp(first, last) => ports(f, "udp", first, last),
            Self::Icmp => f.write_str("icmp"),
            Self::Protocol(number) => write!(f, "proto/{number}"),
        }
    }
}

/// A set of services; a question costs a binary search.
#[derive(Debug)]
pub(crate) struct ServiceSet {
    any: bool,
    tcp: Box<[(u16, u16)]>,
    udp: Box<[(u16, u16)]>,
    icmp: bool,
    /// Sorted.
    protocols: Box<[u8]>,
    written: Box<[ServiceSelector]>,
}

impl ServiceSet {
    pub(crate) fn new(written: Vec<ServiceSelector>) -> Self {
        let (mut tcp, mut udp, mut protocols) = (Vec::new(), Vec::new(), Vec::new());
        let (mut any, mut icmp) = (false, false);
        for selector in &written {
            match *selector {
                ServiceSelector::Any => any = true,
                ServiceSelector::Tcp(first, last) => tcp.push((first, last)),
                ServiceSelector::Udp(first, last) => udp.push((first, last)),
                ServiceSelector::Icmp => icmp = true,
                ServiceSelector::Protocol(number) => protocols.push(number),
            }
        }
        protocols.sort_unstable();
        let next = |port: u16| port.checked_add(1);
        Self {
            any,
            tcp: merge(tcp, next),
            udp: merge(udp, next),
            icmp,
            protocols: protocols.into(),
            written: written.into(),
        }
    }

    pub(crate) fn contains(&self, service: Service) -> bool {
        self.any
            || match service {
                Service::Tcp(port) => holds(&self.tcp, port),
                Service::Udp(port) => holds(&self.udp, port),
                Service::Icmp => self.icmp,
                Service::Protocol(number) => self.protocols.binary_search(&number).is_ok(),
            }
    }

    /// The services as ranges of the numbers that the index gives them, ends included.
    pub(crate) fn numbers(&self) -> Vec<(u32, u32)> {
        if self.any {
            return crate::lint::EVERY_SERVICE.to_vec();
        }
        let one = |service| (service_number(service), service_number(service));
        let tcp = self.tcp.iter().map(|(first, last)| (Service::Tcp(*first), Service::Tcp(*last)));
        let udp = self.udp.iter().map(|(first, last)| (Service::Udp(*first), Service::Udp(*last)));
        let ports = tcp.chain(udp).map(|(first, last)| (service_number(first), service_number(last)));
        let others = self.protocols.iter().map(|number| one(Service::Protocol(*number)));
        ports.chain(self.icmp.then(|| one(Service::Icmp))).chain(others).collect()
    }

    /// Ranges of TCP ports, sorted.
    pub(crate) fn tcp(&self) -> &[(u16, u16)] {
        &self.tcp
    }

    /// Ranges of UDP ports, sorted.
    pub(crate) fn udp(&self) -> &[(u16, u16)] {
        &self.udp
    }

    /// Numbers of other protocols, sorted.
    pub(crate) fn protocols(&self) -> &[u8] {
        &self.protocols
    }

    /// The selectors as they were written.
    pub(crate) fn written(&self) -> &[ServiceSelector] {
        &self.written
    }
}

impl fmt::Display for ServiceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, self.written.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> ServiceSet {
        ServiceSet::new(texts.iter().map(|text| ServiceSelector::parse(text).unwrap()).collect())
    }

    #[test]
    fn selectors_read_and_print_alike() {
        for text in ["*", "tcp/1", "tcp/65535", "tcp/*", "udp/1-1024", "icmp", "proto/0", "proto/47", "proto/255"] {
            assert_eq!(ServiceSelector::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "tcp",
            "tcp/",
            "tcp/0",
            "tcp/01",
            "tcp/+1",
            "tcp/65536",
            "tcp/-",
            "tcp/1-",
            "tcp/2-1",
            "tcp/*-1",
            "TCP/1",
            "tcp/1,2",
            "http",
            "icmp/8",
            "proto/",
            "proto/256",
            "proto/047",
            "proto/6",
            "proto/17",
            "proto/1",
            "proto/58",
            " tcp/1",
            "443/tcp",
            "sctp/1",
        ] {
            assert!(ServiceSelector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn edges_of_ranges() {
        let services = set(&["tcp/100-200", "tcp/201", "udp/65535", "proto/47", "proto/4"]);
        assert_eq!(&*services.tcp, &[(100, 201)]);
        for (service, inside) in [
            (Service::Tcp(99), false),
            (Service::Tcp(100), true),
            (Service::Tcp(201), true),
            (Service::Tcp(202), false),
            (Service::Udp(100), false),
            (Service::Udp(65535), true),
            (Service::Icmp, false),
            (Service::Protocol(47), true),
            (Service::Protocol(4), true),
            (Service::Protocol(5), false),
        ] {
            assert_eq!(services.contains(service), inside, "{service}");
        }
        let any = set(&["*"]);
        assert!(any.contains(Service::Icmp) && any.contains(Service::Protocol(9)) && any.contains(Service::Tcp(0)));
        assert!(set(&["tcp/*"]).contains(Service::Tcp(0)));
    }
}
