//! Network namespaces, and running code inside them.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

use crate::tools;

/// A named network namespace, deleted when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    keep: bool,
}

/// Whether `PORTCULLIS_E2E_KEEP=1` asks for everything to stay after the test.
pub fn keep() -> bool {
    std::env::var_os("PORTCULLIS_E2E_KEEP").is_some_and(|value| value == "1")
}

/// A number no other lab on this machine has: process id and a count.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Netns {
    /// Makes a namespace whose loopback is up and whose IPv6 addresses are usable at once.
    ///
    /// # Panics
    ///
    /// When `ip netns add` fails.
    pub fn new(role: &str, unique: &str) -> Self {
        let name = format!("pc-{unique}-{role}");
        tools::output(Command::new("ip").args(["netns", "add", &name]));
        let netns = Self { name, keep: keep() };
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0");
        netns.sysctl("net.ipv6.conf.all.accept_dad", "0");
        netns.ip("link set lo up");
        netns
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `code` on a thread inside the namespace. Sockets it opens and processes it starts belong to the
    /// namespace for their whole life and may be used from anywhere.
    ///
    /// # Panics
    ///
    /// When the namespace cannot be entered, or `code` panics.
    pub fn run<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let handle = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                setns(handle, CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| panic!("setns {path}: {error}"));
                code()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a tool inside, to its end, and gives its standard output.
    ///
    /// # Panics
    ///
    /// When the tool fails.
    pub fn output(&self, program: &str, args: &[&str]) -> String {
        self.run(|| tools::output(Command::new(program).args(args)))
    }

    /// Runs `ip` with arguments separated by spaces and gives what it printed.
    ///
    /// # Panics
    ///
    /// When it fails.
    pub fn ip(&self, arguments: &str) -> String {
        let args: Vec<&str> = arguments.split_whitespace().collect();
        self.output("ip", &args)
    }

    /// Sets a kernel variable of the namespace.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.output("sysctl", &["-q", "-w", &format!("{key}={value}")]);
    }

    /// Everything the kernel routes by: rules and all tables of both families, without counters and timers.
    pub fn routing(&self) -> String {
        ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"]
            .map(|what| {
                let mut lines: Vec<String> = self.ip(what).lines().map(str::to_owned).collect();
                lines.sort_unstable();
                format!("# ip {what}\n{}\n", lines.join("\n"))
            })
            .concat()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // A failure here must not hide why the test ended.
        let deleted = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("namespace {} is left behind", self.name);
        }
    }
}
