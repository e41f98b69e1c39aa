//! Files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::str;
use std::sync::Arc;

use jiff::Timestamp;
use portcullis::config::Config;
use portcullis::directory::{Directory, DirectoryContext};
use portcullis_policy::{Context, Facts, Identity, KnownDevice, KnownUser, Request, Revision, Ruleset, Service};

/// Instants a policy is asked at: before, in and after most conditions, and around a change of clocks.
const INSTANTS: [&str; 4] =
    ["2000-01-01T00:00:00Z", "2026-06-03T12:00:00Z", "2026-10-25T00:59:59.999Z", "2099-12-31T23:59:59Z"];

/// Compiles a policy and asks it.
pub fn policy(data: &[u8]) {
    let _accepted = try_policy(data);
}

fn try_policy(data: &[u8]) -> bool {
    let groups: Arc<[Arc<str>]> = Arc::new(["dba".into(), "eng".into()]);
    let identity = Identity {
        device: "ann-laptop".into(),
        user: "ann@example.com".into(),
        groups: Arc::clone(&groups),
        network: "default".into(),
        posture: Facts::default(),
    };
    let context = Context {
        users: BTreeMap::from([(
            "ann@example.com",
            KnownUser { groups: &groups, network: "default", disabled: false },
        )]),
        devices: BTreeMap::from([(
            "ann-laptop",
            KnownDevice { identity: &identity, disabled: false, source: Some("100.96.0.2".parse().unwrap()) },
        )]),
        groups: BTreeSet::from(["dba", "eng"]),
        networks: BTreeSet::from(["default", "lab"]),
        offramps: BTreeSet::from(["direct", "office"]),
    };
    let now = INSTANTS[1].parse().unwrap();
    let ruleset = match Ruleset::compile(data, &context, Revision(7), now) {
        Ok(ruleset) => ruleset,
        Err(problems) => {
            assert!(!problems.is_empty(), "a refusal has a reason");
            for problem in problems {
                let _ = problem.in_file("policy.json").to_string();
            }
            return false;
        }
    };
    for at in INSTANTS {
        let at: Timestamp = at.parse().unwrap();
        for (destination, service) in [
            ("10.0.5.12", Service::Tcp(5432)),
            ("10.0.8.9", Service::Udp(53)),
            ("fd00:20::80", Service::Icmp),
            ("192.0.2.1", Service::Protocol(47)),
        ] {
            let source = "100.96.0.2".parse().unwrap();
            let request = Request { identity: &identity, source, destination: destination.parse().unwrap(), service };
            let verdict = ruleset.evaluate(&request, at);
            assert_eq!(verdict.revision(), Revision(7));
            assert!(verdict.until().is_none_or(|until| until > at), "an answer that ends before it was given");
            let explanation = ruleset.explain(&request, at);
            assert_eq!(explanation.rule.as_ref(), verdict.rule(), "explain says what evaluate does");
        }
    }
    true
}

/// Reads a directory and looks everybody up.
pub fn directory(data: &[u8]) {
    let _accepted = try_directory(data);
}

fn try_directory(data: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(data) else { return false };
    let context = DirectoryContext {
        tunnel: vec!["100.96.0.1/16".parse().unwrap(), "fd00:96::1/64".parse().unwrap()],
        own_public_key: Some([9; 32]),
        networks: Vec::new(),
    };
    let directory = match Directory::parse(text, &context) {
        Ok(directory) => directory,
        Err(problems) => {
            assert!(!problems.is_empty(), "a refusal has a reason");
            for problem in problems {
                let _ = problem.in_file("directory.json").to_string();
            }
            return false;
        }
    };
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for device in directory.devices() {
        assert!(directory.user(&device.identity.user).is_some(), "every device has a user that exists");
        for address in &device.addresses {
            assert!(context.tunnel.iter().any(|net| net.contains(address)), "inside the tunnel network");
            assert!(addresses.insert(*address), "an address is one device's");
        }
        for network in &device.networks {
            // What stands behind a key comes by its tunnel, and is reached by it.
            let found = match device.public_key {
                Some(_) => directory.device_by_tunnel(&device.identity.network, network.addr()),
                None => directory.device_by_network(network.addr()),
            };
            let found = found.expect("somebody is known by it");
            assert!(found.networks.iter().any(|net| net.contains(&network.addr())));
        }
        if let Some(key) = &device.public_key {
            let found = directory.device_by_key(key).unwrap();
            assert_eq!(found.identity.device, device.identity.device, "a key is one device's");
        }
    }
    true
}

/// Resolves a configuration.
pub fn config(data: &[u8]) {
    let _accepted = try_config(data);
}

fn try_config(data: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(data) else { return false };
    match Config::resolve(text, Path::new("/etc/portcullis/gateway.toml"), 4) {
        Ok(config) => {
            assert!(config.shards >= 1);
            assert!(config.wireguard.is_some() || config.tun.is_some(), "a gateway without an on-ramp");
            assert!(config.limits.tcp_buffer > 0);
            true
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "a refusal has a reason");
            for problem in problems {
                let _ = problem.to_string();
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_meant_to_be_good_are_good() {
        assert!(try_policy(include_bytes!("../corpus/policy/specification.json")));
        assert!(try_policy(include_bytes!("../corpus/policy/small.json")));
        assert!(try_policy(include_bytes!("../corpus/policy/everything.json")));
        assert!(try_policy(include_bytes!("../corpus/policy/groups.json")));
        assert!(!try_policy(include_bytes!("../corpus/policy/cycle.json")));
        assert!(try_directory(include_bytes!("../corpus/directory/specification.json")));
        assert!(try_directory(include_bytes!("../corpus/directory/empty.json")));
        assert!(try_config(include_bytes!("../corpus/config/specification.toml")));
        assert!(!try_policy(include_bytes!("../corpus/policy/wrong.json")));
        assert!(!try_directory(include_bytes!("../corpus/directory/wrong.json")));
        assert!(!try_config(include_bytes!("../corpus/config/wrong.toml")));
    }
}
