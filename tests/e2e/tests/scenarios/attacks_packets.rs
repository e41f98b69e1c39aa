//! Packets that an enrolled device should not send: rows T10 to T15, T27 and T28 of the attacks.
#![allow(clippy::indexing_slicing, reason = "tests")]

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host, PRIVATE_NETWORKS, gateway_address};
use portcullis_e2e::metrics::DROPPED;
use portcullis_e2e::nft::{self, Counter};
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::raw::{self, DESTINATION_OPTIONS, HOP_BY_HOP, PADDING, ROUTING, RawSender, pairs};
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::stream::Noise;
use portcullis_e2e::target::{TcpTarget, UdpTarget, datagram};
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};
use serde_json::json;

/// Packets dropped for this reason so far.
fn dropped(world: &World<'_>, reason: &str) -> f64 {
    world.gateway.metrics().sum(DROPPED, Some(("reason", reason)))
}

/// A policy that forbids nothing.
fn allow_everything() -> serde_json::Value {
    json!({ "version": 1, "rules": [{ "id": "all", "action": "allow", "from": ["*"], "to": ["*"], "services": ["*"] }] })
}

/// Waits until a datagram of a client has been answered by `echo`: everything sent before was judged by then.
fn passes(world: &World<'_>, echo: &UdpTarget) {
    let socket = world.client().udp(echo.address());
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    wait::until("a datagram to be answered", || {
        socket.send(b"still there").expect("a way to the target");
        // A datagram may be lost; the next one is of the same association.
        datagram(&socket).ok().map(|(heard, _)| assert_eq!(heard, b"still there"))
    });
}

/// How many associations reached a target since the last call.
fn associations(target: &UdpTarget) -> usize {
    target.sources().into_iter().collect::<HashSet<_>>().len()
}

fn echo(world: &World<'_>, family: Family) -> UdpTarget {
    UdpTarget::serve(world.private(), SocketAddr::new(Host::Open.address(family), 0), <[u8]>::to_vec)
}

/// Lengths that lie, in IPv6, where the kernel sends what it is given. The rest is sent by the simulation.
fn lengths_that_lie(world: &mut World<'_>) {
    let client = world.client();
    let raw = RawSender::new(client);
    let open = echo(world, Family::V6);
    let [_, (from, to)] = pairs(client, 4000, Host::Open, open.address().port());
    let sound = raw::udp(from, to, b"hello");
    let mut lies = Vec::new();
    // The length of the payload and that of UDP: nothing, too little for the header, and more than there is.
    for (at, lengths) in [(4, [0u16, 1, 7, 12, 100, 65_535]), (44, [0, 1, 7, 14, 100, 65_535])] {
        for length in lengths {
            let mut lie = sound.clone();
            lie[at..at + 2].copy_from_slice(&length.to_be_bytes());
            lies.push(lie);
        }
    }
    for lie in &lies {
        raw.send(lie);
    }
    passes(world, &open);
    assert_eq!(associations(&open), 1, "only the sound one arrived");
    // The kernel on the way into the TUN drops some by itself; a tunnel brings them all.
    if client.ramp == OnRamp::Wireguard {
        assert_eq!(dropped(world, "malformed"), 12.0);
    }
    assert_eq!(world.gateway.metrics().sum(portcullis_e2e::metrics::OPENED, None), 1.0);
}
on_both_ramps!(t10_lengths_that_lie_reach_nobody, lengths_that_lie);

/// Checksums that do not hold. A tunnel covers them, but not the one that is missing.
fn bad_checksums(world: &mut World<'_>) {
    let client = world.client();
    let raw = RawSender::new(client);
    let targets = FAMILIES.map(|family| echo(world, family));
    let ports = targets.iter().map(|target| target.address().port());
    let mut wrong = 0;
    for (family, service) in FAMILIES.into_iter().zip(ports) {
        let (from, to) = pairs(client, 4000, Host::Open, service)[usize::from(family == Family::V6)];
        let udp_checksum = if family == Family::V4 { 26 } else { 46 };
        let mut damaged = raw::udp(from, to, b"hello");
        damaged[udp_checksum] ^= 0x55;
        let tcp_checksum = if family == Family::V4 { 36 } else { 56 };
        let mut syn = raw::syn(from, to);
        syn[tcp_checksum] ^= 0x55;
        if client.ramp == OnRamp::Tun {
            raw.send(&damaged);
            raw.send(&syn);
            wrong += 2;
        }
        if family == Family::V6 {
            // RFC 8200 section 8.1: without a checksum nobody takes it.
            let mut none = raw::udp(from, to, b"hello");
            none[udp_checksum..udp_checksum + 2].fill(0);
            raw.send(&none);
            wrong += 1;
        }
    }
    expect::dropped(world, "checksum", wrong);
    for target in &targets {
        passes(world, target);
        assert_eq!(associations(target), 1, "only the sound one arrived");
    }
    assert_eq!(dropped(world, "checksum"), f64::from(wrong));
}
on_both_ramps!(t11_bad_checksums_reach_nobody, bad_checksums);

/// Fragments that overlap, that hide their transport, that are too long, and that never end.
fn fragments(world: &mut World<'_>) {
    const UNFINISHED: u16 = 10_000;
    let client = world.client();
    let raw = RawSender::new(client);
    let targets = FAMILIES.map(|family| echo(world, family));
    let shut = FAMILIES.map(|family| {
        let name = format!("shut{}", usize::from(family == Family::V6));
        expect::arrivals(world, &name, Host::Shut.address(family))
    });
    for target in &targets {
        let index = usize::from(target.address().is_ipv6());
        let (from, to) = pairs(client, 4000, Host::Open, target.address().port())[index];
        let (_, forbidden) = pairs(client, 4000, Host::Shut, 443)[index];
        let whole = raw::udp(from, to, &[b'x'; 992]);
        let all = raw::body(&whole);
        // The front is judged, the rest rewrites it: ports and all.
        raw.send(&raw::fragment(&whole, 1, 0, &all[..504], true));
        raw.send(&raw::fragment(&whole, 1, 0, &raw::body(&raw::udp(from, forbidden, &[b'y'; 992]))[..504], true));
        raw.send(&raw::fragment(&whole, 1, 496, &[b'y'; 16], true));
        raw.send(&raw::fragment(&whole, 1, 504, &all[504..], false));
        expect::dropped(world, "fragment_overlap", 4 * (1 + index as u32));
        // A first one that shows the ports and not the flags, one without the ports, and one beyond the end of all.
        let syn = raw::syn(from, to);
        raw.send(&raw::fragment(&syn, 2, 0, &raw::body(&syn)[..8], true));
        raw.send(&raw::fragment(&whole, 3, 65_528, &[b'z'; 100], false));
        expect::dropped(world, "fragment", 2 * (1 + index as u32));
        passes(world, target);
        assert_eq!(associations(target), 1, "nothing of it arrived");
        // In order, out of order, and one of them twice.
        let socket = client.udp(target.address());
        let own = socket.local_addr().expect("a bound socket").port();
        let (from, to) = pairs(client, own, Host::Open, target.address().port())[index];
        let whole = raw::udp(from, to, &[b'x'; 992]);
        for (offset, end) in [(504, 1000), (0, 200), (0, 200), (200, 504)] {
            raw.send(&raw::fragment(&whole, 5, offset, &raw::body(&whole)[offset..end], end < 1000));
        }
        assert_eq!(datagram(&socket).expect("an answer").0, [b'x'; 992]);
        target.sources();
    }
    // Ten thousand that never end: the memory is that of 64.
    let before = world.gateway.process().memory_kib("VmRSS");
    for target in &targets {
        let index = usize::from(target.address().is_ipv6());
        let client = world.client();
        let (from, to) = pairs(client, 4000, Host::Open, target.address().port())[index];
        let whole = raw::udp(from, to, &[b'x'; 1_200]);
        let mut heard = 0;
        for id in 0..UNFINISHED {
            raw.send(&raw::fragment(&whole, 10 + id, 0, &raw::body(&whole)[..1_200], true));
            heard += 1;
            if heard % 100 == 0 {
                passes(world, target);
            }
        }
    }
    let grown = world.gateway.process().memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more");
    expect::dropped(world, "fragment_limit", u32::from(UNFINISHED));
    assert!(shut.iter().all(|shut| shut.packets() == 0));
}
on_both_ramps!(t12_fragments_that_lie_reach_nobody, fragments);

/// The transport behind headers: what is judged is what is behind them, or nothing.
fn hidden_transports(world: &mut World<'_>) {
    const JUMBO: [u8; 6] = [0xc2, 4, 0, 1, 0, 0];
    const ROUTE: [u8; 6] = [0, 1, 0, 0, 0, 0];
    const UNKNOWN: u8 = 253;
    let client = world.client();
    let raw = RawSender::new(client);
    let target = echo(world, Family::V6);
    let (open, shut) = (target.address(), Host::Shut.address(Family::V6));
    let denied = SocketAddr::new(shut, open.port());
    let _shut = world.private().run(|| std::net::TcpListener::bind(denied).expect("the same port"));
    let arrivals = expect::arrivals(world, "shut", shut);
    let answers = expect::syn_acks(client, "shut_answers", shut);
    let source = |port| SocketAddr::new(client.inner_address(Family::V6), port);
    let chain = |packet: &[u8], kinds: &[u8], options| {
        kinds.iter().rev().fold(packet.to_vec(), |packet, kind| raw::with_header(&packet, *kind, options))
    };
    let forms: [(&[u8], [u8; 6], bool); 8] = [
        (&[HOP_BY_HOP], PADDING, true),
        (&[DESTINATION_OPTIONS], PADDING, true),
        (&[DESTINATION_OPTIONS; 8], PADDING, true),
        (&[DESTINATION_OPTIONS; 9], PADDING, false),
        (&[ROUTING], ROUTE, false),
        (&[DESTINATION_OPTIONS, ROUTING], ROUTE, false),
        (&[HOP_BY_HOP], JUMBO, false),
        (&[UNKNOWN], PADDING, false),
    ];
    let mut expected = 0;
    for ((kinds, options, passes), number) in forms.into_iter().zip(0u16..) {
        raw.send(&chain(&raw::syn(source(4100 + number), denied), kinds, options));
        raw.send(&chain(&raw::udp(source(4200 + number), denied, b"hidden"), kinds, options));
        raw.send(&chain(&raw::udp(source(4300 + number), open, b"hidden"), kinds, options));
        expected += usize::from(passes);
    }
    passes(world, &target);
    assert_eq!((arrivals.packets(), answers.packets()), (0, 0), "a denied port");
    assert_eq!(associations(&target), expected + 1, "only those whose transport shows");
    // What shows was judged.
    expect::verdicts(world, "deny", 2 * u32::try_from(expected).expect("three"));
    if client.ramp == OnRamp::Wireguard {
        assert_eq!((dropped(world, "extension_header"), dropped(world, "protocol")), (12.0, 3.0));
    }
}
on_both_ramps!(t13_a_hidden_transport_reaches_no_denied_port, hidden_transports);

/// Sends the packets of a tunnel wherever they say.
fn everything_into_the_tunnel(world: &World<'_>) {
    let client = world.client();
    let wg = client.wg.as_ref().expect("a WireGuard client");
    let name = wg.interface();
    let peer = wg.config().value("PublicKey").expect("the gateway's key").to_owned();
    client.netns.output("wg", &["set", name, "peer", &peer, "allowed-ips", "0.0.0.0/0,::/0"]);
    assert!(PRIVATE_NETWORKS.iter().all(|network| client.netns.routing().contains(network)));
}

/// Every IPv6 address that stands for 10.20.0.10, which the policy allows, and for 10.20.0.12, which it does not.
#[test]
fn t14_no_ipv6_address_stands_for_an_ipv4_one() {
    let setup = Setup::new(OnRamp::Wireguard).policy(allow_everything());
    scenario(setup, |world| {
        everything_into_the_tunnel(world);
        let client = world.client();
        let raw = RawSender::new(client);
        let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), drop);
        let arrivals: Vec<Counter<'_>> = [Host::Open, Host::Shut]
            .into_iter()
            .zip(["open", "shut"])
            .map(|(host, name)| expect::arrivals(world, name, host.address(Family::V4)))
            .collect();
        let answers = Counter::arriving(client.netns, "answers", "tcp flags & (syn | ack) == (syn | ack)");
        let source = |port| SocketAddr::new(client.inner_address(Family::V6), port);
        let hosts: [[u8; 4]; 2] = [[10, 20, 0, 10], [10, 20, 0, 12]];
        let hidden: Vec<Ipv6Addr> = hosts
            .into_iter()
            .flat_map(|[a, b, c, d]| {
                let (high, low) = (u16::from(a) << 8 | u16::from(b), u16::from(c) << 8 | u16::from(d));
                let v6 = |segments: [u16; 8]| Ipv6Addr::from(segments);
                [
                    v6([0, 0, 0, 0, 0, 0xffff, high, low]),
                    v6([0, 0, 0, 0, 0, 0, high, low]),
                    v6([0x2002, high, low, 0, 0, 0, 0, 1]),
                    v6([0x64, 0xff9b, 0, 0, 0, 0, high, low]),
                    v6([0x64, 0xff9b, 1, 0, 0, 0, high, low]),
                    v6([0x2001, 0, high, low, 0, 0, !high, !low]),
                ]
            })
            .collect();
        for (address, number) in hidden.iter().zip(0..) {
            let to = SocketAddr::new((*address).into(), target.address().port());
            raw.send(&raw::syn(source(5000 + number), to));
            raw.send(&raw::udp(source(5000 + number), to, b"hello"));
        }
        let tries = 2 * u32::try_from(hidden.len()).expect("a dozen");
        expect::verdicts(world, "deny", tries);
        expect::dropped(world, "forbidden_destination", tries);
        for address in &hidden {
            let line = world.gateway.wait_for_flow("a record", |line| line.destination.ip() == IpAddr::V6(*address));
            assert_eq!((line.ended.as_str(), line.rule.as_deref()), ("denied", None), "{line:#?}");
        }
        assert_eq!(answers.packets(), 0);
        assert!(arrivals.iter().all(|arrivals| arrivals.packets() == 0));
        // In a file they are refused, and the policy in force stays.
        for address in &hidden {
            let rules = json!([{ "id": "hidden", "action": "allow", "from": ["*"], "to": [address] }]);
            world.gateway.write_policy(&json!({ "version": 1, "rules": rules }));
            let out = world.gateway.try_verb(&["reload"]);
            let said = portcullis_e2e::tools::said(&out);
            assert!(!out.status.success() && said.contains("hides an IPv4 address"), "{address}: {said}");
        }
        // The same host by its own address.
        drop(client.connect(target.address()).expect("the address itself is allowed"));
    });
}

/// Own addresses in every form, with everything listening and everything allowed: nothing is open.
#[test]
fn t15_no_own_address_is_open_under_a_policy_that_allows_everything() {
    const WIREGUARD: u16 = 51_820;
    const METRICS: u16 = 9_464;
    let setup = Setup::new(OnRamp::Wireguard).policy(allow_everything());
    scenario(setup, |world| {
        everything_into_the_tunnel(world);
        let client = world.client();
        let raw = RawSender::new(client);
        // Services of the gateway's host on every address it has.
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let tcp = any.map(|any| TcpTarget::serve(&world.lab.gateway, any, drop));
        let udp = any.map(|any| UdpTarget::serve(&world.lab.gateway, SocketAddr::new(any, 0), <[u8]>::to_vec));
        let v4 = |text: &str| -> IpAddr { text.parse::<Ipv4Addr>().expect("an address").into() };
        let v6 = |text: &str| -> IpAddr { text.parse::<Ipv6Addr>().expect("an address").into() };
        let mut addresses = vec![
            v4("127.0.0.1"),
            v4("127.1.2.3"),
            v4("169.254.169.254"),
            v4("169.254.0.1"),
            v4("224.0.0.1"),
            v4("239.1.1.1"),
            v4("255.255.255.255"),
            v4("240.0.0.1"),
            v4("0.0.0.0"),
            v4("0.0.0.1"),
            v4("100.96.0.1"),
            v4("10.20.0.1"),
            v6("::1"),
            v6("::"),
            v6("fe80::1"),
            v6("fd00:ec2::254"),
            v6("ff02::1"),
            v6("ff0e::1"),
            v6("fd00:96::1"),
            v6("fd00:20::1"),
        ];
        addresses.extend(FAMILIES.map(|family| gateway_address(0, family)));
        for line in world.lab.gateway.ip("-6 -o addr show scope link").lines() {
            let own = line.split_whitespace().nth(3).and_then(|own| own.split('/').next()).expect("an address");
            addresses.push(v6(own));
        }
        let open_tcp = Counter::arriving(client.netns, "open_tcp", "tcp flags & (syn | ack) == (syn | ack)");
        let interface = client.wg.as_ref().expect("a WireGuard client").interface();
        // A multicast of its own comes back to the client by itself.
        let udp_answers = |word: &str, family| {
            let own = client.inner_address(family);
            let matching = format!("iifname {interface} {word} saddr != {own} meta l4proto udp");
            Counter::arriving(client.netns, &format!("open_udp_{word}"), &matching)
        };
        let open_udp = [udp_answers("ip", Family::V4), udp_answers("ip6", Family::V6)];
        let echoes = Counter::arriving(client.netns, "echoes", "icmp type echo-reply");
        let echoes6 = Counter::arriving(client.netns, "echoes6", "icmpv6 type echo-reply");
        let mut port = 6_000;
        for address in &addresses {
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            let index = usize::from(family == Family::V6);
            let own = client.inner_address(family);
            for service in [tcp[index].address().port(), METRICS, WIREGUARD, 22, 443] {
                port += 1;
                raw.send(&raw::syn(SocketAddr::new(own, port), SocketAddr::new(*address, service)));
            }
            for service in [udp[index].address().port(), METRICS, WIREGUARD, 53] {
                port += 1;
                raw.send(&raw::udp(SocketAddr::new(own, port), SocketAddr::new(*address, service), b"anybody?"));
            }
            raw.send(&raw::echo_request(own, *address));
        }
        let tries = 10 * u32::try_from(addresses.len()).expect("a few");
        expect::dropped(world, "forbidden_destination", tries);
        assert_eq!(dropped(world, "forbidden_destination"), f64::from(tries));
        let open = [&open_tcp, &open_udp[0], &open_udp[1], &echoes, &echoes6].map(Counter::packets);
        assert_eq!(open, [0; 5], "SYN-ACKs, datagrams and echo replies");
        assert_eq!(world.gateway.metrics().sum(portcullis_e2e::metrics::OPENED, None), 0.0);
        // The scan would have seen an open port.
        let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), drop);
        let own = SocketAddr::new(client.inner_address(Family::V4), 5_999);
        raw.send(&raw::syn(own, target.address()));
        wait::until("an open port answers", || (open_tcp.packets() > 0).then_some(()));
    });
}

/// Forged errors about a transfer: it goes on as it was.
fn forged_errors(world: &mut World<'_>) {
    const SIZE: usize = 3 << 20;
    let client = world.client();
    let raw = RawSender::new(client);
    for family in FAMILIES {
        let target = TcpTarget::serve(world.private(), Host::Open.address(family), |mut stream| {
            use std::io::Write;
            stream.write_all(&Noise::new(9).bytes(SIZE)).is_ok()
        });
        let mut stream = client.connect(target.address()).expect("a connection");
        let (own, peer) = (stream.local_addr().expect("bound"), target.address());
        // What the client received, as it would quote it.
        let quote = raw::syn(peer, own);
        let mut heard = vec![0; SIZE];
        for part in heard.chunks_mut(SIZE / 8) {
            use std::io::Read;
            stream.read_exact(part).expect("the transfer goes on");
            for error in raw::errors(own.ip(), peer.ip(), &quote) {
                raw.send(&error);
            }
        }
        assert!(heard == Noise::new(9).bytes(SIZE), "the bytes are what was sent");
        assert!(target.result());
    }
    expect::dropped(world, "icmp_type", 8 * (raw::ERRORS_V4 + raw::ERRORS_V6));
}
on_both_ramps!(t27_forged_errors_change_nothing, forged_errors);

/// A host of the private side lies about the path: the client is told of nothing below the floors, and datagrams go on.
fn forged_by_a_target(world: &mut World<'_>) {
    let client = world.client();
    let raw = RawSender::inside(world.private());
    for (family, gateway) in FAMILIES.into_iter().zip(["10.20.0.1", "fd00:20::1"]) {
        let gateway: IpAddr = gateway.parse().expect("the gateway's address");
        let host = Host::Open.address(family);
        let (word, below, told) = match family {
            Family::V4 => ("v4", "icmp mtu < 576", "icmp type destination-unreachable icmp code frag-needed"),
            Family::V6 => ("v6", "icmpv6 type packet-too-big icmpv6 mtu < 1280", "icmpv6 type packet-too-big"),
        };
        let told_at_all = Counter::arriving(client.netns, &format!("told_{word}"), told);
        let too_small = match family {
            Family::V4 => Counter::arriving(client.netns, &format!("small_{word}"), &format!("{told} {below}")),
            Family::V6 => Counter::arriving(client.netns, &format!("small_{word}"), below),
        };
        let target = echo(world, family);
        let socket = client.udp(target.address());
        socket.send(b"who are you").expect("a way to the target");
        datagram(&socket).expect("an answer");
        let offramp = target.sources()[0];
        // Of errors that come together one is told, so the first comes alone: a path of 68 bytes.
        let quote = raw::udp(SocketAddr::new(gateway, offramp.port()), target.address(), &[b'x'; 600]);
        raw.send_by(gateway, &raw::errors(host, gateway, &quote)[2]);
        if family == Family::V4 {
            wait::until("the client to hear of its path", || (told_at_all.packets() > 0).then_some(()));
        }
        // About a datagram of the association, as its target saw it, and about one that there never was.
        for port in [offramp.port(), offramp.port() ^ 1] {
            let quote = raw::udp(SocketAddr::new(gateway, port), target.address(), &[b'x'; 600]);
            for error in raw::errors(host, gateway, &quote) {
                raw.send_by(gateway, &error);
            }
        }
        // The association is the same, and carries what it did.
        let said = Noise::new(3).bytes(1_200);
        wait::until("a datagram to be answered", || {
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
            // Errors that the client was told of come first.
            let _ = socket.send(&said);
            datagram(&socket).ok().filter(|(heard, _)| *heard == said)
        });
        assert!(target.sources().iter().all(|source| *source == offramp));
        assert_eq!(too_small.packets(), 0, "told of a path below the floor, of {} messages", told_at_all.packets());
        // A connection takes no error whose sequence number is not in its window.
        let (report, port) = std::sync::mpsc::channel();
        let tcp = TcpTarget::serve(world.private(), host, move |stream| {
            report.send(stream.peer_addr().expect("connected")).expect("the test waits");
            std::io::copy(&mut &stream, &mut &stream).is_ok()
        });
        let mut stream = client.connect(tcp.address()).expect("a connection");
        let offramp = port.recv().expect("a connection at the target");
        let quote = raw::syn(SocketAddr::new(gateway, offramp.port()), tcp.address());
        for error in raw::errors(host, gateway, &quote) {
            raw.send_by(gateway, &error);
        }
        let (said, mut heard) = (Noise::new(4).bytes(100_000), vec![0; 100_000]);
        std::io::Write::write_all(&mut stream, &said).expect("the connection goes on");
        std::io::Read::read_exact(&mut stream, &mut heard).expect("the connection goes on");
        assert!(said == heard);
    }
}
on_both_ramps!(t27_a_target_that_lies_about_the_path_harms_nobody, forged_by_a_target);

/// A flood of echo requests is cut to its limit, and nothing else waits for it.
fn echo_flood(world: &mut World<'_>) {
    let client = world.client();
    let raw = RawSender::new(client);
    let arrivals = expect::arrivals(world, "echoes", Host::Open.address(Family::V4));
    let request = raw::echo_request(client.inner_address(Family::V4), Host::Open.address(Family::V4));
    let begun = std::time::Instant::now();
    // Again and again: a client whose own queue is full loses most of one burst before the gateway sees it.
    wait::until("a packet dropped as echo_limit", || {
        for _ in 0..4_000 {
            raw.send(&request);
        }
        expect::has_dropped(world, "echo_limit", 1).then_some(())
    });
    passes(world, &echo(world, Family::V6));
    let seconds = begun.elapsed().as_secs() + 1;
    assert!(arrivals.packets() <= 1_000 + 1_000 * seconds, "{} in {seconds} s", arrivals.packets());
}
on_both_ramps!(t27_an_echo_flood_is_limited, echo_flood);

/// A client that was switched off takes the same source port again: its first repetition of the SYN opens.
fn rebooted_client(world: &mut World<'_>) {
    const PORT: u16 = 40_000;
    for family in FAMILIES {
        let client = world.client();
        let target = TcpTarget::serve(world.private(), Host::Open.address(family), |mut stream| {
            use std::io::Read;
            let mut byte = [0];
            stream.read_exact(&mut byte).map(|()| byte[0])
        });
        let connect = || {
            client.netns.run(|| {
                let domain = socket2::Domain::for_address(target.address());
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
                socket.set_reuse_address(true).expect("the same port again");
                let own = SocketAddr::new(client.inner_address(family), PORT);
                socket.bind(&own.into()).expect("the port is free");
                socket.connect_timeout(&target.address().into(), Duration::from_secs(20)).map(|()| socket)
            })
        };
        let first = connect().expect("a connection");
        // It vanishes without a word: neither FIN nor reset gets out.
        let word = format!("tcp sport {PORT} tcp flags & (fin | rst) != 0");
        nft::drop_leaving(client.netns, "gone", &word);
        first.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(first);
        nft::remove(client.netns, "gone");
        let syns = Counter::leaving(client.netns, "syns", &format!("tcp sport {PORT} tcp flags & (syn | ack) == syn"));
        let second = connect().expect("the new connection");
        assert!(syns.packets() <= 2, "{} SYNs", syns.packets());
        (&mut &second as &mut dyn std::io::Write).write_all(&[family as u8]).expect("it is open");
        let heard = [target.result(), target.result()];
        assert!(heard.iter().any(|heard| heard.as_ref().ok() == Some(&(family as u8))), "{heard:?}");
        assert!(heard.iter().any(Result::is_err), "the old one was cut: {heard:?}");
        nft::remove(client.netns, "count_syns");
        let ends: Vec<String> = world
            .gateway
            .wait_for_flows("the old connection", 1, |line| line.destination == target.address())
            .into_iter()
            .map(|line| line.ended)
            .collect();
        assert_eq!(ends[0], "client_reset");
    }
}
on_both_ramps!(t28_a_client_that_rebooted_connects_from_the_same_port, rebooted_client);
