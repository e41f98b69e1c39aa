//! From what was written to what it means: defaults, paths, and the checks between values.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use portcullis_policy::DEFAULT_NETWORK;

use super::file::{File, RouteFile, TunFile, WireguardFile};
use super::offramp::OfframpFile;
use super::problem::{ConfigError, Findings};
use super::reader::Located;
use super::resolved::{
    Config, OfframpConfig, OfframpKind, OnStop, Returns, RouteConfig, SiteConfig, TlsConfig, TunConfig, WireguardConfig,
};
use crate::keys::encode_key;
use crate::prefix::{is_network_itself, overlap};

/// Bytes of `sun_path`, without the end mark (unix(7)).
const SOCKET_PATH: usize = 107;

/// Settles `file`, which was read from `text`, the contents of `source`. What is wrong goes to `findings`; the result counts only when they are empty.
pub(super) fn resolve(text: &str, file: File, source: &Path, cores: usize, findings: &mut Findings) -> Config {
    let base = source.parent().unwrap_or_else(|| Path::new(""));
    let state_dir = base.join(file.state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/portcullis")));
    if findings.is_empty() && !file.has_onramp {
        findings.add(None, "", ConfigError::NoOnramp);
    }
    if let (Some(wireguard), Some(tun)) = (&file.wireguard, &file.tun) {
        apart(&wireguard.addresses, &tun.addresses, findings);
    }
    let onramps = (file.wireguard.is_some(), file.tun.is_some());
    let offramps = offramps(file.offramps, onramps, base, findings);
    let networks = networks(file.networks, &file.routes, findings);
    let wireguard = file.wireguard.map(|wireguard| self::wireguard(wireguard, &state_dir, findings));
    let forwards = offramps.iter().any(|offramp| offramp.kind == OfframpKind::Kernel);
    let returns = wireguard.as_ref().filter(|_| forwards).map(|wireguard| Returns {
        networks: wireguard.addresses.iter().map(IpNet::trunc).collect(),
        mtu: wireguard.mtu,
    });
    Config {
        source: source.to_owned(),
        text: text.into(),
        directory: base.join(file.directory.unwrap_or_else(|| PathBuf::from("directory.json"))),
        policy: base.join(file.policy.unwrap_or_else(|| PathBuf::from("policy.json"))),
        watch: file.watch.unwrap_or(true),
        control: control(file.control, base, findings),
        local_services: local_services(file.local_services, findings),
        tun: file.tun.map(|tun| TunConfig { returns, ..self::tun(tun, findings) }),
        wireguard,
        routes: routes(file.routes, &offramps, &networks, findings),
        networks,
        offramps,
        limits: file.limits,
        flow_log: base.join(file.flow_log.unwrap_or_else(|| PathBuf::from("/var/log/portcullis/flows.jsonl"))),
        metrics: file.metrics.map(|listen| listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9464)))),
        shards: file.shards.unwrap_or(cores),
        drain: file.drain.unwrap_or(Duration::from_secs(10)),
        state_dir,
    }
}

fn control(path: Option<Located<PathBuf>>, base: &Path, findings: &mut Findings) -> PathBuf {
    let Some(path) = path else {
        return PathBuf::from("/run/portcullis/control.sock");
    };
    let whole = base.join(&path.value);
    let length = whole.as_os_str().len();
    if length > SOCKET_PATH {
        findings.add(path.place, path.key, ConfigError::SocketPathTooLong(length));
    }
    whole
}

fn local_services(services: Vec<Located<SocketAddr>>, findings: &mut Findings) -> Vec<SocketAddr> {
    for service in &services {
        if !is_unicast_host(service.value.ip()) || is_link_local_or_loopback(service.value.ip()) {
            findings.add(service.place, &*service.key, ConfigError::NeverADestination(service.value));
        }
    }
    distinct(services, findings)
}

fn wireguard(file: WireguardFile, state_dir: &Path, findings: &mut Findings) -> WireguardConfig {
    host_addresses(&file.addresses, findings);
    one_of_each_family(&file.addresses, IpNet::addr, findings);
    for address in &file.addresses {
        if address.value.prefix_len() + 1 >= address.value.max_prefix_len() {
            findings.add(address.place, &*address.key, ConfigError::NoRoom(address.value));
        }
    }
    WireguardConfig {
        listen: file.listen.unwrap_or_else(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, 51_820))),
        key_file: state_dir.join(file.key_file.unwrap_or_else(|| PathBuf::from("wireguard.key"))),
        addresses: file.addresses.into_iter().map(|address| address.value).collect(),
        mtu: file.mtu.unwrap_or(1280),
        endpoint: file.endpoint,
        client_routes: distinct(file.client_routes, findings),
    }
}

fn tun(file: TunFile, findings: &mut Findings) -> TunConfig {
    host_addresses(&file.addresses, findings);
    for exclude in &file.exclude {
        if !file.routes.iter().any(|route| route.value.contains(&exclude.value)) {
            findings.add(exclude.place, &*exclude.key, ConfigError::NothingToExclude(exclude.value));
        }
    }
    TunConfig {
        name: file.name.unwrap_or_else(|| "portcullis0".to_owned()),
        addresses: distinct(file.addresses, findings),
        mtu: file.mtu.unwrap_or(1500),
        routes: distinct(file.routes, findings),
        exclude: distinct(file.exclude, findings),
        table: file.table.unwrap_or(51_880),
        fwmark: file.fwmark.unwrap_or(51_880),
        on_stop: file.on_stop.unwrap_or(OnStop::Remove),
        returns: None,
    }
}

/// `direct` is always there and first; an entry of that name changes its settings.
fn offramps(
    files: Vec<OfframpFile>,
    (has_wireguard, has_tun): (bool, bool),
    base: &Path,
    findings: &mut Findings,
) -> Vec<OfframpConfig> {
    let mut offramps = vec![OfframpConfig::direct()];
    let mut seen = HashMap::new();
    let mut sites = HashMap::new();
    for file in files {
        if let Some(first) = seen.insert(file.name.value.clone(), file.name.place) {
            let error = ConfigError::DuplicateOfframp { name: file.name.value, first };
            findings.add(file.name.place, file.name.key, error);
            continue;
        }
        if file.kind == Some(OfframpKind::Kernel) && !has_tun {
            findings.add(file.name.place, &*file.name.key, ConfigError::NeedsTun);
        }
        if let Some(OfframpKind::Wireguard(site)) = &file.kind {
            if !has_wireguard {
                findings.add(file.name.place, &*file.name.key, ConfigError::NeedsWireguard);
            }
            if let Some(first) = sites.insert(site.public_key, file.name.place) {
                let value = encode_key(&site.public_key);
                findings.add(file.name.place, &*file.name.key, ConfigError::Repeated { value, first });
            }
        }
        one_of_each_family(&file.addresses, IpNet::addr, findings);
        host_addresses(&file.addresses, findings);
        one_of_each_family(&file.source, |source| *source, findings);
        for source in &file.source {
            if !is_unicast_host(source.value) {
                findings.add(source.place, &*source.key, ConfigError::NotAHostAddress(source.value));
            }
        }
        let offramp = OfframpConfig {
            name: Arc::from(file.name.value),
            source: file.source.into_iter().map(|source| source.value).collect(),
            ports: file.ports,
            interface: file.interface,
            health: file.health,
            kind: file.kind.map_or(OfframpKind::Direct { proxy_protocol: false }, |kind| relative_to(base, kind)),
        };
        match offramps.iter_mut().find(|other| other.name == offramp.name) {
            Some(same) => *same = offramp,
            None => offramps.push(offramp),
        }
    }
    offramps
}

/// With its paths relative to `base`.
fn relative_to(base: &Path, kind: OfframpKind) -> OfframpKind {
    let join = |path: PathBuf| base.join(path);
    let mut proxy = match kind {
        OfframpKind::Proxy(proxy) => proxy,
        OfframpKind::Wireguard(site) => {
            let preshared_key_file = site.preshared_key_file.map(join);
            return OfframpKind::Wireguard(SiteConfig { preshared_key_file, ..site });
        }
        OfframpKind::Direct { .. } | OfframpKind::Kernel => return kind,
    };
    proxy.credentials_file = proxy.credentials_file.map(join);
    proxy.tls = proxy.tls.map(|tls| TlsConfig {
        ca_file: tls.ca_file.map(join),
        identity: tls.identity.map(|(certificate, key)| (join(certificate), join(key))),
        server_name: tls.server_name,
    });
    OfframpKind::Proxy(proxy)
}

/// Virtual networks beside `default`, which is always there.
fn networks(files: Vec<Located<String>>, routes: &[RouteFile], findings: &mut Findings) -> Vec<Arc<str>> {
    for file in &files {
        let of_it = |route: &RouteFile| route.network.as_ref().is_some_and(|network| network.value == file.value);
        if !routes.iter().any(of_it) && file.value != DEFAULT_NETWORK {
            findings.add(file.place, &*file.key, ConfigError::NetworkWithoutRoute);
        }
    }
    let named = distinct(files, findings).into_iter().filter(|name| name != DEFAULT_NETWORK);
    named.map(Arc::from).collect()
}

fn routes(
    files: Vec<RouteFile>,
    offramps: &[OfframpConfig],
    networks: &[Arc<str>],
    findings: &mut Findings,
) -> Vec<RouteConfig> {
    let mut routes = Vec::new();
    let mut seen = HashMap::new();
    for file in files {
        for name in &file.offramp {
            if !offramps.iter().any(|offramp| *offramp.name == *name.value) {
                let known: Vec<&str> = offramps.iter().map(|offramp| &*offramp.name).collect();
                let error = ConfigError::UnknownOfframp { name: name.value.clone(), known: known.join(", ") };
                findings.add(name.place, &*name.key, error);
            }
        }
        let offramp = distinct(file.offramp, findings).into_iter().map(Arc::from).collect();
        let network = match file.network {
            None => DEFAULT_NETWORK.into(),
            Some(network) => {
                let mut known = std::iter::once(DEFAULT_NETWORK).chain(networks.iter().map(|name| &**name));
                if !known.any(|known| known == network.value) {
                    let known = [&[Arc::from(DEFAULT_NETWORK)], networks].concat().join(", ");
                    let error = ConfigError::UnknownNetwork { name: network.value.clone(), known };
                    findings.add(network.place, &*network.key, error);
                }
                Arc::<str>::from(network.value)
            }
        };
        let Some(to) = file.to else { continue };
        if let Some(first) = seen.insert((Arc::clone(&network), to.value), to.place) {
            findings.add(to.place, &*to.key, ConfigError::Repeated { value: to.value.to_string(), first });
        }
        routes.push(RouteConfig { network, to: to.value, offramp });
    }
    routes
}

/// Refuses a second address of a family.
fn one_of_each_family<T>(items: &[Located<T>], address: impl Fn(&T) -> IpAddr, findings: &mut Findings) {
    for (i, item) in items.iter().enumerate() {
        let is_ipv4 = address(&item.value).is_ipv4();
        if let Some(first) = items.iter().take(i).find(|other| address(&other.value).is_ipv4() == is_ipv4) {
            let family = if is_ipv4 { "IPv4" } else { "IPv6" };
            findings.add(item.place, &*item.key, ConfigError::SecondOfFamily { family, first: first.place });
        }
    }
}

/// Refuses addresses that no host can have.
fn host_addresses(addresses: &[Located<IpNet>], findings: &mut Findings) {
    for address in addresses {
        let net = address.value;
        if !is_unicast_host(net.addr()) || net.addr().is_loopback() {
            findings.add(address.place, &*address.key, ConfigError::NotAHostAddress(net.addr()));
        } else if is_network_itself(&net) {
            findings.add(address.place, &*address.key, ConfigError::NetworkItself(net));
        }
    }
}

fn apart(first: &[Located<IpNet>], second: &[Located<IpNet>], findings: &mut Findings) {
    for b in second {
        for a in first.iter().filter(|a| overlap(&a.value, &b.value)) {
            let error = ConfigError::Overlap { net: b.value, other: a.value, key: a.key.clone(), first: a.place };
            findings.add(b.place, &*b.key, error);
        }
    }
}

/// The values, after a complaint about each that came before.
fn distinct<T: Eq + Hash + Clone + Display>(items: Vec<Located<T>>, findings: &mut Findings) -> Vec<T> {
    let mut seen = HashMap::new();
    for item in &items {
        if let Some(first) = seen.get(&item.value) {
            let error = ConfigError::Repeated { value: item.value.to_string(), first: *first };
            findings.add(item.place, &*item.key, error);
        } else {
            seen.insert(item.value.clone(), item.place);
        }
    }
    items.into_iter().map(|item| item.value).collect()
}

fn is_unicast_host(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn is_link_local_or_loopback(address: IpAddr) -> bool {
    address.is_loopback()
        || match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
}
