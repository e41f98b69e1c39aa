//! The names that exist outside the document.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::Identity;

/// The names a policy may use that are defined elsewhere: in the directory and in the static configuration.
#[derive(Debug, Clone, Default)]
pub struct Context<'a> {
    /// Users by name.
    pub users: BTreeMap<&'a str, KnownUser<'a>>,
    /// Devices by name.
    pub devices: BTreeMap<&'a str, KnownDevice<'a>>,
    /// Groups that users are in, without those that a policy defines.
    pub groups: BTreeSet<&'a str>,
    /// Virtual networks, `default` included.
    pub networks: BTreeSet<&'a str>,
    /// Off-ramps, `direct` included.
    pub offramps: BTreeSet<&'a str>,
}

/// A user, for tests that ask as one.
#[derive(Debug, Clone, Copy)]
pub struct KnownUser<'a> {
    /// Groups that the directory gives the user.
    pub groups: &'a [Arc<str>],
    /// The virtual network the user is in.
    pub network: &'a str,
    /// Whether the user may do nothing at all.
    pub disabled: bool,
}

/// A device, for tests that ask as one.
#[derive(Debug, Clone, Copy)]
pub struct KnownDevice<'a> {
    /// The device as rules see it.
    pub identity: &'a Identity,
    /// Whether the device may do nothing at all.
    pub disabled: bool,
    /// An address it sends from, which a test without a `source` asks from.
    pub source: Option<IpAddr>,
}
