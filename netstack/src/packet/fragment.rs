//! Fragments: what the front door sees of one, before there is a packet.

use std::net::IpAddr;

use etherparse::{
    IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, TcpSlice,
};

use super::build::{IPV4_HEADER, IPV6_HEADER, UDP_HEADER, put8, put16};
use super::extension::{self, MAX_EXTENSION_HEADERS};
use super::{ChecksumPolicy, IcmpMessage, IpPacket, checksum, parse};
use crate::DropReason;

/// Bytes of an ICMP header.
const ICMP_HEADER: usize = 8;
/// Most bytes of a packet, by the width of IPv4's length field; of an IPv6 packet, behind its first header.
const LONGEST: usize = 65_535;

/// What came through the front door.
#[derive(Debug, Clone, Copy)]
pub enum Arrival<'p> {
    /// A whole packet.
    Packet(IpPacket<'p>),
    /// A part of one, for the [`Reassembler`](crate::Reassembler).
    Fragment(IpFragment<'p>),
    /// An ICMP message that opens no flow, for one whose packets go on as they are.
    Icmp(IcmpMessage<'p>),
}

impl<'p> Arrival<'p> {
    /// The front door: from decrypted bytes to a packet, a part of one, or a reason to drop them. Pure, total, never
    /// panics.
    ///
    /// # Errors
    /// As of [`IpPacket::parse`] and [`IpFragment::parse`].
    pub fn parse(bytes: &'p [u8], checksums: ChecksumPolicy) -> Result<Self, DropReason> {
        // A fragment is no packet, so ordinary packets pay nothing for the second look.
        match IpPacket::parse(bytes, checksums) {
            Ok(packet) => Ok(Self::Packet(packet)),
            Err(reason @ DropReason::IcmpType) => IcmpMessage::parse(bytes, checksums).map(Self::Icmp).ok_or(reason),
            Err(reason) => match IpFragment::parse(bytes)? {
                Some(fragment) => Ok(Self::Fragment(fragment)),
                None => Err(reason),
            },
        }
    }
}

/// A part of an IP packet. Lengths and offset are known to hold, and a first one to show the whole transport header (RFC
/// 1858 section 3.2.1, RFC 7112).
#[derive(Debug, Clone, Copy)]
pub struct IpFragment<'p> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The protocol of an IPv4 datagram, which is part of its name; RFC 791 section 3.2.
    pub(crate) protocol: Option<IpNumber>,
    pub(crate) identification: u32,
    /// What stands in front of the data of every fragment, an IPv6 fragment header excluded.
    pub(crate) header: &'p [u8],
    pub(crate) next: Next,
    /// Where its data belongs, in octets.
    pub(crate) offset: usize,
    /// Whether there is more behind it.
    pub(crate) more: bool,
    pub(crate) data: &'p [u8],
}

/// What the fragment header of IPv6 said in front of the data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Next {
    /// Where in the headers the fragment header was announced; 0 in IPv4.
    at: usize,
    /// What comes after it.
    number: IpNumber,
}

impl<'p> IpFragment<'p> {
    /// Looks at bytes that are no packet. `None`: they are no fragment either.
    ///
    /// # Errors
    /// Why a fragment can be part of no datagram: contradictory lengths, a wrong header checksum, a place no datagram
    /// has, a transport header cut in two, or headers that no packet may have.
    pub fn parse(bytes: &'p [u8]) -> Result<Option<Self>, DropReason> {
        let fragment = match bytes.first().map(|first| first >> 4) {
            Some(4) => v4(bytes)?,
            Some(6) => v6(bytes)?,
            _ => None,
        };
        fragment.map(Self::checked).transpose()
    }

    /// Its source address, which must be its device's own like that of any packet.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    fn checked(self) -> Result<Self, DropReason> {
        let Self { header, offset, more, data, .. } = self;
        let fixed = if self.source.is_ipv4() { 0 } else { IPV6_HEADER };
        // RFC 791 section 3.2 and RFC 8200 section 4.5: all but the last carry a multiple of eight octets.
        let sensible = !data.is_empty() && (!more || data.len().is_multiple_of(8));
        if !sensible || header.len() - fixed + offset + data.len() > LONGEST {
            return Err(DropReason::Fragment);
        }
        if offset == 0 {
            self.check_first()?;
        }
        Ok(self)
    }

    /// Whether a first fragment shows everything that a decision could need.
    fn check_first(&self) -> Result<(), DropReason> {
        let mut rest = self.data;
        let mut next = self.next.number;
        let mut headers = 0;
        while next == IpNumber::IPV6_DESTINATION_OPTIONS && self.protocol.is_none() {
            let options = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| DropReason::Fragment)?;
            extension::check_options(options.payload())?;
            headers += 1;
            if headers > MAX_EXTENSION_HEADERS {
                return Err(DropReason::ExtensionHeader);
            }
            next = options.next_header();
            rest = rest.get(options.slice().len()..).ok_or(DropReason::Fragment)?;
        }
        let whole = match next {
            IpNumber::TCP => TcpSlice::from_slice(rest).is_ok(),
            IpNumber::UDP => rest.len() >= UDP_HEADER,
            IpNumber::ICMP | IpNumber::IPV6_ICMP => rest.len() >= ICMP_HEADER,
            IpNumber::IPV6_ROUTE_HEADER | IpNumber::IPV6_FRAGMENTATION_HEADER | IpNumber::IPV6_HEADER_HOP_BY_HOP => {
                return Err(DropReason::ExtensionHeader);
            }
            number if parse::opaque(number) => true,
            _ => return Err(DropReason::Protocol),
        };
        if whole { Ok(()) } else { Err(DropReason::Fragment) }
    }

    /// Writes the packet it is the first part of, with `data` bytes behind its headers. `false`: they do not fit.
    pub(crate) fn write_header(header: &[u8], next: Next, data: usize, packet: &mut Vec<u8>) -> bool {
        packet.clear();
        packet.extend_from_slice(header);
        let v4 = header.first().is_some_and(|first| first >> 4 == 4);
        let length = if v4 { header.len() + data } else { header.len() + data - IPV6_HEADER };
        let Ok(length) = u16::try_from(length) else { return false };
        if v4 {
            put16(packet, 2, length);
            // No flags, no offset.
            put16(packet, 6, 0);
            put16(packet, 10, 0);
            let sum = !checksum::sum(packet);
            put16(packet, 10, sum);
        } else {
            put16(packet, 4, length);
            put8(packet, next.at, next.number.0);
        }
        true
    }
}

fn v4(bytes: &[u8]) -> Result<Option<IpFragment<'_>>, DropReason> {
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| DropReason::Malformed)?;
    if !header.is_fragmenting_payload() {
        return Ok(None);
    }
    if checksum::sum(header.slice()) != !0 {
        return Err(DropReason::Checksum);
    }
    let headers = header.slice().len().max(IPV4_HEADER);
    let data = bytes.get(headers..usize::from(header.total_len())).ok_or(DropReason::Malformed)?;
    Ok(Some(IpFragment {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: Some(header.protocol()),
        identification: header.identification().into(),
        header: bytes.get(..headers).ok_or(DropReason::Malformed)?,
        next: Next { at: 0, number: header.protocol() },
        offset: usize::from(header.fragments_offset().value()) * 8,
        more: header.more_fragments(),
        data,
    }))
}

fn v6(bytes: &[u8]) -> Result<Option<IpFragment<'_>>, DropReason> {
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| DropReason::Malformed)?;
    let whole = IPV6_HEADER + usize::from(header.payload_length());
    let bytes = bytes.get(..whole).ok_or(DropReason::Malformed)?;
    let mut next = Next { at: 6, number: header.next_header() };
    let mut start = IPV6_HEADER;
    for headers in 0..MAX_EXTENSION_HEADERS {
        let rest = bytes.get(start..).ok_or(DropReason::Malformed)?;
        match next.number {
            IpNumber::IPV6_HEADER_HOP_BY_HOP if headers > 0 => return Err(DropReason::Malformed),
            IpNumber::IPV6_HEADER_HOP_BY_HOP | IpNumber::IPV6_DESTINATION_OPTIONS => {
                let options = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| DropReason::Malformed)?;
                extension::check_options(options.payload())?;
                next = Next { at: start, number: options.next_header() };
                start += options.slice().len();
            }
            IpNumber::IPV6_ROUTE_HEADER | IpNumber::AUTHENTICATION_HEADER => {
                return Err(DropReason::ExtensionHeader);
            }
            IpNumber::IPV6_FRAGMENTATION_HEADER => {
                let fragment = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| DropReason::Malformed)?;
                if !fragment.is_fragmenting_payload() {
                    // An atomic fragment is a whole packet, RFC 6946; this one was refused as such.
                    return Ok(None);
                }
                let data = rest.get(fragment.slice().len()..).ok_or(DropReason::Malformed)?;
                return Ok(Some(IpFragment {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    protocol: None,
                    identification: fragment.identification(),
                    header: bytes.get(..start).ok_or(DropReason::Malformed)?,
                    next: Next { at: next.at, number: fragment.next_header() },
                    offset: usize::from(fragment.fragment_offset().value()) * 8,
                    more: fragment.more_fragments(),
                    data,
                }));
            }
            _ => return Ok(None),
        }
    }
    Err(DropReason::ExtensionHeader)
}

#[cfg(test)]
mod tests;
