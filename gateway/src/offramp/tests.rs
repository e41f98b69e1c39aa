//! Selection without IO; dials in a network namespace of their own each.

use std::collections::HashSet;
use std::net::{TcpListener, UdpSocket as StdUdpSocket};
use std::ops::RangeInclusive;

use nix::errno::Errno;
use portcullis_policy::{Context, DEFAULT_NETWORK, Identity, Request, Revision, Ruleset, Service, Verdict};

use proptest::prelude::*;
use tokio::net::TcpStream;

use super::health::HealthConfig;
use super::*;
use crate::config::resolved::RouteConfig;
use crate::flow_record::FlowEnd;
use crate::host::testing::{add_link, config, in_namespace, ip, sysctl, tun_config};

fn offramp_config(name: &str) -> OfframpConfig {
    OfframpConfig { name: name.into(), ..OfframpConfig::direct() }
}

fn route(to: &str, names: &[&str]) -> RouteConfig {
    RouteConfig {
        network: DEFAULT_NETWORK.into(),
        to: to.parse().unwrap(),
        offramp: names.iter().map(|name| (*name).into()).collect(),
    }
}

/// The off-ramp of a namespace: marked when `mark`.
fn offramp(mark: Option<u32>, change: impl FnOnce(&mut OfframpConfig)) -> Offramp {
    let mut config = offramp_config("test");
    change(&mut config);
    Offramp::new(&config, mark, Duration::from_secs(10), kernel_ports().as_ref()).unwrap()
}

async fn tcp(offramp: &Offramp, to: SocketAddr) -> Result<TcpStream, DialError> {
    offramp.sockets.connect_tcp(to, offramp.dial_timeout).await
}

fn udp(offramp: &Offramp, to: SocketAddr) -> Result<DatagramSocket, DialError> {
    match offramp.connect_udp(to)? {
        Opening::Open(socket) => Ok(socket),
        Opening::Asking(_) => panic!("there is no proxy"),
    }
}

/// A client of no importance.
fn origin(to: SocketAddr) -> Origin {
    Origin { source: address("192.0.2.7:7"), destination: to, user: "ann".into(), device: "laptop".into() }
}

fn plain() -> Offramp {
    offramp(None, |_| {})
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn the_longest_route_decides_and_a_permit_overrides() {
    let mut config = config(Some(tun_config(&[], &[])));
    config.offramps = vec![offramp_config("direct"), offramp_config("office"), offramp_config("lab")];
    config.routes = vec![
        route("10.0.0.0/8", &["direct"]),
        route("10.20.0.0/16", &["office", "direct"]),
        route("10.20.30.0/24", &["lab"]),
        route("fd10::/16", &["lab"]),
    ];
    let offramps = Offramps::new(&config).unwrap();
    let chosen = |named: Option<&str>, to: &str| {
        offramps.choose(named, DEFAULT_NETWORK, to.parse().unwrap(), &[]).map(|offramp| offramp.name().to_string())
    };
    for (to, name) in [
        ("10.1.2.3", Some("direct")),
        ("10.20.1.1", Some("office")),
        ("10.20.30.1", Some("lab")),
        ("fd10::1", Some("lab")),
        ("192.0.2.1", None),
        ("fd11::1", None),
    ] {
        assert_eq!(chosen(None, to).as_deref(), name, "{to}");
    }
    assert_eq!(chosen(Some("office"), "192.0.2.1").as_deref(), Some("office"));
    assert_eq!(chosen(Some("nowhere"), "10.1.2.3"), None, "an unknown name is no way around");
    assert_eq!(offramps.by_name["lab"].sockets.mark, Some(51880));
}

#[test]
fn the_first_that_is_up_and_was_not_tried_is_next() {
    let health = |port| HealthConfig {
        tcp: SocketAddr::from(([192, 0, 2, 1], port)),
        every: Duration::from_secs(1),
        down_after: 1,
        up_after: 1,
    };
    let mut config = config(None);
    let probed = |name, port| OfframpConfig { health: Some(health(port)), ..offramp_config(name) };
    config.offramps = vec![offramp_config("direct"), probed("a", 1), probed("b", 2)];
    config.routes = vec![route("10.0.0.0/8", &["a", "b", "direct"]), route("10.1.0.0/16", &["a", "b"])];
    let offramps = Offramps::new(&config).unwrap();
    let chosen = |to: &str, tried: &[&str]| {
        let tried: Vec<Arc<str>> = tried.iter().map(|name| Arc::from(*name)).collect();
        offramps.choose(None, DEFAULT_NETWORK, to.parse().unwrap(), &tried).map(|offramp| offramp.name().to_string())
    };
    let set = |name: &str, up| offramps.by_name[name].health.as_ref().unwrap().state.set(up, None);
    for (a, b, tried, three, two) in [
        (true, true, &[][..], Some("a"), Some("a")),
        (false, true, &[], Some("b"), Some("b")),
        (false, false, &[], Some("direct"), Some("a")),
        (true, false, &[], Some("a"), Some("a")),
        (true, true, &["a"], Some("b"), Some("b")),
        (true, false, &["a"], Some("direct"), Some("b")),
        (true, true, &["a", "b"], Some("direct"), None),
        (true, true, &["a", "b", "direct"], None, None),
    ] {
        set("a", a);
        set("b", b);
        assert_eq!(chosen("10.2.0.1", tried).as_deref(), three, "{a} {b} {tried:?}");
        assert_eq!(chosen("10.1.0.1", tried).as_deref(), two, "{a} {b} {tried:?}");
    }
    assert_eq!(offramps.all().map(|offramp| &**offramp.name()).collect::<Vec<_>>(), ["a", "b", "direct"]);
}

proptest! {
    /// The first of the sorted routes against a look at all of them.
    #[test]
    fn routes_are_those_of_the_longest_prefix(
        nets in prop::collection::btree_set((0..4_u8, prop::sample::select(vec![0_u8, 7, 8, 9, 15, 16, 24, 31, 32])), 1..12),
        asked in prop::collection::vec((0..4_u8, any::<[u8; 3]>()), 40),
    ) {
        let first = |first: u8| [10, 11, 127, 128][usize::from(first)];
        let nets: Vec<IpNet> = nets
            .into_iter()
            .map(|(a, len)| IpNet::new(IpAddr::from([first(a), 0, 128, 255]), len).unwrap().trunc())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let mut config = config(None);
        let name = |net: &IpNet| format!("{}-{}", net.addr(), net.prefix_len());
        config.offramps = nets.iter().map(|net| offramp_config(&name(net))).collect();
        config.routes = nets.iter().map(|net| route(&net.to_string(), &[&name(net)])).collect();
        let offramps = Offramps::new(&config).unwrap();
        for (a, [b, c, d]) in asked {
            for to in [[first(a), b, c, d], [first(a), 0, 128, d]].map(IpAddr::from) {
                let longest = nets.iter().filter(|net| net.contains(&to)).max_by_key(|net| net.prefix_len());
                let chosen = offramps.choose(None, DEFAULT_NETWORK, to, &[]).map(|offramp| offramp.name().to_string());
                prop_assert_eq!(chosen, longest.map(name), "{}", to);
            }
        }
    }
}

#[test]
fn without_routes_everything_goes_direct() {
    let offramps = Offramps::new(&config(None)).unwrap();
    for to in ["192.0.2.1", "2001:db8::1"] {
        let offramp = offramps.choose(None, DEFAULT_NETWORK, to.parse().unwrap(), &[]).unwrap();
        assert_eq!((&**offramp.name(), offramp.sockets.mark), ("direct", None));
    }
}

#[test]
fn tcp_connects_marked_and_without_delay() {
    in_namespace(async || {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(listen).unwrap();
            let stream = tcp(&offramp(Some(51880), |_| {}), listener.local_addr().unwrap()).await.unwrap();
            let (_accepted, from) = listener.accept().unwrap();
            assert_eq!(from, stream.local_addr().unwrap());
            assert!(stream.nodelay().unwrap());
            assert_eq!(SockRef::from(&stream).mark().unwrap(), 51880);
        }
    });
}

#[test]
fn dial_errors_have_their_ends() {
    in_namespace(async || {
        add_link("eth0");
        ip("addr add 192.0.2.10/24 dev eth0");
        ip("route add unreachable 198.51.100.0/24");
        ip("route add prohibit 203.0.113.0/24");
        let short = Offramp { dial_timeout: Duration::from_millis(50), ..plain() };
        for (to, end) in [
            ("127.0.0.1:9", FlowEnd::TargetRefused),
            ("[::1]:9", FlowEnd::TargetRefused),
            ("10.0.0.1:9", FlowEnd::TargetUnreachable),
            ("198.51.100.1:9", FlowEnd::TargetUnreachable),
            ("203.0.113.1:9", FlowEnd::TargetUnreachable),
            ("[2001:db8::1]:9", FlowEnd::TargetUnreachable),
            ("192.0.2.11:9", FlowEnd::DialTimeout),
        ] {
            let error = tcp(&short, address(to)).await.unwrap_err();
            assert_eq!(error.flow_end(), end, "{to}: {error:?}");
        }
    });
}

#[test]
fn source_and_interface_are_used() {
    in_namespace(async || {
        ip("addr add 127.9.9.9/8 dev lo");
        ip("-6 addr add fd00::9/128 dev lo nodad");
        let offramp = offramp(None, |config| {
            config.source = vec!["127.9.9.9".parse().unwrap(), "fd00::9".parse().unwrap()];
            config.interface = Some("lo".to_owned());
        });
        for (listen, source) in [("127.0.0.1:0", "127.9.9.9"), ("[::1]:0", "fd00::9")] {
            let listener = TcpListener::bind(listen).unwrap();
            let stream = tcp(&offramp, listener.local_addr().unwrap()).await.unwrap();
            assert_eq!(stream.local_addr().unwrap().ip().to_string(), source);
            assert_eq!(SockRef::from(&stream).device().unwrap().as_deref(), Some(&b"lo"[..]));
            let server = StdUdpSocket::bind(listen).unwrap();
            let socket = udp(&offramp, server.local_addr().unwrap()).unwrap();
            assert_eq!(socket.local_addr().unwrap().ip().to_string(), source);
        }
        let absent = self::offramp(None, |config| config.source = vec!["192.0.2.99".parse().unwrap()]);
        let error = tcp(&absent, address("127.0.0.1:9")).await.unwrap_err();
        assert!(matches!(error, DialError::SourceUnavailable(_)), "{error:?}");
        let absent = self::offramp(None, |config| config.interface = Some("eth7".to_owned()));
        let error = tcp(&absent, address("127.0.0.1:9")).await.unwrap_err();
        assert!(matches!(error, DialError::InterfaceUnavailable(_)), "{error:?}");
    });
}

/// Dials until the ports of `range` are used up; every port must be used once, and be usable towards another target.
async fn exhaust(range: RangeInclusive<u16>, by_kernel: bool) {
    let offramp = offramp(None, |config| config.ports = Some(range.clone()));
    assert_eq!(offramp.sockets.ports.as_ref().unwrap().by_kernel, by_kernel);
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(listen).unwrap();
        let other = TcpListener::bind(listen).unwrap();
        let mut open = Vec::new();
        for _ in range.clone() {
            open.push(tcp(&offramp, listener.local_addr().unwrap()).await.unwrap());
        }
        let ports: HashSet<u16> = open.iter().map(|stream| stream.local_addr().unwrap().port()).collect();
        assert_eq!(ports, range.clone().collect());
        let error = tcp(&offramp, listener.local_addr().unwrap()).await.unwrap_err();
        assert!(matches!(error, DialError::PortsExhausted), "{error:?}");
        assert_eq!(error.flow_end(), FlowEnd::Limit);
        let stream = tcp(&offramp, other.local_addr().unwrap()).await.unwrap();
        assert!(range.contains(&stream.local_addr().unwrap().port()));
    }
    let server = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap();
    let open: Vec<DatagramSocket> = range.clone().map(|_| udp(&offramp, to).unwrap()).collect();
    let ports: HashSet<u16> = open.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
    assert_eq!(ports, range.clone().collect());
    let error = udp(&offramp, to).unwrap_err();
    assert!(matches!(error, DialError::PortsExhausted), "{error:?}");
}

#[test]
fn a_port_range_within_the_kernels_is_kept() {
    in_namespace(async || exhaust(40_000..=40_003, true).await);
}

#[test]
fn a_port_range_outside_the_kernels_is_kept() {
    in_namespace(async || exhaust(20_000..=20_003, false).await);
}

#[test]
fn the_kernels_own_ports_run_out_by_name() {
    in_namespace(async || {
        sysctl("net.ipv4.ip_local_port_range", "50000 50001");
        let listener = TcpListener::bind("127.0.0.1:1000").unwrap();
        let to = listener.local_addr().unwrap();
        let _open = (tcp(&plain(), to).await.unwrap(), tcp(&plain(), to).await.unwrap());
        let error = tcp(&plain(), to).await.unwrap_err();
        assert!(matches!(error, DialError::PortsExhausted), "{error:?}");
    });
}

#[test]
fn udp_hears_its_target_and_the_targets_refusal_only() {
    in_namespace(async || {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let server = StdUdpSocket::bind(listen).unwrap();
            let stranger = StdUdpSocket::bind(listen).unwrap();
            let socket = udp(&offramp(Some(7), |_| {}), server.local_addr().unwrap()).unwrap();
            assert_eq!(SockRef::from(&socket).mark().unwrap(), 7);
            socket.try_send(b"question").unwrap();
            let mut buffer = [0; 64];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"question"[..], socket.local_addr().unwrap()));
            stranger.send_to(b"forged", from).unwrap();
            server.send_to(b"answer", from).unwrap();
            let received = socket.recv(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..received.bytes], received.datagram), (&b"answer"[..], 6));

            drop(server);
            // A child process that another test starts has the server's socket, too, until it runs its program: what comes
            // to that in the meantime is lost.
            let error = loop {
                socket.try_send(b"question").unwrap();
                match tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await {
                    Ok(received) => break received.unwrap_err(),
                    Err(_elapsed) => {}
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn icmp_errors_wake_a_reader_that_waits_alone() {
    in_namespace(async || {
        sysctl("net.ipv4.ping_group_range", "0 2147483647");
        add_link("eth0");
        ip("addr add 192.0.2.10/24 dev eth0");
        ip("-6 addr add 2001:db8::10/64 dev eth0 nodad");
        // Failed neighbour discovery in short time.
        for family in ["ipv4", "ipv6"] {
            sysctl(&format!("net.{family}.neigh.eth0.retrans_time_ms"), "20");
        }
        let refused = Errno::ECONNREFUSED;
        let absent = Errno::EHOSTUNREACH;
        for (to, errno) in
            [("127.0.0.1:9", refused), ("[::1]:9", refused), ("192.0.2.11:9", absent), ("[2001:db8::11]:9", absent)]
        {
            let to = address(to);
            let mut sockets = vec![(udp(&plain(), to).unwrap(), b"question".to_vec())];
            if errno == absent {
                sockets.push((plain().connect_ping(to.ip()).unwrap(), echo_request(to.is_ipv6(), 1)));
            }
            for (socket, message) in sockets {
                let socket = std::rc::Rc::new(socket);
                let reader = std::rc::Rc::clone(&socket);
                let local = tokio::task::LocalSet::new();
                let reader = local.spawn_local(async move { reader.recv(&mut [0; 64]).await });
                let told = local.run_until(async {
                    tokio::task::yield_now().await;
                    socket.try_send(&message).unwrap();
                    tokio::time::timeout(Duration::from_secs(20), reader).await.expect("the reader sleeps on").unwrap()
                });
                let told = told.await.unwrap_err();
                assert_eq!(told.raw_os_error().map(Errno::from_raw), Some(errno), "{to}: {told}");
                // Nothing is left over, and the socket goes on.
                assert_eq!(socket.try_recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
                socket.try_send(&message).unwrap();
                let mtu = socket.path_mtu().unwrap();
                assert!(if errno == absent { mtu == 1500 } else { mtu > 60_000 }, "{mtu}");
            }
        }
    });
}

/// An echo request with some identifier and an empty checksum: the kernel writes both.
fn echo_request(v6: bool, sequence: u16) -> Vec<u8> {
    let mut message = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0xab, 0xcd];
    message.extend(sequence.to_be_bytes());
    message.extend(b"payload");
    message
}

#[test]
fn pings_are_answered() {
    in_namespace(async || {
        sysctl("net.ipv4.ping_group_range", "0 2147483647");
        for (to, reply_type) in [("127.0.0.1", 0), ("::1", 129)] {
            let to: IpAddr = to.parse().unwrap();
            let ping = offramp(Some(7), |_| {}).connect_ping(to).unwrap();
            for sequence in 1..=3 {
                let request = echo_request(to.is_ipv6(), sequence);
                ping.try_send(&request).unwrap();
                let mut reply = [0; 128];
                let length = ping.recv(&mut reply).await.unwrap().bytes;
                assert_eq!((reply[0], reply[1], length), (reply_type, 0, request.len()), "{to}");
                assert_eq!(reply[6..length], request[6..], "sequence and payload of {to}");
            }
        }
    });
}

#[test]
fn a_ping_that_cannot_be_sent_says_why() {
    in_namespace(async || {
        sysctl("net.ipv4.ping_group_range", "1 0");
        for to in ["127.0.0.1", "::1"] {
            let error = plain().connect_ping(to.parse().unwrap()).unwrap_err();
            assert!(matches!(error, DialError::PingNotPermitted), "{error:?}");
        }
        sysctl("net.ipv4.ping_group_range", "0 2147483647");
        let error = plain().connect_ping("10.0.0.1".parse().unwrap()).unwrap_err();
        assert_eq!(error.flow_end(), FlowEnd::TargetUnreachable, "{error:?}");
    });
}

/// What the policy allows: everything, and `named` over the off-ramp `office`.
fn permits(named: &str, service: Service) -> impl Fn(IpAddr) -> Permit {
    let policy = format!(
        r#"{{ "version": 1, "rules": [
            {{ "id": "named", "action": "allow", "from": ["*"], "to": ["{named}"], "offramp": "office" }},
            {{ "id": "rest", "action": "allow", "from": ["*"], "to": ["*"] }} ] }}"#
    );
    let context = Context { offramps: ["direct", "office"].into(), ..Context::default() };
    let now = jiff::Timestamp::UNIX_EPOCH;
    let ruleset = Ruleset::compile(policy.as_bytes(), &context, Revision(1), now).unwrap();
    let identity = Identity {
        device: "laptop".into(),
        user: "ann".into(),
        groups: Vec::new().into(),
        network: "default".into(),
        posture: Default::default(),
    };
    move |destination| {
        let source = "100.96.0.2".parse().unwrap();
        let request = Request { identity: &identity, source, destination, service };
        match ruleset.evaluate(&request, now) {
            Verdict::Allow(permit) => permit,
            Verdict::Deny(denial) => panic!("{denial:?}"),
        }
    }
}

#[test]
fn a_permit_selects_and_opens() {
    in_namespace(async || {
        sysctl("net.ipv4.ping_group_range", "0 2147483647");
        add_link("eth0");
        ip("addr add 192.0.2.10/24 dev eth0");
        ip("addr add 198.51.100.1/24 dev eth0");
        let mut config = config(None);
        let source = vec!["192.0.2.10".parse().unwrap()];
        config.offramps = vec![offramp_config("direct"), OfframpConfig { source, ..offramp_config("office") }];
        let offramps = Offramps::new(&config).unwrap();
        let listener = TcpListener::bind("198.51.100.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        for (named, name, source) in
            [("198.51.100.1", "office", "192.0.2.10"), ("198.51.100.2", "direct", "198.51.100.1")]
        {
            let permit = permits(named, Service::Tcp(to.port()))(to.ip());
            let offramp = offramps.select(&permit, DEFAULT_NETWORK, to.ip(), &[]).unwrap();
            assert_eq!(&**offramp.name(), name);
            // The future stands alone: permit and off-ramp may be gone when it is polled.
            let dial = tokio::spawn(offramp.dial_tcp(&permit, to, &origin(to)));
            let Ok(Opening::Open(udp)) = offramp.open_udp(&permit, to) else { panic!("a socket") };
            let ping = offramp.open_ping(&permit, to.ip()).unwrap();
            drop(permit);
            let stream = dial.await.unwrap().unwrap();
            for local in [stream.tcp().local_addr(), udp.local_addr(), ping.local_addr()] {
                assert_eq!(local.unwrap().ip().to_string(), source, "{name}");
            }
            ping.try_send(&echo_request(false, 1)).unwrap();
            assert_eq!(ping.recv(&mut [0; 64]).await.unwrap().bytes, echo_request(false, 1).len());
        }
    });
}

#[test]
fn a_mark_is_set_on_any_socket() {
    in_namespace(async || {
        let socket = StdUdpSocket::bind("[::]:0").unwrap();
        set_mark(&socket, 51880).unwrap();
        assert_eq!(SockRef::from(&socket).mark().unwrap(), 51880);
    });
}
