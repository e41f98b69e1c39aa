//! What only the WireGuard on-ramp has: an outer transport, an endpoint that moves, a key that is revoked.

#![expect(clippy::indexing_slicing, reason = "test code, where a panic is the answer")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host, client_address};
use portcullis_e2e::metrics::HANDSHAKES;
use portcullis_e2e::nft::{self, Counter};
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::target::UdpTarget;
use portcullis_e2e::transfer::{Endless, download, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};

/// The endpoint of a peer, as `portcullis status --json` tells it.
fn endpoint(world: &World<'_>, device: &str) -> Option<SocketAddr> {
    let status: serde_json::Value =
        serde_json::from_str(&world.gateway.verb(&["status", "--json"])).expect("status prints JSON");
    let peers = status["peers"].as_array().expect("peers are a list");
    peers.iter().find(|peer| peer["device"] == device)?["endpoint"].as_str()?.parse().ok()
}

/// What was repeated in vain while nobody knew where the client is reaches it when it comes from elsewhere, and not a timeout
/// later, by when it may be elsewhere again.
#[test]
fn a_client_that_roamed_in_silence_is_sent_what_it_missed() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let client = world.client();
        let host = Host::Open.address(Family::V4);
        let endless = Endless::start(client, world.private(), host);
        wait::until("some of it", || (endless.received() > MIB).then_some(()));
        // Only what came over the wire: the tunnel's own packets are on no real device.
        nft::drop_arriving(client.netns, "silence", "iifname != lo udp sport 51820");
        let before = wait::until("silence", || {
            let before = endless.received();
            std::thread::sleep(Duration::from_millis(500));
            (endless.received() == before).then_some(before)
        });
        // Tries after 0.2 s, 0.6, 1.4, 3, 6.2 and 12.6.
        std::thread::sleep(Duration::from_secs(7));
        nft::remove(client.netns, "silence");
        let interface = client.wg.as_ref().expect("a WireGuard client").interface();
        client.netns.output("wg", &["set", interface, "listen-port", "50001"]);
        assert_eq!(endless.received(), before, "nobody knows that it is back");
        let out = client.ping(&["-n", "-c", "1", "-W", "5"], host);
        assert!(out.status.success(), "{out:?}");
        wait::until_within(Duration::from_secs(2), "what it missed", || (endless.received() > before).then_some(()));
        endless.finish();
    });
}

/// The tunnel itself over IPv6, both families inside it.
#[test]
fn ipv6_outside() {
    scenario(Setup::new(OnRamp::Wireguard).outer(Family::V6), |world| {
        let client = world.client();
        let v4 = Counter::arriving(&world.lab.gateway, "outer4", "ip protocol udp udp dport 51820");
        for family in FAMILIES {
            let to = upload(client, world.private(), Host::Open.address(family), 1, 4 * MIB);
            expect::record(world, client, to, "client_closed");
            let to = download(client, world.private(), Host::Open.address(family), 2, 4 * MIB);
            expect::record(world, client, to, "target_closed");
        }
        assert_eq!(endpoint(world, &client.device).map(|at| at.ip()), Some(client_address(0, Family::V6)));
        assert_eq!(v4.packets(), 0);
        assert!(world.gateway.metrics().sum(HANDSHAKES, None) >= 1.0);
    });
}

/// The client's address changes in the middle of a download, which goes on; the gateway follows.
#[test]
fn a_roaming_client_keeps_its_flows() {
    for (family, moved) in [(Family::V4, "192.168.7.77"), (Family::V6, "fd00:7::77")] {
        scenario(Setup::new(OnRamp::Wireguard).outer(family), |world| {
            let client = world.client();
            client.netns.sysctl("net.ipv4.conf.all.promote_secondaries", "1");
            let running = Endless::start(client, world.private(), Host::Open.address(Family::V4));
            let home = client_address(0, family);
            assert_eq!(endpoint(world, &client.device).map(|at| at.ip()), Some(home));
            let (len, nodad) = if family == Family::V4 { (24, "") } else { (64, " nodad") };
            client.netns.ip(&format!("addr add {moved}/{len} dev uplink{nodad}"));
            client.netns.ip(&format!("addr del {home}/{len} dev uplink"));
            let moved = moved.parse().ok();
            wait::until("the endpoint to follow", || {
                (endpoint(world, &client.device).map(|at| at.ip()) == moved).then_some(())
            });
            let before = running.received();
            wait::until("the download to go on", || (running.received() > before + 8 * MIB).then_some(()));
            let (to, len) = (running.address(), running.finish());
            let line = expect::record(world, client, to, "target_closed");
            assert_eq!(line.bytes_down, len);
        });
    }
}

/// A revoked device: its download stops within a second and its next handshake gets nothing.
#[test]
fn a_revoked_device_is_out() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Wireguard), |world| {
        let host = Host::Open.address(Family::V4);
        let running = Endless::start(&world.clients[0], world.private(), host);
        let other = Endless::start(&world.clients[1], world.private(), host);
        wait::until("the download to run", || (running.received() > 4 * MIB).then_some(()));
        world.gateway.verb(&["device", "revoke", &world.clients[0].device]);
        world.gateway.reload();
        std::thread::sleep(Duration::from_secs(1));
        let after_a_second = running.received();
        let to = running.address();
        let line = world.gateway.wait_for_flow("of the revoked device", |line| line.destination == to);
        assert_eq!((line.ended.as_str(), line.device.as_str()), ("device_gone", world.clients[0].device.as_str()));

        // Its client begins again from nothing: initiations go out, nothing comes back.
        let netns = world.clients[0].netns;
        world.clients[0].wg.as_mut().expect("a WireGuard client").restart(netns);
        let asked = Counter::leaving(netns, "asked", "udp dport 51820");
        let answered = Counter::arriving(netns, "answered", "udp sport 51820");
        let arrivals = expect::arrivals(world, "host", Host::OpenToo.address(Family::V4));
        let socket = world.clients[0].udp(SocketAddr::new(Host::OpenToo.address(Family::V4), 9));
        wait::until("a handshake to be asked for twice", || {
            // wireguard-go asks again every five seconds.
            let _ = socket.send(b"let me in");
            (asked.packets() >= 2).then_some(())
        });
        assert_eq!((answered.packets(), arrivals.packets()), (0, 0));
        let wg = world.clients[0].wg.as_ref().expect("a WireGuard client");
        assert_eq!(wg.latest_handshake(netns), 0);
        assert_eq!(running.received(), after_a_second, "bytes of a revoked device a second later");
        let refused = world.gateway.metrics().sum("portcullis_handshakes_refused_total", None);
        assert!(refused >= 2.0, "{refused} handshakes refused");

        // The other device never noticed.
        let to = other.address();
        other.finish();
        expect::record(world, &world.clients[1], to, "target_closed");
    });
}

/// A device missing from the new file is a revoked one.
#[test]
fn a_removed_device_is_out() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let running = Endless::start(world.client(), world.private(), Host::Open.address(Family::V4));
        world.gateway.verb(&["device", "remove", &world.client().device]);
        world.gateway.reload();
        let to = running.address();
        let line = world.gateway.wait_for_flow("of the removed device", |line| line.destination == to);
        assert_eq!(line.ended, "device_gone");
        expect::ended(world, "device_gone", 1);
    });
}

/// After a crash and a restart a client passes traffic again, without anybody touching it.
#[test]
fn a_crash_is_over_with_the_restart() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let echo =
            UdpTarget::serve(world.private(), SocketAddr::new(Host::Open.address(Family::V4), 0), <[u8]>::to_vec);
        let socket = world.client().udp(echo.address());
        let mut buffer = [0; 64];
        socket.send(b"before").expect("a way to the target");
        assert_eq!(wait::uninterrupted(|| socket.recv(&mut buffer)).expect("an answer"), 6);
        world.gateway.kill9();
        world.gateway.start();
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        // On its own a client notices after fifteen seconds that nobody answers.
        wait::until_within(Duration::from_secs(40), "an answer after the restart", || {
            let _ = socket.send(b"after");
            match wait::uninterrupted(|| socket.recv(&mut buffer)) {
                Ok(len) => (buffer[..len] == *b"after").then_some(()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    None
                }
            }
        });
    });
}
