//! Limits of a device, counted exactly: rows T23 to T25 of the security page.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use portcullis::config::resolved::{Limits, ShareLimit};
use portcullis::flow_record::{FlowEnd, FlowRecord};
use portcullis::limits::LimitName;
use portcullis_netstack::DropReason;
use portcullis_sim::client::PATIENCE;
use portcullis_sim::gateway::{ALLOW, ANN, BOB, DENY};
use portcullis_sim::namespace::TARGET;
use portcullis_sim::targets::{DENIED, ECHO, UDP_ECHO};
use portcullis_sim::{Client, Gateway, Targets, in_namespace};
use smoltcp::socket::tcp::State;

const ANN_V4: [u8; 4] = [100, 96, 0, 2];
const TARGET_V4: [u8; 4] = [10, 20, 0, 1];

fn syn(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(ANN_V4, TARGET_V4, 64).tcp(from, to, 1, 65_000).syn().write(&mut packet, &[]).unwrap();
    packet
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(ANN_V4, TARGET_V4, 64).udp(from, to).write(&mut packet, b"hello").unwrap();
    packet
}

/// The next record, while the client does nothing: it would reset what it does not know of.
fn record(gateway: &mut Gateway) -> FlowRecord {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(record) = gateway.record() {
            return record;
        }
        assert!(Instant::now() < end, "no record");
        std::thread::yield_now();
    }
}

fn reached(gateway: &Gateway, limit: &str) -> u64 {
    let limit = LimitName::ALL.iter().find(|name| name.as_str() == limit).unwrap().index();
    gateway.count(|counters| &counters.limits_reached[limit])
}

fn device(device: usize) -> ShareLimit {
    ShareLimit { device, user: 100, all: 100 }
}

fn ended(record: &FlowRecord) -> (Option<FlowEnd>, Option<&'static str>) {
    (record.ended, record.limit.map(LimitName::as_str))
}

#[test]
fn t23_half_open_flows_of_a_client_that_never_acknowledges() {
    in_namespace(|| {
        let _targets = Targets::start();
        let mut gateway = Gateway::start_with(1, Limits { half_open: device(3), ..Limits::default() });
        let mut client = Client::new(ANN, &gateway);
        let mut other = Client::new(BOB, &gateway);
        let connection = client.open(TARGET, ECHO);
        other.open(TARGET, ECHO);
        assert_eq!(gateway.flows().len(), 2);
        for port in 1..=3 {
            // Repeated it is still one.
            client.send_packet(&syn(port, ECHO));
            client.send_packet(&syn(port, ECHO));
        }
        client.send_packet(&syn(4, ECHO));
        let refused = record(&mut gateway);
        assert_eq!(ended(&refused), (Some(FlowEnd::Limit), Some("half_open_per_device")));
        assert_eq!((refused.source.port(), refused.allowed), (4, true));
        assert_eq!((gateway.flows().len(), reached(&gateway, "half_open_per_device")), (5, 1));
        // What is open already goes on, and another device opens what it likes.
        let of_other = other.open(TARGET, ECHO);
        other.exchange(of_other, 1_000);
        // The client's own TCP resets what it never asked for, and the places are free.
        client.exchange(connection, 1_000);
        for _ in 0..3 {
            assert_eq!(record(&mut gateway).ended, Some(FlowEnd::ClientReset));
        }
        let connection = client.open(TARGET, ECHO);
        client.exchange(connection, 1_000);
        gateway.stop();
    });
}

#[test]
fn t23_remembered_refusals_are_no_flows() {
    in_namespace(|| {
        let _targets = Targets::start();
        let limits = Limits { flows: device(2), refusals: device(3), ..Limits::default() };
        let mut gateway = Gateway::start_with(1, limits);
        let mut client = Client::new(ANN, &gateway);
        for port in 1..=10 {
            client.send_packet(&udp(port, DENIED));
        }
        for _ in 1..=10 {
            client.until("a refusal", |client| client.packets.pop_front().is_some());
            assert_eq!(ended(&record(&mut gateway)), (Some(FlowEnd::Denied), None));
        }
        assert_eq!(reached(&gateway, "refusals_per_device"), 7);
        // Those remembered are answered without another line; the others are new each time.
        for port in 1..=3 {
            client.send_packet(&udp(port, DENIED));
            client.until("a refusal", |client| client.packets.pop_front().is_some());
        }
        assert!(gateway.record().is_none());
        assert_eq!((gateway.flows().len(), gateway.peers()[0].flows), (0, 0), "none of them is a flow");
        let connections = [(); 2].map(|()| client.open(TARGET, ECHO));
        for connection in connections {
            client.exchange(connection, 1_000);
        }
        assert_eq!(gateway.peers()[0].flows, 2);
        // A reload forgets the refusals, and their places are free again.
        gateway.publish(ALLOW, &[ANN, BOB]);
        client.send_packet(&udp(20, DENIED));
        client.until("a refusal", |client| client.packets.pop_front().is_some());
        assert_eq!(
            (ended(&record(&mut gateway)), reached(&gateway, "refusals_per_device")),
            ((Some(FlowEnd::Denied), None), 7)
        );
        gateway.publish(DENY, &[ANN, BOB]);
        assert_eq!(gateway.peers()[0].flows, 0);
        gateway.stop();
    });
}

#[test]
fn t23_new_flows_come_at_the_devices_own_rate() {
    in_namespace(|| {
        let _targets = Targets::start();
        let rate = ShareLimit { device: 5, user: 1_000, all: 1_000 };
        let mut gateway = Gateway::start_with(1, Limits { flow_rate: rate, ..Limits::default() });
        let mut client = Client::new(ANN, &gateway);
        let mut other = Client::new(BOB, &gateway);
        client.send_packet(&udp(1, UDP_ECHO));
        client.until("the echo", |client| client.packets.pop_front().is_some());
        let began = Instant::now();
        for port in 2..=200 {
            client.send_packet(&udp(port, UDP_ECHO));
        }
        client
            .until("all of them", |_| gateway.flows().len() as u64 + reached(&gateway, "flow_rate_per_device") == 200);
        let (dropped, seconds) = (gateway.dropped(DropReason::Limit), began.elapsed().as_secs());
        assert_eq!(dropped, reached(&gateway, "flow_rate_per_device"));
        assert!(gateway.flows().len() as u64 <= 11 + 5 * (seconds + 1), "two seconds' worth and what came since");
        let told = record(&mut gateway);
        assert_eq!(ended(&told), (Some(FlowEnd::Limit), Some("flow_rate_per_device")));
        assert_eq!((told.allowed, told.rule), (false, None), "the policy was not asked");
        let connection = other.open(TARGET, ECHO);
        other.exchange(connection, 1_000);
        let more = std::iter::from_fn(|| gateway.record()).count() as u64;
        assert!(more <= seconds + 1, "{more} lines more in {seconds} s: one a second");
        gateway.stop();
    });
}

#[test]
fn t23_a_flow_that_comes_too_soon_is_answered_within_a_bound() {
    // What the stack answers one address at once.
    const BURST: u64 = 400;
    const ICMP: u8 = 1;
    in_namespace(|| {
        let _targets = Targets::start();
        let rate = ShareLimit { device: 1, user: 1_000, all: 1_000 };
        let mut gateway = Gateway::start_with(1, Limits { flow_rate: rate, ..Limits::default() });
        let mut client = Client::new(ANN, &gateway);
        // Soon there are more than the rate, whatever they are. The first refusal of a second has a line, others have none.
        for protocol in ["tcp", "udp", "tcp", "udp"] {
            let refused = (1..1_000).any(|port| match protocol {
                "tcp" => {
                    let connection = client.connect(TARGET, ECHO);
                    client.until("an answer", |client| client.tcp(connection).state() != State::SynSent);
                    client.tcp(connection).state() == State::Closed
                }
                _ => {
                    client.send_packet(&udp(port, UDP_ECHO));
                    client.until("an answer", |client| !client.packets.is_empty());
                    client.packets.pop_front().is_some_and(|packet| packet[9] == ICMP)
                }
            });
            assert!(refused, "{protocol}");
        }
        assert!(std::iter::from_fn(|| gateway.record()).any(|record| record.ended == Some(FlowEnd::Limit)));
        assert_eq!(gateway.dropped(DropReason::AnswerLimit), 0);
        // A flood is answered no more than anything else.
        let before = reached(&gateway, "flow_rate_per_device");
        let began = Instant::now();
        for port in 0..3_000 {
            client.send_packet(&syn(port + 1, ECHO));
            if port % 100 == 0 {
                client.until("refused", |_| reached(&gateway, "flow_rate_per_device") + 20 >= before + u64::from(port));
            }
        }
        client.until("refused", |_| reached(&gateway, "flow_rate_per_device") + 60 >= before + 3_000);
        let refused = reached(&gateway, "flow_rate_per_device") - before;
        let most = BURST + 200 * (began.elapsed().as_secs() + 1);
        let answered = refused - gateway.dropped(DropReason::AnswerLimit);
        assert!(answered <= most, "{answered} answers, {most} at the most");
        assert!(answered >= BURST / 2, "{answered} answers");
        gateway.stop();
    });
}

#[test]
fn t25_the_association_not_used_for_longest_makes_way() {
    in_namespace(|| {
        let _targets = Targets::start();
        let mut gateway = Gateway::start_with(1, Limits { associations: device(3), ..Limits::default() });
        let mut client = Client::new(ANN, &gateway);
        let mut talk = |port: u16| {
            client.send_packet(&udp(port, UDP_ECHO));
            client.until("the echo", |client| client.packets.pop_front().is_some());
            // The next one is later for certain.
            std::thread::sleep(Duration::from_millis(2));
        };
        for port in [1, 2, 3, 1, 4, 1, 5, 3] {
            talk(port);
        }
        // 2 went for 4, 3 for 5, and 4 for 3 again.
        for port in [2, 3, 4] {
            let gone = record(&mut gateway);
            assert_eq!(ended(&gone), (Some(FlowEnd::Limit), Some("associations_per_device")));
            assert_eq!((gone.source.port(), gone.allowed, gone.traffic.packets_up > 0), (port, true, true));
        }
        let mut ports: Vec<_> = gateway.flows().iter().map(|flow| flow.source.port()).collect();
        ports.sort_unstable();
        assert_eq!(ports, [1, 3, 5]);
        assert_eq!(reached(&gateway, "associations_per_device"), 3);
        gateway.stop();
    });
}
