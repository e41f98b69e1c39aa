//! Segments and datagrams made by hand, and what comes back, taken apart.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

pub(crate) const CLIENT: [u8; 4] = [100, 96, 0, 2];
pub(crate) const TARGET: [u8; 4] = [10, 20, 0, 80];
pub(crate) const CLIENT6: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub(crate) const TARGET6: [u8; 16] = [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80];
pub(crate) const PORT: u16 = 51_000;
pub(crate) const SERVICE: u16 = 443;

pub(crate) const SYN: u8 = 1;
pub(crate) const ACK: u8 = 2;
pub(crate) const FIN: u8 = 4;
pub(crate) const RST: u8 = 8;

/// A TCP segment of the client.
#[derive(Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) v6: bool,
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) window: u16,
    pub(crate) payload: &'a [u8],
}

impl Segment<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let ip =
            if self.v6 { PacketBuilder::ipv6(CLIENT6, TARGET6, 64) } else { PacketBuilder::ipv4(CLIENT, TARGET, 64) };
        let mut tcp = ip.tcp(PORT, SERVICE, self.sequence, self.window);
        if self.flags & SYN != 0 {
            tcp = tcp.syn();
        }
        if self.flags & ACK != 0 {
            tcp = tcp.ack(self.acknowledgment);
        }
        if self.flags & FIN != 0 {
            tcp = tcp.fin();
        }
        if self.flags & RST != 0 {
            tcp = tcp.rst();
        }
        let mut bytes = Vec::new();
        tcp.write(&mut bytes, self.payload).unwrap();
        bytes
    }
}

/// A segment without payload.
pub(crate) fn segment(flags: u8, sequence: u32, acknowledgment: u32, window: u16) -> Vec<u8> {
    Segment { v6: false, flags, sequence, acknowledgment, window, payload: &[] }.bytes()
}

/// A UDP datagram of the client.
pub(crate) fn udp(v6: bool, service: u16, payload: &[u8]) -> Vec<u8> {
    let ip = if v6 { PacketBuilder::ipv6(CLIENT6, TARGET6, 64) } else { PacketBuilder::ipv4(CLIENT, TARGET, 64) };
    let mut bytes = Vec::new();
    ip.udp(PORT, service).write(&mut bytes, payload).unwrap();
    bytes
}

/// An echo request of the client.
pub(crate) fn echo_request(v6: bool, identifier: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if v6 {
        let builder = PacketBuilder::ipv6(CLIENT6, TARGET6, 64).icmpv6_echo_request(identifier, sequence);
        builder.write(&mut bytes, data).unwrap();
    } else {
        let builder = PacketBuilder::ipv4(CLIENT, TARGET, 64).icmpv4_echo_request(identifier, sequence);
        builder.write(&mut bytes, data).unwrap();
    }
    bytes
}

/// A TCP segment of the stack.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) mss: Option<u16>,
}

/// Takes a TCP packet apart.
pub(crate) fn answer(packet: &[u8]) -> Answer {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let (from, to) = match sliced.net.unwrap() {
        NetSlice::Ipv4(v4) => (v4.header().source().to_vec(), v4.header().destination().to_vec()),
        NetSlice::Ipv6(v6) => (v6.header().source().to_vec(), v6.header().destination().to_vec()),
        NetSlice::Arp(_) => panic!("{packet:02x?}"),
    };
    let v6 = from.len() == 16;
    assert_eq!(from, if v6 { TARGET6.to_vec() } else { TARGET.to_vec() });
    assert_eq!(to, if v6 { CLIENT6.to_vec() } else { CLIENT.to_vec() });
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("{packet:02x?}") };
    assert_eq!((tcp.source_port(), tcp.destination_port()), (SERVICE, PORT));
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let mss = tcp.options_iterator().find_map(|option| match option {
        Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
        _ => None,
    });
    Answer {
        flags: flag(tcp.syn(), SYN) | flag(tcp.ack(), ACK) | flag(tcp.fin(), FIN) | flag(tcp.rst(), RST),
        sequence: tcp.sequence_number(),
        acknowledgment: tcp.acknowledgment_number(),
        payload: tcp.payload().to_vec(),
        mss,
    }
}

/// Takes TCP packets apart.
pub(crate) fn answers(packets: &[Vec<u8>]) -> Vec<Answer> {
    packets.iter().map(|packet| answer(packet)).collect()
}

/// A bare acknowledgment of the client that tells of one run behind a hole.
pub(crate) fn selective(sequence: u32, acknowledgment: u32, window: u16, run: (u32, u32)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let options = [etherparse::TcpOptionElement::SelectiveAcknowledgement(run, [None; 3])];
    let ip = PacketBuilder::ipv4(CLIENT, TARGET, 64);
    let tcp = ip.tcp(PORT, SERVICE, sequence, window).ack(acknowledgment).options(&options).unwrap();
    tcp.write(&mut bytes, &[]).unwrap();
    bytes
}

/// A SYN of a client that offers selective acknowledgments.
pub(crate) fn selective_syn(sequence: u32, window: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let options = [etherparse::TcpOptionElement::SelectiveAcknowledgementPermitted];
    let ip = PacketBuilder::ipv4(CLIENT, TARGET, 64);
    ip.tcp(PORT, SERVICE, sequence, window).syn().options(&options).unwrap().write(&mut bytes, &[]).unwrap();
    bytes
}
