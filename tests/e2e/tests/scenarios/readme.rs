//! The way of the README, command by command: init, device add, run, curl.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use portcullis_e2e::gateway::{Gateway, binary};
use portcullis_e2e::lab::{Family, Host, Lab, gateway_address};
use portcullis_e2e::setup::write_json;
use portcullis_e2e::target::TcpTarget;
use portcullis_e2e::tools;
use portcullis_e2e::turn::Turn;
use portcullis_e2e::wg_client::WgClient;
use serde_json::json;

#[test]
fn from_init_to_curl() {
    let _turn = Turn::shared();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = dir.path().join("portcullis");
    let lab = Lab::new(1);
    let client = &lab.clients[0];
    let init = || {
        let endpoint = format!("{}:51820", gateway_address(0, Family::V4));
        let mut command = Command::new(binary());
        command.arg("init").arg("--dir").arg(&home).args(["--endpoint", &endpoint]);
        tools::run(&mut command)
    };
    let first = init();
    assert!(first.status.success(), "{}", tools::said(&first));
    let config = home.join("gateway.toml");
    let written = std::fs::read_to_string(&config).expect("init writes gateway.toml");
    let key = find(&home, "wireguard.key").expect("init writes a key");
    let secret = std::fs::read(&key).expect("the key");
    init();
    assert_eq!(std::fs::read_to_string(&config).expect("still there"), written, "init overwrites nothing");

    let mut gateway = Gateway::new(&lab, &home);
    gateway.verb(&["check"]);
    let text =
        gateway.verb(&["device", "add", "ann-laptop", "--user", "ann@example.com", "--group", "eng", "--preshared"]);
    assert!(text.contains("PrivateKey") && text.contains("PresharedKey"), "{text}");
    let private_key = text.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).expect("a private key");
    let directory = std::fs::read_to_string(gateway.directory_path()).expect("directory.json");
    assert!(!directory.contains(private_key), "the private key is shown once and never stored");

    // Deny-all first: the printed file works, and reaches nothing.
    gateway.start();
    let wg = WgClient::start(client, dir.path(), &text);
    let web = TcpTarget::serve(&lab.private, Host::Open.address(Family::V4), |mut stream| {
        let mut request = [0; 1024];
        let len = stream.read(&mut request).unwrap_or(0);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n");
        String::from_utf8_lossy(&request[..len]).into_owned()
    });
    let url = format!("http://{}/", web.address());
    let curl = || client.run(|| tools::run(Command::new("curl").args(["-sS", "--max-time", "20", &url])));
    let refused = curl();
    assert_eq!(refused.status.code(), Some(7), "curl cannot connect: {}", tools::said(&refused));
    assert!(wg.latest_handshake(client) > 0, "the tunnel stands all the same");

    let explain = |verdict: &str| {
        let to = format!("{}/tcp", web.address());
        let text = gateway.verb(&["policy", "explain", "--device", "ann-laptop", "--to", &to]);
        assert!(text.to_lowercase().contains(verdict), "{text}");
    };
    explain("den");
    let policy = json!({ "version": 1, "rules": [
        { "id": "eng-web", "action": "allow", "from": ["group:eng"], "to": [web.address().ip().to_string()] },
    ]});
    write_json(&gateway.policy_path(), &policy);
    gateway.reload();
    explain("allow");
    let fetched = curl();
    assert!(fetched.status.success() && fetched.stdout == b"hello\n", "{}", tools::said(&fetched));
    assert!(web.result().starts_with("GET / HTTP/1.1"));

    assert_eq!(std::fs::read(&key).expect("still there"), secret, "init overwrites nothing");
    let mode = std::fs::metadata(&key).expect("the key's mode").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "{}", key.display());
    // A key others can read is refused at start (SECURITY T35).
    gateway.stop(std::time::Duration::from_secs(20));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("our own file");
    let out = gateway.try_verb(&["run"]);
    assert_eq!(out.status.code(), Some(78), "{}", tools::said(&out));
    assert!(tools::said(&out).contains("wireguard.key"), "{}", tools::said(&out));
}

/// The path of a file called `name` under `dir`.
fn find(dir: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.file_name().is_some_and(|found| found == name)).cloned();
    here.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find(path, name)))
}
