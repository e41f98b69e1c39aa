//! Neighbouring TCP segments of one flow, joined into one packet before the stack sees them: what the receive offload of
//! a network card does (GRO). A tunnel hands up segment after segment; joined, a batch of them costs one lookup, one
//! turn through smoltcp and one acknowledgment.
//!
//! Only segments that differ in nothing but their data are joined, and nothing overtakes anything of its own flow.

use crate::DropReason;
use crate::packet::build::{IPV4_HEADER, put8, put16};
use crate::packet::{ChecksumPolicy, IpPacket, TcpSegment, Transport, checksum};
use crate::segment::{Layout, Offload};
use crate::tuple::{FlowKey, IngressId};

/// Flows whose segments are joined at a time, as many as GRO has.
const RUNS: usize = 8;
/// Most bytes of a joined packet. An IPv4 packet has no more than 65,535.
const LONGEST: usize = 65_000;

const FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;

/// Segments that wait for their neighbours, until [flushed](Self::flush): at most 8 flows, and 65,000 bytes of each.
///
/// `T`: what the caller knows of where packets come from; a joined packet is handed back with that of its first part.
#[derive(Debug)]
pub struct Coalescer<T> {
    /// Oldest first.
    runs: Vec<Run<T>>,
    /// Memory of earlier runs.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Run<T> {
    key: FlowKey,
    origin: T,
    layout: Layout,
    /// Sequence number after the last byte.
    next: u32,
    /// Bytes of data of the first segment.
    size: usize,
    segments: u32,
    bytes: Vec<u8>,
}

impl<T> Default for Coalescer<T> {
    fn default() -> Self {
        Self { runs: Vec::with_capacity(RUNS), spare: Vec::with_capacity(RUNS + 1) }
    }
}

impl<T: Clone> Coalescer<T> {
    /// Takes a packet that came from `from`. One that may have neighbours is kept; what cannot wait, and what must not be
    /// overtaken by it, goes to `handle` at once.
    pub fn push(
        &mut self,
        from: IngressId,
        origin: &T,
        packet: &IpPacket<'_>,
        mut handle: impl FnMut(IngressId, &T, &IpPacket<'_>),
    ) {
        let key = FlowKey { ingress: from, tuple: packet.tuple() };
        let Transport::Tcp(segment) = packet.transport() else { return handle(from, origin, packet) };
        let layout = joinable(packet, segment);
        if let Some(place) = self.runs.iter().position(|run| run.key == key) {
            if let (Some(run), Some(layout)) = (self.runs.get_mut(place), layout)
                && run.is_followed_by(layout, packet, segment)
            {
                return run.append(packet, segment);
            }
            let run = self.runs.remove(place);
            self.finish(run, &mut handle);
        }
        let Some(layout) = layout else { return handle(from, origin, packet) };
        if self.runs.len() == RUNS {
            let oldest = self.runs.remove(0);
            self.finish(oldest, &mut handle);
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.extend_from_slice(packet.bytes());
        let next = segment.sequence.wrapping_add(segment.sequence_len());
        self.runs.push(Run {
            key,
            origin: origin.clone(),
            layout,
            next,
            size: segment.payload.len(),
            segments: 1,
            bytes,
        });
    }

    /// Hands over everything that waits.
    pub fn flush(&mut self, mut handle: impl FnMut(IngressId, &T, &IpPacket<'_>)) {
        let mut runs = std::mem::take(&mut self.runs);
        for run in runs.drain(..) {
            self.finish(run, &mut handle);
        }
        self.runs = runs;
    }

    fn finish(&mut self, mut run: Run<T>, handle: &mut impl FnMut(IngressId, &T, &IpPacket<'_>)) {
        run.complete();
        if let Ok(packet) = run.packet() {
            handle(run.key.ingress, &run.origin, &packet);
        }
        run.bytes.clear();
        self.spare.push(run.bytes);
    }
}

/// Where the parts of a packet are that may be joined with neighbours: an ordinary data segment, without IP options.
fn joinable(packet: &IpPacket<'_>, segment: &TcpSegment<'_>) -> Option<Layout> {
    let plain = segment.ack && !segment.syn && !segment.rst && !segment.payload.is_empty();
    let layout = Layout::of(packet.bytes())?;
    (plain && layout.payload + segment.payload.len() == packet.bytes().len()).then_some(layout)
}

impl<T> Run<T> {
    /// Whether a segment differs from those joined in nothing but its place and its data.
    fn is_followed_by(&self, layout: Layout, packet: &IpPacket<'_>, segment: &TcpSegment<'_>) -> bool {
        let (ours, theirs) = (&self.bytes, packet.bytes());
        let same = |from: usize, to: usize| ours.get(from..to) == theirs.get(from..to);
        let tcp = layout.tcp;
        let same_ip = if tcp == IPV4_HEADER {
            // Version, service and congestion bits; hop limit.
            same(0, 2) && same(8, 9)
        } else {
            same(0, 4) && same(7, 8)
        };
        let flags = |packet: &[u8]| packet.get(tcp + FLAGS).map(|flags| flags & !(PSH | FIN));
        layout == self.layout
            && segment.sequence == self.next
            // All of one size, but the last may be shorter: so they can be told apart again.
            && segment.payload.len() <= self.size
            && ours.len() == layout.payload + self.segments as usize * self.size
            && ours.len() + segment.payload.len() <= LONGEST
            && ours.get(tcp + FLAGS).is_some_and(|flags| flags & FIN == 0)
            && same_ip
            && same(tcp + 8, tcp + FLAGS)
            && flags(ours) == flags(theirs)
            // Window, and past the checksum the urgent pointer and the options.
            && same(tcp + 14, tcp + 16)
            && same(tcp + 18, layout.payload)
    }

    fn append(&mut self, packet: &IpPacket<'_>, segment: &TcpSegment<'_>) {
        let at = self.layout.tcp + FLAGS;
        let theirs = packet.bytes().get(at).copied().unwrap_or(0);
        let ours = self.bytes.get(at).copied().unwrap_or(0);
        put8(&mut self.bytes, at, ours | theirs);
        self.bytes.extend_from_slice(segment.payload);
        self.next = self.next.wrapping_add(segment.sequence_len());
        self.segments += 1;
    }

    fn packet(&self) -> Result<IpPacket<'_>, DropReason> {
        let packet = IpPacket::parse(&self.bytes, ChecksumPolicy::Trusted)?;
        if self.segments == 1 {
            return Ok(packet);
        }
        packet.with_offload(Offload { segment_size: u16::try_from(self.size).ok() })
    }

    /// Makes the IP header one of the whole. The TCP checksum is nobody's any more.
    fn complete(&mut self) {
        if self.segments == 1 {
            return;
        }
        let length = self.bytes.len();
        if self.layout.tcp == IPV4_HEADER {
            put16(&mut self.bytes, 2, u16::try_from(length).unwrap_or(0));
            put16(&mut self.bytes, 10, 0);
            let sum = !checksum::sum(self.bytes.get(..IPV4_HEADER).unwrap_or_default());
            put16(&mut self.bytes, 10, sum);
        } else {
            put16(&mut self.bytes, 4, u16::try_from(length - self.layout.tcp).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const FROM: IngressId = IngressId(7);

    /// One step of a client: which of two flows sends how many bytes, and what is special about the segment.
    #[derive(Debug, Clone)]
    struct Sent {
        second: bool,
        len: usize,
        special: Special,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Special {
        Nothing,
        Push,
        Fin,
        Gap,
        OtherWindow,
        PureAck,
        OtherPeer,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let special = prop_oneof![
            10 => Just(Special::Nothing),
            2 => Just(Special::Push),
            1 => Just(Special::Fin),
            1 => Just(Special::Gap),
            1 => Just(Special::OtherWindow),
            1 => Just(Special::PureAck),
            1 => Just(Special::OtherPeer),
        ];
        (any::<bool>(), 1..1400usize, special).prop_map(|(second, len, special)| Sent { second, len, special })
    }

    fn packet(v6: bool, port: u16, sequence: u32, window: u16, sent: &Sent, fill: u8) -> Vec<u8> {
        let payload = if sent.special == Special::PureAck { Vec::new() } else { vec![fill; sent.len] };
        let mut bytes = Vec::new();
        let build = |step: etherparse::PacketBuilderStep<etherparse::TcpHeader>| {
            let step = step.ack(77);
            let step = if sent.special == Special::Push { step.psh() } else { step };
            if sent.special == Special::Fin { step.fin() } else { step }
        };
        if v6 {
            let start = PacketBuilder::ipv6([0xfd; 16], [0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 64);
            build(start.tcp(port, 443, sequence, window)).write(&mut bytes, &payload).unwrap();
        } else {
            let start = PacketBuilder::ipv4([100, 96, 0, 2], [10, 0, 8, 10], 64);
            build(start.tcp(port, 443, sequence, window)).write(&mut bytes, &payload).unwrap();
        }
        bytes
    }

    proptest! {
        /// What comes out says the same as what went in: for each flow the same bytes at the same places in the same
        /// order, every end and acknowledgment, and as many segments.
        #[test]
        fn joined_packets_say_what_their_parts_said(v6: bool, steps in proptest::collection::vec(sent(), 0..60)) {
            let mut coalescer = Coalescer::default();
            let mut next = [u32::MAX - 3000, 5];
            // By flow; those of another peer with the same addresses after ours.
            let (mut expected, mut seen) = (vec![Vec::new(); 4], vec![Vec::new(); 4]);
            let mut segments = 0;
            let mut handle = |from: IngressId, _: &(), packet: &IpPacket<'_>| {
                let Transport::Tcp(segment) = packet.transport() else { panic!("{packet:?}") };
                let flow = usize::from(packet.tuple().source_port == 2000) + if from == FROM { 0 } else { 2 };
                segments += packet.count();
                let bytes = segment.payload.iter().enumerate();
                seen[flow].extend(bytes.map(|(i, &byte)| (segment.sequence.wrapping_add(i as u32), Some(byte))));
                if segment.payload.is_empty() || segment.fin {
                    seen[flow].push((segment.sequence.wrapping_add(segment.payload.len() as u32), None));
                }
                // Lengths and the IP checksum hold: parsing it again as it stands finds the same.
                let again = IpPacket::parse(packet.bytes(), ChecksumPolicy::Trusted).unwrap();
                assert_eq!(again.bytes().len(), packet.bytes().len());
            };
            for (index, step) in steps.iter().enumerate() {
                let flow = usize::from(step.second);
                if step.special == Special::Gap {
                    next[flow] = next[flow].wrapping_add(10_000);
                }
                let window = if step.special == Special::OtherWindow { 999 } else { 1000 };
                let bytes = packet(v6, 1000 + 1000 * flow as u16, next[flow], window, step, index as u8);
                let parsed = IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap();
                let Transport::Tcp(segment) = *parsed.transport() else { panic!("{parsed:?}") };
                let (from, to) = if step.special == Special::OtherPeer { (IngressId(8), flow + 2) } else { (FROM, flow) };
                let places = segment.payload.iter().enumerate();
                expected[to].extend(places.map(|(i, &byte)| (segment.sequence.wrapping_add(i as u32), Some(byte))));
                if segment.payload.is_empty() || segment.fin {
                    expected[to].push((segment.sequence.wrapping_add(segment.payload.len() as u32), None));
                }
                next[flow] = next[flow].wrapping_add(segment.sequence_len());
                coalescer.push(from, &(), &parsed, &mut handle);
            }
            coalescer.flush(&mut handle);
            prop_assert_eq!(segments, steps.len());
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn neighbours_become_one_and_strangers_do_not_pile_up() {
        let plain = Sent { second: false, len: 1000, special: Special::Nothing };
        let mut coalescer = Coalescer::default();
        let mut out = Vec::new();
        let mut handle = |_: IngressId, _: &(), packet: &IpPacket<'_>| out.push((packet.count(), packet.bytes().len()));
        for index in 0..100u32 {
            let bytes = packet(false, 1000, index * 1000, 500, &plain, 1);
            coalescer.push(FROM, &(), &IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap(), &mut handle);
        }
        coalescer.flush(&mut handle);
        assert_eq!(out, [(64, 64_040), (36, 36_040)]);

        let mut count = 0;
        for port in 1..=100 {
            let bytes = packet(true, port, 9, 500, &plain, 1);
            coalescer.push(FROM, &(), &IpPacket::parse(&bytes, ChecksumPolicy::Verify).unwrap(), |_, _, _| count += 1);
            assert!(coalescer.runs.len() <= RUNS && coalescer.spare.len() <= RUNS + 1);
        }
        coalescer.flush(|_, _, _| count += 1);
        assert_eq!(count, 100);
    }
}
