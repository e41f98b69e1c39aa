//! Sites behind another WireGuard peer: who the peer is, and how flows look there.

use std::net::IpAddr;
use std::sync::Arc;

use super::OfframpFileError;
use super::health::State;
use crate::config::resolved::{SiteConfig, SiteMode};
use crate::directory::PresharedKey;
use crate::keys::parse_preshared_key;
use crate::secret;

/// A site and the WireGuard peer that forwards to it. Its tunnel is one of the on-ramp's, with the gateway's own key.
#[derive(Debug)]
pub struct Site {
    /// Name of the off-ramp.
    pub name: Arc<str>,
    /// The peer's public key.
    pub public_key: [u8; 32],
    /// What both sides know besides.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer is, HOST:PORT each.
    pub endpoint: Vec<String>,
    /// How often something is sent, in seconds, so that what stands between keeps the way open.
    pub keepalive: Option<u16>,
    /// Whether its handshakes are answered.
    pub state: State,
    /// Ours at that site.
    addresses: Vec<IpAddr>,
    keeps_client: bool,
    mode: SiteMode,
}

/// A site is itself and no copy of it.
impl PartialEq for Site {
    fn eq(&self, other: &Self) -> bool {
        self.public_key == other.public_key
    }
}

impl Eq for Site {}

impl Site {
    /// The site of the off-ramp `name`.
    ///
    /// # Errors
    /// The file with the preshared key cannot be had, is open to others, or holds none.
    pub fn load(name: &Arc<str>, config: &SiteConfig) -> Result<Self, OfframpFileError> {
        let preshared_key = config.preshared_key_file.as_ref().map(|path| {
            let text = secret::read(path)?;
            let key = parse_preshared_key(text.strip_suffix('\n').unwrap_or(&text));
            key.map(PresharedKey).map_err(|error| OfframpFileError::Key { path: path.clone(), error })
        });
        Ok(Self {
            name: Arc::clone(name),
            public_key: config.public_key,
            preshared_key: preshared_key.transpose()?,
            endpoint: config.endpoint.clone(),
            keepalive: config.keepalive.and_then(|every| u16::try_from(every.as_secs()).ok()),
            state: State::default(),
            addresses: config.addresses.iter().map(ipnet::IpNet::addr).collect(),
            keeps_client: config.keeps_client,
            mode: config.mode,
        })
    }

    /// Whether packets go there with the address of their client.
    pub fn keeps_client(&self) -> bool {
        self.keeps_client
    }

    /// Whether TCP ends here, and a connection of ours goes on.
    pub fn terminates(&self) -> bool {
        self.mode == SiteMode::Terminate
    }

    /// Our own address there, of the family of `like`.
    pub fn own_address(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|own| own.is_ipv4() == like.is_ipv4())
    }
}
