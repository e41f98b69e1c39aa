//! Addresses and prefixes as our files may write them: one spelling each, and no IPv6 address that hides an IPv4 one.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address or a prefix of a file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// It is no prefix at all.
    #[error("`{0}` is not a prefix, like 10.0.0.0/8 or fd00::/64")]
    NotAPrefix(String),
    /// It is no address with a prefix length.
    #[error("`{0}` is not an address with its prefix length, like 100.96.0.1/16 or fd00:96::1/64")]
    NotAnInterfaceAddress(String),
    /// It is no address.
    #[error("`{0}` is not an IP address")]
    NotAnAddress(String),
    /// It is right, but written in an unusual way that other programs may read differently.
    #[error("`{found}` must be written as {canonical}")]
    NotCanonical {
        /// What was written.
        found: String,
        /// The one spelling accepted.
        canonical: String,
    },
    /// Bits behind the prefix length are set.
    #[error("`{found}` has host bits set: the network is {network}")]
    HostBits {
        /// What was written.
        found: String,
        /// The network it lies in.
        network: IpNet,
    },
    /// An IPv6 form of an IPv4 address.
    #[error("`{found}` hides an IPv4 address in IPv6 ({form}): write the IPv4 address itself")]
    HidesIpv4 {
        /// What was written.
        found: String,
        /// Name of the form.
        form: &'static str,
    },
}

/// Parses a network: canonical text, no host bits.
pub fn parse_network(text: &str) -> Result<IpNet, PrefixError> {
    let net: IpNet = text
        .parse()
        .map_err(|_| PrefixError::NotAPrefix(text.to_owned()))?;
    canonical(text, &net)?;
    if net.addr() != net.network() {
        return Err(PrefixError::HostBits {
            found: text.to_owned(),
            network: net.trunc(),
        });
    }
    refuse_hidden(text, net)?;
    Ok(net)
}

/// Parses an interface address, `address/length`; the address keeps its host bits.
pub fn parse_interface_address(text: &str) -> Result<IpNet, PrefixError> {
    let net: IpNet = text
        .parse()
        .map_err(|_| PrefixError::NotAnInterfaceAddress(text.to_owned()))?;
    canonical(text, &net)?;
    refuse_hidden(text, net)?;
    Ok(net)
}

/// Parses one address.
pub fn parse_address(text: &str) -> Result<IpAddr, PrefixError> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| PrefixError::NotAnAddress(text.to_owned()))?;
    canonical(text, &address)?;
    refuse_hidden(text, IpNet::from(address))?;
    Ok(address)
}

/// Whether the two networks share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The name of the IPv6 form in which `net` hides IPv4 addresses, when all of it lies in one.
pub fn hidden_ipv4_form(net: &IpNet) -> Option<&'static str> {
    let IpNet::V6(net) = net else { return None };
    let address = net.addr();
    let inside = |prefix: Ipv6Addr, length: u8| {
        net.prefix_len() >= length
            && (u128::from(address) ^ u128::from(prefix)).leading_zeros() >= u32::from(length)
    };
    if inside(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96) {
        Some("IPv4-mapped")
    } else if inside(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96) {
        Some("IPv4-translated")
    } else if inside(Ipv6Addr::UNSPECIFIED, 96)
        && address != Ipv6Addr::UNSPECIFIED
        && address != Ipv6Addr::LOCALHOST
    {
        Some("IPv4-compatible")
    } else if inside(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16) {
        Some("6to4")
    } else if inside(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96)
        || inside(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48)
    {
        Some("NAT64")
    } else if inside(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32) {
        Some("Teredo")
    } else {
        None
    }
}

fn canonical(text: &str, value: &impl ToString) -> Result<(), PrefixError> {
    let canonical = value.to_string();
    if canonical == text {
        Ok(())
    } else {
        Err(PrefixError::NotCanonical {
            found: text.to_owned(),
            canonical,
        })
    }
}

fn refuse_hidden(text: &str, net: IpNet) -> Result<(), PrefixError> {
    match hidden_ipv4_form(&net) {
        Some(form) => Err(PrefixError::HidesIpv4 {
            found: text.to_owned(),
            form,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_is_plain() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.2.3/32",
            "::/0",
            "fd00:96::/64",
            "2001:db8::/32",
            "::/64",
        ] {
            assert_eq!(
                parse_network(text).map(|net| net.to_string()).as_deref(),
                Ok(text)
            );
        }
        assert!(parse_interface_address("100.96.0.1/16").is_ok());
        assert!(parse_address("::1").is_ok());
        assert!(parse_address("::").is_ok());
    }

    #[test]
    fn refuses_every_other_spelling() {
        for (text, message) in [
            (
                "10.0.0.1",
                "`10.0.0.1` is not a prefix, like 10.0.0.0/8 or fd00::/64",
            ),
            (
                "10.0.0.0/33",
                "`10.0.0.0/33` is not a prefix, like 10.0.0.0/8 or fd00::/64",
            ),
            (
                " 10.0.0.0/8",
                "` 10.0.0.0/8` is not a prefix, like 10.0.0.0/8 or fd00::/64",
            ),
            ("010.0.0.0/8", "`010.0.0.0/8` must be written as 10.0.0.0/8"),
            ("10.0.0.0/08", "`10.0.0.0/08` must be written as 10.0.0.0/8"),
            ("FD00::/8", "`FD00::/8` must be written as fd00::/8"),
            ("fd00:0::/8", "`fd00:0::/8` must be written as fd00::/8"),
            (
                "10.0.0.1/8",
                "`10.0.0.1/8` has host bits set: the network is 10.0.0.0/8",
            ),
        ] {
            let error = parse_network(text)
                .map(|net| net.to_string())
                .map_err(|error| error.to_string());
            // Some spellings are no prefix at all for the library, which is as good.
            match error {
                Err(found) => assert!(
                    found == message || found.contains("is not a prefix"),
                    "{text}: {found}, expected {message}"
                ),
                Ok(_) => panic!("{text} was accepted"),
            }
        }
    }

    #[test]
    fn refuses_ipv6_that_hides_ipv4() {
        for (text, form) in [
            ("::ffff:10.0.0.1", "IPv4-mapped"),
            ("::ffff:0:a00:1", "IPv4-translated"),
            ("::a00:1", "IPv4-compatible"),
            ("2002:a00:1::", "6to4"),
            ("64:ff9b::a00:1", "NAT64"),
            ("64:ff9b:1::a00:1", "NAT64"),
            ("2001::a00:1", "Teredo"),
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(
                hidden_ipv4_form(&IpNet::from(address)),
                Some(form),
                "{text}"
            );
            assert!(parse_address(&address.to_string()).is_err(), "{text}");
        }
        assert!(matches!(
            parse_network("2002::/16"),
            Err(PrefixError::HidesIpv4 { form: "6to4", .. })
        ));
        assert!(matches!(
            parse_network("::ffff:0:0/96"),
            Err(PrefixError::HidesIpv4 { .. } | PrefixError::NotCanonical { .. })
        ));
    }
}
