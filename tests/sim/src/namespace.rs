//! A network namespace of a test's own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Address of the targets.
pub const TARGET: &str = "10.20.0.1";
/// Address of the targets.
pub const TARGET6: &str = "fd00:20::1";

/// Runs `test` on a thread in a fresh network namespace that has the targets' addresses. Threads it starts are in the
/// namespace too, which is gone when all have ended.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need CAP_SYS_ADMIN: run the tests as root");
        ip("link set lo up");
        ip(&format!("address add {TARGET}/32 dev lo"));
        ip(&format!("address add {TARGET6}/128 dev lo nodad"));
        // Ping sockets are for nobody in a new namespace.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("ping sockets");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().expect("the tests need `ip`: install iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
