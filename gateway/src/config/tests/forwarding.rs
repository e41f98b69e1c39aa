use super::*;

#[test]
fn packets_that_go_on_as_they_are() {
    let keep = "[[offramp]]\nname = \"keep\"\nkind = \"kernel\"\n";
    refused(
        &format!("{WIREGUARD}{keep}"),
        &["gateway.toml:4:8: offramp[0].name: packets leave by the TUN device and come back by it: add a [tun] table"],
    );
    refused(
        &format!("[tun]\n{keep}source = [\"192.0.2.1\"]\ntls = {{}}\n"),
        &[
            "gateway.toml:5:10: offramp[0].source: means nothing to this kind; it is for direct, socks5, http-connect, wireguard",
            "gateway.toml:6:7: offramp[0].tls: means nothing to this kind; it is for socks5, http-connect",
        ],
    );
    let config = resolve(&format!("{WIREGUARD}[tun]\n{keep}")).unwrap();
    let returns = config.tun.unwrap().returns.unwrap();
    assert_eq!(returns.mtu, 1280);
    assert_eq!(returns.networks.iter().map(ToString::to_string).collect::<Vec<_>>(), ["100.96.0.0/16", "fd00:96::/64"]);
    let without = resolve(&format!("{WIREGUARD}[tun]\n")).unwrap();
    assert_eq!(without.tun.unwrap().returns, None);
}

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

#[test]
fn sites() {
    let site = format!("[[offramp]]\nname = \"berlin\"\nkind = \"wireguard\"\npublic_key = \"{KEY}\"\n");
    let endpoint = "endpoint = [\"berlin.example.com:51820\"]\n";
    let with = |text: &str, expected: &[&str]| refused(&format!("{WIREGUARD}{site}{text}"), expected);
    with("source = \"client\"\n", &["gateway.toml:3:1: offramp[0].endpoint: is missing"]);
    with(
        &format!(
            "{endpoint}source = \"site\"\nmode = \"both\"\nports = \"1-2\"\nhealth = {{ tcp = \"10.0.0.1:1\" }}\n"
        ),
        &[
            "gateway.toml:8:10: offramp[0].source: packets to the site carry our address there: give `addresses`, or `source = \"client\"`",
            "gateway.toml:9:8: offramp[0].mode: `both` is not known; known: forward, terminate",
            "gateway.toml:10:9: offramp[0].ports: means nothing to this kind; it is for direct, socks5, http-connect",
            "gateway.toml:11:10: offramp[0].health: probes come from our address at the site: give one of this family in `addresses`",
        ],
    );
    with(
        &format!(
            "endpoint = [\"nowhere\"]\naddresses = [\"10.99.0.2/32\", \"10.99.0.3/32\"]\nkeepalive = \"20h\"\n{site}{endpoint}source = \"client\"\n"
        ),
        &[
            "gateway.toml:7:13: offramp[0].endpoint[0]: expected HOST:PORT, like vpn.example.com:51820 or [2001:db8::1]:51820",
            "gateway.toml:8:30: offramp[0].addresses[1]: is a second IPv4 address, the first is at 8:14; one of each family is the most",
            "gateway.toml:9:13: offramp[0].keepalive: must be 1s to 18h12m15s",
            "gateway.toml:11:8: offramp[1].name: `berlin` is already the name of the off-ramp at 4:8",
        ],
    );
    refused(
        &format!("[tun]\n{site}{endpoint}addresses = [\"10.99.0.2/32\"]\n"),
        &[
            "gateway.toml:3:8: offramp[0].name: the site's tunnel goes out by the socket of the on-ramp, with its key: add a [wireguard] table",
        ],
    );
    let rest = "addresses = [\"10.99.0.2/24\"]\nkeepalive = \"25s\"\npreshared_key_file = \"berlin.psk\"\n";
    let config = resolve(&format!("{WIREGUARD}{site}{endpoint}{rest}")).unwrap();
    let OfframpKind::Wireguard(site) = &config.offramps[1].kind else { panic!("a site") };
    assert_eq!((site.keeps_client, site.keepalive), (false, Some(Duration::from_secs(25))));
    assert!(
        site.preshared_key_file.as_ref().is_some_and(|path| path.ends_with("berlin.psk") && path.parent().is_some())
    );
}

#[test]
fn virtual_networks() {
    let route = |network: &str, to: &str| {
        format!("[[route]]\nnetwork = \"{network}\"\nto = \"{to}\"\nofframp = [\"direct\"]\n")
    };
    refused(
        &format!("[tun]\n[[network]]\nname = \"lab\"\n{}", route("lan", "10.0.0.0/8")),
        &[
            "gateway.toml:3:8: network[0].name: no [[route]] is of this network, so nothing could be reached from it",
            "gateway.toml:5:11: route[0].network: there is no [[network]] `lan`; there are: default, lab",
        ],
    );
    let both = [route("lab", "10.0.0.0/8"), route("default", "10.0.0.0/8"), route("lab", "10.0.0.0/8")].concat();
    refused(
        &format!("[tun]\n[[network]]\nname = \"lab\"\n[[network]]\nname = \"lab\"\n{both}"),
        &[
            "gateway.toml:5:8: network[1].name: `lab` is given twice, first at 3:8",
            "gateway.toml:16:6: route[2].to: `10.0.0.0/8` is given twice, first at 8:6",
        ],
    );
    let twice =
        [route("lab", "10.0.0.0/8"), "[[route]]\nto = \"10.0.0.0/8\"\nofframp = [\"direct\"]\n".to_owned()].concat();
    let config = resolve(&format!("[tun]\n[[network]]\nname = \"lab\"\n{twice}")).unwrap();
    let networks: Vec<&str> = config.routes.iter().map(|route| &*route.network).collect();
    assert_eq!((networks, config.networks), (vec!["lab", "default"], vec!["lab".into()]));
}
