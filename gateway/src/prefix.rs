//! Interface addresses, and what two networks share. Plain addresses and prefixes are read by [`portcullis_policy::address`].

use ipnet::IpNet;
use portcullis_policy::address::{AddressError, parse_address};

/// Why an interface address of a file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceAddressError {
    /// It is no address with a prefix length.
    #[error("`{0}` is not an address with its prefix length, like 100.96.0.1/16 or fd00:96::1/64")]
    NotAnInterfaceAddress(String),
    /// The address itself is refused.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Parses an interface address, `address/length`; the address keeps its host bits.
///
/// # Errors
///
/// Why it is refused.
pub fn parse_interface_address(text: &str) -> Result<IpNet, InterfaceAddressError> {
    let wrong = || InterfaceAddressError::NotAnInterfaceAddress(text.to_owned());
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let number: u8 = length.parse().map_err(|_| wrong())?;
    let net = IpNet::new(parse_address(address)?, number).map_err(|_| wrong())?;
    if number.to_string() == length { Ok(net) } else { Err(wrong()) }
}

/// Whether the two networks share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether `net`'s address cannot be a host's because it stands for the network or, in IPv4, for all hosts (RFC 919, RFC 4291 section 2.6.1).
pub fn is_network_itself(net: &IpNet) -> bool {
    net.max_prefix_len() - net.prefix_len() > 1
        && (net.addr() == net.network() || (net.addr().is_ipv4() && net.addr() == net.broadcast()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_addresses_keep_their_host_bits() {
        for text in ["100.96.0.1/16", "fd00:96::1/64", "192.0.2.1/32"] {
            assert_eq!(parse_interface_address(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "100.96.0.1",
            "100.96.0.1/",
            "100.96.0.1/016",
            "100.96.0.1/+16",
            "100.96.0.1/33",
            "0100.96.0.1/16",
            "FD00::1/64",
        ] {
            assert!(parse_interface_address(text).is_err(), "{text}");
        }
    }
}
