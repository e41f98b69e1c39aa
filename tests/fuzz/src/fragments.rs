//! Fragments: what comes together is what was cut, and whatever comes, nothing grows.

use std::time::{Duration, Instant};

use portcullis_netstack::packet::{Arrival, ChecksumPolicy, IpPacket};
use portcullis_netstack::reassembly::{BYTES, BYTES_A_DEVICE, DATAGRAMS_A_DEVICE, TIMEOUT};
use portcullis_netstack::{IngressId, Reassembler};

/// Devices that send.
const DEVICES: u8 = 3;

/// Takes the input for packets one after the other, each behind three octets: whose it is, and its length. The clock
/// moves with them. Returns how many packets came together.
pub(crate) fn stream(data: &[u8]) -> usize {
    let mut complete = 0;
    let begin = Instant::now();
    let mut reassembler = Reassembler::default();
    let mut now = begin;
    let mut rest = data;
    while let [device, high, low, next @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high & 0x0f, *low])).min(next.len());
        let (packet, next) = next.split_at(length);
        rest = next;
        now += Duration::from_secs(u64::from(*high >> 4));
        if reassembler.poll_timeout().is_some_and(|at| at <= now) {
            reassembler.handle_timeout(now);
        }
        if let Ok(Arrival::Fragment(fragment)) = Arrival::parse(packet, ChecksumPolicy::Trusted) {
            let whole = reassembler.handle_fragment(now, IngressId(0), &(device % DEVICES), &fragment);
            if let Ok(Some(whole)) = whole {
                complete += 1;
                assert!(whole.len() <= 65_535 + 40, "no packet is longer");
                let _ = IpPacket::parse(whole, ChecksumPolicy::Verify);
            }
        }
        assert!(reassembler.bytes() <= BYTES.min(usize::from(DEVICES) * BYTES_A_DEVICE));
        assert!(reassembler.len() <= usize::from(DEVICES) * DATAGRAMS_A_DEVICE);
        assert!(reassembler.poll_timeout().is_none_or(|at| at > now && at <= now + TIMEOUT));
    }
    reassembler.handle_timeout(now + TIMEOUT);
    assert!(reassembler.is_empty() && reassembler.bytes() == 0);
    while reassembler.poll_lost().is_some() {}
    complete
}

/// Cuts a packet into pieces of `size` octets, lets them come in another order, and compares.
pub(crate) fn cut(packet: IpPacket<'_>, size: usize) {
    let bytes = packet.bytes();
    let v4 = bytes[0] >> 4 == 4;
    let header = if v4 { usize::from(bytes[0] & 15) * 4 } else { 40 };
    let (header, body) = bytes.split_at(header);
    let size = (size & !7).max(56);
    // Extension headers may be longer than a first fragment; and a packet of one piece is none to cut.
    if body.len() <= size || (!v4 && !matches!(header[6], 6 | 17 | 58)) {
        return;
    }
    let pieces: Vec<(usize, &[u8])> = body.chunks(size).enumerate().map(|(at, piece)| (at * size, piece)).collect();
    let mut reassembler = Reassembler::default();
    let now = Instant::now();
    let mut whole = None;
    for (offset, piece) in pieces.iter().rev() {
        let fragment = fragment(header, *offset, piece, offset + piece.len() < body.len());
        let Ok(Arrival::Fragment(parsed)) = Arrival::parse(&fragment, ChecksumPolicy::Trusted) else {
            // A TCP header with all its options is longer than any piece is short.
            assert!(*offset == 0, "a sound fragment is one");
            return;
        };
        let complete = reassembler.handle_fragment(now, IngressId(0), &0u8, &parsed);
        whole = complete.expect("nothing overlaps").map(<[u8]>::to_vec);
    }
    if pieces.len() <= portcullis_netstack::reassembly::FRAGMENTS_A_DATAGRAM {
        let whole = whole.expect("nothing is missing");
        let again = IpPacket::parse(&whole, ChecksumPolicy::Trusted).expect("it was a packet");
        assert_eq!(again.tuple(), packet.tuple());
        assert_eq!(&whole[whole.len() - body.len()..], body);
    }
}

fn fragment(header: &[u8], offset: usize, data: &[u8], more: bool) -> Vec<u8> {
    let mut fragment = header.to_vec();
    let units = u16::try_from(offset / 8).expect("offsets of less than 65,536");
    if header[0] >> 4 == 4 {
        fragment[6..8].copy_from_slice(&(units | if more { 0x2000 } else { 0 }).to_be_bytes());
        let length = u16::try_from(header.len() + data.len()).expect("a piece of a packet");
        fragment[2..4].copy_from_slice(&length.to_be_bytes());
        fragment[10..12].fill(0);
        let sum = fragment.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        fragment[10..12].copy_from_slice(&(!u16::try_from(sum).expect("folded")).to_be_bytes());
    } else {
        let next = std::mem::replace(&mut fragment[6], 44);
        let [high, low] = (units << 3 | u16::from(more)).to_be_bytes();
        fragment.extend([next, 0, high, low, 0, 0, 0, 1]);
        let length = u16::try_from(8 + data.len()).expect("a piece of a packet");
        fragment[4..6].copy_from_slice(&length.to_be_bytes());
    }
    fragment.extend(data);
    fragment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_come_together() {
        assert_eq!(stream(include_bytes!("../corpus/packet/fragments4")), 1);
        assert_eq!(stream(include_bytes!("../corpus/packet/fragments6")), 1);
    }
}
