//! Packets, and clients that move data through a stack.

use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, TcpOptionElement};
use portcullis_netstack::packet::{ChecksumPolicy, IpPacket, Transport};
use portcullis_netstack::segment::Offload;
use portcullis_netstack::{FlowId, Handled, Ingress, IngressId, Stack, StackLimits};

const CLIENT: [u8; 4] = [100, 96, 0, 2];
const TARGET: [u8; 4] = [10, 20, 0, 80];
const CLIENT6: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const TARGET6: [u8; 16] = [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80];
const PORT: u16 = 51_000;
const SERVICE: u16 = 443;
const INGRESS: Ingress = Ingress { id: IngressId(1), mtu: 1420 };

/// Bytes of payload of a full segment in a tunnel.
pub(crate) const SEGMENT: usize = 1_360;
/// The clients scale their window by this many bits.
const WINDOW_SCALE: u8 = 8;
/// How far time goes with every packet.
const STEP: Duration = Duration::from_micros(10);

/// A TCP segment with data and, as Linux sends it, timestamps.
pub(crate) fn tcp(v6: bool, payload: usize) -> Vec<u8> {
    let ip = if v6 { PacketBuilder::ipv6(CLIENT6, TARGET6, 64) } else { PacketBuilder::ipv4(CLIENT, TARGET, 64) };
    let options = [TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(1, 2)];
    let tcp = ip.tcp(PORT, SERVICE, 1, 500).ack(1).options(&options).expect("they fit");
    written(|bytes| tcp.write(bytes, &vec![0x5a; payload]))
}

/// A UDP datagram of a client port.
pub(crate) fn udp(port: u16, payload: usize) -> Vec<u8> {
    let udp = PacketBuilder::ipv4(CLIENT, TARGET, 64).udp(port, SERVICE);
    written(|bytes| udp.write(bytes, &vec![0x5a; payload]))
}

/// A super-packet of 64 KB, and what splits it.
pub(crate) fn super_packet() -> (Vec<u8>, Offload) {
    (tcp(false, 65_535 - 52), Offload { segment_size: Some(SEGMENT as u16) })
}

fn written<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes).expect("memory takes everything");
    bytes
}

fn stack(now: Instant) -> Stack {
    let limits = StackLimits {
        tcp_buffer: 256 * 1024,
        opening: Duration::from_secs(10),
        syn_received: Duration::from_secs(10),
        tcp_user_timeout: Duration::from_secs(60),
        tcp_idle: Duration::from_secs(7_200),
        udp_idle_one_way: Duration::from_secs(30),
        udp_idle: Duration::from_secs(120),
        echo_idle: Duration::from_secs(30),
        batch: 256 * 1024,
    };
    Stack::new(limits, now)
}

fn handle(stack: &mut Stack, now: Instant, bytes: &[u8]) -> FlowId {
    let packet = IpPacket::parse(bytes, ChecksumPolicy::Trusted).expect("it is made here");
    match stack.handle_packet(now, INGRESS, &packet) {
        Ok(Handled::Opened(id) | Handled::Known(id) | Handled::Passes(id, _)) => id,
        Err(reason) => panic!("dropped: {reason}"),
    }
}

/// Many UDP associations.
pub(crate) struct Associations {
    stack: Stack,
    now: Instant,
    packets: Vec<Vec<u8>>,
    next: usize,
}

impl Associations {
    /// As many, open.
    pub(crate) fn new(now: Instant, count: u16) -> Self {
        let packets: Vec<Vec<u8>> = (0..count).map(|number| udp(10_000 + number, 100)).collect();
        let mut stack = stack(now);
        for packet in &packets {
            handle(&mut stack, now, packet);
        }
        assert_eq!(stack.len(), packets.len());
        Self { stack, now, packets, next: 0 }
    }

    /// A datagram of one of them, handled and delivered.
    pub(crate) fn datagram(&mut self) {
        // A prime stride: neighbours in time are none in the table.
        self.next = (self.next + 7_919) % self.packets.len();
        if let Some(packet) = self.packets.get(self.next) {
            let id = handle(&mut self.stack, self.now, packet);
            self.stack.delivered(id, 100);
        }
    }
}

/// A client with one TCP connection that loses nothing.
pub(crate) struct Connection {
    stack: Stack,
    now: Instant,
    id: FlowId,
    /// A full segment, and a bare acknowledgment.
    data: Vec<u8>,
    ack: Vec<u8>,
    sequence: u32,
    acknowledged: u32,
}

impl Connection {
    /// One that is established.
    pub(crate) fn new(now: Instant) -> Self {
        let mut stack = stack(now);
        let options = [
            TcpOptionElement::MaximumSegmentSize(SEGMENT as u16),
            TcpOptionElement::WindowScale(WINDOW_SCALE),
            TcpOptionElement::SelectiveAcknowledgementPermitted,
        ];
        let ip = || PacketBuilder::ipv4(CLIENT, TARGET, 64);
        let syn = ip().tcp(PORT, SERVICE, 0, u16::MAX).syn().options(&options).expect("they fit");
        let id = handle(&mut stack, now, &written(|bytes| syn.write(bytes, &[])));
        stack.accept(now, id, 1, Box::new(()));
        let of = |payload: usize| {
            written(|bytes| ip().tcp(PORT, SERVICE, 0, u16::MAX).ack(0).write(bytes, &vec![0x5a; payload]))
        };
        let (data, ack) = (of(SEGMENT), of(0));
        stack.transmit(now, id);
        let mut connection = Self { stack, now, id, data, ack, sequence: 1, acknowledged: 0 };
        connection.drain();
        connection.acknowledge();
        connection
    }

    /// So many full segments of the client, taken by the target and acknowledged.
    pub(crate) fn upload(&mut self, segments: usize) {
        for _ in 0..segments {
            let sequence = self.sequence;
            self.sequence = self.sequence.wrapping_add(SEGMENT as u32);
            put(&mut self.data, sequence, self.acknowledged);
            self.now += STEP;
            handle(&mut self.stack, self.now, &self.data);
        }
        let mut taken = 0;
        while let Some(id) = self.stack.poll_changed() {
            while let Some(len) = self.stack.recv_with(self.now, id, |ring| (ring.len(), ring.len())) {
                taken += len;
            }
            self.stack.transmit(self.now, id);
        }
        assert_eq!(taken, segments * SEGMENT, "nothing is lost");
        self.drain();
    }

    /// So many bytes of the target, sent and acknowledged by the client.
    pub(crate) fn download(&mut self, mut bytes: usize) {
        let goal = self.acknowledged.wrapping_add(bytes as u32);
        while self.acknowledged != goal {
            while bytes > 0 {
                let written = self.stack.send_with(self.now, self.id, |ring| {
                    let len = ring.len().min(bytes);
                    (len, len)
                });
                bytes -= written.unwrap_or_default();
                if written.is_none() {
                    break;
                }
            }
            self.stack.transmit(self.now, self.id);
            self.drain();
            self.acknowledge();
            while self.stack.poll_changed().is_some() {}
        }
    }

    /// Takes what the stack sent.
    fn drain(&mut self) {
        let mut acknowledged = self.acknowledged;
        self.stack.batch().drain(|_, packet, _| {
            // Its checksum is not there yet, and the parser must not miss it.
            if let Ok(packet) = IpPacket::parse(packet, ChecksumPolicy::Trusted)
                && let Transport::Tcp(segment) = packet.transport()
            {
                acknowledged = segment.sequence.wrapping_add(segment.sequence_len());
            }
        });
        self.acknowledged = acknowledged;
    }

    fn acknowledge(&mut self) {
        put(&mut self.ack, self.sequence, self.acknowledged);
        self.now += STEP;
        handle(&mut self.stack, self.now, &self.ack);
    }
}

/// Writes the numbers of a TCP segment over IPv4. Its checksum is then wrong, which a tunnel would have seen to.
fn put(packet: &mut [u8], sequence: u32, acknowledgment: u32) {
    if let Some(numbers) = packet.get_mut(24..32) {
        let both = u64::from(sequence) << 32 | u64::from(acknowledgment);
        numbers.copy_from_slice(&both.to_be_bytes());
    }
}
