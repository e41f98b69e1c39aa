//! What is steered changes while the gateway runs, and can be looked at.

use std::time::Duration;

use portcullis_e2e::lab::{Family, Host, PRIVATE_NETWORKS};
use portcullis_e2e::setup::{OnRamp, Setup, write_whole};
use portcullis_e2e::target::TcpTarget;
use portcullis_e2e::transfer::Endless;
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};

/// Whom a target sees: the gateway, or a client that got around it.
fn seen(world: &World<'_>, host: Host) -> String {
    let target = TcpTarget::serve(world.private(), host.address(Family::V4), |stream| {
        stream.peer_addr().expect("a client").ip().to_string()
    });
    drop(world.client().connect(target.address()).expect("the target accepts"));
    target.result()
}

const GATEWAY: &str = "10.20.0.1";
const CLIENT: &str = "192.168.7.2";

/// Writes `gateway.toml` with these lines in the place of its routes.
fn steer(world: &World<'_>, lines: &str) {
    let path = world.gateway.dir().join("gateway.toml");
    let text = std::fs::read_to_string(&path).expect("gateway.toml");
    let keep: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("routes") && !line.starts_with("exclude")).collect();
    write_whole(&path, &keep.join("\n").replace("mtu = 1500", &format!("mtu = 1500\n{lines}")));
}

#[test]
fn a_reload_steers_anew_and_no_flow_notices() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let running = Endless::start(world.client(), world.private(), Host::Open.address(Family::V4));
        assert_eq!((seen(world, Host::OpenToo), seen(world, Host::Hole)), (GATEWAY.into(), GATEWAY.into()));

        // The longest prefix decides: .8 to .15 are left out, of these .10 is steered all the same.
        let networks = PRIVATE_NETWORKS.map(|network| format!("\"{network}\"")).join(", ");
        steer(world, &format!("routes = [{networks}, \"10.20.0.10/32\"]\nexclude = [\"10.20.0.8/29\"]"));
        let said = world.gateway.reload();
        assert!(said.contains("steered network 10.20.0.10/32 added"), "{said}");
        assert!(said.contains("excluded network 10.20.0.8/29 added"), "{said}");
        assert_eq!((seen(world, Host::OpenToo), seen(world, Host::Open)), (CLIENT.into(), GATEWAY.into()));
        // What somebody takes away is what stands now.
        world.lab.gateway.ip("route del throw 10.20.0.8/29 table 51880");
        wait::until("the route to be put back", || {
            world.lab.gateway.ip("route show table 51880").contains("throw 10.20.0.8/29").then_some(())
        });
        let received = running.received();
        wait::until("the download to go on", || (running.received() > received + (1 << 20)).then_some(()));

        // A file that is wrong, or asks for more than a reload can do, changes nothing of it.
        let before = world.lab.gateway.routing();
        steer(world, "routes = [\"10.20.0.1/24\"]");
        let out = world.gateway.try_verb(&["reload"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(78) && said.contains("10.20.0.1/24\" has host bits"), "{said}");
        steer(world, "routes = [\"10.20.0.0/24\"]\ntable = 7");
        let said = String::from_utf8_lossy(&world.gateway.try_verb(&["reload"]).stderr).into_owned();
        assert!(said.contains("needs a restart"), "{said}");
        assert_eq!(world.lab.gateway.routing(), before);

        steer(world, &format!("routes = [{networks}]"));
        let path = world.gateway.dir().join("gateway.toml");
        let text = std::fs::read_to_string(&path).expect("gateway.toml");
        write_whole(&path, &text.replace("table = 7\n", ""));
        let said = world.gateway.reload();
        assert!(said.contains("steered network 10.20.0.10/32 removed"), "{said}");
        assert_eq!((seen(world, Host::OpenToo), seen(world, Host::Open)), (GATEWAY.into(), GATEWAY.into()));
        running.finish();
        assert_eq!(world.gateway.stop(Duration::from_secs(20)).code(), Some(0));
        assert_eq!(world.lab.gateway.routing(), world.pristine, "nothing of any of them is left");
    });
}

#[test]
fn routes_shows_what_is_in_force_and_the_commands_that_make_it_so() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let running = world.lab.gateway.routing();
        let said = world.gateway.verb(&["routes"]);
        assert!(
            said.contains("in force  -4 route 10.20.0.0/24 dev portcullis0 table 51880 metric 20 proto 81\n"),
            "{said}"
        );
        assert!(
            ["-4", "-6"].into_iter().all(|family| said
                .contains(&format!("in force  {family} rule  pref 5188 not iif lo lookup 51880 protocol 81\n"))),
            "{said}"
        );
        assert!(!said.contains("missing"), "{said}");
        assert_eq!(world.gateway.verb(&["routes", "--dry-run"]), "# everything is in force\n");
        let json: serde_json::Value = serde_json::from_str(&world.gateway.verb(&["routes", "--json"])).expect("JSON");
        assert_eq!((&json["table"], json["entries"].as_array().map(Vec::len)), (&51_880.into(), Some(10)));

        // Without a gateway, its commands make what it made.
        assert_eq!(world.gateway.stop(Duration::from_secs(20)).code(), Some(0));
        let gateway = &world.lab.gateway;
        for command in [
            "ip tuntap add portcullis0 mode tun",
            "ip link set portcullis0 mtu 1500 up",
            "ip address add 100.97.0.1/32 dev portcullis0",
            "ip address add fd00:97::1/128 dev portcullis0",
        ] {
            gateway.output("sh", &["-c", command]);
        }
        let commands = world.gateway.verb(&["routes", "--dry-run"]);
        assert_eq!(commands.lines().count(), 10, "{commands}");
        gateway.output("sh", &["-ec", &commands]);
        let ours = |routing: &str| {
            let lines = routing.lines().filter(|line| line.contains("51880") || line.contains("518"));
            // Nobody reads from this device, so it has no carrier.
            lines.map(|line| line.replace(" linkdown", "").trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ours(&gateway.routing()), ours(&running));
        assert_eq!(world.gateway.verb(&["routes", "--dry-run"]), "# everything is in force\n");
        // And what the file does not want any more is taken away by them.
        steer(world, "routes = [\"10.20.0.0/24\"]");
        let commands = world.gateway.verb(&["routes", "--dry-run"]);
        assert!(commands.contains("ip -6 route del unreachable fd00:20::/64 table 51880 metric 1000000"), "{commands}");
        gateway.output("sh", &["-ec", &commands]);
        let left = gateway.ip("-6 route show table all") + &gateway.ip("-6 rule");
        assert!(!left.contains("51880") && !left.contains("5187:") && !left.contains("5186:"), "{left}");
        let said = world.gateway.verb(&["routes"]);
        assert!(!said.contains("fd00:20::"), "{said}");
    });
}
