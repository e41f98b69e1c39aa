//! Where a rule has flows go instead of where the client sent them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::address::{AddressError, parse_address};
use crate::json::quoted;
use crate::set::plain;

/// The target that a rule puts in the place of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rewrite {
    address: IpAddr,
    /// `None`: the port stays the one that was asked for.
    port: Option<u16>,
}

/// What is wrong with a target.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum RewriteError {
    #[error("{} is not a target; expected ADDRESS or ADDRESS:PORT (an IPv6 address with a port in brackets)", quoted(.0))]
    Shape(String),
    #[error("{} is not a port from 1 to 65535", quoted(.0))]
    Port(String),
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl Rewrite {
    pub(crate) fn parse(text: &str) -> Result<Self, RewriteError> {
        let shape = || RewriteError::Shape(text.to_owned());
        let (address, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once("]:").ok_or_else(shape)?;
                if !address.contains(':') {
                    return Err(shape());
                }
                (address, Some(port))
            }
            // An IPv6 address without brackets has no port.
            None if text.matches(':').count() > 1 => (text, None),
            None => text.split_once(':').map_or((text, None), |(address, port)| (address, Some(port))),
        };
        let number =
            |port: &str| plain(port).filter(|number| *number != 0).ok_or_else(|| RewriteError::Port(port.to_owned()));
        Ok(Self { address: parse_address(address)?, port: port.map(number).transpose()? })
    }

    /// The target of a flow that was sent to `asked`.
    pub(crate) fn of(self, asked: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.address, self.port.unwrap_or_else(|| asked.port()))
    }
}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_every_kind() {
        let asked: SocketAddr = "10.0.0.1:80".parse().unwrap();
        for (text, target) in [
            ("10.9.0.5:5432", "10.9.0.5:5432"),
            ("10.9.0.5", "10.9.0.5:80"),
            ("[fd00::5]:5432", "[fd00::5]:5432"),
            ("fd00::5", "[fd00::5]:80"),
        ] {
            let rewrite = Rewrite::parse(text).unwrap();
            assert_eq!((rewrite.of(asked).to_string().as_str(), rewrite.to_string().as_str()), (target, text));
        }
        for text in [
            "",
            ":",
            "db",
            "db:5432",
            "10.9.0.5:",
            "10.9.0.5:0",
            "10.9.0.5:65536",
            "10.9.0.5:080",
            "010.9.0.5",
            "10.9.0.0/24",
            "[10.9.0.5]:80",
            "[fd00::5]",
            "[fd00::5]80",
            "fd00::5:x",
            "::ffff:10.0.0.1",
            "10.9.0.5:80/tcp",
        ] {
            assert!(Rewrite::parse(text).is_err(), "{text}");
        }
    }
}
