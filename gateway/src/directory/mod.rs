//! Who exists: users, groups, devices, from `directory.json`.

pub mod allocate;
pub mod edit;
pub mod names;
mod networks;
mod read;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use portcullis_policy::json::Problem;
use portcullis_policy::{Identity, Ruleset};

use crate::config::Config;
use crate::files::{self, ReadError};
use crate::posture::Reports;
use networks::Networks;

/// A WireGuard preshared key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(pub [u8; 32]);

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The groups the directory gives it, sorted, without repetition; a policy may add to them.
    pub groups: Arc<[Arc<str>]>,
    /// The virtual network that its devices are in, where they say nothing else.
    pub network: Arc<str>,
    /// None of its devices may do anything.
    pub disabled: bool,
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
    /// Networks behind it: what it may send from inside its tunnel besides, or without a key what it is known by behind
    /// the TUN.
    pub networks: Vec<IpNet>,
    /// When access ends by itself.
    pub expires: Option<Timestamp>,
    /// The device itself is revoked.
    pub revoked: bool,
    /// The user is disabled, or the device is disabled or revoked.
    pub disabled: bool,
}

impl Device {
    /// Whether it may do anything at all at `now`.
    pub fn usable_at(&self, now: Timestamp) -> bool {
        !self.disabled && self.expires.is_none_or(|end| now < end)
    }

    /// Whether it may send from `source` inside its tunnel.
    pub fn may_send_from(&self, source: IpAddr) -> bool {
        self.addresses.contains(&source) || self.networks.iter().any(|net| net.contains(&source))
    }

    /// Addresses that a packet of it could come from: its own, and one of each network behind it.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> {
        let inside = |net: &IpNet| net.hosts().next().unwrap_or_else(|| net.addr());
        self.addresses.iter().copied().chain(self.networks.iter().map(inside))
    }
}

/// What a directory is checked against.
#[derive(Debug, Clone, Default)]
pub struct DirectoryContext {
    /// The gateway's own addresses with the tunnel networks' prefix lengths; `wireguard.addresses`.
    pub tunnel: Vec<IpNet>,
    /// The gateway's own public key, which is no device's.
    pub own_public_key: Option<[u8; 32]>,
    /// Virtual networks beside `default`.
    pub networks: Vec<Arc<str>>,
}

impl DirectoryContext {
    /// The context that `config` gives. `own_public_key` is that of the key file, when it could be read.
    pub fn new(config: &Config, own_public_key: Option<[u8; 32]>) -> Self {
        let tunnel = config.wireguard.as_ref().map(|wireguard| wireguard.addresses.clone()).unwrap_or_default();
        Self { tunnel, own_public_key, networks: config.networks.clone() }
    }
}

/// Why a directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The file cannot be read.
    #[error("{path} {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// What it says is wrong: every problem at once, a line each.
    #[error("{}", list(.path, .problems))]
    Problems {
        /// The file.
        path: PathBuf,
        /// In the order of the file; never empty.
        problems: Vec<Problem>,
    },
}

fn list(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|problem| problem.in_file(path.display()).to_string()).collect();
    lines.join("\n")
}

/// An immutable snapshot of `directory.json`.
#[derive(Debug, Default)]
pub struct Directory {
    users: BTreeMap<Arc<str>, User>,
    groups: BTreeSet<Arc<str>>,
    devices: HashMap<Arc<str>, Arc<Device>>,
    by_key: HashMap<[u8; 32], Arc<Device>>,
    /// Devices behind the TUN.
    by_network: Networks,
    /// Devices with a tunnel, by virtual network and what is at its other end.
    by_tunnel: HashMap<Arc<str>, Networks>,
}

impl Directory {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// It cannot be read, or every problem in it at once.
    pub fn load(path: &Path, context: &DirectoryContext) -> Result<Self, DirectoryError> {
        let text = files::read_text(path).map_err(|source| DirectoryError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, context).map_err(|problems| DirectoryError::Problems { path: path.to_owned(), problems })
    }

    /// Checks the text of a directory.
    ///
    /// # Errors
    ///
    /// Every problem at once, in the order of the text.
    pub fn parse(text: &str, context: &DirectoryContext) -> Result<Self, Vec<Problem>> {
        let (users, devices) = read::read(text, context)?;
        Ok(Self::assemble(users, devices.into_iter().map(Arc::new).collect()))
    }

    /// The same directory with the device `name` disabled; `None` when there is no such device.
    pub fn barring(&self, name: &str) -> Option<Self> {
        let barred = Arc::new(Device { disabled: true, ..Device::clone(self.device(name)?) });
        let devices = self.devices().map(|device| {
            let barred = if device.identity.device == barred.identity.device { &barred } else { device };
            Arc::clone(barred)
        });
        Some(Self::assemble(self.users.clone(), devices.collect()))
    }

    /// The same directory with every device in the groups that `ruleset` puts its user into besides. What users say of
    /// themselves stays as the file has it, so that another policy begins from there.
    pub fn in_groups_of(&self, ruleset: &Ruleset) -> Self {
        let groups: BTreeMap<&Arc<str>, Arc<[Arc<str>]>> =
            self.users.iter().map(|(name, user)| (name, ruleset.groups_of(name, &user.groups))).collect();
        let device = |device: &Arc<Device>| match groups.get(&device.identity.user) {
            Some(groups) if *groups != device.identity.groups => {
                let identity = Identity { groups: Arc::clone(groups), ..device.identity.clone() };
                Arc::new(Device { identity, ..Device::clone(device) })
            }
            Some(_) | None => Arc::clone(device),
        };
        let devices = self.devices().map(device).collect();
        Self::assemble(self.users.clone(), devices)
    }

    /// The same directory with the facts that are reported of its devices, and no earlier ones.
    pub fn with_reports(&self, reports: &Reports) -> Self {
        let device = |device: &Arc<Device>| {
            let posture = reports.over(device);
            if posture == device.identity.posture {
                return Arc::clone(device);
            }
            let identity = Identity { posture, ..device.identity.clone() };
            Arc::new(Device { identity, ..Device::clone(device) })
        };
        Self::assemble(self.users.clone(), self.devices().map(device).collect())
    }

    /// The devices that may do something at `now`, and nothing any more by `next`: they are gone from it, barred in it,
    /// or known by another key. Sorted.
    pub fn losing_access(&self, next: &Self, now: Timestamp) -> Vec<Arc<str>> {
        let keeps = |device: &Device| {
            next.device(&device.identity.device)
                .is_some_and(|next| next.usable_at(now) && next.public_key == device.public_key)
        };
        let losing = self.devices().filter(|device| device.usable_at(now) && !keeps(device));
        let mut names: Vec<_> = losing.map(|device| Arc::clone(&device.identity.device)).collect();
        names.sort_unstable();
        names
    }

    fn assemble(users: BTreeMap<Arc<str>, User>, devices: Vec<Arc<Device>>) -> Self {
        let groups = users.values().flat_map(|user| user.groups.iter().cloned()).collect();
        let by_key = devices.iter().filter_map(|device| Some((device.public_key?, Arc::clone(device)))).collect();
        let ends = |device: &Arc<Device>| {
            let device = Arc::clone(device);
            let addresses = device.addresses.iter().map(|address| IpNet::from(*address));
            let ends: Vec<_> = addresses.chain(device.networks.iter().copied()).collect();
            ends.into_iter().map(move |net| (net, Arc::clone(&device)))
        };
        let (with_tunnel, behind_tun): (Vec<_>, Vec<_>) =
            devices.iter().partition(|device| device.public_key.is_some());
        let mut of_network: HashMap<Arc<str>, Vec<_>> = HashMap::new();
        for device in with_tunnel {
            of_network.entry(Arc::clone(&device.identity.network)).or_default().extend(ends(device));
        }
        let by_tunnel = of_network.into_iter().map(|(name, ends)| (name, ends.into_iter().collect())).collect();
        Self {
            users,
            groups,
            by_key,
            by_network: behind_tun.into_iter().flat_map(ends).collect(),
            by_tunnel,
            devices: devices.into_iter().map(|device| (Arc::clone(&device.identity.device), device)).collect(),
        }
    }

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
        self.by_network.find(source)
    }

    /// The device in `network` at the other end of whose tunnel `destination` is, by longest prefix.
    pub fn device_by_tunnel(&self, network: &str, destination: IpAddr) -> Option<&Arc<Device>> {
        self.by_tunnel.get(network)?.find(destination)
    }

    /// Every device, in no order.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.values()
    }

    /// The user called `name`.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// Every user with its name, sorted.
    pub fn users(&self) -> impl Iterator<Item = (&Arc<str>, &User)> {
        self.users.iter()
    }

    /// Every group that some user is in, sorted.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<str>> {
        self.groups.iter()
    }

    /// Whether some user is in `group`.
    pub fn has_group(&self, group: &str) -> bool {
        self.groups.contains(group)
    }
}
