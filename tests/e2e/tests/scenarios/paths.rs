//! The path to a target, as the tools of an administrator see it through the gateway.

use std::net::IpAddr;

use portcullis_e2e::lab::{FAMILIES, Family, Host, gateway_address};
use portcullis_e2e::netns::Netns;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::OnRamp;
use portcullis_e2e::world::World;

/// The hops that `traceroute` shows: an address, or `*` where nobody answered.
fn hops(netns: &Netns, arguments: &[&str], to: IpAddr) -> Vec<String> {
    let to = to.to_string();
    let out = netns.output("traceroute", &[&["-n", "-q", "1", "-w", "5", "-m", "8"], arguments, &[&to]].concat());
    out.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

/// What stands between a client and a host one router behind the private network. The gateway is one hop, by the address
/// that the client knows it by.
fn path(world: &World<'_>, family: Family) -> [String; 3] {
    let gateway = match (world.client().ramp, family) {
        (OnRamp::Wireguard, Family::V4) => "100.96.0.1".to_owned(),
        (OnRamp::Wireguard, Family::V6) => "fd00:96::1".to_owned(),
        (OnRamp::Tun, family) => gateway_address(0, family).to_string(),
    };
    // Of its addresses the router takes the one that it sends to the gateway with.
    let way = world.private().ip(match family {
        Family::V4 => "route get 10.20.0.1",
        Family::V6 => "route get fd00:20::1",
    });
    let router = way.split_whitespace().skip_while(|word| *word != "src").nth(1).expect("a source");
    [gateway, router.to_owned(), Host::Nobody.address(family).to_string()]
}

fn traced(world: &mut World<'_>) {
    let far = world.lab.far();
    if let Some(wg) = &world.client().wg {
        // Without it the gateway's own answers are nobody's to the client, and it shows as `*`.
        wg.allow(world.client().netns, &["100.96.0.1/32", "fd00:96::1/128"]);
    }
    for family in FAMILIES {
        let (client, to) = (world.client().netns, Host::Nobody.address(family));
        // UDP: each probe has a port of its own. Echo: one exchange, many probes on their way at once.
        assert_eq!(hops(client, &[], to), path(world, family), "UDP");
        assert_eq!(hops(client, &["-I"], to), path(world, family), "echo");
        // What goes no farther than the gateway is no flow.
        let flows = world.gateway.flow_log().len();
        let out = world.client().ping(&["-n", "-c", "1", "-W", "5", "-t", "1"], to);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let [own, router, _] = path(world, family);
        assert!(said.contains(&format!("From {own} icmp_seq=1 Time")), "{said}");
        assert_eq!(world.gateway.flow_log().len(), flows);
        // A router that has no way says so itself, and not in the name of the target.
        world.private().ip(&format!("route del {to}"));
        world.private().ip(&format!("route add unreachable {to}"));
        let out = world.client().ping(&["-n", "-c", "1", "-W", "5"], to);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(said.contains(&format!("From {router} icmp_seq=1 Destination")), "{said}");
    }
    drop(far);
}
on_both_ramps!(traceroute_and_ping_tell_the_truth, traced);
