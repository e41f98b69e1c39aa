//! What of this host would stop or slow the gateway, with the line that mends it.
//!
//! [`HostFacts`] is read once; [`check`] judges it against the configuration and does no IO.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use nix::net::if_::if_nameindex;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{getegid, getgroups};

use crate::config::Config;
use crate::config::resolved::{OfframpConfig, OfframpKind, ProxyConfig, ProxyScheme};
use crate::host::addresses::own_addresses;

/// Descriptors beyond one a flow: listeners, files, the control socket's clients.
const OTHER_DESCRIPTORS: u64 = 256;

/// Raises the soft limit on open files to the hard one, and says what it is now.
pub fn raise_nofile() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// What matters of the host, as it is now. `None`: this kernel has no such setting.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// Group ids that may open ping sockets; empty when nobody may.
    pub ping_group_range: Option<RangeInclusive<u32>>,
    /// Effective and supplementary groups of this process.
    pub groups: Vec<u32>,
    /// `net.ipv4.ip_forward`.
    pub forwarding_v4: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`.
    pub forwarding_v6: Option<bool>,
    /// Soft limit on open files.
    pub nofile: u64,
    /// Addresses of this host, sorted.
    pub addresses: Vec<IpAddr>,
    /// Names of its network interfaces.
    pub interfaces: Vec<String>,
}

impl HostFacts {
    /// Reads them, of this thread's network namespace.
    pub fn read() -> io::Result<Self> {
        let mut groups = vec![getegid().as_raw()];
        groups.extend(getgroups()?.iter().map(|group| group.as_raw()));
        Ok(Self {
            ping_group_range: sysctl("net/ipv4/ping_group_range").and_then(|text| {
                let mut bounds = text.split_whitespace().map(str::parse);
                Some(bounds.next()?.ok()?..=bounds.next()?.ok()?)
            }),
            groups,
            forwarding_v4: sysctl("net/ipv4/ip_forward").map(|value| value != "0"),
            forwarding_v6: sysctl("net/ipv6/conf/all/forwarding").map(|value| value != "0"),
            nofile: getrlimit(Resource::RLIMIT_NOFILE)?.0,
            addresses: own_addresses()?,
            interfaces: if_nameindex()?.iter().map(|one| one.name().to_string_lossy().into_owned()).collect(),
        })
    }
}

/// One thing to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostWarning {
    /// No group of this process may open ping sockets.
    PingNotPermitted,
    /// The kernel does not forward IPv4, so hosts behind this one cannot be routed into the TUN device.
    NoForwardingV4,
    /// The kernel does not forward IPv6, so hosts behind this one cannot be routed into the TUN device.
    NoForwardingV6,
    /// Fewer open files than flows.
    FewDescriptors {
        /// How many are allowed.
        allowed: u64,
        /// How many `limits.flows` flows need.
        needed: u64,
    },
    /// Nothing can be sent from the source address of an off-ramp.
    NoSuchSource {
        /// The off-ramp.
        offramp: Arc<str>,
        /// Its source address.
        source: IpAddr,
    },
    /// The interface of an off-ramp is not there.
    NoSuchInterface {
        /// The off-ramp.
        offramp: Arc<str>,
        /// Its interface.
        interface: String,
    },
}

impl fmt::Display for HostWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PingNotPermitted => {
                f.write_str("this process may not open ping sockets: pings of clients (IPv4 and IPv6) will fail")
            }
            Self::NoForwardingV4 => {
                f.write_str("IPv4 forwarding is off: no host behind this one can be routed into the TUN device")
            }
            Self::NoForwardingV6 => {
                f.write_str("IPv6 forwarding is off: no host behind this one can be routed into the TUN device")
            }
            Self::FewDescriptors { allowed, needed } => {
                write!(
                    f,
                    "{allowed} open files are allowed, but limits.flows may need {needed}: flows beyond will fail"
                )
            }
            Self::NoSuchSource { offramp, source } => {
                write!(
                    f,
                    "{source}, the source of the off-ramp {offramp:?}, is not an address of this host: flows that go by it will fail"
                )
            }
            Self::NoSuchInterface { offramp, interface } => {
                write!(
                    f,
                    "this host has no interface {interface}, by which the off-ramp {offramp:?} is to go: its flows will fail"
                )
            }
        }
    }
}

impl HostWarning {
    /// The line that mends it.
    pub fn mend(&self) -> String {
        match self {
            Self::PingNotPermitted => r#"sysctl -w net.ipv4.ping_group_range="0 2147483647""#.to_owned(),
            Self::NoForwardingV4 => "sysctl -w net.ipv4.ip_forward=1".to_owned(),
            Self::NoForwardingV6 => "sysctl -w net.ipv6.conf.all.forwarding=1".to_owned(),
            Self::FewDescriptors { needed, .. } => {
                format!("LimitNOFILE={needed} in the systemd unit, or `ulimit -n {needed}` before starting")
            }
            Self::NoSuchSource { source, .. } => format!("ip address add {source} dev INTERFACE"),
            Self::NoSuchInterface { interface, .. } => format!("ip link set {interface} up, once it is there"),
        }
    }
}

/// What of `facts` would stop or slow a gateway with `config`.
pub fn check(facts: &HostFacts, config: &Config) -> Vec<HostWarning> {
    let mut warnings = Vec::new();
    let may_ping = |range: &RangeInclusive<u32>| facts.groups.iter().any(|group| range.contains(group));
    if !facts.ping_group_range.as_ref().is_some_and(may_ping) {
        warnings.push(HostWarning::PingNotPermitted);
    }
    if let Some(tun) = &config.tun {
        if facts.forwarding_v4 == Some(false) && tun.routes.iter().any(|net| matches!(net, IpNet::V4(_))) {
            warnings.push(HostWarning::NoForwardingV4);
        }
        if facts.forwarding_v6 == Some(false) && tun.routes.iter().any(|net| matches!(net, IpNet::V6(_))) {
            warnings.push(HostWarning::NoForwardingV6);
        }
    }
    // An association through a proxy has its socket, and the connection that it lives as long as.
    let relayed = config
        .offramps
        .iter()
        .any(|offramp| matches!(&offramp.kind, OfframpKind::Proxy(ProxyConfig { scheme: ProxyScheme::Socks5, .. })));
    let associations = if relayed { config.limits.associations.all } else { 0 };
    let needed = u64::try_from(config.limits.flows.all.saturating_add(associations)).unwrap_or(u64::MAX);
    let needed = needed.saturating_add(OTHER_DESCRIPTORS);
    if facts.nofile < needed {
        warnings.push(HostWarning::FewDescriptors { allowed: facts.nofile, needed });
    }
    for OfframpConfig { name, source, interface, .. } in &config.offramps {
        let foreign = source.iter().filter(|source| facts.addresses.binary_search(source).is_err());
        warnings.extend(foreign.map(|&source| HostWarning::NoSuchSource { offramp: Arc::clone(name), source }));
        if let Some(interface) = interface.as_ref().filter(|interface| !facts.interfaces.contains(interface)) {
            warnings.push(HostWarning::NoSuchInterface { offramp: Arc::clone(name), interface: interface.clone() });
        }
    }
    warnings
}

fn sysctl(path: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::{config, in_namespace, sysctl as set, tun_config};

    fn good() -> HostFacts {
        HostFacts {
            ping_group_range: Some(0..=2_147_483_647),
            groups: vec![0],
            forwarding_v4: Some(true),
            forwarding_v6: Some(true),
            nofile: 1 << 20,
            addresses: vec!["192.0.2.10".parse().unwrap()],
            interfaces: vec!["eth1".to_owned()],
        }
    }

    #[test]
    fn a_good_host_has_no_warning() {
        let config = config(Some(tun_config(&["10.0.0.0/8", "fd10::/16"], &[])));
        assert_eq!(check(&good(), &config), []);
    }

    #[test]
    fn each_fault_has_its_warning_and_the_line_that_mends_it() {
        let with_tun = config(Some(tun_config(&["10.0.0.0/8", "fd10::/16"], &[])));
        let faults: [(HostFacts, &str); 5] = [
            (HostFacts { ping_group_range: Some(1000..=2000), ..good() }, "ping_group_range=\"0 2147483647\""),
            (HostFacts { ping_group_range: None, ..good() }, "ping_group_range=\"0 2147483647\""),
            (HostFacts { forwarding_v4: Some(false), ..good() }, "net.ipv4.ip_forward=1"),
            (HostFacts { forwarding_v6: Some(false), ..good() }, "net.ipv6.conf.all.forwarding=1"),
            (HostFacts { nofile: 1024, ..good() }, "LimitNOFILE=131328"),
        ];
        for (facts, mend) in faults {
            let warnings = check(&facts, &with_tun);
            assert_eq!(warnings.len(), 1, "{facts:?}: {warnings:?}");
            assert!(warnings[0].mend().contains(mend), "{warnings:?}: {}", warnings[0].mend());
            assert!(!warnings[0].to_string().is_empty());
        }
        let forwarding = HostFacts { forwarding_v4: Some(false), ..good() };
        assert_eq!(check(&forwarding, &config(None)), [], "only a TUN needs it");
    }

    #[test]
    fn offramps_that_this_host_cannot_go_by_are_warned_about() {
        let offramp = |source: &str, interface: &str| Config {
            offramps: vec![OfframpConfig {
                name: "line".into(),
                source: vec![source.parse().unwrap()],
                interface: Some(interface.to_owned()),
                ..OfframpConfig::direct()
            }],
            ..config(None)
        };
        assert_eq!(check(&good(), &offramp("192.0.2.10", "eth1")), []);
        let warnings = check(&good(), &offramp("192.0.2.11", "eth2"));
        let [source, interface] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(source.to_string().starts_with("192.0.2.11, the source of the off-ramp \"line\", is not"));
        assert!(interface.to_string().starts_with("this host has no interface eth2"));
        assert!(source.mend().contains("192.0.2.11") && interface.mend().contains("eth2"));
    }

    #[test]
    fn facts_are_those_of_the_namespace() {
        in_namespace(async || {
            set("net.ipv4.ping_group_range", "5 6");
            set("net.ipv4.ip_forward", "1");
            set("net.ipv6.conf.all.forwarding", "0");
            let facts = HostFacts::read().unwrap();
            assert_eq!(facts.ping_group_range, Some(5..=6));
            assert_eq!((facts.forwarding_v4, facts.forwarding_v6), (Some(true), Some(false)));
            assert!(facts.nofile > 0);
            assert!(facts.addresses.iter().all(IpAddr::is_loopback), "{:?}", facts.addresses);
            assert_eq!(facts.interfaces, ["lo"]);
        });
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_nofile().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((raised, soft), (hard, hard));
    }
}
