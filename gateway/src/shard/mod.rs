//! The data-plane threads. Each shard owns its socket, its peers, its flows and their off-ramp sockets, and shares
//! nothing with the others but the mail of packets that arrived at the wrong one.

mod admission;
mod associations;
mod calls;
mod datagrams;
mod dialling;
mod flow;
mod flow_memory;
mod flows;
mod forwarding;
mod hops;
mod judge;
pub mod link;
mod mail;
mod moderation;
mod places;
mod ready;
mod returns;
mod source_ports;
mod splice;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::flow_record::FlowRecord;
use crate::host::holder::Holder;
use crate::host::{TunDevice, TunError};
use crate::limits::SharedLoads;
use crate::metrics::counters::ShardCounters;
use crate::offramp::{OfframpFileError, Offramps};
use crate::onramp::wireguard::peers::WireguardIdentity;
use crate::onramp::wireguard::socket;
use crate::sys;
use link::{Command, Snapshot};

/// Commands that may wait for a shard.
const COMMANDS: usize = 64;

/// What is wrong with a site that has the gateway's public key.
pub const OWN_KEY_AT_SITE: &str = "its public_key is the gateway's own, which no peer can have";

/// Why the data plane could not be set up.
#[derive(Debug, Error)]
pub enum BindError {
    /// The WireGuard socket.
    #[error(
        "wireguard.listen: cannot bind UDP {address}{}",
        .holder.as_ref().map(|holder| format!(", which {holder} has")).unwrap_or_default()
    )]
    Wireguard {
        /// What was to be bound.
        address: SocketAddr,
        /// Who has it, where that can be seen.
        holder: Option<Holder>,
        /// What the kernel said.
        source: io::Error,
    },
    /// A queue of the TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A site that has our own key.
    #[error("off-ramp {0}: {OWN_KEY_AT_SITE}")]
    OwnKey(Arc<str>),
    /// A file that an off-ramp needs.
    #[error(transparent)]
    Offramp(#[from] OfframpFileError),
}

/// A running shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Where requests go.
    pub commands: mpsc::Sender<Command>,
    /// What it counts.
    pub counters: Arc<ShardCounters>,
    /// Ends after [`Command::Stop`].
    pub thread: JoinHandle<()>,
}

/// Shards with everything bound, not yet running.
#[derive(Debug)]
pub struct BoundShards {
    config: Arc<Config>,
    wireguard: Option<(Arc<WireguardIdentity>, Vec<std::net::UdpSocket>)>,
    /// A queue for each shard, where there is a TUN device.
    tun: Vec<TunDevice>,
    offramps: Arc<Offramps>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    records: mpsc::Sender<FlowRecord>,
}

/// Binds what the shards need. `private_key` is the gateway's WireGuard key.
///
/// # Errors
/// What could not be bound.
pub fn bind(
    config: Arc<Config>,
    private_key: Option<[u8; 32]>,
    tun: Option<TunDevice>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    records: mpsc::Sender<FlowRecord>,
) -> Result<BoundShards, BindError> {
    let offramps = Arc::new(Offramps::new(&config)?);
    let wireguard = match (&config.wireguard, private_key) {
        (Some(wireguard), Some(key)) => {
            let mark = config.tun.as_ref().map(|tun| tun.fwmark);
            let sockets =
                socket::bind(wireguard.listen, config.shards, mark).map_err(|source| BindError::Wireguard {
                    address: wireguard.listen,
                    holder: (source.kind() == io::ErrorKind::AddrInUse)
                        .then(|| Holder::of_udp_port(wireguard.listen.port()))
                        .flatten(),
                    source,
                })?;
            let identity = WireguardIdentity::new(key, offramps.sites().cloned());
            if let Some(name) = config.site_with_key(identity.public_key()) {
                return Err(BindError::OwnKey(Arc::clone(name)));
            }
            Some((Arc::new(identity), sockets))
        }
        _ => None,
    };
    let tun = match tun {
        Some(first) => {
            let others = (1..config.shards).map(|_| first.another_queue()).collect::<Result<Vec<_>, _>>()?;
            std::iter::once(first).chain(others).collect()
        }
        None => Vec::new(),
    };
    Ok(BoundShards { config, wireguard, tun, offramps, snapshots, records })
}

impl BoundShards {
    /// Where WireGuard clients find the gateway: what was configured, with the port the kernel chose for 0.
    pub fn wireguard_addr(&self) -> Option<SocketAddr> {
        let (_, sockets) = self.wireguard.as_ref()?;
        sockets.first()?.local_addr().ok()
    }

    /// The ways out.
    pub fn offramps(&self) -> &Arc<Offramps> {
        &self.offramps
    }

    /// Starts a thread for each shard.
    ///
    /// # Errors
    /// What the kernel says about starting a thread.
    pub fn start(self) -> io::Result<Vec<ShardHandle>> {
        let Self { config, wireguard, tun, offramps, snapshots, records } = self;
        sys::keep_large_buffers_mapped();
        // Rings lie side by side: where huge pages are always used, the first byte of an idle flow would cost 2 MiB.
        if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
            tracing::debug!(%error, "cannot do without transparent huge pages");
        }
        let loads = Arc::new(SharedLoads::new(&config.limits, Instant::now()));
        let (identity, sockets) = match wireguard {
            Some((identity, sockets)) => (Some(identity), sockets),
            None => (None, Vec::new()),
        };
        let mut sockets = sockets.into_iter();
        let mut tun = tun.into_iter();
        let (neighbours, mailboxes): (Vec<_>, Vec<_>) = (0..config.shards).map(|_| mail::mailbox()).unzip();
        let places = Arc::new(places::Places::default());
        let returns = Arc::new(returns::Returns::default());
        let mut handles = Vec::with_capacity(config.shards);
        for (index, mailbox) in mailboxes.into_iter().enumerate() {
            let (commands, requests) = mpsc::channel(COMMANDS);
            let counters = Arc::new(ShardCounters::default());
            let parts = worker::Parts {
                index,
                config: Arc::clone(&config),
                identity: identity.clone(),
                socket: sockets.next(),
                tun: tun.next(),
                offramps: Arc::clone(&offramps),
                snapshots: snapshots.clone(),
                commands: requests,
                records: records.clone(),
                counters: Arc::clone(&counters),
                loads: Arc::clone(&loads),
                mailbox,
                neighbours: neighbours.clone(),
                places: Arc::clone(&places),
                returns: Arc::clone(&returns),
            };
            let thread =
                std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || worker::run(parts))?;
            handles.push(ShardHandle { commands, counters, thread });
        }
        Ok(handles)
    }
}
