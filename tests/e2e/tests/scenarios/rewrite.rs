//! A rule sends flows to another target; the client sees the address that it asked for.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use portcullis_e2e::lab::{Family, Host};
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::target::{TcpTarget, UdpTarget};
use portcullis_e2e::wait;
use portcullis_e2e::world::World;
use serde_json::{Value, json};

/// Everything to `OpenToo` goes to `to`.
fn policy(to: &str) -> Value {
    let asked = Host::OpenToo.address(Family::V4);
    json!({ "version": 1, "rules": [
        { "id": "moved", "action": "allow", "from": ["*"], "to": [asked], "rewrite": to } ] })
}

fn rewritten(world: &mut World<'_>) {
    let client = world.client();
    let (asked, host) = (Host::OpenToo.address(Family::V4), Host::Open.address(Family::V4));
    let echo = TcpTarget::serve(world.private(), host, |mut stream| {
        let mut buffer = [0; 5];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&buffer).expect("the client reads");
        }
    });
    let quiet = TcpTarget::serve(world.private(), asked, |_| {});

    // Address and port, over TCP.
    world.gateway.set_policy(&policy(&echo.address().to_string()));
    let to = SocketAddr::new(asked, 80);
    let mut stream = client.connect(to).expect("the other target accepts");
    assert_eq!(stream.peer_addr().expect("connected"), to);
    let talk = |stream: &mut std::net::TcpStream| {
        let mut heard = [0; 5];
        stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut heard)).map(|()| heard)
    };
    assert_eq!(talk(&mut stream).expect("the echo"), *b"hello");
    let line =
        |what: &str, destination: SocketAddr| world.gateway.wait_for_flow(what, |l| l.destination == destination);
    drop(stream);
    let record = line("the flow", to);
    assert_eq!((record.target, record.ended.as_str()), (Some(echo.address()), "client_closed"), "{record:#?}");

    // A live flow ends when its rule sends it elsewhere, and goes on when it does not.
    let to = SocketAddr::new(asked, 81);
    let mut stream = client.connect(to).expect("the other target accepts");
    world.gateway.set_policy(&policy(&echo.address().to_string()));
    assert_eq!(talk(&mut stream).expect("the echo"), *b"hello");
    world.gateway.set_policy(&policy(&format!("{host}:1")));
    assert_eq!(talk(&mut stream).expect_err("it led elsewhere").kind(), ErrorKind::ConnectionReset);
    assert_eq!(line("the end", to).ended, "revoked");

    // The address alone keeps the port: UDP, answered from where the client sent to, and ping.
    world.gateway.set_policy(&policy(&host.to_string()));
    let udp = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
    let to = SocketAddr::new(asked, udp.address().port());
    let socket = client.udp(to);
    socket.send(b"hello").expect("a way to the target");
    assert_eq!(wait::uninterrupted(|| socket.recv(&mut [0; 64])).expect("the echo"), 5);
    let out = client.ping(&["-c", "1", "-W", "5"], asked);
    assert!(out.status.success(), "{out:?}");
    let live: Value = serde_json::from_str(&world.gateway.verb(&["flows", "--json"])).expect("JSON");
    let targets: Vec<&str> = live
        .get("flows")
        .and_then(Value::as_array)
        .expect("a list")
        .iter()
        .filter_map(|flow| flow.get("target")?.as_str())
        .collect();
    let (udp, ping) = (udp.address().to_string(), format!("{host}:0"));
    assert!(targets.contains(&udp.as_str()) && targets.contains(&ping.as_str()), "{targets:?}");

    // What no policy can open it cannot open in this way either.
    for never in ["127.0.0.1", "169.254.169.254", "10.20.0.1"] {
        world.gateway.set_policy(&policy(never));
        let to = SocketAddr::new(asked, 82);
        assert_eq!(client.connect(to).expect_err(never).kind(), ErrorKind::ConnectionRefused);
        let why = world.gateway.verb(&["policy", "explain", "--device", &client.device, "--to", &format!("{to}/tcp")]);
        assert!(why.starts_with("deny: ") && why.contains(&format!("the rule sends it to {never}")), "{why}");
    }
    assert!(quiet.quiet(), "nothing came to the address that was asked for");
}
on_both_ramps!(a_rule_sends_flows_to_another_target, rewritten);
on_both_ramps!(a_rule_sends_packets_on_to_another_target, setup = |setup| setup.keep(), rewritten);
