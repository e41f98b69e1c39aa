//! Off-ramps in order: the next when one is down, back when it is up again.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{Family, Host};
use portcullis_e2e::nft;
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::target::TcpTarget;
use portcullis_e2e::transfer::Endless;
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};

/// `first` sends from .3, `second` from .4; whether the way from .3 is open is asked of the host `OpenToo`.
const OFFRAMPS: &str = r#"
[[offramp]]
name = "first"
kind = "direct"
source = ["10.20.0.3"]
health = { tcp = "10.20.0.11:7777", every = "200ms", down_after = 2, up_after = 2 }
[[offramp]]
name = "second"
kind = "direct"
source = ["10.20.0.4"]
[[route]]
to = "0.0.0.0/0"
offramp = ["first", "second"]
"#;

/// From where the target is reached now, and what the record says of it.
fn way(world: &World<'_>) -> (String, Option<String>) {
    let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), |stream| {
        stream.peer_addr().expect("a client").ip().to_string()
    });
    drop(world.client().connect(target.address()).expect("the target accepts"));
    let line = world.gateway.wait_for_flow("its record", |line| line.destination == target.address());
    (target.result(), line.offramp)
}

fn over(source: &str, name: &str) -> (String, Option<String>) {
    (source.to_owned(), Some(name.to_owned()))
}

#[test]
fn a_probed_offramp_is_left_when_it_is_down_and_taken_again_when_it_is_up() {
    scenario(Setup::new(OnRamp::Tun).tables(OFFRAMPS), |world| {
        let up = |world: &World<'_>, value: f64| {
            world.gateway.wait_for_metric("portcullis_offramp_up", Some(("offramp", "first")), value);
        };
        // The sources are not there yet: the host itself cannot go either way.
        let to = SocketAddr::new(Host::Open.address(Family::V4), 9);
        assert!(world.client().connect(to).is_err());
        up(world, 0.0);
        let status = world.gateway.verb(&["status"]);
        assert!(status.contains("off-ramp   first DOWN") && status.contains("10.20.0.3"), "{status}");
        assert!(status.contains("off-ramp   second not probed"), "{status}");

        for source in ["10.20.0.3/24", "10.20.0.4/24"] {
            world.lab.gateway.ip(&format!("address add {source} dev private"));
        }
        let listener = world.private().run(|| std::net::TcpListener::bind("10.20.0.11:7777").expect("a port"));
        std::thread::spawn(move || listener.incoming().for_each(drop));
        up(world, 1.0);
        assert_eq!(way(world), over("10.20.0.3", "first"));

        let mut running = Endless::start(world.client(), world.private(), Host::Open.address(Family::V4));
        nft::drop_arriving(world.private(), "dead", "ip saddr 10.20.0.3");
        up(world, 0.0);
        wait::until_within(Duration::from_secs(2), "the cut", || running.over().then_some(()));
        assert_eq!(running.cut().kind(), std::io::ErrorKind::ConnectionReset);
        let cut = running.address();
        let line = world.gateway.wait_for_flow("the cut", |line| line.destination == cut);
        assert_eq!(line.ended, "offramp_down", "{line:#?}");
        assert_eq!(line.offramp.as_deref(), Some("first"));
        expect::ended(world, "offramp_down", 1);
        assert_eq!(way(world), over("10.20.0.4", "second"));

        // What runs over the second stays there when the first is up again; what is new goes over the first.
        let running = Endless::start(world.client(), world.private(), Host::Open.address(Family::V4));
        world.private().output("nft", &["delete", "table", "inet", "dead"]);
        up(world, 1.0);
        assert_eq!(way(world), over("10.20.0.3", "first"));
        let received = running.received();
        wait::until("the download to go on", || (running.received() > received).then_some(()));
        let to = running.address();
        running.finish();
        let line = world.gateway.wait_for_flow("the end", |line| line.destination == to);
        assert_eq!((line.ended.as_str(), line.offramp.as_deref()), ("target_closed", Some("second")));
    });
}

#[test]
fn an_offramp_this_host_cannot_go_by_is_passed_over_by_each_flow() {
    const OFFRAMPS: &str = r#"
[[offramp]]
name = "gone"
kind = "direct"
interface = "eth77"
[[offramp]]
name = "foreign"
kind = "direct"
source = ["10.20.0.77"]
[[route]]
to = "0.0.0.0/0"
offramp = ["gone", "foreign", "direct"]
"#;
    scenario(Setup::new(OnRamp::Tun).tables(OFFRAMPS), |world| {
        assert_eq!(way(world), over("10.20.0.1", "direct"));
        let host = Host::Open.address(Family::V4);
        let echo = portcullis_e2e::target::UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
        let socket = world.client().udp(echo.address());
        socket.send(b"hello").expect("a way to the target");
        assert_eq!(wait::uninterrupted(|| socket.recv(&mut [0; 64])).expect("the echo"), 5);
        assert_eq!(echo.sources().first().map(|source| source.ip().to_string()).as_deref(), Some("10.20.0.1"));
        let out = world.client().ping(&["-c", "1", "-W", "5"], host);
        assert!(out.status.success(), "{out:?}");
        // A target that refuses is no reason to try another way.
        let refused = world.client().connect(SocketAddr::new(host, 1)).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let line = world.gateway.wait_for_flow("the refusal", |line| line.ended == "target_refused");
        assert_eq!(line.offramp.as_deref(), Some("direct"));
    });
}
