//! The three files of a gateway, for a test.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::{FAMILIES, Family, Host, PRIVATE_NETWORKS, client_network, gateway_address};
use crate::{metrics, tools};

/// How a client reaches the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRamp {
    /// A wireguard-go client.
    Wireguard,
    /// A host whose traffic is routed into the TUN.
    Tun,
}

impl OnRamp {
    /// The word of the flow log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::Tun => "tun",
        }
    }
}

/// What a test wants of its gateway.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The on-ramp of each client.
    pub ramps: Vec<OnRamp>,
    /// The policy.
    pub policy: Value,
    /// Files are loaded when they change, and not only when a scenario says so.
    pub watch: bool,
    /// IP version between WireGuard clients and the gateway.
    pub outer: Family,
    /// `[limits]` entries as they stand in the file.
    pub limits: Vec<(&'static str, String)>,
    /// Tables of `gateway.toml` that the test brings itself.
    pub tables: String,
    /// `[runtime] shards`.
    pub shards: usize,
    /// `drain`.
    pub drain: &'static str,
    /// `[tun] on_stop`: `block` instead of `remove`.
    pub block_on_stop: bool,
    /// What the gateway logs, in the syntax of `RUST_LOG`.
    pub log: &'static str,
    /// Whether WireGuard devices have a preshared key.
    pub preshared: bool,
    /// Whether the packets of clients go on as they are, over an off-ramp `keep` of kind `kernel`.
    pub keeps: bool,
    /// Whether the test needs the machine for itself.
    pub alone: bool,
}

impl Setup {
    /// One client on `ramp`, the usual policy.
    pub fn new(ramp: OnRamp) -> Self {
        Self {
            ramps: vec![ramp],
            policy: usual_policy(),
            watch: false,
            outer: Family::V4,
            limits: Vec::new(),
            tables: String::new(),
            shards: 2,
            drain: "10s",
            block_on_stop: false,
            log: "info",
            preshared: false,
            keeps: false,
            alone: false,
        }
    }

    /// A client more, on `ramp`.
    #[must_use]
    pub fn and(mut self, ramp: OnRamp) -> Self {
        self.ramps.push(ramp);
        self
    }

    /// Files are loaded when they change.
    #[must_use]
    pub fn watched(mut self) -> Self {
        self.watch = true;
        self
    }

    /// With this policy.
    #[must_use]
    pub fn policy(mut self, policy: Value) -> Self {
        self.policy = policy;
        self
    }

    /// With this limit: a number, or a duration in quotes.
    #[must_use]
    pub fn limit(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.limits.push((key, value.into()));
        self
    }

    /// With these tables at the end of `gateway.toml`.
    #[must_use]
    pub fn tables(mut self, text: &str) -> Self {
        self.tables.push_str(text);
        self
    }

    /// With this many shards.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// With this long to finish after SIGTERM.
    #[must_use]
    pub fn drain(mut self, drain: &'static str) -> Self {
        self.drain = drain;
        self
    }

    /// With a backstop that stays after a clean stop.
    #[must_use]
    pub fn block_on_stop(mut self) -> Self {
        self.block_on_stop = true;
        self
    }

    /// With a log by this filter.
    #[must_use]
    pub fn log(mut self, filter: &'static str) -> Self {
        self.log = filter;
        self
    }

    /// With a preshared key for each WireGuard device.
    #[must_use]
    pub fn preshared(mut self) -> Self {
        self.preshared = true;
        self
    }

    /// With packets that go on as they are.
    #[must_use]
    pub fn keep(mut self) -> Self {
        self.keeps = true;
        self.tables(
            "[[offramp]]\nname = \"keep\"\nkind = \"kernel\"\n\
             [[route]]\nto = \"0.0.0.0/0\"\nofframp = [\"keep\"]\n[[route]]\nto = \"::/0\"\nofframp = [\"keep\"]\n",
        )
    }

    /// With the outer transport in this version.
    #[must_use]
    pub fn outer(mut self, family: Family) -> Self {
        self.outer = family;
        self
    }

    /// Without anything else running on the machine.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Writes the files into `dir`. WireGuard devices are not in them yet: `portcullis device add` brings those.
    ///
    /// # Panics
    ///
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) {
        let state = dir.join("state");
        fs::create_dir(&state).expect("a state directory");
        mode(&state, 0o700);
        let key = state.join("wireguard.key");
        fs::write(&key, tools::output(Command::new("wg").arg("genkey"))).expect("a key file");
        mode(&key, 0o600);
        write_json(&dir.join("policy.json"), &self.policy);
        write_json(&dir.join("directory.json"), &self.directory());
        fs::write(dir.join("gateway.toml"), self.gateway_toml()).expect("gateway.toml");
    }

    /// Whether the gateway has a TUN device.
    pub fn has_tun(&self) -> bool {
        self.keeps || self.ramps.contains(&OnRamp::Tun)
    }

    fn directory(&self) -> Value {
        let mut users = json!({});
        let mut devices = json!({});
        for (index, ramp) in self.ramps.iter().enumerate() {
            users[user(index)] = json!({ "groups": ["eng"] });
            if *ramp == OnRamp::Tun {
                let networks = FAMILIES.map(|family| client_network(index, family));
                devices[device(index)] = json!({ "user": user(index), "networks": networks });
            }
        }
        json!({ "users": users, "devices": devices })
    }

    fn gateway_toml(&self) -> String {
        let watch = self.watch;
        let mut toml = format!(
            "directory = \"directory.json\"\npolicy = {{ file = \"policy.json\", watch = {watch} }}\nstate_dir = \"state\"\n\
             control = \"control.sock\"\ndrain = \"{}\"\n\n[log]\nflows = \"flows.jsonl\"\n\n[metrics]\nlisten = \"{}\"\n\n\
             [runtime]\nshards = {}\n",
            self.drain,
            metrics::LISTEN,
            self.shards,
        );
        if self.ramps.contains(&OnRamp::Wireguard) {
            let endpoint = match gateway_address(0, self.outer) {
                std::net::IpAddr::V4(v4) => format!("{v4}:51820"),
                std::net::IpAddr::V6(v6) => format!("[{v6}]:51820"),
            };
            let _ = write!(
                toml,
                "\n[wireguard]\nlisten = \"[::]:51820\"\nkey_file = \"wireguard.key\"\n\
                 addresses = [\"100.96.0.1/16\", \"fd00:96::1/64\"]\nmtu = 1280\nendpoint = \"{endpoint}\"\n\
                 client_routes = {PRIVATE_NETWORKS:?}\n",
            );
        }
        if self.has_tun() {
            // Answers to clients behind the TUN come back by it when their networks are steered, too.
            let clients = (0..self.ramps.len()).filter(|index| self.keeps && self.ramps[*index] == OnRamp::Tun);
            let clients = clients.flat_map(|index| FAMILIES.map(|family| client_network(index, family)));
            let routes: Vec<String> = PRIVATE_NETWORKS.map(str::to_owned).into_iter().chain(clients).collect();
            let _ = write!(
                toml,
                "\n[tun]\nname = \"portcullis0\"\naddresses = [\"100.97.0.1/32\", \"fd00:97::1/128\"]\nmtu = 1500\n\
                 routes = {routes:?}\non_stop = \"{}\"\n",
                if self.block_on_stop { "block" } else { "remove" },
            );
        }
        if !self.limits.is_empty() {
            toml.push_str("\n[limits]\n");
            for (key, value) in &self.limits {
                let _ = writeln!(toml, "{key} = {value}");
            }
        }
        toml.push('\n');
        toml.push_str(&self.tables);
        toml
    }
}

/// Name of the device of client `index`.
pub fn device(index: usize) -> String {
    format!("laptop-{index}")
}

/// Name of the user of client `index`.
pub fn user(index: usize) -> String {
    format!("user-{index}@example.com")
}

/// Everything to `Open`, `OpenToo`, `Hole` and `Nobody` by the rule `open`; nothing to `Shut`, by the rule `shut`.
pub fn usual_policy() -> Value {
    json!({
        "version": 1,
        "resources": {
            "open": { "addresses": addresses(&[Host::Open, Host::OpenToo, Host::Hole, Host::Nobody]) },
            "shut": { "addresses": addresses(&[Host::Shut]) },
        },
        "rules": [
            { "id": "shut", "action": "deny", "from": ["*"], "to": ["shut"] },
            { "id": "open", "action": "allow", "from": ["group:eng"], "to": ["open"] },
        ],
    })
}

/// The usual policy with a rule `no-more` in front that denies everything to `host`.
pub fn policy_without(host: Host) -> Value {
    let mut policy = usual_policy();
    let rule = json!({ "id": "no-more", "action": "deny", "from": ["*"], "to": addresses(&[host]) });
    policy["rules"].as_array_mut().expect("rules are a list").insert(0, rule);
    policy
}

fn addresses(hosts: &[Host]) -> Vec<String> {
    hosts.iter().flat_map(|host| host.addresses()).map(|address| address.to_string()).collect()
}

/// Writes a JSON file whole: beside it first, then in its place.
///
/// # Panics
///
/// When the file cannot be written.
pub fn write_json(path: &Path, value: &Value) {
    let text = serde_json::to_string_pretty(value).expect("a JSON value is JSON");
    write_whole(path, &text);
}

/// Writes a file beside its place, then moves it there.
///
/// # Panics
///
/// When the file cannot be written.
pub fn write_whole(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap_or_else(|error| panic!("{}: {error}", beside.display()));
    fs::rename(&beside, path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own file's mode");
}
