//! Full batches and full rings.

use std::time::Duration;

use portcullis_netstack::StackLimits;

use crate::lab::{Lab, Reception, Target, limits};
use crate::world::{CLEAN, World, target_v4};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_batch_that_is_always_full_delays_and_loses_nothing() {
    // Full after a single packet of data.
    let limits = StackLimits { batch: 1000, ..limits() };
    let mut world = World::new(limits, CLEAN, Reception::Accept(Target::sends(100_000)));
    for _ in 0..20 {
        world.client.connect(target_v4(), 50_000, 64 * 1024);
    }
    assert!(world.run(SECOND * 60, |world| world.lab.ended.len() == 20));
    for ended in &world.lab.ended {
        assert_eq!((ended.traffic.bytes_up, ended.traffic.bytes_down), (50_000, 100_000));
    }
    assert!(world.client.connections.iter().all(|connection| connection.received == 100_000));
}

#[test]
fn a_slow_target_shuts_the_window_and_nothing_grows() {
    let mut world = World::new(limits(), CLEAN, Reception::Accept(Target::stays_open(0).takes(10_000)));
    world.client.connect(target_v4(), 1_000_000, 1 << 20);
    world.pass(SECOND * 600);
    let flow = world.lab.opened[0];
    assert_eq!(world.lab.targets[&flow].received, 10_000);
    let room = (limits().tcp_buffer + 10_000) as u64;
    let sent = world.client.connections[0].sent;
    assert!(sent <= room + (1 << 20), "{sent} bytes left the application");
    world.lab.targets.get_mut(&flow).unwrap().appetite = u64::MAX;
    world.lab.stack.mark_changed(flow);
    assert!(world.run(SECOND * 60, |world| world.lab.targets.values().all(|target| target.received == 1_000_000)));
}

#[test]
fn an_idle_stack_wants_nothing() {
    let mut lab = Lab::new(limits());
    lab.settle();
    assert_eq!(lab.next_timeout(), None);
    assert_eq!(lab.stack.changed(), 0);
}
