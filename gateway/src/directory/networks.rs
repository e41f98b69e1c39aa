//! Devices by the networks behind them: one hash look-up for each prefix length in use, longest first.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Device;

/// Networks and the devices known by them.
#[derive(Default)]
pub(super) struct Networks {
    v4: Vec<(u8, HashMap<IpNet, Arc<Device>>)>,
    v6: Vec<(u8, HashMap<IpNet, Arc<Device>>)>,
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks = self.v4.iter().chain(&self.v6).flat_map(|(_, nets)| nets);
        f.debug_map().entries(networks.map(|(net, device)| (net, &device.identity.device))).finish()
    }
}

impl Networks {
    /// The device of the longest network that holds `address`.
    pub(super) fn find(&self, address: IpAddr) -> Option<&Arc<Device>> {
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().find_map(|(length, nets)| nets.get(&IpNet::new(address, *length).ok()?.trunc()))
    }
}

impl FromIterator<(IpNet, Arc<Device>)> for Networks {
    fn from_iter<T: IntoIterator<Item = (IpNet, Arc<Device>)>>(networks: T) -> Self {
        let mut by_length: [BTreeMap<u8, HashMap<IpNet, Arc<Device>>>; 2] = Default::default();
        let [v4, v6] = &mut by_length;
        for (net, device) in networks {
            let family = if net.addr().is_ipv4() { &mut *v4 } else { &mut *v6 };
            family.entry(net.prefix_len()).or_default().insert(net, device);
        }
        let [v4, v6] = by_length.map(|lengths| lengths.into_iter().rev().collect());
        Self { v4, v6 }
    }
}
