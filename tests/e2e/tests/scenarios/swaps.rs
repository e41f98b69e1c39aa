//! Decisions while policy and directory are swapped: each is made by one pair of them, and none on an old verdict.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis_e2e::expect;
use portcullis_e2e::lab::{Family, Host};
use portcullis_e2e::nft;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::{OnRamp, Setup, policy_without, user, usual_policy, write_json};
use portcullis_e2e::target::{TcpTarget, UdpTarget};
use portcullis_e2e::transfer::Endless;
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};
use serde_json::{Value, json};

const SWAPS: u64 = 1_000;

/// The sides of a swap: a policy that opens a host to one group, and a directory that has the client in the other one.
/// Either pair keeps it shut; a policy with the other's directory would open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

impl Side {
    fn of(swap: u64) -> Self {
        if swap.is_multiple_of(2) { Self::Left } else { Self::Right }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    fn opposite(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }

    fn open_rule(self) -> String {
        format!("open-{}", self.group())
    }

    fn policy(self) -> Value {
        let group = self.opposite().group();
        json!({ "version": 1, "rules": [
            { "id": self.open_rule(), "action": "allow", "from": ["*"], "to": [Host::Open.address(Family::V4)] },
            { "id": format!("mixed-{group}"), "action": "allow", "from": [format!("group:{group}")],
              "to": [Host::OpenToo.address(Family::V4)] } ] })
    }

    /// Files alone: a reload puts them in force.
    fn write(self, world: &World<'_>) {
        let path = world.gateway.directory_path();
        let text = std::fs::read_to_string(&path).expect("a directory");
        let mut directory: Value = serde_json::from_str(&text).expect("JSON");
        let users = directory.pointer_mut("/users").and_then(Value::as_object_mut).expect("users");
        users.insert(user(0), json!({ "groups": [self.group()] }));
        // Somebody is in the other group, or the policy could not name it.
        users.insert("somebody@example.com".to_owned(), json!({ "groups": [self.opposite().group()] }));
        write_json(&path, &directory);
        world.gateway.write_policy(&self.policy());
    }
}

fn revision(world: &World<'_>) -> u64 {
    let status: Value = serde_json::from_str(&world.gateway.verb(&["status", "--json"])).expect("JSON");
    status.get("revision").and_then(Value::as_u64).expect("a revision")
}

#[test]
fn t21_a_thousand_swaps_mix_nothing_and_lose_no_byte() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let (open, shut) = (Host::Open.address(Family::V4), Host::OpenToo.address(Family::V4));
        Side::of(0).write(world);
        world.gateway.reload();
        let first = revision(world);

        let talk = TcpTarget::serve(world.private(), open, |_| {});
        let forbidden = TcpTarget::serve(world.private(), shut, |_| {});
        let forbidden_udp = UdpTarget::serve(world.private(), SocketAddr::new(shut, 0), <[u8]>::to_vec);
        let running = Endless::start(world.client(), world.private(), open);
        let over = AtomicBool::new(false);
        let (opened, refused) = std::thread::scope(|scope| {
            let client = world.client();
            let tries = scope.spawn(|| {
                let (mut opened, mut refused) = (0_u64, 0_u64);
                while !over.load(Ordering::Relaxed) {
                    // What both allow is never refused; what neither allows always is.
                    drop(client.connect(talk.address()).expect("allowed by either"));
                    opened += 1;
                    let error = client.connect(forbidden.address()).expect_err("allowed by neither");
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                    let socket = client.udp(forbidden_udp.address());
                    // The answer to an earlier one may come first.
                    let _ = socket.send(b"let me in");
                    refused += 1;
                }
                (opened, refused)
            });
            for swap in 1..=SWAPS {
                Side::of(swap).write(world);
                world.gateway.reload();
            }
            over.store(true, Ordering::Relaxed);
            tries.join().expect("every answer is that of one side")
        });
        assert_eq!(revision(world), first + SWAPS);
        assert!(opened > 100 && refused > 100, "{opened} opened, {refused} refused");
        assert!(forbidden.quiet() && forbidden_udp.sources().is_empty(), "nothing came to what neither allows");

        let (to, len) = (running.address(), running.finish());
        let line = world.gateway.wait_for_flow("the transfer", |line| line.destination == to);
        assert_eq!((line.ended.as_str(), line.bytes_down), ("target_closed", len));
        // Rule, groups and revision of each record are those of one side.
        let lines = world.gateway.flow_log();
        let mut seen = [0, 0];
        for line in lines.iter().filter(|line| line.revision >= first) {
            let side = Side::of(line.revision - first);
            assert_eq!(line.groups, [side.group()], "{line:#?}");
            if line.destination.ip() == open {
                assert_eq!(line.rule, Some(side.open_rule()), "{line:#?}");
            } else {
                assert_eq!((line.rule.as_deref(), line.ended.as_str()), (None, "denied"), "{line:#?}");
            }
            if let Some(count) = seen.get_mut(usize::from(side == Side::Left)) {
                *count += 1;
            }
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?} records of each side");
    });
}

/// A flow whose target has not answered yet when the policy changes never becomes one.
fn held_dial(world: &mut World<'_>) {
    for (family, word) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        world.gateway.set_policy(&usual_policy());
        let host = Host::Hole.address(family);
        let target = TcpTarget::serve(world.private(), host, |mut stream| stream.read_to_end(&mut Vec::new()).is_ok());
        let to = target.address();
        let syns = expect::arrivals(world, &format!("held{word}"), host);
        nft::drop_leaving(world.private(), "held", &format!("{word} saddr {host} tcp sport {}", to.port()));
        let client = world.client();
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| client.connect(to));
            wait::until("the dial", || (syns.packets() > 0).then_some(()));
            assert!(!connecting.is_finished(), "nobody has answered yet");
            world.gateway.set_policy(&policy_without(Host::Hole));
            // The target answers now: its kernel repeats what it said.
            nft::remove(world.private(), "held");
            let answer = connecting.join().expect("no panic");
            assert_eq!(answer.expect_err("the policy changed").kind(), ErrorKind::ConnectionRefused);
        });
        let line = world.gateway.wait_for_flow("the dial", |line| line.destination == to);
        assert_eq!((line.ended.as_str(), line.rule.as_deref()), ("revoked", Some("no-more")), "{line:#?}");
        assert_eq!((line.bytes_up, line.bytes_down), (0, 0));
        let half_open = || world.private().output("ss", &["-Htan", "state", "syn-recv"]);
        wait::until_within(Duration::from_secs(20), "the target's half of it to go", || {
            half_open().trim().is_empty().then_some(())
        });
        assert!(target.quiet(), "no connection came of it");
    }
}
on_both_ramps!(a_dial_that_is_held_through_a_swap_never_opens, held_dial);
