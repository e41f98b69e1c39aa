//! Start, stop, crash, drain.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::signal::Signal;
use portcullis_e2e::child::Process;
use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::metrics;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::stream::{self, MIB};
use portcullis_e2e::target::TcpTarget;
use portcullis_e2e::tools::said;
use portcullis_e2e::transfer::{download, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};

/// More than a stop may take without anything to drain.
const PROMPT: Duration = Duration::from_secs(10);

/// Traffic meant for the TUN meets a refusal, and none of it gets around.
fn closed(world: &World<'_>, name: &str) {
    for family in FAMILIES {
        let to = SocketAddr::new(Host::Open.address(family), 80);
        let arrivals = expect::arrivals(world, &format!("{name}{family:?}"), to.ip());
        let error = world.client().connect(to).expect_err("nothing gets around a dead gateway");
        let kinds = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        assert!(kinds.contains(&error.kind()), "refused at once, not {error}");
        let out = world.client().ping(&["-n", "-c", "1", "-W", "2"], to.ip());
        assert!(!out.status.success(), "{}", said(&out));
        assert_eq!(arrivals.packets(), 0);
    }
}

/// While the gateway is dead its routes refuse; the next start cleans up; a clean stop leaves nothing.
#[test]
fn a_crash_fails_closed_and_a_clean_stop_leaves_nothing() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let main =
            || world.lab.gateway.ip("-4 route show table main") + &world.lab.gateway.ip("-6 route show table main");
        let host = Host::Open.address(Family::V4);
        let to = upload(world.client(), world.private(), host, 1, MIB);
        expect::record(world, world.client(), to, "client_closed");
        let running = world.lab.gateway.routing();
        let main_before = main();
        assert_ne!(running, world.pristine, "the TUN needs routes");

        for round in 0..2 {
            world.gateway.kill9();
            closed(world, &format!("dead{round}"));
            world.gateway.start();
            assert_eq!(world.lab.gateway.routing(), running, "a restart leaves what a start does, no more");
            assert_eq!(main(), main_before, "the main table is not ours");
            download(world.client(), world.private(), host, 2, MIB);
        }

        assert_eq!(world.gateway.stop(PROMPT).code(), Some(0));
        assert_eq!(world.lab.gateway.routing(), world.pristine);
        let links = world.lab.gateway.ip("link show");
        assert!(!links.contains("portcullis0"), "{links}");
        assert!(!world.gateway.control().exists(), "the control socket goes with the gateway");
    });
}

/// Only what is forwarded is steered: the gateway host's own connections with a network of `routes` go on, begun there or
/// here, also while a strict reverse path filter is on. So do those of clients.
#[test]
fn the_gateway_host_keeps_its_own_connections() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let gateway = &world.lab.gateway;
        gateway.sysctl("net.ipv4.conf.all.rp_filter", "1");
        for family in FAMILIES {
            let own: IpAddr =
                if family == Family::V4 { [10, 20, 0, 1].into() } else { "fd00:20::1".parse().expect("one") };
            let host = Host::Open.address(family);
            for (from, to, at) in [(gateway, world.private(), host), (world.private(), gateway, own)] {
                let target =
                    TcpTarget::serve(to, at, |mut stream| stream.write_all(b"!").expect("the other end reads"));
                let address = target.address();
                let stream =
                    from.run(|| TcpStream::connect_timeout(&address, PROMPT)).expect("the host's own connection");
                stream.set_read_timeout(Some(PROMPT)).expect("a timeout");
                (&stream).read_exact(&mut [0]).expect("an answer");
                target.result();
            }
            let to = upload(world.client(), world.private(), host, 1, MIB);
            expect::record(world, world.client(), to, "client_closed");
        }
        let opened = world.gateway.metrics().sum(metrics::OPENED, None);
        assert!((opened - 2.0).abs() < 0.5, "the gateway saw the client's flows and no other: {opened}");
    });
}

/// With `on_stop = "block"` the refusal outlives a clean stop too.
#[test]
fn a_backstop_stays_when_asked_for() {
    scenario(Setup::new(OnRamp::Tun).block_on_stop(), |world| {
        assert_eq!(world.gateway.stop(PROMPT).code(), Some(0));
        closed(world, "stopped");
        world.gateway.start();
        let to = upload(world.client(), world.private(), Host::Open.address(Family::V6), 1, MIB);
        expect::record(world, world.client(), to, "client_closed");
    });
}

/// On SIGTERM nothing new opens, what is open may finish, and the exit is 0.
fn drain_finishes(world: &mut World<'_>) {
    const LEN: u64 = 4 * MIB;
    let host = Host::Open.address(Family::V4);
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let target = TcpTarget::serve(world.private(), host, move |mut stream| {
        let mut first = true;
        let mut left = LEN;
        let sum = stream::send_while(&mut stream, 1, |chunk| {
            if !first && left == LEN - chunk {
                wait.lock().expect("one connection").recv().expect("the test says when");
            }
            first = false;
            let now = left.min(chunk);
            left -= now;
            now
        })?;
        stream.shutdown(Shutdown::Write)?;
        stream::receive(&stream)?;
        Ok::<_, std::io::Error>(sum)
    });
    let stream = world.client().connect(target.address()).expect("the target accepts");
    stream.peek(&mut [0]).expect("the download starts");
    world.gateway.process().signal(Signal::SIGTERM);
    wait::until("the gateway to say it is not ready", || {
        metrics::get(&world.lab.gateway, "/readyz").filter(|(status, _)| *status != 200)
    });
    let late = TcpTarget::serve(world.private(), Host::OpenToo.address(Family::V4), |_| ());
    let arrivals = expect::arrivals(world, "late", late.address().ip());
    let to = late.address();
    let attempt = world.client().netns.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(1_500)));
    attempt.expect_err("nothing new opens");
    assert_eq!(arrivals.packets(), 0);
    go.send(()).expect("the target waits");
    let got = stream::receive(&stream).expect("the download ends in order");
    drop(stream);
    assert_eq!(got, target.result().expect("everything is sent"));
    assert_eq!(world.gateway.wait(wait::PATIENCE).code(), Some(0));
    let line = expect::record(world, world.client(), target.address(), "target_closed");
    assert_eq!(line.bytes_down, LEN);
}
on_both_ramps!(a_drain_lets_open_flows_finish, setup = |setup| setup.drain("60s"), drain_finishes);

/// A connection that both sides hold open and silent.
fn held_open(world: &World<'_>) -> (TcpTarget<ErrorKind>, TcpStream) {
    let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), |mut stream| {
        stream.write_all(b"!").expect("the client reads");
        stream.read_exact(&mut [0]).expect_err("nobody speaks").kind()
    });
    let mut stream = world.client().connect(target.address()).expect("the target accepts");
    stream.read_exact(&mut [0]).expect("the flow is open");
    (target, stream)
}

/// What does not finish in time is reset, recorded as drained, and the exit is still 0.
fn drain_ends(world: &mut World<'_>) {
    let (target, mut stream) = held_open(world);
    assert_eq!(world.gateway.stop(wait::PATIENCE).code(), Some(0));
    assert_eq!(stream.read(&mut [0]).expect_err("reset, not closed").kind(), ErrorKind::ConnectionReset);
    assert_eq!(target.result(), ErrorKind::ConnectionReset, "a cut is seen as a cut on both sides");
    expect::record(world, world.client(), target.address(), "drained");
    assert_eq!(world.lab.gateway.routing(), world.pristine);
}
on_both_ramps!(a_drain_ends_what_does_not_finish, setup = |setup| setup.drain("1s"), drain_ends);

/// A second signal does not wait for the rest of the drain.
fn second_signal(world: &mut World<'_>) {
    let (target, _stream) = held_open(world);
    world.gateway.process().signal(Signal::SIGTERM);
    wait::until("the gateway to say it is not ready", || {
        metrics::get(&world.lab.gateway, "/readyz").filter(|(status, _)| *status != 200)
    });
    assert!(world.gateway.process().ended().is_none(), "it drains");
    world.gateway.process().signal(Signal::SIGTERM);
    world.gateway.wait(PROMPT);
    expect::record(world, world.client(), target.address(), "drained");
    assert_eq!(world.lab.gateway.routing(), world.pristine);
}
on_both_ramps!(a_second_signal_ends_at_once, setup = |setup| setup.drain("60s"), second_signal);

/// A second gateway with the same files is refused, and the first does not notice.
fn second_instance(world: &mut World<'_>) {
    let running = world.lab.gateway.routing();
    let log = world.gateway.dir().join("second.log");
    let mut second = Process::start(&world.lab.gateway, &mut world.gateway.command(&["run"]), &log);
    let status = second.wait(PROMPT);
    assert!(!status.success() && status.code().is_some(), "refused in order: {status}\n{}", second.log());
    assert!(!second.log().is_empty(), "it says why");
    assert!(!second.log().contains("panicked"), "{}", second.log());
    assert_eq!(world.lab.gateway.routing(), running, "the routes of the first stay");
    let to = upload(world.client(), world.private(), Host::Open.address(Family::V4), 1, MIB);
    expect::record(world, world.client(), to, "client_closed");
    world.gateway.verb(&["status"]);
}
on_both_ramps!(a_second_instance_is_refused, second_instance);

/// The control socket speaks HTTP to anything that does.
#[test]
fn curl_speaks_to_the_control_socket() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let (target, _stream) = held_open(world);
        let curl = |path: &str| {
            let socket = world.gateway.control();
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--fail", "--unix-socket"]).arg(socket);
            command.arg(format!("http://gateway{path}"));
            let text = portcullis_e2e::tools::output(&mut command);
            serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        assert_eq!(curl("/v1/status")["flows_open"], 1);
        let flows = curl("/v1/flows");
        assert_eq!(flows["flows"][0]["destination"], target.address().to_string(), "{flows}");
        assert_eq!(flows["flows"][0]["device"], world.client().device, "{flows}");
    });
}

/// Without a gateway, the verbs that need one say so.
#[test]
fn verbs_say_when_the_gateway_is_not_running() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        world.gateway.stop(PROMPT);
        for verb in ["status", "flows", "reload"] {
            let out = world.gateway.try_verb(&[verb]);
            assert_eq!(out.status.code(), Some(69), "{verb}: {}", said(&out));
        }
    });
}
