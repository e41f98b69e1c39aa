//! Bytes in bulk: what arrives is what was sent, whatever the path does; and how fast.

use std::fmt::Write;
use std::time::Duration;

use portcullis_netstack::{CloseCause, StackLimits};

use crate::lab::{Reception, Target, limits};
use crate::link::Path;
use crate::world::{CLEAN, LATENCY, World, target_v4, target_v6};

const KIB: usize = 1024;
const MINUTE: Duration = Duration::from_secs(60);

/// Sends `up` and `down` bytes at once; returns the virtual time it took.
fn transfer(v6: bool, path: Path, buffer: usize, up: u64, down: u64) -> Duration {
    let limits = StackLimits { tcp_buffer: buffer, ..limits() };
    let mut world = World::new(limits, path, Reception::Accept(Target::sends(down)));
    world.client.connect(if v6 { target_v6() } else { target_v4() }, up, 1024 * KIB);
    let arrived = |world: &mut World| {
        let taken = world.lab.targets.values().map(|target| target.received).sum::<u64>();
        let ended = world.lab.ended.iter().map(|ended| ended.traffic.bytes_up).sum::<u64>();
        taken + ended == up && world.client.connections[0].received == down
    };
    assert!(
        world.run(MINUTE * 30, arrived),
        "stuck at {:?}: v6 {v6}, loss {}, reordered {}, buffer {buffer}, client {:?}, ended {:?}; {} up, {} down",
        world.lab.now,
        path.loss,
        path.reordered,
        world.client.state(0),
        world.lab.ended,
        world.lab.targets.values().map(|target| target.received).sum::<u64>(),
        world.client.connections[0].received
    );
    let took = world.lab.now;
    assert!(world.run(MINUTE * 10, |world| !world.lab.ended.is_empty()), "it does not end");
    let ended = world.lab.ended[0];
    assert_eq!((ended.cause, ended.traffic.bytes_up, ended.traffic.bytes_down), (CloseCause::Orderly, up, down));
    assert!(world.run(MINUTE, |world| world.lab.stack.is_empty()), "it lingers for ever");
    assert!(world.client.connections[0].target_finished, "the client saw the end");
    took
}

#[test]
fn bytes_survive_loss_and_reordering_both_ways_at_once() {
    for v6 in [false, true] {
        for loss in [0, 10] {
            for reordered in [0, 100] {
                for buffer in [4 * KIB, 64 * KIB, 1024 * KIB] {
                    transfer(v6, Path { latency: LATENCY, loss, reordered }, buffer, 150_000, 150_001);
                }
            }
        }
    }
}

/// One way at a time: with data in both directions two smoltcp ends can lock up for good. After a timeout their bare
/// acknowledgments begin before what the other expects, and neither looks at an acknowledgment in such a segment.
#[test]
fn bytes_survive_heavy_loss_each_way() {
    for v6 in [false, true] {
        for reordered in [0, 100] {
            for buffer in [4 * KIB, 64 * KIB, 1024 * KIB] {
                let path = Path { latency: LATENCY, loss: 50, reordered };
                transfer(v6, path, buffer, 150_000, 0);
                transfer(v6, path, buffer, 0, 150_001);
            }
        }
    }
}

#[test]
fn a_download_survives_the_loss_of_every_fifth_packet() {
    for more in 0..10 {
        transfer(
            false,
            Path { latency: Duration::from_micros(100), loss: 200, reordered: 50 },
            1024 * KIB,
            0,
            400_000 + more,
        );
    }
}

#[test]
fn nothing_at_all_is_a_transfer_too() {
    for (up, down) in [(0, 0), (1, 0), (0, 1)] {
        transfer(false, Path { latency: LATENCY, loss: 0, reordered: 0 }, 64 * KIB, up, down);
    }
}

/// A queue on the way overflows in slow start: what was lost in one round trip comes again in a few, not one segment in
/// each.
#[test]
fn a_burst_of_losses_is_mended_in_a_few_round_trips() {
    const BYTES: u64 = 4 << 20;
    let path = Path { latency: Duration::from_millis(100), loss: 0, reordered: 0 };
    let limits = StackLimits { tcp_buffer: 1024 * KIB, ..limits() };
    let mut world = World::new(limits, path, Reception::Accept(Target::sends(BYTES)));
    world.client.connect(target_v4(), 0, 1024 * KIB);
    let received = |world: &mut World| world.client.connections[0].received;
    assert!(world.run(MINUTE, |world| received(world) > BYTES / 16));
    world.down.drops = 150;
    let began = world.lab.now;
    assert!(world.run(MINUTE * 10, |world| received(world) == BYTES));
    assert_eq!(world.down.drops, 0, "they were lost");
    let took = world.lab.now - began;
    assert!(took < Duration::from_secs(15), "{took:?}");
}

/// A client that does not tell what arrived behind a hole gets a lost segment in each round trip, and none waits for a
/// timer.
#[test]
fn a_burst_of_losses_is_mended_without_selective_acknowledgments() {
    const BYTES: u64 = 4 << 20;
    const LOST: usize = 5;
    // The least timeout.
    const TIMEOUT: Duration = Duration::from_millis(200);
    for loss in [0, 10] {
        let mut world = World::new(
            StackLimits { tcp_buffer: 256 * KIB, ..limits() },
            CLEAN,
            Reception::Accept(Target::sends(BYTES)),
        );
        world.selective = false;
        world.client.connect(target_v4(), 0, 1024 * KIB);
        let received = |world: &mut World| world.client.connections[0].received;
        for part in 1..10 {
            assert!(world.run(MINUTE, |world| received(world) > part * BYTES / 10));
            world.down.drops = LOST;
            assert!(world.run(MINUTE, |world| world.down.drops == 0));
            let (began, sent) = (world.lab.now, world.lab.targets[&world.lab.opened[0]].sent);
            assert!(world.run(MINUTE, |world| received(world) >= sent));
            let took = world.lab.now - began;
            assert!(loss > 0 || took < TIMEOUT, "{took:?} for {LOST} losses, part {part}");
        }
        world.down.path.loss = loss;
        assert!(world.run(MINUTE * 10, |world| received(world) == BYTES));
    }
}

/// With 16 MiB of buffer a download fills a gigabit over a round trip of 100 ms, once it has found out that it may.
#[test]
fn a_long_fat_path_is_filled() {
    const BYTES: u64 = 150_000_000;
    let path = Path { latency: Duration::from_millis(50), loss: 0, reordered: 0 };
    let limits = StackLimits { tcp_buffer: 16 * 1024 * KIB, ..limits() };
    let mut world = World::new(limits, path, Reception::Accept(Target::sends(BYTES)));
    world.down.bytes_a_microsecond = 125.0;
    world.client.connect(target_v4(), 0, 16 * 1024 * KIB);
    let received = |world: &mut World| world.client.connections[0].received;
    assert!(world.run(MINUTE, |world| received(world) >= BYTES / 2));
    let (before, began) = (received(&mut world), world.lab.now);
    assert!(world.run(MINUTE, |world| received(world) == BYTES));
    let rate = (BYTES - before) as f64 / (world.lab.now - began).as_secs_f64();
    assert!(rate > 0.85 * 125e6, "{:.0} Mbit/s, first half in {began:?}", rate * 8.0 / 1e6);
}

/// Loss × buffer → throughput, in virtual time and from seeds, so the same in every run.
///
/// When a change of the stack moves it on purpose, copy the table the failure names over `throughput.txt`.
#[test]
fn throughput_is_what_the_table_says() {
    let mut table = String::from("KiB/s of virtual time, 10 ms and 100 Mbit/s each way, MTU 1280\n\n");
    for direction in ["up", "down"] {
        writeln!(table, "{direction:>4}  loss   16 KiB   64 KiB  256 KiB 1024 KiB").unwrap();
        for loss in [0, 10, 50] {
            write!(table, "      {:>3}%", loss / 10).unwrap();
            for buffer in [16, 64, 256, 1024] {
                let size = 4096 * KIB as u64 / if loss == 0 { 1 } else { 2 };
                let (up, down) = if direction == "up" { (size, 0) } else { (0, size) };
                let took = transfer(false, Path { latency: LATENCY, loss, reordered: 0 }, buffer * KIB, up, down);
                write!(table, "{:>9}", size * 1_000_000 / KIB as u64 / took.as_micros() as u64).unwrap();
            }
            table.push('\n');
        }
        table.push('\n');
    }
    if table != include_str!("throughput.txt") {
        let actual = concat!(env!("CARGO_TARGET_TMPDIR"), "/throughput.txt");
        std::fs::write(actual, &table).unwrap();
        panic!("{table}differs from throughput.txt in the lab; if that is meant: cp {actual} netstack/tests/lab/");
    }
}
