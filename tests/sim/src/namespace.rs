//! A network namespace of a test's own.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

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
        wait_for(TARGET6);
        // Ping sockets are for nobody in a new namespace.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("ping sockets");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The kernel makes an IPv6 address usable some time after it was added.
fn wait_for(address: &str) {
    let arrives = || {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.send_to(b"?", socket.local_addr()?)?;
        socket.recv(&mut [0])
    };
    for _ in 0..100 {
        if arrives().is_ok() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("{address}: {:?}", arrives());
}

fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().expect("the tests need `ip`: install iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
