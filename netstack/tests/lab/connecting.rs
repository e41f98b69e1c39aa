//! Connections that the stack opens itself, to a target that is a stack too.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{Icmpv4Type, PacketBuilder};
use portcullis_netstack::packet::{Arrival, ChecksumPolicy, IpPacket};
use portcullis_netstack::{
    CloseCause, DropReason, FiveTuple, FlowId, Handled, Ingress, IngressId, Protocol, Refusal, Stack,
};

use crate::lab::{DOWN, Lab, MTU, Reception, Target, UP, compare, fill, limits};
use crate::link::{Link, Path};
use crate::raw::{CLIENT, CLIENT6, PORT, SERVICE, TARGET, TARGET6};
use crate::world::CLEAN;

/// The site.
const THERE: Ingress = Ingress { id: IngressId(7), mtu: MTU };
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection of ours, and the target it goes to.
struct Call {
    near: Stack,
    far: Lab,
    id: FlowId,
    tuple: FiveTuple,
    out: Link,
    home: Link,
    /// Bytes we have to send, and what has gone and come.
    send: u64,
    sent: u64,
    received: u64,
    closed: bool,
    heard_end: bool,
    /// Packets over so many bytes do not get there, and somebody says so.
    narrow: usize,
}

impl Call {
    fn new(v6: bool, path: Path, send: u64, reception: Reception) -> Self {
        let mut far = Lab::new(limits());
        far.reception = reception;
        let ends: (IpAddr, IpAddr) = if v6 { (TARGET6.into(), CLIENT6.into()) } else { (TARGET.into(), CLIENT.into()) };
        let tuple = FiveTuple {
            protocol: Protocol::Tcp,
            source: ends.0,
            source_port: SERVICE,
            destination: ends.1,
            destination_port: PORT,
        };
        let now = far.instant();
        let mut near = Stack::new(limits(), now);
        let id = near.connect((now, now + PATIENCE), THERE, tuple, 99, Box::new(())).unwrap();
        assert!(near.connect((now, now + PATIENCE), THERE, tuple, 99, Box::new(())).is_none(), "one a tuple");
        Self {
            near,
            far,
            id,
            tuple,
            out: Link::new(path, 1),
            home: Link::new(path, 2),
            send,
            sent: 0,
            received: 0,
            closed: false,
            heard_end: false,
            narrow: usize::MAX,
        }
    }

    /// Hands in a packet of the target.
    fn take(&mut self, packet: &[u8]) -> Result<Handled, DropReason> {
        let packet = IpPacket::parse(packet, ChecksumPolicy::Verify).unwrap();
        assert_eq!(self.near.own_connection(THERE.id, packet.tuple()), self.near.key(self.id).map(|_| self.id));
        self.near.handle_packet(self.far.instant(), THERE, &packet)
    }

    /// Somebody on the way says that a packet is too big.
    fn too_big(&mut self, packet: &[u8]) {
        let mut bytes = Vec::new();
        let icmp = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: u16::try_from(self.narrow).unwrap(),
        });
        PacketBuilder::ipv4([10, 20, 0, 1], CLIENT, 64).icmpv4(icmp).write(&mut bytes, &packet[..28]).unwrap();
        let Ok(Arrival::Icmp(message)) = Arrival::parse(&bytes, ChecksumPolicy::Verify) else { panic!("an error") };
        assert_eq!(message.about().turned(), self.tuple);
        self.near.hear_error(self.far.instant(), self.id, &message).unwrap();
    }

    fn settle(&mut self) {
        let now = self.far.instant();
        while let Some(packet) = self.home.receive(self.far.now) {
            // What is lost comes again.
            let _ = self.take(&packet);
        }
        self.near.handle_timeout(now, |_| {});
        for _ in 0..1_000 {
            while let Some(id) = self.near.poll_changed() {
                assert_eq!(id, self.id);
                self.move_bytes();
                if self.near.batch().is_full() {
                    break;
                }
            }
            let mut made = Vec::new();
            self.near.batch().drain_complete(|to, packet| {
                assert!(to == THERE.id && packet.len() <= usize::from(MTU));
                made.push(packet.to_vec());
            });
            for packet in made {
                if packet.len() > self.narrow {
                    self.too_big(&packet);
                } else {
                    self.out.send(self.far.now, packet);
                }
            }
            if self.near.changed() == 0 {
                break;
            }
        }
        assert_eq!(self.near.changed(), 0, "one instant ends");
        while let Some(packet) = self.out.receive(self.far.now) {
            let _ = self.far.inject(&packet);
        }
        self.far.settle();
        for packet in self.far.take_out() {
            self.home.send(self.far.now, packet);
        }
    }

    fn move_bytes(&mut self) {
        let (now, id) = (self.far.instant(), self.id);
        if self.near.is_established(id) {
            while self.sent < self.send {
                let (sent, left) = (self.sent, usize::try_from(self.send - self.sent).unwrap());
                let step = self.near.send_with(now, id, |ring| {
                    let len = ring.len().min(left);
                    fill(UP, sent, &mut ring[..len]);
                    (len, len)
                });
                let Some(len) = step else { break };
                self.sent += len as u64;
            }
            if self.sent == self.send && !self.closed {
                self.closed = true;
                self.near.close(id);
            }
            let from = self.received;
            while let Some(len) = self.near.recv_with(now, id, |ring| {
                compare(DOWN, self.received, ring);
                (ring.len(), ring.len())
            }) {
                self.received += len as u64;
            }
            assert!(self.received == from || !self.heard_end, "nothing comes behind the end");
            self.heard_end |= self.near.client_finished(id);
        }
        self.near.transmit(now, id);
    }

    /// Goes on until the connection is over. Returns why it is.
    fn run(&mut self, patience: Duration) -> Option<CloseCause> {
        let (base, end) = (self.far.instant() - self.far.now, self.far.now + patience);
        loop {
            self.settle();
            let cause = self.near.cause(self.id);
            if cause.is_some() {
                return cause;
            }
            let next = [
                self.out.next_arrival(),
                self.home.next_arrival(),
                self.far.next_timeout(),
                self.near.poll_timeout().map(|at| at - base),
            ];
            match next.into_iter().flatten().min() {
                Some(next) if next <= end => self.far.now = next.max(self.far.now),
                _ => return None,
            }
        }
    }

    /// Everything arrived, both ways, and both ends know.
    fn is_whole(&mut self, down: u64) {
        assert_eq!(self.run(Duration::from_secs(300)), Some(CloseCause::Orderly));
        assert_eq!((self.sent, self.received, self.heard_end), (self.send, down, true));
        // The far end hears our last acknowledgment, the first or another.
        for _ in 0..100 {
            self.far.now += Duration::from_millis(50);
            self.settle();
        }
        assert_eq!(self.far.ended.len(), 1);
        let ended = self.far.ended[0];
        assert_eq!((ended.cause, ended.traffic.bytes_up), (CloseCause::Orderly, self.send));
        // What it may still say is answered, and then the port is another's.
        self.near.release(self.id);
        self.far.now += Duration::from_secs(30);
        self.settle();
        if self.near.key(self.id).is_some() {
            self.move_bytes();
            assert!(self.near.is_gone(self.id));
            self.near.remove(self.id);
        }
        assert!(self.near.is_empty());
    }
}

#[test]
fn bytes_arrive_both_ways() {
    for v6 in [false, true] {
        for (loss, reordered) in [(0, 0), (30, 0), (0, 50), (50, 50)] {
            let path = Path { loss, reordered, ..CLEAN };
            for (up, down) in [(0, 0), (1, 1), (300_000, 0), (0, 300_000), (150_000, 150_001)] {
                Call::new(v6, path, up, Reception::Accept(Target::sends(down))).is_whole(down);
            }
        }
    }
}

#[test]
fn a_target_that_does_not_listen_resets() {
    let mut call = Call::new(false, CLEAN, 0, Reception::Refuse(Refusal::Reset));
    assert_eq!(call.run(PATIENCE), Some(CloseCause::ClientReset));
    assert!(call.far.now < Duration::from_millis(100));
}

#[test]
fn a_target_that_says_nothing_is_asked_again_and_then_given_up() {
    for reception in [Reception::Refuse(Refusal::Silent), Reception::Hold] {
        let mut call = Call::new(true, CLEAN, 0, reception);
        assert_eq!(call.run(2 * PATIENCE), Some(CloseCause::Timeout));
        assert!(call.far.now >= PATIENCE && call.far.now < PATIENCE + Duration::from_millis(100));
        assert!(
            call.far.opened.len() > 1 || call.near.traffic(call.id).packets_down > 1,
            "a lost SYN is repeated: {:?}",
            call.near.traffic(call.id)
        );
    }
}

#[test]
fn a_router_may_say_that_there_is_no_way() {
    let mut call = Call::new(false, CLEAN, 0, Reception::Refuse(Refusal::Silent));
    call.settle();
    let mut quoted = Vec::new();
    PacketBuilder::ipv4(CLIENT, TARGET, 60).tcp(PORT, SERVICE, 1, 1).write(&mut quoted, &[]).unwrap();
    let mut bytes = Vec::new();
    let icmp = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Host);
    PacketBuilder::ipv4([10, 20, 0, 1], CLIENT, 64).icmpv4(icmp).write(&mut bytes, &quoted[..28]).unwrap();
    let Ok(Arrival::Icmp(message)) = Arrival::parse(&bytes, ChecksumPolicy::Verify) else { panic!("an error") };
    call.near.hear_error(call.far.instant(), call.id, &message).unwrap();
    assert_eq!(call.near.cause(call.id), Some(CloseCause::Unreachable));

    // Once it has answered, an error is nothing that ends it (RFC 5461).
    let mut call = Call::new(false, CLEAN, 1, Reception::Accept(Target::stays_open(0)));
    call.run(Duration::from_secs(1));
    assert_eq!(call.near.hear_error(call.far.instant(), call.id, &message), Err(DropReason::IcmpType));
    assert_eq!(call.near.cause(call.id), None);
}

#[test]
fn a_narrow_path_is_learnt() {
    let mut call = Call::new(false, CLEAN, 200_000, Reception::Accept(Target::sends(0)));
    call.narrow = 700;
    call.is_whole(0);
    assert!(call.far.now < Duration::from_secs(60), "{:?}", call.far.now);
}

#[test]
fn a_target_that_remembers_an_older_connection_is_asked_again_at_once() {
    let mut call = Call::new(false, CLEAN, 1, Reception::Accept(Target::sends(1)));
    call.settle();
    // In TIME-WAIT it says what it expects (RFC 9293 section 3.10.7.4), and takes a reset for the end of that.
    let mut remembers = Vec::new();
    PacketBuilder::ipv4(TARGET, CLIENT, 60).tcp(SERVICE, PORT, 77, 1000).ack(88).write(&mut remembers, &[]).unwrap();
    // The SYN is lost.
    call.out = Link::new(CLEAN, 1);
    assert_eq!(call.take(&remembers), Err(DropReason::UnacceptableSegment));
    let mut made = Vec::new();
    call.near.batch().drain_complete(|_, packet| made.push(packet.to_vec()));
    let flags: Vec<u8> = made.iter().map(|packet| packet[33]).collect();
    assert_eq!(flags, [0x04, 0x02], "a reset and a SYN");
    // Not again and again.
    assert_eq!(call.take(&remembers), Err(DropReason::UnacceptableSegment));
    let mut again = 0;
    call.near.batch().drain_complete(|_, packet| again += usize::from(packet[33] == 0x02));
    assert_eq!(again, 0);
    call.out.send(call.far.now, made.remove(1));
    call.is_whole(1);
}

#[test]
fn nobody_opens_a_connection_to_it() {
    let mut call = Call::new(false, CLEAN, 0, Reception::Accept(Target::sends(0)));
    assert_eq!(call.run(PATIENCE), Some(CloseCause::Orderly));
    let mut syn = Vec::new();
    PacketBuilder::ipv4(TARGET, CLIENT, 60).tcp(SERVICE, PORT, 77, 1000).syn().write(&mut syn, &[]).unwrap();
    assert!(!matches!(call.take(&syn), Ok(Handled::Opened(_))));
    // Before it is answered neither.
    let mut call = Call::new(false, CLEAN, 0, Reception::Hold);
    call.settle();
    assert_eq!(call.take(&syn), Err(DropReason::UnacceptableSegment));
}
