//! Every class of mistake in `directory.json`, with the exact message and place.

use std::net::Ipv4Addr;

use portcullis_policy::{Context, KnownUser, Revision};

use super::*;
use crate::keys::encode_key;

fn context() -> DirectoryContext {
    DirectoryContext {
        tunnel: vec!["100.96.0.1/16".parse().unwrap(), "fd00:96::1/64".parse().unwrap()],
        own_public_key: Some([9; 32]),
        networks: vec!["lab".into()],
    }
}

fn key(number: u8) -> String {
    encode_key(&[number; 32])
}

fn parse(text: &str) -> Result<Directory, Vec<String>> {
    Directory::parse(text, &context())
        .map_err(|problems| problems.iter().map(|problem| problem.in_file("directory.json").to_string()).collect())
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(problems) => assert_eq!(problems, expected, "for:\n{text}"),
    }
}

/// A file with users ann and bob, and these lines of devices; the first device stands on line 3.
fn with_devices(devices: &str) -> String {
    format!(
        "{{ \"users\": {{ \"ann\": {{}}, \"bob\": {{ \"groups\": [\"eng\"] }} }},\n\"devices\": {{\n{devices}\n}} }}"
    )
}

#[track_caller]
fn refused_devices(devices: &str, expected: &[&str]) {
    refused(&with_devices(devices), expected);
}

/// One device with a good user, key and address, and one member more.
#[track_caller]
fn refused_member(member: &str, expected: &str) {
    let device = format!(
        "\"d\": {{ \"user\": \"ann\", \"public_key\": \"{}\", \"addresses\": [\"100.96.0.2\"],\n{member} }}",
        key(1)
    );
    refused_devices(&device, &[expected]);
}

#[test]
fn the_example_of_the_specification_loads() {
    let directory = parse(&format!(
        r#"{{
  "users": {{
    "ann@example.com": {{ "groups": ["eng", "dba"] }},
    "bob@example.com": {{ "groups": ["eng"], "disabled": false }},
    "site-berlin@example.com": {{}}
  }},
  "devices": {{
    "ann-laptop": {{ "user": "ann@example.com", "public_key": "{}", "preshared_key": "{}",
                    "addresses": ["100.96.0.2", "fd00:96::2"], "expires": "2027-01-01T00:00:00Z",
                    "posture": {{ "disk_encrypted": true, "os": "macos", "os_version": "15.1" }} }},
    "branch-berlin": {{ "user": "site-berlin@example.com", "networks": ["192.168.7.0/24", "fd01::/48"] }}
  }}
}}"#,
        key(1),
        key(2)
    ))
    .unwrap();
    let laptop = directory.device("ann-laptop").unwrap();
    assert_eq!(&*laptop.identity.user, "ann@example.com");
    assert_eq!(laptop.identity.groups.iter().map(|group| &**group).collect::<Vec<_>>(), ["dba", "eng"]);
    assert_eq!(laptop.identity.posture.at("os_version", Timestamp::UNIX_EPOCH), Some(&"15.1".into()));
    assert_eq!(laptop.preshared_key, Some(PresharedKey([2; 32])));
    assert_eq!(laptop.addresses.len(), 2);
    assert!(laptop.usable_at("2026-12-31T23:59:59Z".parse().unwrap()));
    assert!(!laptop.usable_at("2027-01-01T00:00:00Z".parse().unwrap()));
    assert!(Arc::ptr_eq(directory.device_by_key(&[1; 32]).unwrap(), laptop));
    assert!(directory.device_by_key(&[2; 32]).is_none());
    let found =
        |address: &str| directory.device_by_network(address.parse().unwrap()).map(|device| &*device.identity.device);
    assert_eq!(found("192.168.7.9"), Some("branch-berlin"));
    assert_eq!(found("fd01:0:0:5::1"), Some("branch-berlin"));
    assert_eq!(found("192.168.8.9"), None);
    assert_eq!(found("100.96.0.2"), None);
    assert_eq!(directory.groups().map(|group| &**group).collect::<Vec<_>>(), ["dba", "eng"]);
    assert!(directory.has_group("dba") && !directory.has_group("ops"));
    assert_eq!(directory.users().count(), 3);
    assert!(!format!("{directory:?}").contains("[2, 2"), "a preshared key is printed");
}

#[test]
fn a_default_network_takes_what_is_left_over() {
    let context = DirectoryContext::default();
    let text = with_devices("\"d\": { \"user\": \"ann\", \"networks\": [\"0.0.0.0/0\"] }");
    let directory = Directory::parse(&text, &context).unwrap();
    assert!(directory.device_by_network("198.51.100.1".parse().unwrap()).is_some());
    assert!(directory.device_by_network("fd00::1".parse().unwrap()).is_none());
}

#[test]
fn disabled_users_and_devices_and_revoked_devices_may_nothing() {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let directory = parse(
        r#"{ "users": { "ann": {}, "bob": { "disabled": true } }, "devices": {
            "a": { "user": "ann", "networks": ["10.0.0.0/24"] },
            "b": { "user": "ann", "networks": ["10.0.1.0/24"], "disabled": true },
            "c": { "user": "ann", "networks": ["10.0.2.0/24"], "revoked": true },
            "d": { "user": "bob", "networks": ["10.0.3.0/24"] } } }"#,
    )
    .unwrap();
    let usable = |name: &str| directory.device(name).unwrap().usable_at(now);
    assert_eq!(["a", "b", "c", "d"].map(usable), [true, false, false, false]);
    assert!(directory.device("c").unwrap().revoked && !directory.device("b").unwrap().revoked);
}

#[test]
fn documents_that_are_not_sound() {
    refused("", &["directory.json:1:1: $: is empty"]);
    refused("[]", &["directory.json:1:1: $: expected an object, found an array"]);
    refused(
        "{}",
        &[
            "directory.json:1:1: $: the key \"devices\" is missing",
            "directory.json:1:1: $: the key \"users\" is missing",
        ],
    );
    refused(
        "{ \"users\": {}, \"devices\": {}, \"groups\": {} }",
        &["directory.json:1:31: groups: unknown key \"groups\""],
    );
    refused(
        "{ \"users\": {}, \"users\": {}, \"devices\": {} }",
        &["directory.json:1:16: users: the key \"users\" is already used on line 1"],
    );
    refused("{ \"users\": [], \"devices\": {} }", &["directory.json:1:12: users: expected an object, found an array"]);
    assert!(parse("{ \"users\": {}, \"devices\": {}").unwrap_err()[0].starts_with("directory.json:1:"));
}

#[test]
fn users() {
    let with = |users: &str, expected: &str| {
        refused(&format!("{{ \"devices\": {{}}, \"users\": {{\n{users}\n}} }}"), &[expected])
    };
    with("\"ann\": 1", "directory.json:2:8: users.ann: expected an object, found 1");
    with(
        "\"ann\": { \"group\": [] }",
        "directory.json:2:10: users.ann.group: unknown key \"group\"; did you mean \"groups\"?",
    );
    with(
        "\"ann\": { \"groups\": \"eng\" }",
        "directory.json:2:20: users.ann.groups: expected an array, found a string",
    );
    with("\"ann\": { \"groups\": [1] }", "directory.json:2:21: users.ann.groups[0]: expected a string, found 1");
    with("\"ann\": { \"groups\": [\"\"] }", "directory.json:2:21: users.ann.groups[0]: the name of a group is empty");
    with(
        "\"ann\": { \"groups\": [\"eng\", \"eng\"] }",
        "directory.json:2:28: users.ann.groups[1]: is already given at 2:21: users.ann.groups[0]",
    );
    with("\"ann\": { \"disabled\": 1 }", "directory.json:2:22: users.ann.disabled: expected true or false, found 1");
    with("\"\": {}", "directory.json:2:1: users[\"\"]: the name of a user is empty");
    with("\"a\\nb\": {}", "directory.json:2:1: users[\"a\\nb\"]: the name of a user holds a control character");
    with("\" a\": {}", "directory.json:2:1: users[\" a\"]: the name of a user begins or ends with space");
    with("\"ann\": {}, \"ann\": {}", "directory.json:2:12: users.ann: the key \"ann\" is already used on line 2");
    let long = "x".repeat(254);
    let message = parse(&format!("{{ \"devices\": {{}}, \"users\": {{ \"{long}\": {{}} }} }}")).unwrap_err().remove(0);
    assert!(message.ends_with("the name of a user is 254 bytes long; 253 is the most"), "{message}");
}

#[test]
fn devices_must_be_recognisable() {
    refused_devices(
        "\"d\": { \"user\": \"ann\" }",
        &["directory.json:3:6: devices.d: a device needs a \"public_key\" with \"addresses\", or \"networks\""],
    );
    refused_devices(
        "\"d\": { \"user\": \"ann\", \"networks\": [] }",
        &["directory.json:3:6: devices.d: a device needs a \"public_key\" with \"addresses\", or \"networks\""],
    );
    let bare = format!("\"d\": {{ \"user\": \"ann\", \"public_key\": \"{}\" }}", key(1));
    let message = "directory.json:3:37: devices.d.public_key: a \"public_key\" without \"addresses\" or \"networks\": the device could send nothing";
    refused_devices(&bare, &[message]);
    refused_devices(&bare.replace(" }", ", \"addresses\": [] }"), &[message]);
    refused_devices(
        "\"d\": { \"user\": \"ann\", \"addresses\": [\"100.96.0.2\"] }",
        &["directory.json:3:36: devices.d.addresses: addresses without a \"public_key\""],
    );
    refused_devices(
        &format!("\"d\": {{ \"user\": \"ann\", \"networks\": [\"10.0.0.0/8\"], \"preshared_key\": \"{}\" }}", key(1)),
        &["directory.json:3:68: devices.d.preshared_key: a preshared key without a \"public_key\""],
    );
}

#[test]
fn users_of_devices() {
    refused_devices(
        "\"d\": { \"networks\": [\"10.0.0.0/8\"] }",
        &["directory.json:3:6: devices.d: the key \"user\" is missing"],
    );
    refused_devices(
        "\"d\": { \"user\": \"anna\", \"networks\": [\"10.0.0.0/8\"] }",
        &["directory.json:3:16: devices.d.user: there is no user \"anna\"; did you mean \"ann\"?"],
    );
    refused_devices(
        "\"d\": { \"user\": \"charlotte\", \"networks\": [\"10.0.0.0/8\"] }",
        &["directory.json:3:16: devices.d.user: there is no user \"charlotte\""],
    );
    refused_devices(
        "\"d\": { \"user\": \"ann\", \"networks\": [\"10.0.0.0/8\"] },\n\"d\": { \"user\": \"bob\", \"networks\": [\"11.0.0.0/8\"] }",
        &["directory.json:4:1: devices.d: the key \"d\" is already used on line 3"],
    );
    refused_devices(
        "\"d\\u007f\": { \"user\": \"ann\", \"networks\": [\"10.0.0.0/8\"] }",
        &["directory.json:3:1: devices[\"d\u{7f}\"]: the name of a device holds a control character"],
    );
}

#[test]
fn keys_of_devices() {
    let with = |key: &str, expected: &str| {
        refused_devices(
            &format!("\"d\": {{ \"user\": \"ann\", \"addresses\": [\"100.96.0.2\"], \"public_key\": \"{key}\" }}"),
            &[&format!("directory.json:3:66: devices.d.public_key: {expected}")],
        );
    };
    let not_a_key = "is not a key: 32 bytes in base64, 44 characters as `wg pubkey` and `wg genkey` print them";
    with("", not_a_key);
    with("AQEB", not_a_key);
    with(key(1).trim_end_matches('='), not_a_key);
    with(&key(1).replace("AQE=", "AQF="), not_a_key);
    with("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "is all zeros, which is no key");
    with("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "is a point of low order, which keeps nothing secret");
    with(&key(9), "is the gateway's own key, which no device can have");
    refused_member("\"preshared_key\": \"x\"", &format!("directory.json:4:18: devices.d.preshared_key: {not_a_key}"));
    refused_devices(
        &format!(
            "\"d\": {{ \"user\": \"ann\", \"public_key\": \"{0}\", \"addresses\": [\"100.96.0.2\"] }},\n\"e\": {{ \"user\": \"bob\", \"public_key\": \"{0}\", \"addresses\": [\"100.96.0.3\"] }}",
            key(1)
        ),
        &["directory.json:4:37: devices.e.public_key: is already the key at 3:37: devices.d.public_key"],
    );
}

#[test]
fn addresses_of_devices() {
    let with = |address: &str, expected: &str| {
        refused_devices(
            &format!("\"d\": {{ \"user\": \"ann\", \"public_key\": \"{}\",\n\"addresses\": [\"{address}\"] }}", key(1)),
            &[&format!("directory.json:4:15: devices.d.addresses[0]: {expected}")],
        );
    };
    with("10.0.0.1", "10.0.0.1 is outside the tunnel networks 100.96.0.0/16 and fd00:96::/64");
    with("100.96.0.1", "100.96.0.1 is the gateway's own address");
    with("fd00:96::1", "fd00:96::1 is the gateway's own address");
    with("100.96.0.0", "100.96.0.0 stands for the network 100.96.0.0/16 or for all its hosts");
    with("100.96.255.255", "100.96.255.255 stands for the network 100.96.0.0/16 or for all its hosts");
    with("fd00:96::", "fd00:96:: stands for the network fd00:96::/64 or for all its hosts");
    with(
        "::ffff:100.96.0.2",
        "\"::ffff:100.96.0.2\" hides an IPv4 address (IPv4-mapped); write the IPv4 address itself",
    );
    with("100.96.0.02", "\"100.96.0.02\" is ambiguous; write 100.96.0.2");
    with("100.96.0.2/32", "\"100.96.0.2/32\" is not an IP address");
    refused_devices(
        &format!(
            "\"d\": {{ \"user\": \"ann\", \"public_key\": \"{}\", \"addresses\": [\"100.96.0.2\"] }},\n\"e\": {{ \"user\": \"bob\", \"public_key\": \"{}\",\n\"addresses\": [\"100.96.0.2\"] }}",
            key(1),
            key(2)
        ),
        &["directory.json:5:15: devices.e.addresses[0]: 100.96.0.2 is already given at 3:99: devices.d.addresses[0]"],
    );
    let text = with_devices(&format!(
        "\"d\": {{ \"user\": \"ann\", \"public_key\": \"{}\", \"addresses\": [\"100.96.0.2\"] }}",
        key(1)
    ));
    let problems = Directory::parse(&text, &DirectoryContext::default()).unwrap_err();
    assert_eq!(
        problems[0].message,
        "100.96.0.2 is in no tunnel network, because gateway.toml has no [wireguard] table"
    );
}

#[test]
fn t02_what_is_given_twice_is_refused_with_both_places() {
    let (one, two) = (key(1), key(2));
    let device = |name: &str, key: &str, members: &str| {
        format!("\"{name}\": {{ \"user\": \"ann\",\n\"public_key\": \"{key}\", {members} }}")
    };
    let both = |members: [&str; 2]| format!("{},\n{}", device("d", &one, members[0]), device("e", &two, members[1]));
    let same_key = format!(
        "{},\n{}",
        device("d", &one, "\"addresses\": [\"100.96.0.2\"]"),
        device("e", &one, "\"addresses\": [\"100.96.0.3\"]")
    );
    refused_devices(
        &same_key,
        &["directory.json:6:15: devices.e.public_key: is already the key at 4:15: devices.d.public_key"],
    );
    refused_devices(
        &both([r#""addresses": ["100.96.0.2"]"#, r#""addresses": ["100.96.0.3", "100.96.0.2"]"#]),
        &["directory.json:6:91: devices.e.addresses[1]: 100.96.0.2 is already given at 4:77: devices.d.addresses[0]"],
    );
    // Within one device.
    refused_devices(
        &device("d", &one, r#""addresses": ["fd00:96::a", "fd00:96::a"]"#),
        &["directory.json:4:91: devices.d.addresses[1]: fd00:96::a is already given at 4:77: devices.d.addresses[0]"],
    );
    refused_devices(
        &both([
            r#""addresses": ["100.96.0.2"], "networks": ["10.7.0.0/16"]"#,
            r#""addresses": ["100.96.0.3"], "networks": ["10.7.8.0/24"]"#,
        ]),
        &[
            "directory.json:6:105: devices.e.networks[0]: 10.7.8.0/24 overlaps 10.7.0.0/16 at 4:105: devices.d.networks[0]",
        ],
    );
    // A name that stands twice, of which JSON readers keep the last in silence.
    refused_devices(
        &format!(
            "{},\n{}",
            device("d", &one, "\"addresses\": [\"100.96.0.2\"]"),
            device("d", &two, "\"addresses\": [\"100.96.0.3\"]")
        ),
        &["directory.json:5:1: devices.d: the key \"d\" is already used on line 3"],
    );
}

/// The points of low order of curve25519 and their other encodings (RFC 7748, section 6.1, and its discussion).
#[test]
fn t02_keys_that_are_none_are_refused() {
    let low_order = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let enrolled = |key: [u8; 32]| {
        let key = encode_key(&key);
        let devices =
            format!("\"d\": {{ \"user\": \"ann\", \"addresses\": [\"100.96.0.2\"], \"public_key\": \"{key}\" }}");
        parse(&with_devices(&devices))
    };
    for hex in low_order {
        for high_bit in [0, 0x80] {
            let mut key = [0; 32];
            for (at, byte) in key.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
            }
            key[31] |= high_bit;
            let problems = enrolled(key).unwrap_err();
            assert_eq!(problems.len(), 1, "{hex}");
            assert!(problems[0].starts_with("directory.json:3:66: devices.d.public_key: is "), "{problems:?}");
        }
    }
    let own = enrolled([9; 32]).unwrap_err();
    assert_eq!(own, ["directory.json:3:66: devices.d.public_key: is the gateway's own key, which no device can have"]);
    // Its other encoding is the same point: what is agreed on with it is the same too.
    let mut high_bit = [9; 32];
    high_bit[31] |= 0x80;
    let problems = enrolled(high_bit).unwrap_err();
    assert!(problems[0].ends_with("is not the way its point is written; `wg pubkey` prints it"), "{problems:?}");
    for (low, accepted) in [(0xec - 3, true), (0xed + 2, false), (0xff, false)] {
        let mut near_the_prime = [0xff; 32];
        (near_the_prime[0], near_the_prime[31]) = (low, 0x7f);
        assert_eq!(enrolled(near_the_prime).is_ok(), accepted, "{low:#x}");
    }
}

#[test]
fn networks_of_devices() {
    let with = |network: &str, expected: &str| {
        refused_devices(
            &format!("\"d\": {{ \"user\": \"ann\",\n\"networks\": [\"{network}\"] }}"),
            &[&format!("directory.json:4:14: devices.d.networks[0]: {expected}")],
        );
    };
    with("10.0.0.1/8", "\"10.0.0.1/8\" has host bits; write 10.0.0.0/8 for the network or 10.0.0.1/32 for the host");
    with("10.0.0.1", "\"10.0.0.1\" is not a prefix; expected an IP address, a slash and a length");
    with("100.96.7.0/24", "100.96.7.0/24 overlaps the tunnel network 100.96.0.0/16");
    with("100.0.0.0/8", "100.0.0.0/8 overlaps the tunnel network 100.96.0.0/16");
    with("2002::/16", "\"2002::/16\" hides an IPv4 address (6to4); write the IPv4 address itself");
    with("224.0.0.0/4", "224.0.0.0/4 is nowhere a host could be");
    with("127.0.0.0/8", "127.0.0.0/8 is nowhere a host could be");
    refused_devices(
        "\"d\": { \"user\": \"ann\", \"networks\": [\"10.1.0.0/16\", \"11.0.0.0/8\"] },\n\"e\": { \"user\": \"bob\", \"networks\": [\"10.0.0.0/8\", \"11.0.0.0/8\"] }",
        &[
            "directory.json:4:36: devices.e.networks[0]: 10.0.0.0/8 overlaps 10.1.0.0/16 at 3:36: devices.d.networks[0]",
            "directory.json:4:50: devices.e.networks[1]: 11.0.0.0/8 overlaps 11.0.0.0/8 at 3:51: devices.d.networks[1]",
        ],
    );
}

#[test]
fn other_members_of_devices() {
    refused_member(
        "\"expire\": 1",
        "directory.json:4:1: devices.d.expire: unknown key \"expire\"; did you mean \"expires\"?",
    );
    refused_member(
        "\"user\": \"bob\"",
        "directory.json:4:1: devices.d.user: the key \"user\" is already used on line 3",
    );
    refused_member(
        "\"expires\": \"2027-01-01\"",
        "directory.json:4:12: devices.d.expires: \"2027-01-01\" is not an instant; write it as RFC 3339 says, such as 2027-01-31T00:00:00Z",
    );
    refused_member("\"posture\": []", "directory.json:4:12: devices.d.posture: expected an object, found an array");
    refused_member(
        "\"posture\": { \"os\": null }",
        "directory.json:4:20: devices.d.posture.os: expected true, false, a number or a string, found null",
    );
    refused_member(
        "\"disabled\": \"no\"",
        "directory.json:4:13: devices.d.disabled: expected true or false, found a string",
    );
    refused_member("\"revoked\": null", "directory.json:4:12: devices.d.revoked: expected true or false, found null");
}

#[test]
fn every_problem_comes_at_once() {
    refused_devices(
        &format!(
            "\"d\": {{ \"user\": \"x\", \"public_key\": \"{}\", \"addresses\": [\"1.2.3.4\", \"fd00::1\"] }},\n\"e\": {{ \"user\": \"bob\", \"networks\": [\"10\"] }}",
            key(9)
        ),
        &[
            "directory.json:3:16: devices.d.user: there is no user \"x\"",
            "directory.json:3:35: devices.d.public_key: is the gateway's own key, which no device can have",
            "directory.json:3:97: devices.d.addresses[0]: 1.2.3.4 is outside the tunnel networks 100.96.0.0/16 and fd00:96::/64",
            "directory.json:3:108: devices.d.addresses[1]: fd00::1 is outside the tunnel networks 100.96.0.0/16 and fd00:96::/64",
            "directory.json:4:36: devices.e.networks[0]: \"10\" is not a prefix; expected an IP address, a slash and a length",
        ],
    );
}

#[test]
fn ten_thousand_devices_are_found() {
    let devices: Vec<String> = (0..10_000_u32)
        .map(|i| {
            let mut bytes = [3; 32];
            bytes[..4].copy_from_slice(&i.to_be_bytes());
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 96, 0, 2)) + i);
            format!(
                "\"d{i}\": {{ \"user\": \"ann\", \"public_key\": \"{}\", \"addresses\": [\"{address}\"], \"networks\": [\"10.{}.{}.0/24\"] }}",
                encode_key(&bytes),
                i / 256,
                i % 256
            )
        })
        .collect();
    let directory = parse(&with_devices(&devices.join(",\n"))).unwrap();
    assert_eq!(directory.devices().count(), 10_000);
    // What is behind a tunnel is not behind the TUN.
    assert!(directory.device_by_network("10.39.15.77".parse().unwrap()).is_none());
    for inside in ["10.39.15.77", "100.96.39.17"] {
        let device = directory.device_by_tunnel("default", inside.parse().unwrap()).unwrap();
        assert_eq!(&*device.identity.device, "d9999");
    }
    let allocated = allocate::allocate(&directory, &context()).unwrap();
    assert_eq!(allocated, ["100.96.39.18".parse::<IpAddr>().unwrap(), "fd00:96::2".parse().unwrap()]);
}

#[test]
fn a_policy_adds_to_the_groups_of_devices() {
    let directory = parse(&with_devices(
        "\"d\": { \"user\": \"ann\", \"networks\": [\"10.0.0.0/8\"] },\n\"e\": { \"user\": \"bob\", \"networks\": [\"11.0.0.0/8\"] }",
    ))
    .unwrap();
    let own = Arc::clone(&directory.user("ann").unwrap().groups);
    let policy = |groups: &str| {
        let users = ["ann", "bob"].map(|name| {
            (name, KnownUser { groups: &directory.user(name).unwrap().groups, network: "default", disabled: false })
        });
        let context = Context { users: users.into(), ..Context::default() };
        let text = format!("{{ \"version\": 1, \"rules\": [], \"groups\": {{ {groups} }} }}");
        Ruleset::compile(text.as_bytes(), &context, Revision(1), Timestamp::UNIX_EPOCH).unwrap()
    };
    let (nested, none) = (policy(r#""out": ["group:in"], "in": ["user:ann"]"#), policy(""));
    let unchanged = Arc::clone(directory.device("e").unwrap());
    let directory = directory.in_groups_of(&nested);
    let groups: Vec<&str> = directory.device("d").unwrap().identity.groups.iter().map(|group| &**group).collect();
    assert!(groups.contains(&"in") && groups.contains(&"out"), "{groups:?}");
    assert!(Arc::ptr_eq(directory.device("e").unwrap(), &unchanged));
    let barred = directory.barring("d").unwrap();
    assert_eq!(barred.device("d").unwrap().identity.groups, directory.device("d").unwrap().identity.groups);
    // The next policy begins from what the file says.
    assert_eq!(directory.user("ann").unwrap().groups, own);
    assert_eq!(directory.in_groups_of(&none).device("d").unwrap().identity.groups, own);
}

#[test]
fn addresses_mean_something_in_a_network() {
    let site = |name: &str, number: u8, rest: &str| {
        let key = key(number);
        format!("\"{name}\": {{ \"user\": \"ann\", \"public_key\": \"{key}\", \"networks\": [\"10.7.0.0/16\"]{rest} }}")
    };
    let apart = [site("d", 1, ""), site("e", 2, r#", "network": "lab""#)].join(",\n");
    let directory = parse(&with_devices(&apart)).unwrap();
    let at = |network: &str| {
        let device = directory.device_by_tunnel(network, "10.7.1.1".parse().unwrap());
        device.map(|device| device.identity.device.to_string())
    };
    assert_eq!((at("default"), at("lab"), at("other")), (Some("d".to_owned()), Some("e".to_owned()), None));
    assert_eq!(&*directory.device("d").unwrap().identity.network, "default");
    let beside = [site("d", 1, r#", "network": "lab""#), site("e", 2, r#", "network": "lab""#)].join(",\n");
    let problems = parse(&with_devices(&beside)).unwrap_err();
    assert!(problems[0].contains("10.7.0.0/16 overlaps 10.7.0.0/16 at 3:"), "{problems:?}");
    let problems = parse(&with_devices(&site("d", 1, r#", "network": "lap""#))).unwrap_err();
    assert!(
        problems[0].ends_with(
            "there is no network \"lap\" in gateway.toml, or was none when the gateway started; did you mean \"lab\"?"
        ),
        "{problems:?}"
    );

    // That of the user, where the device says nothing.
    let text = r#"{ "users": { "ann": { "network": "lab" } }, "devices": {
        "a": { "user": "ann", "networks": ["10.0.0.0/24"] },
        "b": { "user": "ann", "networks": ["10.0.1.0/24"], "network": "default" } } }"#;
    let directory = parse(text).unwrap();
    let network = |name: &str| directory.device(name).unwrap().identity.network.to_string();
    assert_eq!((network("a"), network("b")), ("lab".to_owned(), "default".to_owned()));
}
