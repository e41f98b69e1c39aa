//! Facts that are reported of a device open and close its access, for their time and over a crash.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{Family, Host};
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::tools::said;
use portcullis_e2e::transfer::Endless;
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};
use serde_json::{Value, json};

/// The open host is reached by managed devices only.
fn managed_only() -> Value {
    json!({ "version": 1,
        "postures": { "managed": { "disk": true, "os_version": ">=14" } },
        "rules": [{ "id": "managed", "action": "allow", "from": ["*"], "to": [Host::Open.address(Family::V4)],
                    "when": { "posture": ["managed"] } }] })
}

fn posture(world: &World<'_>, args: &[&str]) -> String {
    let device = world.client().device.clone();
    world.gateway.verb(&[&["device", "posture", &device], args].concat())
}

fn reported_facts_open_and_close(world: &mut World<'_>) {
    let client = world.client();
    let host = Host::Open.address(Family::V4);
    let to = SocketAddr::new(host, 9);
    world.gateway.set_policy(&managed_only());
    assert!(client.connect(to).is_err(), "nothing is known of the device");

    posture(world, &["disk=true", "os_version=14.2"]);
    let running = Endless::start(client, world.private(), host);
    let page = posture(world, &[]);
    assert!(page.contains("os_version  \"14.2\"") && page.contains("disk        true"), "{page}");

    // Another fact, and the same again, are no reason to end anything.
    posture(world, &["antivirus=on", "disk=true"]);
    let received = running.received();
    wait::until("the download to go on", || (running.received() > received).then_some(()));

    posture(world, &["disk=false"]);
    wait::until_within(Duration::from_secs(1), "the cut", || running.over().then_some(()));
    let line = expect::record(world, client, running.address(), "revoked");
    assert_eq!(line.rule.as_deref(), Some("managed"), "no rule denies it; this one allowed it: {line:#?}");
    let asked = format!("{host}:9/tcp");
    let why = world.gateway.verb(&["policy", "explain", "--device", &client.device, "--to", &asked]);
    assert!(why.contains("disk is false, as reported at"), "{why}");

    // For two seconds: nobody says when they are over, the clock does.
    posture(world, &["disk=true", "--for", "2s"]);
    let running = Endless::start(client, world.private(), host);
    let line = expect::record(world, client, running.address(), "expired");
    assert!((1_000.0..3_000.0).contains(&line.duration_ms), "{line:#?}");
    // The record is written when the reset leaves; the client still reads what came before it.
    wait::until_within(Duration::from_secs(1), "the end of the download", || running.over().then_some(()));
    assert!(client.connect(to).is_err());

    // What is wrong changes nothing, and says why.
    let bad: [(&[&str], i32, &str); 4] = [
        (&["disk"], 64, "disk=VALUE"),
        (&["disk=true", "--for", "soon"], 64, "duration"),
        (&["disk:=null"], 1, "true, false, a number or a text"),
        (&["disk:=[true]", "os_version=1"], 1, "true, false, a number or a text"),
    ];
    for (args, exit, word) in bad {
        let out = world.gateway.try_verb(&[&["device", "posture", &client.device], args].concat());
        assert_eq!(out.status.code(), Some(exit), "{}", said(&out));
        assert!(said(&out).contains(word), "{}", said(&out));
    }
    let out = world.gateway.try_verb(&["device", "posture", "nobody", "disk=true"]);
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(posture(world, &[]).contains("\"14.2\""));

    // A crash forgets nothing, and a time that runs out meanwhile is over.
    posture(world, &["disk=true"]);
    posture(world, &["antivirus=on", "--for", "1s"]);
    world.gateway.kill9();
    world.gateway.start();
    wait::until("the report to be over", || (!posture(world, &[]).contains("antivirus")).then_some(()));
    let running = Endless::start(world.client(), world.private(), host);

    // Another key under the same name is another device.
    let name = world.client().device.clone();
    posture(world, &["--clear", "disk"]);
    expect::record(world, world.client(), running.address(), "revoked");
    let page = posture(world, &[]);
    assert!(!page.contains("disk") && page.contains("os_version"), "{page}");
    posture(world, &["disk=true"]);
    world.gateway.edit_directory(|directory| {
        let entry =
            directory.pointer_mut(&format!("/devices/{name}")).and_then(Value::as_object_mut).expect("a device");
        entry.insert("public_key".to_owned(), json!("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="));
    });
    let out = world.gateway.try_verb(&["reload"]);
    assert!(out.status.success(), "{}", said(&out));
    assert!(!posture(world, &[]).contains("disk"), "another device");
    world.gateway.kill9();
    world.gateway.start();
    assert!(!posture(world, &[]).contains("disk"), "another device");
}

#[test]
fn reported_facts_open_and_close_access() {
    scenario(Setup::new(OnRamp::Wireguard), reported_facts_open_and_close);
}
