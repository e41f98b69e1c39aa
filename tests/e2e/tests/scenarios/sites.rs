//! Flows that go on to a site behind another WireGuard peer, to other devices, and from a site to us.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portcullis_e2e::flow_log::FlowLine;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::leaks;
use portcullis_e2e::setup::{OnRamp, Setup, usual_policy};
use portcullis_e2e::site::{OURS, Site, SiteKey, translated};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::target::{TcpTarget, UdpTarget, datagram};
use portcullis_e2e::tools::said;
use portcullis_e2e::transfer::{Endless, download, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::{Client, World, scenario};
use serde_json::json;

/// Runs a scenario with clients on both on-ramps and a site, the first endpoint of which is nobody's.
fn with_site(lines: &str, offramps: &str, run: impl FnOnce(&mut World<'_>, &mut Site)) {
    let key = SiteKey::generate();
    let setup = Setup::new(OnRamp::Wireguard)
        .and(OnRamp::Tun)
        .limit("udp_idle", "\"2s\"")
        .limit("udp_idle_one_way", "\"1s\"")
        .limit("icmp_idle", "\"1s\"")
        .tables(&key.tables(lines, offramps));
    scenario(setup, |world| {
        let mut site = Site::join(world.lab, world.gateway.dir(), &key);
        wait_for_state(world, "up");
        run(world, &mut site);
    });
}

/// Waits until `status` says so of the site.
fn wait_for_state(world: &World<'_>, state: &str) {
    // A site is asked for a handshake after 10 seconds of silence, and has 5 to answer.
    wait::until_within(Duration::from_secs(60), &format!("the site is {state}"), || {
        let status = world.gateway.verb(&["status"]);
        let line = status.lines().find(|line| line.contains("berlin"))?.to_lowercase();
        // Before the first handshake it is held to be up, too.
        let answered = state == "down" || world.gateway.log_text().contains("the site answers");
        (line.contains(state) && answered).then_some(())
    });
}

fn record(world: &World<'_>, to: SocketAddr, protocol: &str) -> FlowLine {
    let line =
        world.gateway.wait_for_flow("its record", |line| line.destination == to && line.protocol.as_str() == protocol);
    assert_eq!(line.offramp.as_deref(), Some("berlin"), "{line:#?}");
    line
}

/// Everything a client does goes there and comes back. `seen`: what the site sees of the client.
fn everything(world: &World<'_>, site: &Site, index: usize, seen: impl Fn(Family) -> IpAddr) {
    let client = world.clients.get(index).expect("a client");
    for family in FAMILIES {
        let host = Host::OpenToo.address(family);
        let sees = TcpTarget::serve(&site.netns, host, |mut stream| {
            stream.write_all(b"220 hello\r\n").expect("the client reads");
            stream.peer_addr().expect("a client").ip()
        });
        let mut heard = String::new();
        // The first packets wait for the handshake.
        let mut stream = wait::until("the site", || client.connect(sees.address()).ok());
        stream.read_to_string(&mut heard).expect("the greeting and its end");
        drop(stream);
        assert_eq!((heard.as_str(), sees.result()), ("220 hello\r\n", seen(family)));
        let line = record(world, sees.address(), "tcp");
        assert!(line.bytes_down == 11 && line.dial_ms.is_some(), "{line:#?}");
        for (seed, len) in [(1, 1), (2, 8 * MIB + 1)] {
            let to = upload(client, &site.netns, host, seed, len);
            assert!(record(world, to, "tcp").bytes_up >= len);
            let to = download(client, &site.netns, host, seed, len);
            assert!(record(world, to, "tcp").bytes_down >= len);
        }
        let nobody = SocketAddr::new(host, 1);
        assert_eq!(client.connect(nobody).expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
        assert_eq!(record(world, nobody, "tcp").ended, "target_refused");

        let echo = UdpTarget::serve(&site.netns, SocketAddr::new(host, 0), <[u8]>::to_vec);
        let socket = client.udp(echo.address());
        for size in [0, 1, 1_200] {
            socket.send(&vec![7; size]).expect("a way to the target");
            assert_eq!(datagram(&socket).expect("the echo").0.len(), size);
        }
        assert_eq!(echo.sources().first().map(SocketAddr::ip), Some(seen(family)));
        // More than the tunnel takes: whoever sends it is told, and cuts it.
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        wait::until("the echo, in fragments", || {
            socket.send(&[7; 1_450]).ok()?;
            datagram(&socket).ok().filter(|(echo, _)| *echo == [7; 1_450])
        });
        let line = record(world, echo.address(), "udp");
        assert!(line.bytes_up >= 2_651 && line.bytes_down >= 2_651, "{line:#?}");
        let closed = client.udp(SocketAddr::new(host, 2));
        closed.send(b"anybody?").expect("a way to the target");
        assert_eq!(datagram(&closed).expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);

        let out = client.ping(&["-n", "-c", "3", "-i", "0.1", "-W", "5", "-s", "1000"], host);
        assert!(said(&out).contains("3 received"), "{}", said(&out));
        assert_eq!(record(world, SocketAddr::new(host, 0), "icmp").bytes_down, 3_000);
    }
}

#[test]
fn a_site_sees_our_address_there() {
    // Nobody has the first endpoint.
    let lines = translated().replace("[\"198", "[\"198.51.100.77:9\", \"198");
    with_site(&lines, "[\"berlin\"]", |world, site| {
        let seen = |family| OURS[usize::from(family == Family::V6)].parse().expect("an address");
        everything(world, site, 0, seen);
        everything(world, site, 1, seen);
        // One port is one flow, on whatever shard.
        let held = TcpTarget::serve(&site.netns, Host::OpenToo.address(Family::V4), |mut stream| {
            stream.read(&mut [0; 1]).expect("the end")
        });
        let open: Vec<_> = (0..100)
            .map(|index| world.clients[index % 2].connect(held.address()).expect("the target accepts"))
            .collect();
        drop(open);
        assert!((0..100).all(|_| held.result() == 0));
    });
}

#[test]
fn a_site_may_see_the_client() {
    let lines = translated() + "\nsource = \"client\"\nkeepalive = \"1s\"";
    with_site(&lines, "[\"berlin\"]", |world, site| {
        for index in [0, 1] {
            everything(world, site, index, |family| world.clients[index].inner_address(family));
        }
    });
}

#[test]
fn connections_may_end_here_and_others_go_on_to_a_site() {
    for source in ["site", "client"] {
        let lines = format!("{}\nmode = \"terminate\"\nsource = \"{source}\"", translated());
        with_site(&lines, "[\"berlin\"]", |world, site| {
            for index in [0, 1] {
                everything(world, site, index, |family| match source {
                    "site" => OURS[usize::from(family == Family::V6)].parse().expect("an address"),
                    _ => world.clients[index].inner_address(family),
                });
            }
            cuts_are_seen(world, site);
            // Who cannot be reached is not waited for.
            site.wg.down();
            wait_for_state(world, "down");
            let to = SocketAddr::new(Host::OpenToo.address(Family::V4), 4);
            let begun = std::time::Instant::now();
            assert_eq!(world.client().connect(to).expect_err("it is gone").kind(), ErrorKind::HostUnreachable);
            assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
            assert_eq!(record(world, to, "tcp").ended, "offramp_down");
        });
    }
}

/// Each end hears of the other's reset, and of an administrator's.
fn cuts_are_seen(world: &World<'_>, site: &Site) {
    let host = Host::OpenToo.address(Family::V4);
    for client in &world.clients {
        let resets = TcpTarget::serve(&site.netns, host, |mut stream| {
            stream.read_exact(&mut [0; 5]).expect("what the client says");
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an open socket");
        });
        let mut stream = client.connect(resets.address()).expect("the target accepts");
        stream.write_all(b"hello").expect("a way to the target");
        assert_eq!(stream.read(&mut [0; 1]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        assert_eq!(record(world, resets.address(), "tcp").ended, "target_reset");

        let hears = TcpTarget::serve(&site.netns, host, |mut stream| {
            stream.read_to_end(&mut Vec::new()).expect_err("a reset").kind()
        });
        let stream = client.connect(hears.address()).expect("the target accepts");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an open socket");
        drop(stream);
        assert_eq!(hears.result(), ErrorKind::ConnectionReset);
        assert_eq!(record(world, hears.address(), "tcp").ended, "client_reset");

        let endless = Endless::start(client, &site.netns, host);
        wait::until("some of it", || (endless.received() > MIB).then_some(()));
        world.gateway.verb(&["kill", "--device", &client.device]);
        let mut endless = endless;
        endless.cut();
        assert_eq!(record(world, endless.address(), "tcp").ended, "killed");
    }
}

#[test]
fn a_rule_may_lead_to_the_other_family_at_a_site() {
    let mut policy = usual_policy();
    let rules = policy["rules"].as_array_mut().expect("rules are a list");
    let [v4, v6] = FAMILIES.map(|family| Host::OpenToo.address(family));
    rules.insert(
        0,
        json!({ "id": "moved", "action": "allow", "from": ["*"], "to": [v4], "services": ["tcp/443"], "rewrite": format!("[{v6}]:4443") }),
    );
    let key = SiteKey::generate();
    let lines = translated() + "\nmode = \"terminate\"";
    let setup = Setup::new(OnRamp::Wireguard).policy(policy).tables(&key.tables(&lines, "[\"berlin\"]"));
    scenario(setup, |world| {
        let site = Site::join(world.lab, world.gateway.dir(), &key);
        wait_for_state(world, "up");
        let at = SocketAddr::new(v6, 4443);
        let listener = site.netns.run(|| std::net::TcpListener::bind(at)).expect("the port is free");
        let served = std::thread::spawn(move || {
            let (mut stream, from) = listener.accept().expect("a client");
            stream.write_all(b"moved").expect("it reads");
            from.ip()
        });
        let asked = SocketAddr::new(v4, 443);
        let mut text = String::new();
        world.client().connect(asked).expect("the target accepts").read_to_string(&mut text).expect("what it says");
        assert_eq!(
            (text.as_str(), served.join().expect("the target")),
            ("moved", OURS[1].parse().expect("an address"))
        );
        let line = record(world, asked, "tcp");
        assert_eq!(line.target, Some(at), "{line:#?}");
    });
}

#[test]
fn a_host_of_the_site_is_probed_through_the_tunnel() {
    let host = Host::OpenToo.address(Family::V4);
    let probed = SocketAddr::new(host, 8443);
    let health = format!("health = {{ tcp = \"{probed}\", every = \"200ms\", down_after = 2, up_after = 2 }}");
    let key = SiteKey::generate();
    let lines = format!("{}\n{health}", translated());
    let setup = Setup::new(OnRamp::Wireguard).tables(&key.tables(&lines, "[\"berlin\", \"direct\"]"));
    scenario(setup, |world| {
        let mut site = Site::join(world.lab, world.gateway.dir(), &key);
        let offramp = |world: &World<'_>, netns, seed| {
            let to = upload(world.client(), netns, host, seed, MIB);
            let line = world.gateway.wait_for_flow("its record", |line| line.destination == to);
            line.offramp.expect("a way").to_string()
        };
        wait_for_state(world, "down");
        wait::until("the probe is refused", || world.gateway.verb(&["status"]).contains("refused").then_some(()));
        assert_eq!(offramp(world, world.private(), 1), "direct");
        let listener = site.netns.run(|| std::net::TcpListener::bind(probed)).expect("the port is free");
        wait_for_state(world, "up");
        assert_eq!(offramp(world, &site.netns, 2), "berlin");
        // The host, and then the tunnel.
        drop(listener);
        wait_for_state(world, "down");
        let listener = site.netns.run(|| std::net::TcpListener::bind(probed)).expect("the port is free");
        wait_for_state(world, "up");
        site.wg.down();
        wait_for_state(world, "down");
        assert_eq!(offramp(world, world.private(), 3), "direct");
        drop(listener);
    });
}

#[test]
fn a_site_that_is_gone_is_passed_by_until_it_is_back() {
    let modes = ["forward", "terminate"];
    modes.iter().for_each(|mode| passed_by(&format!("{}\nmode = \"{mode}\"", translated())));
}

fn passed_by(lines: &str) {
    with_site(lines, "[\"berlin\", \"direct\"]", |world, site| {
        let client = world.client();
        let host = Host::OpenToo.address(Family::V4);
        let mut endless = Endless::start(client, &site.netns, host);
        wait::until("some of it", || (endless.received() > MIB).then_some(()));
        site.wg.down();
        wait_for_state(world, "down");
        endless.cut();
        let line = record(world, endless.address(), "tcp");
        assert_eq!(line.ended, "offramp_down", "{line:#?}");
        let to = upload(client, world.private(), host, 3, MIB);
        let line = world.gateway.wait_for_flow("its record", |line| line.destination == to);
        assert_eq!(line.offramp.as_deref(), Some("direct"), "{line:#?}");
        site.wg.restart(&site.netns);
        wait_for_state(world, "up");
        let to = upload(client, &site.netns, host, 4, MIB);
        record(world, to, "tcp");
    });
}

#[test]
fn a_site_that_dies_and_returns_under_load_leaks_nothing() {
    ["forward", "terminate"].iter().for_each(|mode| leaks(&format!("{}\nmode = \"{mode}\"", translated())));
}

fn leaks(lines: &str) {
    let key = SiteKey::generate();
    let setup = Setup::new(OnRamp::Tun)
        .and(OnRamp::Wireguard)
        .limit("flow_rate_per_user", "20000")
        .limit("flow_rate_per_device", "20000")
        .tables(&key.tables(lines, "[\"berlin\"]"));
    scenario(setup, |world| {
        let mut site = Site::join(world.lab, world.gateway.dir(), &key);
        wait_for_state(world, "up");
        let Site { netns, wg } = &mut site;
        // The clients' TCP is patient: nothing need fail.
        leaks::leaks_nothing(world, netns, Host::OpenToo, || {
            wg.down();
            std::thread::sleep(Duration::from_secs(1));
            wg.restart(netns);
        });
    });
}

#[test]
fn a_site_is_an_on_ramp_too() {
    let key = SiteKey::generate();
    let setup = Setup::new(OnRamp::Wireguard).tables(&key.tables(&translated(), "[\"berlin\"]"));
    scenario(setup, |world| {
        let site = Site::join(world.lab, world.gateway.dir(), &key);
        wait_for_state(world, "up");
        world.gateway.edit_directory(|directory| {
            directory["users"]["site-berlin@example.com"] = json!({ "groups": ["eng"] });
            let device =
                json!({ "user": "site-berlin@example.com", "public_key": key.public, "networks": ["10.60.0.0/24"] });
            directory["devices"]["berlin"] = device;
        });
        world.gateway.reload();
        site.netns.ip("addr add 10.60.0.5 dev lo");
        let wg = site.wg.interface().to_owned();
        site.wg.allow(&site.netns, &["10.20.0.0/24"]);
        site.netns.ip(&format!("route add 10.20.0.0/24 dev {wg} src 10.60.0.5"));
        let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), |mut stream| {
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("what the site says");
            text
        });
        let connect = |to| site.netns.run(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)));
        let mut stream = wait::until("the site gets through", || connect(target.address()).ok());
        stream.write_all(b"from berlin").expect("a way to the target");
        drop(stream);
        assert_eq!(target.result(), "from berlin");
        let line = world.gateway.wait_for_flow("its record", |line| line.destination == target.address());
        assert_eq!((&*line.device, line.source.ip().to_string()), ("berlin", "10.60.0.5".to_owned()), "{line:#?}");
        let shut = SocketAddr::new(Host::Shut.address(Family::V4), 9);
        assert_eq!(connect(shut).expect_err("denied").kind(), ErrorKind::ConnectionRefused);

        // And flows still go there, to a host of the device's networks by its tunnel, whatever the routes say.
        let to = upload(world.client(), &site.netns, Host::OpenToo.address(Family::V4), 5, MIB);
        record(world, to, "tcp");
    });
}

#[test]
fn devices_reach_each_other_under_policy() {
    let mut policy = usual_policy();
    let rules = policy["rules"].as_array_mut().expect("rules are a list");
    rules.push(json!({ "id": "mesh", "action": "allow", "from": ["group:eng"], "to": ["100.96.0.0/16", "fd00:96::/64"], "services": ["tcp/*", "udp/*", "icmp"], "not_to": ["100.96.0.99/32"] }));
    let mesh = policy.clone();
    let setup = Setup::new(OnRamp::Wireguard).and(OnRamp::Wireguard).and(OnRamp::Tun).policy(policy);
    scenario(setup, |world| {
        let networks = ["100.96.0.0/16", "fd00:96::/64", "192.168.0.0/16", "fd00:9::/64"];
        for client in world.clients.iter().filter(|client| client.wg.is_some()) {
            let wg = client.wg.as_ref().expect("a tunnel");
            wg.allow(client.netns, &networks);
            for network in networks {
                client.netns.ip(&format!("route replace {network} dev {}", wg.interface()));
            }
        }
        // Those who were never heard of cannot be reached.
        let target = &world.clients[1];
        let host = Host::Open.address(Family::V4);
        for client in &world.clients[..2] {
            assert!(said(&client.ping(&["-n", "-c", "1", "-W", "5"], host)).contains("1 received"));
        }
        for index in [0, 2] {
            let client = world.clients.get(index).expect("a client");
            for family in FAMILIES {
                let peer = target.inner_address(family);
                if client.ramp == OnRamp::Tun {
                    let via = portcullis_e2e::lab::gateway_address(index, family);
                    client.netns.ip(&format!("route add {peer} via {via}"));
                    world.lab.gateway.ip(&format!("route add {peer} dev portcullis0"));
                }
                for (seed, len) in [(1, 1), (2, 8 * MIB + 1)] {
                    let to = upload(client, target.netns, peer, seed, len);
                    let line = world.gateway.wait_for_flow("its record", |line| line.destination == to);
                    assert_eq!(line.offramp.as_deref(), Some("device:laptop-1"), "{line:#?}");
                    assert_eq!((&*line.device, line.ended.as_str()), (&*client.device, "client_closed"), "{line:#?}");
                    download(client, target.netns, peer, seed, len);
                }
                let out = client.ping(&["-n", "-c", "3", "-i", "0.1", "-W", "5", "-s", "1000"], peer);
                assert!(said(&out).contains("3 received"), "{}", said(&out));
            }
        }
        // What no device has must not leave by another way, in the clear.
        let nobodys = SocketAddr::new("100.96.0.77".parse().expect("an address"), 9);
        let error = world.client().connect(nobodys).expect_err("nobody has it");
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
        let line = world.gateway.wait_for_flow("its record", |line| line.destination == nobodys);
        assert_eq!((line.offramp, line.ended.as_str()), (None, "target_unreachable"));
        let explained =
            |to: &str| said(&world.gateway.try_verb(&["policy", "explain", "--device", "laptop-0", "--to", to]));
        assert!(explained("100.96.0.77:9/tcp").contains("way out: none, 100.96.0.77 is of the tunnel network"));
        let to = format!("{}:9/tcp", target.inner_address(Family::V4));
        assert!(explained(&to).contains("way out: device:laptop-1, by its tunnel"), "{}", explained(&to));
        // A device that was denied remembers it until it is asked itself: then it may answer.
        let [first, second] = &world.clients[..2] else { panic!("two of them") };
        let mut one_way = usual_policy();
        let rules = one_way["rules"].as_array_mut().expect("rules are a list");
        rules.push(json!({ "id": "one-way", "action": "allow", "from": ["device:laptop-1"], "to": ["100.96.0.0/16"] }));
        world.gateway.set_policy(&one_way);
        let bind = |client: &Client<'_>, to: SocketAddr| {
            let own = SocketAddr::new(client.inner_address(Family::V4), 4500);
            client.netns.run(|| {
                let socket = std::net::UdpSocket::bind(own).expect("the port is free");
                socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
                socket.connect(to).map(|()| socket).expect("a way")
            })
        };
        let ends = [first, second].map(|client| SocketAddr::new(client.inner_address(Family::V4), 4500));
        let (a, b) = (bind(first, ends[1]), bind(second, ends[0]));
        a.send(b"too early").expect("a way");
        assert_eq!(datagram(&a).expect_err("denied").kind(), ErrorKind::HostUnreachable);
        b.send(b"now").expect("a way");
        assert_eq!(datagram(&a).expect("it is asked").0, b"now");
        a.send(b"yes").expect("a way");
        assert_eq!(datagram(&b).expect("the answer").0, b"yes");
        world.gateway.set_policy(&mesh);

        // Whose session is closed is reached no more, and the flows towards it are over.
        let client = world.client();
        let mut endless = Endless::start(client, target.netns, target.inner_address(Family::V4));
        wait::until("some of it", || (endless.received() > MIB).then_some(()));
        world.gateway.edit_directory(|directory| directory["devices"]["laptop-1"]["revoked"] = json!(true));
        world.gateway.reload();
        endless.cut();
        let line = world.gateway.wait_for_flow("its record", |line| line.destination == endless.address());
        assert_eq!(line.ended, "device_gone", "{line:#?}");
        let error = client.connect(endless.address()).expect_err("it is revoked");
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
    });
}

#[test]
fn one_address_is_two_targets_in_two_networks() {
    let key = SiteKey::generate();
    let host = Host::OpenToo.address(Family::V4);
    let network = format!(
        "[[network]]\nname = \"lab\"\n[[route]]\nnetwork = \"lab\"\nto = \"{host}/32\"\nofframp = [\"berlin\"]\n"
    );
    let mut policy = usual_policy();
    let rules = policy["rules"].as_array_mut().expect("rules are a list");
    let lab_only = json!({ "id": "lab-only", "action": "deny", "from": ["*"], "not_from": ["network:lab"], "to": [host], "services": ["tcp/7"] });
    rules.insert(0, lab_only);
    let setup =
        Setup::new(OnRamp::Wireguard).and(OnRamp::Tun).policy(policy).tables(&(key.offramp(&translated()) + &network));
    scenario(setup, |world| {
        let site = Site::join(world.lab, world.gateway.dir(), &key);
        wait_for_state(world, "up");
        let banner = |netns: &portcullis_e2e::netns::Netns, text: &'static str| {
            let address = SocketAddr::new(host, 7);
            let listener = netns.run(|| std::net::TcpListener::bind(address)).expect("the port is free");
            std::thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    // Whoever does not want to hear it goes.
                    let _ = stream.write_all(text.as_bytes());
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        };
        banner(world.private(), "here");
        banner(&site.netns, "there");
        let hears = |index: usize| -> Result<String, ErrorKind> {
            let client = world.clients.get(index).expect("a client");
            let mut text = String::new();
            let mut stream = client.connect(SocketAddr::new(host, 7)).map_err(|error| error.kind())?;
            stream.read_to_string(&mut text).map_err(|error| error.kind())?;
            Ok(text)
        };
        // The rule selects by network, and nobody is in it yet.
        assert_eq!((hears(0), hears(1)), (Err(ErrorKind::ConnectionRefused), Err(ErrorKind::ConnectionRefused)));
        world.gateway.set_policy(&usual_policy());
        assert_eq!((hears(0).as_deref(), hears(1).as_deref()), (Ok("here"), Ok("here")));

        // Switched while it runs: what is open ends, for it would be another target now.
        let mut open = Endless::start(world.client(), world.private(), host);
        wait::until("some of it", || (open.received() > MIB).then_some(()));
        for (section, name) in [("users", "user-0@example.com"), ("devices", "laptop-1")] {
            world.gateway.edit_directory(|directory| directory[section][name]["network"] = json!("lab"));
        }
        world.gateway.reload();
        open.cut();
        let line = world.gateway.wait_for_flow("its record", |line| line.destination == open.address());
        assert_eq!(line.ended, "revoked", "{line:#?}");
        assert_eq!((hears(0).as_deref(), hears(1).as_deref()), (Ok("there"), Ok("there")));
        // Nothing else leads out of the network.
        let error = world.client().connect(SocketAddr::new(Host::Open.address(Family::V4), 7)).expect_err("no route");
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
        let out =
            world.gateway.try_verb(&["policy", "explain", "--device", "laptop-1", "--to", &format!("{host}:7/tcp")]);
        assert!(said(&out).starts_with("allow: ") && said(&out).contains("way out: berlin"), "{}", said(&out));
    });
}
