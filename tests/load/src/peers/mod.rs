//! WireGuard peers in any number: their directory, and the peers themselves, connected and idle.
//!
//! All keys come from a seed, so that the two steps agree. They are no secrets: never let them near a real gateway.

mod crowd;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use boringtun::x25519::{PublicKey, StaticSecret};
use ipnet::Ipv4Net;
use portcullis::keys::{KeyError, encode_key, parse_public_key};
use serde_json::{Map, Value, json};

use crate::error::LoadError;
use crate::output;

/// Who, and where.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("step").required(true).multiple(true).args(["write_directory", "connect"])))]
pub(crate) struct Arguments {
    /// How many.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    peers: usize,
    /// What the keys are made from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tunnel address of the first peer; the others follow.
    #[arg(long, default_value_t = Ipv4Addr::new(100, 64, 0, 2))]
    first_address: Ipv4Addr,
    /// Writes a directory.json with the peers as devices of bench@example.com.
    #[arg(long, value_name = "FILE")]
    write_directory: Option<PathBuf>,
    /// Connects all peers, and keeps them connected until the process is ended.
    #[arg(long, requires = "endpoint", requires = "server_key")]
    connect: bool,
    /// The gateway's address and port.
    #[arg(long)]
    endpoint: Option<SocketAddr>,
    /// The gateway's public key.
    #[arg(long, value_parser = public_key)]
    server_key: Option<[u8; 32]>,
    /// UDP sockets the peers share: a gateway may spread peers over its threads by their address and port.
    #[arg(long, default_value_t = 8, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=256))]
    sockets: usize,
    /// Each peer sends from another address of this network, all of which must be this host's (`ip route add local`):
    /// gateways limit the handshakes of one address.
    #[arg(long, value_name = "NETWORK")]
    from: Option<Ipv4Net>,
    /// Seconds between keepalives of a peer; 0 sends none.
    #[arg(long, default_value_t = 25)]
    keepalive: u16,
}

/// Writes the directory, connects the peers, or one after the other.
pub(crate) async fn run(arguments: Arguments) -> Result<(), LoadError> {
    if let Some(path) = &arguments.write_directory {
        write(path, &arguments)?;
        output::line(&json!({ "written": arguments.peers }))?;
    }
    match (arguments.connect, arguments.endpoint, arguments.server_key) {
        (true, Some(endpoint), Some(server_key)) => crowd::run(&arguments, endpoint, server_key).await,
        _ => Ok(()),
    }
}

fn write(path: &Path, arguments: &Arguments) -> Result<(), LoadError> {
    let directory = directory(arguments.seed, arguments.peers, arguments.first_address);
    fs::write(path, format!("{directory:#}\n")).map_err(LoadError::doing("write the directory"))
}

fn directory(seed: u64, peers: usize, first: Ipv4Addr) -> Value {
    let devices = (0..peers).map(|index| {
        let key = PublicKey::from(&private_key(seed, index));
        let address = u32::from(first).wrapping_add(u32::try_from(index).unwrap_or(0));
        let device = json!({
            "user": "bench@example.com",
            "public_key": encode_key(key.as_bytes()),
            "addresses": [IpAddr::V4(address.into())],
        });
        (format!("peer-{:05}", index + 1), device)
    });
    let devices: Map<String, Value> = devices.collect();
    json!({ "users": { "bench@example.com": { "groups": ["bench"] } }, "devices": devices })
}

/// The key of one peer: numbers of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
fn private_key(seed: u64, index: usize) -> StaticSecret {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add((index as u64 * 4).wrapping_mul(GAMMA));
    let mut key = [0; 32];
    for word in key.chunks_exact_mut(8) {
        state = state.wrapping_add(GAMMA);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    StaticSecret::from(key)
}

fn public_key(text: &str) -> Result<[u8; 32], KeyError> {
    parse_public_key(text)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    impl Arguments {
        pub(super) fn for_test(peers: usize) -> Self {
            Self {
                peers,
                seed: 1,
                first_address: Ipv4Addr::LOCALHOST,
                write_directory: None,
                connect: true,
                endpoint: None,
                server_key: None,
                sockets: 3,
                from: None,
                keepalive: 25,
            }
        }
    }

    #[test]
    fn keys_differ_and_come_again() {
        let keys = |seed| (0..1000).map(|index| private_key(seed, index).to_bytes()).collect::<Vec<_>>();
        assert_eq!(keys(1), keys(1));
        let all: HashSet<_> = [keys(1), keys(2)].concat().into_iter().collect();
        assert_eq!(all.len(), 2000);
    }

    #[test]
    fn the_gateway_reads_the_directory() {
        let written = directory(1, 300, "100.64.0.2".parse().unwrap()).to_string();
        let devices = &serde_json::from_str::<Value>(&written).unwrap()["devices"];
        assert_eq!(devices["peer-00300"]["addresses"][0], "100.64.1.45");
        assert_eq!(devices.as_object().unwrap().len(), 300);
        for device in devices.as_object().unwrap().values() {
            parse_public_key(device["public_key"].as_str().unwrap()).unwrap();
        }
    }
}
