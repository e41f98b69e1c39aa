//! `[[offramp]]` as it was written.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use portcullis_policy::address::parse_address;
use rustls::pki_types::ServerName;

use super::file::{endpoint, interface_name, path, socket_address};
use super::problem::ConfigError;
use super::reader::{Located, Reader, Table, Value};
use super::resolved::{OfframpKind, ProxyConfig, ProxyScheme, SiteConfig, SiteMode, TlsConfig};
use crate::keys::parse_public_key;
use crate::offramp::health::HealthConfig;
use crate::prefix::parse_interface_address;

/// Every key of an `[[offramp]]`; which of them mean something depends on its kind.
pub(super) const OFFRAMP: &[&str] = &[
    "name",
    "kind",
    "source",
    "ports",
    "interface",
    "health",
    "proxy_protocol",
    "address",
    "credentials_file",
    "tls",
    "mode",
    "public_key",
    "preshared_key_file",
    "endpoint",
    "addresses",
    "keepalive",
];
/// Keys of some kinds, and which these are.
const DIRECT_ONLY: (&[&str], &str) = (&["proxy_protocol"], "direct");
const PROXY_ONLY: (&[&str], &str) = (&["address", "credentials_file", "tls"], "socks5, http-connect");
const SOCKETS_ONLY: (&[&str], &str) = (&["ports", "interface"], "direct, socks5, http-connect");
const SOURCE: (&[&str], &str) = (&["source"], "direct, socks5, http-connect, wireguard");
const SITE_ONLY: (&[&str], &str) =
    (&["mode", "public_key", "preshared_key_file", "endpoint", "addresses", "keepalive"], "wireguard");
const HEALTH: &[&str] = &["tcp", "every", "down_after", "up_after"];
const TLS: &[&str] = &["ca_file", "certificate_file", "key_file", "server_name"];

const PROBED_EVERY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const PROBES_IN_A_ROW: RangeInclusive<u64> = 1..=100;
/// WireGuard has 16 bits for seconds.
const KEEPALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(65_535);

/// One `[[offramp]]`. Paths are as they were written.
#[derive(Debug)]
pub(super) struct OfframpFile {
    pub(super) name: Located<String>,
    pub(super) source: Vec<Located<IpAddr>>,
    pub(super) ports: Option<RangeInclusive<u16>>,
    pub(super) interface: Option<String>,
    pub(super) health: Option<HealthConfig>,
    /// `None` when it could not be read.
    pub(super) kind: Option<OfframpKind>,
    /// Of a site, to be checked against each other.
    pub(super) addresses: Vec<Located<IpNet>>,
}

/// The word after `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Direct,
    Proxy(ProxyScheme),
    Kernel,
    Wireguard,
}

impl Kind {
    const NAMES: &str = "direct, socks5, http-connect, kernel, wireguard";

    fn parse(text: &str) -> Result<Self, ConfigError> {
        match text {
            "direct" => Ok(Self::Direct),
            "socks5" => Ok(Self::Proxy(ProxyScheme::Socks5)),
            "http-connect" => Ok(Self::Proxy(ProxyScheme::HttpConnect)),
            "kernel" => Ok(Self::Kernel),
            "wireguard" => Ok(Self::Wireguard),
            _ => Err(ConfigError::UnknownWord { found: text.to_owned(), known: Self::NAMES }),
        }
    }

    /// Keys that mean nothing to it, and what they are for.
    fn foreign(self) -> &'static [(&'static [&'static str], &'static str)] {
        match self {
            Self::Direct => &[PROXY_ONLY, SITE_ONLY],
            Self::Proxy(_) => &[DIRECT_ONLY, SITE_ONLY],
            Self::Kernel => &[DIRECT_ONLY, PROXY_ONLY, SOCKETS_ONLY, SOURCE, SITE_ONLY],
            Self::Wireguard => &[DIRECT_ONLY, PROXY_ONLY, SOCKETS_ONLY],
        }
    }
}

impl<'t> Reader<'t> {
    pub(super) fn offramp(&mut self, table: &Table<'t>) -> Option<OfframpFile> {
        let name = self.required(table, "name").and_then(|value| self.located(&value, name));
        let kind = self.required(table, "kind").and_then(|value| self.parsed(&value, Kind::parse));
        // To a site it is a word.
        let source = self.value(table, "source").filter(|_| kind != Some(Kind::Wireguard));
        let source = self.located_list(source, parse_address);
        let addresses = self.value(table, "addresses");
        let addresses = self.located_list(addresses, parse_interface_address);
        let ports = self.value(table, "ports").and_then(|value| self.parsed(&value, port_range));
        let interface = self.value(table, "interface").and_then(|value| self.parsed(&value, interface_name));
        let health = self.section(table, "health", HEALTH).and_then(|health| self.health(&health));
        if let Some(health) = &health
            && kind == Some(Kind::Wireguard)
            && !addresses.iter().any(|own| own.value.addr().is_ipv4() == health.tcp.is_ipv4())
            && let Some(value) = self.value(table, "health")
        {
            self.problem::<()>(&value, ConfigError::NoProbeAddress);
        }
        let kind = kind.and_then(|kind| self.offramp_kind(table, kind, &addresses));
        Some(OfframpFile { name: name?, source, ports, interface, health, kind, addresses })
    }

    fn offramp_kind(&mut self, table: &Table<'t>, kind: Kind, addresses: &[Located<IpNet>]) -> Option<OfframpKind> {
        for (keys, known) in kind.foreign() {
            for key in *keys {
                if let Some(value) = self.value(table, key) {
                    self.problem::<()>(&value, ConfigError::OtherKind { known });
                }
            }
        }
        match kind {
            Kind::Direct => {
                let version = self.value(table, "proxy_protocol");
                let version = version.map(|value| self.parsed(&value, proxy_protocol));
                Some(OfframpKind::Direct { proxy_protocol: version.is_some() })
            }
            Kind::Proxy(scheme) => self.proxy(table, scheme).map(OfframpKind::Proxy),
            Kind::Kernel => Some(OfframpKind::Kernel),
            Kind::Wireguard => self.site(table, addresses).map(OfframpKind::Wireguard),
        }
    }

    fn site(&mut self, table: &Table<'t>, addresses: &[Located<IpNet>]) -> Option<SiteConfig> {
        let mode = self.value(table, "mode").and_then(|value| self.parsed(&value, site_mode));
        let public_key = self.required(table, "public_key").and_then(|value| self.parsed(&value, parse_public_key));
        let preshared_key_file = self.path(table, "preshared_key_file");
        let at = self.required(table, "endpoint");
        if let Some(value) = at.as_ref().filter(|value| value.is_empty_list()) {
            self.problem::<()>(value, ConfigError::EmptyList);
        }
        let endpoint: Vec<_> = self.located_list(at, endpoint).into_iter().map(|at| at.value).collect();
        let source = self.value(table, "source");
        let keeps_client = source.as_ref().and_then(|value| self.parsed(value, keeps_client)).unwrap_or(false);
        if !keeps_client && addresses.is_empty() {
            let place = self.value(table, "name");
            if let Some(value) = source.or(place) {
                self.problem::<()>(&value, ConfigError::NoSiteAddress);
            }
        }
        let keepalive = self.value(table, "keepalive").and_then(|value| self.duration(&value, KEEPALIVE));
        let addresses = addresses.iter().map(|address| address.value).collect();
        Some(SiteConfig {
            public_key: public_key?,
            preshared_key_file,
            endpoint,
            addresses,
            mode: mode.unwrap_or(SiteMode::Forward),
            keeps_client,
            keepalive,
        })
    }

    fn proxy(&mut self, table: &Table<'t>, scheme: ProxyScheme) -> Option<ProxyConfig> {
        let address: Option<SocketAddr> =
            self.required(table, "address").and_then(|value| self.parsed(&value, socket_address));
        let credentials_file = self.path(table, "credentials_file");
        let tls = self.value(table, "tls").map(|value| self.tls(&value));
        Some(ProxyConfig { scheme, address: address?, credentials_file, tls })
    }

    fn tls(&mut self, value: &Value<'t>) -> TlsConfig {
        let Some(table) = self.table(value, TLS) else { return TlsConfig::default() };
        let ca_file = self.path(&table, "ca_file");
        let (certificate, key) = (self.value(&table, "certificate_file"), self.value(&table, "key_file"));
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => self.parsed(&certificate, path).zip(self.parsed(&key, path)),
            (Some(alone), None) => self.problem(&alone, ConfigError::Alone { other: "key_file" }),
            (None, Some(alone)) => self.problem(&alone, ConfigError::Alone { other: "certificate_file" }),
            (None, None) => None::<(PathBuf, PathBuf)>,
        };
        let server_name = self.value(&table, "server_name").and_then(|value| self.parsed(&value, server_name));
        TlsConfig { ca_file, identity, server_name }
    }

    fn health(&mut self, table: &Table<'t>) -> Option<HealthConfig> {
        let tcp = self.required(table, "tcp").and_then(|value| self.parsed(&value, socket_address));
        let every = self.value(table, "every").and_then(|value| self.duration(&value, PROBED_EVERY));
        let down_after = self.number(table, "down_after", PROBES_IN_A_ROW);
        let up_after = self.number(table, "up_after", PROBES_IN_A_ROW);
        Some(HealthConfig {
            tcp: tcp?,
            every: every.unwrap_or(Duration::from_secs(5)),
            down_after: down_after.unwrap_or(3),
            up_after: up_after.unwrap_or(2),
        })
    }
}

/// A name of an off-ramp or a virtual network.
pub(super) fn name(text: &str) -> Result<String, ConfigError> {
    let sound = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if sound { Ok(text.to_owned()) } else { Err(ConfigError::NotAName(text.to_owned())) }
}

fn proxy_protocol(text: &str) -> Result<(), ConfigError> {
    word(text, "v2")
}

/// Takes the only word there is.
fn word(text: &str, known: &'static str) -> Result<(), ConfigError> {
    if text == known { Ok(()) } else { Err(ConfigError::UnknownWord { found: text.to_owned(), known }) }
}

fn site_mode(text: &str) -> Result<SiteMode, ConfigError> {
    match text {
        "forward" => Ok(SiteMode::Forward),
        "terminate" => Ok(SiteMode::Terminate),
        _ => Err(ConfigError::UnknownWord { found: text.to_owned(), known: "forward, terminate" }),
    }
}

fn keeps_client(text: &str) -> Result<bool, ConfigError> {
    match text {
        "site" => Ok(false),
        "client" => Ok(true),
        _ => Err(ConfigError::UnknownWord { found: text.to_owned(), known: "site, client" }),
    }
}

fn server_name(text: &str) -> Result<String, ConfigError> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(ConfigError::NotAServerName(text.to_owned())),
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, ConfigError> {
    let wrong = || ConfigError::NotAPortRange(text.to_owned());
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let first: u16 = first.parse().map_err(|_| wrong())?;
    let last: u16 = last.parse().map_err(|_| wrong())?;
    if format!("{first}-{last}") != text || first == 0 {
        return Err(wrong());
    }
    if first > last {
        return Err(ConfigError::PortRangeReversed(text.to_owned()));
    }
    Ok(first..=last)
}
