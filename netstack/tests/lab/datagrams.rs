//! UDP associations and echo exchanges.

use std::time::Duration;

use portcullis_netstack::packet::build::{Reported, Unreachable};
use portcullis_netstack::packet::{ChecksumPolicy, IpPacket};
use portcullis_netstack::segment::Offload;
use portcullis_netstack::{FlowId, Handled, Refusal};

use crate::lab::{Lab, limits};
use crate::raw::{TARGET, TARGET6, echo_request, udp};

const SECOND: Duration = Duration::from_secs(1);

fn open(lab: &mut Lab, packet: &[u8]) -> FlowId {
    match lab.inject(packet) {
        Ok(Handled::Opened(flow)) => flow,
        other => panic!("{other:?}"),
    }
}

fn lives(lab: &Lab, flow: FlowId) -> bool {
    lab.stack.key(flow).is_some()
}

#[test]
fn an_association_where_only_the_client_speaks_ends_after_thirty_seconds() {
    let mut lab = Lab::new(limits());
    let flow = open(&mut lab, &udp(false, 4000, b"one"));
    lab.pass(SECOND * 20);
    assert_eq!(lab.inject(&udp(false, 4000, b"two")), Ok(Handled::Known(flow)));
    lab.pass(SECOND * 29);
    assert!(lives(&lab, flow), "counted from the last datagram");
    lab.pass(SECOND * 2);
    assert!(!lives(&lab, flow));
    assert!(lab.stack.is_empty());
    assert_eq!(lab.ended[0].traffic.packets_up, 2);
}

#[test]
fn an_association_where_both_speak_ends_after_two_minutes() {
    let mut lab = Lab::new(limits());
    let flow = open(&mut lab, &udp(true, 4000, b"question"));
    lab.stack.send_datagram(lab.instant(), flow, b"answer");
    lab.settle();
    let out = lab.take_out();
    assert_eq!(out.len(), 1);
    assert_eq!(&out[0][48..], b"answer");
    lab.pass(SECOND * 119);
    assert!(lives(&lab, flow));
    lab.pass(SECOND * 2);
    assert!(!lives(&lab, flow));
    assert_eq!((lab.ended[0].traffic.bytes_down, lab.ended[0].traffic.packets_down), (6, 1));
}

#[test]
fn a_question_to_port_53_is_short_lived_even_when_answered() {
    let mut lab = Lab::new(limits());
    let flow = open(&mut lab, &udp(false, 53, b"question"));
    lab.pass(SECOND);
    lab.stack.send_datagram(lab.instant(), flow, b"answer");
    lab.pass(SECOND * 29);
    assert!(lives(&lab, flow));
    lab.pass(SECOND * 2);
    assert!(!lives(&lab, flow));
}

#[test]
fn datagrams_in_one_packet_are_as_many_and_one_of_them_is_quoted() {
    for (v6, headers) in [(false, 28), (true, 48)] {
        let mut lab = Lab::new(limits());
        let payload: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let bytes = udp(v6, 4000, &payload);
        let packet = IpPacket::parse(&bytes, ChecksumPolicy::Verify)
            .unwrap()
            .with_offload(Offload { segment_size: Some(1200) })
            .unwrap();
        let Ok(Handled::Opened(flow)) = lab.inject_parsed(&packet) else { panic!("a flow") };
        assert_eq!(lab.inject_parsed(&packet), Ok(Handled::Known(flow)));
        assert_eq!(lab.stack.traffic(flow).packets_up, 6);
        lab.stack.send_unreachable(flow, Unreachable::Port);
        lab.settle();
        let [answer] = &lab.take_out()[..] else { panic!("one answer") };
        let quote = &answer[headers..];
        // The first of them as it was alone, checksum of the IPv4 header included.
        let alone = udp(v6, 4000, &payload[..1200]);
        let checksum = headers - 2;
        assert_eq!(quote[..checksum], alone[..checksum]);
        assert_eq!(quote[headers..], payload[..quote.len() - headers]);
    }
}

#[test]
fn an_answer_larger_than_the_tunnel_comes_in_fragments() {
    for v6 in [false, true] {
        let mut lab = Lab::new(limits());
        let flow = open(&mut lab, &udp(v6, 4000, b"question"));
        lab.stack.send_datagram(lab.instant(), flow, &[7; 4000]);
        lab.settle();
        assert_eq!(lab.take_out().len(), 4);
        assert_eq!(lab.stack.traffic(flow).packets_down, 4);
    }
}

#[test]
fn an_undeliverable_datagram_is_told_and_the_association_stays() {
    let mut lab = Lab::new(limits());
    let packet = udp(false, 4000, b"question");
    let flow = open(&mut lab, &packet);
    lab.stack.send_unreachable(flow, Unreachable::Port);
    lab.settle();
    let out = lab.take_out();
    assert_eq!(out[0][20..22], [3, 3]);
    assert_eq!(out[0][28..], packet[..]);
    assert!(lives(&lab, flow));
}

#[test]
fn a_refused_datagram_is_prohibited_or_met_with_silence() {
    for (refusal, code) in [(Refusal::Prohibited, Some(13)), (Refusal::Reset, Some(3)), (Refusal::Silent, None)] {
        let mut lab = Lab::new(limits());
        let flow = open(&mut lab, &udp(false, 4000, b"question"));
        lab.stack.refuse(flow, refusal);
        lab.settle();
        assert_eq!(lab.take_out().first().map(|packet| packet[21]), code);
        assert!(lab.stack.is_empty());
    }
}

#[test]
fn an_echo_is_answered_with_its_own_identifier_sequence_and_data() {
    for v6 in [false, true] {
        let mut lab = Lab::new(limits());
        let flow = open(&mut lab, &echo_request(v6, 0x1234, 1, b"data one"));
        assert_eq!(lab.inject(&echo_request(v6, 0x1234, 2, b"data two")), Ok(Handled::Known(flow)));
        lab.stack.send_echo_reply(lab.instant(), flow, 2, b"data two");
        lab.settle();
        let reply = &lab.take_out()[0][if v6 { 40 } else { 20 }..];
        assert_eq!(reply[..2], if v6 { [129, 0] } else { [0, 0] });
        assert_eq!(reply[4..8], [0x12, 0x34, 0, 2]);
        assert_eq!(&reply[8..], b"data two");
        lab.pass(SECOND * 29);
        assert!(lives(&lab, flow));
        lab.pass(SECOND * 2);
        assert!(!lives(&lab, flow));
    }
}

#[test]
fn an_error_is_told_in_the_name_of_who_reports_it_and_about_the_request_it_is_about() {
    let routers = ["10.20.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00:20::1".parse().unwrap()];
    for (v6, router, other) in [(false, routers[0], routers[1]), (true, routers[1], routers[0])] {
        let header = if v6 { 40 } else { 20 };
        let source = |packet: &[u8]| packet[if v6 { 8..24 } else { 12..16 }].to_vec();
        let mut lab = Lab::new(limits());
        let first = echo_request(v6, 7, 1, b"data");
        let flow = open(&mut lab, &first);
        lab.inject(&echo_request(v6, 7, 2, b"data")).unwrap();
        let mut told = |from| {
            let reported = Reported { error: Unreachable::HopLimit, from: Some(from), sequence: Some(1) };
            lab.stack.send_unreachable(flow, reported);
            lab.settle();
            lab.take_out().remove(0)
        };
        let out = told(router);
        assert_eq!(out[header..header + 2], if v6 { [3, 0] } else { [11, 0] });
        let octets = match router {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        assert_eq!(source(&out), octets);
        // Identifier and sequence number of the first request, not of the last.
        assert_eq!(out[2 * header + 12..][..4], first[header + 4..][..4]);
        let target = if v6 { TARGET6.to_vec() } else { TARGET.to_vec() };
        assert_eq!(source(&told(other)), target, "of the other family nobody can be named");
        assert!(lives(&lab, flow));
    }
}

#[test]
fn a_packet_at_the_end_of_its_hops_is_answered_within_a_bound_and_is_no_flow() {
    let mut lab = Lab::new(limits());
    let bytes = udp(false, 4000, b"question");
    let packet = IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap();
    assert_eq!(packet.hop_limit(), 64);
    for _ in 0..5_000 {
        let own = "100.96.0.1".parse().unwrap();
        lab.stack.answer_error(lab.instant(), lab.ingress, &packet, Unreachable::HopLimit, own);
    }
    lab.settle();
    let out = lab.take_out();
    assert!((1..5_000).contains(&out.len()), "{} answers", out.len());
    assert_eq!((&out[0][12..16], &out[0][20..22]), (&[100, 96, 0, 1][..], &[11, 0][..]));
    assert_eq!(out[0][28..], bytes[..]);
    assert!(lab.stack.is_empty());
}
