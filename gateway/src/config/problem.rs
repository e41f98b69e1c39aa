//! What can be wrong with `gateway.toml`, and where.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use portcullis_policy::address::AddressError;

use super::duration::format_duration;
use crate::files::ReadError;
use crate::keys::KeyError;
use crate::prefix::InterfaceAddressError;

/// A place in a text file, counted from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Character in the line.
    pub column: usize,
}

impl Place {
    /// The place of a byte offset in `text`.
    pub fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.get(line_start..).map_or(0, |line| line.chars().count()) + 1;
        Self { line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing wrong with the static configuration, with its place.
#[derive(Debug)]
pub struct ConfigProblem {
    /// The file.
    pub file: PathBuf,
    /// Where in the file; `None` when the problem is that something is not there.
    pub place: Option<Place>,
    /// Path of the key, like `wireguard.addresses[1]`; empty when the problem has none.
    pub key: String,
    /// What is wrong.
    pub error: ConfigError,
}

impl ConfigProblem {
    /// The caller may not read the file, which says nothing about what is in it.
    pub fn is_denied(&self) -> bool {
        matches!(&self.error, ConfigError::Read(error) if error.is_denied())
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, ":{place}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.error)
    }
}

impl std::error::Error for ConfigProblem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// What is wrong with one key of `gateway.toml`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is no such file.
    #[error("{0}; run `portcullis init`, or name it with --config")]
    NoFile(ReadError),
    /// It is not TOML.
    #[error("{0}")]
    Syntax(String),
    /// A key that means nothing, close to one that does.
    #[error("unknown key; did you mean `{0}`?")]
    UnknownKeyNear(&'static str),
    /// A key that means nothing.
    #[error("unknown key; known here: {}", .0.join(", "))]
    UnknownKey(&'static [&'static str]),
    /// A key that must be there is not.
    #[error("is missing")]
    Missing,
    /// A value of the wrong type.
    #[error("must be {expected}, not {found}")]
    WrongType {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A number out of range.
    #[error("must be {min} to {max}")]
    OutOfRange {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A duration out of range.
    #[error("must be {} to {}", format_duration(*.min), format_duration(*.max))]
    DurationOutOfRange {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// No duration.
    #[error("`{0}` is not a duration, like \"10s\", \"5m\" or \"2h4m\"")]
    NotADuration(String),
    /// An address or a prefix is wrong.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An interface address is wrong.
    #[error(transparent)]
    InterfaceAddress(#[from] InterfaceAddressError),
    /// A socket address in an unusual spelling.
    #[error("`{found}` must be written as {canonical}")]
    NotCanonical {
        /// What was written.
        found: String,
        /// The one spelling accepted.
        canonical: SocketAddr,
    },
    /// No socket address.
    #[error("`{0}` is not ADDRESS:PORT, like 192.0.2.1:22 or [::]:51820")]
    NotASocketAddress(String),
    /// Port 0.
    #[error("port 0 is no port")]
    PortZero,
    /// No endpoint.
    #[error("expected HOST:PORT, like vpn.example.com:51820 or [2001:db8::1]:51820")]
    NotAnEndpoint,
    /// An empty path.
    #[error("is an empty path")]
    EmptyPath,
    /// A path that does not fit in a socket address.
    #[error("is {0} bytes long, and a Unix socket has room for 107")]
    SocketPathTooLong(usize),
    /// No name the kernel takes for an interface.
    #[error("`{0}` is not an interface name: 1 to 15 bytes without space, `/` or `:`")]
    NotAnInterfaceName(String),
    /// No name for an off-ramp or a virtual network.
    #[error("`{0}` is not a name: 1 to 63 of the characters a-z A-Z 0-9 . _ -")]
    NotAName(String),
    /// A word from a closed list.
    #[error("`{found}` is not known; known: {known}")]
    UnknownWord {
        /// What was written.
        found: String,
        /// What may be.
        known: &'static str,
    },
    /// An off-ramp that sends packets out by the TUN device, and there is none.
    #[error("packets leave by the TUN device and come back by it: add a [tun] table")]
    NeedsTun,
    /// An off-ramp whose tunnel goes out by the WireGuard socket, and there is none.
    #[error("the site's tunnel goes out by the socket of the on-ramp, with its key: add a [wireguard] table")]
    NeedsWireguard,
    /// A site that is to see an address of ours, and none was given.
    #[error("packets to the site carry our address there: give `addresses`, or `source = \"client\"`")]
    NoSiteAddress,
    /// A site that is to be probed, where we have no address to probe from.
    #[error("probes come from our address at the site: give one of this family in `addresses`")]
    NoProbeAddress,
    /// A WireGuard key is wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key that means nothing to an off-ramp of this kind.
    #[error("means nothing to this kind; it is for {known}")]
    OtherKind {
        /// The kinds it is for.
        known: &'static str,
    },
    /// One of two keys that go together.
    #[error("says nothing without `{other}`")]
    Alone {
        /// The other.
        other: &'static str,
    },
    /// No name that a certificate may have.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    NotAServerName(String),
    /// Two off-ramps with one name.
    #[error("`{name}` is already the name of the off-ramp at {first}")]
    DuplicateOfframp {
        /// The name.
        name: String,
        /// Where it was given first.
        first: Place,
    },
    /// A route to an off-ramp that is not there.
    #[error("there is no off-ramp `{name}`; there are: {known}")]
    UnknownOfframp {
        /// The name.
        name: String,
        /// The names that are there.
        known: String,
    },
    /// A virtual network that is not there.
    #[error("there is no [[network]] `{name}`; there are: {known}")]
    UnknownNetwork {
        /// The name.
        name: String,
        /// The names that are there.
        known: String,
    },
    /// A virtual network without a way out.
    #[error("no [[route]] is of this network, so nothing could be reached from it")]
    NetworkWithoutRoute,
    /// The same value twice.
    #[error("`{value}` is given twice, first at {first}")]
    Repeated {
        /// The value.
        value: String,
        /// Where it was given first.
        first: Place,
    },
    /// Two networks that share addresses and must not.
    #[error("{net} overlaps {other} of {key} at {first}")]
    Overlap {
        /// The one.
        net: IpNet,
        /// The other.
        other: IpNet,
        /// Where the other stands.
        key: String,
        /// Its place.
        first: Place,
    },
    /// Two addresses of one family where one is the most.
    #[error("is a second {family} address, the first is at {first}; one of each family is the most")]
    SecondOfFamily {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Where the other stands.
        first: Place,
    },
    /// An address that no host can have.
    #[error("{0} cannot be the address of a host")]
    NotAHostAddress(std::net::IpAddr),
    /// The first or last address of its network.
    #[error("{0} is not a host of its network: it stands for the network or for all its hosts")]
    NetworkItself(IpNet),
    /// A tunnel network without room for a device.
    #[error("{0} leaves no address for devices")]
    NoRoom(IpNet),
    /// A list that must not be empty.
    #[error("must name at least one")]
    EmptyList,
    /// A port range that is none.
    #[error("`{0}` is not a port range, like \"20000-29999\"")]
    NotAPortRange(String),
    /// A port range that ends before it starts.
    #[error("the range {0} ends before it starts")]
    PortRangeReversed(String),
    /// A routing table that is not ours to write to.
    #[error("table {0} belongs to the system (253 default, 254 main, 255 local)")]
    SystemTable(u64),
    /// Something left out that was not in.
    #[error("{0} lies in none of tun.routes, so there is nothing to leave out")]
    NothingToExclude(IpNet),
    /// A service that nobody may reach.
    #[error("{0} can never be a destination: give one of this host's own addresses, with its port")]
    NeverADestination(SocketAddr),
    /// Neither on-ramp is configured.
    #[error("there is no on-ramp: add a [wireguard] table, a [tun] table, or both")]
    NoOnramp,
}

/// Collects problems while a file is read.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<(Option<Place>, String, ConfigError)>);

impl Findings {
    pub(super) fn add(
        &mut self,
        place: impl Into<Option<Place>>,
        key: impl Into<String>,
        error: impl Into<ConfigError>,
    ) {
        self.0.push((place.into(), key.into(), error.into()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of the file; those without a place come last.
    pub(super) fn into_problems(mut self, file: &std::path::Path) -> Vec<ConfigProblem> {
        self.0.sort_by_key(|(place, _, _)| (place.is_none(), *place));
        let problem = |(place, key, error)| ConfigProblem { file: file.to_owned(), place, key, error };
        self.0.into_iter().map(problem).collect()
    }
}
