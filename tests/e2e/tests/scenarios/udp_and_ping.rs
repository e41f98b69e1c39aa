//! UDP associations and echo exchanges.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use portcullis_e2e::burst::{self, BurstEcho};
use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::metrics::BYTES;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::stream::Noise;
use portcullis_e2e::target::{UdpTarget, datagram};
use portcullis_e2e::tools::said;
use portcullis_e2e::world::{Client, World, scenario};

/// Question and answer on port 53, then datagrams of every size a tunnel of 1280 bytes takes.
fn questions_and_sizes(world: &mut World<'_>) {
    let client = world.client();
    for family in FAMILIES {
        let host = Host::Open.address(family);
        let names = UdpTarget::serve(world.private(), SocketAddr::new(host, 53), |question| {
            [question, b" is 10.20.0.10"].concat()
        });
        let socket = client.udp(names.address());
        socket.send(b"intranet.example.com").expect("a way to the server");
        let (answer, _) = datagram(&socket).expect("an answer");
        assert_eq!(answer, b"intranet.example.com is 10.20.0.10");
        let line = expect::record(world, client, names.address(), "idle");
        assert_eq!((line.protocol.as_str(), line.rule.as_deref()), ("udp", Some("open")));
        assert_eq!((line.bytes_up, line.bytes_down, line.packets_up, line.packets_down), (20, 34, 1, 1));
        assert!(line.duration_ms >= 1_000.0, "{line:#?}");

        let echo = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
        let socket = client.udp(echo.address());
        let sizes = [0, 1, 2, 511, 512, 1_199, 1_200];
        for size in sizes {
            let said = Noise::new(size as u64).bytes(size);
            socket.send(&said).expect("a way to the target");
            let (heard, _) = datagram(&socket).expect("the echo");
            assert_eq!(heard, said, "a datagram of {size} bytes");
        }
        let mut sources = echo.sources();
        sources.dedup();
        assert_eq!(sources.len(), 1, "one association has one source towards the target");
        let line = expect::record(world, client, echo.address(), "idle");
        let bytes: u64 = sizes.iter().map(|size| *size as u64).sum();
        assert_eq!((line.bytes_up, line.bytes_down), (bytes, bytes));
        assert_eq!((line.packets_up, line.packets_down), (7, 7));
    }
    expect::ended(world, "idle", 4);
    assert!(world.gateway.metrics().sum(BYTES, Some(("direction", "up"))) > 0.0);
}
on_both_ramps!(
    questions_are_answered_and_sizes_kept,
    setup = |setup| setup.limit("udp_idle", "\"2s\"").limit("udp_idle_one_way", "\"1s\""),
    questions_and_sizes
);

/// Thousands of datagrams in runs that both ends' kernels carry together: sizes, borders and order are kept.
fn bursts(world: &mut World<'_>) {
    const ROUNDS: usize = 100;
    const SIZES: [usize; 6] = [1, 37, 100, 512, 1_199, 1_200];
    let client = world.client();
    for family in FAMILIES {
        let echo = BurstEcho::serve(world.private(), Host::Open.address(family));
        let socket = client.udp(echo.address());
        let mut noise = Noise::new(2);
        let (mut datagrams, mut bytes) = (0, 0);
        for round in 0..ROUNDS {
            let mut said = Vec::new();
            for (count, size) in [1, 16, 7, 2].into_iter().zip(SIZES.into_iter().cycle().skip(round % SIZES.len())) {
                let run = noise.bytes(size * (count - 1) + 1 + round % size);
                burst::send(&socket, &run, size, None).expect("a way to the target");
                said.extend(run.chunks(size).map(<[u8]>::to_vec));
            }
            socket.send(&[]).expect("a way to the target");
            said.push(Vec::new());
            for (number, said) in said.iter().enumerate() {
                let (heard, _) = datagram(&socket).expect("the echo");
                assert_eq!((heard.len(), &heard), (said.len(), said), "round {round}, datagram {number}");
            }
            datagrams += said.len() as u64;
            bytes += said.iter().map(|one| one.len() as u64).sum::<u64>();
        }
        let line = expect::record(world, client, echo.address(), "idle");
        assert_eq!((line.packets_up, line.packets_down), (datagrams, datagrams));
        assert_eq!((line.bytes_up, line.bytes_down), (bytes, bytes));
    }
}
on_both_ramps!(
    bursts_stay_the_datagrams_they_were,
    setup = |setup| setup.limit("udp_idle", "\"2s\"").limit("udp_idle_one_way", "\"1s\""),
    bursts
);

/// Datagrams and pings that fit no packet: cut by the client's kernel, put together by the gateway, cut again by it.
fn larger_than_a_packet(world: &mut World<'_>) {
    let client = world.client();
    for family in FAMILIES {
        let host = Host::Open.address(family);
        let out = client.ping(&["-n", "-c", "3", "-i", "0.2", "-W", "5", "-s", "4000"], host);
        assert!(out.status.success() && said(&out).contains("3 received"), "{}", said(&out));
        let line = expect::record(world, client, expect::echo(host), "idle");
        assert_eq!((line.packets_up, line.bytes_up, line.bytes_down), (3, 12_000, 12_000));

        let echo = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
        let socket = client.udp(echo.address());
        // Small ones between: they are of the same association, whichever way they take.
        let sizes = [100, 9_000, 200, 1_500, 60_000, 100, 65_507, 300];
        for size in sizes {
            let said = Noise::new(size as u64).bytes(size);
            socket.send(&said).expect("a way to the target");
            let (heard, _) = datagram(&socket).expect("the echo");
            assert!(heard == said, "a datagram of {size} bytes came back as {}", heard.len());
        }
        let sources: HashSet<_> = echo.sources().into_iter().collect();
        assert_eq!(sources.len(), 1, "one association has one source towards the target");
        let line = expect::record(world, client, echo.address(), "idle");
        let bytes: u64 = sizes.iter().map(|size| *size as u64).sum();
        assert_eq!((line.bytes_up, line.bytes_down, line.packets_up), (bytes, bytes, sizes.len() as u64));
    }
}
on_both_ramps!(
    what_fits_no_packet_goes_in_fragments,
    setup =
        |setup| { setup.limit("udp_idle", "\"2s\"").limit("udp_idle_one_way", "\"2s\"").limit("icmp_idle", "\"2s\"") },
    larger_than_a_packet
);

/// Two devices talk to one target from the same port; each gets its own answers only.
fn no_cross_talk(world: &mut World<'_>) {
    const ROUNDS: u32 = 300;
    let echo = UdpTarget::serve(world.private(), SocketAddr::new(Host::Open.address(Family::V4), 0), <[u8]>::to_vec);
    let talk = |client: &Client<'_>| {
        let own = client.inner_address(Family::V4);
        let socket = client.netns.run(|| std::net::UdpSocket::bind((own, 40_000))).expect("its own address");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        for round in 0..ROUNDS {
            let said = format!("{} round {round}", client.device);
            socket.send_to(said.as_bytes(), echo.address()).expect("a way to the target");
            let (heard, from) = datagram(&socket).expect("the echo");
            assert_eq!(from, echo.address());
            assert_eq!(String::from_utf8_lossy(&heard), said);
        }
        // Nothing more, also nothing of the other's.
        socket.set_nonblocking(true).expect("a non-blocking socket");
        assert!(datagram(&socket).is_err());
    };
    std::thread::scope(|scope| {
        let talking: Vec<_> = world.clients.iter().map(|client| scope.spawn(|| talk(client))).collect();
        for one in talking {
            one.join().expect("an undisturbed talk");
        }
    });
    for client in &world.clients {
        let flow = format!("\"{}\"", client.device);
        assert!(world.gateway.verb(&["flows", "--json"]).contains(&flow), "the association of {flow} is listed");
        let out = world.gateway.verb(&["kill", "--device", &client.device]);
        assert!(out.contains('1'), "one flow is ended: {out}");
        let line = expect::record(world, client, echo.address(), "killed");
        assert_eq!((line.packets_up, line.packets_down), (ROUNDS.into(), ROUNDS.into()));
        assert_eq!(line.source.port(), 40_000);
    }
}

#[test]
fn two_wireguard_devices_on_one_target() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Wireguard), no_cross_talk);
}

#[test]
fn a_wireguard_device_and_a_routed_host_on_one_target() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Tun), no_cross_talk);
}

/// Echo goes through to the target, in both families; denied it is answered as prohibited and never leaves.
fn pings(world: &mut World<'_>) {
    let client = world.client();
    for (family, name) in FAMILIES.into_iter().zip(["v4", "v6"]) {
        let open = Host::Open.address(family);
        let out = client.ping(&["-n", "-c", "3", "-i", "0.2", "-W", "5", "-s", "100"], open);
        assert!(out.status.success() && said(&out).contains("3 received"), "{}", said(&out));
        let line = expect::record(world, client, expect::echo(open), "idle");
        assert_eq!((line.protocol.as_str(), line.rule.as_deref()), ("icmp", Some("open")));
        assert_eq!((line.packets_up, line.packets_down), (3, 3));
        assert_eq!((line.bytes_up, line.bytes_down), (300, 300));

        let shut = Host::Shut.address(family);
        let arrivals = expect::arrivals(world, name, shut);
        let out = client.ping(&["-n", "-c", "1", "-W", "5"], shut);
        let answer = if family == Family::V4 { "Packet filtered" } else { "Administratively prohibited" };
        assert!(!out.status.success() && said(&out).contains(answer), "{}", said(&out));
        let line = expect::record(world, client, expect::echo(shut), "denied");
        assert_eq!((line.rule.as_deref(), line.packets_down), (Some("shut"), 0));
        assert_eq!(arrivals.packets(), 0);
    }
    expect::ended(world, "idle", 2);
    expect::ended(world, "denied", 2);
    expect::verdicts(world, "deny", 2);
}
on_both_ramps!(ping_is_judged_and_goes_through, setup = |setup| setup.limit("icmp_idle", "\"2s\""), pings);

/// An echo to an address nobody has comes back as unreachable, from the target's side.
fn unreachable_ping(world: &mut World<'_>) {
    for family in FAMILIES {
        let out = world.client().ping(&["-n", "-c", "1", "-W", "10"], Host::Nobody.address(family));
        assert!(!out.status.success() && said(&out).to_lowercase().contains("unreachable"), "{}", said(&out));
    }
}
on_both_ramps!(ping_hears_of_an_unreachable_target, unreachable_ping);
