//! `portcullis status`.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::output::{ago, bytes, load_config, print, seconds, table};
use super::{ExitStatus, StatusArgs, client};
use crate::control::api::Status;

/// Runs the verb.
pub fn run(args: StatusArgs) -> ExitStatus {
    let config = match load_config(&args.config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    match client::get::<Status>(&config.control, "/v1/status") {
        Ok(answer) if args.json => print(&answer.text),
        Ok(answer) => print(&page(&answer.value, Timestamp::now())),
        Err(error) => error.report(),
    }
}

fn page(status: &Status, now: Timestamp) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "portcullis {} {} (process {})", status.version, status.phase, status.pid);
    let _ = writeln!(out, "up         {}, since {:.0}", seconds(status.uptime_s), status.since);
    let _ = writeln!(out, "revision   {}", status.revision);
    if let Some(pending) = &status.pending {
        let _ = writeln!(
            out,
            "CONFIRM    revision {} by {:.0} (`portcullis policy confirm`), or revision {} comes back",
            pending.revision, pending.until, pending.back_to
        );
    }
    let load = &status.last_reload;
    let result = if load.ok { "taken" } else { "REFUSED, the revision before stays in force" };
    let _ = writeln!(out, "last load  {}, {result}", ago(Some(load.at), now));
    for problem in &load.problems {
        let _ = writeln!(out, "           {problem}");
    }
    if let Some(warning) = &status.config_warning {
        let _ = writeln!(out, "config     {warning}");
    }
    let _ = writeln!(out, "policy     {}", status.policy);
    let _ = writeln!(out, "directory  {} ({} users, {} devices)", status.directory, status.users, status.devices);
    let _ = writeln!(out, "flows      {} open on {} shards", status.flows_open, status.shards.len());
    for onramp in &status.onramps {
        let addresses = onramp.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let key = onramp.public_key.as_ref().map(|key| format!(", public key {key}")).unwrap_or_default();
        let _ = writeln!(out, "on-ramp    {} {} {addresses}{key}", onramp.kind, onramp.at);
    }
    for offramp in &status.offramps {
        let state = match offramp.up {
            None => "not probed".to_owned(),
            Some(true) => format!("up, {}", ago(offramp.since, now)),
            Some(false) => format!("DOWN, {}", ago(offramp.since, now)),
        };
        let last = if offramp.up == Some(true) { ", but the last try failed" } else { "" };
        let why = offramp.error.as_ref().map(|error| format!("{last}: {error}")).unwrap_or_default();
        let _ = writeln!(out, "off-ramp   {} {state}{why}", offramp.name);
    }
    if !status.peers.is_empty() {
        out.push('\n');
        out.push_str(&table(
            ["DEVICE", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "FLOWS"],
            status.peers.iter().map(|peer| {
                [
                    peer.device.clone(),
                    peer.endpoint.map_or_else(|| "-".to_owned(), |e| e.to_string()),
                    ago(peer.last_handshake, now),
                    bytes(peer.bytes_received),
                    bytes(peer.bytes_sent),
                    peer.flows.to_string(),
                ]
            }),
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{LastReload, OfframpStatus, Onramp, Peer, Problem, ShardStatus};

    #[test]
    fn the_page() {
        let now: Timestamp = "2027-01-01T00:02:00Z".parse().unwrap();
        let status = Status {
            version: "0.1.0".to_owned(),
            pid: 7,
            phase: "serving".to_owned(),
            since: "2027-01-01T00:00:00Z".parse().unwrap(),
            uptime_s: 120,
            revision: 3,
            flows_open: 5,
            shards: vec![ShardStatus { shard: 0, flows_open: 5, revision: 3 }],
            onramps: vec![Onramp {
                kind: "wireguard".to_owned(),
                at: "[::]:51820".to_owned(),
                addresses: vec!["100.96.0.1/16".parse().unwrap()],
                public_key: Some("AQEB".to_owned()),
            }],
            offramps: vec![
                OfframpStatus { name: "direct".to_owned(), up: None, since: None, error: None },
                OfframpStatus {
                    name: "office".to_owned(),
                    up: Some(false),
                    since: Some("2027-01-01T00:01:50Z".parse().unwrap()),
                    error: Some("the target did not answer in time".to_owned()),
                },
                OfframpStatus {
                    name: "lab".to_owned(),
                    up: Some(true),
                    since: Some("2027-01-01T00:01:50Z".parse().unwrap()),
                    error: Some("the target did not answer in time".to_owned()),
                },
            ],
            config: "/etc/portcullis/gateway.toml".to_owned(),
            config_warning: Some("gateway.toml has changed".to_owned()),
            policy: "/etc/portcullis/policy.json".to_owned(),
            directory: "/etc/portcullis/directory.json".to_owned(),
            users: 1,
            devices: 2,
            pending: None,
            last_reload: LastReload {
                at: "2027-01-01T00:01:00Z".parse().unwrap(),
                ok: false,
                problems: vec![Problem {
                    file: "policy.json".to_owned(),
                    line: Some(3),
                    column: Some(9),
                    path: "rules[0].id".to_owned(),
                    message: "is missing".to_owned(),
                    denied: false,
                }],
            },
            peers: vec![Peer {
                device: "ann-laptop".to_owned(),
                endpoint: Some("192.0.2.7:1234".parse().unwrap()),
                last_handshake: Some("2027-01-01T00:01:55Z".parse().unwrap()),
                bytes_received: 2048,
                bytes_sent: 1,
                flows: 5,
            }],
        };
        assert_eq!(
            page(&status, now),
            "portcullis 0.1.0 serving (process 7)\n\
             up         2m0s, since 2027-01-01T00:00:00Z\n\
             revision   3\n\
             last load  1m0s ago, REFUSED, the revision before stays in force\n           \
             policy.json:3:9: rules[0].id: is missing\n\
             config     gateway.toml has changed\n\
             policy     /etc/portcullis/policy.json\n\
             directory  /etc/portcullis/directory.json (1 users, 2 devices)\n\
             flows      5 open on 1 shards\n\
             on-ramp    wireguard [::]:51820 100.96.0.1/16, public key AQEB\n\
             off-ramp   direct not probed\n\
             off-ramp   office DOWN, 10s ago: the target did not answer in time\n\
             off-ramp   lab up, 10s ago, but the last try failed: the target did not answer in time\n\
             \n\
             DEVICE      ENDPOINT        HANDSHAKE  RECEIVED  SENT  FLOWS\n\
             ann-laptop  192.0.2.7:1234  5s ago     2.0K      1     5\n"
        );
    }
}
