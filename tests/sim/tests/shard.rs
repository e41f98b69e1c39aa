//! Shards from the outside: what a client sees, what is written down, what is counted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::net::UdpSocket;
use std::time::Duration;

use etherparse::PacketBuilder;
use portcullis::config::resolved::{Limits, ShareLimit};
use portcullis::flow_record::{FlowEnd, FlowProtocol, FlowRecord};
use portcullis::limits::LimitName;
use portcullis::shard::link::{Command, FlowFilter};
use portcullis_netstack::DropReason;
use portcullis_sim::client::PATIENCE;
use portcullis_sim::gateway::{ALLOW, ANN, BOB, DENY};
use portcullis_sim::namespace::{TARGET, TARGET6};
use portcullis_sim::targets::{CLOSED, DENIED, ECHO, UDP_ECHO};
use portcullis_sim::{Client, Gateway, Targets, in_namespace};
use smoltcp::socket::tcp::State;
use tokio::sync::oneshot;

const SHARDS: [usize; 3] = [1, 2, 8];
/// A revoked flow is over within this.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

/// Waits for the next record.
fn record(client: &mut Client, gateway: &mut Gateway) -> FlowRecord {
    let mut record = None;
    client.until("a record", |_| {
        record = gateway.record();
        record.is_some()
    });
    record.unwrap()
}

fn udp(source: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, [10, 20, 0, 1], 64).udp(5353, port).write(&mut packet, payload).unwrap();
    packet
}

const ANN_V4: [u8; 4] = [100, 96, 0, 2];
const ANN_V6: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const TARGET_V6: [u8; 16] = [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

#[test]
fn eight_mebibytes_go_there_and_back() {
    const SIZE: usize = 8 << 20;
    for shards in SHARDS {
        in_namespace(move || {
            let _targets = Targets::start();
            let mut gateway = Gateway::start(shards);
            let mut client = Client::new(ANN, &gateway);
            for (flows, address) in (1..).zip([TARGET, TARGET6]) {
                let connection = client.open(address, ECHO);
                client.exchange(connection, SIZE);
                // Bytes are counted as they pass, not when the flow ends.
                assert_eq!(gateway.count(|counters| &counters.bytes_down), flows * SIZE as u64);
                client.tcp(connection).close();
                let record = record(&mut client, &mut gateway);
                assert_eq!(record.ended, Some(FlowEnd::ClientClosed));
                assert_eq!((&*record.device, &*record.user), ("ann", "ann-user"));
                assert_eq!((record.allowed, record.rule.as_deref(), record.revision), (true, Some("echo"), 1));
                assert_eq!(record.offramp.as_deref(), Some("direct"));
                assert_eq!((record.traffic.bytes_up, record.traffic.bytes_down), (SIZE as u64, SIZE as u64));
                assert_eq!(record.destination.port(), ECHO);
                assert!(record.dial.is_some() && record.end.is_some());
            }
            assert_eq!(gateway.count(|counters| &counters.flows_opened), 2);
            assert_eq!(gateway.ended(FlowEnd::ClientClosed), 2);
            assert_eq!(gateway.count(|counters| &counters.bytes_up), 2 * SIZE as u64);
            assert_eq!(gateway.count(|counters| &counters.bytes_down), 2 * SIZE as u64);
            assert_eq!(gateway.count(|counters| &counters.flows_open), 0);
            assert_eq!(gateway.count(|counters| &counters.handshakes), 1);
            assert!(gateway.stop().is_empty());
        });
    }
}

#[test]
fn what_is_denied_is_answered_at_once_and_costs_the_target_nothing() {
    for shards in SHARDS {
        in_namespace(move || {
            let targets = Targets::start();
            let mut gateway = Gateway::start(shards);
            let mut client = Client::new(ANN, &gateway);
            let connection = client.connect(TARGET, DENIED);
            client.until("reset", |client| client.tcp(connection).state() == State::Closed);
            let denied = record(&mut client, &mut gateway);
            assert_eq!((denied.ended, denied.allowed, denied.rule), (Some(FlowEnd::Denied), false, None));
            client.send_packet(&udp(ANN_V4, DENIED, b"hello"));
            client.until("prohibited", |client| !client.packets.is_empty());
            assert_eq!(client.packets[0][20..22], [3, 13]);
            let denied = record(&mut client, &mut gateway);
            assert_eq!((denied.ended, denied.protocol), (Some(FlowEnd::Denied), FlowProtocol::Udp));
            // A repeated datagram is answered, and not written down again.
            client.packets.clear();
            client.send_packet(&udp(ANN_V4, DENIED, b"hello"));
            client.until("prohibited again", |client| !client.packets.is_empty());
            assert!(gateway.record().is_none());
            // Never a destination, whatever the policy says.
            let connection = client.connect("127.0.0.1", ECHO);
            client.until("reset", |client| client.tcp(connection).state() == State::Closed);
            assert_eq!(record(&mut client, &mut gateway).ended, Some(FlowEnd::Denied));
            assert_eq!(gateway.dropped(DropReason::ForbiddenDestination), 1);
            assert_eq!(gateway.count(|counters| &counters.denied), 3);
            assert_eq!(gateway.count(|counters| &counters.flows_opened), 0);
            assert!(!targets.denied_was_reached());
            gateway.stop();
        });
    }
}

#[test]
fn a_closed_port_is_a_reset_and_never_a_connection() {
    in_namespace(|| {
        let mut gateway = Gateway::start(2);
        let mut client = Client::new(ANN, &gateway);
        let connection = client.connect(TARGET, CLOSED);
        client.until("reset", |client| {
            assert_ne!(client.tcp(connection).state(), State::Established);
            client.tcp(connection).state() == State::Closed
        });
        assert_eq!(record(&mut client, &mut gateway).ended, Some(FlowEnd::TargetRefused));
        gateway.stop();
    });
}

#[test]
fn a_refused_burst_is_told_and_the_next_one_arrives() {
    for shards in SHARDS {
        in_namespace(move || {
            let _targets = Targets::start();
            let gateway = Gateway::start(shards);
            let mut client = Client::new(ANN, &gateway);
            let burst = |client: &mut Client| {
                for number in 0..20 {
                    client.send_packet(&udp(ANN_V4, CLOSED, &[number; 700]));
                }
            };
            burst(&mut client);
            // Port unreachable.
            client.until("the refusal", |client| client.packets.iter().any(|packet| packet[20..22] == [3, 3]));
            client.until("all of them", |_| gateway.flows()[0].traffic.packets_up == 20);
            let target = UdpSocket::bind((TARGET, CLOSED)).unwrap();
            target.set_read_timeout(Some(PATIENCE)).unwrap();
            burst(&mut client);
            for number in 0..20 {
                let mut datagram = [0; 1500];
                let len = target.recv(&mut datagram).unwrap();
                assert_eq!(datagram[..len], [number; 700], "whole and in order");
            }
            let flows = gateway.flows();
            assert_eq!((flows[0].traffic.packets_up, flows[0].traffic.bytes_up), (40, 28_000));
            assert_eq!(gateway.dropped(DropReason::SendFailed), 0);
            gateway.stop();
        });
    }
}

#[test]
fn datagrams_and_pings_are_answered_to_whom_they_belong() {
    for shards in SHARDS {
        in_namespace(move || {
            let _targets = Targets::start();
            let gateway = Gateway::start(shards);
            let mut ann = Client::new(ANN, &gateway);
            let mut bob = Client::new(BOB, &gateway);
            for round in 0..3 {
                let payload = [round; 1200];
                ann.send_packet(&udp(ANN_V4, UDP_ECHO, &payload));
                bob.send_packet(&udp([100, 96, 0, 3], UDP_ECHO, b"bob"));
                ann.until("ann's echo", |client| !client.packets.is_empty());
                assert_eq!(&ann.packets.pop_front().unwrap()[28..], &payload);
                bob.until("bob's echo", |client| !client.packets.is_empty());
                assert_eq!(&bob.packets.pop_front().unwrap()[28..], b"bob");
            }
            let mut ping = Vec::new();
            PacketBuilder::ipv4(ANN_V4, [10, 20, 0, 1], 64)
                .icmpv4_echo_request(0x1234, 7)
                .write(&mut ping, b"data")
                .unwrap();
            ann.send_packet(&ping);
            ann.until("pong", |client| !client.packets.is_empty());
            assert_eq!(ann.packets.pop_front().unwrap()[20..][4..], *b"\x12\x34\x00\x07data");
            let mut ping = Vec::new();
            PacketBuilder::ipv6(ANN_V6, TARGET_V6, 64)
                .icmpv6_echo_request(0x4321, 8)
                .write(&mut ping, b"data")
                .unwrap();
            ann.send_packet(&ping);
            ann.until("pong", |client| !client.packets.is_empty());
            let pong = ann.packets.pop_front().unwrap();
            assert_eq!((pong[40], &pong[44..]), (129, &b"\x43\x21\x00\x08data"[..]));
            let flows = gateway.flows();
            assert_eq!(flows.len(), 4);
            assert_eq!(flows.iter().filter(|flow| flow.protocol == FlowProtocol::Icmp).count(), 2);
            let of_ann =
                flows.iter().find(|flow| flow.protocol == FlowProtocol::Udp && &*flow.device == "ann").unwrap();
            assert_eq!((of_ann.traffic.bytes_up, of_ann.traffic.bytes_down), (3600, 3600));
            let records = gateway.stop();
            assert_eq!(records.len(), 4);
            assert!(records.iter().all(|record| record.ended == Some(FlowEnd::Drained)));
        });
    }
}

#[test]
fn a_policy_that_says_no_ends_live_flows() {
    for shards in SHARDS {
        in_namespace(move || {
            let _targets = Targets::start();
            let mut gateway = Gateway::start(shards);
            let mut client = Client::new(ANN, &gateway);
            let connection = client.open(TARGET, ECHO);
            client.exchange(connection, 100_000);
            client.send_packet(&udp(ANN_V4, UDP_ECHO, b"hello"));
            client.until("echo", |client| !client.packets.is_empty());
            gateway.publish(ALLOW, &[ANN, BOB]);
            client.exchange(connection, 1000);
            assert_eq!(gateway.flows().iter().map(|flow| flow.revision).collect::<Vec<_>>(), [2, 2]);
            gateway.publish(DENY, &[ANN, BOB]);
            assert!(gateway.flows().is_empty(), "the answer to the reload comes after the pass");
            assert!(client.run(REVOKED_WITHIN, |client| client.tcp(connection).state() == State::Closed));
            for _ in 0..2 {
                let revoked = record(&mut client, &mut gateway);
                assert_eq!(revoked.ended, Some(FlowEnd::Revoked));
                assert_eq!((revoked.rule.as_deref(), revoked.revision, revoked.allowed), (Some("closed"), 3, true));
            }
            assert_eq!(gateway.count(|counters| &counters.flows_open), 0);
            // And back again.
            gateway.publish(ALLOW, &[ANN, BOB]);
            let connection = client.open(TARGET, ECHO);
            client.exchange(connection, 1000);
            gateway.stop();
        });
    }
}

#[test]
fn a_removed_device_loses_everything_and_another_does_not() {
    for shards in SHARDS {
        in_namespace(move || {
            let _targets = Targets::start();
            let mut gateway = Gateway::start(shards);
            let mut ann = Client::new(ANN, &gateway);
            let mut bob = Client::new(BOB, &gateway);
            let of_ann = ann.open(TARGET, ECHO);
            ann.exchange(of_ann, 1000);
            let of_bob = bob.open(TARGET, ECHO);
            bob.exchange(of_bob, 1000);
            gateway.publish(ALLOW, &[BOB]);
            let gone = record(&mut bob, &mut gateway);
            assert_eq!((gone.ended, &*gone.device), (Some(FlowEnd::DeviceGone), "ann"));
            bob.exchange(of_bob, 1000);
            assert_eq!(gateway.peers().len(), 1);
            // Its old tunnel is dead, and a new handshake gets nothing.
            let unknown = gateway.dropped(DropReason::UnknownPeer);
            let mut again = Client::new(ANN, &gateway);
            again.send_packet(&udp(ANN_V4, UDP_ECHO, b"hello"));
            again.until("refused", |_| gateway.dropped(DropReason::UnknownPeer) > unknown);
            assert_eq!(again.datagrams, 0, "a stranger hears nothing");
            gateway.stop();
        });
    }
}

/// Longer than an acknowledgment is held back.
const QUIET: Duration = Duration::from_millis(50);

#[test]
fn a_roaming_client_goes_on_wherever_the_kernel_puts_it() {
    for shards in SHARDS {
        in_namespace(move || {
            let _targets = Targets::start();
            let mut gateway = Gateway::start(shards);
            let mut client = Client::new(ANN, &gateway);
            let connection = client.open(TARGET, ECHO);
            for _ in 0..24 {
                client.exchange(connection, 50_000);
                // Nothing is under way when it moves: what two smoltcp ends make of loss is the lab's matter.
                client.run(QUIET, |_| false);
                let address = client.roam();
                client.exchange(connection, 50_000);
                let peers = gateway.peers();
                assert_eq!(peers.len(), 1, "it stays where its handshake was");
                assert_eq!(peers[0].endpoint, Some(address));
            }
            assert_eq!(gateway.count(|counters| &counters.handshakes), 1);
            client.tcp(connection).close();
            let record = record(&mut client, &mut gateway);
            assert_eq!((record.ended, record.traffic.bytes_up), (Some(FlowEnd::ClientClosed), 24 * 100_000));
            gateway.stop();
        });
    }
}

#[test]
fn a_client_that_starts_again_elsewhere_finds_its_shard() {
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(8);
        for _ in 0..12 {
            // A new tunnel from a new port: the handshake belongs to the shard that knows the peer.
            let mut client = Client::new(ANN, &gateway);
            let connection = client.open(TARGET, ECHO);
            client.exchange(connection, 1000);
            client.tcp(connection).abort();
            client.until("gone", |_| gateway.flows().is_empty());
            assert_eq!(gateway.peers().len(), 1);
        }
        gateway.stop();
    });
}

#[test]
fn a_stranger_and_a_liar_get_nothing() {
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let mut client = Client::new(ANN, &gateway);
        let connection = client.open(TARGET, ECHO);
        client.exchange(connection, 1000);
        let before = client.datagrams;
        for datagram in [&[][..], &[0; 1], &[1; 148], &[4; 32], &[4, 0, 0, 0, 9, 9, 9, 9, 0, 0], &[0xff; 2000]] {
            client.send_datagram(datagram);
        }
        client.send_packet(&udp([100, 96, 0, 3], UDP_ECHO, b"spoofed"));
        client.send_packet(&[0x45, 0, 0]);
        client.send_packet(&udp([10, 20, 0, 1], UDP_ECHO, b"spoofed"));
        client.until("dropped", |_| gateway.dropped(DropReason::SpoofedSource) == 2);
        assert!(client.datagrams <= before + 2, "at most acknowledgments");
        assert_eq!(gateway.flows().len(), 1);
        client.exchange(connection, 1000);
        gateway.stop();
    });
}

#[test]
fn an_administrator_ends_the_flows_named() {
    in_namespace(|| {
        let _targets = Targets::start();
        let mut gateway = Gateway::start(2);
        let mut ann = Client::new(ANN, &gateway);
        let mut bob = Client::new(BOB, &gateway);
        let of_ann = ann.open(TARGET, ECHO);
        let of_bob = bob.open(TARGET, ECHO);
        let filter = FlowFilter { user: Some("ann-user".to_owned()), ..FlowFilter::default() };
        let killed = gateway.ask(|answer| Command::Kill(filter.clone(), answer));
        assert_eq!(killed.iter().sum::<usize>(), 1);
        ann.until("reset", |client| client.tcp(of_ann).state() == State::Closed);
        let record = record(&mut ann, &mut gateway);
        assert_eq!((record.ended, record.rule.as_deref()), (Some(FlowEnd::Killed), Some("echo")));
        bob.exchange(of_bob, 1000);
        gateway.stop();
    });
}

#[test]
fn draining_lets_open_flows_finish_and_stopping_resets_them() {
    for shards in SHARDS {
        in_namespace(move || {
            let _targets = Targets::start();
            let mut gateway = Gateway::start(shards);
            let mut client = Client::new(ANN, &gateway);
            let first = client.open(TARGET, ECHO);
            let second = client.open(TARGET, ECHO);
            let mut drained = gateway.send(Command::Drain);
            let refused = client.connect(TARGET, ECHO);
            client.until("refused", |_| gateway.dropped(DropReason::Draining) > 0);
            assert_ne!(client.tcp(refused).state(), State::Established);
            client.exchange(first, 100_000);
            client.tcp(first).close();
            assert_eq!(record(&mut client, &mut gateway).ended, Some(FlowEnd::ClientClosed));
            let mut empty = |wanted: usize| {
                drained.iter_mut().map(oneshot::Receiver::try_recv).filter(Result::is_ok).count() == wanted
            };
            if shards == 1 {
                assert!(empty(0), "one flow is still open");
            }
            client.exchange(second, 1000);
            client.tcp(refused).abort();
            let records = gateway.stop();
            assert_eq!(records.len(), 1);
            assert_eq!(records[0].ended, Some(FlowEnd::Drained));
            assert!(client.run(PATIENCE, |client| client.tcp(second).state() == State::Closed));
        });
    }
}

#[test]
fn a_drained_shard_says_so() {
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let mut client = Client::new(ANN, &gateway);
        let connection = client.open(TARGET, ECHO);
        let mut drained = gateway.send(Command::Drain);
        client.tcp(connection).close();
        let mut left = drained.len();
        client.until("drained", |_| {
            left -= drained.iter_mut().map(oneshot::Receiver::try_recv).filter(Result::is_ok).count();
            left == 0
        });
        gateway.stop();
    });
}

#[test]
fn a_device_has_no_more_flows_than_its_share() {
    in_namespace(|| {
        let _targets = Targets::start();
        let limits = Limits { flows: ShareLimit { device: 3, ..Limits::default().flows }, ..Limits::default() };
        let mut gateway = Gateway::start_with(1, limits);
        let mut client = Client::new(ANN, &gateway);
        let connections = [(); 3].map(|()| client.open(TARGET, ECHO));
        let refused = client.connect(TARGET, ECHO);
        client.until("refused", |client| client.tcp(refused).state() == State::Closed);
        let refused = record(&mut client, &mut gateway);
        assert_eq!(
            (refused.ended, refused.limit.map(LimitName::as_str)),
            (Some(FlowEnd::Limit), Some("flows_per_device"))
        );
        client.tcp(connections[0]).abort();
        assert_eq!(record(&mut client, &mut gateway).ended, Some(FlowEnd::ClientReset));
        let connection = client.open(TARGET, ECHO);
        client.exchange(connection, 1000);
        gateway.stop();
    });
}

#[test]
fn every_datagram_of_a_silent_denial_is_counted() {
    in_namespace(|| {
        let mut gateway = Gateway::start(2);
        let mut client = Client::new(ANN, &gateway);
        gateway.publish(&ALLOW.replace("tcp/9999", "udp/9999"), &[ANN, BOB]);
        for count in 1..=3 {
            client.send_packet(&udp(ANN_V4, 9999, b"hello"));
            client.until("a drop", |_| gateway.dropped(DropReason::DeniedSilently) == count);
        }
        assert!(client.packets.is_empty());
        assert_eq!(record(&mut client, &mut gateway).ended, Some(FlowEnd::Denied));
        assert!(gateway.record().is_none(), "one association, one line");
        gateway.stop();
    });
}
