//! Files that are refused, each with the place of what is wrong.

use std::path::Path;

use jiff::Timestamp;
use portcullis::config::Config;
use portcullis::directory::{Directory, DirectoryContext};
use portcullis::rulesets::policy_context;
use portcullis_policy::json::Problem;
use portcullis_policy::{Revision, Ruleset};

const DIRECTORY: &str = r#"{
  "users": {
    "ann": { "groups": ["dba"], "disabled": false },
    "bob": { "groups": ["eng"] }
  },
  "devices": {
    "laptop": {
      "user": "ann",
      "public_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
      "addresses": ["100.96.0.2", "fd00:96::2"],
      "expires": "2027-01-01T00:00:00Z",
      "posture": { "disk": true, "os": "macos" }
    },
    "branch": { "user": "bob", "networks": ["192.168.7.0/24"] }
  }
}"#;

const POLICY: &str = r#"{
  "version": 1,
  "groups": { "tech": ["group:eng", "user:ann"] },
  "resources": {
    "db": { "addresses": ["10.0.5.12"], "services": ["tcp/5432"] },
    "web": { "addresses": ["10.0.8.0/24"], "description": "inside" }
  },
  "postures": { "managed": { "disk": true, "version": ">=14", "os": ["macos", "linux"] } },
  "rules": [
    { "id": "one", "action": "allow", "from": ["group:tech"], "not_from": ["user:bob"],
      "to": ["db", "10.0.9.0/24"], "not_to": ["10.0.9.7"], "services": ["tcp/5432", "tcp/8000-8100"],
      "when": { "posture": ["managed"], "days": "mon-fri", "hours": "08:00-18:00", "zone": "Europe/Berlin",
                "not_before": "2026-01-01T00:00:00Z", "not_after": "2028-01-01T00:00:00Z" } },
    { "id": "two", "action": "deny", "silent": true, "mode": "audit", "from": ["*"], "to": ["web"] }
  ],
  "tests": [
    { "from": "ann", "to": "10.0.9.9:22/tcp", "expect": "deny", "at": "2027-01-13T11:00:00Z" }
  ]
}"#;

/// What is put in place of a text that a good policy has once, and the path that is refused. `¦` is before the place.
#[rustfmt::skip]
const POLICIES: &[(&str, &str, &str)] = &[
    // Keys that nobody knows, at each level.
    (r#""version": 1,"#, r#""version": 1, ¦"vresion": 1,"#, "vresion"),
    (r#""description": "inside""#, r#"¦"descr": "inside""#, "resources.web.descr"),
    (r#""silent": true"#, r#"¦"quiet": true"#, "rules[1].quiet"),
    (r#""zone": "Europe/Berlin""#, r#"¦"tz": "Europe/Berlin""#, "rules[0].when.tz"),
    (r#""at": "2027-01-13T11:00:00Z""#, r#"¦"when": "2027-01-13T11:00:00Z""#, "tests[0].when"),
    // Keys that stand twice.
    (r#""version": 1,"#, r#""version": 1, ¦"version": 1,"#, "version"),
    (r#""web": {"#, r#"¦"db": { "addresses": ["10.0.0.1"] }, "web": {"#, "resources.db"),
    (r#"["group:eng", "user:ann"] }"#, r#"["group:eng"], ¦"tech": ["user:ann"] }"#, "groups.tech"),
    (r#""disk": true,"#, r#""disk": true, ¦"disk": true,"#, "postures.managed.disk"),
    (r#""silent": true,"#, r#""silent": true, ¦"silent": true,"#, "rules[1].silent"),
    (r#""days": "mon-fri","#, r#""days": "mon-fri", ¦"days": "sat","#, "rules[0].when.days"),
    (r#""expect": "deny","#, r#""expect": "deny", ¦"expect": "deny","#, "tests[0].expect"),
    // Wrong types.
    (r#""version": 1,"#, r#""version": ¦"1","#, "version"),
    (r#""version": 1,"#, r#""$schema": ¦1, "version": 1,"#, r#"$["$schema"]"#),
    (r#"["group:eng", "user:ann"]"#, r#"¦"group:eng""#, "groups.tech"),
    (r#""description": "inside""#, r#""description": ¦null"#, "resources.web.description"),
    (r#""managed": { "disk": true, "version": ">=14", "os": ["macos", "linux"] }"#, r#""managed": ¦[]"#, "postures.managed"),
    (r#"["user:bob"]"#, r#"¦{}"#, "rules[0].not_from"),
    (r#"["10.0.9.7"]"#, r#"[¦["10.0.9.7"]]"#, "rules[0].not_to[0]"),
    (r#""silent": true"#, r#""silent": ¦1"#, "rules[1].silent"),
    (r#""hours": "08:00-18:00""#, r#""hours": ¦8"#, "rules[0].when.hours"),
    // Lists with nothing in them.
    (r#"["group:eng", "user:ann"]"#, "¦[]", "groups.tech"),
    (r#"["10.0.5.12"]"#, "¦[]", "resources.db.addresses"),
    (r#"["tcp/5432"] }"#, "¦[] }", "resources.db.services"),
    (r#"["macos", "linux"]"#, "¦[]", "postures.managed.os"),
    (r#"["group:tech"]"#, "¦[]", "rules[0].from"),
    (r#"["db", "10.0.9.0/24"]"#, "¦[]", "rules[0].to"),
    (r#"["managed"]"#, "¦[]", "rules[0].when.posture"),
    (r#""days": "mon-fri""#, r#""days": ¦[]"#, "rules[0].when.days"),
    // Addresses.
    ("10.0.5.12\"", "10.0.5.12\", ¦\"10.0.0.1/8\"", "resources.db.addresses[1]"),
    (r#""10.0.9.7""#, r#"¦"010.0.0.1""#, "rules[0].not_to[0]"),
    (r#""10.0.9.0/24""#, r#"¦"::ffff:10.0.0.1""#, "rules[0].to[1]"),
    (r#""user:bob""#, r#"¦"net:10.0.0.1/8""#, "rules[0].not_from[0]"),
    (r#""10.0.9.9:22/tcp""#, r#"¦"010.0.0.1:22/tcp""#, "tests[0].to"),
    // Ports.
    (r#""tcp/8000-8100""#, r#"¦"tcp/1e3""#, "rules[0].services[1]"),
    (r#""tcp/8000-8100""#, r#"¦"tcp/65536""#, "rules[0].services[1]"),
    (r#""tcp/8000-8100""#, r#"¦"udp/8100-8000""#, "rules[0].services[1]"),
    (r#""tcp/8000-8100""#, "¦1e3", "rules[0].services[1]"),
    (r#""tcp/8000-8100""#, r#"¦"proto/256""#, "rules[0].services[1]"),
    (r#""10.0.9.9:22/tcp""#, r#"¦"10.0.9.9:1e3/tcp""#, "tests[0].to"),
    // Times.
    (r#""Europe/Berlin""#, r#"¦"Europe/Nowhere""#, "rules[0].when.zone"),
    (r#""08:00-18:00""#, r#"¦"08:00-24:01""#, "rules[0].when.hours"),
    (r#""mon-fri""#, r#"["sat", ¦"mon-"]"#, "rules[0].when.days[1]"),
    (r#""2028-01-01T00:00:00Z""#, r#"¦"2026-01-01T00:00:00Z""#, "rules[0].when.not_after"),
    (r#""2026-01-01T00:00:00Z""#, r#"¦"2026-01-01 00:00:00Z""#, "rules[0].when.not_before"),
    // Names.
    (r#""group:eng", "user:ann""#, r#""group:eng", ¦"user:amy""#, "groups.tech[1]"),
    (r#""group:eng", "user:ann""#, r#"¦"group:ops", "user:ann""#, "groups.tech[0]"),
    (r#""group:eng", "user:ann""#, r#"¦"group:tech", "user:ann""#, "groups.tech[0]"),
    (r#""group:eng", "user:ann""#, r#""group:eng", ¦"ann""#, "groups.tech[1]"),
    (r#""group:eng", "user:ann""#, r#""group:eng", ¦"device:laptop""#, "groups.tech[1]"),
    (r#""tech": ["#, r#""a": ["user:bob"], ¦" b": ["user:bob"], "tech": ["#, "groups[\" b\"]"),
    (r#"["group:tech"]"#, r#"[¦"group:teck"]"#, "rules[0].from[0]"),
    (r#"">=14""#, r#"¦">=14-beta""#, "postures.managed.version"),
    (r#""id": "two""#, r#""id": ¦"one""#, "rules[1].id"),
    (r#""expect": "deny""#, r#""expect": ¦"drop""#, "tests[0].expect"),
];

/// The same for a directory.
#[rustfmt::skip]
const DIRECTORIES: &[(&str, &str, &str)] = &[
    (r#""disabled": false"#, r#"¦"disable": false"#, "users.ann.disable"),
    (r#""expires""#, r#"¦"expiry""#, "devices.laptop.expiry"),
    (r#""users": {"#, r#"¦"version": 1, "users": {"#, "version"),
    (r#""users": {"#, r#""$schema": ¦true, "users": {"#, r#"$["$schema"]"#),
    (r#""bob": {"#, r#"¦"ann": {}, "bob": {"#, "users.ann"),
    (r#""branch": {"#, r#"¦"laptop": {}, "branch": {"#, "devices.laptop"),
    (r#""disk": true"#, r#""disk": true, ¦"disk": true"#, "devices.laptop.posture.disk"),
    (r#"{ "disk": true, "os": "macos" }"#, r#"{ "disk": ¦[true] }"#, "devices.laptop.posture.disk"),
    (r#"["dba"]"#, r#"¦"dba""#, "users.ann.groups"),
    (r#"["dba"]"#, r#"["dba", ¦"dba"]"#, "users.ann.groups[1]"),
    (r#""disabled": false"#, r#""disabled": ¦0"#, "users.ann.disabled"),
    (r#""100.96.0.2""#, r#"¦"100.96.0.02""#, "devices.laptop.addresses[0]"),
    (r#""fd00:96::2""#, r#"¦"::ffff:100.96.0.3""#, "devices.laptop.addresses[1]"),
    (r#""192.168.7.0/24""#, r#"¦"192.168.7.1/24""#, "devices.branch.networks[0]"),
    (r#""2027-01-01T00:00:00Z""#, r#"¦"tomorrow""#, "devices.laptop.expires"),
    (r#""user": "bob""#, r#""user": ¦"eve""#, "devices.branch.user"),
];

fn config() -> Config {
    let text = "[wireguard]\naddresses = [\"100.96.0.1/16\", \"fd00:96::1/64\"]\n";
    Config::resolve(text, Path::new("/etc/portcullis/gateway.toml"), 1).expect("a configuration")
}

fn read(policy: &[u8], directory: &[u8]) -> Result<(), Vec<Problem>> {
    let config = config();
    let text = String::from_utf8_lossy(directory);
    let directory = Directory::parse(&text, &DirectoryContext::new(&config, None))?;
    let now: Timestamp = "2026-12-01T12:00:00Z".parse().expect("an instant");
    Ruleset::compile(policy, &policy_context(&config, &directory), Revision(1), now).map(drop)
}

/// `line:column: path` of the mark, and the text without it.
fn marked(text: &str, path: &str) -> (String, String) {
    let (before, after) = text.split_once('¦').unwrap_or_else(|| panic!("no mark in {text}"));
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let line = before.matches('\n').count() + 1;
    (format!("{line}:{column}: {path}"), format!("{before}{after}"))
}

/// The place of the only problem, or else everything that was said.
fn only_place(result: Result<(), Vec<Problem>>) -> String {
    match result.as_ref().map_err(Vec::as_slice) {
        Err([problem]) => problem.place.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn t22_bad_policies_are_refused_with_their_place() {
    let (policy, directory) = (POLICY.as_bytes(), DIRECTORY.as_bytes());
    read(policy, directory).expect("good to begin with");
    let (mut refused, mut elsewhere) = (0, Vec::new());
    let mut compare = |of: &str, result, place: &str| {
        refused += 1;
        let found = only_place(result);
        if found != place {
            elsewhere.push(format!("{of}\n  expected {place}\n  found    {found}"));
        }
    };
    let edited = |good: &str, from: &str, to: &str| {
        assert_eq!(good.matches(from).count(), 1, "{from} is there once");
        good.replacen(from, to, 1)
    };
    for (from, to, path) in POLICIES {
        let (place, text) = marked(&edited(POLICY, from, to), path);
        compare(to, read(text.as_bytes(), directory), &place);
    }
    for (from, to, path) in DIRECTORIES {
        let (place, text) = marked(&edited(DIRECTORY, from, to), path);
        compare(to, read(policy, text.as_bytes()), &place);
    }
    // Both files are texts before they are anything else.
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000)).into_bytes();
    let at = |good: &str, needle: &str, bytes: &[u8]| {
        let (before, after) = good.split_once(needle).expect("the needle");
        [before.as_bytes(), bytes, after.as_bytes()].concat()
    };
    let whole: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "1:1: $"),
        (deep("[", "]"), "1:1: $"),
        (deep("[", ""), "1:100000: $"),
        (deep("{\"a\":", "}"), "1:500001: $"),
        (at(POLICY, "\"ann\", \"to\"", &[&deep("[", "]")[..], b", \"to\""].concat()), "17:15: tests[0].from"),
        (vec![b' '; 100 << 20], "1:1: $"),
        (vec![b'['; 100 << 20], "1:1: $"),
        (at(POLICY, "mon-fri", b"mon\0fri"), "12:53: $"),
        (at(POLICY, "version\": 1", b"version\": 1 \0"), "2:16: $"),
        (at(POLICY, "mon-fri", b"mon\xfffri"), "12:53: $"),
        (at(POLICY, "two", b"tw\xc3"), "14:16: $"),
        (at(POLICY, "Europe", b"\xed\xa0\x80"), "12:93: $"),
        (b"\xef\xbb\xbf{}".to_vec(), "1:1: $"),
        (POLICY.as_bytes()[..POLICY.len() - 1].to_vec(), "19:1: $"),
        (POLICY.replace("\"version\": 1", "\"version\": 01").into_bytes(), "2:15: $"),
        (POLICY.replace("\"version\": 1,", "version: 1,").into_bytes(), "2:3: $"),
        (POLICY.replace("\"version\": 1,", "// one\n\"version\": 1,").into_bytes(), "2:3: $"),
    ];
    for (text, place) in whole {
        let shown: String = String::from_utf8_lossy(&text).chars().take(60).collect();
        compare(&shown, read(&text, directory), place);
    }
    assert!(elsewhere.is_empty(), "{}", elsewhere.join("\n"));
    assert!(refused >= 60, "{refused}");
}
