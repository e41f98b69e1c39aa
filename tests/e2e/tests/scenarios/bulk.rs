//! Much data: a GiB each way, losses on the way, and readers that do not keep up.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use portcullis_e2e::expect;
use portcullis_e2e::lab::{Family, Host};
use portcullis_e2e::nft;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::stream::{self, MIB};
use portcullis_e2e::target::TcpTarget;
use portcullis_e2e::transfer::{download, upload};
use portcullis_e2e::world::World;

const GIB: u64 = 1024 * MIB;

fn each_way(world: &World<'_>, len: u64) {
    let host = Host::Open.address(Family::V4);
    let to = upload(world.client(), world.private(), host, 5, len);
    let line = expect::record(world, world.client(), to, "client_closed");
    assert_eq!((line.bytes_up, line.bytes_down), (len, 32));
    eprintln!("{len} bytes up in {} ms", line.duration_ms);
    let to = download(world.client(), world.private(), host, 6, len);
    let line = expect::record(world, world.client(), to, "target_closed");
    assert_eq!((line.bytes_up, line.bytes_down), (0, len));
    eprintln!("{len} bytes down in {} ms", line.duration_ms);
}

on_both_ramps!(a_gib_each_way, setup = Setup::alone, |world| each_way(world, GIB));

/// One packet in a hundred is lost between client and gateway, in both directions.
fn lossy(world: &mut World<'_>) {
    world.lab.no_batches();
    let (up, down) = match world.client().ramp {
        OnRamp::Wireguard => ("udp dport 51820", "udp sport 51820"),
        OnRamp::Tun => ("iifname \"client0\" ip daddr 10.20.0.0/24", "ip saddr 10.20.0.0/24"),
    };
    nft::lose_one_percent(&world.lab.gateway, up);
    nft::lose_one_percent(world.client().netns, down);
    each_way(world, 128 * MIB);
    for netns in [&world.lab.gateway, world.client().netns] {
        let lost = netns.output("nft", &["list", "table", "inet", "loss"]);
        assert!(!lost.contains("packets 0 "), "nothing was lost: {lost}");
    }
}
on_both_ramps!(losses_lose_no_byte, setup = Setup::alone, lossy);

/// More than all buffers on the way hold, kernel sockets included.
const HELD_AT_MOST: u64 = 40 * MIB;
/// Enough that a gateway that buffered without bound would show.
const LEN: u64 = 160 * MIB;
/// Two ring buffers of a flow are 2 MiB; the rest is slack for the allocator.
const GROWTH_KIB: u64 = 16 * 1024;

/// Waits until `sent` has not moved for a second.
fn stalled(sent: &AtomicU64) -> u64 {
    let mut last = (sent.load(Ordering::Relaxed), Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = sent.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        } else if now > 0 && last.1.elapsed() > Duration::from_secs(1) {
            return now;
        }
    }
}

/// A writer that tells how far it came.
fn counted(len: u64, sent: &AtomicU64) -> impl FnMut(u64) -> u64 {
    move |chunk| {
        let before = sent.load(Ordering::Relaxed);
        let now = (len - before).min(chunk);
        sent.store(before + now, Ordering::Relaxed);
        now
    }
}

/// A client that does not read stops the target, and the gateway holds no more than its buffers.
fn slow_client(world: &mut World<'_>) {
    let sent = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&sent);
    let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), move |mut stream| {
        let sum = stream::send_while(&mut stream, 7, counted(LEN, &progress))?;
        stream.shutdown(Shutdown::Write)?;
        stream::receive(&stream)?;
        Ok::<_, std::io::Error>(sum)
    });
    let before = world.gateway.process().memory_kib("VmRSS");
    let stream = world.client().connect(target.address()).expect("the target accepts");
    assert!(stalled(&sent) < HELD_AT_MOST, "the target was never stopped");
    let after = world.gateway.process().memory_kib("VmRSS");
    assert!(after < before + GROWTH_KIB, "the gateway grew from {before} to {after} KiB");
    let got = stream::receive(&stream).expect("the rest");
    // The target waits for this end.
    drop(stream);
    assert_eq!(got, target.result().expect("everything is sent"));
    expect::record(world, world.client(), target.address(), "target_closed");
}
on_both_ramps!(a_slow_client_stops_the_target, setup = Setup::alone, slow_client);

/// A target that does not read stops the client.
fn slow_target(world: &mut World<'_>) {
    let (go, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), move |mut stream| {
        wait.lock().expect("one connection").recv().expect("the test says when");
        let got = stream::receive(&stream)?;
        stream.write_all(&got.1)?;
        Ok::<_, std::io::Error>(got)
    });
    let before = world.gateway.process().memory_kib("VmRSS");
    let mut stream = world.client().connect(target.address()).expect("the target accepts");
    let sent = AtomicU64::new(0);
    let sum = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let sum = stream::send_while(&mut stream, 8, counted(LEN, &sent)).expect("everything is sent");
            stream.shutdown(Shutdown::Write).expect("half of the connection is closed");
            sum
        });
        assert!(stalled(&sent) < HELD_AT_MOST, "the client was never stopped");
        let after = world.gateway.process().memory_kib("VmRSS");
        assert!(after < before + GROWTH_KIB, "the gateway grew from {before} to {after} KiB");
        go.send(()).expect("the target waits");
        sending.join().expect("the client sends")
    });
    assert_eq!(target.result().expect("everything arrives"), sum);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the answer");
    assert_eq!(answer, sum.1);
    expect::record(world, world.client(), target.address(), "client_closed");
}
on_both_ramps!(a_slow_target_stops_the_client, setup = Setup::alone, slow_target);
