//! Who exists: users, groups, devices, from `directory.json`.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use portcullis_policy::Identity;

/// A WireGuard preshared key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(pub [u8; 32]);

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// One device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its name, user, groups and posture, as policy sees them.
    pub identity: Identity,
    /// WireGuard public key.
    pub public_key: Option<[u8; 32]>,
    /// WireGuard preshared key.
    pub preshared_key: Option<PresharedKey>,
    /// Addresses it may send from inside its tunnel.
    pub addresses: Vec<IpAddr>,
    /// Networks behind the TUN that it is known by.
    pub networks: Vec<IpNet>,
    /// When access ends by itself.
    pub expires: Option<Timestamp>,
    /// The user is disabled, or the device is disabled or revoked.
    pub disabled: bool,
}

impl Device {
    /// Whether it may do anything at all at `now`.
    pub fn usable_at(&self, now: Timestamp) -> bool {
        !self.disabled && self.expires.is_none_or(|end| now < end)
    }
}

/// An immutable snapshot of `directory.json`.
#[derive(Debug, Default)]
pub struct Directory {
    devices: HashMap<Arc<str>, Arc<Device>>,
    by_key: HashMap<[u8; 32], Arc<Device>>,
    by_network: Vec<(IpNet, Arc<Device>)>,
}

impl Directory {
    /// The device called `name`.
    pub fn device(&self, name: &str) -> Option<&Arc<Device>> {
        self.devices.get(name)
    }

    /// The device with this WireGuard public key.
    pub fn device_by_key(&self, key: &[u8; 32]) -> Option<&Arc<Device>> {
        self.by_key.get(key)
    }

    /// The device behind the TUN that `source` belongs to, by longest prefix.
    pub fn device_by_network(&self, source: IpAddr) -> Option<&Arc<Device>> {
        self.by_network
            .iter()
            .find(|(net, _)| net.contains(&source))
            .map(|(_, device)| device)
    }

    /// Every device, in no order.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.values()
    }
}
