//! Attacks on the front of the gateway where the real binary matters: its files, its log, its control socket.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use portcullis_e2e::expect;
use portcullis_e2e::lab::{Family, Host, gateway_address};
use portcullis_e2e::setup::{OnRamp, Setup, usual_policy, write_json};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::transfer::{download, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::scenario;
use serde_json::{Value, json};

const REVISION: &str = "portcullis_policy_revision";
const FAILURES: &str = "portcullis_reload_failures_total";

/// A directory with something given twice, or a key that is none: refused with its place, and nothing changes.
#[test]
fn t02_a_directory_that_contradicts_itself_changes_nothing() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let gateway = &world.gateway;
        let good: Value =
            serde_json::from_str(&fs::read_to_string(gateway.directory_path()).expect("a directory")).expect("JSON");
        let key = good["devices"]["laptop-0"]["public_key"].as_str().expect("a key").to_owned();
        let with = |members: Value| {
            let mut directory = good.clone();
            directory["devices"]["thief"] = members;
            directory["devices"]["thief"]["user"] = json!("user-0@example.com");
            directory
        };
        let other = STANDARD.encode([9; 32]);
        let low = STANDARD.encode([&[1][..], &[0; 31]].concat());
        let own_key = {
            let private = fs::read_to_string(gateway.dir().join("state/wireguard.key")).expect("a key file");
            let file = gateway.dir().join("private");
            fs::write(&file, private).expect("a file");
            let output = std::process::Command::new("wg")
                .arg("pubkey")
                .stdin(fs::File::open(&file).expect("a file"))
                .output()
                .expect("wg");
            fs::remove_file(&file).expect("a file");
            String::from_utf8(output.stdout).expect("text").trim().to_owned()
        };
        let bad = [
            (with(json!({ "public_key": key, "addresses": ["100.96.0.77"] })), "is already the key at"),
            (with(json!({ "public_key": other, "addresses": ["100.96.0.2"] })), "is already given at"),
            (with(json!({ "public_key": own_key, "addresses": ["100.96.0.77"] })), "the gateway's own key"),
            (with(json!({ "public_key": low, "addresses": ["100.96.0.77"] })), "low order"),
            (with(json!({ "public_key": STANDARD.encode([0; 32]), "addresses": ["100.96.0.77"] })), "all zeros"),
            (with(json!({ "networks": ["10.7.0.0/16", "10.7.1.0/24"] })), "overlaps"),
        ];
        let before = gateway.metrics().sum(REVISION, None);
        for ((directory, said), failures) in bad.iter().zip(1..) {
            write_json(&gateway.directory_path(), directory);
            let out = gateway.try_verb(&["reload"]);
            let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            assert_eq!(out.status.code(), Some(78), "{text}");
            assert!(text.contains(said) && text.contains("devices.thief"), "{said}: {text}");
            gateway.wait_for_metric(FAILURES, None, f64::from(failures));
            assert_eq!(gateway.metrics().sum(REVISION, None), before);
        }
        let to = upload(world.client(), world.private(), Host::Open.address(Family::V4), 1, MIB);
        expect::record(world, world.client(), to, "client_closed");
    });
}

/// What comes from outside and holds escape codes and newlines is one escaped line in the log and in the flow log.
#[test]
fn t33_what_comes_from_outside_is_one_escaped_line() {
    const FORGED: &str = "\u{1b}[2J\u{9b}1m\r\n2026-01-01T00:00:00Z ERROR forged";
    scenario(Setup::new(OnRamp::Wireguard).log("trace"), |world| {
        let to = upload(world.client(), world.private(), Host::Open.address(Family::V4), 1, MIB);
        expect::record(world, world.client(), to, "client_closed");
        // As a name in the policy and in the directory, both refused and told of.
        let mut policy = usual_policy();
        policy[FORGED] = json!(1);
        world.gateway.write_policy(&policy);
        let directory = fs::read_to_string(world.gateway.directory_path()).expect("a directory");
        let mut devices: Value = serde_json::from_str(&directory).expect("JSON");
        devices["users"][FORGED] = json!({});
        world.gateway.process().signal(Signal::SIGHUP);
        world.gateway.wait_for_metric(FAILURES, None, 1.0);
        world.gateway.write_policy(&usual_policy());
        write_json(&world.gateway.directory_path(), &devices);
        world.gateway.process().signal(Signal::SIGHUP);
        world.gateway.wait_for_metric(FAILURES, None, 2.0);
        fs::write(world.gateway.directory_path(), directory).expect("a directory");
        // As an argument over the control socket.
        world.gateway.try_verb(&["kill", "--user", FORGED]);
        world.gateway.try_verb(&["flows", "--device", FORGED]);
        world.gateway.reload();
        let log = wait::until("the log to tell", || {
            let log = world.gateway.log_text();
            (log.matches("forged").count() >= 2).then_some(log)
        });
        let odd = log.lines().find(|line| line.chars().any(char::is_control));
        assert_eq!(odd, None, "a control character in the log");
        let forged = log.lines().find(|line| line.starts_with("2026-01-01T00:00:00Z"));
        assert_eq!(forged, None, "a line of somebody else's");
        let flows = fs::read_to_string(world.gateway.dir().join("flows.jsonl")).expect("a flow log");
        for line in flows.lines() {
            assert!(!line.chars().any(char::is_control), "{line:?}");
            let _: Value = serde_json::from_str(line).expect("one JSON object a line");
        }
    });
}

/// Every way a secret could be written down.
fn spellings(name: &str, key: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = STANDARD.decode(key).expect("a key in base64");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{bytes:?}");
    [("base64", key.trim_end_matches('=').as_bytes().to_vec()), ("hex", hex.clone().into_bytes())]
        .into_iter()
        .chain([("HEX", hex.to_uppercase().into_bytes()), ("Debug", list.into_bytes()), ("raw", bytes)])
        .map(|(how, text)| (format!("{name} in {how}"), text))
        .collect()
}

/// Files under `dir` with what is in them.
fn files(dir: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, into);
        } else if path.is_file() {
            into.push((path.display().to_string(), fs::read(&path).expect("a file")));
        }
    }
}

/// No private key and no preshared key is in anything the gateway says or writes, at the most talkative level.
#[test]
fn t33_no_key_is_written_down_at_any_level() {
    scenario(Setup::new(OnRamp::Wireguard).preshared().drain("1s").log("trace,boringtun=trace"), |world| {
        let open = Host::Open.address(Family::V4);
        let to = upload(world.client(), world.private(), open, 1, MIB);
        expect::record(world, world.client(), to, "client_closed");
        let to = download(world.client(), world.private(), open, 2, MIB);
        expect::record(world, world.client(), to, "target_closed");
        assert!(world.client().ping(&["-c", "1"], open).status.success());
        assert!(world.client().connect(SocketAddr::new(Host::Shut.address(Family::V4), 80)).is_err());
        let (netns, device) = (world.client().netns, world.client().device.clone());
        world.clients[0].wg.as_mut().expect("a WireGuard client").restart(netns);
        let to = upload(world.client(), world.private(), open, 3, MIB);
        expect::record(world, world.client(), to, "client_closed");

        // Something to drop, for a line of the last level too.
        let outer = SocketAddr::new(gateway_address(0, Family::V4), 51_820);
        let stranger = netns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a UDP socket");
        stranger.send_to(&[1; 148], outer).expect("a datagram");
        wait::until("a drop", || world.gateway.log_text().contains("TRACE").then_some(()));

        let gateway_key = fs::read_to_string(world.gateway.dir().join("state/wireguard.key")).expect("a key file");
        let config = world.client().wg.as_ref().expect("a WireGuard client").config();
        let value = |key| config.value(key).expect("the client file has it");
        let secrets: Vec<(String, Vec<u8>)> = [
            ("the gateway's key", gateway_key.trim()),
            ("the client's key", value("PrivateKey")),
            ("the preshared key", value("PresharedKey")),
        ]
        .into_iter()
        .flat_map(|(name, key)| spellings(name, key))
        .collect();

        let mut said: Vec<(String, Vec<u8>)> = Vec::new();
        for verb in [
            &["status"][..],
            &["status", "--json"],
            &["flows", "--json"],
            &["device", "list", "--json"],
            &["device", "show", &device],
            &["device", "show", &device, "--json"],
            &["check"],
            &["reload"],
        ] {
            said.push((format!("{verb:?}"), world.gateway.verb(verb).into_bytes()));
        }
        said.push(("metrics".to_owned(), world.gateway.metrics().text().as_bytes().to_vec()));
        // A bad file makes it quote what it read.
        let directory = fs::read_to_string(world.gateway.directory_path()).expect("a directory");
        for (from, to) in
            [("\"preshared_key\"", "\"preshared_kee\""), ("\"preshared_key\": \"", "\"preshared_key\": \"x")]
        {
            fs::write(world.gateway.directory_path(), directory.replace(from, to)).expect("a directory");
            let out = world.gateway.try_verb(&["reload"]);
            assert_eq!(out.status.code(), Some(78));
            said.push((format!("reload with {to}"), [out.stdout, out.stderr].concat()));
        }
        fs::write(world.gateway.directory_path(), directory).expect("a directory");
        world.gateway.reload();
        world.gateway.stop(Duration::from_secs(30));

        files(world.gateway.dir(), &mut said);
        // Where the keys live: their own file, the directory (0600), and the clients' files.
        let at_home = |name: &str| name.ends_with("wireguard.key") || name.ends_with("directory.json");
        said.retain(|(name, _)| !at_home(name) && !name.ends_with(".conf"));
        assert!(said.iter().any(|(name, text)| name.ends_with("gateway.log") && text.len() > 1_000));
        for (place, text) in &said {
            for (secret, spelling) in &secrets {
                assert!(!text.windows(spelling.len()).any(|window| window == spelling), "{secret} is in {place}");
            }
        }
    });
}

/// While data comes in as fast as a client can send it, a reload is answered within a second.
#[test]
fn t36_data_starves_no_reload() {
    const WITHIN: Duration = Duration::from_secs(1);
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Tun).alone(), |world| {
        // It takes what comes and never reads it.
        let target = SocketAddr::new(Host::Open.address(Family::V4), 4000);
        let _sink = world.private().run(|| UdpSocket::bind(target)).expect("a UDP socket");
        let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for client in &world.clients {
                let socket = client.udp(target);
                let (over, sent) = (&over, &sent);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        // A full buffer is as fast as it gets.
                        let _ = socket.send(&[7; 64]);
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let up = || world.gateway.metrics().sum("portcullis_bytes_total", Some(("direction", "up")));
            wait::until("data to come in", || (up() > 64.0 * 10_000.0).then_some(()));
            let mut slowest = Duration::ZERO;
            for _ in 0..10 {
                let began = Instant::now();
                world.gateway.reload();
                slowest = slowest.max(began.elapsed());
            }
            over.store(true, Ordering::Relaxed);
            assert!(
                slowest <= WITHIN,
                "a reload took {slowest:?} with {} datagrams sent",
                sent.load(Ordering::Relaxed)
            );
        });
    });
}
