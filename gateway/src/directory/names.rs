//! The names in a directory that is not sound, so that a policy can be checked beside it all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_policy::{Context, DEFAULT_NETWORK, Facts, Identity, KnownDevice, KnownUser};
use serde_json::Value;

use crate::config::Config;

/// What a policy may name, as far as it could be made out. Never what a gateway decides by.
#[derive(Debug)]
pub struct Names {
    users: BTreeMap<String, Vec<Arc<str>>>,
    devices: Vec<Identity>,
}

impl Names {
    /// The names in `text`, or `None` when it is not even JSON.
    pub fn of(text: &str) -> Option<Self> {
        let document: Value = serde_json::from_str(text).ok()?;
        let section = |key: &str| document.get(key).and_then(Value::as_object).into_iter().flatten();
        let groups = |user: &Value| {
            let groups = user.get("groups").and_then(Value::as_array).into_iter().flatten();
            groups.filter_map(Value::as_str).map(Arc::from).collect()
        };
        let device = |(name, device): (&String, &Value)| Identity {
            device: Arc::from(name.as_str()),
            user: Arc::from(device.get("user").and_then(Value::as_str).unwrap_or_default()),
            groups: Arc::default(),
            network: "default".into(),
            posture: Facts::default(),
        };
        Some(Self {
            users: section("users").map(|(name, user)| (name.clone(), groups(user))).collect(),
            devices: section("devices").map(device).collect(),
        })
    }

    /// The names, with those of `config`'s off-ramps.
    pub fn context<'a>(&'a self, config: &'a Config) -> Context<'a> {
        let groups: BTreeSet<&str> = self.users.values().flatten().map(|group| &**group).collect();
        let known_user = |groups: &'a Vec<Arc<str>>| KnownUser { groups, network: "default", disabled: false };
        let known_device = |identity: &'a Identity| KnownDevice { identity, disabled: false, source: None };
        Context {
            users: self.users.iter().map(|(name, groups)| (name.as_str(), known_user(groups))).collect(),
            devices: self.devices.iter().map(|identity| (&*identity.device, known_device(identity))).collect(),
            groups,
            networks: std::iter::once(DEFAULT_NETWORK).chain(config.networks.iter().map(|name| &**name)).collect(),
            offramps: config.offramps.iter().map(|offramp| &*offramp.name).collect(),
        }
    }
}
