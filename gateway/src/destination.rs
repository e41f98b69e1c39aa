//! Destinations that no policy can open.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::{fmt, io};

use portcullis_policy::address::hides_ipv4;

use crate::config::Config;
use crate::config::resolved::OfframpKind;
use crate::host;

/// Instance metadata of Amazon EC2 over IPv6. Its IPv4 twin, 169.254.169.254, is link-local.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Why the policy is not asked about a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// `0.0.0.0/8` or `::`, which the kernel takes for this host.
    Unspecified,
    /// `127.0.0.0/8` or `::1`.
    Loopback,
    /// `169.254.0.0/16` or `fe80::/10`.
    LinkLocal,
    /// Instance metadata of a cloud.
    Metadata,
    /// `224.0.0.0/4` or `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// `240.0.0.0/4`.
    Reserved,
    /// An IPv6 address that carries an IPv4 one.
    HidesIpv4,
    /// An address of this host, and not a port listed in `local_services`.
    OwnAddress,
}

impl Forbidden {
    /// The word used in logs and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Reserved => "reserved",
            Self::HidesIpv4 => "hides_ipv4",
            Self::OwnAddress => "own_address",
        }
    }
}

/// What is to be said of the address, with the address before it: `127.0.0.1 is a loopback address, …`.
impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Unspecified => "means this host itself",
            Self::Loopback => "is a loopback address",
            Self::LinkLocal => "is a link-local address",
            Self::Metadata => "is where a cloud serves the metadata of its instances",
            Self::Multicast => "is a multicast address",
            Self::Broadcast => "is the broadcast address",
            Self::Reserved => "is in a reserved range",
            Self::HidesIpv4 => "is an IPv6 address that hides an IPv4 one",
            Self::OwnAddress => {
                return f.write_str(
                    "is an address of the gateway itself, of which the policy opens only what `local_services` lists",
                );
            }
        };
        write!(f, "{what}, and never a destination, whatever the policy says")
    }
}

/// Whether `destination` may be dialled at all. `own` is sorted; an echo has port 0, so it never is a local service.
///
/// It allocates nothing and is asked for every new flow, and again for the final address of a dial.
pub fn check(destination: SocketAddr, own: &[IpAddr], local_services: &[SocketAddr]) -> Result<(), Forbidden> {
    match destination.ip() {
        IpAddr::V4(address) => check_v4(address)?,
        IpAddr::V6(address) => check_v6(address)?,
    }
    let is_own = own.binary_search(&destination.ip()).is_ok();
    let is_service = || local_services.iter().any(|s| s.ip() == destination.ip() && s.port() == destination.port());
    if is_own && (destination.port() == 0 || !is_service()) { Err(Forbidden::OwnAddress) } else { Ok(()) }
}

/// The addresses of this host and those the gateway has inside its on-ramps and at sites, sorted as [`check`] wants them.
pub fn own_addresses(config: &Config) -> io::Result<Arc<[IpAddr]>> {
    let mut own = host::own_addresses()?;
    let inside = config.wireguard.iter().flat_map(|w| &w.addresses);
    let at_sites = config.offramps.iter().flat_map(|offramp| match &offramp.kind {
        OfframpKind::Wireguard(site) => &*site.addresses,
        OfframpKind::Direct { .. } | OfframpKind::Proxy(_) | OfframpKind::Kernel => &[],
    });
    let inside = inside.chain(config.tun.iter().flat_map(|t| &t.addresses)).chain(at_sites);
    own.extend(inside.map(ipnet::IpNet::addr));
    own.sort_unstable();
    own.dedup();
    Ok(own.into())
}

fn check_v4(address: Ipv4Addr) -> Result<(), Forbidden> {
    let [first, ..] = address.octets();
    match first {
        0 => Err(Forbidden::Unspecified),
        127 => Err(Forbidden::Loopback),
        224..=239 => Err(Forbidden::Multicast),
        _ if address.is_broadcast() => Err(Forbidden::Broadcast),
        240..=255 => Err(Forbidden::Reserved),
        _ if address.is_link_local() => Err(Forbidden::LinkLocal),
        _ => Ok(()),
    }
}

fn check_v6(address: Ipv6Addr) -> Result<(), Forbidden> {
    if address.is_unspecified() {
        Err(Forbidden::Unspecified)
    } else if address.is_loopback() {
        Err(Forbidden::Loopback)
    } else if address.is_multicast() {
        Err(Forbidden::Multicast)
    } else if address.is_unicast_link_local() {
        Err(Forbidden::LinkLocal)
    } else if address == METADATA_V6 {
        Err(Forbidden::Metadata)
    } else if hides_ipv4(address) {
        Err(Forbidden::HidesIpv4)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(destination: &str) -> Result<(), Forbidden> {
        let mut own: Vec<IpAddr> =
            ["192.0.2.1", "fd00:96::1", "100.96.0.1", "10.9.9.9", "2001:db8::1"].map(|a| a.parse().unwrap()).to_vec();
        own.sort_unstable();
        let services = ["192.0.2.1:22", "[fd00:96::1]:53", "127.0.0.1:80"].map(|a| a.parse().unwrap());
        check(destination.parse().unwrap(), &own, &services)
    }

    #[test]
    fn compiled_in() {
        use Forbidden::{
            Broadcast, HidesIpv4, LinkLocal, Loopback, Metadata, Multicast, OwnAddress, Reserved, Unspecified,
        };
        for (destination, why) in [
            ("0.0.0.0:80", Unspecified),
            ("0.1.2.3:80", Unspecified),
            ("[::]:80", Unspecified),
            ("127.0.0.1:443", Loopback),
            ("127.255.255.254:443", Loopback),
            ("[::1]:443", Loopback),
            ("169.254.169.254:80", LinkLocal),
            ("169.254.0.1:80", LinkLocal),
            ("[fe80::1]:80", LinkLocal),
            ("[febf::1]:80", LinkLocal),
            ("[fd00:ec2::254]:80", Metadata),
            ("224.0.0.1:80", Multicast),
            ("239.255.255.255:80", Multicast),
            ("[ff02::1]:80", Multicast),
            ("[ff0e::1]:80", Multicast),
            ("255.255.255.255:67", Broadcast),
            ("240.0.0.1:80", Reserved),
            ("255.255.255.254:80", Reserved),
            ("[::ffff:10.0.0.1]:80", HidesIpv4),
            ("[::10.0.0.1]:80", HidesIpv4),
            ("[2002:a00:1::1]:80", HidesIpv4),
            ("[64:ff9b::a00:1]:80", HidesIpv4),
            ("[2001::1]:80", HidesIpv4),
            ("192.0.2.1:80", OwnAddress),
            ("192.0.2.1:0", OwnAddress),
            ("100.96.0.1:51820", OwnAddress),
            ("10.9.9.9:9464", OwnAddress),
            ("[fd00:96::1]:22", OwnAddress),
            ("[2001:db8::1]:22", OwnAddress),
        ] {
            assert_eq!(ask(destination), Err(why), "{destination}");
        }
    }

    #[test]
    fn each_has_a_sentence() {
        use Forbidden::{
            Broadcast, HidesIpv4, LinkLocal, Loopback, Metadata, Multicast, OwnAddress, Reserved, Unspecified,
        };
        let never = ", and never a destination, whatever the policy says";
        for (forbidden, sentence) in [
            (Unspecified, format!("means this host itself{never}")),
            (Loopback, format!("is a loopback address{never}")),
            (LinkLocal, format!("is a link-local address{never}")),
            (Metadata, format!("is where a cloud serves the metadata of its instances{never}")),
            (Multicast, format!("is a multicast address{never}")),
            (Broadcast, format!("is the broadcast address{never}")),
            (Reserved, format!("is in a reserved range{never}")),
            (HidesIpv4, format!("is an IPv6 address that hides an IPv4 one{never}")),
            (
                OwnAddress,
                "is an address of the gateway itself, of which the policy opens only what `local_services` lists"
                    .to_owned(),
            ),
        ] {
            assert_eq!(forbidden.to_string(), sentence);
        }
    }

    #[test]
    fn everything_else_is_for_the_policy() {
        for destination in
            ["10.0.0.1:80", "192.0.2.2:22", "8.8.8.8:53", "[fd00:96::2]:80", "[2001:db8::2]:0", "1.0.0.0:1"]
        {
            assert_eq!(ask(destination), Ok(()), "{destination}");
        }
    }

    #[test]
    fn a_local_service_is_its_exact_address_and_port() {
        assert_eq!(ask("192.0.2.1:22"), Ok(()));
        assert_eq!(ask("[fd00:96::1]:53"), Ok(()));
        assert_eq!(ask("192.0.2.1:23"), Err(Forbidden::OwnAddress));
        assert_eq!(ask("[2001:db8::1]:53"), Err(Forbidden::OwnAddress));
        assert_eq!(ask("127.0.0.1:80"), Err(Forbidden::Loopback), "loopback is closed even when listed");
    }
}
