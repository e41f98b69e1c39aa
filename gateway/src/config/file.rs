//! `gateway.toml` as it was written: every value read and checked by itself, with its place.
//!
//! What the values mean together is settled in [`super::resolve`].

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use portcullis_policy::address::{parse_address, parse_net};
use toml::de::DeTable;

use super::is_endpoint;
use super::limits::{LimitValue, Limits};
use super::offramp::{OFFRAMP, OfframpFile, name};
use super::problem::{ConfigError, Findings};
use super::reader::{Located, Reader, Table};
use super::resolved::{MAX_SHARDS, OnStop};
use crate::prefix::parse_interface_address;

const ROOT: &[&str] = &[
    "directory",
    "policy",
    "state_dir",
    "control",
    "local_services",
    "drain",
    "wireguard",
    "tun",
    "offramp",
    "network",
    "route",
    "runtime",
    "limits",
    "log",
    "metrics",
];
const POLICY: &[&str] = &["file", "watch"];
const WIREGUARD: &[&str] = &["listen", "key_file", "addresses", "mtu", "endpoint", "client_routes"];
const TUN: &[&str] = &["name", "addresses", "mtu", "routes", "exclude", "table", "fwmark", "on_stop"];
const NETWORK: &[&str] = &["name"];
const ROUTE: &[&str] = &["network", "to", "offramp"];

/// IPv6 needs 1280 (RFC 8200, section 5); an IP packet has no more than 65535.
const MTU: RangeInclusive<u64> = 1280..=65_535;
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// The whole file. `None` is a key that is not there, or one that was reported.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) directory: Option<PathBuf>,
    pub(super) policy: Option<PathBuf>,
    pub(super) watch: Option<bool>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) control: Option<Located<PathBuf>>,
    pub(super) local_services: Vec<Located<SocketAddr>>,
    pub(super) drain: Option<Duration>,
    pub(super) wireguard: Option<WireguardFile>,
    pub(super) tun: Option<TunFile>,
    /// An on-ramp table is there, whether or not it could be read.
    pub(super) has_onramp: bool,
    pub(super) offramps: Vec<OfframpFile>,
    pub(super) networks: Vec<Located<String>>,
    pub(super) routes: Vec<RouteFile>,
    pub(super) shards: Option<usize>,
    pub(super) limits: Limits,
    pub(super) flow_log: Option<PathBuf>,
    pub(super) metrics: Option<Option<SocketAddr>>,
}

/// `[wireguard]`.
#[derive(Debug)]
pub(super) struct WireguardFile {
    pub(super) listen: Option<SocketAddr>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) addresses: Vec<Located<IpNet>>,
    pub(super) mtu: Option<u16>,
    pub(super) endpoint: Option<String>,
    pub(super) client_routes: Vec<Located<IpNet>>,
}

/// `[tun]`.
#[derive(Debug)]
pub(super) struct TunFile {
    pub(super) name: Option<String>,
    pub(super) addresses: Vec<Located<IpNet>>,
    pub(super) mtu: Option<u16>,
    pub(super) routes: Vec<Located<IpNet>>,
    pub(super) exclude: Vec<Located<IpNet>>,
    pub(super) table: Option<u32>,
    pub(super) fwmark: Option<u32>,
    pub(super) on_stop: Option<OnStop>,
}

/// One `[[route]]`.
#[derive(Debug)]
pub(super) struct RouteFile {
    pub(super) network: Option<Located<String>>,
    pub(super) to: Option<Located<IpNet>>,
    pub(super) offramp: Vec<Located<String>>,
}

/// Reads the text. What could not be read is among the findings.
pub(super) fn read(text: &str) -> (File, Findings) {
    let mut reader = Reader::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = error.span().map(|span| reader.place(span.start));
        reader.findings.add(place, "", ConfigError::Syntax(error.message().trim_end().replace('\n', ", ")));
    }
    // What a broken document seems to say is not worth a second list of complaints.
    let file = if errors.is_empty() { reader.file(document.get_ref()) } else { File::default() };
    (file, reader.findings)
}

impl<'t> Reader<'t> {
    fn file(&mut self, document: &'t DeTable<'t>) -> File {
        let root = self.open("", self.place(0), document, ROOT);
        let mut file = File {
            directory: self.path(&root, "directory"),
            state_dir: self.path(&root, "state_dir"),
            ..File::default()
        };
        // The path alone, or a table with more to say.
        match self.value(&root, "policy") {
            Some(value) if value.is_table() => {
                if let Some(policy) = self.table(&value, POLICY) {
                    file.policy = self.path(&policy, "file");
                    file.watch = self.value(&policy, "watch").and_then(|value| self.boolean(&value));
                }
            }
            Some(_) => file.policy = self.path(&root, "policy"),
            None => {}
        }
        file.control = self.value(&root, "control").and_then(|value| self.located(&value, path));
        file.local_services = {
            let value = self.value(&root, "local_services");
            self.located_list(value, socket_address)
        };
        file.drain = self.value(&root, "drain").and_then(|value| self.duration(&value, Duration::ZERO..=LONGEST_DRAIN));
        file.has_onramp = ["wireguard", "tun"].iter().any(|key| self.value(&root, key).is_some());
        file.wireguard = self.section(&root, "wireguard", WIREGUARD).map(|table| self.wireguard(&table));
        file.tun = self.section(&root, "tun", TUN).map(|table| self.tun(&table));
        file.offramps = self.tables(&root, "offramp", OFFRAMP).iter().filter_map(|table| self.offramp(table)).collect();
        file.networks = self.tables(&root, "network", NETWORK).iter().filter_map(|table| self.network(table)).collect();
        file.routes = self.tables(&root, "route", ROUTE).iter().map(|table| self.route(table)).collect();
        if let Some(runtime) = self.section(&root, "runtime", &["shards"]) {
            file.shards = self.number(&runtime, "shards", 1..=MAX_SHARDS as u64);
        }
        if let Some(limits) = self.section(&root, "limits", &Limits::NAMES) {
            self.limits(&limits, &mut file.limits);
        }
        if let Some(log) = self.section(&root, "log", &["flows"]) {
            file.flow_log = self.path(&log, "flows");
        }
        file.metrics = self.section(&root, "metrics", &["listen"]).map(|metrics| self.socket(&metrics, "listen"));
        file
    }

    fn wireguard(&mut self, table: &Table<'t>) -> WireguardFile {
        let addresses = self.required(table, "addresses");
        if let Some(value) = addresses.as_ref().filter(|value| value.is_empty_list()) {
            self.problem::<()>(value, ConfigError::EmptyList);
        }
        let client_routes = self.value(table, "client_routes");
        WireguardFile {
            listen: self.socket(table, "listen"),
            key_file: self.path(table, "key_file"),
            addresses: self.located_list(addresses, parse_interface_address),
            mtu: self.number(table, "mtu", MTU),
            endpoint: self.value(table, "endpoint").and_then(|value| self.parsed(&value, endpoint)),
            client_routes: self.located_list(client_routes, parse_net),
        }
    }

    fn tun(&mut self, table: &Table<'t>) -> TunFile {
        let addresses = self.value(table, "addresses");
        let routes = self.value(table, "routes");
        let exclude = self.value(table, "exclude");
        TunFile {
            name: self.value(table, "name").and_then(|value| self.parsed(&value, interface_name)),
            addresses: self.located_list(addresses, parse_interface_address),
            mtu: self.number(table, "mtu", MTU),
            routes: self.located_list(routes, parse_net),
            exclude: self.located_list(exclude, parse_net),
            table: self.table_number(table),
            fwmark: self.number(table, "fwmark", 1..=u64::from(u32::MAX)),
            on_stop: self.value(table, "on_stop").and_then(|value| self.parsed(&value, on_stop)),
        }
    }

    fn network(&mut self, table: &Table<'t>) -> Option<Located<String>> {
        self.required(table, "name").and_then(|value| self.located(&value, name))
    }

    fn route(&mut self, table: &Table<'t>) -> RouteFile {
        let network = self.value(table, "network").and_then(|value| self.located(&value, name));
        let to = self.required(table, "to").and_then(|value| self.located(&value, parse_net));
        let offramp = self.required(table, "offramp");
        if let Some(value) = offramp.as_ref().filter(|value| value.is_empty_list()) {
            self.problem::<()>(value, ConfigError::EmptyList);
        }
        RouteFile { network, to, offramp: self.located_list(offramp, |name| Ok::<_, ConfigError>(name.to_owned())) }
    }

    fn limits(&mut self, table: &Table<'t>, limits: &mut Limits) {
        for entry in limits.entries() {
            let Some(value) = self.value(table, entry.name) else {
                continue;
            };
            match entry.value {
                LimitValue::Count { value: limit, range } => {
                    if let Some(number) = self.integer(&value, *range.start() as u64..=*range.end() as u64) {
                        // The range ends below what a usize holds.
                        *limit = usize::try_from(number).unwrap_or_else(|_| *range.end());
                    }
                }
                LimitValue::Time { value: limit, range } => {
                    if let Some(duration) = self.duration(&value, range) {
                        *limit = duration;
                    }
                }
            }
        }
    }

    pub(super) fn section(&mut self, root: &Table<'t>, key: &str, known: &'static [&'static str]) -> Option<Table<'t>> {
        let value = self.value(root, key)?;
        self.table(&value, known)
    }

    fn tables(&mut self, root: &Table<'t>, key: &str, known: &'static [&'static str]) -> Vec<Table<'t>> {
        let Some(value) = self.value(root, key) else {
            return Vec::new();
        };
        let items = self.list(&value);
        items.iter().filter_map(|item| self.table(item, known)).collect()
    }

    pub(super) fn path(&mut self, table: &Table<'t>, key: &str) -> Option<PathBuf> {
        let value = self.value(table, key)?;
        self.parsed(&value, path)
    }

    fn socket(&mut self, table: &Table<'t>, key: &str) -> Option<SocketAddr> {
        let value = self.value(table, key)?;
        self.parsed(&value, socket_address)
    }

    pub(super) fn number<T: TryFrom<u64>>(
        &mut self,
        table: &Table<'t>,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Option<T> {
        let value = self.value(table, key)?;
        self.integer(&value, range).and_then(|number| T::try_from(number).ok())
    }

    fn table_number(&mut self, table: &Table<'t>) -> Option<u32> {
        let value = self.value(table, "table")?;
        let number = self.integer(&value, 1..=u64::from(u32::MAX))?;
        if (253..=255).contains(&number) {
            return self.problem(&value, ConfigError::SystemTable(number));
        }
        u32::try_from(number).ok()
    }
}

pub(super) fn path(text: &str) -> Result<PathBuf, ConfigError> {
    if text.is_empty() { Err(ConfigError::EmptyPath) } else { Ok(PathBuf::from(text)) }
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, ConfigError> {
    let address: SocketAddr = text.parse().map_err(|_| ConfigError::NotASocketAddress(text.to_owned()))?;
    if address.port() == 0 {
        return Err(ConfigError::PortZero);
    }
    if address.to_string() != text {
        return Err(ConfigError::NotCanonical { found: text.to_owned(), canonical: address });
    }
    parse_address(&address.ip().to_string())?;
    Ok(address)
}

pub(super) fn endpoint(text: &str) -> Result<String, ConfigError> {
    if is_endpoint(text) { Ok(text.to_owned()) } else { Err(ConfigError::NotAnEndpoint) }
}

pub(super) fn interface_name(text: &str) -> Result<String, ConfigError> {
    let sound = (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if sound { Ok(text.to_owned()) } else { Err(ConfigError::NotAnInterfaceName(text.to_owned())) }
}

fn on_stop(text: &str) -> Result<OnStop, ConfigError> {
    match text {
        "remove" => Ok(OnStop::Remove),
        "block" => Ok(OnStop::Block),
        _ => Err(ConfigError::UnknownWord { found: text.to_owned(), known: "remove, block" }),
    }
}
