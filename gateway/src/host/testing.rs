//! A private network namespace for a test, gone when its thread ends.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use crate::config::Config;
use crate::config::resolved::{Limits, OnStop, TunConfig};
use crate::host::TunDevice;

/// Runs `test` on a thread of its own in a fresh network namespace with `lo` up. Needs root.
pub(crate) fn in_namespace<F: AsyncFnOnce() + Send + 'static>(test: F) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need CAP_SYS_ADMIN: run the tests as root");
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of the calling thread and returns what it printed; a failure ends the test.
pub(crate) fn ip(arguments: &str) -> String {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().expect("the tests need `ip`: install iproute2");
    let stderr = String::from_utf8_lossy(&output.stderr);
    // An empty or absent table is an answer, not a failure.
    assert!(output.status.success() || stderr.contains("FIB table does not exist"), "ip {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Adds an interface that is up, with nobody at its other end.
pub(crate) fn add_link(name: &str) {
    let peer = format!("{name}-peer");
    ip(&format!("link add {name} type veth peer name {peer}"));
    for end in [name, &peer] {
        ip(&format!("link set {end} addrgenmode none"));
        ip(&format!("link set {end} up"));
    }
}

/// Lets go of a device and waits until it is gone. A child another test is just starting may hold its descriptor until
/// it executes.
pub(crate) fn let_go(tun: TunDevice) {
    let name = tun.name().to_owned();
    drop(tun);
    while if_nametoindex(name.as_str()).is_ok() {
        std::thread::yield_now();
    }
}

/// Writes a network sysctl of the calling thread's namespace.
pub(crate) fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// `[tun]` as tests use it.
pub(crate) fn tun_config(routes: &[&str], exclude: &[&str]) -> TunConfig {
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
    TunConfig {
        name: "pcl0".to_owned(),
        addresses: nets(&["100.97.0.1/32", "fd00:97::1/128"]),
        mtu: 1400,
        routes: nets(routes),
        exclude: nets(exclude),
        table: 51880,
        fwmark: 51880,
        on_stop: OnStop::Remove,
        returns: None,
    }
}

/// A configuration with nothing but this.
pub(crate) fn config(tun: Option<TunConfig>) -> Config {
    let file = |name: &str| PathBuf::from(name);
    Config {
        source: file("gateway.toml"),
        text: "".into(),
        directory: file("directory.json"),
        policy: file("policy.json"),
        watch: false,
        state_dir: file("state"),
        control: file("control.sock"),
        local_services: Vec::new(),
        wireguard: None,
        tun,
        offramps: Vec::new(),
        networks: Vec::new(),
        routes: Vec::new(),
        limits: Limits::default(),
        flow_log: file("flows.jsonl"),
        metrics: None,
        shards: 1,
        drain: Duration::from_secs(10),
    }
}
