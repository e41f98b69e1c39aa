//! Policy and directory change while traffic flows.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::{policy_without, usual_policy};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::target::{TcpTarget, UdpTarget};
use portcullis_e2e::tools::said;
use portcullis_e2e::transfer::Endless;
use portcullis_e2e::wait;
use portcullis_e2e::world::World;

const REVISION: &str = "portcullis_policy_revision";

/// Two hundred reloads of alternating policies during a transfer lose no byte and no flow.
fn reload_under_load(world: &mut World<'_>) {
    const RELOADS: u32 = 200;
    let host = Host::Open.address(Family::V4);
    let before = world.gateway.metrics().sum(REVISION, None);
    let running = Endless::start(world.client(), world.private(), host);
    // Something to say now and then, upwards, over one connection as old as the transfer.
    let echo = TcpTarget::serve(world.private(), host, |mut stream| {
        let mut buffer = [0; 8];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&buffer).expect("the client reads");
        }
    });
    let mut talk = world.client().connect(echo.address()).expect("the target accepts");
    for round in 0..RELOADS {
        let policy = if round % 2 == 0 { policy_without(Host::OpenToo) } else { usual_policy() };
        world.gateway.set_policy(&policy);
        let said = u64::from(round).to_be_bytes();
        talk.write_all(&said).expect("the flow is open");
        let mut heard = [0; 8];
        talk.read_exact(&mut heard).expect("the echo");
        assert_eq!(heard, said);
    }
    assert!(running.received() > MIB, "the transfer went on");
    let after = world.gateway.metrics().sum(REVISION, None);
    assert!(after >= before + f64::from(RELOADS), "revision {before} became {after}");
    drop(talk);
    expect::record(world, world.client(), echo.address(), "client_closed");
    let (to, len) = (running.address(), running.finish());
    let line = expect::record(world, world.client(), to, "target_closed");
    assert_eq!(line.bytes_down, len);
}
on_both_ramps!(two_hundred_reloads_lose_no_byte, reload_under_load);

/// A broken policy says where it is broken, and the one in force stays, by reload and by signal.
fn broken(world: &mut World<'_>) {
    let running = Endless::start(world.client(), world.private(), Host::Open.address(Family::V4));
    let before = world.gateway.metrics().sum(REVISION, None);
    let wrong = "{\n  \"version\": 1,\n  \"rules\": [\n    { \"id\": \"open\", \"action\": \"alow\", \"from\": [\"*\"], \"to\": [\"*\"] }\n  ]\n}\n";
    world.gateway.write_policy_text(wrong);
    let place = format!("{}:4:", world.gateway.policy_path().display());
    for verb in [&["reload"][..], &["check"]] {
        let out = world.gateway.try_verb(verb);
        assert_eq!(out.status.code(), Some(78), "{verb:?}: {}", said(&out));
        assert!(said(&out).contains(&place) || said(&out).contains("policy.json:4:"), "{verb:?}: {}", said(&out));
        assert!(said(&out).contains("rules[0].action"), "{verb:?}: {}", said(&out));
    }
    world.gateway.wait_for_metric("portcullis_reload_failures_total", None, 1.0);
    world.gateway.process().signal(Signal::SIGHUP);
    world.gateway.wait_for_metric("portcullis_reload_failures_total", None, 2.0);
    assert_eq!(world.gateway.metrics().sum(REVISION, None), before);
    let received = running.received();
    wait::until("the download to go on", || (running.received() > received + MIB).then_some(()));
    let to = running.address();
    running.finish();
    expect::record(world, world.client(), to, "target_closed");
    // New flows are judged by the old policy: both what it allows and what it denies.
    let refused = world.client().connect(SocketAddr::new(Host::Shut.address(Family::V4), 80));
    assert_eq!(refused.expect_err("denied").kind(), ErrorKind::ConnectionRefused);
    let line = world.gateway.wait_for_flow("denied", |line| line.ended == "denied");
    assert_eq!(line.rule.as_deref(), Some("shut"));

    // A good one again, by signal.
    world.gateway.write_policy(&usual_policy());
    world.gateway.process().signal(Signal::SIGHUP);
    wait::until("the next revision", || (world.gateway.metrics().sum(REVISION, None) > before).then_some(()));
}
on_both_ramps!(a_broken_policy_changes_nothing, broken);

/// An edit that takes access away ends what runs within a second, named after the rule that did it.
fn revoked(world: &mut World<'_>) {
    let client = world.client();
    for family in FAMILIES {
        world.gateway.set_policy(&usual_policy());
        let host = Host::Open.address(family);
        let mut running = Endless::start(client, world.private(), host);
        let echo = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
        let socket = client.udp(echo.address());
        socket.send(b"hello").expect("a way to the target");
        assert_eq!(wait::uninterrupted(|| socket.recv(&mut [0; 64])).expect("the echo"), 5);
        echo.sources();

        world.gateway.set_policy(&policy_without(Host::Open));
        let in_force = Instant::now();
        let arrivals = expect::arrivals(world, &format!("revoked{family:?}"), host);
        wait::until_within(Duration::from_secs(1), "the cut", || running.over().then_some(()));
        assert!(in_force.elapsed() < Duration::from_secs(1));
        assert_eq!(running.cut().kind(), ErrorKind::ConnectionReset);
        for to in [running.address(), echo.address()] {
            let line = expect::record(world, client, to, "revoked");
            assert_eq!(line.rule.as_deref(), Some("no-more"), "{line:#?}");
        }
        let late = arrivals.packets();
        socket.send(b"still there?").expect("the datagram leaves");
        assert!(wait::uninterrupted(|| socket.recv(&mut [0; 64])).is_err(), "answered as prohibited");
        assert_eq!(echo.sources(), []);
        // At most the end of the flows itself, and answers to what the target still had on the way.
        assert!(arrivals.packets() <= late + 2, "{late} packets became {}", arrivals.packets());
    }
    expect::ended(world, "revoked", 4);
}
on_both_ramps!(access_taken_away_cuts_what_runs, revoked);

/// A device that is revoked, on either on-ramp, loses its flows and gets no new ones.
fn device_revoked(world: &mut World<'_>) {
    let client = world.client();
    let running = Endless::start(client, world.private(), Host::Open.address(Family::V4));
    world.gateway.verb(&["device", "revoke", &client.device]);
    world.gateway.reload();
    expect::record(world, client, running.address(), "device_gone");
    let to = SocketAddr::new(Host::OpenToo.address(Family::V4), 9);
    let arrivals = expect::arrivals(world, "after", to.ip());
    let socket = client.udp(to);
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    for _ in 0..3 {
        let _ = socket.send(b"let me in");
        assert!(wait::uninterrupted(|| socket.recv(&mut [0; 64])).is_err());
    }
    assert_eq!(arrivals.packets(), 0);
    expect::ended(world, "device_gone", 1);
}
on_both_ramps!(a_revoked_device_loses_its_flows, device_revoked);
