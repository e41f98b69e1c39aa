//! Who we are to peers, and who they are.

use std::collections::HashMap;
use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519::{PublicKey, StaticSecret};
use jiff::Timestamp;
use portcullis_netstack::DropReason;

use crate::directory::{Device, Directory, PresharedKey};
use crate::offramp::site::Site;
use crate::onramp::wireguard::handshake_limits::HandshakeLimits;
use crate::onramp::wireguard::owners::{PeerOwners, ShardIndex};

/// The gateway's own key and what all shards share about handshakes.
pub struct WireguardIdentity {
    pub(super) private: StaticSecret,
    pub(super) public: PublicKey,
    /// Checks both MACs and makes cookies: whether one is needed is for the limits to say.
    pub(super) cookies: RateLimiter,
    pub(super) limits: HandshakeLimits,
    /// What the tunnels are given: they only check the MAC again, the limits were applied before.
    pub(super) unlimited: Arc<RateLimiter>,
    pub(super) owners: PeerOwners,
    /// Peers that flows go on to, by public key.
    pub(super) sites: HashMap<[u8; 32], Arc<Site>>,
}

impl std::fmt::Debug for WireguardIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireguardIdentity").field("public", &self.public).finish_non_exhaustive()
    }
}

impl WireguardIdentity {
    /// Takes the private key, and the peers that are sites.
    pub fn new(private: [u8; 32], sites: impl IntoIterator<Item = Arc<Site>>) -> Self {
        let private = StaticSecret::from(private);
        let public = PublicKey::from(&private);
        Self {
            cookies: RateLimiter::new(&public, 0),
            limits: HandshakeLimits::default(),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            owners: PeerOwners::default(),
            sites: sites.into_iter().map(|site| (site.public_key, site)).collect(),
            private,
            public,
        }
    }

    /// The gateway's public key.
    pub fn public_key(&self) -> &[u8; 32] {
        self.public.as_bytes()
    }

    /// Which shard has the peer with this public key.
    pub fn owner(&self, key: &[u8; 32]) -> Option<ShardIndex> {
        self.owners.find(key)
    }

    /// Who the peer with this public key is.
    ///
    /// # Errors
    /// It is nobody, or a device that may do nothing.
    pub(super) fn party(&self, directory: &Directory, key: &[u8; 32], now: Timestamp) -> Result<Party, DropReason> {
        let (device, site) = (directory.device_by_key(key), self.sites.get(key).cloned());
        match (device, site) {
            (None, None) => Err(DropReason::UnknownPeer),
            (Some(device), None) if !device.usable_at(now) => Err(DropReason::DeviceDisabled),
            (device, site) => {
                let device = device.filter(|device| device.usable_at(now)).cloned();
                Ok(Party { key: *key, device, site })
            }
        }
    }
}

/// Who a peer is: a device, a site that flows go on to, or both.
#[derive(Debug, Clone)]
pub struct Party {
    /// Its public key.
    pub key: [u8; 32],
    /// The device that sends from there.
    pub device: Option<Arc<Device>>,
    /// The site behind it.
    pub site: Option<Arc<Site>>,
}

impl Party {
    pub(super) fn preshared_key(&self) -> Option<&PresharedKey> {
        let of_site = self.site.as_ref().and_then(|site| site.preshared_key.as_ref());
        of_site.or_else(|| self.device.as_ref()?.preshared_key.as_ref())
    }

    /// Whether a tunnel with who it was goes on as one with `next`. A site may become a device, too.
    pub(super) fn becomes(&self, next: &Self) -> bool {
        let name = |party: &Self| party.device.as_ref().map(|device| Arc::clone(&device.identity.device));
        (self.device.is_none() || name(self) == name(next)) && self.preshared_key() == next.preshared_key()
    }
}
