//! Addresses and prefixes in documents: each has one spelling, and none hides another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use thiserror::Error;

use crate::json::quoted;

/// What is wrong with an address or prefix in a document.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    /// It is no address.
    #[error("{} is not an IP address", quoted(.0))]
    NotAnAddress(String),
    /// It is no prefix.
    #[error("{} is not a prefix; expected an IP address, a slash and a length", quoted(.0))]
    NotAPrefix(String),
    /// It has another spelling, which is the canonical one.
    #[error("{} is ambiguous; write {canonical}", quoted(.text))]
    NotCanonical {
        /// What was written.
        text: String,
        /// How it is written.
        canonical: String,
    },
    /// Bits beyond the prefix length are set.
    #[error("{} has host bits; write {network} for the network or {host} for the host", quoted(.text))]
    HostBits {
        /// What was written.
        text: String,
        /// The network it lies in.
        network: IpNet,
        /// The one address.
        host: IpNet,
    },
    /// An IPv6 address that stands for an IPv4 one.
    #[error("{} hides an IPv4 address ({kind}); write the IPv4 address itself", quoted(.text))]
    HidesIpv4 {
        /// What was written.
        text: String,
        /// The mechanism.
        kind: Hidden,
    },
}

/// The mechanisms by which an IPv6 address stands for an IPv4 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    /// `::ffff:0:0/96`, RFC 4291 section 2.5.5.2.
    Mapped,
    /// `::/96` without `::` and `::1`, RFC 4291 section 2.5.5.1.
    Compatible,
    /// `2002::/16`, RFC 3056.
    SixToFour,
    /// `64:ff9b::/96` (RFC 6052) and `64:ff9b:1::/48` (RFC 8215).
    Nat64,
    /// `2001::/32`, RFC 4380.
    Teredo,
}

impl std::fmt::Display for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mapped => "IPv4-mapped",
            Self::Compatible => "IPv4-compatible",
            Self::SixToFour => "6to4",
            Self::Nat64 => "NAT64",
            Self::Teredo => "Teredo",
        })
    }
}

/// Whether `address` stands for an IPv4 address: mapped, compatible, 6to4, NAT64 or Teredo.
pub fn hides_ipv4(address: Ipv6Addr) -> bool {
    hidden(address).is_some()
}

fn hidden(address: Ipv6Addr) -> Option<Hidden> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, _, _] => Some(Hidden::Mapped),
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0, _, _] => Some(Hidden::Compatible),
        [0x2002, ..] => Some(Hidden::SixToFour),
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 1, ..] => Some(Hidden::Nat64),
        [0x2001, 0, ..] => Some(Hidden::Teredo),
        _ => None,
    }
}

/// The mechanism whose whole range `net` lies in.
fn hidden_net(net: Ipv6Net) -> Option<Hidden> {
    // Every hidden range is a prefix, so a network lies in one when its first and last address do.
    // `::/127` is `::` and `::1`, which are nobody's destinations anyway.
    hidden(net.broadcast()).filter(|kind| match kind {
        Hidden::Compatible => net.prefix_len() >= 96,
        Hidden::Mapped | Hidden::SixToFour | Hidden::Nat64 | Hidden::Teredo => hidden(net.network()) == Some(*kind),
    })
}

/// An address in its canonical text (RFC 5952 for IPv6) that hides no other.
///
/// # Errors
///
/// Why it is refused, with the spelling that would be taken.
pub fn parse_address(text: &str) -> Result<IpAddr, AddressError> {
    let address = lenient(text).ok_or_else(|| AddressError::NotAnAddress(text.to_owned()))?;
    if let IpAddr::V6(v6) = address
        && let Some(kind) = hidden(v6)
    {
        return Err(AddressError::HidesIpv4 { text: text.to_owned(), kind });
    }
    canonical(text, address)
}

/// A prefix in its canonical text, without host bits, that hides nothing.
///
/// # Errors
///
/// Why it is refused, with the spelling that would be taken.
pub fn parse_net(text: &str) -> Result<IpNet, AddressError> {
    let wrong = || AddressError::NotAPrefix(text.to_owned());
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address = lenient(address).ok_or_else(wrong)?;
    if length.is_empty() || length.len() > 8 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let net = IpNet::new(address, length.parse().map_err(|_| wrong())?).map_err(|_| wrong())?;
    let kind = match net {
        IpNet::V4(_) => None,
        IpNet::V6(v6) => hidden_net(v6),
    };
    if let Some(kind) = kind {
        return Err(AddressError::HidesIpv4 { text: text.to_owned(), kind });
    }
    if net.trunc() != net {
        let host = IpNet::from(address);
        return Err(AddressError::HostBits { text: text.to_owned(), network: net.trunc(), host });
    }
    canonical(text, net)
}

/// A prefix, or an address as the prefix that holds only it.
///
/// # Errors
///
/// Why it is refused, with the spelling that would be taken.
pub fn parse_net_or_address(text: &str) -> Result<IpNet, AddressError> {
    if text.contains('/') { parse_net(text) } else { parse_address(text).map(IpNet::from) }
}

fn canonical<T: std::fmt::Display>(text: &str, value: T) -> Result<T, AddressError> {
    let canonical = value.to_string();
    if canonical == text { Ok(value) } else { Err(AddressError::NotCanonical { text: text.to_owned(), canonical }) }
}

/// Understands leading zeros of an IPv4 address too, so that the canonical text can be shown.
fn lenient(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.len() <= 8 && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse_net_or_address(text).unwrap_err().to_string()
    }

    #[test]
    fn canonical_text_is_taken() {
        for text in
            ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "::/0", "fd00::/8", "2001:db8::/32", "2000::/3", "::1/128"]
        {
            assert_eq!(parse_net(text).unwrap().to_string(), text);
        }
        for text in ["10.0.0.1", "255.255.255.255", "::", "::1", "fd00::1", "2001:db8::1", "64:ff9b:2::1"] {
            assert_eq!(parse_address(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_spellings_are_refused_with_the_canonical_one() {
        for (text, canonical) in [
            ("010.0.0.1", "10.0.0.1"),
            ("010.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/08", "10.0.0.0/8"),
            ("FD00::1", "fd00::1"),
            ("fd00:0::1", "fd00::1"),
            ("fd00::0001", "fd00::1"),
            ("fd00:0:0:0:1:0:0:0", "fd00::1:0:0:0"),
            ("FD00::/8", "fd00::/8"),
            ("2001:db8:0:0::/32", "2001:db8::/32"),
        ] {
            assert_eq!(refusal(text), format!("\"{text}\" is ambiguous; write {canonical}"));
        }
    }

    #[test]
    fn host_bits_are_refused_with_both_meanings() {
        let message = "\"10.0.0.1/8\" has host bits; write 10.0.0.0/8 for the network or 10.0.0.1/32 for the host";
        assert_eq!(refusal("10.0.0.1/8"), message);
        assert!(refusal("fd00::1/64").contains("write fd00::/64"));
    }

    #[test]
    fn hidden_ipv4_is_refused() {
        for text in [
            "::ffff:10.0.0.1",
            "::ffff:a00:1",
            "::10.0.0.1",
            "::2",
            "2002:a00:1::",
            "2002::/16",
            "64:ff9b::a00:1",
            "64:ff9b::/96",
            "64:ff9b:1::/48",
            "64:ff9b:1:2::a00:1",
            "2001::1",
            "2001::/32",
            "2001:0:1::/48",
            "::/96",
            "::/100",
            "::ffff:0:0/96",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(refusal(text).contains("hides an IPv4 address"), "{text}: {}", refusal(text));
        }
        assert!(!hides_ipv4(Ipv6Addr::UNSPECIFIED) && !hides_ipv4(Ipv6Addr::LOCALHOST));
        assert!(!hides_ipv4("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "/",
            "10",
            "10.0.0",
            "10.0.0.0.0",
            "10.0.0.256",
            "10.0.0.1/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            " 10.0.0.1",
            "10.0.0.1 ",
            "0x0a.0.0.1",
            "fe80::1%eth0",
            "1::2::3",
            "fd00::/129",
            "10.0.0.0/8/8",
            "[::1]",
            "١٠.0.0.1",
            "10.0.0.0/256",
        ] {
            let message = refusal(text);
            assert!(message.contains("is not a"), "{text}: {message}");
        }
    }
}
