//! TCP through the gateway: bytes, ends, refusals, and many at once.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Host};
use portcullis_e2e::metrics::{BYTES, DIALS, OPEN, OPENED};
use portcullis_e2e::nft;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::stream::{MIB, Noise};
use portcullis_e2e::target::{TcpTarget, reset};
use portcullis_e2e::transfer::{download, upload};
use portcullis_e2e::world::{World, scenario};

/// Both directions, both families; each transfer is a half-close too: one side is done while the other still speaks.
fn bytes_and_half_closes(world: &mut World<'_>) {
    for family in FAMILIES {
        let host = Host::Open.address(family);
        let to = upload(world.client(), world.private(), host, 1, 8 * MIB + 1);
        let line = expect::record(world, world.client(), to, "client_closed");
        assert_eq!((line.bytes_up, line.bytes_down), (8 * MIB + 1, 32));
        assert_eq!((line.protocol.as_str(), line.rule.as_deref()), ("tcp", Some("open")));
        assert!(line.packets_up > 0 && line.packets_down > 0 && line.dial_ms.is_some());

        let to = download(world.client(), world.private(), host, 2, 8 * MIB + 3);
        let line = expect::record(world, world.client(), to, "target_closed");
        assert_eq!((line.bytes_up, line.bytes_down), (0, 8 * MIB + 3));
    }
    expect::ended(world, "client_closed", 2);
    expect::ended(world, "target_closed", 2);
    expect::verdicts(world, "allow", 4);
    let metrics = world.gateway.metrics();
    assert_eq!(metrics.sum(OPENED, None), 4.0);
    assert_eq!(metrics.sum(OPEN, None), 0.0);
    assert_eq!(metrics.sum(DIALS, None), 4.0);
    assert_eq!(metrics.sum(BYTES, Some(("direction", "up"))), (2 * (8 * MIB + 1)) as f64);
    assert_eq!(metrics.sum(BYTES, Some(("direction", "down"))), (2 * (8 * MIB + 3) + 64) as f64);
}
on_both_ramps!(bytes_arrive_and_half_closes_hold, bytes_and_half_closes);

/// The target closes its direction first and still gets everything the client has to say.
fn target_half_close(world: &mut World<'_>) {
    let target = TcpTarget::serve(world.private(), Host::Open.addresses()[0], |mut stream| {
        stream.write_all(b"that is all").expect("the client reads");
        stream.shutdown(Shutdown::Write).expect("half of the connection is closed");
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).map(|_| heard)
    });
    let mut stream = world.client().connect(target.address()).expect("the target accepts");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("the target's end");
    assert_eq!(heard, b"that is all");
    let said = Noise::new(4).bytes(300_000);
    stream.write_all(&said).expect("the other direction is open");
    drop(stream);
    assert_eq!(target.result().expect("the client's end"), said);
    let line = expect::record(world, world.client(), target.address(), "target_closed");
    assert_eq!((line.bytes_up, line.bytes_down), (300_000, 11));
}
on_both_ramps!(a_target_may_close_first, target_half_close);

/// A reset travels through as a reset, in both directions.
fn resets(world: &mut World<'_>) {
    for family in FAMILIES {
        let host = Host::Open.address(family);
        let target = TcpTarget::serve(world.private(), host, |mut stream| {
            let mut heard = [0; 5];
            stream.read_exact(&mut heard).expect("the client speaks first");
            stream.read(&mut heard).map_err(|error| error.kind())
        });
        let mut stream = world.client().connect(target.address()).expect("the target accepts");
        stream.write_all(b"hello").expect("the flow is open");
        // The target has it, so the flow is open on both sides, before the reset.
        expect_open(world, 1.0);
        reset(stream);
        assert_eq!(target.result(), Err(ErrorKind::ConnectionReset));
        expect::record(world, world.client(), target.address(), "client_reset");

        let target = TcpTarget::serve(world.private(), host, |mut stream| {
            let mut heard = [0; 5];
            stream.read_exact(&mut heard).expect("the client speaks first");
            reset(stream);
        });
        let mut stream = world.client().connect(target.address()).expect("the target accepts");
        stream.write_all(b"hello").expect("the flow is open");
        let seen = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(seen, Err(ErrorKind::ConnectionReset));
        expect::record(world, world.client(), target.address(), "target_reset");
    }
    expect::ended(world, "client_reset", 2);
    expect::ended(world, "target_reset", 2);
}
on_both_ramps!(a_reset_stays_a_reset, resets);

/// Longer than the retransmission timer of a SYN-ACK.
const OPENING: Duration = Duration::from_secs(2);

/// A packet that a target caused is lost while nothing else happens: the gateway's timer alone brings it again.
fn lost_in_silence(world: &mut World<'_>) {
    let (speak, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let target = TcpTarget::serve(world.private(), Host::Open.addresses()[0], move |mut stream| {
        wait.lock().expect("one connection").recv().expect("the test says when");
        stream.write_all(b"good morning").expect("the flow is open");
        stream.read_to_end(&mut Vec::new())
    });
    let mut stream = world.client().connect(target.address()).expect("the target accepts");
    expect_open(world, 1.0);
    let (arriving, first) = ("ip saddr 10.20.0.0/24 tcp flags & psh != 0", "numgen inc mod 1000000000 < 1");
    nft::drop_arriving(world.client().netns, "silence", &format!("{arriving} {first} counter"));
    // Until the timers of the opening have passed: nothing tells, and none of them may wake the gateway later.
    std::thread::sleep(OPENING);
    speak.send(()).expect("the target waits");
    let mut heard = [0; 12];
    stream.read_exact(&mut heard).expect("it arrives");
    assert_eq!(&heard, b"good morning");
    drop(stream);
    target.result().expect("the client's end");
    expect::record(world, world.client(), target.address(), "client_closed");
    let dropped = world.client().netns.output("nft", &["list", "table", "inet", "silence"]);
    assert!(dropped.contains("packets 1 "), "one packet was lost: {dropped}");
}

#[test]
fn what_is_lost_in_silence_comes_again() {
    scenario(Setup::new(OnRamp::Tun), lost_in_silence);
}

fn expect_open(world: &World<'_>, flows: f64) {
    world.gateway.wait_for_metric(OPEN, None, flows);
}

/// A closed port is refused, an address nobody has is unreachable, and neither ever looks open.
fn refused_and_unreachable(world: &mut World<'_>) {
    for (family, name) in FAMILIES.into_iter().zip(["v4", "v6"]) {
        for (host, end) in [(Host::Open, "target_refused"), (Host::Nobody, "target_unreachable")] {
            let to = SocketAddr::new(host.address(family), 9);
            let syn_acks = expect::syn_acks(world.client(), &format!("{end}{name}"), to.ip());
            let error = world.client().connect(to).expect_err("nobody listens");
            if host == Host::Open {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            } else {
                assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            }
            assert_eq!(syn_acks.packets(), 0);
            let line = expect::record(world, world.client(), to, end);
            assert_eq!((line.rule.as_deref(), line.bytes_up, line.bytes_down), (Some("open"), 0, 0));
        }
    }
    expect::ended(world, "target_refused", 2);
    expect::ended(world, "target_unreachable", 2);
    expect::verdicts(world, "allow", 4);
}
on_both_ramps!(a_closed_port_is_refused, refused_and_unreachable);

/// A target that swallows everything: the flow ends after the dial timeout and never looks open.
fn black_hole(world: &mut World<'_>) {
    for (family, name) in FAMILIES.into_iter().zip(["v4", "v6"]) {
        let to = SocketAddr::new(Host::Hole.address(family), 80);
        let word = if to.is_ipv4() { "ip" } else { "ip6" };
        nft::drop_arriving(world.private(), &format!("hole{name}"), &format!("{word} daddr {} tcp dport 80", to.ip()));
        let syn_acks = expect::syn_acks(world.client(), name, to.ip());
        let (send, done) = channel();
        std::thread::scope(|scope| {
            let world = &*world;
            scope.spawn(move || send.send(world.client().connect(to).is_ok()));
            let line = expect::record(world, world.client(), to, "dial_timeout");
            assert!(line.duration_ms >= 2_000.0, "{line:#?}");
            assert_eq!(line.rule.as_deref(), Some("open"));
            // The client hears of it then, or keeps knocking; what it does not get is a connection.
            world.client().netns.ip(&format!("route add unreachable {}", to.ip()));
            assert!(!done.recv().expect("the connecting thread reports"));
        });
        assert_eq!(syn_acks.packets(), 0);
    }
}
on_both_ramps!(
    a_black_hole_ends_after_the_dial_timeout,
    setup = |setup| setup.limit("dial_timeout", "\"2s\""),
    black_hole
);

/// A thousand flows at once, each with bytes of its own.
fn thousand(world: &mut World<'_>) {
    const FLOWS: usize = 1_000;
    const LEN: usize = 4_096;
    let target = TcpTarget::serve(world.private(), Host::Open.addresses()[0], |mut stream| {
        let mut heard = vec![0; LEN];
        stream.read_exact(&mut heard)?;
        stream.write_all(&heard)?;
        stream.read(&mut heard)
    });
    let to = target.address();
    let mut streams: Vec<_> = (0..FLOWS).map(|_| world.client().connect(to).expect("the target accepts")).collect();
    expect_open(world, FLOWS as f64);
    for (seed, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&Noise::new(seed as u64).bytes(LEN)).expect("the flow is open");
    }
    for (seed, stream) in streams.iter_mut().enumerate() {
        let mut heard = vec![0; LEN];
        stream.read_exact(&mut heard).expect("the echo");
        assert_eq!(heard, Noise::new(seed as u64).bytes(LEN), "flow {seed} got another's bytes");
    }
    drop(streams);
    for _ in 0..FLOWS {
        assert_eq!(target.result().expect("the client closes in order"), 0);
    }
    let lines = expect::records(world, world.client(), to, FLOWS, "client_closed");
    assert_eq!(lines.len(), FLOWS);
    assert!(lines.iter().all(|line| (line.bytes_up, line.bytes_down) == (LEN as u64, LEN as u64)));
    let mut sources: Vec<_> = lines.iter().map(|line| line.source).collect();
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(sources.len(), FLOWS);
    expect_open(world, 0.0);
    expect::ended(world, "client_closed", 1_000);
}
on_both_ramps!(a_thousand_flows_at_once, setup = Setup::alone, thousand);
