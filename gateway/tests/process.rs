//! The real binary: exit codes, signals, the service manager. Only loopback and a directory of its own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that meets the unexpected must fail")]

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const POLICY: &str = r#"{"version":1,"rules":[{"id":"web","action":"allow","from":["*"],"to":["10.0.0.0/8"]}]}"#;
const DIRECTORY: &str = r#"{"users":{"ann":{"groups":[]}},"devices":{"ann-laptop":{"user":"ann","public_key":"3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=","addresses":["100.96.0.2"]}}}"#;

struct Lab {
    dir: tempfile::TempDir,
    notify: UnixDatagram,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let toml = format!(
            "policy = {{ file = \"policy.json\", watch = false }}\n\
             state_dir = \"state\"\ncontrol = \"control.sock\"\ndrain = \"1s\"\n\
             [wireguard]\nlisten = \"{port}\"\naddresses = [\"100.96.0.1/16\"]\n\
             [log]\nflows = \"flows.jsonl\"\n[runtime]\nshards = 2\n"
        );
        fs::write(dir.path().join("gateway.toml"), toml).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let notify = UnixDatagram::bind(dir.path().join("notify.sock")).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let lab = Self { dir, notify };
        lab.write("state/wireguard.key", "WEhjWyK4mXfFvmzkmCtmOLNDl8MyGCXYXwzJqYK6mW4=\n");
        fs::set_permissions(lab.path("state/wireguard.key"), Permissions::from_mode(0o600)).unwrap();
        lab.write("policy.json", POLICY);
        lab.write("directory.json", DIRECTORY);
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(verb).arg("--config").arg(self.path("gateway.toml"));
        command
    }

    /// Exit code, standard output, standard error.
    fn run(&self, verb: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(verb).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    /// A gateway that has said it is ready.
    fn start(&self) -> Gateway<'_> {
        let mut command = self.command(&["run"]);
        command.env("NOTIFY_SOCKET", self.path("notify.sock")).stderr(Stdio::piped());
        let gateway = Gateway { child: command.spawn().unwrap(), lab: self };
        gateway.await_notification("READY=1");
        gateway
    }
}

struct Gateway<'a> {
    child: Child,
    lab: &'a Lab,
}

impl Gateway<'_> {
    fn await_notification(&self, wanted: &str) {
        let mut buffer = [0; 4096];
        loop {
            let n = self.lab.notify.recv(&mut buffer).unwrap_or_else(|error| panic!("waiting for {wanted}: {error}"));
            if String::from_utf8_lossy(&buffer[..n]).lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Exit code and log.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_life() {
    let lab = Lab::new();
    for verb in [&["status"][..], &["flows"], &["reload"], &["kill", "--device", "ann-laptop"]] {
        let (code, out, err) = lab.run(verb);
        assert_eq!((code, out.as_str()), (69, ""), "{verb:?}: {err}");
        assert!(err.contains("not running"), "{err}");
    }
    let gateway = lab.start();
    assert_eq!(fs::metadata(lab.path("control.sock")).unwrap().permissions().mode() & 0o777, 0o660);

    let (code, out, _) = lab.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &status["revision"], &status["pid"]), (0, &1.into(), &gateway.child.id().into()));
    assert_eq!(lab.run(&["flows"]).0, 0);
    assert_eq!(lab.run(&["kill", "--user", "ann"]).0, 0);
    assert_eq!(lab.run(&["kill", "--device", "ann-laptop"]).0, 0);
    assert_eq!(lab.run(&["kill", "--flow", "1"]).0, 1);
    for stranger in [["kill", "--user", "eve"], ["kill", "--device", "ann"]] {
        let (code, _, err) = lab.run(&stranger);
        assert!(code == 1 && err.contains(stranger[2]), "{stranger:?}: {code} {err}");
    }

    let (code, _, err) = lab.run(&["run"]);
    assert_eq!(code, 1);
    assert!(err.contains(&format!("process {}", gateway.child.id())), "{err}");

    lab.write("policy.json", &POLICY.replace("web", "intranet"));
    let (code, out, _) = lab.run(&["reload"]);
    assert_eq!((code, out.as_str()), (0, "revision 2 in force\nrule intranet added\nrule web removed\n"));
    lab.write("policy.json", &POLICY.replace("10.0.0.0/8", "10.0.0.1/8"));
    let (code, _, err) = lab.run(&["reload"]);
    assert_eq!(code, 78);
    assert!(err.contains("policy.json:1:") && err.contains("rules[0].to[0]"), "{err}");
    assert!(err.contains("revision 2 stays in force"), "{err}");

    lab.write("policy.json", POLICY);
    fs::rename(lab.path("flows.jsonl"), lab.path("flows.jsonl.1")).unwrap();
    gateway.signal(Signal::SIGHUP);
    gateway.await_notification("RELOADING=1");
    gateway.await_notification("READY=1");
    let (_, out, _) = lab.run(&["status"]);
    assert!(out.contains("revision   3\n"), "{out}");
    // Its writer is a thread of its own, which nothing reports on.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !lab.path("flows.jsonl").exists() {
        assert!(Instant::now() < deadline, "the flow log was not opened again");
        std::thread::sleep(Duration::from_millis(2));
    }

    gateway.signal(Signal::SIGTERM);
    gateway.await_notification("STOPPING=1");
    let (code, log) = gateway.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!lab.path("control.sock").exists());
    assert!(!log.contains("WEhjWyK4"), "no key in the log");
}

#[test]
fn after_a_crash_the_socket_is_taken_over() {
    let lab = Lab::new();
    let gateway = lab.start();
    gateway.signal(Signal::SIGKILL);
    assert_eq!(gateway.end().0, None);
    assert!(lab.path("control.sock").exists());
    assert_eq!(lab.run(&["status"]).0, 69);
    let gateway = lab.start();
    assert_eq!(lab.run(&["status"]).0, 0);
    gateway.signal(Signal::SIGINT);
    assert_eq!(gateway.end().0, Some(0));
}

#[test]
fn bad_files_keep_it_from_starting() {
    let lab = Lab::new();
    for (name, text, place) in [
        ("policy.json", "{}", "policy.json:1:1"),
        ("directory.json", "[]", "directory.json:1:1"),
        ("gateway.toml", "nonsense = 1", "gateway.toml:1:1"),
        ("state/wireguard.key", "short", "wireguard.key"),
    ] {
        let good = fs::read_to_string(lab.path(name)).unwrap();
        lab.write(name, text);
        let (code, _, err) = lab.run(&["run"]);
        assert_eq!(code, 78, "{name}: {err}");
        assert!(err.contains(place), "{name}: {err}");
        lab.write(name, &good);
    }
    fs::set_permissions(lab.path("state/wireguard.key"), Permissions::from_mode(0o644)).unwrap();
    let (code, _, err) = lab.run(&["run"]);
    assert_eq!(code, 78, "a key that others can read: {err}");
    fs::set_permissions(lab.path("state/wireguard.key"), Permissions::from_mode(0o600)).unwrap();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let toml = fs::read_to_string(lab.path("gateway.toml")).unwrap();
    let listen = toml.lines().find(|line| line.starts_with("listen")).unwrap();
    lab.write("gateway.toml", &toml.replace(listen, &format!("listen = \"{address}\"")));
    let (code, _, err) = lab.run(&["run"]);
    assert_eq!(code, 1, "{err}");
    assert_eq!(err.matches("in use").count(), 1, "each cause is said once: {err}");
    fs::remove_file(lab.path("gateway.toml")).unwrap();
    for verb in [&["run"][..], &["check"], &["status"]] {
        let (code, _, err) = lab.run(verb);
        assert!(code == 78 && err.contains("`portcullis init`") && err.contains("--config"), "{verb:?}: {err}");
    }
    assert!(!lab.path("control.sock").exists());
}

#[test]
fn explain_with_and_without_a_gateway() {
    let lab = Lab::new();
    let question = ["policy", "explain", "--device", "ann-laptop", "--to", "10.0.0.1:22/tcp"];
    let (code, _, err) = lab.run(&question);
    assert!(code == 69 && err.contains("--policy FILE"), "{err}");
    let other = lab.path("other.json");
    lab.write("other.json", &POLICY.replace("allow", "deny"));
    let offline = [&question[..], &["--policy", other.to_str().unwrap()]].concat();
    let (code, out, err) = lab.run(&offline);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("deny: ann-laptop to 10.0.0.1 tcp/22 by rule web"), "{out}");

    let gateway = lab.start();
    let (code, out, _) = lab.run(&question);
    assert_eq!(code, 0);
    assert!(out.starts_with("allow: ann-laptop to 10.0.0.1 tcp/22 by rule web"), "{out}");
    let (code, _, err) = lab.run(&["policy", "explain", "--device", "x", "--to", "10.0.0.1:22/tcp"]);
    assert_eq!(code, 1, "{err}");
    assert_eq!(lab.run(&["policy", "explain", "--device", "ann-laptop", "--to", "10.0.0.1"]).0, 64);
    lab.write("other.json", "{");
    assert_eq!(lab.run(&offline).0, 78);
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.end().0, Some(0));
}

#[test]
fn a_revoked_device_is_out_even_beside_a_broken_policy() {
    let lab = Lab::new();
    let gateway = lab.start();
    lab.write("policy.json", "{");
    for what in ["ann-laptop revoked", "ann-laptop is revoked already"] {
        let (code, _, err) = lab.run(&["device", "revoke", "ann-laptop"]);
        assert_eq!(code, 78, "{err}");
        assert!(err.contains(what) && err.contains("policy.json:1:"), "{err}");
        assert!(err.contains("ann-laptop is barred in the running gateway now, its flows have ended"), "{err}");
        assert!(err.contains("NOT in force") && err.contains("`portcullis reload`"), "{err}");
    }
    let question = ["policy", "explain", "--device", "ann-laptop", "--to", "10.0.0.1:80/tcp"];
    let (_, out, _) = lab.run(&question);
    assert!(out.starts_with("deny: ann-laptop to "), "{out}");

    // The file as it was: the next good load lifts the bar, and removal bars as well.
    lab.write("directory.json", DIRECTORY);
    lab.write("policy.json", POLICY);
    assert_eq!(lab.run(&["reload"]).0, 0);
    assert!(lab.run(&question).1.starts_with("allow: ann-laptop to "));
    lab.write("policy.json", "{");
    let (code, _, err) = lab.run(&["device", "remove", "ann-laptop"]);
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("barred in the running gateway now"), "{err}");
    assert!(lab.run(&question).1.starts_with("deny: ann-laptop to "));

    lab.write("policy.json", POLICY);
    lab.write("directory.json", DIRECTORY);
    assert_eq!(lab.run(&["device", "revoke", "ann-laptop"]).0, 0);
    let (code, _, err) = lab.run(&["device", "revoke", "ann-laptop"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("revoked already") && err.contains("in force"), "{err}");
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.end().0, Some(0));
}
