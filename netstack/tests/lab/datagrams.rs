//! UDP associations and echo exchanges.

use std::time::Duration;

use portcullis_netstack::packet::build::Unreachable;
use portcullis_netstack::packet::{ChecksumPolicy, IpPacket};
use portcullis_netstack::{FlowId, Handled, Refusal};

use crate::lab::{Lab, limits};
use crate::raw::{echo_request, udp};

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
        let packet = IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap().into_datagrams(1200).unwrap();
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
