//! What must not pass: denied flows and foreign source addresses.

#![expect(clippy::indexing_slicing, reason = "test code, where a panic is the answer")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::metrics::OPENED;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::{OnRamp, Setup, user, usual_policy};
use portcullis_e2e::tools::said;
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};

/// A denied flow is answered at once, costs the destination not one packet, and is one record.
fn denied(world: &mut World<'_>) {
    let client = world.client();
    for (family, name) in FAMILIES.into_iter().zip(["v4", "v6"]) {
        let host = Host::Shut.address(family);
        let arrivals = expect::arrivals(world, name, host);
        let syn_acks = expect::syn_acks(client, name, host);

        let tcp = SocketAddr::new(host, 443);
        let error = client.connect(tcp).expect_err("denied");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let line = expect::record(world, client, tcp, "denied");
        assert_eq!((line.protocol.as_str(), line.rule.as_deref()), ("tcp", Some("shut")));
        assert_eq!((line.dial_ms, line.bytes_up, line.bytes_down), (None, 0, 0));

        let udp = SocketAddr::new(host, 53);
        let socket = client.udp(udp);
        socket.send(b"anybody there?").expect("the first datagram leaves");
        let error = wait::uninterrupted(|| socket.recv(&mut [0; 64])).expect_err("prohibited");
        let prohibited = if family == Family::V4 { ErrorKind::HostUnreachable } else { ErrorKind::PermissionDenied };
        assert_eq!(error.kind(), prohibited);
        let line = expect::record(world, client, udp, "denied");
        assert_eq!((line.protocol.as_str(), line.rule.as_deref()), ("udp", Some("shut")));

        assert_eq!((arrivals.packets(), syn_acks.packets()), (0, 0));
    }
    expect::ended(world, "denied", 4);
    expect::verdicts(world, "deny", 4);
    // Whoever asks why is told, and a misspelt name does not look like one that was refused nothing.
    let listed = world.gateway.verb(&["flows", "--denied", "--user", &user(client.index)]);
    let tcp = |line: &str| line.contains(" tcp/443 ") && line.contains(" shut ") && line.ends_with("denied");
    assert_eq!(listed.lines().filter(|line| tcp(line)).count(), 2, "{listed}");
    for verb in [&["flows", "--denied"][..], &["flows"]] {
        let nobody = world.gateway.try_verb(&[verb, &["--user", "nobody@example.com"]].concat());
        assert_eq!(nobody.status.code(), Some(1), "{}", said(&nobody));
        assert!(said(&nobody).contains("there is no user `nobody@example.com`"), "{}", said(&nobody));
    }
}
on_both_ramps!(a_denied_flow_costs_the_target_nothing, denied);

/// No rule matches: deny, and no rule is named.
fn no_rule(world: &mut World<'_>) {
    let mut policy = usual_policy();
    policy["rules"] = serde_json::json!([]);
    world.gateway.set_policy(&policy);
    let to = SocketAddr::new(Host::Open.address(Family::V4), 80);
    let arrivals = expect::arrivals(world, "open", to.ip());
    assert_eq!(world.client().connect(to).expect_err("denied").kind(), ErrorKind::ConnectionRefused);
    assert_eq!(expect::record(world, world.client(), to, "denied").rule, None);
    assert_eq!(arrivals.packets(), 0);
}
on_both_ramps!(no_rule_means_deny, no_rule);

/// A silent deny gives no answer at all.
fn silent(world: &mut World<'_>) {
    let mut policy = usual_policy();
    policy["rules"][0]["silent"] = true.into();
    world.gateway.set_policy(&policy);
    let to = SocketAddr::new(Host::Shut.address(Family::V4), 53);
    let arrivals = expect::arrivals(world, "shut", to.ip());
    let socket = world.client().udp(to);
    socket.send(b"anybody there?").expect("the first datagram leaves");
    expect::record(world, world.client(), to, "denied");
    expect::dropped(world, "denied_silently", 1);
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let error = wait::uninterrupted(|| socket.recv(&mut [0; 64])).expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(arrivals.packets(), 0);
}
on_both_ramps!(a_silent_deny_is_silence, silent);

/// The gateway's own addresses are never destinations, whatever the policy says. (A routed host's packets for them
/// never enter the TUN: the kernel takes them itself.)
#[test]
fn own_addresses_are_never_destinations() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let mut policy = usual_policy();
        policy["rules"] = serde_json::json!([{ "id": "all", "action": "allow", "from": ["*"], "to": ["*"] }]);
        world.gateway.set_policy(&policy);
        for own in ["10.20.0.1", "fd00:20::1"] {
            let own: IpAddr = own.parse().expect("an address");
            let listener = world.lab.gateway.run(|| TcpListener::bind((own, 0))).expect("a listener");
            let to = listener.local_addr().expect("bound");
            world.client().connect(to).expect_err("never a destination");
            listener.set_nonblocking(true).expect("a non-blocking listener");
            assert_eq!(listener.accept().expect_err("nobody came").kind(), ErrorKind::WouldBlock);
        }
    });
}

/// Packets with a source that is not the device's own are dropped and counted, and make no flow.
fn spoofed(world: &mut World<'_>) {
    const PACKETS: u32 = 20;
    world.lab.gateway.sysctl("net.ipv4.conf.all.rp_filter", "0");
    let client = world.client();
    let (interface, foreign, reason) = match &client.wg {
        Some(wg) => (wg.interface(), ["100.96.0.200", "fd00:96::200"], "spoofed_source"),
        None => ("uplink", ["192.168.99.5", "fd00:99::5"], "unknown_device"),
    };
    for (index, (family, source)) in FAMILIES.into_iter().zip(foreign).enumerate() {
        let to = SocketAddr::new(Host::Open.address(family), 53);
        let arrivals = expect::arrivals(world, &format!("spoofed{index}"), to.ip());
        let nodad = if family == Family::V6 { " nodad" } else { "" };
        client.netns.ip(&format!("addr add {source} dev {interface}{nodad}"));
        let socket =
            client.netns.run(|| UdpSocket::bind(format!("{}:0", bracketed(source)))).expect("a foreign address");
        for _ in 0..PACKETS {
            socket.send_to(b"it was not me", to).expect("the datagram leaves");
        }
        expect::dropped(world, reason, PACKETS * (u32::try_from(index).expect("two families") + 1));
        assert_eq!(arrivals.packets(), 0);
    }
    assert!(world.gateway.flow_log().is_empty(), "no flow is recorded");
    assert_eq!(world.gateway.metrics().sum(OPENED, None), 0.0);
    expect::verdicts(world, "allow", 0);
    expect::verdicts(world, "deny", 0);
}
on_both_ramps!(a_foreign_source_is_dropped, spoofed);

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}
