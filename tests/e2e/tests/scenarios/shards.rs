//! Everything at once, on one shard, on two, and on more than there are cores.

#![expect(clippy::indexing_slicing, reason = "test code, where a panic is the answer")]

use std::net::SocketAddr;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Host};
use portcullis_e2e::metrics::OPEN;
use portcullis_e2e::setup::{OnRamp, Setup, policy_without};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::target::UdpTarget;
use portcullis_e2e::tools::said;
use portcullis_e2e::transfer::{Endless, download, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::{Client, World, scenario};

/// Rounds of transfers of each client.
const ROUNDS: u64 = 4;

fn busy(world: &World<'_>, client: &Client<'_>) {
    for round in 0..ROUNDS {
        for family in FAMILIES {
            let host = Host::Open.address(family);
            let seed = round * 10 + client.index as u64;
            upload(client, world.private(), host, seed, MIB + round);
            download(client, world.private(), host, seed + 1, MIB + round);
            let echo = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
            let socket = client.udp(echo.address());
            for size in [1, 100, 1_200] {
                socket.send(&vec![7; size]).expect("a way to the target");
                assert_eq!(wait::uninterrupted(|| socket.recv(&mut [0; 2048])).expect("the echo"), size);
            }
        }
    }
    for family in FAMILIES {
        let out = client.ping(&["-n", "-c", "2", "-i", "0.2", "-W", "5"], Host::Open.address(family));
        assert!(out.status.success(), "{}", said(&out));
        let denied = client.connect(SocketAddr::new(Host::Shut.address(family), 80));
        assert_eq!(denied.expect_err("denied").kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

/// Three clients on both on-ramps, all kinds of traffic side by side, then a policy that ends what still runs on
/// every shard.
fn mixed(shards: usize) {
    let setup = Setup::new(OnRamp::Wireguard).and(OnRamp::Tun).and(OnRamp::Wireguard).shards(shards);
    scenario(setup, |world| {
        std::thread::scope(|scope| {
            for client in &world.clients {
                let world = &*world;
                scope.spawn(move || busy(world, client));
            }
        });
        let transfers = u32::try_from(ROUNDS).expect("few") * 2 * 3;
        expect::ended(world, "client_closed", transfers);
        expect::ended(world, "target_closed", transfers);
        expect::ended(world, "denied", 6);
        let udp = world.gateway.metrics().sum(OPEN, None);
        assert_eq!(udp, f64::from(transfers + 6), "associations and echo exchanges are still open");

        let host = Host::OpenToo.addresses()[0];
        let mut running: Vec<_> =
            world.clients.iter().map(|client| Endless::start(client, world.private(), host)).collect();
        world.gateway.set_policy(&policy_without(Host::OpenToo));
        for (client, running) in world.clients.iter().zip(&mut running) {
            running.cut();
            let line = expect::record(world, client, running.address(), "revoked");
            assert_eq!(line.rule.as_deref(), Some("no-more"));
        }
        let status: serde_json::Value =
            serde_json::from_str(&world.gateway.verb(&["status", "--json"])).expect("status prints JSON");
        assert_eq!(status["shards"].as_array().map(Vec::len), Some(shards), "{status}");
    });
}

#[test]
fn one_shard() {
    mixed(1);
}

#[test]
fn two_shards() {
    mixed(2);
}

#[test]
fn eight_shards() {
    mixed(8);
}
