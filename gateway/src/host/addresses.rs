//! The host's own addresses.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// Every address of every interface of this network namespace, sorted, without repetition.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = getifaddrs()?
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::{add_link, in_namespace, ip};

    #[test]
    fn lists_every_address_once() {
        in_namespace(async || {
            add_link("eth0");
            add_link("eth1");
            ip("addr add 192.0.2.1/24 dev eth0");
            ip("addr add 192.0.2.1/32 dev eth1");
            ip("addr add 2001:db8::1/64 dev eth1 nodad");
            let expected: Vec<IpAddr> =
                ["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"].iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(own_addresses().unwrap(), expected);
        });
    }
}
