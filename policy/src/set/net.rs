//! A set of addresses.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{holds, merge, write_list};

/// A set of addresses, made of prefixes; a question costs a binary search.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NetSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
    written: Box<[IpNet]>,
}

impl NetSet {
    pub(crate) fn new(nets: Vec<IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in &nets {
            match net {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        let v4 = merge(v4, |end: u32| end.checked_add(1));
        let v6 = merge(v6, |end: u128| end.checked_add(1));
        Self { v4, v6, written: nets.into() }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => holds(&self.v4, address.to_bits()),
            IpAddr::V6(address) => holds(&self.v6, address.to_bits()),
        }
    }

    /// The prefixes as they were written.
    pub(crate) fn written(&self) -> &[IpNet] {
        &self.written
    }
}

impl fmt::Display for NetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, self.written.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_of_prefixes() {
        let set = NetSet::new(
            ["10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25", "fd00::/8", "255.255.255.255/32"]
                .map(|net| net.parse().unwrap())
                .to_vec(),
        );
        assert_eq!(set.v4.len(), 2, "neighbours are joined");
        for (address, inside) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.0.1.255", true),
            ("10.0.2.0", false),
            ("255.255.255.254", false),
            ("255.255.255.255", true),
            ("fcff:ffff::", false),
            ("fd00::", true),
            ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("fe00::", false),
            ("::", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), inside, "{address}");
        }
        let all = NetSet::new(vec!["0.0.0.0/0".parse().unwrap()]);
        assert!(all.contains("255.255.255.255".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        assert!(!NetSet::default().contains("0.0.0.0".parse().unwrap()));
    }
}
