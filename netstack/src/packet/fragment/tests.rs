//! Tests of what is a fragment, and which are none.

use super::*;
use crate::reassembly::tests::{cut, fragments, place, udp};

fn arrival(bytes: &[u8]) -> Result<&'static str, DropReason> {
    Arrival::parse(bytes, ChecksumPolicy::Verify).map(|arrival| match arrival {
        Arrival::Packet(_) => "packet",
        Arrival::Fragment(_) => "fragment",
        Arrival::Icmp(_) => "message",
    })
}

/// Puts an extension header of eight octets in front of what an IPv6 packet has.
fn with_header(packet: &[u8], kind: u8, options: [u8; 6]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let next = std::mem::replace(&mut packet[6], kind);
    let [a, b, c, d, e, f] = options;
    packet.splice(40..40, [next, 0, a, b, c, d, e, f]);
    let length = u16::try_from(packet.len() - 40).unwrap();
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

#[test]
fn a_packet_a_fragment_or_neither() {
    for v6 in [false, true] {
        let packet = udp(v6, 1000);
        assert_eq!(arrival(&packet), Ok("packet"));
        for part in fragments(&packet, 7, 200) {
            assert_eq!(arrival(&part), Ok("fragment"));
            // Anything that is cut off is missed.
            assert_eq!(arrival(&part[..part.len() - 1]), Err(DropReason::Malformed));
        }
        // Only a last fragment ends where it likes.
        assert_eq!(arrival(&place(&packet, 7, 200, &[0; 12], true)), Err(DropReason::Fragment));
        assert_eq!(arrival(&place(&packet, 7, 200, &[0; 12], false)), Ok("fragment"));
        assert_eq!(arrival(&place(&packet, 7, 200, &[], false)), Err(DropReason::Fragment));
    }
    assert_eq!(arrival(&[]), Err(DropReason::Malformed));
    let mut wrong = cut(&udp(false, 1000), 7, 0, 200, true);
    wrong[10] ^= 1;
    assert_eq!(arrival(&wrong), Err(DropReason::Checksum));
}

#[test]
fn an_atomic_fragment_is_a_packet() {
    let packet = udp(true, 100);
    assert_eq!(arrival(&cut(&packet, 7, 0, 108, false)), Ok("packet"));
    // Its contents are judged as those of any other, and a second fragment header is no atomic one.
    let mut damaged = cut(&packet, 7, 0, 108, false);
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(arrival(&damaged), Err(DropReason::Checksum));
    let nested = with_header(&cut(&packet, 7, 0, 64, true), 44, [0; 6]);
    assert_eq!(arrival(&nested), Err(DropReason::Fragment));
}

#[test]
fn t13_headers_in_front_of_a_fragment_are_judged_like_any() {
    let part = cut(&udp(true, 1000), 7, 0, 504, true);
    assert_eq!(arrival(&with_header(&part, HOP_BY_HOP, PADDING)), Ok("fragment"));
    assert_eq!(arrival(&with_header(&part, DESTINATION, PADDING)), Ok("fragment"));
    assert_eq!(arrival(&with_header(&part, ROUTING, PADDING)), Err(DropReason::ExtensionHeader));
    const JUMBO: [u8; 6] = [0xc2, 4, 0, 1, 0, 0];
    assert_eq!(arrival(&with_header(&part, HOP_BY_HOP, JUMBO)), Err(DropReason::ExtensionHeader));
    let second = with_header(&with_header(&part, HOP_BY_HOP, PADDING), DESTINATION, PADDING);
    assert_eq!(arrival(&second), Err(DropReason::Malformed));
    let mut long = part;
    for _ in 0..MAX_EXTENSION_HEADERS {
        assert_eq!(arrival(&long), Ok("fragment"));
        long = with_header(&long, DESTINATION, PADDING);
    }
    assert_eq!(arrival(&long), Err(DropReason::ExtensionHeader));
}

#[test]
fn t13_headers_behind_the_fragment_header_end_in_a_transport() {
    let packet = with_header(&udp(true, 1000), DESTINATION, PADDING);
    assert_eq!(arrival(&cut(&packet, 7, 0, 504, true)), Ok("fragment"));
    // The options fit, the UDP header does not; then not even the options do.
    assert_eq!(arrival(&cut(&packet, 7, 0, 8, true)), Err(DropReason::Fragment));
    let longer = place(&packet, 7, 0, &[17, 1, 1, 4, 0, 0, 0, 0], true);
    assert_eq!(arrival(&longer), Err(DropReason::Fragment));
    for hidden in [ROUTING, HOP_BY_HOP, 44] {
        let packet = with_header(&udp(true, 1000), hidden, PADDING);
        assert_eq!(arrival(&cut(&packet, 7, 0, 504, true)), Err(DropReason::ExtensionHeader), "{hidden}");
    }
    // What follows in later fragments is data, whatever the first header said it is.
    assert_eq!(arrival(&place(&packet, 7, 504, &[0xff; 16], true)), Ok("fragment"));
    let mut chain = udp(true, 1000);
    for _ in 0..=MAX_EXTENSION_HEADERS {
        chain = with_header(&chain, DESTINATION, PADDING);
    }
    assert_eq!(arrival(&cut(&chain, 7, 0, 504, true)), Err(DropReason::ExtensionHeader));
}
