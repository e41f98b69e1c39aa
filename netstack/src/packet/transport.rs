//! What packets carry.

use etherparse::{TcpOptionElement, TcpOptionsIterator};

use crate::sequence::{Range, before};

/// What an [`IpPacket`](super::IpPacket) carries.
#[derive(Debug, Clone, Copy)]
pub enum Transport<'p> {
    /// A TCP segment.
    Tcp(TcpSegment<'p>),
    /// A UDP datagram.
    Udp(UdpDatagram<'p>),
    /// An ICMP or ICMPv6 echo request.
    Echo(Echo<'p>),
    /// What is in a packet of another protocol.
    Other(&'p [u8]),
}

/// The fields of a TCP segment the flow table looks at.
#[derive(Debug, Clone, Copy)]
pub struct TcpSegment<'p> {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number, meaningful when `ack` is set.
    pub acknowledgment: u32,
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub ack: bool,
    /// RST.
    pub rst: bool,
    /// FIN.
    pub fin: bool,
    /// Window field, unscaled.
    pub window: u16,
    /// Options, RFC 9293 section 3.1.
    pub options: &'p [u8],
    /// Data octets.
    pub payload: &'p [u8],
}

impl TcpSegment<'_> {
    /// A SYN that may open a connection: without ACK, RST or FIN.
    pub fn is_bare_syn(&self) -> bool {
        self.syn && !self.ack && !self.rst && !self.fin
    }

    /// The runs that arrived behind a hole, as the client tells them, RFC 2018.
    pub(crate) fn sacked(&self) -> impl Iterator<Item = Range> + use<> {
        let blocks = if self.options.is_empty() {
            None
        } else {
            TcpOptionsIterator::from_slice(self.options).find_map(|option| match option {
                Ok(TcpOptionElement::SelectiveAcknowledgement(first, rest)) => Some((first, rest)),
                _ => None,
            })
        };
        let runs =
            blocks.into_iter().flat_map(|(first, rest)| std::iter::once(first).chain(rest.into_iter().flatten()));
        runs.map(|(start, end)| Range { start, end }).filter(|run| before(run.start, run.end))
    }

    /// Whether the sender of this SYN offers selective acknowledgments, RFC 2018 section 2.
    pub(crate) fn offers_selective(&self) -> bool {
        TcpOptionsIterator::from_slice(self.options)
            .any(|option| matches!(option, Ok(TcpOptionElement::SelectiveAcknowledgementPermitted)))
    }

    /// Whether the sender of this SYN knows scaled windows: RFC 7323 section 2.
    pub(crate) fn offers_window_scale(&self) -> bool {
        self.window_shift().is_some()
    }

    /// By how much its sender scales windows, where this SYN offers that: RFC 7323 section 2.2.
    pub(crate) fn window_shift(&self) -> Option<u8> {
        TcpOptionsIterator::from_slice(self.options).find_map(|option| match option {
            Ok(TcpOptionElement::WindowScale(shift)) => Some(shift),
            _ => None,
        })
    }

    /// The largest segment the sender of this SYN takes, RFC 9293 section 3.7.1.
    pub fn maximum_segment_size(&self) -> Option<u16> {
        TcpOptionsIterator::from_slice(self.options).find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(size)) => Some(size),
            _ => None,
        })
    }

    /// Length in sequence space, RFC 9293 section 3.4.
    pub fn sequence_len(&self) -> u32 {
        let control = u32::from(self.syn) + u32::from(self.fin);
        u32::try_from(self.payload.len()).unwrap_or(u32::MAX).wrapping_add(control)
    }
}

/// The payload of a UDP datagram, or of several in a super-packet.
#[derive(Debug, Clone, Copy)]
pub struct UdpDatagram<'p> {
    /// Payload octets, those of a super-packet's datagrams one after the other.
    pub payload: &'p [u8],
    pub(super) size: usize,
}

impl<'p> UdpDatagram<'p> {
    /// Payload octets of each datagram; the last may be shorter.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many datagrams it is: at least one.
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size.max(1)).max(1)
    }

    /// The payload of each datagram.
    pub fn datagrams(&self) -> impl Iterator<Item = &'p [u8]> {
        let (first, rest) = self.payload.split_at(self.size.min(self.payload.len()));
        std::iter::once(first).chain(rest.chunks(self.size.max(1)))
    }
}

/// An echo request.
#[derive(Debug, Clone, Copy)]
pub struct Echo<'p> {
    /// Identifier.
    pub identifier: u16,
    /// Sequence number.
    pub sequence: u16,
    /// Data octets after the header.
    pub data: &'p [u8],
}
