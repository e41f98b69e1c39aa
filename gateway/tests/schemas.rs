//! The schemas for editors, and `portcullis check`: of one mind about everything that a schema can say.

use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use jsonschema::Validator;
use portcullis::config::Config;
use portcullis::directory::{Directory, DirectoryContext};
use portcullis::rulesets::policy_context;
use portcullis::schema::Document;
use portcullis_policy::json::Problem;
use portcullis_policy::{Revision, Ruleset};
use serde_json::{Value, json};

/// What `check` refuses by what stands elsewhere, or by what no pattern can say. Every other problem is one of shape.
const NOT_OF_SHAPE: [&str; 33] = [
    // Names that are defined elsewhere, or not at all.
    "there is no ",
    "would be a member of itself",
    "is not a time zone",
    "is not how the time zone is spelt",
    // What is given twice.
    "is already ",
    "already used on line",
    "overlaps ",
    // What one value says about another.
    "only a deny rule can be silent",
    "a deny rule has no use for an off-ramp",
    "is not later than not_before",
    "begin and end at the same time",
    "ends before it begins",
    "without a \"public_key\"",
    "without \"addresses\"",
    "a device needs a \"public_key\"",
    // What the configuration or the key file says.
    "is outside the tunnel networks",
    "is the gateway's own",
    "stands for the network",
    // What an address means, and how IPv6 is written.
    "has host bits",
    "is ambiguous",
    "hides an IPv4 address",
    "is nowhere a host could be",
    "\":\" is not an IP address",
    "\"fd00::1::2\" is not an IP address",
    "\"fd00::/8:1/9\" is not",
    // What a key means.
    "is all zeros",
    "a point of low order",
    "the way its point is written",
    // Days and times that do not exist.
    "\"2027-02-30T00:00:00Z\" is not an instant",
    // Lengths in bytes, which a schema would count in characters.
    "is longer than",
    "bytes long",
    // What a policy says when asked.
    "test failed",
    // JSON Schema has no whole numbers but by value.
    "expected a whole number, found 1.0",
];

const DIRECTORY: &str = r#"{
  "$schema": "schemas/directory.schema.json",
  "users": { "ann": { "groups": ["dba"], "disabled": false }, "bob": { "groups": ["eng"] } },
  "devices": {
    "laptop": { "user": "ann", "public_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
      "preshared_key": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=", "addresses": ["100.96.0.2", "fd00:96::2"],
      "expires": "2027-01-01T00:00:00.5+01:00", "posture": { "disk": true, "os": "macos", "version": 14.5 }, "revoked": false },
    "branch": { "user": "bob", "networks": ["192.168.7.0/24", "fd00:7::/64"], "disabled": true }
  }
}"#;

const POLICY: &str = r#"{
  "$schema": "schemas/policy.schema.json",
  "version": 1,
  "groups": { "tech": ["group:eng", "user:ann"], "all": ["group:tech"] },
  "resources": {
    "db": { "addresses": ["10.0.5.12"], "services": ["tcp/5432"] },
    "web": { "addresses": ["10.0.8.0/24", "fd00:8::/32"], "description": "inside" }
  },
  "postures": { "managed": { "disk": true, "version": ">=14", "os": ["macos", "==linux", 7] } },
  "rules": [
    { "id": "one", "action": "allow", "from": ["group:all", "user:ann", "device:laptop", "net:10.0.0.0/8"], "not_from": ["user:bob"],
      "to": ["db", "10.0.9.0/24", "fd00::1"], "not_to": ["10.0.9.7"], "services": ["tcp/5432", "udp/8000-8100", "tcp/*", "icmp", "proto/47"],
      "when": { "posture": ["managed"], "days": "mon-fri,sun", "hours": "08:00-24:00", "zone": "Europe/Berlin",
                "not_before": "2026-01-01T00:00:00Z", "not_after": "2028-01-01T00:00:00Z" }, "offramp": "direct", "rewrite": "[fd00:9::5]:5432" },
    { "id": "two", "action": "deny", "silent": true, "mode": "audit", "from": ["*"], "to": ["*"], "description": "x",
      "when": { "days": ["sat", "sun"] } },
    { "id": "three", "action": "deny", "mode": "enforce", "from": ["*"], "to": ["web"], "services": ["*"] }
  ],
  "tests": [
    { "from": "ann", "source": "10.9.9.9", "to": "10.0.9.9:22/tcp", "expect": "deny", "at": "2027-01-13T11:00:00Z" },
    { "from": "device:laptop", "posture": { "disk": false }, "to": "[fd00:8::1]/icmp", "expect": "deny", "rule": "three", "description": "y" }
  ]
}"#;

/// What is put in the place of every value.
fn replacements() -> Vec<Value> {
    let texts = [
        "",
        "x",
        "*",
        "10.0.0.1",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0.256",
        "010.0.0.1",
        "::ffff:10.0.0.1",
        "fd00::/8",
        "FD00::1",
        ":",
        "tcp/0",
        "tcp/65535",
        "tcp/65536",
        "tcp/1e3",
        "tcp/9-1",
        "proto/6",
        "proto/255",
        "icmp/1",
        "user:",
        "group:eng",
        "net:10.0.0.0/8",
        "net:x",
        "mon",
        "mon-",
        "sun-mon,wed",
        "24:00-01:00",
        "22:00-06:00",
        "08:00-08:00",
        "Europe/Nowhere",
        "noon",
        "2027-02-30T00:00:00Z",
        "2027-01-01",
        "2027-01-01T00:00:00+24",
        ">=",
        ">=14.x",
        "=1",
        "==",
        "<1.2",
        " x",
        "x ",
        "a\u{7f}b",
        "allow",
        "audit",
        "10.0.0.1:0/tcp",
        "[fd00::1]:53/udp",
        "10.0.0.1/proto/17",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB=",
        "1.2.3",
    ];
    let others = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(1.0),
        json!(-1),
        json!(1.5),
        json!([]),
        json!({}),
        json!([null]),
        json!([""]),
        json!(["*"]),
        json!(["x", 1]),
        json!({ "x": null }),
        json!({ "x": [] }),
        json!({ "x": "y" }),
    ];
    texts.into_iter().map(Value::from).chain(others).collect()
}

/// Every file that is made from a good one by one change: each value replaced, each member or item left out, each key
/// spelt in other ways, and one more key or item in each object and list.
fn mutations(good: &Value) -> Vec<Value> {
    let mut places = vec![String::new()];
    let mut next = 0;
    while let Some(pointer) = places.get(next).cloned() {
        next += 1;
        match good.pointer(&pointer) {
            Some(Value::Object(object)) => places.extend(object.keys().map(|key| format!("{pointer}/{key}"))),
            Some(Value::Array(items)) => places.extend((0..items.len()).map(|index| format!("{pointer}/{index}"))),
            _ => {}
        }
    }
    let mut mutations = Vec::new();
    let mut mutate = |pointer: &str, edit: &mut dyn FnMut(&mut Value)| {
        let mut changed = good.clone();
        edit(changed.pointer_mut(pointer).expect("it is there"));
        mutations.push(changed);
    };
    for pointer in &places {
        for replacement in replacements() {
            mutate(pointer, &mut |value| *value = replacement.clone());
        }
        mutate(pointer, &mut |value| match value {
            Value::Object(object) => drop(object.insert("more".to_owned(), json!(1))),
            Value::Array(items) => items.push(json!(1)),
            other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
                *other = json!([other.clone()])
            }
        });
        let Some((parent, last)) = pointer.rsplit_once('/') else { continue };
        mutate(parent, &mut |value| match value {
            Value::Object(object) => drop(object.remove(last)),
            Value::Array(items) => drop(items.remove(last.parse().expect("an index"))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        });
        for name in ["", " x", "x:y", "10.0.0.1", "a*b", "a b", "Names", "a\u{85}"] {
            mutate(parent, &mut |value| {
                if let Value::Object(object) = value {
                    let member = object.remove(last).expect("it is there");
                    object.insert(name.to_owned(), member);
                }
            });
        }
    }
    mutations
}

fn config() -> Config {
    let text = "[wireguard]\naddresses = [\"100.96.0.1/16\", \"fd00:96::1/64\"]\n";
    Config::resolve(text, Path::new("/etc/portcullis/gateway.toml"), 1).expect("a configuration")
}

fn check(document: Document, text: &str) -> Result<(), Vec<Problem>> {
    let config = config();
    let context = DirectoryContext::new(&config, None);
    match document {
        Document::Directory => Directory::parse(text, &context).map(drop),
        Document::Policy => {
            let directory = Directory::parse(DIRECTORY, &context).expect("a directory");
            let now: Timestamp = "2026-12-01T12:00:00Z".parse().expect("an instant");
            let context = policy_context(&config, &directory);
            Ruleset::compile(text.as_bytes(), &context, Revision(1), now).map(drop)
        }
    }
}

fn agree(document: Document, good: &str) {
    let schema = jsonschema::validator_for(&document.schema()).expect("a schema");
    let good: Value = serde_json::from_str(good).expect("JSON");
    check(document, &good.to_string()).expect("good to begin with");
    if let Err(error) = schema.validate(&good) {
        panic!("the schema refuses what is good: {error} at {}", error.instance_path());
    }
    let mutations = mutations(&good);
    assert!(mutations.len() >= 1_000, "{}", mutations.len());
    let (mut refused, mut strict, mut lax) = (0, Vec::new(), Vec::new());
    for mutation in &mutations {
        let said = check(document, &mutation.to_string()).err().unwrap_or_default();
        refused += usize::from(!said.is_empty());
        if let (true, Some(error)) = (said.is_empty(), first_error(&schema, mutation)) {
            strict.push(error);
        }
        let of_shape: Vec<String> = said
            .iter()
            .filter(|problem| !NOT_OF_SHAPE.iter().any(|kind| problem.message.contains(kind)))
            .map(ToString::to_string)
            .collect();
        if !of_shape.is_empty() && schema.is_valid(mutation) {
            lax.push(of_shape.join("; "));
        }
    }
    assert!(refused >= 500, "{refused} of {} are refused", mutations.len());
    let show = |list: &mut Vec<String>| {
        list.sort();
        list.dedup();
        list.join("\n")
    };
    assert!(strict.is_empty(), "only the schema refuses:\n{}", show(&mut strict));
    assert!(lax.is_empty(), "only check refuses:\n{}", show(&mut lax));
}

fn first_error(schema: &Validator, instance: &Value) -> Option<String> {
    schema.validate(instance).err().map(|error| format!("{} at {}", error, error.instance_path()))
}

#[test]
fn policies_are_good_and_bad_alike_for_schema_and_check() {
    agree(Document::Policy, POLICY);
}

#[test]
fn directories_are_good_and_bad_alike_for_schema_and_check() {
    agree(Document::Directory, DIRECTORY);
}

#[test]
fn the_files_are_what_the_program_prints() {
    for name in ["policy", "directory"] {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).args(["schema", name]).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../examples/schemas/{name}.schema.json"));
        let kept = std::fs::read(&file).unwrap_or_default();
        assert!(output.stdout == kept, "run `portcullis schema {name} > examples/schemas/{name}.schema.json`");
        let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    }
}
