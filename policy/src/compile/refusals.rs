//! Bad policies, each with what is said about it, to the column.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;

#[rustfmt::skip]
const REFUSED: &[(&str, &[&str])] = &[
    (r#""#, &[r#"1:1: $: is empty"#]),
    (r#"   
"#, &[r#"1:1: $: is empty"#]),
    (r#"{"version": 1, "rules": ["#, &[r#"1:25: $: is not JSON: EOF while parsing a list"#]),
    (r#"{"version": 1, "rules": []} []"#, &[r#"1:29: $: is not JSON: trailing characters"#]),
    (r#"{"version": 1,
 "rules": [],}"#, &[r#"2:14: $: is not JSON: key must be a string"#]),
    (r#"[]"#, &[r#"1:1: $: expected an object, found an array"#]),
    (r#"null"#, &[r#"1:1: $: expected an object, found null"#]),
    (r#""allow""#, &[r#"1:1: $: expected an object, found a string"#]),
    (r#"{"rules": []}"#, &[r#"1:1: $: the key "version" is missing"#]),
    (r#"{"version": 1}"#, &[r#"1:1: $: the key "rules" is missing"#]),
    (r#"{"version": 2, "rules": []}"#, &[r#"1:13: version: version 2 is not supported; this program reads version 1"#]),
    (r#"{"version": "1", "rules": []}"#, &[r#"1:13: version: expected a whole number, found a string"#]),
    (r#"{"version": 1.0, "rules": []}"#, &[r#"1:13: version: expected a whole number, found 1.0"#]),
    (r#"{"version": 1, "rules": {}}"#, &[r#"1:25: rules: expected an array, found an object"#]),
    (r#"{"version": 1, "rules": [], "rules": []}"#, &[r#"1:29: rules: the key "rules" is already used on line 1"#]),
    (r#"{"version": 1, "rules": [],
 "test": []}"#, &[r#"2:2: test: unknown key "test"; did you mean "tests"?"#]),
    (r#"{"version": 1, "rules": [1]}"#, &[r#"1:26: rules[0]: expected an object, found 1"#]),
    (r#"{"version": 1, "rules": null}"#, &[r#"1:25: rules: expected an array, found null"#]),
    (r#"{"version": 1, "version": 1, "rules": []}"#, &[r#"1:16: version: the key "version" is already used on line 1"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {}}}"#, &[r#"2:21: resources.db: the key "addresses" is missing"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": []}}}"#, &[r#"2:35: resources.db.addresses: is empty, so the resource is nowhere"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["10.0.0.1/8"]}}}"#, &[r#"2:36: resources.db.addresses[0]: "10.0.0.1/8" has host bits; write 10.0.0.0/8 for the network or 10.0.0.1/32 for the host"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["10.0.0.1", "010.0.0.1"]}}}"#, &[r#"2:48: resources.db.addresses[1]: "010.0.0.1" is ambiguous; write 10.0.0.1"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["10.0.0.0/08"]}}}"#, &[r#"2:36: resources.db.addresses[0]: "10.0.0.0/08" is ambiguous; write 10.0.0.0/8"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["FD00::1"]}}}"#, &[r#"2:36: resources.db.addresses[0]: "FD00::1" is ambiguous; write fd00::1"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["::ffff:10.0.0.1"]}}}"#, &[r#"2:36: resources.db.addresses[0]: "::ffff:10.0.0.1" hides an IPv4 address (IPv4-mapped); write the IPv4 address itself"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["10.0.0.0/33"]}}}"#, &[r#"2:36: resources.db.addresses[0]: "10.0.0.0/33" is not a prefix; expected an IP address, a slash and a length"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["db.example.com"]}}}"#, &[r#"2:36: resources.db.addresses[0]: "db.example.com" is not an IP address"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["10.0.0.1"], "services": []}}}"#, &[r#"2:61: resources.db.services: is empty, so nothing would match; leave it out to mean every service"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["10.0.0.1"], "services": ["http"]}}}"#, &[r#"2:62: resources.db.services[0]: "http" is not a service; expected tcp/PORT, tcp/FIRST-LAST, tcp/*, udp/…, icmp, proto/NUMBER or *"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": "10.0.0.1"}}}"#, &[r#"2:35: resources.db.addresses: expected an array, found a string"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"10.0.0.1": {"addresses": ["10.0.0.1"]}}}"#, &[r#"2:15: resources["10.0.0.1"]: "10.0.0.1" could be taken for an address; a resource name has no colon, slash or asterisk and not only digits and dots"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"": {"addresses": ["10.0.0.1"]}}}"#, &[r#"2:15: resources[""]: a name must not be empty"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"addresses": ["10.0.0.1"]},
"db": {"addresses": ["10.0.0.2"]}}}"#, &[r#"3:1: resources.db: the key "db" is already used on line 2"#]),
    (r#"{"version": 1, "rules": [],
"resources": {"db": {"adresses": ["10.0.0.1"]}}}"#, &[
        r#"2:21: resources.db: the key "addresses" is missing"#,
        r#"2:22: resources.db.adresses: unknown key "adresses"; did you mean "addresses"?"#,
    ]),
    (r#"{"version": 1, "rules": [],
"resources": []}"#, &[r#"2:14: resources: expected an object, found an array"#]),
    (r#"{"version": 1, "rules": [],
"postures": {"m": {}}}"#, &[r#"2:19: postures.m: is empty, so every device would have it"#]),
    (r#"{"version": 1, "rules": [],
"postures": {"m": {"os": []}}}"#, &[r#"2:26: postures.m.os: is empty, so no device would have it"#]),
    (r#"{"version": 1, "rules": [],
"postures": {"m": {"os": null}}}"#, &[r#"2:26: postures.m.os: expected true, false, a number or a string, found null"#]),
    (r#"{"version": 1, "rules": [],
"postures": {"m": {"os": [["a"]]}}}"#, &[r#"2:27: postures.m.os[0]: expected true, false, a number or a string, found an array"#]),
    (r#"{"version": 1, "rules": [],
"postures": {"m": {"v": ">=x"}}}"#, &[r#"2:25: postures.m.v: "x" is not a version; expected numbers with dots between, such as 14.2"#]),
    (r#"{"version": 1, "rules": [],
"postures": {"m": {"v": "!=14"}}}"#, &[r#"2:25: postures.m.v: "!=14" begins with an unknown comparison; there are <, <=, ==, >= and >"#]),
    (r#"{"version": 1, "rules": [],
"postures": {"m": {"v": 1, "v": 2}}}"#, &[r#"2:28: postures.m.v: the key "v" is already used on line 2"#]),
    (r#"{"version": 1, "rules": [],
"postures": {"m": true}}"#, &[r#"2:19: postures.m: expected an object, found true"#]),
    (r#"{"version": 1, "rules": [
{}
]}"#, &[
        r#"2:1: rules[0]: the key "action" is missing"#,
        r#"2:1: rules[0]: the key "from" is missing"#,
        r#"2:1: rules[0]: the key "id" is missing"#,
        r#"2:1: rules[0]: the key "to" is missing"#,
    ]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "permit", "from": ["*"], "to": ["*"]}
]}"#, &[r#"2:23: rules[0].action: expected "allow" or "deny", found "permit""#]),
    (r#"{"version": 1, "rules": [
{"id": "", "action": "allow", "from": ["*"], "to": ["*"]}
]}"#, &[r#"2:8: rules[0].id: a name must not be empty"#]),
    (r#"{"version": 1, "rules": [
{"id": 7, "action": "allow", "from": ["*"], "to": ["*"]}
]}"#, &[r#"2:8: rules[0].id: expected a string, found 7"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"]},
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"]}
]}"#, &[r#"3:8: rules[1].id: the rule id "r" is already used on line 2"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "name": "x"}
]}"#, &[r#"2:60: rules[0].name: unknown key "name""#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "mode": "observe"}
]}"#, &[r#"2:68: rules[0].mode: expected "audit" or "enforce", found "observe""#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "silent": true}
]}"#, &[r#"2:70: rules[0].silent: only a deny rule can be silent"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "silent": "yes"}
]}"#, &[r#"2:70: rules[0].silent: expected true or false, found a string"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "offramp": "offce"}
]}"#, &[r#"2:71: rules[0].offramp: there is no off-ramp "offce"; did you mean "office"?"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "offramp": "direct"}
]}"#, &[r#"2:70: rules[0].offramp: a deny rule has no use for an off-ramp"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "rewrite": "10.0.0.1"}
]}"#, &[r#"2:70: rules[0].rewrite: a deny rule sends nothing anywhere"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "rewrite": "db:80"}
]}"#, &[r#"2:71: rules[0].rewrite: "db" is not an IP address"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "rewrite": "[::ffff:10.0.0.1]:80"}
]}"#, &[r#"2:71: rules[0].rewrite: "::ffff:10.0.0.1" hides an IPv4 address (IPv4-mapped); write the IPv4 address itself"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "description": 1}
]}"#, &[r#"2:75: rules[0].description: expected a string, found 1"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": [], "to": ["*"]}
]}"#, &[r#"2:40: rules[0].from: is empty, so the rule selects nobody"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": []}
]}"#, &[r#"2:53: rules[0].to: is empty, so the rule leads nowhere"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": "*", "to": ["*"]}
]}"#, &[r#"2:40: rules[0].from: expected an array, found a string"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["user:anne@example.com"], "to": ["*"]}
]}"#, &[r#"2:41: rules[0].from[0]: there is no user "anne@example.com"; did you mean "ann@example.com"?"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["group:opps"], "to": ["*"]}
]}"#, &[r#"2:41: rules[0].from[0]: there is no group "opps"; did you mean "ops"?"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["device:phone"], "to": ["*"]}
]}"#, &[r#"2:41: rules[0].from[0]: there is no device "phone""#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["ann@example.com"], "to": ["*"]}
]}"#, &[r#"2:41: rules[0].from[0]: "ann@example.com" selects nobody; expected *, user:NAME, group:NAME, device:NAME, network:NAME or net:PREFIX; did you mean "user:ann@example.com"?"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["net:10.0.0.1/8"], "to": ["*"]}
]}"#, &[r#"2:41: rules[0].from[0]: "10.0.0.1/8" has host bits; write 10.0.0.0/8 for the network or 10.0.0.1/32 for the host"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["network:lan"], "to": ["*"]}
]}"#, &[r#"2:41: rules[0].from[0]: there is no network "lan"; did you mean "lab"?"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["\u002a\u0000"], "to": ["*"]}
]}"#, &[r#"2:41: rules[0].from[0]: holds a NUL character"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["\ud800"], "to": ["*"]}
]}"#, &[r#"2:41: rules[0].from[0]: unexpected end of hex escape"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["prod-db"]}
]}"#, &[r#"2:54: rules[0].to[0]: there is no resource "prod-db""#]),
    (r#"{"version": 1, "resources": {"prod-db": {"addresses": ["10.0.5.12"]}}, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["10.0.9.0/24", "prod-bd"]}]}"#, &[r#"2:69: rules[0].to[1]: there is no resource "prod-bd"; did you mean "prod-db"?"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["10.0.0.5/24"]}
]}"#, &[r#"2:54: rules[0].to[0]: "10.0.0.5/24" has host bits; write 10.0.0.0/24 for the network or 10.0.0.5/32 for the host"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["2002:a00:1::/48"]}
]}"#, &[r#"2:54: rules[0].to[0]: "2002:a00:1::/48" hides an IPv4 address (6to4); write the IPv4 address itself"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["::/96"]}
]}"#, &[r#"2:54: rules[0].to[0]: "::/96" hides an IPv4 address (IPv4-compatible); write the IPv4 address itself"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["10.0.0.1:22"]}
]}"#, &[r#"2:54: rules[0].to[0]: "10.0.0.1:22" is not an IP address"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "not_from": ["*"]}
]}"#, &[r#"2:73: rules[0].not_from[0]: excludes everything, so the rule would never match"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "not_to": ["*"]}
]}"#, &[r#"2:71: rules[0].not_to[0]: excludes everything, so the rule would never match"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "not_from": ["group:nobody"]}
]}"#, &[r#"2:73: rules[0].not_from[0]: there is no group "nobody""#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "services": []}
]}"#, &[r#"2:72: rules[0].services: is empty, so nothing would match; leave it out to mean every service"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "services": ["tcp/0"]}
]}"#, &[r#"2:73: rules[0].services[0]: "0" is not a port from 1 to 65535"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "services": ["tcp/65536"]}
]}"#, &[r#"2:73: rules[0].services[0]: "65536" is not a port from 1 to 65535"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "services": ["tcp/200-100"]}
]}"#, &[r#"2:73: rules[0].services[0]: the range "200-100" ends before it begins"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "services": ["tcp/080"]}
]}"#, &[r#"2:73: rules[0].services[0]: "080" is not a port from 1 to 65535"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "services": ["proto/6"]}
]}"#, &[r#"2:73: rules[0].services[0]: protocol 6 has a name here; write tcp/*"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "services": ["proto/256"]}
]}"#, &[r#"2:73: rules[0].services[0]: "256" is not a protocol number from 0 to 255"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "services": [443]}
]}"#, &[r#"2:73: rules[0].services[0]: expected a string, found 443"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"posture": ["managed"]}}
]}"#, &[r#"2:81: rules[0].when.posture[0]: there is no posture "managed""#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"posture": []}}
]}"#, &[r#"2:80: rules[0].when.posture: is empty; leave it out to mean any posture"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"days": "mon-friday"}}
]}"#, &[r#"2:77: rules[0].when.days: "mon-friday" are not days; expected mon, tue, wed, thu, fri, sat, sun, a range such as mon-fri, or several with commas between"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"days": []}}
]}"#, &[r#"2:77: rules[0].when.days: is empty, so the rule would never match"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"hours": "8:00-18:00"}}
]}"#, &[r#"2:78: rules[0].when.hours: "8:00-18:00" are not hours; expected HH:MM-HH:MM between 00:00 and 24:00"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"hours": "08:00-08:00"}}
]}"#, &[r#"2:78: rules[0].when.hours: the hours "08:00-08:00" begin and end at the same time; leave them out for the whole day"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"zone": "Europe/Atlantis"}}
]}"#, &[r#"2:77: rules[0].when.zone: "Europe/Atlantis" is not a time zone; expected a name of the IANA database, such as Europe/Berlin"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"zone": "europe/berlin"}}
]}"#, &[r#"2:77: rules[0].when.zone: "europe/berlin" is not how the time zone is spelt; write Europe/Berlin"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"not_before": "2027-01-01"}}
]}"#, &[r#"2:83: rules[0].when.not_before: "2027-01-01" is not an instant; write it as RFC 3339 says, such as 2027-01-31T00:00:00Z"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"not_after": "2027-02-30T00:00:00Z"}}
]}"#, &[r#"2:82: rules[0].when.not_after: "2027-02-30T00:00:00Z" is not an instant; write it as RFC 3339 says, such as 2027-01-31T00:00:00Z"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"not_before": "2027-02-01T00:00:00Z", "not_after": "2027-01-01T00:00:00Z"}}
]}"#, &[r#"2:120: rules[0].when.not_after: is not later than not_before, so the rule would never match"#]),
    (r#"{"version": 1, "rules": [
{"id": "r", "action": "allow", "from": ["*"], "to": ["*"], "when": {"day": "mon"}}
]}"#, &[r#"2:69: rules[0].when.day: unknown key "day"; did you mean "days"?"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{}]}"#, &[
        r#"2:11: tests[0]: the key "expect" is missing"#,
        r#"2:11: tests[0]: the key "from" is missing"#,
        r#"2:11: tests[0]: the key "to" is missing"#,
    ]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "eve@example.com", "to": "10.0.0.1:22/tcp", "expect": "deny"}]}"#, &[r#"2:20: tests[0].from: there is no user "eve@example.com""#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "device:x", "to": "10.0.0.1:22/tcp", "expect": "deny"}]}"#, &[r#"2:20: tests[0].from: there is no device "x""#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "10.0.0.1:22", "expect": "deny"}]}"#, &[r#"2:45: tests[0].to: "10.0.0.1:22" is not a destination; expected ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/proto/NUMBER (an IPv6 address in brackets)"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "10.0.0.1:0/tcp", "expect": "deny"}]}"#, &[r#"2:45: tests[0].to: "0" is not a port from 1 to 65535"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "[::ffff:10.0.0.1]:22/tcp", "expect": "deny"}]}"#, &[r#"2:45: tests[0].to: "::ffff:10.0.0.1" hides an IPv4 address (IPv4-mapped); write the IPv4 address itself"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "10.0.0.1:22/tcp", "expect": "refuse"}]}"#, &[r#"2:74: tests[0].expect: expected "allow" or "deny", found "refuse""#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "10.0.0.1:22/tcp", "expect": "deny", "rule": "no-ssh"}]}"#, &[r#"2:90: tests[0].rule: there is no rule "no-ssh""#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "10.0.0.1:22/tcp", "expect": "deny", "at": "noon"}]}"#, &[r#"2:88: tests[0].at: "noon" is not an instant; write it as RFC 3339 says, such as 2027-01-31T00:00:00Z"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "source": "10.0.0.01", "to": "10.0.0.1:22/tcp", "expect": "deny"}]}"#, &[r#"2:49: tests[0].source: "10.0.0.01" is ambiguous; write 10.0.0.1"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "10.0.0.1:22/tcp", "expect": "allow"}]}"#, &[r#"2:11: tests[0]: test failed: expected allow, but rule "r" decides: deny"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "10.0.0.1:23/tcp", "expect": "allow"}]}"#, &[r#"2:11: tests[0]: test failed: expected allow, but no rule matches: deny"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "ann@example.com", "to": "10.0.0.1:23/tcp", "expect": "deny", "rule": "r"}]}"#, &[r#"2:11: tests[0]: test failed: expected deny by rule "r", but no rule matches: deny"#]),
    (r#"{"version": 1, "rules": [{"id": "r", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"]}],
"tests": [{"from": "bob@example.com", "to": "10.0.0.1:22/tcp", "expect": "allow"}]}"#, &[r#"2:11: tests[0]: test failed: expected allow, but the device or its user is disabled, which denies everything"#]),
];

#[test]
fn every_mistake_is_refused_at_its_place() {
    let groups: [Arc<str>; 1] = ["ops".into()];
    let user = |disabled| KnownUser { groups: &groups, network: "default", disabled };
    let context = Context {
        users: BTreeMap::from([("ann@example.com", user(false)), ("bob@example.com", user(true))]),
        devices: BTreeMap::new(),
        groups: BTreeSet::from(["ops"]),
        networks: BTreeSet::from(["default", "lab"]),
        offramps: BTreeSet::from(["direct", "office"]),
    };
    let now = "2027-01-01T12:00:00Z".parse().unwrap();
    assert!(REFUSED.len() >= 60);
    for (text, expected) in REFUSED {
        let problems = Ruleset::compile(text.as_bytes(), &context, Revision(1), now).unwrap_err();
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, *expected, "{text}");
    }
}
