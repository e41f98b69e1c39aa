//! Off-ramps: how allowed flows go on towards their targets.
//!
//! Nothing can be dialled without a [`Permit`], which only the policy makes. An off-ramp is chosen by
//! [`Offramps::select`]: the first of those in question that is up ([`health`], or by what its dials say) and was not
//! tried for this flow. Its sockets are the host kernel's, and carry a mark; they go to the target, or to a proxy that goes
//! there for us. Two kinds have none ([`Offramp::way`]): the client's own packets go on, routed by this host or through the
//! tunnel of a site; or there a shard opens a connection of its own.

pub mod datagram;
mod error;
mod file_error;
pub mod health;
mod ports;
mod proxy;
mod proxy_protocol;
pub mod site;
mod socket;
mod stream;
mod trouble;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, ready};
use ipnet::IpNet;
use portcullis_netstack::packet::goes_unseen;
use portcullis_policy::{DEFAULT_NETWORK, Permit};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;

pub use datagram::DatagramSocket;
use datagram::relay::Relay;
pub use error::DialError;
pub use file_error::OfframpFileError;
use health::Health;
pub(crate) use ports::PortShare;
use proxy::Proxy;
pub use proxy::ProxyError;
pub use proxy_protocol::Origin;
use site::Site;
use socket::{Sockets, Transport};
pub use stream::TargetStream;
use trouble::Trouble;

use crate::config::Config;
use crate::config::resolved::{OfframpConfig, OfframpKind};
use crate::flow_record::FlowProtocol;

/// The off-ramp that always exists.
pub const DIRECT: &str = "direct";

/// Marks a socket's packets (`SO_MARK`), for an administrator's own rules: ours leave this host's packets alone anyway.
/// Needs CAP_NET_ADMIN.
pub fn set_mark(socket: &impl AsFd, mark: u32) -> io::Result<()> {
    SockRef::from(socket).set_mark(mark)
}

/// Every off-ramp, and the routes towards them.
#[derive(Debug, Default)]
pub struct Offramps {
    by_name: HashMap<Arc<str>, Arc<Offramp>>,
    /// Of each virtual network, longest prefix first, each with its off-ramps in order of preference.
    routes: HashMap<Arc<str>, Vec<Route>>,
    /// Where everything of the default network goes when there are no routes of it at all.
    otherwise: Option<Arc<Offramp>>,
}

type Route = (IpNet, Box<[Arc<Offramp>]>);

impl Offramps {
    /// The off-ramps and routes of `config`, as this host can serve them now.
    ///
    /// # Errors
    /// A file that an off-ramp needs is not there or not sound.
    pub fn new(config: &Config) -> Result<Self, OfframpFileError> {
        let kernel_ports = kernel_ports();
        let direct = OfframpConfig::direct();
        let by_name = std::iter::once(&direct)
            .chain(&config.offramps)
            .map(|one| {
                let mark = config.tun.as_ref().map(|tun| tun.fwmark);
                let offramp = Offramp::new(one, mark, config.limits.dial_timeout, kernel_ports.as_ref())?;
                Ok((Arc::clone(&one.name), Arc::new(offramp)))
            })
            .collect::<Result<HashMap<Arc<str>, Arc<Offramp>>, OfframpFileError>>()?;
        let known = |names: &[Arc<str>]| names.iter().filter_map(|name| by_name.get(name).cloned()).collect();
        let mut routes: HashMap<Arc<str>, Vec<Route>> = HashMap::new();
        for route in &config.routes {
            routes.entry(Arc::clone(&route.network)).or_default().push((route.to, known(&route.offramp)));
        }
        for routes in routes.values_mut() {
            routes.sort_by_key(|(to, _)| std::cmp::Reverse(to.prefix_len()));
        }
        let otherwise = if routes.contains_key(DEFAULT_NETWORK) { None } else { by_name.get(DIRECT).cloned() };
        Ok(Self { by_name, routes, otherwise })
    }

    /// Why the files that an off-ramp of `config` needs cannot be used.
    pub fn check_files(config: &OfframpConfig) -> Result<(), OfframpFileError> {
        match &config.kind {
            OfframpKind::Direct { .. } | OfframpKind::Kernel => Ok(()),
            OfframpKind::Proxy(proxy) => Proxy::load(&config.name, proxy).map(drop),
            OfframpKind::Wireguard(site) => Site::load(&config.name, site).map(drop),
        }
    }

    /// The off-ramp of a flow from the virtual network `from` that `tried` those already. In question are the one that the
    /// permit names, else those of the network's longest route, else (no routes at all of the default one) `direct`; of
    /// these it is the first that is up or due for another try, or where none is, the first: then the target's silence
    /// tells more than a refusal of ours.
    ///
    /// `None` when nothing is in question that was not tried.
    pub fn select(
        &self,
        permit: &Permit,
        from: &str,
        destination: IpAddr,
        tried: &[Arc<str>],
    ) -> Option<&Arc<Offramp>> {
        self.choose(permit.offramp().map(AsRef::as_ref), from, destination, tried)
    }

    /// The off-ramps in question for a flow from the virtual network `from`, in order of preference.
    pub fn ways(&self, permit: &Permit, from: &str, destination: IpAddr) -> &[Arc<Offramp>] {
        self.in_question(permit.offramp().map(AsRef::as_ref), from, destination)
    }

    fn choose(
        &self,
        named: Option<&str>,
        from: &str,
        destination: IpAddr,
        tried: &[Arc<str>],
    ) -> Option<&Arc<Offramp>> {
        let left =
            || self.in_question(named, from, destination).iter().filter(|offramp| !tried.contains(&offramp.name));
        left().find(|offramp| offramp.is_up() || offramp.is_due()).or_else(|| left().next())
    }

    fn in_question(&self, named: Option<&str>, from: &str, destination: IpAddr) -> &[Arc<Offramp>] {
        let mut routes = self.routes.get(from).into_iter().flatten();
        let one = if let Some(name) = named {
            self.by_name.get(name)
        } else if let Some((_, offramps)) = routes.find(|(to, _)| to.contains(&destination)) {
            return offramps;
        } else {
            self.otherwise.as_ref().filter(|_| from == DEFAULT_NETWORK)
        };
        one.map(std::slice::from_ref).unwrap_or_default()
    }

    /// Whether a flow over `offramp` that is not up has a way that is.
    pub fn has_better(&self, offramp: &str, permit: &Permit, from: &str, destination: IpAddr) -> bool {
        self.ways(permit, from, destination).iter().any(|way| *way.name != *offramp && way.is_up())
    }

    /// The sites behind WireGuard peers, by name.
    pub fn sites(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.all().filter_map(|offramp| offramp.site())
    }

    /// Every off-ramp, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Offramp>> {
        let mut all: Vec<_> = self.by_name.values().collect();
        all.sort_unstable_by_key(|offramp| &offramp.name);
        all.into_iter()
    }
}

/// One way out.
#[derive(Debug)]
pub struct Offramp {
    name: Arc<str>,
    /// Towards the target, or towards the proxy.
    sockets: Arc<Sockets>,
    kind: Kind,
    dial_timeout: Duration,
    /// `None`: nobody probes it.
    health: Option<Health>,
}

/// What its sockets go to.
#[derive(Debug)]
enum Kind {
    Direct {
        proxy_protocol: bool,
    },
    Proxy(Arc<Proxy>),
    /// To none: packets go on as they are. Only its probes need a socket.
    Kernel,
    /// To none: packets, or connections of the shards' own, go on through its tunnel.
    Wireguard(Arc<Site>),
}

/// How a flow goes on.
#[derive(Debug)]
pub enum Way {
    /// By a socket of ours.
    Dial,
    /// Its packets go on as they are.
    Forward(NextHop),
    /// By a connection that a shard opens through the tunnel of the site.
    Call(Arc<Site>),
}

/// Who gets the packets of a flow that go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextHop {
    /// This host, by the TUN device.
    Kernel,
    /// The WireGuard peer of a site.
    Site(Arc<Site>),
    /// The device with this public key, of which the flow's target is an address.
    Device([u8; 32]),
}

/// A UDP socket, or what it is waited for.
pub enum Opening {
    /// It is there.
    Open(DatagramSocket),
    /// A proxy is asked for it.
    Asking(Pin<Box<dyn Future<Output = Result<DatagramSocket, DialError>>>>),
}

impl Offramp {
    fn new(
        config: &OfframpConfig,
        mark: Option<u32>,
        dial_timeout: Duration,
        kernel_ports: Option<&RangeInclusive<u16>>,
    ) -> Result<Self, OfframpFileError> {
        Ok(Self {
            name: Arc::clone(&config.name),
            sockets: Arc::new(Sockets::new(config, mark, kernel_ports)),
            kind: match &config.kind {
                OfframpKind::Direct { proxy_protocol } => Kind::Direct { proxy_protocol: *proxy_protocol },
                OfframpKind::Proxy(proxy) => Kind::Proxy(Arc::new(Proxy::load(&config.name, proxy)?)),
                OfframpKind::Kernel => Kind::Kernel,
                OfframpKind::Wireguard(site) => Kind::Wireguard(Arc::new(Site::load(&config.name, site)?)),
            },
            dial_timeout,
            health: config.health.clone().map(Health::new),
        })
    }

    /// Whether new flows may go this way.
    pub fn is_up(&self) -> bool {
        self.states().all(health::State::is_up) && self.trouble().is_none_or(|trouble| trouble.is_up())
    }

    /// Whether a flow may try it although it is down, to find out whether it still is.
    fn is_due(&self) -> bool {
        self.trouble().is_some_and(|trouble| trouble.is_due())
    }

    /// What dials say of its proxy, where nobody probes it.
    fn trouble(&self) -> Option<&Arc<Trouble>> {
        match &self.kind {
            Kind::Proxy(proxy) if self.health.is_none() => Some(proxy.trouble()),
            Kind::Proxy(_) | Kind::Direct { .. } | Kind::Kernel | Kind::Wireguard(_) => None,
        }
    }

    /// What probes and the handshakes of a tunnel say: what is down, else what came up last. Where nobody asks, what dials
    /// say; `None` as long as that is nothing.
    pub fn report(&self) -> Option<health::Report> {
        let probed = self.states().map(health::State::report).max_by_key(|report| (!report.up, report.since));
        probed.or_else(|| self.trouble()?.report())
    }

    fn states(&self) -> impl Iterator<Item = &health::State> {
        let tunnel = self.site().map(|site| &site.state);
        tunnel.into_iter().chain(self.health.as_ref().map(|health| &health.state))
    }

    /// The site behind its tunnel, where it has one.
    fn site(&self) -> Option<&Arc<Site>> {
        match &self.kind {
            Kind::Wireguard(site) => Some(site),
            Kind::Direct { .. } | Kind::Proxy(_) | Kind::Kernel => None,
        }
    }

    /// Its unique name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether it has a way to carry flows of `protocol`. What nobody looks into can only go on as it is, and with the client's
    /// own address: without ports, two clients behind one address could not be told apart.
    pub fn carries(&self, protocol: FlowProtocol) -> bool {
        match (&self.kind, protocol) {
            (Kind::Proxy(_), FlowProtocol::Icmp) | (Kind::Direct { .. } | Kind::Proxy(_), FlowProtocol::Other(_)) => {
                false
            }
            (_, FlowProtocol::Other(number)) if !goes_unseen(number) => false,
            (Kind::Proxy(proxy), FlowProtocol::Udp) => proxy.carries_udp(),
            (Kind::Wireguard(site), FlowProtocol::Other(_)) => site.keeps_client(),
            (Kind::Direct { .. } | Kind::Proxy(_) | Kind::Kernel | Kind::Wireguard(_), _) => true,
        }
    }

    /// How a permitted flow goes on.
    pub fn way(&self, permit: &Permit, protocol: FlowProtocol) -> Way {
        let _ = permit;
        match &self.kind {
            Kind::Kernel => Way::Forward(NextHop::Kernel),
            Kind::Wireguard(site) if site.terminates() && protocol == FlowProtocol::Tcp => Way::Call(Arc::clone(site)),
            Kind::Wireguard(site) => Way::Forward(NextHop::Site(Arc::clone(site))),
            Kind::Direct { .. } | Kind::Proxy(_) => Way::Dial,
        }
    }

    /// Dials a TCP connection, which begins at once. Without a proxy the future ends with the dial timeout at the latest; how
    /// long a proxy may look for the target is the caller's to bound.
    ///
    /// Call on a tokio runtime.
    pub fn dial_tcp(
        &self,
        permit: &Permit,
        to: SocketAddr,
        origin: &Origin,
    ) -> impl Future<Output = Result<TargetStream, DialError>> + Send + use<> {
        let _ = permit;
        self.connect_tcp(to, Some(origin))
    }

    /// Opens a UDP socket towards `to`. Call on a tokio runtime.
    pub fn open_udp(&self, permit: &Permit, to: SocketAddr) -> Result<Opening, DialError> {
        let _ = permit;
        self.connect_udp(to)
    }

    /// Opens a socket for echo requests to `to`, ICMP or ICMPv6. Call on a tokio runtime.
    pub fn open_ping(&self, permit: &Permit, to: IpAddr) -> Result<DatagramSocket, DialError> {
        let _ = permit;
        self.connect_ping(to)
    }

    /// Takes the place of a new flow of `device` among the local ports, where the off-ramp has a range of them.
    ///
    /// # Errors
    /// [`DialError::PortsExhausted`]: the device has its share.
    pub(crate) fn port_share(
        &self,
        now: Instant,
        device: &Arc<str>,
        protocol: FlowProtocol,
        to: SocketAddr,
    ) -> Result<Option<PortShare>, DialError> {
        let Some(ports) = &self.sockets.ports else { return Ok(None) };
        let to = if let Kind::Proxy(proxy) = &self.kind { proxy.address() } else { to };
        let towards = match protocol {
            FlowProtocol::Tcp => Some(to),
            // The kernel gives a port to one UDP socket, whatever its target.
            FlowProtocol::Udp => None,
            FlowProtocol::Icmp | FlowProtocol::Other(_) => return Ok(None),
        };
        ports.shares.take(now, device, towards, ports.len()).map(Some).ok_or(DialError::PortsExhausted)
    }

    /// Connects to `to` for `origin`, or for ourselves.
    fn connect_tcp(
        &self,
        to: SocketAddr,
        origin: Option<&Origin>,
    ) -> impl Future<Output = Result<TargetStream, DialError>> + Send + use<> {
        let (towards, patience, proxy, header) = match &self.kind {
            Kind::Direct { proxy_protocol } => {
                (to, self.dial_timeout, None, proxy_protocol.then(|| proxy_protocol::header(origin)))
            }
            Kind::Proxy(proxy) => {
                let attempt = proxy.trouble().begin();
                (proxy.address(), self.proxy_patience(), Some((Arc::clone(proxy), attempt)), None)
            }
            Kind::Kernel => (to, self.dial_timeout, None, None),
            // No socket of ours leads there.
            Kind::Wireguard(_) => return Either::Left(ready(Err(DialError::NoTunnel))),
        };
        let connecting = self.sockets.connect_tcp(towards, patience);
        Either::Right(async move {
            if let Some((proxy, attempt)) = proxy {
                return proxy.open(attempt, connecting, to, patience).await;
            }
            let mut stream = connecting.await?;
            if let Some(header) = header {
                // The socket's buffer is empty yet, so it is written at once.
                stream.write_all(&header?).await?;
            }
            Ok(stream.into())
        })
    }

    fn connect_udp(&self, to: SocketAddr) -> Result<Opening, DialError> {
        let proxy = match &self.kind {
            Kind::Wireguard(_) => return Err(DialError::NoTunnel),
            Kind::Direct { .. } | Kind::Kernel => {
                let socket = self.sockets.start(Transport::Udp, to)?;
                return Ok(Opening::Open(DatagramSocket::new(socket, to)?));
            }
            Kind::Proxy(proxy) if !proxy.carries_udp() => return Err(DialError::CannotCarry(FlowProtocol::Udp)),
            Kind::Proxy(proxy) => Arc::clone(proxy),
        };
        let patience = self.proxy_patience();
        let connecting = self.sockets.connect_tcp(proxy.address(), patience);
        let (attempt, sockets) = (proxy.trouble().begin(), Arc::clone(&self.sockets));
        Ok(Opening::Asking(Box::pin(async move {
            let (control, relay) = proxy.associate(attempt, connecting, patience).await?;
            let socket = sockets.start(Transport::Udp, relay)?;
            Ok(DatagramSocket::relayed(socket, relay, Relay::new(to, control))?)
        })))
    }

    fn connect_ping(&self, to: IpAddr) -> Result<DatagramSocket, DialError> {
        match &self.kind {
            Kind::Proxy(_) | Kind::Wireguard(_) => return Err(DialError::CannotCarry(FlowProtocol::Icmp)),
            Kind::Direct { .. } | Kind::Kernel => {}
        }
        let to = SocketAddr::new(to, 0);
        let socket = self.sockets.start(Transport::Ping, to)?;
        Ok(DatagramSocket::new(socket, to)?)
    }

    /// How long a proxy may take until it hears of the target, so that there is time left for the target, or for another
    /// off-ramp.
    fn proxy_patience(&self) -> Duration {
        self.dial_timeout / 2
    }
}

/// The ports this network namespace's kernel chooses local ports from.
fn kernel_ports() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut bounds = text.split_whitespace().map(str::parse);
    Some(bounds.next()?.ok()?..=bounds.next()?.ok()?)
}

#[cfg(test)]
mod tests;
