//! What the gateway's own host and its neighbours could do to it: routes that come back in, packets from the wrong side,
//! a key that others can read.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host, gateway_address};
use portcullis_e2e::metrics::OPENED;
use portcullis_e2e::nft::Counter;
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::target::UdpTarget;
use portcullis_e2e::tools::said;
use portcullis_e2e::transfer::{download, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};

/// Longer than a connection in a lab takes, shorter than a dial of the gateway.
const SHORT: Duration = Duration::from_millis(300);

fn opened(world: &World<'_>) -> f64 {
    world.gateway.metrics().sum(OPENED, None)
}

/// Packets for addresses of the tunnel network that come from the private side, or from a routed host, are nobody's:
/// only the tunnels and the TUN device are ways in.
#[test]
fn t29_packets_for_tunnel_addresses_from_the_lan_are_dropped() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Tun), |world| {
        let (client, host) = (&world.clients[0], Host::Open.address(Family::V4));
        // There is a tunnel that could carry them.
        let to = upload(client, world.private(), host, 1, MIB);
        expect::record(world, client, to, "client_closed");
        let flows = opened(world);
        let interface = client.wg.as_ref().expect("a WireGuard client").interface().to_owned();
        let inside = Counter::arriving(
            client.netns,
            "inside",
            &format!("iifname {interface} meta l4proto {{ tcp, udp, icmp, icmpv6 }}"),
        );
        let network = [("100.96.0.0/16", "10.20.0.1", "192.168.8.1"), ("fd00:96::/64", "fd00:20::1", "fd00:8::1")];
        for (network, from_private, from_routed) in network {
            world.private().ip(&format!("route replace {network} via {from_private}"));
            world.clients[1].netns.ip(&format!("route replace {network} via {from_routed}"));
        }
        let own = ["100.96.0.1", "fd00:96::1"].map(|own| own.parse::<IpAddr>().expect("an address"));
        for to in FAMILIES.map(|family| client.inner_address(family)).into_iter().chain(own) {
            for netns in [world.private(), world.clients[1].netns] {
                let connected = netns.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, 22), SHORT));
                assert!(connected.is_err(), "a connection to {to}");
                netns.run(|| {
                    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("a socket");
                    for _ in 0..10 {
                        // A refusal of an earlier one is as good.
                        let _ = socket.send_to(b"anybody in?", SocketAddr::new(to, 53));
                    }
                });
            }
        }
        assert_eq!(inside.packets(), 0, "packets that came out of the tunnel");
        assert_eq!(opened(world), flows, "flows");
    });
}

/// A routed host that says it is a WireGuard device is not: its packets reach nothing.
#[test]
fn t29_tunnel_addresses_as_sources_from_the_lan_are_dropped() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Tun), |world| {
        let flows = opened(world);
        for family in FAMILIES {
            let (source, target) = (world.clients[0].inner_address(family), Host::Open.address(family));
            let arrivals = expect::arrivals(world, &format!("host{family:?}"), target);
            let routed = world.clients[1].netns;
            let (len, nodad) = if family == Family::V4 { (32, "") } else { (128, " nodad") };
            routed.ip(&format!("addr add {source}/{len} dev lo{nodad}"));
            let socket = routed.run(|| UdpSocket::bind((source, 0)).expect("a socket with the address"));
            for _ in 0..10 {
                let _ = socket.send_to(b"I am the laptop", SocketAddr::new(target, 53));
            }
            expect::dropped(world, "unknown_device", 10);
            assert_eq!(arrivals.packets(), 0);
        }
        assert_eq!(opened(world), flows, "flows");
    });
}

/// Changes `[tun] routes` and starts again.
fn steer(world: &mut World<'_>, routes: &str) {
    world.gateway.stop(wait::PATIENCE);
    let file = world.gateway.dir().join("gateway.toml");
    let text = std::fs::read_to_string(&file).expect("gateway.toml");
    let lines = text.lines().map(|line| match line.strip_prefix("routes = ") {
        Some(_) => format!("routes = {routes}\n"),
        None => format!("{line}\n"),
    });
    std::fs::write(&file, lines.collect::<String>()).expect("gateway.toml");
    world.gateway.start();
}

/// Everything is steered into the TUN: what the gateway sends itself, to targets and to WireGuard clients, is not.
#[test]
fn t30_default_route_into_the_tun_makes_no_loop() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Tun), |world| {
        steer(world, "[\"0.0.0.0/0\", \"::/0\"]");
        let netns = world.clients[0].netns;
        world.clients[0].wg.as_mut().expect("a WireGuard client").restart(netns);
        let table = world.lab.gateway.ip("route show table 51880");
        assert!(table.contains("default dev portcullis0"), "{table}");
        let own = Counter::leaving(&world.lab.gateway, "own", "oifname portcullis0 fib saddr type local");
        let mut flows = 0;
        for client in &world.clients {
            for family in FAMILIES {
                let to = upload(client, world.private(), Host::Open.address(family), 1, MIB);
                expect::record(world, client, to, "client_closed");
                let to = download(client, world.private(), Host::Open.address(family), 2, MIB);
                expect::record(world, client, to, "target_closed");
                flows += 2;
            }
        }
        assert_eq!(opened(world), f64::from(flows), "a flow each, and none of the gateway's own");
        assert_eq!(own.packets(), 0, "packets of the gateway's own that were steered");
    });
}

/// A route of the administrator's own leads the gateway's sockets into its TUN: they come back as nobody's packets, and
/// the flow fails. Nothing goes round.
#[test]
fn t30_own_sockets_routed_into_the_tun_make_no_loop() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Tun), |world| {
        let target = Host::OpenToo.address(Family::V4);
        world.lab.gateway.ip(&format!("route add {target}/32 dev portcullis0"));
        let echo = UdpTarget::serve(world.private(), SocketAddr::new(target, 0), <[u8]>::to_vec);
        for (count, client) in (1..).zip(&world.clients) {
            let socket = client.udp(echo.address());
            socket.send(b"round and round").expect("a way to the gateway");
            wait::until("a flow for it", || (opened(world) >= f64::from(count)).then_some(()));
            expect::dropped(world, "unknown_device", u32::try_from(count).expect("few"));
        }
        // What went round would have opened more, and come by again and again.
        let dropped =
            || world.gateway.metrics().sum("portcullis_packets_dropped_total", Some(("reason", "unknown_device")));
        let before = dropped();
        std::thread::sleep(SHORT);
        assert_eq!(opened(world), 2.0);
        // The kernel says a word on the device by itself (router solicitations); a loop would say thousands.
        assert!(dropped() < before + 10.0, "{before} and then {}", dropped());
        assert!(echo.sources().is_empty());
        // Everything else goes on, for clients and for the host that the gateway runs on.
        let to = upload(world.client(), world.private(), Host::Open.address(Family::V4), 1, MIB);
        expect::record(world, world.client(), to, "client_closed");
        let near = gateway_address(0, Family::V4);
        let out = world.clients[0].ping(&["-n", "-c", "1", "-W", "5"], near);
        assert!(out.status.success(), "{}", said(&out));
    });
}

/// A key that others can read, or that is somebody else's, is none to start with.
#[test]
fn t35_key_readable_by_others_refuses_to_start() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        world.gateway.stop(wait::PATIENCE);
        let key = world.gateway.dir().join("state/wireguard.key");
        let mode = |mode| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).expect("a mode");
        let refused = |world: &World<'_>, says: &str| {
            for verb in ["run", "check"] {
                let out = world.gateway.try_verb(&[verb]);
                assert_eq!(out.status.code(), Some(78), "{verb}: {}", said(&out));
                assert!(said(&out).contains(says) && said(&out).contains("wireguard.key"), "{verb}: {}", said(&out));
            }
        };
        for readable in [0o640, 0o604, 0o620, 0o644, 0o666] {
            mode(readable);
            refused(world, &format!("mode {readable:04o}"));
        }
        mode(0o600);
        chown(&key, Some(65_534), None).expect("an owner");
        refused(world, "belongs to user 65534");
        chown(&key, Some(0), None).expect("an owner");
        world.gateway.start();
    });
}
