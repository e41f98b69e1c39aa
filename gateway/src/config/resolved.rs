//! What `gateway.toml` means once every path, default and cross-reference is settled.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::limits::{Resource, Scope};
use crate::offramp::DIRECT;
use crate::offramp::health::HealthConfig;

/// The most shards a gateway runs.
pub const MAX_SHARDS: usize = 64;

/// The whole static configuration of one gateway process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub source: PathBuf,
    /// What that file said, to tell later that it has changed.
    pub text: Arc<str>,
    /// `directory.json`.
    pub directory: PathBuf,
    /// `policy.json`.
    pub policy: PathBuf,
    /// Whether policy and directory are loaded when their files change.
    pub watch: bool,
    /// State directory, mode 0700.
    pub state_dir: PathBuf,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Own addresses and ports that may be destinations.
    pub local_services: Vec<SocketAddr>,
    /// WireGuard on-ramp, when configured.
    pub wireguard: Option<WireguardConfig>,
    /// TUN on-ramp, when configured.
    pub tun: Option<TunConfig>,
    /// Off-ramps by name; `direct` is always the first.
    pub offramps: Vec<OfframpConfig>,
    /// Virtual networks beside `default`.
    pub networks: Vec<Arc<str>>,
    /// Routes towards off-ramps. None of `default`: everything of it by `direct`.
    pub routes: Vec<RouteConfig>,
    /// Limits, each with a default.
    pub limits: Limits,
    /// Where flow records go.
    pub flow_log: PathBuf,
    /// Where metrics are served; `None` turns them off.
    pub metrics: Option<SocketAddr>,
    /// Number of shards.
    pub shards: usize,
    /// How long open flows may go on after SIGTERM.
    pub drain: Duration,
}

impl Config {
    /// Whether an address is one of the network that WireGuard clients have theirs from.
    pub fn is_of_tunnel(&self, address: IpAddr) -> bool {
        self.wireguard.iter().flat_map(|wireguard| &wireguard.addresses).any(|own| own.contains(&address))
    }

    /// The off-ramp to a site whose peer has this public key.
    pub fn site_with_key(&self, key: &[u8; 32]) -> Option<&Arc<str>> {
        let has = |offramp: &&OfframpConfig| match &offramp.kind {
            OfframpKind::Wireguard(site) => site.public_key == *key,
            OfframpKind::Direct { .. } | OfframpKind::Proxy(_) | OfframpKind::Kernel => false,
        };
        self.offramps.iter().find(has).map(|offramp| &offramp.name)
    }
}

/// `[wireguard]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardConfig {
    /// UDP listen address. `[::]` serves IPv4 too.
    pub listen: SocketAddr,
    /// File with the private key, base64, mode 0600.
    pub key_file: PathBuf,
    /// The gateway's own addresses with the tunnel networks' prefix lengths.
    pub addresses: Vec<IpNet>,
    /// MTU of the tunnel in bytes.
    pub mtu: u16,
    /// Public endpoint that goes into client files.
    pub endpoint: Option<String>,
    /// Networks that go into client files as AllowedIPs.
    pub client_routes: Vec<IpNet>,
}

/// `[tun]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunConfig {
    /// Interface name.
    pub name: String,
    /// Addresses of the interface.
    pub addresses: Vec<IpNet>,
    /// MTU in bytes.
    pub mtu: u16,
    /// Networks steered into the device.
    pub routes: Vec<IpNet>,
    /// Networks left out of `routes`.
    pub exclude: Vec<IpNet>,
    /// Routing table that holds our routes.
    pub table: u32,
    /// Mark of our own sockets, for an administrator's own rules.
    pub fwmark: u32,
    /// What a clean stop leaves.
    pub on_stop: OnStop,
    /// The tunnel network of WireGuard clients, where an off-ramp sends their packets on with addresses of theirs: answers
    /// come back by the device.
    pub returns: Option<Returns>,
}

/// Networks of clients whose packets this host routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returns {
    /// The networks, one a family at most.
    pub networks: Vec<IpNet>,
    /// Largest packet towards them in bytes.
    pub mtu: u16,
}

/// What a clean stop leaves in the routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// Nothing.
    Remove,
    /// The `unreachable` backstop.
    Block,
}

/// One `[[offramp]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfframpConfig {
    /// Unique name.
    pub name: Arc<str>,
    /// Source addresses to bind, at most one a family is used.
    pub source: Vec<IpAddr>,
    /// Source port range.
    pub ports: Option<RangeInclusive<u16>>,
    /// Interface to bind to (SO_BINDTODEVICE).
    pub interface: Option<String>,
    /// How it is probed; without it nobody does.
    pub health: Option<HealthConfig>,
    /// What becomes of a flow there.
    pub kind: OfframpKind,
}

/// `kind` of an `[[offramp]]`, with the settings that only it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OfframpKind {
    /// A socket of this host's kernel goes to the target.
    Direct {
        /// A TCP target is told first whose connection it is: PROXY protocol, version 2.
        proxy_protocol: bool,
    },
    /// A proxy is asked to go to the target.
    Proxy(ProxyConfig),
    /// The client's packets go on as they are, and this host routes them.
    Kernel,
    /// To a site behind another WireGuard peer.
    Wireguard(SiteConfig),
}

/// The site of an `[[offramp]]`: another WireGuard peer, which forwards what we send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteConfig {
    /// Its public key.
    pub public_key: [u8; 32],
    /// A file with a key that both sides know besides.
    pub preshared_key_file: Option<PathBuf>,
    /// Where it is, HOST:PORT each; the next when one does not answer.
    pub endpoint: Vec<String>,
    /// Ours at that site, one a family at most.
    pub addresses: Vec<IpNet>,
    /// How flows go there.
    pub mode: SiteMode,
    /// Packets keep the address of their client; else they carry ours.
    pub keeps_client: bool,
    /// How often something is sent, so that what stands between keeps the way open.
    pub keepalive: Option<Duration>,
}

/// How flows go to a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteMode {
    /// The client's packets go on as they are.
    Forward,
    /// TCP ends here, and a connection of ours goes on: its segments fit the tunnel, and what is lost beyond is repeated by
    /// us. Other packets go on as they are.
    Terminate,
}

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyScheme {
    /// SOCKS5: RFC 1928.
    Socks5,
    /// The CONNECT method of HTTP/1.1: RFC 9110 section 9.3.6.
    HttpConnect,
}

/// The proxy of an `[[offramp]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// How it is spoken to.
    pub scheme: ProxyScheme,
    /// Where it is.
    pub address: SocketAddr,
    /// A file with `user:password`.
    pub credentials_file: Option<PathBuf>,
    /// It is spoken to over TLS.
    pub tls: Option<TlsConfig>,
}

/// TLS towards a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificates of the authorities that vouch for it; those of the system without it.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, with those between it and its authority, and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in the proxy's certificate; its address without it.
    pub server_name: Option<String>,
}

impl OfframpConfig {
    /// The one that is always there, as it is when nothing is said of it.
    pub fn direct() -> Self {
        Self {
            name: DIRECT.into(),
            source: Vec::new(),
            ports: None,
            interface: None,
            health: None,
            kind: OfframpKind::Direct { proxy_protocol: false },
        }
    }
}

/// One `[[route]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    /// The virtual network whose devices it is for.
    pub network: Arc<str>,
    /// Destination prefix.
    pub to: IpNet,
    /// Names of off-ramps, in order of preference.
    pub offramp: Vec<Arc<str>>,
}

/// A limit for one device, for the devices of one user, and for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareLimit {
    /// Of one device.
    pub device: usize,
    /// Of all devices of one user.
    pub user: usize,
    /// Of every device.
    pub all: usize,
}

impl ShareLimit {
    /// The limit of one scope.
    pub fn of(&self, scope: Scope) -> usize {
        match scope {
            Scope::Device => self.device,
            Scope::User => self.user,
            Scope::All => self.all,
        }
    }
}

/// `[limits]`.
///
/// The worst case in memory of buffers: `flows.all` flows with [`RING_FLOOR`] bytes in each of their two, `buffered.all`
/// bytes beyond that, and for each shard 4,096 flows that linger and 128 pairs of spare buffers of 64 KiB. With the
/// defaults and two shards 131,072 × 32 KiB + 2 GiB + 2 × (128 MiB + 16 MiB) = 6.3 GiB; of one device 4,096 × 32 KiB +
/// 64 MiB = 192 MiB. Through proxies come 16 KiB for each dial of an association, and 48 KiB for each flow behind TLS. The
/// kernel bounds what its sockets hold by itself (`tcp_mem`, `udp_mem`).
///
/// [`RING_FLOOR`]: portcullis_netstack::RING_FLOOR
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open flows of any kind.
    pub flows: ShareLimit,
    /// TCP flows whose client has not completed the handshake.
    pub half_open: ShareLimit,
    /// TCP flows whose target has not answered. A device never has more than two thirds of them all.
    pub dials: ShareLimit,
    /// New flows a second, in bursts of twice as many.
    pub flow_rate: ShareLimit,
    /// UDP associations and echo exchanges. Over a device's own the one not used for longest makes way.
    pub associations: ShareLimit,
    /// Refused flows that are remembered.
    pub refusals: ShareLimit,
    /// Bytes of memory of TCP flows' buffers beyond what every flow may use.
    pub buffered: ShareLimit,
    /// Bytes of each of a TCP flow's two ring buffers.
    pub tcp_buffer: usize,
    /// How long a dial may take.
    pub dial_timeout: Duration,
    /// A TCP flow without a byte either way ends after this.
    pub tcp_idle: Duration,
    /// A TCP client that does not acknowledge for this long has its flow ended.
    pub tcp_user_timeout: Duration,
    /// A UDP association where only the client spoke, or to port 53, ends after this.
    pub udp_idle_one_way: Duration,
    /// A UDP association where both sides spoke ends after this.
    pub udp_idle: Duration,
    /// An echo exchange ends after this without a packet.
    pub icmp_idle: Duration,
}

impl Limits {
    /// The limits of one resource.
    pub fn share(&self, resource: Resource) -> ShareLimit {
        match resource {
            Resource::Flows => self.flows,
            Resource::HalfOpen => self.half_open,
            Resource::Dials => self.dials,
            Resource::Associations => self.associations,
            Resource::Refusals => self.refusals,
            Resource::Buffered => self.buffered,
            Resource::FlowRate => self.flow_rate,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: ShareLimit { device: 4_096, user: 8_192, all: 131_072 },
            half_open: ShareLimit { device: 64, user: 128, all: 4_096 },
            dials: ShareLimit { device: 64, user: 128, all: 4_096 },
            flow_rate: ShareLimit { device: 1_000, user: 2_000, all: 20_000 },
            associations: ShareLimit { device: 1_024, user: 2_048, all: 32_768 },
            refusals: ShareLimit { device: 256, user: 512, all: 16_384 },
            buffered: ShareLimit { device: 64 << 20, user: 128 << 20, all: 2 << 30 },
            tcp_buffer: 1 << 20,
            dial_timeout: Duration::from_secs(10),
            tcp_idle: Duration::from_secs(2 * 3600 + 4 * 60),
            tcp_user_timeout: Duration::from_secs(120),
            udp_idle_one_way: Duration::from_secs(30),
            udp_idle: Duration::from_secs(120),
            icmp_idle: Duration::from_secs(30),
        }
    }
}
