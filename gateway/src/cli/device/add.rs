//! `portcullis device add`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::client_file::{ClientFile, qr};
use super::store::Store;
use super::{Done, reload, reported, say};
use crate::cli::output::{load_config, print};
use crate::cli::{DeviceAddArgs, ExitStatus};
use crate::config::Config;
use crate::config::resolved::WireguardConfig;
use crate::directory::allocate::allocate;
use crate::directory::edit::{self, EditError};
use crate::keys::{PrivateKey, encode_key, parse_public_key, random};

/// Runs the verb.
pub(super) fn run(args: DeviceAddArgs) -> Done {
    let config = load_config(&args.config.path)?;
    let added = add(&config, &args)?;
    say(&added.summary(&args));
    let printed = match &added.client_file {
        _ if args.json => print(&added.json(&args).to_string()),
        Some(file) => print(file),
        None => ExitStatus::Done,
    };
    if !added.networks.is_empty() && config.tun.is_none() {
        let source = config.source.display();
        say(&format!("warning: {source} has no [tun] table, so nothing can come from these networks yet"));
    }
    if let Some(file) = added.client_file.as_ref().filter(|_| args.qr) {
        say(&qr(file).unwrap_or_else(|| "the client file is too long for a QR code".to_owned()));
    }
    // The keys are printed before anything else can fail: they are nowhere else.
    let reloaded = reload(&config);
    Ok(if printed == ExitStatus::Done { reloaded } else { printed })
}

/// What was added.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) user_created: bool,
    pub(super) addresses: Vec<IpAddr>,
    networks: Vec<IpNet>,
    public_key: Option<[u8; 32]>,
    /// The private key is in here and nowhere else.
    pub(super) client_file: Option<String>,
}

impl Added {
    fn summary(&self, args: &DeviceAddArgs) -> String {
        let known_by: Vec<String> = self
            .addresses
            .iter()
            .map(ToString::to_string)
            .chain(self.networks.iter().map(ToString::to_string))
            .collect();
        let user = if self.user_created { format!("new user {}", args.user) } else { format!("user {}", args.user) };
        let groups = match args.groups.as_slice() {
            [] if self.user_created => " without groups".to_owned(),
            groups if self.user_created => format!(" in {}", groups.join(", ")),
            _ => String::new(),
        };
        format!("added {} ({}) for {user}{groups}", args.name, known_by.join(", "))
    }

    fn json(&self, args: &DeviceAddArgs) -> Value {
        json!({
            "device": args.name,
            "user": args.user,
            "user_created": self.user_created,
            "addresses": self.addresses,
            "networks": self.networks,
            "public_key": self.public_key.as_ref().map(encode_key),
            "client_file": self.client_file,
        })
    }
}

/// Adds the device to the file. A status says that the reason was printed.
pub(super) fn add(config: &Config, args: &DeviceAddArgs) -> Result<Added, ExitStatus> {
    let keyed = if args.networks.is_empty() { Some(onramp(config)?) } else { None };
    let store = reported(Store::open(config))?;
    if store.directory.device(&args.name).is_some() {
        say(&format!("there is a device {:?} already; `portcullis device remove` it first", args.name));
        return Err(ExitStatus::Failed);
    }
    let user_created = user_is_new(&store, args)?;
    let mut added = Added {
        user_created,
        addresses: Vec::new(),
        networks: args.networks.clone(),
        public_key: None,
        client_file: None,
    };
    let mut preshared_key = None;
    if let Some((wireguard, endpoint)) = keyed {
        let private_key = match &args.public_key {
            None => Some(PrivateKey::generate().map_err(no_randomness)?),
            Some(_) => None,
        };
        added.public_key = match (&private_key, &args.public_key) {
            (Some(key), _) => Some(key.public()),
            (None, Some(text)) => Some(parse_public_key(text).map_err(|error| {
                say(&format!("--public-key {error}"));
                ExitStatus::Usage
            })?),
            (None, None) => None,
        };
        preshared_key = if args.preshared { Some(random().map_err(no_randomness)?) } else { None };
        added.addresses = allocate(&store.directory, &store.context).map_err(|net| {
            say(&format!("the tunnel network {net} has no free address"));
            ExitStatus::Failed
        })?;
        let file = ClientFile {
            device: &args.name,
            user: &args.user,
            private_key: private_key.as_ref(),
            preshared_key: preshared_key.as_ref(),
            addresses: &added.addresses,
            gateway: store.context.own_public_key.unwrap_or_default(),
            endpoint,
            wireguard,
        };
        added.client_file = Some(file.text());
    }
    let text = edited(&store.text, args, &added, preshared_key.as_ref()).map_err(|source| store.not_edited(source));
    reported(text.and_then(|text| store.replace(&text)))?;
    Ok(added)
}

/// What a client file needs of the configuration.
fn onramp(config: &Config) -> Result<(&WireguardConfig, &str), ExitStatus> {
    let source = config.source.display();
    let Some(wireguard) = &config.wireguard else {
        say(&format!("{source} has no [wireguard] table: a device behind the TUN is added with --networks"));
        return Err(ExitStatus::BadConfig);
    };
    let Some(endpoint) = wireguard.endpoint.as_deref() else {
        say(&format!("{source}: wireguard.endpoint is not set, and the client file must say where the gateway is"));
        return Err(ExitStatus::BadConfig);
    };
    Ok((wireguard, endpoint))
}

fn user_is_new(store: &Store, args: &DeviceAddArgs) -> Result<bool, ExitStatus> {
    let Some(user) = store.directory.user(&args.user) else { return Ok(true) };
    let has = |group: &&String| user.groups.iter().any(|other| **other == ***group);
    if let Some(group) = args.groups.iter().find(|group| !has(group)) {
        say(&format!(
            "user {:?} exists and is not in group {group:?}; --group is for new users, others change in the directory",
            args.user
        ));
        return Err(ExitStatus::Usage);
    }
    Ok(false)
}

fn edited(text: &str, args: &DeviceAddArgs, added: &Added, preshared: Option<&[u8; 32]>) -> Result<String, EditError> {
    let mut members = vec![("user", Value::from(args.user.as_str()))];
    members.extend(added.public_key.as_ref().map(|key| ("public_key", encode_key(key).into())));
    members.extend(preshared.map(|key| ("preshared_key", encode_key(key).into())));
    if !added.addresses.is_empty() {
        members.push(("addresses", json!(added.addresses)));
    }
    if !added.networks.is_empty() {
        members.push(("networks", json!(added.networks)));
    }
    let text = if added.user_created {
        let groups = if args.groups.is_empty() { Vec::new() } else { vec![("groups", json!(args.groups))] };
        edit::add(text, "users", &args.user, &one_line(&groups))?
    } else {
        text.to_owned()
    };
    edit::add(&text, "devices", &args.name, &one_line(&members))
}

/// An object on one line, spaced as the rest of the file is.
fn one_line(members: &[(&str, Value)]) -> String {
    if members.is_empty() {
        return "{}".to_owned();
    }
    let spaced = |value: &Value| match value {
        Value::Array(items) => format!("[{}]", items.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => value.to_string(),
    };
    let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\": {}", spaced(value))).collect();
    format!("{{ {} }}", members.join(", "))
}

fn no_randomness(error: std::io::Error) -> ExitStatus {
    say(&format!("the system has no random numbers: {error}"));
    ExitStatus::Failed
}
