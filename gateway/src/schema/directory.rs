//! `directory.json`.
#![expect(
    missing_docs,
    reason = "what documents a key is what the schema says of it, and some say enough by their name"
)]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::json;

use super::text::{Address, Instant, Key, NAME, Name, Net};

/// Who exists: users, their groups, and devices.
#[derive(Debug, JsonSchema)]
#[schemars(title = "Portcullis directory", deny_unknown_fields)]
pub struct Directory {
    /// Where this schema is, for editors; the gateway does not look.
    #[schemars(rename = "$schema")]
    pub schema: Option<String>,
    /// Users by name.
    #[schemars(extend("propertyNames" = json!({ "pattern": NAME })))]
    pub users: BTreeMap<String, User>,
    /// Devices by name.
    #[schemars(extend("propertyNames" = json!({ "pattern": NAME })))]
    pub devices: BTreeMap<String, Device>,
}

/// A user.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct User {
    /// Groups the user is in; a policy may add to them.
    pub groups: Option<Vec<Name>>,
    /// The virtual network its devices are in; `default` when left out.
    pub network: Option<String>,
    /// None of the user's devices may do anything.
    pub disabled: Option<bool>,
}

/// A device, known by its WireGuard key or by networks behind the TUN.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Device {
    /// The user it belongs to.
    pub user: String,
    /// The virtual network it is in; that of its user when left out.
    pub network: Option<String>,
    /// Its WireGuard public key.
    pub public_key: Option<Key>,
    /// A preshared key, for this device only.
    pub preshared_key: Option<Key>,
    /// The addresses it has in the tunnel; with `networks`, all it may send from.
    pub addresses: Option<Vec<Address>>,
    /// Networks that are this device: behind the TUN, or with a key, at the other end of its tunnel.
    pub networks: Option<Vec<Net>>,
    /// When its access ends.
    pub expires: Option<Instant>,
    /// Facts about it.
    pub posture: Option<BTreeMap<String, Known>>,
    /// It may do nothing.
    pub disabled: Option<bool>,
    /// It may do nothing any more.
    pub revoked: Option<bool>,
}

/// A fact about a device.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Known {
    Bool(bool),
    Number(f64),
    Text(String),
}
