//! In a network namespace of its own each: what `ip` shows, and where the kernel would send a packet.

use super::*;
use crate::config::resolved::Returns;
use crate::host::TunDevice;
use crate::host::testing::{add_link, in_namespace, ip, let_go, sysctl, tun_config as config};

/// A router with a default route of each family by `eth0`.
fn default_routes() {
    for all in ["net.ipv4.conf.all", "net.ipv6.conf.all"] {
        sysctl(&format!("{all}.forwarding"), "1");
    }
    add_link("eth0");
    ip("addr add 192.0.2.10/24 dev eth0");
    ip("-6 addr add 2001:db8::10/64 dev eth0 nodad");
    ip("route add default via 192.0.2.1 dev eth0");
    ip("-6 route add default via 2001:db8::1 dev eth0");
}

/// Everything but our table and our rules, as text.
fn surroundings() -> String {
    ["-4 route show table main", "-6 route show table main", "-4 route show table local"].map(ip).concat()
}

fn rules() -> String {
    ip("-4 rule show") + &ip("-6 rule show")
}

fn table() -> String {
    ip("-4 route show table 51880") + &ip("-6 route show table 51880")
}

/// The device by which a packet of a host behind `eth0` would leave; `refused`; or `filtered` by its reverse path.
fn way(to: &str) -> String {
    let from = if to.contains(':') { "2001:db8::77" } else { "192.0.2.77" };
    route_get(&[to, "from", from, "iif", "eth0"])
}

/// The same for a packet of this host.
fn own_way(to: &str) -> String {
    route_get(&[to])
}

fn route_get(packet: &[&str]) -> String {
    let output = std::process::Command::new("ip")
        .args(["route", "get"])
        .args(packet)
        .output()
        .expect("the tests need `ip`: install iproute2");
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    if text.starts_with("unreachable") || error.contains("No route to host") {
        return "refused".to_owned();
    }
    // Which of the two depends on the kernel.
    if error.contains("Invalid cross-device link") || error.contains("Invalid argument") {
        return "filtered".to_owned();
    }
    assert!(output.status.success(), "{packet:?}: {error}");
    let mut words = text.split_whitespace();
    words.find(|word| *word == "dev").and_then(|_| words.next()).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn steers_both_families_and_leaves_nothing() {
    in_namespace(async || {
        default_routes();
        let (rules_before, before) = (rules(), surroundings());
        let config = config(&["10.0.0.0/8", "fd10::/16"], &["10.0.0.53/32", "fd10::53/128"]);
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let with_device = surroundings();
        let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();

        for (to, by) in [("10.1.2.3", "pcl0"), ("10.0.0.53", "eth0"), ("11.0.0.1", "eth0")] {
            assert_eq!(way(to), by, "{to}\n{}", table());
            assert_eq!(own_way(to), "eth0", "the host's own packets are left alone: {to}");
        }
        for (to, by) in [("fd10::1", "pcl0"), ("fd10::53", "eth0"), ("fd11::1", "eth0")] {
            assert_eq!(way(to), by, "{to}\n{}", table());
            assert_eq!(own_way(to), "eth0", "the host's own packets are left alone: {to}");
        }
        assert_eq!(surroundings(), with_device, "no other table changes");
        assert_eq!(ip("-4 route show table main") + &ip("-6 route show table main"), main_of(&before));

        routes.remove(OnStop::Remove).await.unwrap();
        assert_eq!(table(), "");
        assert_eq!(rules(), rules_before);
        let_go(tun);
        assert_eq!(surroundings(), before);
    });
}

#[test]
fn answers_to_clients_of_the_tunnel_come_back_by_the_device() {
    in_namespace(async || {
        default_routes();
        let rules_before = rules();
        let returns = |mtu| {
            let networks = ["100.96.0.0/16", "fd00:96::/64"].map(|net| net.parse().unwrap()).to_vec();
            Some(Returns { networks, mtu })
        };
        let without = config(&["10.0.0.0/8", "100.96.0.0/16"], &[]);
        let with = TunConfig { returns: returns(1280), ..without.clone() };
        let tun = TunDevice::create(&with, 1).await.unwrap();
        let mut routes = SteeredRoutes::install(&with, tun.index()).await.unwrap();
        for to in ["100.96.0.2", "fd00:96::2"] {
            assert_eq!(way(to), "pcl0", "{to}");
            assert_eq!(own_way(to), "pcl0", "this host's own errors go there, too: {to}");
        }
        assert_eq!(own_way("10.1.2.3"), "eth0");
        let towards = |net: &str| {
            let line = table().lines().find(|line| line.starts_with(net)).unwrap_or_default().to_owned();
            assert!(line.contains("mtu 1280"), "{net}: {line}");
        };
        towards("100.96.0.0/16 ");
        towards("fd00:96::/64 ");
        // A second start finds everything as it is, and another MTU is put in its place.
        let before = (table(), rules());
        let again = SteeredRoutes::install(&with, tun.index()).await.unwrap();
        assert_eq!((table(), rules()), before);
        let _ = routes.change_to(&TunConfig { returns: returns(1420), ..without.clone() }).await.unwrap();
        assert!(table().contains("mtu 1420") && !table().contains("mtu 1280"), "{}", table());
        // An off-ramp less: only the file's own network stays, and only for what is forwarded.
        let _ = routes.change_to(&without).await.unwrap();
        assert_eq!((way("100.96.0.2").as_str(), own_way("100.96.0.2").as_str()), ("pcl0", "eth0"));
        assert_eq!((way("fd00:96::2").as_str(), table().contains("mtu")), ("eth0", false));
        again.remove(OnStop::Remove).await.unwrap();
        assert_eq!((table(), rules()), (String::new(), rules_before));
    });
}

/// The main tables' part of [`surroundings`].
fn main_of(surroundings: &str) -> String {
    surroundings
        .lines()
        .filter(|line| !line.starts_with("local") && !line.starts_with("broadcast"))
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn default_routes_of_both_families_can_be_steered() {
    in_namespace(async || {
        default_routes();
        let config = config(&["0.0.0.0/0", "::/0"], &[]);
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        for to in ["198.51.100.1", "2001:db8:9::1"] {
            assert_eq!((way(to).as_str(), own_way(to).as_str()), ("pcl0", "eth0"));
        }
        // A second start finds them again although a default route has no destination in its message.
        let again = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        assert_eq!(table().lines().count(), 4, "{}", table());
        routes.remove(OnStop::Remove).await.unwrap();
        again.remove(OnStop::Remove).await.unwrap();
        assert_eq!(table(), "");
    });
}

#[test]
fn a_dead_process_leaves_a_refusal_which_the_next_takes_over() {
    in_namespace(async || {
        default_routes();
        let before = surroundings();
        let rules_before = rules();
        let old = config(&["10.0.0.0/8", "172.16.0.0/12", "fd10::/16"], &["10.0.0.53/32", "10.9.0.0/16"]);
        let tun = TunDevice::create(&old, 1).await.unwrap();
        let _left = SteeredRoutes::install(&old, tun.index()).await.unwrap();
        // What the kernel does when the process is killed: the descriptor closes, the device goes.
        let_go(tun);
        for to in ["10.1.2.3", "172.16.0.1", "fd10::1"] {
            assert_eq!(way(to), "refused", "{to}\n{}", table());
        }
        assert_eq!(way("10.0.0.53"), "eth0");
        assert_eq!(own_way("10.1.2.3"), "eth0", "nor does the host lose its own");

        let new = config(&["10.0.0.0/8"], &["10.0.0.53/32"]);
        let tun = TunDevice::create(&new, 1).await.unwrap();
        let routes = SteeredRoutes::install(&new, tun.index()).await.unwrap();
        assert_eq!(way("10.1.2.3"), "pcl0");
        assert_eq!(way("10.9.0.1"), "pcl0", "an exclusion that is no more");
        assert_eq!(way("172.16.0.1"), "eth0", "a route that is no more");
        assert_eq!(way("fd10::1"), "eth0", "a family that is no more");
        assert_eq!(rules().matches("lookup 51880").count(), 1, "{}", rules());
        assert_eq!(table().lines().count(), 3, "{}", table());

        routes.remove(OnStop::Remove).await.unwrap();
        let_go(tun);
        assert_eq!((table().as_str(), rules(), surroundings()), ("", rules_before, before));
    });
}

#[test]
fn the_rule_of_an_earlier_version_is_replaced() {
    in_namespace(async || {
        default_routes();
        let rules_before = rules();
        let config = config(&["10.0.0.0/8", "fd10::/16"], &[]);
        for family in ["-4", "-6"] {
            ip(&format!("{family} rule add not fwmark 51880 lookup 51880 priority 5188 protocol 81"));
        }
        let tun = TunDevice::create(&config, 1).await.unwrap();
        // One for answers had the preference that the refusal has now.
        ip("rule add iif pcl0 lookup main priority 5187 protocol 81");
        let left = report::report(&config).await.unwrap();
        let left: Vec<_> = left.into_iter().filter(|entry| entry.state == report::State::Left).collect();
        let specs: Vec<_> = left.iter().map(|entry| entry.spec.as_str()).collect();
        let earlier = ["pref 5187 iif pcl0 lookup main protocol 81", "pref 5188 not lookup 51880 protocol 81"];
        assert_eq!(specs, [earlier[0], earlier[1], earlier[1]]);
        let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        assert_eq!(rules().matches("not from all iif lo lookup 51880").count(), 2, "{}", rules());
        assert_eq!(rules().matches("51880").count(), 2, "nothing but these: {}", rules());
        for to in ["10.1.2.3", "fd10::1"] {
            assert_eq!((way(to).as_str(), own_way(to).as_str()), ("pcl0", "eth0"));
        }
        routes.remove(OnStop::Remove).await.unwrap();
        assert_eq!(rules(), rules_before);
    });
}

/// An administrator in a steered network, connected to this host: neither direction meets the device.
#[test]
fn connections_of_the_host_itself_stay_with_it() {
    in_namespace(async || {
        default_routes();
        ip("addr add 10.7.0.1/24 dev eth0");
        let config = config(&["0.0.0.0/0", "::/0"], &[]);
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        for (here, there) in [("10.7.0.1", "10.7.0.9"), ("2001:db8::10", "2001:db8::77")] {
            assert_eq!(route_get(&[here, "from", there, "iif", "eth0"]), "lo", "{here} is this host's");
            assert_eq!(route_get(&[there, "from", here]), "eth0", "and so is its answer");
        }
        for ours in ["100.97.0.1", "fd00:97::1"] {
            assert_eq!((way(ours).as_str(), own_way(ours).as_str()), ("lo", "lo"), "the device's own address");
        }
        routes.remove(OnStop::Remove).await.unwrap();
    });
}

/// Clients may live in a network of `routes`: what comes out of the device for them does not go in again.
#[test]
fn answers_to_clients_in_a_steered_network_leave() {
    in_namespace(async || {
        default_routes();
        ip("addr add 10.7.0.1/24 dev eth0");
        let config = config(&["10.0.0.0/8"], &[]);
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        assert_eq!(route_get(&["10.20.0.10", "from", "10.7.0.9", "iif", "eth0"]), "pcl0", "the client's question");
        assert_eq!(route_get(&["10.7.0.9", "from", "10.20.0.10", "iif", "pcl0"]), "eth0", "and its answer");
        routes.remove(OnStop::Remove).await.unwrap();
    });
}

/// To a target leads one interface for this host and another for those behind it; its address arrives by both.
#[test]
fn answers_pass_strict_reverse_path_filtering() {
    in_namespace(async || {
        default_routes();
        let config = config(&["10.0.0.0/8"], &[]);
        for all in ["1", "2", "0"] {
            sysctl("net.ipv4.conf.all.rp_filter", all);
            sysctl("net.ipv4.conf.default.rp_filter", "0");
            let tun = TunDevice::create(&config, 1).await.unwrap();
            let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
            let answer = ["192.0.2.77", "from", "10.1.2.3", "iif", "pcl0"];
            assert_eq!(route_get(&answer), "eth0", "from the device to the client, all = {all}");
            assert_eq!(route_get(&["192.0.2.10", "from", "10.1.2.3", "iif", "eth0"]), "lo", "from the target to us");
            let unsteered = route_get(&["192.0.2.77", "from", "198.51.100.1", "iif", "pcl0"]);
            assert_eq!(unsteered == "filtered", all == "1", "the filter is at work: {unsteered}, all = {all}");
            routes.remove(OnStop::Remove).await.unwrap();
            let_go(tun);
        }
    });
}

#[test]
fn routed_traffic_never_passes_by_while_a_start_takes_over() {
    in_namespace(async || {
        default_routes();
        let config = config(&["10.0.0.0/8", "fd10::/16"], &["10.0.0.53/32"]);
        // Everything the kernel says about routes and rules during the second start, in order.
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let _left = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        let_go(tun);
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let monitor = std::process::Command::new("ip")
            .args(["-o", "monitor", "route", "rule"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut monitor = Monitor::new(monitor);
        let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        let said = monitor.until_marked();
        assert!(said.contains("10.0.0.0/8 dev pcl0"), "{said}");
        for line in said.lines() {
            assert!(!line.contains("Deleted"), "nothing is taken away on the way: {line}");
        }
        routes.remove(OnStop::Remove).await.unwrap();
    });
}

/// `ip monitor`, ended with the test.
struct Monitor {
    child: std::process::Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Monitor {
    /// Waits until the monitor listens: it has told of a route made for the purpose.
    fn new(mut child: std::process::Child) -> Self {
        use std::io::BufRead;
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let mut monitor = Self { child, lines };
        // The monitor may open its socket late: the mark is repeated until it is seen.
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while stopped.recv_timeout(std::time::Duration::from_millis(20)).is_err() {
                    ip("route replace 203.0.113.1/32 dev eth0 table 99");
                    ip("route del 203.0.113.1/32 dev eth0 table 99");
                }
            });
            monitor.wait_for("203.0.113.1");
            stop.send(()).unwrap();
        });
        monitor
    }

    fn wait_for(&mut self, mark: &str) -> String {
        let mut text = String::new();
        for line in &mut self.lines {
            let line = line.unwrap();
            if line.contains(mark) {
                break;
            }
            text = text + &line + "\n";
        }
        text
    }

    /// Everything told until now, without the marks.
    fn until_marked(&mut self) -> String {
        ip("route add 203.0.113.2/32 dev eth0 table 99");
        let text = self.wait_for("203.0.113.2");
        text.lines().filter(|line| !line.contains("203.0.113.1")).fold(String::new(), |text, line| text + line + "\n")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_blocking_stop_keeps_the_refusal() {
    in_namespace(async || {
        default_routes();
        let config = config(&["10.0.0.0/8", "fd10::/16"], &["10.0.0.53/32"]);
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        routes.remove(OnStop::Block).await.unwrap();
        for _with_and_without_device in 0..2 {
            assert_eq!((way("10.1.2.3").as_str(), way("fd10::1").as_str()), ("refused", "refused"));
            assert_eq!(way("10.0.0.53"), "eth0");
        }
        let_go(tun);
        assert_eq!((way("10.1.2.3").as_str(), way("fd10::1").as_str()), ("refused", "refused"));
    });
}

#[test]
fn a_table_of_somebody_else_is_refused_untouched() {
    in_namespace(async || {
        default_routes();
        ip("route add 198.51.100.0/24 dev eth0 table 51880");
        ip("-6 route add fd99::/64 dev eth0 table 51880");
        let (before, rules_before) = (table(), rules());
        let config = config(&["10.0.0.0/8"], &[]);
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let error = SteeredRoutes::install(&config, tun.index()).await.unwrap_err();
        assert!(matches!(error, RouteError::ForeignRoutes { table: 51880, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("198.51.100.0/24") && text.contains("fd99::/64"), "{text}");
        assert!(text.contains("ip route flush table 51880"), "{text}");
        assert_eq!((table(), rules()), (before, rules_before));
    });
}

#[test]
fn a_start_that_fails_leaves_nothing_new() {
    in_namespace(async || {
        default_routes();
        let rules_before = rules();
        let config = config(&["10.0.0.0/8"], &["10.0.0.53/32"]);
        let tun = TunDevice::create(&config, 1).await.unwrap();
        let absent = tun.index() + 1000;
        let error = SteeredRoutes::install(&config, absent).await.unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
        assert_eq!((table().as_str(), rules()), ("", rules_before));

        // With something to take over, the refusal stays.
        let _left = SteeredRoutes::install(&config, tun.index()).await.unwrap();
        let_go(tun);
        SteeredRoutes::install(&config, absent).await.unwrap_err();
        assert_eq!(way("10.1.2.3"), "refused");
    });
}

#[test]
fn system_tables_are_refused() {
    in_namespace(async || {
        for table in [0, 253, 254, 255] {
            let config = TunConfig { table, ..config(&["10.0.0.0/8"], &[]) };
            let error = SteeredRoutes::install(&config, 1).await.unwrap_err();
            assert!(matches!(error, RouteError::ReservedTable(_)), "{error:?}");
        }
    });
}
