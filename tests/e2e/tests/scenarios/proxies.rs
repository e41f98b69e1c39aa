//! Off-ramps through a proxy, and targets that are told whose connection it is.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_e2e::expect;
use portcullis_e2e::flow_log::FlowLine;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::leaks;
use portcullis_e2e::metrics::OPEN;
use portcullis_e2e::netns::Netns;
use portcullis_e2e::proxy::{Certificates, PASSWORD, Proxy, Speaks, USER};
use portcullis_e2e::setup::{OnRamp, Setup, policy_without, user};
use portcullis_e2e::stream::{MIB, Noise};
use portcullis_e2e::target::{TcpTarget, UdpTarget};
use portcullis_e2e::transfer::{Endless, download, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};
use tempfile::TempDir;

/// Where the proxies are.
const PROXY: &str = "10.20.0.11:1080";

/// The gateway's own address towards the targets, which they must not see.
const GATEWAY: [&str; 2] = ["10.20.0.1", "fd00:20::1"];

/// A gateway whose only way out, or the first before `next`, is a proxy.
struct Proxied {
    dir: TempDir,
    certificates: Option<Certificates>,
    speaks: Speaks,
}

impl Proxied {
    fn new(speaks: Speaks, tls: bool) -> Self {
        let dir = TempDir::with_prefix("portcullis-proxy-").expect("a temporary directory");
        let credentials = dir.path().join("proxy.txt");
        fs::write(&credentials, format!("{USER}:{PASSWORD}\n")).expect("a file");
        fs::set_permissions(credentials, fs::Permissions::from_mode(0o600)).expect("a file of ours");
        let certificates = tls.then(|| Certificates::make(dir.path()));
        Self { dir, certificates, speaks }
    }

    fn setup(&self, ramp: OnRamp, next: &str) -> Setup {
        let kind = match self.speaks {
            Speaks::Socks5 => "socks5",
            Speaks::HttpConnect => "http-connect",
        };
        let dir = self.dir.path().display();
        let tls = match self.certificates {
            None => String::new(),
            Some(_) => format!(
                "tls = {{ ca_file = \"{dir}/ca.pem\", certificate_file = \"{dir}/client.pem\", \
                 key_file = \"{dir}/client.key\", server_name = \"proxy.example.com\" }}\n"
            ),
        };
        Setup::new(ramp).limit("dial_timeout", "\"4s\"").tables(&format!(
            "[[offramp]]\nname = \"proxy\"\nkind = \"{kind}\"\naddress = \"{PROXY}\"\n\
             credentials_file = \"{dir}/proxy.txt\"\n{tls}\
             [[route]]\nto = \"0.0.0.0/0\"\nofframp = [\"proxy\"{next}]\n\
             [[route]]\nto = \"::/0\"\nofframp = [\"proxy\"{next}]\n"
        ))
    }

    fn serve(&self, netns: &Netns) -> Proxy {
        Proxy::serve(netns, PROXY.parse().expect("an address"), self.speaks, self.certificates.as_ref())
    }
}

/// The record of the one flow to `to`.
fn record(world: &World<'_>, to: SocketAddr) -> FlowLine {
    world.gateway.wait_for_flow("its record", |line| line.destination == to)
}

fn transfers(world: &World<'_>) {
    for family in FAMILIES {
        let host = Host::Open.address(family);
        let to = upload(world.client(), world.private(), host, 1, 4 * MIB + 1);
        let line = record(world, to);
        assert_eq!((line.ended.as_str(), line.offramp.as_deref()), ("client_closed", Some("proxy")), "{line:#?}");
        assert_eq!((line.bytes_up, line.bytes_down), (4 * MIB + 1, 32));
        let to = download(world.client(), world.private(), host, 2, 4 * MIB + 3);
        let line = record(world, to);
        assert_eq!((line.ended.as_str(), line.offramp.as_deref()), ("target_closed", Some("proxy")), "{line:#?}");
        assert_eq!((line.bytes_up, line.bytes_down), (0, 4 * MIB + 3));
        // Who speaks first is the target: what it says comes right behind the proxy's own answer.
        let greets = TcpTarget::serve(world.private(), host, |mut stream| {
            stream.write_all(b"220 hello\r\n").expect("the client reads");
            stream.peer_addr().expect("a client").ip().to_string()
        });
        let mut heard = String::new();
        let mut stream = world.client().connect(greets.address()).expect("the target accepts");
        stream.read_to_string(&mut heard).expect("the greeting and its end");
        assert_eq!(heard, "220 hello\r\n");
        assert!(!GATEWAY.contains(&greets.result().as_str()), "the proxy connects, not the gateway");
    }
}

fn socks5(ramp: OnRamp) {
    let proxied = Proxied::new(Speaks::Socks5, false);
    scenario(proxied.setup(ramp, ""), |world| {
        let proxy = proxied.serve(world.private());
        transfers(world);
        // Refused is what the client hears, and what is written down.
        let nobody = SocketAddr::new(Host::Open.address(Family::V4), 1);
        let refused = world.client().connect(nobody).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(record(world, nobody).ended, "target_refused");
        // Datagrams of every size, both families; the first ones wait for the association.
        for family in FAMILIES {
            let host = SocketAddr::new(Host::Open.address(family), 0);
            let echo = UdpTarget::serve(world.private(), host, <[u8]>::to_vec);
            let socket = world.client().udp(echo.address());
            let mut buffer = vec![0; 2_000];
            for len in [0, 1, 100, 1_000, 1_200] {
                let said = Noise::new(len).bytes(usize::try_from(len).expect("a small number"));
                socket.send(&said).expect("a way to the target");
                let len = wait::uninterrupted(|| socket.recv(&mut buffer)).expect("the echo");
                assert!(buffer.get(..len) == Some(&said[..]), "{family:?}: {} sent, {len} back", said.len());
            }
            assert!(echo.sources().iter().all(|source| !GATEWAY.contains(&source.ip().to_string().as_str())));
        }
        // The proxy carries no ping, and there is no other way.
        let out = world.client().ping(&["-c", "1", "-W", "2"], Host::Open.address(Family::V4));
        assert!(!out.status.success(), "{out:?}");
        let line = world.gateway.wait_for_flow("the ping", |line| line.protocol == "icmp");
        assert_eq!((line.ended.as_str(), line.offramp.as_deref()), ("target_unreachable", Some("proxy")), "{line:#?}");

        // What the policy takes away ends through a proxy too.
        let mut running = Endless::start(world.client(), world.private(), Host::Open.address(Family::V4));
        world.gateway.set_policy(&policy_without(Host::Open));
        wait::until_within(Duration::from_secs(2), "the cut", || running.over().then_some(()));
        assert_eq!(running.cut().kind(), ErrorKind::ConnectionReset);
        assert_eq!(record(world, running.address()).ended, "revoked");
        drop(proxy);
    });
}

#[test]
fn a_socks5_proxy_carries_tcp_and_udp_of_a_routed_host() {
    socks5(OnRamp::Tun);
}

#[test]
fn a_socks5_proxy_carries_tcp_and_udp_of_a_wireguard_device() {
    socks5(OnRamp::Wireguard);
}

#[test]
fn an_http_proxy_behind_tls_carries_tcp_and_the_next_offramp_the_rest() {
    let proxied = Proxied::new(Speaks::HttpConnect, true);
    scenario(proxied.setup(OnRamp::Tun, ", \"direct\""), |world| {
        let proxy = proxied.serve(world.private());
        transfers(world);
        let host = SocketAddr::new(Host::Open.address(Family::V4), 0);
        let echo = UdpTarget::serve(world.private(), host, <[u8]>::to_vec);
        let socket = world.client().udp(echo.address());
        socket.send(b"hello").expect("a way to the target");
        assert_eq!(wait::uninterrupted(|| socket.recv(&mut [0; 64])).expect("the echo"), 5);
        assert_eq!(echo.sources().first().map(|source| source.ip().to_string()).as_deref(), Some(GATEWAY[0]));
        let out = world.client().ping(&["-c", "1", "-W", "5"], host.ip());
        assert!(out.status.success(), "{out:?}");
        // A target that the proxy cannot reach is not a reason to try another way.
        let nobody = SocketAddr::new(host.ip(), 1);
        assert!(world.client().connect(nobody).is_err());
        let line = record(world, nobody);
        assert_eq!((line.ended.as_str(), line.offramp.as_deref()), ("target_unreachable", Some("proxy")), "{line:#?}");
        drop(proxy);
    });
}

#[test]
fn a_proxy_may_die_and_return() {
    let proxied = Proxied::new(Speaks::Socks5, true);
    scenario(proxied.setup(OnRamp::Tun, ""), |world| {
        let host = Host::Open.address(Family::V4);
        let down = |port: u16| {
            let to = SocketAddr::new(host, port);
            let error = world.client().connect(to).expect_err("the proxy is not there");
            assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            let line = record(world, to);
            assert_eq!((line.ended.as_str(), line.offramp.as_deref()), ("offramp_down", Some("proxy")), "{line:#?}");
        };
        down(7);
        for round in 0..2_u16 {
            let proxy = proxied.serve(world.private());
            let echo = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
            let socket = world.client().udp(echo.address());
            socket.send(b"hello").expect("a way to the target");
            assert_eq!(wait::uninterrupted(|| socket.recv(&mut [0; 64])).expect("the echo"), 5);
            let mut running = Endless::start(world.client(), world.private(), host);
            drop(proxy);
            wait::until("the cut", || running.over().then_some(()));
            // Without the end that TLS has, it is a cut, and seen as one.
            assert_eq!(running.cut().kind(), ErrorKind::ConnectionReset);
            // The association ends with the connection it belongs to.
            let line = record(world, echo.address());
            assert_eq!((line.ended.as_str(), line.bytes_up, line.bytes_down), ("offramp_down", 5, 5), "{line:#?}");
            down(8 + round);
        }
        let log = world.gateway.report();
        assert_eq!(log.matches("an off-ramp fails").count(), 3, "it is said once each time");
        assert_eq!(log.matches("an off-ramp works again").count(), 2);
    });
}

/// A proxy that says nothing costs the first flows a part of their time and those that follow nothing, and is taken again
/// when it speaks.
#[test]
fn a_silent_proxy_is_left_until_it_answers() {
    let proxied = Proxied::new(Speaks::Socks5, false);
    scenario(proxied.setup(OnRamp::Tun, ", \"direct\""), |world| {
        let way = || {
            let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), drop);
            let began = Instant::now();
            drop(world.client().connect(target.address()).expect("the target accepts"));
            let took = began.elapsed();
            (record(world, target.address()).offramp.expect("a way"), took)
        };
        assert!(world.gateway.verb(&["status"]).contains("off-ramp   proxy not probed\n"));
        let silent = world.private().run(|| TcpListener::bind(PROXY).expect("a free port"));
        for _ in 0..3 {
            let (over, took) = way();
            assert!(over == "direct" && took > Duration::from_secs(2), "{over} after {took:?}");
        }
        let (over, took) = way();
        assert!(over == "direct" && took < Duration::from_secs(1), "{over} after {took:?}");
        let status = world.gateway.verb(&["status"]);
        assert!(status.contains("off-ramp   proxy DOWN") && status.contains("does not answer"), "{status}");
        world.gateway.wait_for_metric("portcullis_offramp_up", Some(("offramp", "proxy")), 0.0);
        drop(silent);
        let proxy = proxied.serve(world.private());
        wait::until("a flow over the proxy", || (way().0 == "proxy").then_some(()));
        assert_eq!(way().0, "proxy");
        assert!(world.gateway.verb(&["status"]).contains("off-ramp   proxy up"));
        drop(proxy);
    });
}

/// A dial that was asked of a proxy in vain counts no more once the flow goes another way.
#[test]
fn associations_past_a_dead_proxy_are_no_dials() {
    let proxied = Proxied::new(Speaks::Socks5, false);
    let setup = proxied.setup(OnRamp::Tun, ", \"direct\"").limit("dials_per_device", "2");
    scenario(setup, |world| {
        let echo =
            UdpTarget::serve(world.private(), SocketAddr::new(Host::Open.address(Family::V4), 0), <[u8]>::to_vec);
        let sockets: Vec<_> = (0..6).map(|_| world.client().udp(echo.address())).collect();
        for socket in &sockets {
            socket.send(b"hello").expect("a way to the target");
            assert_eq!(wait::uninterrupted(|| socket.recv(&mut [0; 64])).expect("the echo"), 5);
        }
        world.gateway.wait_for_metric(OPEN, None, 6.0);
    });
}

/// What a target is told before the first byte of the client.
fn told(stream: &mut impl Read) -> Vec<u8> {
    let mut header = vec![0; 14];
    stream.read_exact(&mut header).expect("the start of a header");
    let mut len = [0; 2];
    stream.read_exact(&mut len).expect("its length");
    let mut rest = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut rest).expect("the rest of it");
    header.extend(len);
    header.extend(rest);
    header
}

/// Version 2 of the PROXY protocol: the command, the family, and what follows behind their length.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).expect("a short header").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &len, rest].concat()
}

/// Of a TCP connection: addresses, ports, and the names of the user and the device.
fn header_of(source: SocketAddr, destination: SocketAddr, user: &str, device: &str) -> Vec<u8> {
    let octets = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let name = |kind: u8, name: &str| [&[kind, 0, u8::try_from(name.len()).expect("short")], name.as_bytes()].concat();
    let mut rest = [octets(source), octets(destination)].concat();
    rest.extend([source.port().to_be_bytes(), destination.port().to_be_bytes()].concat());
    rest.extend([name(0xe0, user), name(0xe1, device)].concat());
    header(0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, &rest)
}

#[test]
fn a_target_that_wants_it_is_told_whose_connection_it_is() {
    // The probe of the off-ramp speaks for nobody.
    let tables = "[[offramp]]\nname = \"direct\"\nkind = \"direct\"\nproxy_protocol = \"v2\"\n\
                  health = { tcp = \"10.20.0.11:7777\", every = \"200ms\", down_after = 1, up_after = 1 }\n";
    scenario(Setup::new(OnRamp::Wireguard).tables(tables), |world| {
        let listener = world.private().run(|| std::net::TcpListener::bind("10.20.0.11:7777").expect("a port"));
        let (mut probe, _) = listener.accept().expect("a probe");
        assert_eq!(told(&mut probe), header(0x20, 0, &[]));
        for family in FAMILIES {
            let target = TcpTarget::serve(world.private(), Host::Open.address(family), |mut stream| {
                let told = told(&mut stream);
                let mut said = String::new();
                stream.read_to_string(&mut said).expect("what the client says");
                (told, said)
            });
            let mut stream = world.client().connect(target.address()).expect("the target accepts");
            let source = stream.local_addr().expect("an address");
            stream.write_all(b"hello").expect("the target reads");
            drop(stream);
            let header = header_of(source, target.address(), &user(0), &world.client().device);
            assert_eq!(target.result(), (header, "hello".to_owned()));
            // The header is not the client's: it is not counted.
            assert_eq!(expect::record(world, world.client(), target.address(), "client_closed").bytes_up, 5);
        }
    });
}

/// `far_end` makes the far end, and dropping what it makes is its death.
fn leaks_nothing<F: Send>(setup: Setup, far_end: impl Fn(&Netns) -> F + Sync) {
    let setup = setup.limit("flow_rate_per_user", "20000").limit("flow_rate_per_device", "20000");
    scenario(setup, |world| {
        let private = world.private();
        let first = far_end(private);
        let (failed, _second) = leaks::leaks_nothing(world, private, Host::Open, || {
            drop(first);
            std::thread::sleep(Duration::from_millis(300));
            far_end(private)
        });
        assert!(failed > 0, "it died under load");
    });
}

/// A network where connections are taken. Dropping it has them reset.
struct Alive(String);

impl Alive {
    fn new(netns: &Netns) -> Self {
        // The first time there is nothing to be taken away.
        let _ = nft(netns.name(), "delete table inet dead").status();
        Self(netns.name().to_owned())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let rule = "add table inet dead; add chain inet dead in { type filter hook input priority 0; }; \
                    add rule inet dead in tcp dport != 0 reject with tcp reset";
        // The namespace may be gone already.
        let _ = nft(&self.0, rule).status();
    }
}

fn nft(netns: &str, commands: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns, "nft", commands]).stderr(Stdio::null());
    command
}

#[test]
fn a_network_that_dies_and_returns_under_load_leaks_nothing() {
    leaks_nothing(Setup::new(OnRamp::Tun), Alive::new);
}

#[test]
fn a_network_that_dies_and_returns_leaks_nothing_of_packets_that_go_on_as_they_are() {
    leaks_nothing(Setup::new(OnRamp::Tun).keep(), Alive::new);
}

#[test]
fn a_socks5_proxy_that_dies_and_returns_under_load_leaks_nothing() {
    let proxied = Proxied::new(Speaks::Socks5, false);
    leaks_nothing(proxied.setup(OnRamp::Tun, ""), |netns| proxied.serve(netns));
}
