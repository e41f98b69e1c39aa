//! The Internet checksum, RFC 1071, in wide words.
//!
//! The sum is the same whatever the width and order of the words it is taken in (section 2), so the body is added as
//! 32-bit words of the machine into 64-bit sums, several side by side, which compilers turn into vector instructions.

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

/// Words that are added side by side.
const LANES: usize = 16;

/// The one's complement sum of `bytes` as 16-bit words in network order, folded. A last odd byte is the high half of
/// its word.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let (blocks, rest) = bytes.as_chunks::<{ 4 * LANES }>();
    let mut lanes = [0u64; LANES];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    if !rest.is_empty() {
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        total += u64::from(u32::from_ne_bytes(last));
    }
    u16::to_be(fold(total))
}

/// The sum of sums.
pub(crate) fn combine(sums: &[u16]) -> u16 {
    fold(sums.iter().map(|&sum| u64::from(sum)).sum())
}

/// The sum of the pseudo-header of a packet with `length` bytes of transport, RFC 9293 section 3.1 and RFC 8200 section
/// 8.1. Both addresses are of one family.
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: IpProtocol, length: u32) -> u16 {
    let of = |address: IpAddr| match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    combine(&[of(source), of(destination), sum(&length.to_be_bytes()), u16::from(u8::from(protocol))])
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_the_sum_of_words_in_network_order(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low)));
            prop_assert_eq!(sum(&bytes), fold(words.sum()));
        }

        #[test]
        fn a_pseudo_header_is_summed_as_it_is_written(source: [u8; 16], destination: [u8; 16], length: u32) {
            let mut written = [source, destination].concat();
            written.extend(length.to_be_bytes());
            written.extend([0, 0, 0, 6]);
            prop_assert_eq!(pseudo_header(source.into(), destination.into(), IpProtocol::Tcp, length), sum(&written));
        }
    }

    #[test]
    fn the_greatest_sum_there_is_folds() {
        assert_eq!(sum(&[0xff; 65_535]), combine(&[0xffff, 0xff00]));
        assert_eq!(sum(&[]), 0);
    }
}
