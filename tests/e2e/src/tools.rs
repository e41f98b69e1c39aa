//! Running the administrator's tools, with a failure that says what to do.

use std::process::{Command, Output};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a test needs on the machine, and the Debian package that brings it.
const TOOLS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("traceroute", "traceroute"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
    ("sysctl", "procps"),
];

/// Fails, saying what to install or to change, when this machine cannot run the tests.
///
/// # Panics
///
/// When the process is not root, `/dev/net/tun` is missing, or a tool is not installed.
pub fn require() {
    assert!(
        nix::unistd::Uid::effective().is_root(),
        "the end-to-end tests make network namespaces and TUN devices: run them as root"
    );
    assert!(
        std::path::Path::new("/dev/net/tun").exists(),
        "/dev/net/tun is missing: load the module with `modprobe tun` (in a container: --device /dev/net/tun)"
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let missing: Vec<_> = TOOLS.iter().filter(|(tool, _)| !found(tool)).collect();
    assert!(
        missing.is_empty(),
        "not installed: {}\ninstall with: apt-get install {}",
        missing.iter().map(|(tool, _)| *tool).collect::<Vec<_>>().join(", "),
        missing.iter().map(|(_, package)| *package).collect::<Vec<_>>().join(" "),
    );
    // A thousand flows are two thousand sockets of the test's own.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the limit of open files can be raised to its maximum");
}

/// Runs a command to its end and gives its standard output.
///
/// # Panics
///
/// When it cannot be started or fails; the message holds the command and what it said.
pub fn output(command: &mut Command) -> String {
    let out = run(command);
    assert!(out.status.success(), "{command:?} failed: {}\n{}", out.status, said(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a command to its end, whatever that is.
///
/// # Panics
///
/// When it cannot be started.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
}

/// Both outputs of a finished command as text.
pub fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}
