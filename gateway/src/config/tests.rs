//! Every class of mistake in `gateway.toml`, with the exact message and place.

use std::path::Path;
use std::time::Duration;

use super::resolved::{Config, OfframpKind, OnStop, ProxyConfig, ProxyScheme, TlsConfig};

mod forwarding;

fn resolve(text: &str) -> Result<Config, Vec<String>> {
    Config::resolve(text, Path::new("/etc/portcullis/gateway.toml"), 4).map_err(|problems| {
        problems.iter().map(|problem| problem.to_string().replace("/etc/portcullis/", "")).collect()
    })
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    match resolve(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(problems) => assert_eq!(problems, expected, "for:\n{text}"),
    }
}

const WIREGUARD: &str = "[wireguard]\naddresses = [\"100.96.0.1/16\", \"fd00:96::1/64\"]\n";

#[track_caller]
fn refused_in_wireguard(line: &str, expected: &str) {
    refused(&format!("{WIREGUARD}{line}\n"), &[expected]);
}

#[track_caller]
fn refused_in_tun(line: &str, expected: &str) {
    refused(&format!("[tun]\n{line}\n"), &[expected]);
}

#[track_caller]
fn refused_at_top(line: &str, expected: &str) {
    refused(&format!("{line}\n[tun]\n"), &[expected]);
}

#[test]
fn the_example_of_the_specification_resolves() {
    let config = resolve(
        r#"
directory = "directory.json"
policy    = "policy.json"
state_dir = "/var/lib/portcullis"
control   = "/run/portcullis/control.sock"
local_services = ["192.0.2.1:22"]
drain = "5s"

[wireguard]
listen        = "[::]:51820"
key_file      = "wireguard.key"
addresses     = ["100.96.0.1/16", "fd00:96::1/64"]
mtu           = 1280
endpoint      = "vpn.example.com:51820"
client_routes = ["10.0.0.0/8"]

[tun]
name      = "portcullis0"
addresses = ["100.97.0.1/32"]
mtu       = 1500
routes    = ["10.0.0.0/8"]
exclude   = ["10.0.0.53/32"]
table     = 51880
fwmark    = 51880
on_stop   = "block"

[[offramp]]
name = "office"
kind = "direct"
source = ["192.0.2.10"]
ports = "20000-29999"
interface = "eth1"

[[route]]
to = "10.20.0.0/16"
offramp = ["office", "direct"]

[runtime]
shards = 2

[limits]
flows = 1_000
dial_timeout = "3s"

[log]
flows = "flows.jsonl"

[metrics]
listen = "127.0.0.1:9464"
"#,
    )
    .unwrap();
    assert_eq!(config.directory, Path::new("/etc/portcullis/directory.json"));
    assert_eq!(config.flow_log, Path::new("/etc/portcullis/flows.jsonl"));
    assert_eq!(config.drain, Duration::from_secs(5));
    assert_eq!(config.shards, 2);
    assert_eq!(config.limits.flows.all, 1_000);
    assert_eq!(config.limits.dial_timeout, Duration::from_secs(3));
    assert_eq!(config.limits.tcp_buffer, 1 << 20);
    let wireguard = config.wireguard.unwrap();
    assert_eq!(wireguard.key_file, Path::new("/var/lib/portcullis/wireguard.key"));
    assert_eq!(wireguard.addresses.len(), 2);
    assert_eq!(config.tun.unwrap().on_stop, OnStop::Block);
    let names: Vec<&str> = config.offramps.iter().map(|offramp| &*offramp.name).collect();
    assert_eq!(names, ["direct", "office"]);
    assert_eq!(config.offramps[1].ports, Some(20_000..=29_999));
    assert_eq!(config.routes[0].offramp.iter().map(|name| &**name).collect::<Vec<_>>(), ["office", "direct"]);
}

#[test]
fn defaults_are_those_of_the_specification() {
    let config = resolve(&format!("{WIREGUARD}[tun]\n[metrics]\n")).unwrap();
    assert_eq!(config.policy, Path::new("/etc/portcullis/policy.json"));
    assert_eq!(config.state_dir, Path::new("/var/lib/portcullis"));
    assert_eq!(config.control, Path::new("/run/portcullis/control.sock"));
    assert_eq!(config.flow_log, Path::new("/var/log/portcullis/flows.jsonl"));
    assert_eq!(config.metrics, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.shards, 4);
    assert_eq!(config.drain, Duration::from_secs(10));
    assert_eq!(config.offramps.len(), 1);
    assert!(config.routes.is_empty());
    let wireguard = config.wireguard.unwrap();
    assert_eq!(wireguard.listen, "[::]:51820".parse().unwrap());
    assert_eq!(wireguard.mtu, 1280);
    assert_eq!(wireguard.endpoint, None);
    let tun = config.tun.unwrap();
    assert_eq!((tun.name.as_str(), tun.mtu, tun.table, tun.fwmark), ("portcullis0", 1500, 51_880, 51_880));
    assert_eq!(tun.on_stop, OnStop::Remove);
    assert_eq!(resolve("[tun]").unwrap().metrics, None);
}

#[test]
fn an_entry_named_direct_changes_the_direct_offramp() {
    let config =
        resolve("[tun]\n[[offramp]]\nname = \"direct\"\nkind = \"direct\"\nsource = [\"192.0.2.1\"]\n").unwrap();
    assert_eq!(config.offramps.len(), 1);
    assert_eq!(config.offramps[0].source, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn paths_follow_the_file() {
    let text = "state_dir = \"state\"\ncontrol = \"c.sock\"\ndirectory = \"/d.json\"\n";
    let config = Config::resolve(&format!("{text}{WIREGUARD}"), Path::new("/srv/x/g.toml"), 1).unwrap();
    assert_eq!(config.state_dir, Path::new("/srv/x/state"));
    assert_eq!(config.control, Path::new("/srv/x/c.sock"));
    assert_eq!(config.directory, Path::new("/d.json"));
    assert_eq!(config.wireguard.unwrap().key_file, Path::new("/srv/x/state/wireguard.key"));
}

#[test]
fn documents_that_are_not_sound() {
    refused("", &["gateway.toml: there is no on-ramp: add a [wireguard] table, a [tun] table, or both"]);
    refused("[tun]\nmtu = \n", &["gateway.toml:2:7: string values must be quoted, expected literal string"]);
    refused("[tun]\nmtu = 1500\nmtu = 1501\n", &["gateway.toml:3:1: duplicate key"]);
    refused("[tun]\n[tun]\n", &["gateway.toml:2:2: duplicate key"]);
    refused(
        "[tun\n[a]\nx = [1\n",
        &["gateway.toml:1:5: unclosed table, expected `]`", "gateway.toml:3:7: unclosed array, expected `]`"],
    );
    refused("tun = 1\n", &["gateway.toml:1:7: tun: must be a table, not an integer"]);
}

#[test]
fn unknown_keys_name_the_nearest() {
    refused_at_top("polcy = \"p\"", "gateway.toml:1:1: polcy: unknown key; did you mean `policy`?");
    refused_in_tun("mtus = 1500", "gateway.toml:2:1: tun.mtus: unknown key; did you mean `mtu`?");
    refused_in_wireguard(
        "private = 1",
        "gateway.toml:3:1: wireguard.private: unknown key; known here: listen, key_file, addresses, mtu, endpoint, client_routes",
    );
    refused_at_top("[limits]\nflow = 3", "gateway.toml:2:1: limits.flow: unknown key; did you mean `flows`?");
    refused_at_top("[runtime]\nshard = 3", "gateway.toml:2:1: runtime.shard: unknown key; did you mean `shards`?");
    refused_at_top("[log]\nlevel = 3", "gateway.toml:2:1: log.level: unknown key; known here: flows");
    refused_at_top("[metrics]\nlisen = 3", "gateway.toml:2:1: metrics.lisen: unknown key; did you mean `listen`?");
    refused_at_top(
        "[[route]]\nto = \"10.0.0.0/8\"\nofframp = [\"direct\"]\nmetric = 1",
        "gateway.toml:4:1: route[0].metric: unknown key; known here: network, to, offramp",
    );
}

#[test]
fn the_policy_is_a_path_or_a_table() {
    let read = |top: &str| {
        let text = format!("{top}\n[tun]\naddresses = [\"100.97.0.1/32\"]\n");
        let config = Config::resolve(&text, Path::new("/etc/portcullis/gateway.toml"), 1).unwrap();
        (config.policy.display().to_string(), config.watch)
    };
    assert_eq!(read(""), ("/etc/portcullis/policy.json".to_owned(), true));
    assert_eq!(read("policy = \"p.json\""), ("/etc/portcullis/p.json".to_owned(), true));
    assert_eq!(read("[policy]\nwatch = false"), ("/etc/portcullis/policy.json".to_owned(), false));
    assert_eq!(read("policy = { file = \"p.json\", watch = true }"), ("/etc/portcullis/p.json".to_owned(), true));
    refused_at_top("policy = 1", "gateway.toml:1:10: policy: must be a string, not an integer");
    refused_at_top("[policy]\nwach = true", "gateway.toml:2:1: policy.wach: unknown key; did you mean `watch`?");
    refused_at_top("[policy]\nwatch = \"no\"", "gateway.toml:2:9: policy.watch: must be true or false, not a string");
}

#[test]
fn wrong_types() {
    refused_at_top("directory = 1", "gateway.toml:1:13: directory: must be a string, not an integer");
    refused_at_top("drain = 10", "gateway.toml:1:9: drain: must be a string, not an integer");
    refused_at_top(
        "local_services = \"192.0.2.1:22\"",
        "gateway.toml:1:18: local_services: must be a list, not a string",
    );
    refused_at_top("local_services = [22]", "gateway.toml:1:19: local_services[0]: must be a string, not an integer");
    refused_in_tun("mtu = \"1500\"", "gateway.toml:2:7: tun.mtu: must be an integer, not a string");
    refused_in_tun("mtu = 1500.0", "gateway.toml:2:7: tun.mtu: must be an integer, not a float");
    refused_in_tun("name = true", "gateway.toml:2:8: tun.name: must be a string, not a boolean");
    refused_at_top("route = {}", "gateway.toml:1:9: route: must be a list, not a table");
    refused_at_top("drain = 2027-01-01", "gateway.toml:1:9: drain: must be a string, not a date");
}

#[test]
fn numbers_out_of_range() {
    refused_in_wireguard("mtu = 1279", "gateway.toml:3:7: wireguard.mtu: must be 1280 to 65535");
    refused_in_wireguard("mtu = 65536", "gateway.toml:3:7: wireguard.mtu: must be 1280 to 65535");
    refused_in_tun("mtu = -1", "gateway.toml:2:7: tun.mtu: must be 1280 to 65535");
    refused_in_tun("table = 0", "gateway.toml:2:9: tun.table: must be 1 to 4294967295");
    refused_in_tun(
        "table = 254",
        "gateway.toml:2:9: tun.table: table 254 belongs to the system (253 default, 254 main, 255 local)",
    );
    refused_in_tun("fwmark = 0", "gateway.toml:2:10: tun.fwmark: must be 1 to 4294967295");
    refused_in_tun("fwmark = 4294967296", "gateway.toml:2:10: tun.fwmark: must be 1 to 4294967295");
    refused_at_top("[runtime]\nshards = 0", "gateway.toml:2:10: runtime.shards: must be 1 to 64");
    refused_at_top("[limits]\nflows = 0", "gateway.toml:2:9: limits.flows: must be 1 to 16777216");
    refused_at_top("[limits]\ntcp_buffer = 1", "gateway.toml:2:14: limits.tcp_buffer: must be 4096 to 1073741824");
}

#[test]
fn durations() {
    refused_at_top(
        "drain = \"10\"",
        "gateway.toml:1:9: drain: `10` is not a duration, like \"10s\", \"5m\" or \"2h4m\"",
    );
    refused_at_top("drain = \"2h\"", "gateway.toml:1:9: drain: must be 0s to 1h");
    refused_at_top("[limits]\nudp_idle = \"0s\"", "gateway.toml:2:12: limits.udp_idle: must be 1s to 7d");
    refused_at_top("[limits]\nudp_idle = 30", "gateway.toml:2:12: limits.udp_idle: must be a string, not an integer");
}

#[test]
fn paths() {
    refused_at_top("directory = \"\"", "gateway.toml:1:13: directory: is an empty path");
    let long = "x".repeat(100);
    refused_at_top(
        &format!("control = \"{long}\""),
        "gateway.toml:1:11: control: is 116 bytes long, and a Unix socket has room for 107",
    );
}

#[test]
fn addresses_of_the_tunnel() {
    refused("[wireguard]\n", &["gateway.toml:1:1: wireguard.addresses: is missing"]);
    refused("[wireguard]\naddresses = []\n", &["gateway.toml:2:13: wireguard.addresses: must name at least one"]);
    let with =
        |addresses: &str, expected: &str| refused(&format!("[wireguard]\naddresses = [{addresses}]\n"), &[expected]);
    with(
        "\"100.96.0.1\"",
        "gateway.toml:2:14: wireguard.addresses[0]: `100.96.0.1` is not an address with its prefix length, like 100.96.0.1/16 or fd00:96::1/64",
    );
    with(
        "\"100.96.0.1/16\", \"100.99.0.1/16\"",
        "gateway.toml:2:31: wireguard.addresses[1]: is a second IPv4 address, the first is at 2:14; one of each family is the most",
    );
    with(
        "\"100.96.0.0/16\"",
        "gateway.toml:2:14: wireguard.addresses[0]: 100.96.0.0/16 is not a host of its network: it stands for the network or for all its hosts",
    );
    with(
        "\"100.96.255.255/16\"",
        "gateway.toml:2:14: wireguard.addresses[0]: 100.96.255.255/16 is not a host of its network: it stands for the network or for all its hosts",
    );
    with("\"100.96.0.1/32\"", "gateway.toml:2:14: wireguard.addresses[0]: 100.96.0.1/32 leaves no address for devices");
    with("\"127.0.0.1/8\"", "gateway.toml:2:14: wireguard.addresses[0]: 127.0.0.1 cannot be the address of a host");
    with("\"ff02::1/64\"", "gateway.toml:2:14: wireguard.addresses[0]: ff02::1 cannot be the address of a host");
    with("\"FD00::1/64\"", "gateway.toml:2:14: wireguard.addresses[0]: \"FD00::1\" is ambiguous; write fd00::1");
    with(
        "\"2002:a00:1::1/64\"",
        "gateway.toml:2:14: wireguard.addresses[0]: \"2002:a00:1::1\" hides an IPv4 address (6to4); write the IPv4 address itself",
    );
}

#[test]
fn wireguard_sockets_and_endpoints() {
    refused_in_wireguard(
        "listen = \"51820\"",
        "gateway.toml:3:10: wireguard.listen: `51820` is not ADDRESS:PORT, like 192.0.2.1:22 or [::]:51820",
    );
    refused_in_wireguard("listen = \"[::]:0\"", "gateway.toml:3:10: wireguard.listen: port 0 is no port");
    refused_in_wireguard(
        "listen = \"[0::0]:51820\"",
        "gateway.toml:3:10: wireguard.listen: `[0::0]:51820` must be written as [::]:51820",
    );
    for endpoint in [
        "vpn.example.com",
        "vpn:0",
        "vpn:65536",
        ":51820",
        "a b:51820",
        "2001:db8::1:51820",
        "[vpn]:51820",
        "vpn:051820",
        "v\\nx:5",
    ] {
        refused_in_wireguard(
            &format!("endpoint = \"{endpoint}\""),
            "gateway.toml:3:12: wireguard.endpoint: expected HOST:PORT, like vpn.example.com:51820 or [2001:db8::1]:51820",
        );
    }
    for endpoint in ["vpn.example.com:51820", "192.0.2.1:1", "[2001:db8::1]:65535"] {
        assert!(resolve(&format!("{WIREGUARD}endpoint = \"{endpoint}\"")).is_ok(), "{endpoint}");
    }
}

#[test]
fn prefixes() {
    refused_in_wireguard(
        "client_routes = [\"10.0.0.1/8\"]",
        "gateway.toml:3:18: wireguard.client_routes[0]: \"10.0.0.1/8\" has host bits; write 10.0.0.0/8 for the network or 10.0.0.1/32 for the host",
    );
    refused_in_wireguard(
        "client_routes = [\"10.0.0.0/8\", \"10.0.0.0/8\"]",
        "gateway.toml:3:32: wireguard.client_routes[1]: `10.0.0.0/8` is given twice, first at 3:18",
    );
    refused_in_tun(
        "routes = [\"10.0.0.0\"]",
        "gateway.toml:2:11: tun.routes[0]: \"10.0.0.0\" is not a prefix; expected an IP address, a slash and a length",
    );
    refused_in_tun(
        "routes = [\"10.0.0.0/8\", \"10.0.0.0/8\"]",
        "gateway.toml:2:25: tun.routes[1]: `10.0.0.0/8` is given twice, first at 2:11",
    );
    refused_in_tun(
        "routes = [\"10.0.0.0/08\"]",
        "gateway.toml:2:11: tun.routes[0]: \"10.0.0.0/08\" is ambiguous; write 10.0.0.0/8",
    );
    refused_in_tun(
        "routes = [\"10.0.0.0/8\"]\nexclude = [\"11.0.0.0/16\"]",
        "gateway.toml:3:12: tun.exclude[0]: 11.0.0.0/16 lies in none of tun.routes, so there is nothing to leave out",
    );
    refused(
        &format!("{WIREGUARD}[tun]\naddresses = [\"100.96.3.1/24\"]\n"),
        &[
            "gateway.toml:4:14: tun.addresses[0]: 100.96.3.1/24 overlaps 100.96.0.1/16 of wireguard.addresses[0] at 2:14",
        ],
    );
}

#[test]
fn tun_names_and_words() {
    for name in ["", "sixteen-bytes-xx", "a/b", "a b", "a:b", ".", "..", "tun%d"] {
        refused_in_tun(
            &format!("name = \"{name}\""),
            &format!(
                "gateway.toml:2:8: tun.name: `{name}` is not an interface name: 1 to 15 bytes without space, `/` or `:`"
            ),
        );
    }
    refused_in_tun("on_stop = \"keep\"", "gateway.toml:2:11: tun.on_stop: `keep` is not known; known: remove, block");
}

#[test]
fn offramps() {
    let with = |text: &str, expected: &[&str]| refused(&format!("[tun]\n[[offramp]]\n{text}\n"), expected);
    with("kind = \"direct\"", &["gateway.toml:2:1: offramp[0].name: is missing"]);
    with("name = \"a\"", &["gateway.toml:2:1: offramp[0].kind: is missing"]);
    with(
        "name = \"a\"\nkind = \"socks4\"",
        &[
            "gateway.toml:4:8: offramp[0].kind: `socks4` is not known; known: direct, socks5, http-connect, kernel, wireguard",
        ],
    );
    with(
        "name = \"a b\"\nkind = \"direct\"",
        &["gateway.toml:3:8: offramp[0].name: `a b` is not a name: 1 to 63 of the characters a-z A-Z 0-9 . _ -"],
    );
    with(
        "name = \"a\"\nkind = \"direct\"\n[[offramp]]\nname = \"a\"\nkind = \"direct\"",
        &["gateway.toml:6:8: offramp[1].name: `a` is already the name of the off-ramp at 3:8"],
    );
    let option = |line: &str, expected: &str| with(&format!("name = \"a\"\nkind = \"direct\"\n{line}"), &[expected]);
    option(
        "source = [\"192.0.2.300\"]",
        "gateway.toml:5:11: offramp[0].source[0]: \"192.0.2.300\" is not an IP address",
    );
    option(
        "source = [\"192.0.2.1\", \"192.0.2.2\"]",
        "gateway.toml:5:24: offramp[0].source[1]: is a second IPv4 address, the first is at 5:11; one of each family is the most",
    );
    option("source = [\"::\"]", "gateway.toml:5:11: offramp[0].source[0]: :: cannot be the address of a host");
    for ports in ["20000", "0-10", "1-65536", "01-10", "a-b", "-"] {
        option(
            &format!("ports = \"{ports}\""),
            &format!("gateway.toml:5:9: offramp[0].ports: `{ports}` is not a port range, like \"20000-29999\""),
        );
    }
    option("ports = \"10-9\"", "gateway.toml:5:9: offramp[0].ports: the range 10-9 ends before it starts");
    option(
        "interface = \"a/b\"",
        "gateway.toml:5:13: offramp[0].interface: `a/b` is not an interface name: 1 to 15 bytes without space, `/` or `:`",
    );
    let health = |text: &str, expected: &str| option(&format!("health = {{ {text} }}"), expected);
    health("every = \"5s\"", "gateway.toml:5:10: offramp[0].health.tcp: is missing");
    health(
        "tcp = \"db:443\"",
        "gateway.toml:5:18: offramp[0].health.tcp: `db:443` is not ADDRESS:PORT, like 192.0.2.1:22 or [::]:51820",
    );
    health(
        "tcp = \"192.0.2.1:22\", down_after = 0",
        "gateway.toml:5:47: offramp[0].health.down_after: must be 1 to 100",
    );
    health(
        "tcp = \"192.0.2.1:22\", every = \"1ms\"",
        "gateway.toml:5:42: offramp[0].health.every: must be 100ms to 1h",
    );
}

#[test]
fn proxies() {
    let with =
        |text: &str, expected: &[&str]| refused(&format!("[tun]\n[[offramp]]\nname = \"a\"\n{text}\n"), expected);
    with("kind = \"socks5\"", &["gateway.toml:2:1: offramp[0].address: is missing"]);
    with(
        "kind = \"http-connect\"\naddress = \"proxy:8080\"",
        &["gateway.toml:5:11: offramp[0].address: `proxy:8080` is not ADDRESS:PORT, like 192.0.2.1:22 or [::]:51820"],
    );
    with(
        "kind = \"direct\"\nproxy_protocol = \"v1\"",
        &["gateway.toml:5:18: offramp[0].proxy_protocol: `v1` is not known; known: v2"],
    );
    with(
        "kind = \"direct\"\naddress = \"10.2.0.9:1080\"\ntls = {}",
        &[
            "gateway.toml:5:11: offramp[0].address: means nothing to this kind; it is for socks5, http-connect",
            "gateway.toml:6:7: offramp[0].tls: means nothing to this kind; it is for socks5, http-connect",
        ],
    );
    let proxy = |line: &str, expected: &str| {
        with(&format!("kind = \"socks5\"\naddress = \"10.2.0.9:1080\"\n{line}"), &[expected]);
    };
    proxy(
        "proxy_protocol = \"v2\"",
        "gateway.toml:6:18: offramp[0].proxy_protocol: means nothing to this kind; it is for direct",
    );
    proxy(
        "tls = { key_file = \"k\" }",
        "gateway.toml:6:20: offramp[0].tls.key_file: says nothing without `certificate_file`",
    );
    proxy(
        "tls = { certificate_file = \"c\" }",
        "gateway.toml:6:28: offramp[0].tls.certificate_file: says nothing without `key_file`",
    );
    proxy(
        "tls = { server_name = \"a b\" }",
        "gateway.toml:6:23: offramp[0].tls.server_name: `a b` is neither a DNS name nor an IP address",
    );
    proxy(
        "tls = { ca = \"x\" }",
        "gateway.toml:6:9: offramp[0].tls.ca: unknown key; known here: ca_file, certificate_file, key_file, server_name",
    );
    let config = resolve(
        "[tun]\n[[offramp]]\nname = \"a\"\nkind = \"http-connect\"\naddress = \"[2001:db8::9]:8080\"\n\
         credentials_file = \"proxy.txt\"\ntls = { ca_file = \"/ca.pem\", certificate_file = \"c.pem\", key_file = \"k.pem\" }\n",
    )
    .unwrap();
    let base = config.source.parent().unwrap();
    let expected = OfframpKind::Proxy(ProxyConfig {
        scheme: ProxyScheme::HttpConnect,
        address: "[2001:db8::9]:8080".parse().unwrap(),
        credentials_file: Some(base.join("proxy.txt")),
        tls: Some(TlsConfig {
            ca_file: Some("/ca.pem".into()),
            identity: Some((base.join("c.pem"), base.join("k.pem"))),
            server_name: None,
        }),
    });
    assert_eq!(config.offramps[1].kind, expected);
}

#[test]
fn routes() {
    let with = |text: &str, expected: &[&str]| refused(&format!("[tun]\n[[route]]\n{text}\n"), expected);
    with("offramp = [\"direct\"]", &["gateway.toml:2:1: route[0].to: is missing"]);
    with("to = \"10.0.0.0/8\"", &["gateway.toml:2:1: route[0].offramp: is missing"]);
    with("to = \"10.0.0.0/8\"\nofframp = []", &["gateway.toml:4:11: route[0].offramp: must name at least one"]);
    with(
        "to = \"10.0.0.0/8\"\nofframp = [\"direkt\"]",
        &["gateway.toml:4:12: route[0].offramp[0]: there is no off-ramp `direkt`; there are: direct"],
    );
    with(
        "to = \"10.0.0.0/8\"\nofframp = [\"direct\", \"direct\"]",
        &["gateway.toml:4:22: route[0].offramp[1]: `direct` is given twice, first at 4:12"],
    );
    with(
        "to = \"10.0.0.0/8\"\nofframp = [\"direct\"]\n[[route]]\nto = \"10.0.0.0/8\"\nofframp = [\"direct\"]",
        &["gateway.toml:6:6: route[1].to: `10.0.0.0/8` is given twice, first at 3:6"],
    );
    with(
        "to = \"::ffff:10.0.0.0/104\"\nofframp = [\"direct\"]",
        &[
            "gateway.toml:3:6: route[0].to: \"::ffff:10.0.0.0/104\" hides an IPv4 address (IPv4-mapped); write the IPv4 address itself",
        ],
    );
}

#[test]
fn local_services() {
    for (service, why) in [
        ("0.0.0.0:22", "0.0.0.0:22 can never be a destination: give one of this host's own addresses, with its port"),
        (
            "127.0.0.1:22",
            "127.0.0.1:22 can never be a destination: give one of this host's own addresses, with its port",
        ),
        (
            "169.254.1.1:22",
            "169.254.1.1:22 can never be a destination: give one of this host's own addresses, with its port",
        ),
        (
            "[fe80::1]:22",
            "[fe80::1]:22 can never be a destination: give one of this host's own addresses, with its port",
        ),
        ("192.0.2.1", "`192.0.2.1` is not ADDRESS:PORT, like 192.0.2.1:22 or [::]:51820"),
        ("192.0.2.1:0", "port 0 is no port"),
        (
            "[::ffff:192.0.2.1]:22",
            "\"::ffff:192.0.2.1\" hides an IPv4 address (IPv4-mapped); write the IPv4 address itself",
        ),
    ] {
        refused_at_top(
            &format!("local_services = [\"{service}\"]"),
            &format!("gateway.toml:1:19: local_services[0]: {why}"),
        );
    }
}

#[test]
fn every_problem_comes_at_once_in_the_order_of_the_file() {
    refused(
        "drain = \"x\"\n[wireguard]\nmtu = 9\naddresses = [\"1.2.3.4\"]\n[[route]]\nto = \"10.0.0.0/8\"\nofframp = [\"ä\", \"b\"]\nx = 1\n",
        &[
            "gateway.toml:1:9: drain: `x` is not a duration, like \"10s\", \"5m\" or \"2h4m\"",
            "gateway.toml:3:7: wireguard.mtu: must be 1280 to 65535",
            "gateway.toml:4:14: wireguard.addresses[0]: `1.2.3.4` is not an address with its prefix length, like 100.96.0.1/16 or fd00:96::1/64",
            "gateway.toml:7:12: route[0].offramp[0]: there is no off-ramp `ä`; there are: direct",
            "gateway.toml:7:17: route[0].offramp[1]: there is no off-ramp `b`; there are: direct",
            "gateway.toml:8:1: route[0].x: unknown key; known here: network, to, offramp",
        ],
    );
}

#[test]
fn load_names_the_file_as_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.toml");
    let problems = Config::load(&path).unwrap_err();
    assert!(problems[0].to_string().starts_with(&format!("{}: cannot be read: No such file", path.display())));
    std::fs::write(&path, "[tun]\nmtu = 1\n").unwrap();
    let problems = Config::load(&path).unwrap_err();
    assert_eq!(problems[0].to_string(), format!("{}:2:7: tun.mtu: must be 1280 to 65535", path.display()));
    std::fs::write(&path, "[tun]\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().source, path);
}
