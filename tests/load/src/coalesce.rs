//! Neighbouring TCP segments become super-packets, as the kernel's GRO makes them.
//!
//! What a tunnel delivers is one segment a packet; a TUN device with `virtio_net_hdr` takes dozens in one write. A run
//! is a series of segments of one connection that differ in nothing but their payload and their place: same addresses,
//! ports, acknowledgment number, window and options, sequence numbers without a gap, all as long as the first but for
//! the last. PSH, FIN or a shorter segment ends it. A connection's packets leave in the order they came.
//!
//! The gateway's `Coalescer` joins for its own stack, which does not mind sizes; the kernel wants them equal.

use portcullis_netstack::segment::Offload;
use smoltcp::wire::checksum;

/// Longest IP packet.
const MAX_PACKET: usize = 65_535;
/// Runs that are open at a time; the oldest makes room.
const MAX_RUNS: usize = 32;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const TCP: u8 = 6;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

/// What is waiting for its next segment.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    runs: Vec<Run>,
    /// Memory of former runs.
    spare: Vec<Vec<u8>>,
}

/// The segments of one connection so far: the headers of the first, and the payload of all.
#[derive(Debug)]
struct Run {
    packet: Vec<u8>,
    shape: Shape,
    segment: usize,
    count: usize,
    next: u32,
}

/// Where the parts of a TCP packet are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    v6: bool,
    tcp: usize,
    payload: usize,
}

impl Coalescer {
    /// Takes a packet whose checksums are right. Hands packets to `emit` that can wait no longer, with what they lack.
    pub(crate) fn push(&mut self, packet: &[u8], mut emit: impl FnMut(&mut [u8], Option<Offload>)) {
        let Some(shape) = Shape::of(packet) else { return self.pass(packet, &mut emit) };
        let place = self.runs.iter().position(|run| run.is_of(packet, shape));
        let Some(segment) = Segment::of(packet, shape) else {
            // It must not overtake what came before.
            if let Some(place) = place {
                self.finish(place, &mut emit);
            }
            return self.pass(packet, &mut emit);
        };
        if let Some(place) = place {
            if let Some(run) = self.runs.get_mut(place)
                && run.takes(packet, segment)
            {
                run.append(segment);
                if segment.ends || segment.payload.len() < run.segment {
                    self.finish(place, &mut emit);
                }
                return;
            }
            self.finish(place, &mut emit);
        }
        if self.runs.len() >= MAX_RUNS {
            self.finish(0, &mut emit);
        }
        let mut memory = self.spare.pop().unwrap_or_default();
        memory.clear();
        memory.extend_from_slice(packet);
        self.runs.push(Run { packet: memory, shape, segment: segment.payload.len(), count: 1, next: segment.next() });
        if segment.ends {
            self.finish(self.runs.len() - 1, &mut emit);
        }
    }

    /// Hands on everything that waits: nothing more comes soon.
    pub(crate) fn flush(&mut self, mut emit: impl FnMut(&mut [u8], Option<Offload>)) {
        while !self.runs.is_empty() {
            self.finish(0, &mut emit);
        }
    }

    /// Hands a packet on as it is.
    fn pass(&mut self, packet: &[u8], emit: &mut impl FnMut(&mut [u8], Option<Offload>)) {
        let mut memory = self.spare.pop().unwrap_or_default();
        memory.clear();
        memory.extend_from_slice(packet);
        emit(&mut memory, None);
        self.spare.push(memory);
    }

    fn finish(&mut self, place: usize, emit: &mut impl FnMut(&mut [u8], Option<Offload>)) {
        let mut run = self.runs.remove(place);
        let segment_size = (run.count > 1).then(|| u16::try_from(run.segment).ok()).flatten();
        if run.count > 1 {
            run.complete();
        }
        emit(&mut run.packet, Some(Offload { segment_size }));
        self.spare.push(run.packet);
    }
}

impl Run {
    /// Whether a packet is of this connection, in this direction.
    fn is_of(&self, packet: &[u8], shape: Shape) -> bool {
        self.shape.v6 == shape.v6
            && addresses(&self.packet, self.shape) == addresses(packet, shape)
            && part(&self.packet, self.shape.tcp, 4) == part(packet, shape.tcp, 4)
    }

    /// Whether a packet of this connection continues the run.
    fn takes(&self, packet: &[u8], segment: Segment<'_>) -> bool {
        let (tcp, options) = (self.shape.tcp, self.shape.payload - self.shape.tcp - TCP_HEADER);
        let like = |at, length| part(&self.packet, at, length) == part(packet, at, length);
        // Service and hop limit; with IPv4 the fragment bits, with IPv6 the flow label.
        let network = match self.shape.v6 {
            false => like(1, 1) && like(6, 3),
            true => like(0, 4) && like(7, 1),
        };
        network
            && segment.sequence == self.next
            && segment.payload.len() <= self.segment
            && self.packet.len() + segment.payload.len() <= MAX_PACKET
            && segment.shape.payload == self.shape.payload
            // Acknowledgment, length of the header, then window and options; flags apart.
            && like(tcp + 8, 5)
            && like(tcp + 14, 2)
            && like(tcp + TCP_HEADER, options)
            && self.packet.get(tcp + 13).is_some_and(|flags| *flags == segment.flags & !(FIN | PSH))
    }

    fn append(&mut self, segment: Segment<'_>) {
        self.packet.extend_from_slice(segment.payload);
        self.count += 1;
        self.next = segment.next();
        if let Some(flags) = self.packet.get_mut(self.shape.tcp + 13) {
            *flags |= segment.flags & (FIN | PSH);
        }
    }

    /// Makes the IP header that of the whole.
    fn complete(&mut self) {
        let length = u16::try_from(self.packet.len()).unwrap_or(u16::MAX);
        if self.shape.v6 {
            put16(&mut self.packet, 4, length - 40);
        } else {
            put16(&mut self.packet, 2, length);
            put16(&mut self.packet, 10, 0);
            let sum = !checksum::data(part(&self.packet, 0, IPV4_HEADER));
            put16(&mut self.packet, 10, sum);
        }
    }
}

impl Shape {
    /// Of a TCP packet without IP options, extension headers or fragments, as long as it says.
    fn of(packet: &[u8]) -> Option<Self> {
        let (v6, tcp, protocol, length) = match packet.first()? {
            0x45 if word(packet, 6)? & 0x3fff == 0 => (false, IPV4_HEADER, 9, usize::from(word(packet, 2)?)),
            0x60..=0x6f => (true, IPV6_HEADER, 6, usize::from(word(packet, 4)?) + IPV6_HEADER),
            _ => return None,
        };
        let header = usize::from(packet.get(tcp + 12)? >> 4) * 4;
        let sound = *packet.get(protocol)? == TCP
            && length == packet.len()
            && header >= TCP_HEADER
            && tcp + header <= packet.len();
        sound.then_some(Self { v6, tcp, payload: tcp + header })
    }
}

/// A segment that can be part of a run.
#[derive(Debug, Clone, Copy)]
struct Segment<'p> {
    shape: Shape,
    sequence: u32,
    flags: u8,
    payload: &'p [u8],
    ends: bool,
}

impl<'p> Segment<'p> {
    /// `None`: it has no payload, or says something else than "here is more".
    fn of(packet: &'p [u8], shape: Shape) -> Option<Self> {
        let flags = *packet.get(shape.tcp + 13)?;
        let payload = packet.get(shape.payload..)?;
        let plain = flags & ACK != 0 && flags & !(ACK | FIN | PSH | ECE) == 0 && !payload.is_empty();
        let sequence = u32::from_be_bytes(packet.get(shape.tcp + 4..shape.tcp + 8)?.try_into().ok()?);
        plain.then_some(Self { shape, sequence, flags, payload, ends: flags & (FIN | PSH) != 0 })
    }

    /// The sequence number that follows.
    fn next(&self) -> u32 {
        self.sequence.wrapping_add(u32::try_from(self.payload.len()).unwrap_or(0))
    }
}

fn addresses(packet: &[u8], shape: Shape) -> &[u8] {
    if shape.v6 { part(packet, 8, 32) } else { part(packet, 12, 8) }
}

fn part(packet: &[u8], at: usize, length: usize) -> &[u8] {
    packet.get(at..at + length).unwrap_or_default()
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    packet.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn put16(packet: &mut [u8], at: usize, value: u16) {
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_netstack::segment;

    /// A super-packet of one connection.
    fn whole(v6: bool, port: u8, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = if v6 { vec![0x60; 4] } else { vec![0x45, 0] };
        if v6 {
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend([TCP, 64]);
            packet.extend([0x20; 32]);
        } else {
            packet.extend((40 + payload.len() as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = !checksum::data(&packet);
            put16(&mut packet, 10, sum);
        }
        packet.extend([0, 80, 0, port]);
        packet.extend(sequence.to_be_bytes());
        packet.extend([0, 0, 0, 9, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        packet.extend(payload);
        packet
    }

    fn cut(packet: &[u8], size: u16) -> Vec<Vec<u8>> {
        let mut made = Vec::new();
        segment::segments(packet, Offload { segment_size: Some(size) }, &mut Vec::new(), |one| made.push(one.to_vec()));
        made
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    /// What comes out for packets, without the TCP checksums of super-packets.
    fn joined(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Option<u16>)> {
        let mut coalescer = Coalescer::default();
        let mut out = Vec::new();
        let mut emit = |packet: &mut [u8], offload: Option<Offload>| {
            let mut packet = packet.to_vec();
            if let Some(shape) = Shape::of(&packet) {
                put16(&mut packet, shape.tcp + 16, 0);
            }
            out.push((packet, offload.and_then(|offload| offload.segment_size)));
        };
        for packet in packets {
            coalescer.push(packet, &mut emit);
        }
        coalescer.flush(&mut emit);
        out
    }

    #[test]
    fn what_was_cut_is_joined_again() {
        for v6 in [false, true] {
            for flags in [ACK, ACK | PSH, ACK | FIN, ACK | ECE | PSH] {
                for (length, size) in [(10_000, 1000), (10_001, 1000), (1, 1000), (64_000, 1388), (999, 1000)] {
                    let packet = whole(v6, 1, u32::MAX - 5000, flags, &bytes(length));
                    let expected = (length > usize::from(size)).then_some(size);
                    assert_eq!(joined(&cut(&packet, size)), [(packet, expected)], "{v6} {flags} {length}");
                }
            }
        }
    }

    #[test]
    fn connections_do_not_mix() {
        let (one, other) = (whole(false, 1, 7, ACK, &bytes(3000)), whole(false, 2, 7, ACK, &bytes(3000)));
        let (first, second) = (cut(&one, 1000), cut(&other, 1000));
        let mixed: Vec<_> = first.into_iter().zip(second).flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(joined(&mixed), [(one, Some(1000)), (other, Some(1000))]);
    }

    #[test]
    fn a_gap_or_a_change_begins_anew() {
        let segments = cut(&whole(false, 1, 7, ACK, &bytes(5000)), 1000);
        let counts = |packets: &[Vec<u8>]| -> Vec<usize> {
            joined(packets).iter().map(|(packet, _)| (packet.len() - 40).div_ceil(1000)).collect()
        };
        assert_eq!(counts(&segments), [5]);
        let gap: Vec<_> = [0, 1, 3, 4].map(|at: usize| segments[at].clone()).into();
        assert_eq!(counts(&gap), [2, 2]);
        for at in [1, 8, 20 + 8, 20 + 13, 20 + 14] {
            let mut changed = segments.clone();
            for packet in &mut changed[2..] {
                packet[at] ^= 0x40;
            }
            assert_eq!(counts(&changed), [2, 3], "{at}");
        }
    }

    #[test]
    fn what_cannot_wait_keeps_its_order() {
        let mut packets = cut(&whole(false, 1, 7, ACK, &bytes(2000)), 1000);
        let pure = whole(false, 1, 2007, ACK, &[]);
        let reset = whole(false, 1, 2007, 0x04, &[]);
        let ping = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packets.extend([ping.clone(), pure.clone(), reset.clone()]);
        let out: Vec<_> = joined(&packets).into_iter().map(|(packet, _)| packet).collect();
        let whole = whole(false, 1, 7, ACK, &bytes(2000));
        assert_eq!(out, [ping, whole, pure, reset], "others may overtake, its own may not");
    }

    #[test]
    fn longer_than_a_packet_it_does_not_get() {
        let first = cut(&whole(true, 1, 7, ACK, &bytes(60_000)), 1000);
        let second = cut(&whole(true, 1, 60_007, ACK, &bytes(10_000)), 1000);
        let out = joined(&[first, second].concat());
        assert_eq!(out.iter().map(|(packet, _)| packet.len()).collect::<Vec<_>>(), [65_060, 5_060]);
    }

    #[test]
    fn nonsense_passes() {
        let sound = whole(false, 1, 7, ACK, &bytes(100));
        for length in 0..sound.len() {
            assert_eq!(joined(&[sound[..length].to_vec()]).len(), 1);
        }
    }
}
