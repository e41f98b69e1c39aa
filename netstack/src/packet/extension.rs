//! IPv6 extension headers, RFC 8200 section 4: few are let through, and none that hides the transport or an address.

use etherparse::{Ipv6ExtensionSlice, Ipv6Slice};

use crate::DropReason;

/// Most extension headers a packet may carry.
pub(super) const MAX_EXTENSION_HEADERS: usize = 8;

/// An option of one octet, RFC 8200 section 4.2.
const PAD_1: u8 = 0;
/// The bits of an option's type that say what a node does that does not know it. All clear: it skips the option.
const UNKNOWN: u8 = 0xc0;

/// Refuses routing headers, authentication, long chains, and options that nobody may skip: a jumbogram's length (RFC
/// 2675) and a home address (RFC 6275) are among them.
pub(super) fn check(packet: &Ipv6Slice<'_>) -> Result<(), DropReason> {
    let mut headers = 0;
    for extension in packet.extensions().clone() {
        headers += 1;
        match extension {
            Ipv6ExtensionSlice::HopByHop(header) | Ipv6ExtensionSlice::DestinationOptions(header) => {
                check_options(header.payload())?;
            }
            Ipv6ExtensionSlice::Fragment(_) => {}
            Ipv6ExtensionSlice::Routing(_) | Ipv6ExtensionSlice::Authentication(_) => {
                return Err(DropReason::ExtensionHeader);
            }
        }
    }
    if headers > MAX_EXTENSION_HEADERS { Err(DropReason::ExtensionHeader) } else { Ok(()) }
}

/// Options one after the other: a type, a length and as many octets.
pub(super) fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    loop {
        options = match *options {
            [] => return Ok(()),
            [PAD_1, ref rest @ ..] => rest,
            [kind, _, ..] if kind & UNKNOWN != 0 => return Err(DropReason::ExtensionHeader),
            [_, length, ref rest @ ..] => rest.get(usize::from(length)..).ok_or(DropReason::Malformed)?,
            [_] => return Err(DropReason::Malformed),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_skipped_or_refuse_the_packet() {
        const ROUTER_ALERT: u8 = 5;
        const JUMBO: u8 = 0xc2;
        const HOME_ADDRESS: u8 = 0xc9;
        for (options, answer) in [
            (&[][..], Ok(())),
            (&[PAD_1, PAD_1], Ok(())),
            (&[1, 4, 0, 0, 0, 0], Ok(())),
            (&[ROUTER_ALERT, 2, 0, 0, 1, 0], Ok(())),
            (&[0x1e, 1, 7, PAD_1, 1, 0], Ok(())),
            (&[JUMBO, 4, 0, 1, 0, 0], Err(DropReason::ExtensionHeader)),
            (&[1, 0, HOME_ADDRESS, 0], Err(DropReason::ExtensionHeader)),
            (&[0x40, 0], Err(DropReason::ExtensionHeader)),
            (&[0x80, 0], Err(DropReason::ExtensionHeader)),
            (&[1], Err(DropReason::Malformed)),
            (&[1, 4, 0, 0, 0], Err(DropReason::Malformed)),
        ] {
            assert_eq!(check_options(options), answer, "{options:?}");
        }
    }
}
