//! Addresses for new devices.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Directory, DirectoryContext};

/// The lowest free address of each tunnel network, or the first network that is full.
///
/// # Errors
///
/// The network without a free address.
pub fn allocate(directory: &Directory, context: &DirectoryContext) -> Result<Vec<IpAddr>, IpNet> {
    let taken: HashSet<IpAddr> = directory.devices().flat_map(|device| device.addresses.iter().copied()).collect();
    context.tunnel.iter().map(|net| lowest_free(net, &taken).ok_or_else(|| net.trunc())).collect()
}

/// The lowest host of `net` that is neither taken nor the gateway's own. At most one more is tried than there are taken ones.
fn lowest_free(net: &IpNet, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let free = |address: &IpAddr| *address != net.addr() && !taken.contains(address);
    match net {
        IpNet::V4(v4) => {
            let (first, last) = (u32::from(v4.network()), u32::from(v4.broadcast()));
            (first.checked_add(1)?..last).map(|bits| IpAddr::V4(Ipv4Addr::from(bits))).find(free)
        }
        IpNet::V6(v6) => {
            let (first, last) = (u128::from(v6.network()), u128::from(v6.broadcast()));
            (first.checked_add(1)?..=last).map(|bits| IpAddr::V6(Ipv6Addr::from(bits))).find(free)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lowest_first_and_never_the_gateway() {
        let net: IpNet = "10.0.0.2/29".parse().unwrap();
        let mut taken = HashSet::new();
        let mut order = Vec::new();
        while let Some(address) = lowest_free(&net, &taken) {
            taken.insert(address);
            order.push(address.to_string());
        }
        assert_eq!(order, ["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    }

    proptest! {
        #[test]
        fn allocation_never_collides(
            length in 20_u8..=30,
            host in any::<u32>(),
            holes in proptest::collection::vec(any::<u32>(), 0..60),
            v6 in any::<bool>(),
        ) {
            let (net, address): (IpNet, fn(u32) -> IpAddr) = if v6 {
                let address: fn(u32) -> IpAddr = |bits| IpAddr::V6(Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(bits)));
                (IpNet::new(address(host), 96 + length).unwrap(), address)
            } else {
                let address: fn(u32) -> IpAddr = |bits| IpAddr::V4(Ipv4Addr::from(bits));
                (IpNet::new(address(host), length).unwrap(), address)
            };
            let mask = u32::MAX >> length;
            let mut taken: HashSet<IpAddr> = holes.iter().map(|hole| address((host & !mask) | (hole & mask))).collect();
            for _ in 0..80 {
                let Some(found) = lowest_free(&net, &taken) else { break };
                prop_assert!(net.contains(&found));
                prop_assert_ne!(found, net.addr());
                prop_assert_ne!(found, net.network());
                prop_assert!(v6 || found != net.broadcast());
                prop_assert!(taken.insert(found));
            }
        }
    }
}
