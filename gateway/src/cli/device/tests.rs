//! Round trips through files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::add::add;
use super::*;
use crate::cli::init::create;
use crate::cli::{Cli, Command};
use crate::directory::DirectoryContext;
use crate::keys::PrivateKey;

struct Place {
    dir: tempfile::TempDir,
    config: Config,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (config, _) = create(Some(dir.path()), Some("vpn.example.com:51820")).unwrap();
        Self { dir, config }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("directory.json")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    /// Runs a `device` line; what it prints goes nowhere.
    fn run(&self, line: &str) -> ExitStatus {
        run(self.command(line))
    }

    fn add(&self, line: &str) -> Result<add::Added, ExitStatus> {
        let DeviceCommand::Add(args) = self.command(&format!("add {line}")) else { panic!("not an addition: {line}") };
        add(&self.config, &args)
    }

    fn command(&self, line: &str) -> DeviceCommand {
        let config = self.dir.path().join("gateway.toml");
        let words = ["portcullis", "device"].into_iter().chain(line.split(' '));
        let words = words.chain(["--config", config.to_str().unwrap()]).map(str::to_owned);
        let Command::Device(command) = Cli::try_parse_from(words).unwrap().command else {
            panic!("no device verb: {line}")
        };
        command
    }

    fn directory(&self) -> Directory {
        Directory::load(&self.path(), &DirectoryContext::new(&self.config, None)).unwrap()
    }
}

fn value<'a>(file: &'a str, key: &str) -> &'a str {
    let prefix = format!("{key} = ");
    file.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap()
}

#[test]
fn an_added_device_is_the_one_of_its_client_file() {
    let place = Place::new();
    let added = place.add("laptop --user ann@example.com --group eng --group dba --preshared").unwrap();
    assert!(added.user_created);
    let file = added.client_file.unwrap();
    let directory = place.directory();
    let device = directory.device("laptop").unwrap();
    assert_eq!(&*device.identity.user, "ann@example.com");
    assert_eq!(device.identity.groups.len(), 2);
    let private = PrivateKey::parse(value(&file, "PrivateKey")).unwrap();
    assert_eq!(device.public_key, Some(private.public()));
    assert_eq!(encode_key(&device.preshared_key.as_ref().unwrap().0), value(&file, "PresharedKey"));
    assert_eq!(value(&file, "Address"), "100.96.0.2/32, fd00:96::2/128");
    assert_eq!(value(&file, "Endpoint"), "vpn.example.com:51820");
    let gateway = PrivateKey::read_file(&place.config.wireguard.as_ref().unwrap().key_file).unwrap();
    assert_eq!(value(&file, "PublicKey"), encode_key(&gateway.public()));
    assert!(!place.text().contains(value(&file, "PrivateKey")), "a private key was stored");

    let second = place.add("phone --user ann@example.com").unwrap();
    assert!(!second.user_created);
    assert_eq!(second.addresses, ["100.96.0.3".parse::<std::net::IpAddr>().unwrap(), "fd00:96::3".parse().unwrap()]);
}

#[test]
fn the_file_reads_as_if_written_by_hand() {
    let place = Place::new();
    place.add("site --user berlin --networks 192.168.7.0/24 fd01::/48").unwrap();
    place.add("site2 --user berlin --networks 192.168.8.0/24").unwrap();
    assert_eq!(
        place.text(),
        r#"{
  "users": {
    "berlin": {}
  },
  "devices": {
    "site": { "user": "berlin", "networks": ["192.168.7.0/24", "fd01::/48"] },
    "site2": { "user": "berlin", "networks": ["192.168.8.0/24"] }
  }
}
"#
    );
}

#[test]
fn revoke_and_remove_keep_the_rest() {
    let place = Place::new();
    place.add("a --user ann").unwrap();
    place.add("b --user ann").unwrap();
    let before = place.text();
    assert_eq!(place.run("revoke a"), ExitStatus::Done);
    assert!(place.directory().device("a").unwrap().revoked);
    let line = before.lines().find(|line| line.contains("\"a\"")).unwrap();
    assert_eq!(place.text(), before.replace(line, &line.replace(" },", ", \"revoked\": true },")));
    assert_eq!(place.run("revoke a --json"), ExitStatus::Done);
    assert_eq!(place.run("remove a"), ExitStatus::Done);
    assert_eq!(place.text(), before.replace(&format!("{line}\n"), ""));
    assert_eq!(place.run("remove a"), ExitStatus::Failed);
    assert_eq!(place.run("show b"), ExitStatus::Done);
    assert_eq!(place.run("show c"), ExitStatus::Failed);
    assert_eq!(place.run("list --json"), ExitStatus::Done);
}

#[test]
fn what_would_make_it_bad_changes_nothing() {
    let place = Place::new();
    place.add("a --user ann --group eng").unwrap();
    let before = place.text();
    let own = PrivateKey::read_file(&place.config.wireguard.as_ref().unwrap().key_file).unwrap().public();
    for (line, status) in [
        ("a --user ann".to_owned(), ExitStatus::Failed),
        ("b --user ann --group ops".to_owned(), ExitStatus::Usage),
        ("b --user ann --public-key x".to_owned(), ExitStatus::Usage),
        (format!("b --user ann --public-key {}", encode_key(&own)), ExitStatus::Usage),
        ("b\n --user ann".to_owned(), ExitStatus::Usage),
        ("b --user \u{1}".to_owned(), ExitStatus::Usage),
        ("b --user ann --networks 100.96.7.0/24".to_owned(), ExitStatus::Usage),
    ] {
        assert_eq!(place.add(&line).unwrap_err(), status, "{line:?}");
        assert_eq!(place.text(), before, "{line:?}");
    }
    let public = encode_key(&PrivateKey::generate().unwrap().public());
    let added = place.add(&format!("b --user ann --public-key {public}")).unwrap();
    assert!(added.client_file.unwrap().contains("\n# PrivateKey = "));
    assert!(place.text().contains(&public));
}

#[test]
fn a_file_that_is_bad_already_is_left_alone() {
    let place = Place::new();
    let bad = "{ \"users\": {}, \"devices\": {}, \"extra\": 1 }";
    fs::write(place.path(), bad).unwrap();
    assert_eq!(place.add("a --user ann").unwrap_err(), ExitStatus::BadConfig);
    assert_eq!(place.run("list"), ExitStatus::BadConfig);
    assert_eq!(place.text(), bad);
}

#[test]
fn mode_and_links_survive_an_edit() {
    let place = Place::new();
    let real = place.dir.path().join("state/real.json");
    fs::rename(place.path(), &real).unwrap();
    std::os::unix::fs::symlink(&real, place.path()).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    place.add("a --user ann").unwrap();
    assert!(fs::symlink_metadata(place.path()).unwrap().is_symlink());
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o640);
    assert!(place.directory().device("a").is_some());
    let left: Vec<_> = fs::read_dir(real.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn concurrent_additions_all_count() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let place = &place;
            scope.spawn(move || place.add(&format!("d{i} --user u{i}")).unwrap());
        }
    });
    assert_eq!(place.directory().devices().count(), 8);
}

#[test]
fn without_an_endpoint_nothing_is_added() {
    let place = Place::new();
    let path = place.dir.path().join("gateway.toml");
    let text: String = fs::read_to_string(&path)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with("endpoint"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&path, text).unwrap();
    let before = place.text();
    assert_eq!(place.run("add a --user ann"), ExitStatus::BadConfig);
    assert_eq!(place.text(), before);
}

#[test]
fn listings_tell_states_and_hide_preshared_keys() {
    let key = |number: u8| encode_key(&[number; 32]);
    let text = format!(
        r#"{{ "users": {{ "ann": {{ "groups": ["eng"] }}, "bob": {{ "disabled": true }} }}, "devices": {{
        "b": {{ "user": "ann", "networks": ["10.0.0.0/8"], "revoked": true }},
        "a": {{ "user": "ann", "public_key": "{}", "preshared_key": "{}", "addresses": ["100.96.0.2"], "expires": "2026-01-01T00:00:00Z" }},
        "c": {{ "user": "bob", "networks": ["11.0.0.0/8"] }},
        "d": {{ "user": "ann", "networks": ["12.0.0.0/8"] }} }} }}"#,
        key(1),
        key(2)
    );
    let config = Config::resolve("[wireguard]\naddresses = [\"100.96.0.1/16\"]\n", Path::new("/x"), 1).unwrap();
    let directory = Directory::parse(&text, &DirectoryContext::new(&config, None)).unwrap();
    let now = "2026-06-01T00:00:00Z".parse().unwrap();
    assert_eq!(
        list_text(&directory, None, now),
        "DEVICE  USER  STATE     ADDRESSES   EXPIRES\n\
         a       ann   expired   100.96.0.2  2026-01-01T00:00:00Z\n\
         b       ann   revoked   10.0.0.0/8  -\n\
         c       bob   disabled  11.0.0.0/8  -\n\
         d       ann   active    12.0.0.0/8  -\n"
    );
    let running = [("a", false), ("b", true), ("c", false)].map(|(name, admitted)| (name.to_owned(), admitted)).into();
    assert_eq!(
        list_text(&directory, Some(&running), now),
        "DEVICE  USER  STATE                     ADDRESSES   EXPIRES\n\
         a       ann   expired                   100.96.0.2  2026-01-01T00:00:00Z\n\
         b       ann   revoked, STILL ADMITTED   10.0.0.0/8  -\n\
         c       bob   disabled                  11.0.0.0/8  -\n\
         d       ann   active, not yet in force  12.0.0.0/8  -\n"
    );
    let listing = list_json(&directory, Some(&running), now);
    let json: Value = serde_json::from_str(&listing).unwrap();
    assert_eq!(json[0]["public_key"], key(1));
    assert_eq!(json[0]["preshared_key"], true);
    assert_eq!(json[3]["state"], "active");
    assert_eq!((&json[1]["admitted"], &json[3]["admitted"]), (&true.into(), &false.into()));
    assert!(!listing.contains(&key(2)));
}
