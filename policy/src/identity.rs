//! Who asks.

use std::sync::Arc;

use crate::Facts;

/// The virtual network of whoever is in no other.
pub const DEFAULT_NETWORK: &str = "default";

/// A device with its user, groups and posture, as rules select it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name of the device.
    pub device: Arc<str>,
    /// Name of the user the device belongs to.
    pub user: Arc<str>,
    /// Every group the user is in, through the directory and through the policy, sorted, without repetition
    /// ([`Ruleset::groups_of`](crate::Ruleset::groups_of)).
    pub groups: Arc<[Arc<str>]>,
    /// The virtual network it is in.
    pub network: Arc<str>,
    /// Posture facts of the device.
    pub posture: Facts,
}
