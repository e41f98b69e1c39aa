//! A device that loses its access while it uses it: everything of it goes in one step.

#![expect(clippy::indexing_slicing, reason = "test code, where a panic is the answer")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::metrics::OPEN;
use portcullis_e2e::nft::Counter;
use portcullis_e2e::setup::{OnRamp, Setup, user};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::target::UdpTarget;
use portcullis_e2e::transfer::Endless;
use portcullis_e2e::wait;
use portcullis_e2e::world::{Client, World, scenario};
use serde_json::Value;

/// Promised: from then on nothing passes (SECURITY, promise 2).
const DEAD_WITHIN: Duration = Duration::from_secs(1);
/// How long it is watched that nothing does.
const WATCHED: Duration = Duration::from_secs(2);
/// How often a [`Chatter`] sends.
const PACE: Duration = Duration::from_millis(2);

/// A client that sends to an echo without a pause and reads nothing, so that answers are always under way to it.
struct Chatter {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Chatter {
    fn start(socket: UdpSocket) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // An error is a refusal of what was sent before.
                let _ = socket.send(&[7; 1_000]);
                std::thread::sleep(PACE);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Everything that passes between the gateway and the host that the device talks to, and the gateway and its client.
fn traffic<'a>(world: &World<'a>, client: &Client<'a>, host: [IpAddr; 2]) -> Vec<Counter<'a>> {
    let [v4, v6] = host;
    let mut counters = vec![
        Counter::arriving(world.private(), "to_host4", &format!("ip daddr {v4}")),
        Counter::arriving(world.private(), "to_host6", &format!("ip6 daddr {v6} meta l4proto {{ tcp, udp }}")),
    ];
    if client.ramp == OnRamp::Wireguard {
        counters.push(Counter::arriving(client.netns, "to_client", "udp sport 51820"));
    }
    counters
}

/// Runs a download, associations and an echo exchange of a device, takes its access away, and watches.
fn loses_access(ramp: OnRamp, end: &str, take_away: fn(&World<'_>, &str)) {
    scenario(Setup::new(ramp).and(OnRamp::Wireguard), |world| {
        let (client, neighbour) = (&world.clients[0], &world.clients[1]);
        let host = Host::Open.addresses();
        let mut download = Endless::start(client, world.private(), host[0]);
        let others = Endless::start(neighbour, world.private(), Host::OpenToo.address(Family::V4));
        let echoes = FAMILIES.map(|family| {
            UdpTarget::serve(world.private(), SocketAddr::new(Host::Open.address(family), 0), <[u8]>::to_vec)
        });
        let chatters: Vec<_> = echoes.iter().map(|echo| Chatter::start(client.udp(echo.address()))).collect();
        // Until one is answered: a client that two downloads begin to flood may lose some.
        assert!(client.ping(&["-n", "-i", "0.2", "-c", "1", "-w", "10"], host[0]).status.success());
        wait::until("everything to run", || {
            let talks = echoes.iter().all(|echo| !echo.sources().is_empty());
            (talks && download.received() > 4 * MIB && world.gateway.metrics().sum(OPEN, None) >= 5.0).then_some(())
        });

        take_away(world, &client.device);
        let gone = Instant::now();
        std::thread::sleep(DEAD_WITHIN.saturating_sub(gone.elapsed()));
        let counters = traffic(world, client, host);
        let received = download.received();
        std::thread::sleep(WATCHED);
        let passed: Vec<_> = counters.iter().map(Counter::packets).collect();
        assert!(passed.iter().all(|packets| *packets == 0), "a second later, packets pass: {passed:?}");
        assert_eq!(download.received(), received, "a second later, bytes pass");
        drop(chatters);

        // Everything it had is over and written down.
        for to in [download.address(), echoes[0].address(), echoes[1].address(), expect::echo(host[0])] {
            let device = client.device.as_str();
            let line = world
                .gateway
                .wait_for_flow(&format!("to {to}"), |line| line.destination == to && line.device == device);
            assert_eq!((line.ended.as_str(), line.verdict.as_str()), (end, "allow"), "{line:#?}");
        }
        if ramp == OnRamp::Wireguard {
            let status: Value = serde_json::from_str(&world.gateway.verb(&["status", "--json"])).expect("JSON");
            let peers = status["peers"].as_array().expect("a list");
            assert!(
                !peers.iter().any(|peer| peer["device"] == client.device.as_str()),
                "its tunnel is gone: {peers:?}"
            );
        }
        // The last thing a tunnel carries is the reset, but where packets before it were lost the client asks back
        // (RFC 5961, section 3.2), and then there is no tunnel any more.
        if ramp == OnRamp::Tun || download.over() {
            assert_eq!(download.cut().kind(), ErrorKind::ConnectionReset);
        }
        if ramp == OnRamp::Wireguard {
            refused_at_the_door(world);
        }
        let to = others.address();
        others.finish();
        expect::record(world, &world.clients[1], to, "target_closed");
    });
}

/// The client begins again from nothing: it asks, and hears nothing.
fn refused_at_the_door(world: &mut World<'_>) {
    let netns = world.clients[0].netns;
    let wg = world.clients[0].wg.as_mut().expect("a WireGuard client");
    wg.restart(netns);
    let asked = Counter::leaving(netns, "asked", "udp dport 51820");
    let answered = Counter::arriving(netns, "answered", "udp sport 51820");
    let socket = world.clients[0].udp(SocketAddr::new(Host::OpenToo.address(Family::V4), 9));
    wait::until("two handshakes to be asked for", || {
        let _ = socket.send(b"let me in");
        (asked.packets() >= 2).then_some(())
    });
    assert_eq!(answered.packets(), 0, "answers to a device without access");
    let wg = world.clients[0].wg.as_ref().expect("a WireGuard client");
    assert_eq!(wg.latest_handshake(netns), 0);
}

#[test]
fn t18_revoked_device_loses_tunnel_flows_and_associations_at_once() {
    loses_access(OnRamp::Wireguard, "device_gone", |world, device| {
        world.gateway.verb(&["device", "revoke", device]);
        world.gateway.reload();
    });
}

#[test]
fn t18_device_of_a_disabled_user_loses_everything_at_once() {
    loses_access(OnRamp::Wireguard, "device_gone", |world, _| {
        world.gateway.edit_directory(|directory| directory["users"][user(0)]["disabled"] = true.into());
    });
}

#[test]
fn t20_device_missing_in_a_new_file_loses_everything_at_once() {
    loses_access(OnRamp::Wireguard, "device_gone", |world, device| {
        world.gateway.edit_directory(|directory| {
            directory["devices"].as_object_mut().expect("devices").remove(device);
        });
    });
}

#[test]
fn t20_routed_device_missing_in_a_new_file_loses_everything_at_once() {
    loses_access(OnRamp::Tun, "device_gone", |world, device| {
        world.gateway.edit_directory(|directory| {
            directory["devices"].as_object_mut().expect("devices").remove(device);
        });
    });
}
