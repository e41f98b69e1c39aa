//! `portcullis device`: the entries of `directory.json` by name.

mod add;
mod client_file;
pub mod posture;
mod store;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::output::{load_config, print, table};
use super::{DeviceCommand, DeviceListArgs, DeviceNameArgs, ExitStatus, client};
use crate::config::Config;
use crate::directory::{Device, Directory, edit};
use crate::keys::encode_key;
use store::{Store, StoreError};

/// Runs the verb.
pub fn run(command: DeviceCommand) -> ExitStatus {
    let done = match command {
        DeviceCommand::Add(args) => add::run(args),
        DeviceCommand::List(args) => list(&args),
        DeviceCommand::Show(args) => show(&args),
        DeviceCommand::Revoke(args) => revoke(&args),
        DeviceCommand::Remove(args) => remove(&args),
        DeviceCommand::Posture(args) => posture::run(args),
    };
    done.unwrap_or_else(|status| status)
}

/// Devices of the running gateway, and whether it admits them.
type InForce = BTreeMap<String, bool>;

/// A status says that the reason was printed.
type Done = Result<ExitStatus, ExitStatus>;

fn list(args: &DeviceListArgs) -> Done {
    let config = load_config(&args.config.path)?;
    let directory = reported(store::load(&config))?;
    // Without a gateway that answers, the file is all there is to tell.
    let in_force = client::devices(&config).ok();
    for (name, _) in in_force.iter().flatten().filter(|(name, admitted)| **admitted && directory.device(name).is_none())
    {
        say(&format!("{name:?} is not in the file any more, but the running gateway STILL ADMITS it"));
    }
    let now = Timestamp::now();
    let list = if args.json { list_json } else { list_text };
    Ok(print(&list(&directory, in_force.as_ref(), now)))
}

fn show(args: &DeviceNameArgs) -> Done {
    let config = load_config(&args.config.path)?;
    let directory = reported(store::load(&config))?;
    let device = known(&directory, &args.name)?;
    let in_force = client::devices(&config).ok();
    let json = to_json(device, admitted(in_force.as_ref(), device), Timestamp::now());
    if args.json {
        return Ok(print(&json.to_string()));
    }
    let mut text = String::new();
    for (key, value) in json.as_object().into_iter().flatten() {
        let value = match value {
            Value::Null => continue,
            Value::Array(items) if items.is_empty() => continue,
            Value::Object(facts) if facts.is_empty() => continue,
            Value::String(text) => text.clone(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key:<14} {value}");
    }
    Ok(print(&text))
}

fn revoke(args: &DeviceNameArgs) -> Done {
    let config = load_config(&args.config.path)?;
    let store = reported(Store::open(&config))?;
    if known_or_barred(&store.directory, &args.name, &config)?.revoked {
        return Ok(settled(args, "is revoked already", false, &config));
    }
    let text = edit::set(&store.text, "devices", &args.name, "revoked", "true");
    reported(text.map_err(|source| store.not_edited(source)).and_then(|text| store.replace(&text)))?;
    Ok(settled(args, "revoked", true, &config))
}

fn remove(args: &DeviceNameArgs) -> Done {
    let config = load_config(&args.config.path)?;
    let store = reported(Store::open(&config))?;
    known_or_barred(&store.directory, &args.name, &config)?;
    let text = edit::remove(&store.text, "devices", &args.name);
    reported(text.map_err(|source| store.not_edited(source)).and_then(|text| store.replace(&text)))?;
    Ok(settled(args, "removed", true, &config))
}

/// The file says what it should: now the running gateway must go by it.
fn settled(args: &DeviceNameArgs, what: &str, changed: bool, config: &Config) -> ExitStatus {
    say(&format!("{} {what}", args.name));
    let taken = take_away(config, &args.name);
    if !args.json {
        return taken;
    }
    let printed =
        print(&json!({ "device": args.name, "changed": changed, "in_force": taken == ExitStatus::Done }).to_string());
    if taken == ExitStatus::Done { printed } else { taken }
}

/// Has a running gateway load the directory, and bar `device` where it does not: a lost laptop must not keep its access
/// because of a mistake in the policy.
fn take_away(config: &Config, device: &str) -> ExitStatus {
    let error = match client::reload(config) {
        Err(error) if !matches!(error, client::ClientError::NotRunning(_)) => error,
        loaded => return after_reload(config, loaded),
    };
    let status = error.report();
    match client::bar(config, device) {
        Ok(report) => {
            let flows = if report.judged { "its flows have ended" } else { "not all of its flows have ended yet" };
            say(&format!("{device} is barred in the running gateway now, {flows}"));
            say("but the files are NOT in force: mend what is said above, then run `portcullis reload`");
        }
        Err(client::ClientError::NotRunning(_)) => say("the gateway has stopped; it takes effect when it starts"),
        // Whoever may not change anything may still see; without an answer the worse is said.
        Err(error) => match client::devices(config).map(|devices| devices.get(device).copied().unwrap_or(false)) {
            Ok(false) => {
                say(&format!("the running gateway does not admit {device}, but was not told to load the file"))
            }
            Ok(true) | Err(_) => say(&format!("{device} is STILL ADMITTED: {error}")),
        },
    }
    status
}

/// Like [`known`]; a device that only the running gateway knows is barred there.
fn known_or_barred<'d>(directory: &'d Directory, name: &str, config: &Config) -> Result<&'d Device, ExitStatus> {
    known(directory, name).inspect_err(|_| match client::bar(config, name) {
        Ok(report) if report.known => {
            say(&format!("the running gateway had {name:?} from an earlier load, and bars it now"));
        }
        // Nobody admits it, or nobody runs: there is nothing to take away.
        Ok(_) | Err(client::ClientError::NotRunning(_)) => {}
        Err(error) => say(&format!("whether the running gateway admits {name:?} is not known: {error}")),
    })
}

/// Has a running gateway take the new directory at once. One that does not run is no failure.
fn reload(config: &Config) -> ExitStatus {
    after_reload(config, client::reload(config))
}

fn after_reload(config: &Config, loaded: Result<Vec<String>, client::ClientError>) -> ExitStatus {
    match loaded {
        Ok(changes) => {
            for change in changes {
                say(&change);
            }
            say("the running gateway has it in force");
            ExitStatus::Done
        }
        Err(client::ClientError::NotRunning(_)) => {
            say("the gateway is not running; it takes effect when it starts");
            ExitStatus::Done
        }
        Err(error) => {
            say(&format!("{} is changed, but the running gateway did not take it:", config.directory.display()));
            error.report()
        }
    }
}

fn known<'d>(directory: &'d Directory, name: &str) -> Result<&'d Device, ExitStatus> {
    directory.device(name).map(|device| &**device).ok_or_else(|| {
        let names: Vec<&str> = directory.devices().map(|device| &*device.identity.device).collect();
        let hint = portcullis_policy::json::hint(name, names);
        say(&format!("there is no device {name:?}{hint}"));
        ExitStatus::Failed
    })
}

fn reported<T>(result: Result<T, StoreError>) -> Result<T, ExitStatus> {
    result.map_err(|error| {
        say(&error.to_string());
        error.exit()
    })
}

/// To a person, on standard error.
fn say(text: &str) {
    // Nobody reads standard error: the exit status still tells.
    let _ = writeln!(io::stderr(), "{text}");
}

fn sorted(directory: &Directory) -> Vec<&Device> {
    let mut devices: Vec<&Device> = directory.devices().map(|device| &**device).collect();
    devices.sort_by(|a, b| a.identity.device.cmp(&b.identity.device));
    devices
}

fn list_text(directory: &Directory, in_force: Option<&InForce>, now: Timestamp) -> String {
    let rows = sorted(directory).into_iter().map(|device| {
        let networks = device.networks.iter().map(ToString::to_string);
        let known_by: Vec<String> = device.addresses.iter().map(ToString::to_string).chain(networks).collect();
        [
            device.identity.device.to_string(),
            device.identity.user.to_string(),
            with_running(state(device, now), admitted(in_force, device)),
            known_by.join(","),
            device.expires.map_or_else(|| "-".to_owned(), |expires| expires.to_string()),
        ]
    });
    table(["DEVICE", "USER", "STATE", "ADDRESSES", "EXPIRES"], rows)
}

fn list_json(directory: &Directory, in_force: Option<&InForce>, now: Timestamp) -> String {
    let json = |device| to_json(device, admitted(in_force, device), now);
    Value::Array(sorted(directory).into_iter().map(json).collect()).to_string()
}

/// A device as people may see it: whether there is a preshared key, never which.
fn to_json(device: &Device, admitted: Option<bool>, now: Timestamp) -> Value {
    json!({
        "device": &*device.identity.device,
        "user": &*device.identity.user,
        "groups": device.identity.groups.iter().map(|group| &**group).collect::<Vec<_>>(),
        "state": state(device, now),
        "admitted": admitted,
        "public_key": device.public_key.as_ref().map(encode_key),
        "preshared_key": device.preshared_key.is_some(),
        "addresses": device.addresses,
        "networks": device.networks,
        "network": &*device.identity.network,
        "expires": device.expires,
        "posture": device.identity.posture.iter_at(now).collect::<BTreeMap<_, _>>(),
    })
}

/// Whether the running gateway admits the device; `None` when none answers.
fn admitted(in_force: Option<&InForce>, device: &Device) -> Option<bool> {
    in_force.map(|devices| devices.get(&*device.identity.device).copied().unwrap_or(false))
}

/// The state in the file, and where the running gateway goes by another.
fn with_running(state: &str, admitted: Option<bool>) -> String {
    match (state == "active", admitted) {
        (true, Some(false)) => format!("{state}, not yet in force"),
        (false, Some(true)) => format!("{state}, STILL ADMITTED"),
        _ => state.to_owned(),
    }
}

fn state(device: &Device, now: Timestamp) -> &'static str {
    if device.revoked {
        "revoked"
    } else if device.disabled {
        "disabled"
    } else if device.usable_at(now) {
        "active"
    } else {
        "expired"
    }
}

#[cfg(test)]
mod tests;
