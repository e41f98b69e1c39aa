//! Far ends that die and return while connections come and go, and what the gateway then still holds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::lab::{Family, Host};
use crate::metrics::OPEN;
use crate::netns::Netns;
use crate::target::TcpTarget;
use crate::world::World;

/// Connections that are made before the far end dies, and while it does.
const CONNECTIONS: usize = 10_000;
const WORKERS: usize = 8;
/// Longer than what is over lingers in TIME-WAIT.
const LINGERING: Duration = Duration::from_secs(12);

/// Makes so many connections, which say and hear a little; returns how many failed, and what `beside` them comes to.
fn load<T>(world: &World<'_>, to: SocketAddr, connections: usize, beside: impl FnOnce() -> T) -> (usize, T) {
    let client = world.client();
    let failed = AtomicUsize::new(0);
    let beside = std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                // One thread in the namespace for all of them.
                client.netns.run(|| {
                    for _ in 0..connections / WORKERS {
                        let talk = || -> std::io::Result<()> {
                            let mut stream = TcpStream::connect(to)?;
                            stream.write_all(&[7; 1_000])?;
                            stream.read_exact(&mut [0; 1_000])
                        };
                        failed.fetch_add(usize::from(talk().is_err()), Ordering::Relaxed);
                    }
                });
            });
        }
        beside()
    });
    (failed.into_inner(), beside)
}

/// What the gateway holds: descriptors and KiB.
fn held(world: &mut World<'_>) -> (usize, u64) {
    (world.gateway.process().open_fds(), world.gateway.process().memory_kib("VmRSS"))
}

/// Has the far end of the way to `host` in `netns` die in the middle of 10,000 connections and return: `dies_and_returns`.
/// Then it must be as good as before, and the gateway must hold what it held before. Returns how many connections failed,
/// and what returned.
///
/// # Panics
///
/// When it does not.
pub fn leaks_nothing<T: Send>(
    world: &mut World<'_>,
    netns: &Netns,
    host: Host,
    dies_and_returns: impl FnOnce() -> T,
) -> (usize, T) {
    let target = TcpTarget::serve(netns, host.address(Family::V4), |mut stream| {
        let mut heard = [0; 1_000];
        stream.read_exact(&mut heard).and_then(|()| stream.write_all(&heard)).is_ok()
    });
    assert_eq!(load(world, target.address(), CONNECTIONS, || {}).0, 0);
    world.gateway.wait_for_metric(OPEN, None, 0.0);
    let (descriptors, memory) = held(world);
    let (failed, returned) = load(world, target.address(), CONNECTIONS, || {
        std::thread::sleep(Duration::from_millis(300));
        dies_and_returns()
    });
    assert!(failed < CONNECTIONS, "it returned");
    assert_eq!(load(world, target.address(), CONNECTIONS / 10, || {}).0, 0, "it is as good as before");
    let mut after = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < LINGERING * 2 {
        after = held(world);
        if after.0 <= descriptors && after.1 <= memory + memory / 10 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let (descriptors_after, memory_after) = after;
    assert!(descriptors_after <= descriptors, "{descriptors} descriptors before, {descriptors_after} after");
    assert!(memory_after <= memory + memory / 10, "{memory} KiB before, {memory_after} after");
    (failed, returned)
}
