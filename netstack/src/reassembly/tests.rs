//! Tests of reassembly.

use super::*;
use crate::packet::{Arrival, ChecksumPolicy, IpPacket, Transport};
use etherparse::PacketBuilder;
use proptest::prelude::*;

const TUN: IngressId = IngressId(0);
const FRAGMENT: u8 = 44;

/// A UDP packet with `len` bytes of payload.
pub(crate) fn udp(v6: bool, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
    let mut bytes = Vec::new();
    if v6 {
        let [client, target] = [[0xfd; 16], [0xfc; 16]];
        PacketBuilder::ipv6(client, target, 64).udp(5000, 53).write(&mut bytes, &payload).unwrap();
    } else {
        PacketBuilder::ipv4([100, 96, 0, 2], [10, 20, 0, 80], 64).udp(5000, 53).write(&mut bytes, &payload).unwrap();
    }
    bytes
}

/// The octets from `start` to `end` behind the header of `packet`, as a fragment with the identification `id`.
pub(crate) fn cut(packet: &[u8], id: u16, start: usize, end: usize, more: bool) -> Vec<u8> {
    place(packet, id, start, &packet[header(packet) + start..header(packet) + end], more)
}

/// A fragment of the same datagram with other data.
pub(crate) fn place(packet: &[u8], id: u16, start: usize, data: &[u8], more: bool) -> Vec<u8> {
    let offset = u16::try_from(start / 8).unwrap();
    let mut fragment = packet[..header(packet)].to_vec();
    if packet[0] >> 4 == 4 {
        let length = u16::try_from(20 + data.len()).unwrap();
        fragment[2..4].copy_from_slice(&length.to_be_bytes());
        fragment[4..6].copy_from_slice(&id.to_be_bytes());
        fragment[6..8].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        fragment[10..12].fill(0);
        let sum = !crate::packet::checksum::sum(&fragment);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let next = std::mem::replace(&mut fragment[6], FRAGMENT);
        let length = u16::try_from(8 + data.len()).unwrap();
        fragment[4..6].copy_from_slice(&length.to_be_bytes());
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        let [id_high, id_low] = id.to_be_bytes();
        fragment.extend([next, 0, high, low, 0, 0, id_high, id_low]);
    }
    fragment.extend(data);
    fragment
}

fn header(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

/// All fragments of a packet, `size` octets in each but the last.
pub(crate) fn fragments(packet: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    let length = packet.len() - header(packet);
    (0..length).step_by(size).map(|at| cut(packet, id, at, length.min(at + size), at + size < length)).collect()
}

struct Lab {
    reassembler: Reassembler<&'static str>,
    now: Instant,
}

impl Lab {
    #[expect(clippy::disallowed_methods, reason = "any instant will do to begin with")]
    fn new() -> Self {
        Self { reassembler: Reassembler::default(), now: Instant::now() }
    }

    fn take(&mut self, device: &'static str, fragment: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        let Arrival::Fragment(fragment) = Arrival::parse(fragment, ChecksumPolicy::Verify)? else {
            panic!("not a fragment")
        };
        let whole = self.reassembler.handle_fragment(self.now, TUN, &device, &fragment)?;
        Ok(whole.map(<[u8]>::to_vec))
    }

    fn lost(&mut self) -> Vec<(DropReason, usize)> {
        std::iter::from_fn(|| self.reassembler.poll_lost()).collect()
    }
}

fn payload_of(packet: &[u8]) -> Vec<u8> {
    let packet = IpPacket::parse(packet, ChecksumPolicy::Verify).unwrap();
    let Transport::Udp(udp) = packet.transport() else { panic!("{packet:?}") };
    udp.payload.to_vec()
}

proptest! {
    /// Cut anywhere, in any order, with repetitions: the packet that was cut, once.
    #[test]
    fn what_was_cut_comes_together(
        v6: bool,
        length in 100usize..9000,
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 1..20),
        order in any::<u64>(),
    ) {
        let packet = udp(v6, length);
        let length = packet.len() - header(&packet);
        let mut borders: Vec<usize> = cuts.iter().map(|cut| 8 * (1 + cut.index((length - 1) / 8))).collect();
        borders.extend([0, length]);
        borders.sort_unstable();
        borders.dedup();
        let mut parts: Vec<Vec<u8>> =
            borders.windows(2).map(|pair| cut(&packet, 9, pair[0], pair[1], pair[1] < length)).collect();
        // A shuffle, and the first one twice.
        parts.sort_by_key(|part| part.iter().fold(order, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)));
        let again = parts[0].clone();
        let mut lab = Lab::new();
        let count = parts.len();
        for (number, part) in parts.into_iter().enumerate() {
            let whole = lab.take("ann", &part).unwrap();
            if number + 1 < count {
                prop_assert!(whole.is_none());
            } else {
                prop_assert_eq!(whole.map(|whole| payload_of(&whole)), Some(payload_of(&packet)));
            }
            if number == 0 && count > 1 {
                prop_assert_eq!(lab.take("ann", &again), Err(DropReason::Fragment));
            }
        }
        prop_assert_eq!((lab.reassembler.bytes(), lab.reassembler.len(), lab.lost()), (0, 0, vec![]));
    }

    /// Whatever comes, nothing grows beyond its bounds, and what was taken is given back.
    #[test]
    fn bounds_hold(
        arrivals in proptest::collection::vec((0usize..40, 0u16..200, 0usize..8000, 1usize..180, any::<bool>()), 1..300),
    ) {
        let devices: Vec<&'static str> = (0..40).map(|number| &*format!("device {number}").leak()).collect();
        let packet = udp(false, 1500);
        let mut lab = Lab::new();
        for (device, id, offset, words, more) in arrivals {
            let data = vec![offset as u8; (words * 8).min(65_515 - offset.min(8000) * 8)];
            let _ = lab.take(devices[device], &place(&packet, id, offset * 8, &data, more));
            prop_assert!(lab.reassembler.bytes() <= BYTES);
            for owner in lab.reassembler.owners.values() {
                prop_assert!(owner.bytes <= BYTES_A_DEVICE && owner.datagrams.len() <= DATAGRAMS_A_DEVICE);
            }
            let sum: usize = lab.reassembler.datagrams.values().map(|datagram| datagram.cost).sum();
            prop_assert_eq!(sum, lab.reassembler.bytes());
        }
        lab.now += TIMEOUT;
        lab.reassembler.handle_timeout(lab.now);
        prop_assert_eq!((lab.reassembler.bytes(), lab.reassembler.len(), lab.reassembler.owners.len()), (0, 0, 0));
    }
}

#[test]
fn t12_overlapping_fragments_discard_the_datagram_and_what_is_still_to_come() {
    for v6 in [false, true] {
        let packet = udp(v6, 992);
        let overlaps = [
            // A byte range twice with other data, one that begins before, one that reaches into it, one that covers it.
            place(&packet, 1, 0, &[9; 400], true),
            place(&packet, 1, 392, &[9; 16], true),
            place(&packet, 1, 200, &[9; 208], true),
            place(&packet, 1, 0, &[9; 504], true),
            // Two ends, and something behind the end.
            place(&packet, 1, 600, &[9; 3], false),
            place(&packet, 1, 1000, &[9; 8], true),
        ];
        for (number, overlap) in overlaps.iter().enumerate() {
            let mut lab = Lab::new();
            assert_eq!(lab.take("ann", &cut(&packet, 1, 0, 400, true)), Ok(None));
            assert_eq!(lab.take("ann", &cut(&packet, 1, 800, 1000, false)), Ok(None));
            assert_eq!(lab.take("ann", overlap), Err(DropReason::FragmentOverlap), "{number}");
            assert_eq!(lab.lost(), [(DropReason::FragmentOverlap, 2)]);
            // All that is missing, and then all of it again: still nothing, until the time is over.
            for part in fragments(&packet, 1, 200) {
                assert_eq!(lab.take("ann", &part), Err(DropReason::FragmentOverlap), "{number}");
            }
            assert_eq!(lab.lost(), []);
            // Another datagram is not concerned.
            for (part, last) in fragments(&packet, 2, 504).iter().zip([false, true]) {
                assert_eq!(lab.take("ann", part).unwrap().is_some(), last);
            }
            lab.now += TIMEOUT;
            for (part, last) in fragments(&packet, 1, 504).iter().zip([false, true]) {
                assert_eq!(lab.take("ann", part).unwrap().is_some(), last);
            }
        }
    }
}

#[test]
fn t12_a_first_fragment_shows_the_transport_header() {
    for v6 in [false, true] {
        let packet = udp(v6, 100);
        let mut lab = Lab::new();
        for tiny in [place(&packet, 1, 0, &[0; 0], true), place(&packet, 1, 0, &[0; 7], true)] {
            assert_eq!(lab.take("ann", &tiny), Err(DropReason::Fragment));
        }
        assert_eq!(lab.take("ann", &place(&packet, 1, 0, &[0; 8], true)), Ok(None));
        // TCP: the ports alone, the first twenty octets of more, and a header that is whole.
        let mut tcp = packet.clone();
        tcp[if v6 { 6 } else { 9 }] = 6;
        let mut long = [0; 40];
        long[12] = 10 << 4;
        for (length, answer) in [(8, Err(DropReason::Fragment)), (32, Err(DropReason::Fragment)), (40, Ok(None))] {
            assert_eq!(lab.take("ann", &place(&tcp, 2, 0, &long[..length], true)), answer, "{length}");
        }
        let mut icmp = packet.clone();
        icmp[if v6 { 6 } else { 9 }] = if v6 { 58 } else { 1 };
        assert_eq!(lab.take("ann", &place(&icmp, 3, 0, &[8; 8], true)), Ok(None));
        // What nobody looks into, and what hides something else.
        let mut other = packet;
        for (number, answer) in [(47, Ok(None)), (50, Ok(None)), (59, Err(DropReason::Protocol))] {
            other[if v6 { 6 } else { 9 }] = number;
            assert_eq!(lab.take("ann", &place(&other, number.into(), 0, &[0; 48], true)), answer, "{number}");
        }
    }
}

#[test]
fn t12_nothing_reaches_beyond_65535() {
    for v6 in [false, true] {
        let packet = udp(v6, 100);
        let mut lab = Lab::new();
        // Offset and data alone, and with a header of 20 octets.
        for (offset, length) in [(65_528, 16), (65_528, 8), (65_512, 8)] {
            let answer = lab.take("ann", &place(&packet, 1, offset, &vec![0; length], false));
            let fits = if v6 { offset + length <= 65_535 } else { offset + length + 20 <= 65_535 };
            assert_eq!(answer, if fits { Ok(None) } else { Err(DropReason::Fragment) }, "{v6} {offset} {length}");
        }
    }
    // The first header is longer than that of the others.
    let packet = udp(false, 65_507);
    let mut lab = Lab::new();
    let mut parts = fragments(&packet, 1, 32_768);
    parts[0].splice(20..20, [1, 1, 1, 0]);
    parts[0][0] = 0x46;
    parts[0][3] += 4;
    parts[0][10..12].fill(0);
    let sum = !crate::packet::checksum::sum(&parts[0][..24]);
    parts[0][10..12].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(lab.take("ann", &parts[1]), Ok(None));
    assert_eq!(lab.take("ann", &parts[0]), Err(DropReason::Fragment));
    // The longest there is.
    for v6 in [false, true] {
        let packet = udp(v6, 65_507);
        let parts = fragments(&packet, 1, 1232);
        let (last, others) = parts.split_last().unwrap();
        assert!(others.iter().all(|part| lab.take("bob", part) == Ok(None)));
        let whole = lab.take("bob", last).unwrap().unwrap();
        assert_eq!(payload_of(&whole), payload_of(&packet));
    }
}

#[test]
fn t12_a_device_keeps_64_datagrams_for_30_seconds_and_harms_no_other() {
    let packet = udp(false, 1000);
    let mut lab = Lab::new();
    assert_eq!(lab.take("bob", &cut(&packet, 1, 0, 504, true)), Ok(None));
    for id in 0..10_000 {
        assert_eq!(lab.take("ann", &cut(&packet, id, 0, 504, true)), Ok(None));
        assert!(lab.reassembler.len() <= DATAGRAMS_A_DEVICE + 1);
    }
    assert_eq!(lab.lost(), [(DropReason::FragmentLimit, 10_000 - DATAGRAMS_A_DEVICE)]);
    let flat = lab.reassembler.bytes();
    assert!(flat < 65 * 1200, "{flat}");
    // The oldest went, the newest is there, and so is the other device's.
    assert!(lab.take("ann", &cut(&packet, 9_999, 504, 1008, false)).unwrap().is_some());
    assert!(lab.take("bob", &cut(&packet, 1, 504, 1008, false)).unwrap().is_some());
    assert_eq!(lab.take("ann", &cut(&packet, 0, 504, 1008, false)), Ok(None));
    assert_eq!(lab.reassembler.poll_timeout(), Some(lab.now + TIMEOUT));
    lab.now += TIMEOUT - Duration::from_nanos(1);
    lab.reassembler.handle_timeout(lab.now);
    assert_eq!(lab.reassembler.len(), DATAGRAMS_A_DEVICE);
    lab.now += Duration::from_nanos(1);
    lab.reassembler.handle_timeout(lab.now);
    assert_eq!((lab.reassembler.len(), lab.reassembler.bytes(), lab.reassembler.poll_timeout()), (0, 0, None));
    assert_eq!(lab.lost(), [(DropReason::FragmentTimeout, DATAGRAMS_A_DEVICE)]);
}

#[test]
fn t12_bytes_are_bounded_for_a_device_and_in_all() {
    let packet = udp(false, 65_507);
    let parts = fragments(&packet, 1, 1480);
    let mut lab = Lab::new();
    let devices: Vec<&'static str> = (0..20).map(|number| &*format!("device {number}").leak()).collect();
    for device in &devices {
        for id in 0..20u16 {
            for part in &parts[..parts.len() - 1] {
                let mut part = part.clone();
                part[4..6].copy_from_slice(&id.to_be_bytes());
                part[10..12].fill(0);
                let sum = !crate::packet::checksum::sum(&part[..20]);
                part[10..12].copy_from_slice(&sum.to_be_bytes());
                assert_eq!(lab.take(device, &part), Ok(None));
                assert!(lab.reassembler.bytes() <= BYTES);
            }
        }
        assert!(lab.reassembler.owners[device].bytes <= BYTES_A_DEVICE);
        assert!(lab.reassembler.owners[device].bytes > BYTES_A_DEVICE / 2);
    }
    assert!(lab.reassembler.bytes() > BYTES - BYTES_A_DEVICE);
    assert!(lab.lost().iter().all(|(reason, _)| *reason == DropReason::FragmentLimit));
    // Crumbs cost more than they weigh, and a datagram has only so many of them.
    let mut lab = Lab::new();
    let crumbs = fragments(&packet, 1, 8);
    assert!(crumbs[..FRAGMENTS_A_DATAGRAM].iter().all(|crumb| lab.take("ann", crumb) == Ok(None)));
    assert_eq!(lab.take("ann", &crumbs[FRAGMENTS_A_DATAGRAM]), Err(DropReason::FragmentLimit));
    assert_eq!(lab.lost(), [(DropReason::FragmentLimit, FRAGMENTS_A_DATAGRAM)]);
}

#[test]
fn fragments_of_different_datagrams_are_not_mixed() {
    let packet = udp(false, 1000);
    let mut other_protocol = packet.clone();
    other_protocol[9] = 1;
    let mut other_source = packet.clone();
    other_source[15] = 3;
    let mut lab = Lab::new();
    assert_eq!(lab.take("ann", &cut(&packet, 1, 0, 504, true)), Ok(None));
    for other in [
        cut(&packet, 2, 504, 1008, false),
        cut(&other_protocol, 1, 504, 1008, false),
        cut(&other_source, 1, 504, 1008, false),
    ] {
        assert_eq!(lab.take("ann", &other), Ok(None));
    }
    assert_eq!(lab.take("bob", &cut(&packet, 1, 504, 1008, false)), Ok(None));
    assert!(lab.take("ann", &cut(&packet, 1, 504, 1008, false)).unwrap().is_some());
}

#[test]
fn an_ipv6_header_before_the_fragment_header_stays() {
    let mut packet = udp(true, 1000);
    // Destination options, then UDP.
    packet[6] = 60;
    packet[5] += 8;
    packet.splice(40..40, [17, 0, 1, 4, 0, 0, 0, 0]);
    let part = |start: usize, end: usize, more: bool| {
        let mut part = packet[..48].to_vec();
        part[40] = FRAGMENT;
        let [high, low] = ((start as u16) | u16::from(more)).to_be_bytes();
        part.extend([17, 0, high, low, 0, 0, 0, 1]);
        part.extend(&packet[48 + start..48 + end]);
        let length = u16::try_from(part.len() - 40).unwrap();
        part[4..6].copy_from_slice(&length.to_be_bytes());
        part
    };
    let mut lab = Lab::new();
    assert_eq!(lab.take("ann", &part(504, 1008, false)), Ok(None));
    assert_eq!(lab.take("ann", &part(0, 504, true)), Ok(Some(packet.clone())));
}
