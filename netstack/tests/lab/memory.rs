//! Rings that may not grow, and rings that shrink.

use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis_netstack::{DropReason, RING_FLOOR};

use crate::lab::{Lab, Memory, Reception, Target, UP, fill, limits};
use crate::link::Path;
use crate::raw::{ACK, SYN, Segment, answer, segment};
use crate::world::{CLEAN, LATENCY, World, target_v4, target_v6};

const ISN: u32 = 9_000;
const SECOND: Duration = Duration::from_secs(1);

fn establish(lab: &mut Lab, target: Target) -> u32 {
    lab.reception = Reception::Accept(target);
    lab.inject(&segment(SYN, ISN, 0, 65_000)).unwrap();
    lab.settle();
    let first = answer(&lab.take_out()[0]).sequence.wrapping_add(1);
    lab.inject(&segment(ACK, ISN + 1, first, 65_000)).unwrap();
    lab.settle();
    first
}

#[test]
fn flows_that_get_no_memory_move_every_byte() {
    for path in [CLEAN, Path { latency: LATENCY, loss: 10, reordered: 10 }] {
        for budget in [0, RING_FLOOR, 3 * RING_FLOOR] {
            let mut world = World::new(limits(), path, Reception::Accept(Target::sends(700_000)));
            world.lab.memory = Memory::of(budget);
            for target in [target_v4(), target_v6()] {
                world.client.connect(target, 700_000, 1 << 20);
            }
            assert!(world.run(SECOND * 600, |world| world.lab.ended.len() == 2), "{budget}: {:?}", world.lab.ended);
            for ended in &world.lab.ended {
                assert_eq!((ended.traffic.bytes_up, ended.traffic.bytes_down), (700_000, 700_000));
            }
            assert!(world.client.connections.iter().all(|connection| connection.received == 700_000));
            assert!(world.lab.memory.discarded.load(Ordering::Relaxed) > 0, "what the targets took went back");
            world.pass(SECOND * 60);
            assert_eq!(world.lab.memory.taken.load(Ordering::Relaxed), 0);
        }
    }
}

#[test]
fn t24_a_client_that_acknowledges_nothing_costs_no_more_than_the_floor() {
    let mut lab = Lab::new(limits());
    lab.memory = Memory::of(0);
    let first = establish(&mut lab, Target::stays_open(1 << 30));
    let flow = lab.opened[0];
    // Acknowledges half of what it has, so that the ring never is empty.
    let mut acknowledged = 0;
    for _ in 0..200 {
        let sent = lab.targets[&flow].sent as u32;
        acknowledged += (sent - acknowledged) / 2;
        lab.inject(&segment(ACK, ISN + 1, first.wrapping_add(acknowledged), 65_000)).unwrap();
        lab.settle();
        lab.take_out();
    }
    assert_eq!(lab.targets[&flow].sent, RING_FLOOR as u64, "not a byte beyond it was touched");
}

#[test]
fn t24_a_target_that_takes_nothing_costs_no_more_than_the_floor() {
    let mut lab = Lab::new(limits());
    lab.memory = Memory::of(0);
    let first = establish(&mut lab, Target::stays_open(0).takes(0));
    let flow = lab.opened[0];
    let mut dropped = 0;
    for offset in (0..100_000).step_by(1_000) {
        let mut payload = [0; 1_000];
        fill(UP, offset, &mut payload);
        let sequence = ISN + 1 + offset as u32;
        let segment =
            Segment { v6: false, flags: ACK, sequence, acknowledgment: first, window: 65_000, payload: &payload };
        match lab.inject(&segment.bytes()) {
            Ok(_) => {}
            Err(reason) => {
                assert_eq!(reason, DropReason::QueueFull);
                dropped += 1;
            }
        }
        lab.settle();
    }
    // Beyond the ring it is smoltcp that takes nothing.
    assert!(dropped > 40, "{dropped}");
    lab.targets.get_mut(&flow).unwrap().appetite = u64::MAX;
    lab.stack.mark_changed(flow);
    lab.settle();
    assert_eq!(lab.targets[&flow].received, RING_FLOOR as u64, "the segment at the border is cut, not dropped");
}

#[test]
fn t24_a_flow_that_rests_gives_back_what_its_client_had() {
    let mut world = World::new(limits(), CLEAN, Reception::Accept(Target::stays_open(900_000)));
    world.client.connect(target_v4(), 0, 1 << 20);
    assert!(world.run(SECOND * 60, |world| world.client.connections[0].received == 900_000));
    assert!(world.lab.memory.taken.load(Ordering::Relaxed) > 0, "it had more than the floor");
    world.pass(SECOND * 11);
    assert_eq!(world.lab.memory.taken.load(Ordering::Relaxed), 0);
    assert_eq!(world.lab.memory.discarded.load(Ordering::Relaxed), limits().tcp_buffer - RING_FLOOR);
    // And goes on as before.
    let flow = world.lab.opened[0];
    world.lab.targets.get_mut(&flow).unwrap().send += 900_000;
    world.lab.stack.mark_changed(flow);
    assert!(world.run(SECOND * 60, |world| world.client.connections[0].received == 1_800_000));
}

#[test]
fn t24_what_all_flows_together_take_is_what_there_is() {
    let budget = 20 * RING_FLOOR;
    let mut world = World::new(limits(), CLEAN, Reception::Accept(Target::sends(300_000)));
    world.lab.memory = Memory::of(budget);
    for _ in 0..30 {
        world.client.connect(target_v4(), 100_000, 1 << 20);
    }
    let mut most = 0;
    assert!(world.run(SECOND * 600, |world| {
        most = most.max(world.lab.memory.taken.load(Ordering::Relaxed));
        world.lab.ended.len() == 30
    }));
    assert!(most > budget / 2 && most <= budget, "{most}");
    world.pass(SECOND * 60);
    assert_eq!(world.lab.memory.taken.load(Ordering::Relaxed), 0, "all of it is back");
}
