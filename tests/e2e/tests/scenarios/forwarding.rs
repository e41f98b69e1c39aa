//! Packets of clients that go on as they are, routed by the gateway's host, and are judged and logged all the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Duration;

use portcullis_e2e::flow_log::FlowLine;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::metrics::DROPPED;
use portcullis_e2e::nft::Counter;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::raw::{self, RawSender};
use portcullis_e2e::setup::{OnRamp, Setup, policy_without};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::target::{TcpTarget, UdpTarget, datagram, reset};
use portcullis_e2e::tools::said;
use portcullis_e2e::transfer::{Endless, download, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::{Client, World, scenario};

fn record(world: &World<'_>, to: SocketAddr) -> FlowLine {
    let line = world.gateway.wait_for_flow("its record", |line| line.destination == to);
    assert_eq!(line.offramp.as_deref(), Some("keep"), "{line:#?}");
    line
}

fn ended(world: &World<'_>, to: SocketAddr, end: &str) -> FlowLine {
    let line = record(world, to);
    assert_eq!(line.ended, end, "{line:#?}");
    line
}

fn everything(world: &mut World<'_>) {
    let client = world.client();
    for family in FAMILIES {
        let host = Host::Open.address(family);
        let own = client.inner_address(family);
        let sees = TcpTarget::serve(world.private(), host, |mut stream| {
            stream.write_all(b"220 hello\r\n").expect("the client reads");
            stream.peer_addr().expect("a client").ip()
        });
        let mut heard = String::new();
        let mut stream = client.connect(sees.address()).expect("the target accepts");
        stream.read_to_string(&mut heard).expect("the greeting and its end");
        drop(stream);
        assert_eq!((heard.as_str(), sees.result()), ("220 hello\r\n", own), "the target sees the client");
        let line = ended(world, sees.address(), "target_closed");
        assert!((line.bytes_up, line.bytes_down) == (0, 11) && line.dial_ms.is_some(), "{line:#?}");

        // What is repeated is counted again: the packets are the client's.
        let to = upload(client, world.private(), host, 1, 16 * MIB + 1);
        let line = ended(world, to, "client_closed");
        assert!(line.bytes_up > 16 * MIB && line.bytes_down >= 32, "{line:#?}");
        let to = download(client, world.private(), host, 2, 16 * MIB + 3);
        let line = ended(world, to, "target_closed");
        assert!(line.bytes_up == 0 && line.bytes_down >= 16 * MIB + 3, "{line:#?}");

        let echo = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
        let socket = client.udp(echo.address());
        for size in [0, 1, 700, 1_200] {
            socket.send(&vec![7; size]).expect("a way to the target");
            assert_eq!(datagram(&socket).expect("the echo").0.len(), size);
        }
        assert_eq!(echo.sources().first().map(SocketAddr::ip), Some(own));
        let line = ended(world, echo.address(), "idle");
        assert_eq!((line.bytes_up, line.bytes_down, line.packets_up, line.packets_down), (1_901, 1_901, 4, 4));
        let socket = client.udp(echo.address());
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        // No router cuts IPv6: the target learns from its first answer what fits the tunnel.
        wait::until("the echo, in fragments", || {
            socket.send(&[7; 4_000]).ok()?;
            datagram(&socket).ok().filter(|(echo, _)| *echo == [7; 4_000])
        });

        let out = client.ping(&["-n", "-c", "3", "-i", "0.1", "-W", "5", "-s", "1000"], host);
        assert!(said(&out).contains("3 received"), "{}", said(&out));
        client.ping(&["-n", "-c", "1", "-W", "1", "-s", "4000"], host);
        let out = client.ping(&["-n", "-c", "2", "-i", "0.1", "-W", "5", "-s", "4000"], host);
        assert!(said(&out).contains("2 received"), "in fragments: {}", said(&out));
        let echo = SocketAddr::new(host, 0);
        let small =
            world.gateway.wait_for_flow("its record", |line| line.destination == echo && line.bytes_up == 3_000);
        assert_eq!(
            (small.protocol.as_str(), small.bytes_down, small.ended.as_str()),
            ("icmp", 3_000, "idle"),
            "{small:#?}"
        );
        let large =
            world.gateway.wait_for_flow("its record", |line| line.destination == echo && line.bytes_up == 8_000);
        assert_eq!((large.bytes_down, large.packets_up, large.packets_down), (8_000, 2, 2), "{large:#?}");
    }
}
on_both_ramps!(
    targets_see_the_client,
    setup = |setup| setup
        .keep()
        .limit("udp_idle", "\"2s\"")
        .limit("udp_idle_one_way", "\"1s\"")
        .limit("icmp_idle", "\"1s\""),
    everything
);

fn refusals(world: &mut World<'_>) {
    let client = world.client();
    for family in FAMILIES {
        let host = Host::Open.address(family);
        let nobody = SocketAddr::new(host, 1);
        let error = client.connect(nobody).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        ended(world, nobody, "target_refused");
        let socket = client.udp(SocketAddr::new(host, 2));
        socket.send(b"anybody?").expect("a way to the target");
        assert_eq!(datagram(&socket).expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);

        // The policy decides before a packet leaves.
        let shut = SocketAddr::new(Host::Shut.address(family), 9);
        let error = client.connect(shut).expect_err("denied");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let line = world.gateway.wait_for_flow("its record", |line| line.destination == shut);
        assert_eq!((line.ended.as_str(), line.offramp.as_deref()), ("denied", None), "{line:#?}");

        // The gateway's host is the router that finds nobody, and says so: to a client behind the TUN past the gateway.
        let far = SocketAddr::new(Host::Nobody.address(family), 9);
        let error = client.connect(far).expect_err("nobody has the address");
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
        let heard = client.ramp == OnRamp::Wireguard;
        ended(world, far, if heard { "target_unreachable" } else { "dial_timeout" });

        let resets = TcpTarget::serve(world.private(), host, |mut stream| {
            stream.read_exact(&mut [0; 5]).expect("the client speaks");
            reset(stream);
        });
        let mut stream = client.connect(resets.address()).expect("the target accepts");
        stream.write_all(b"hello").expect("a way to the target");
        assert_eq!(stream.read(&mut [0; 1]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        ended(world, resets.address(), "target_reset");

        let hears =
            TcpTarget::serve(world.private(), host, |mut stream| stream.read(&mut [0; 1]).map_err(|e| e.kind()));
        let stream = client.connect(hears.address()).expect("the target accepts");
        reset(stream);
        assert_eq!(hears.result(), Err(ErrorKind::ConnectionReset));
        ended(world, hears.address(), "client_reset");
    }
}
on_both_ramps!(refusals_and_errors_are_told, setup = |setup| setup.keep().limit("dial_timeout", "\"4s\""), refusals);

/// Both ends of a connection that is no longer allowed hear of it, busy or idle.
fn revoked(world: &mut World<'_>) {
    let client = world.client();
    let host = Host::Open.address(Family::V4);
    let hears = TcpTarget::serve(world.private(), host, |mut stream| stream.read(&mut [0; 1]).map_err(|e| e.kind()));
    let mut idle = client.connect(hears.address()).expect("the target accepts");
    let mut busy = Endless::start(client, world.private(), host);
    world.gateway.set_policy(&policy_without(Host::Open));
    wait::until_within(Duration::from_secs(1), "the cut", || busy.over().then_some(()));
    assert_eq!(busy.cut().kind(), ErrorKind::ConnectionReset);
    assert_eq!(idle.read(&mut [0; 1]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    assert_eq!(hears.result(), Err(ErrorKind::ConnectionReset), "the target, too");
    let line = ended(world, busy.address(), "revoked");
    assert_eq!(line.rule.as_deref(), Some("no-more"), "{line:#?}");
    ended(world, hears.address(), "revoked");
    assert!(client.connect(hears.address()).is_err());
}
on_both_ramps!(a_revoked_connection_ends_at_both_ends, setup = Setup::keep, revoked);

/// A path that is narrower in the middle than at its ends: whoever sends too much is told by the router before it.
fn narrow(world: &mut World<'_>) {
    let far = world.lab.far();
    let client = world.client();
    for family in FAMILIES {
        let host = Host::Nobody.address(family);
        let v6 = if family == Family::V6 { "-6 " } else { "" };
        // Both ways: from the router on to the host, and back to the gateway.
        let (on, back) = match family {
            Family::V4 => ("10.30.0.2", "10.20.0.1"),
            Family::V6 => ("fd00:30::2", "fd00:20::1"),
        };
        world.private().ip(&format!("{v6}route replace {host} via {on} mtu 1280"));
        world.private().ip(&format!("{v6}route replace default via {back} mtu 1280"));
        upload(client, &far, host, 3, 4 * MIB);
        download(client, &far, host, 4, 4 * MIB);
        if client.ramp == OnRamp::Tun {
            let out = client.ping(&["-n", "-c", "1", "-W", "5", "-M", "do", "-s", "1400"], host);
            let said = said(&out);
            let told = if family == Family::V4 { "mtu = 1280" } else { "mtu: 1280" };
            let learnt = client.netns.ip(&format!("{v6}route get {host}"));
            assert!(said.to_lowercase().contains(told) || learnt.contains("mtu 1280"), "{said}{learnt}");
        }
        let echo = UdpTarget::serve(&far, SocketAddr::new(host, 0), |asked| vec![9; asked.len() + 300]);
        let socket = client.udp(echo.address());
        wait::until("an answer that fits", || {
            socket.send(&[7; 700]).ok()?;
            datagram(&socket).ok().filter(|(answer, _)| answer.len() == 1_000)
        });
    }
    drop(far);
}
on_both_ramps!(a_path_that_narrows_in_the_middle_is_learnt, setup = |setup| setup.keep().policy(anything()), narrow);

/// What this host has no way for does not come back to the device: it would until its hop limit is used up.
#[test]
fn what_has_no_way_does_not_go_round() {
    scenario(Setup::new(OnRamp::Tun).keep(), |world| {
        for family in FAMILIES {
            let (version, private) = match family {
                Family::V4 => ("-4", "10.20.0.0/24"),
                Family::V6 => ("-6", "fd00:20::/64"),
            };
            world.lab.gateway.ip(&format!("{version} route flush {private}"));
            let errors = match family {
                Family::V4 => "meta l4proto icmp icmp type destination-unreachable",
                Family::V6 => "meta l4proto icmpv6 icmpv6 type destination-unreachable",
            };
            let told = Counter::arriving(world.client().netns, &format!("told{family:?}"), errors);
            let sent = || -> u64 {
                let said = world.lab.gateway.ip("-s -j link show portcullis0");
                let links: serde_json::Value = serde_json::from_str(&said).expect("JSON of ip(8)");
                links[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
            };
            let before = sent();
            let socket = world.client().udp(SocketAddr::new(Host::Open.address(family), 9));
            socket.send(b"anybody?").expect("a way to the gateway");
            wait::until("the host's word", || (told.packets() > 0).then_some(()));
            let came = sent() - before;
            assert!(came <= 4, "{came} packets went into the device for one");
        }
    });
}

fn anything() -> serde_json::Value {
    serde_json::json!({ "version": 1, "rules": [{ "id": "all", "action": "allow", "from": ["*"], "to": ["*"] }] })
}

/// Two clients on different on-ramps, and answers that come after the kernel has forgotten which queue a flow is in.
#[test]
fn answers_find_their_flow_whatever_shard_they_come_to() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Tun).keep(), |world| {
        let host = Host::Open.address(Family::V4);
        let echo = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
        let slow = TcpTarget::serve(world.private(), host, |mut stream| {
            for _ in 0..2 {
                let mut asked = [0; 4];
                stream.read_exact(&mut asked).expect("a question");
                std::thread::sleep(Duration::from_secs(4));
                stream.write_all(&asked).expect("the client reads");
            }
            stream.shutdown(Shutdown::Write).expect("the end");
            let _ = stream.read(&mut [0; 1]);
        });
        // Enough that some come to each shard by the kernel's hash.
        let mut streams = Vec::new();
        let mut sockets = Vec::new();
        for client in &world.clients {
            for _ in 0..8 {
                streams.push(client.connect(slow.address()).expect("the target accepts"));
                sockets.push(client.udp(echo.address()));
            }
        }
        for _ in 0..2 {
            for stream in &mut streams {
                stream.write_all(b"slow").expect("a way to the target");
            }
            for socket in &sockets {
                socket.send(b"hello").expect("a way to the target");
                assert_eq!(datagram(socket).expect("the echo").0, b"hello");
            }
            for stream in &mut streams {
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).expect("the answer, four seconds later");
                assert_eq!(&answer, b"slow");
            }
        }
        let sources: Vec<IpAddr> = echo.sources().iter().map(SocketAddr::ip).collect();
        for client in &world.clients {
            assert!(sources.contains(&client.inner_address(Family::V4)));
        }
    });
}

/// ICMP errors go on to a target from the device whose flow they are about, and from nobody else.
#[test]
fn another_device_says_nothing_into_a_flow() {
    scenario(Setup::new(OnRamp::Tun).and(OnRamp::Tun).keep(), |world| {
        for family in FAMILIES {
            let echo =
                UdpTarget::serve(world.private(), SocketAddr::new(Host::Open.address(family), 0), <[u8]>::to_vec);
            let (own, other) = (&world.clients[0], &world.clients[1]);
            let socket = own.udp(echo.address());
            socket.send(b"hello").expect("a way to the target");
            datagram(&socket).expect("the echo");
            let source = SocketAddr::new(own.inner_address(family), socket.local_addr().expect("bound").port());
            let answer = raw::udp(echo.address(), source, b"hello");
            let errors = match family {
                Family::V4 => {
                    "meta l4proto icmp icmp type { destination-unreachable, time-exceeded, parameter-problem }"
                }
                Family::V6 => {
                    "meta l4proto icmpv6 icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
                }
            };
            let arrived = Counter::arriving(world.private(), &format!("errors{family:?}"), errors);
            let say = |client: &Client<'_>| {
                let sender = RawSender::new(client);
                for error in raw::errors(client.inner_address(family), echo.address().ip(), &answer) {
                    sender.send(&error);
                }
            };
            say(other);
            world.gateway.wait_for_metric(
                DROPPED,
                Some(("reason", "spoofed_source")),
                match family {
                    Family::V4 => 5.0,
                    Family::V6 => 10.0,
                },
            );
            assert_eq!(arrived.packets(), 0, "another device's");
            // Two of its kinds open or close nothing, and one is smaller than anybody needs.
            say(own);
            wait::until("the flow's own", || (arrived.packets() == 5).then_some(()));
        }
    });
}
