//! The stack with what a shard does around it: targets that send and take bytes, and the rules every step must keep.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portcullis_netstack::packet::{ChecksumPolicy, IpPacket};
use portcullis_netstack::{
    CloseCause, DropReason, FlowId, Handled, Ingress, IngressId, Refusal, RingMemory, Stack, StackLimits, Traffic,
};

/// MTU towards the client.
pub(crate) const MTU: u16 = 1280;
/// Looks at the timers at one instant that may be without an effect before it is called a busy loop.
const IDLE_LOOKS: usize = 3;
/// Turns of the loop within one instant before it is called endless.
const TURNS: usize = 20_000;

/// Limits like the gateway's own, with small buffers.
pub(crate) fn limits() -> StackLimits {
    StackLimits {
        tcp_buffer: 64 * 1024,
        opening: Duration::from_secs(10),
        syn_received: Duration::from_secs(10),
        tcp_user_timeout: Duration::from_secs(120),
        tcp_idle: Duration::from_secs(7440),
        udp_idle_one_way: Duration::from_secs(30),
        udp_idle: Duration::from_secs(120),
        echo_idle: Duration::from_secs(30),
        batch: 512 * 1024,
    }
}

/// The byte at `offset` of a stream named `stream`.
pub(crate) fn pattern(stream: u64, offset: u64) -> u8 {
    let x = (offset ^ stream.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 56) as u8
}

/// Fills `buffer` with the stream from `offset` on.
pub(crate) fn fill(stream: u64, offset: u64, buffer: &mut [u8]) {
    for (byte, at) in buffer.iter_mut().zip(offset..) {
        *byte = pattern(stream, at);
    }
}

/// Panics when `bytes` are not the stream from `offset` on.
pub(crate) fn compare(stream: u64, offset: u64, bytes: &[u8]) {
    for (byte, at) in bytes.iter().zip(offset..) {
        assert_eq!(*byte, pattern(stream, at), "byte {at} of stream {stream}");
    }
}

/// Names of the two streams of a connection.
pub(crate) const UP: u64 = 1;
pub(crate) const DOWN: u64 = 2;

/// What an off-ramp's TCP connection does.
#[derive(Clone)]
pub(crate) struct Target {
    /// Bytes it will send.
    pub(crate) send: u64,
    pub(crate) sent: u64,
    /// Bytes of the client it took.
    pub(crate) received: u64,
    /// It closes its half once everything is sent.
    pub(crate) closes: bool,
    /// Bytes it takes at most in all, for now.
    pub(crate) appetite: u64,
    /// It saw the client's end.
    pub(crate) shut: bool,
    pub(crate) finished: bool,
}

impl Target {
    /// Sends `send` bytes, takes everything and closes when it is done.
    pub(crate) fn sends(send: u64) -> Self {
        Self { send, sent: 0, received: 0, closes: true, appetite: u64::MAX, shut: false, finished: false }
    }

    /// Sends `send` bytes and stays open.
    pub(crate) fn stays_open(send: u64) -> Self {
        Self { closes: false, ..Self::sends(send) }
    }

    /// Takes at most `appetite` bytes for now.
    pub(crate) fn takes(self, appetite: u64) -> Self {
        Self { appetite, ..self }
    }
}

/// Memory for rings. What is discarded is overwritten, so that nobody reads it unnoticed.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    /// Bytes that nobody has taken.
    pub(crate) left: Arc<AtomicUsize>,
    /// Bytes that were taken and not given back.
    pub(crate) taken: Arc<AtomicUsize>,
    /// Bytes discarded so far.
    pub(crate) discarded: Arc<AtomicUsize>,
}

impl Memory {
    /// With `bytes`.
    pub(crate) fn of(bytes: usize) -> Self {
        Self { left: Arc::new(bytes.into()), taken: Arc::default(), discarded: Arc::default() }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::of(1 << 40)
    }
}

impl RingMemory for Memory {
    fn take(&self, bytes: usize) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        let enough = left >= bytes;
        if enough {
            self.left.store(left - bytes, Ordering::Relaxed);
            self.taken.fetch_add(bytes, Ordering::Relaxed);
        }
        enough
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
        let before = self.taken.fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "more is given back than was taken");
    }

    fn discard(&self, bytes: &mut [u8]) {
        bytes.fill(0xee);
        self.discarded.fetch_add(bytes.len(), Ordering::Relaxed);
    }
}

/// What happens to a flow that opens.
#[derive(Clone)]
pub(crate) enum Reception {
    /// Nothing yet: the dial goes on.
    Hold,
    Accept(Target),
    Refuse(Refusal),
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) flow: FlowId,
    pub(crate) cause: CloseCause,
    pub(crate) client_first: bool,
    pub(crate) traffic: Traffic,
}

/// The stack, its targets and the time.
pub(crate) struct Lab {
    pub(crate) stack: Stack,
    pub(crate) ingress: Ingress,
    base: Instant,
    pub(crate) now: Duration,
    pub(crate) reception: Reception,
    pub(crate) targets: HashMap<FlowId, Target>,
    /// Packets towards the client, each checked.
    pub(crate) out: VecDeque<Vec<u8>>,
    pub(crate) opened: Vec<FlowId>,
    pub(crate) ended: Vec<Ended>,
    /// Whether what clients send is the stream [`UP`].
    pub(crate) compares: bool,
    /// What rings may have, for flows accepted from now on.
    pub(crate) memory: Memory,
    alive: HashSet<FlowId>,
    seed: u64,
}

impl Lab {
    pub(crate) fn new(limits: StackLimits) -> Self {
        #[expect(clippy::disallowed_methods, reason = "instants have no other beginning; it is never compared")]
        let base = Instant::now();
        Self {
            stack: Stack::new(limits, base),
            ingress: Ingress { id: IngressId(1), mtu: MTU },
            base,
            now: Duration::ZERO,
            reception: Reception::Hold,
            targets: HashMap::new(),
            out: VecDeque::new(),
            opened: Vec::new(),
            ended: Vec::new(),
            compares: true,
            memory: Memory::default(),
            alive: HashSet::new(),
            seed: 7,
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// Hands one packet of the client to the stack and does what a shard does with the answer.
    pub(crate) fn inject(&mut self, packet: &[u8]) -> Result<Handled, DropReason> {
        self.inject_parsed(&IpPacket::parse(packet, ChecksumPolicy::Verify)?)
    }

    /// The same with a packet that is parsed already.
    pub(crate) fn inject_parsed(&mut self, packet: &IpPacket<'_>) -> Result<Handled, DropReason> {
        let handled = self.stack.handle_packet(self.instant(), self.ingress, packet)?;
        if let Handled::Opened(id) = handled {
            self.opened.push(id);
            self.alive.insert(id);
            match self.reception.clone() {
                Reception::Hold => {}
                Reception::Accept(target) => self.accept(id, target),
                Reception::Refuse(refusal) => self.stack.refuse(id, refusal),
            }
        }
        Ok(handled)
    }

    /// The dial of a held flow succeeded.
    pub(crate) fn accept(&mut self, id: FlowId, target: Target) {
        self.seed += 1;
        self.stack.accept(self.instant(), id, self.seed, Box::new(self.memory.clone()));
        self.targets.insert(id, target);
    }

    /// Does everything there is to do at this instant.
    pub(crate) fn settle(&mut self) {
        let (mut looks, mut turns) = (0, 0);
        loop {
            let mut effect = false;
            if self.stack.poll_timeout().is_some_and(|at| at <= self.instant()) {
                let mut idle = Vec::new();
                self.stack.handle_timeout(self.instant(), |id| idle.push(id));
                effect |= !idle.is_empty();
                for id in idle {
                    let traffic = self.stack.traffic(id);
                    self.stack.remove(id);
                    self.ended.push(Ended { flow: id, cause: CloseCause::Timeout, client_first: false, traffic });
                }
                looks += 1;
            }
            while let Some(id) = self.stack.poll_changed() {
                effect |= self.move_flow(id);
                if self.stack.batch().is_full() {
                    break;
                }
            }
            effect |= self.flush();
            if effect {
                looks = 0;
            }
            self.check();
            turns += 1;
            assert!(turns < TURNS, "one instant does not end, at {:?}: {} packets", self.now, self.out.len());
            let due = self.stack.poll_timeout().is_some_and(|at| at <= self.instant());
            assert!(!due || looks <= IDLE_LOOKS, "the timers are due again and again at {:?}", self.now);
            if !due && self.stack.changed() == 0 {
                return;
            }
        }
    }

    /// The rules of every moment.
    fn check(&mut self) {
        let Self { alive, stack, .. } = self;
        alive.retain(|id| stack.key(*id).is_some());
        assert_eq!(stack.len(), alive.len(), "flows in the table are those opened and not removed");
    }

    /// When something happens without a packet.
    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        self.stack.poll_timeout().map(|at| at - self.base)
    }

    /// Lets `span` pass, stopping wherever the stack asked to be woken.
    pub(crate) fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        self.settle();
        while let Some(at) = self.next_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// Moves one flow's bytes as a shard does. Returns whether anything changed.
    fn move_flow(&mut self, id: FlowId) -> bool {
        let now = self.instant();
        let Some(target) = self.targets.get_mut(&id) else {
            if self.stack.cause(id).is_some() && self.stack.client_gave_up(id) {
                self.end(id);
                return true;
            }
            self.stack.transmit(now, id);
            if self.stack.is_gone(id) {
                self.stack.remove(id);
                return true;
            }
            return false;
        };
        let before = (target.sent, target.received, target.shut, target.finished);
        while !target.finished {
            let step = self.stack.send_with(now, id, |ring| {
                let len = ring.len().min(usize::try_from(target.send - target.sent).unwrap_or(usize::MAX));
                fill(DOWN, target.sent, &mut ring[..len]);
                (len, len)
            });
            match step {
                Some(0) if target.closes => {
                    target.finished = true;
                    self.stack.close(id);
                }
                Some(0) | None => break,
                Some(len) => target.sent += len as u64,
            }
        }
        loop {
            let step = self.stack.recv_with(now, id, |ring| {
                let len = ring.len().min(usize::try_from(target.appetite - target.received).unwrap_or(usize::MAX));
                if self.compares {
                    compare(UP, target.received, &ring[..len]);
                }
                (len, len)
            });
            match step {
                Some(0) => break,
                Some(len) => target.received += len as u64,
                None => {
                    target.shut |= self.stack.client_finished(id);
                    break;
                }
            }
        }
        let moved = before != (target.sent, target.received, target.shut, target.finished);
        self.stack.transmit(now, id);
        match self.stack.cause(id) {
            Some(CloseCause::Orderly) if !target.shut => moved,
            Some(_) => {
                self.end(id);
                true
            }
            None => moved,
        }
    }

    /// Ends a flow whose transport is over.
    fn end(&mut self, id: FlowId) {
        let cause = self.stack.cause(id).unwrap();
        let client_first = self.stack.client_closed_first(id);
        let traffic = self.stack.traffic(id);
        self.ended.push(Ended { flow: id, cause, client_first, traffic });
        self.targets.remove(&id);
        match cause {
            CloseCause::ClientReset => self.stack.remove(id),
            CloseCause::Timeout | CloseCause::Unreachable => self.stack.abort(self.instant(), id),
            CloseCause::Orderly => self.stack.release(id),
        }
    }

    /// Takes the packets out of the batch, each checked. Returns whether there were any.
    fn flush(&mut self) -> bool {
        let batch = self.stack.batch();
        let any = !batch.is_empty();
        batch.drain_complete(|to, packet| {
            assert_eq!(to, self.ingress.id);
            check_packet(packet);
            self.out.push_back(packet.to_vec());
        });
        any
    }

    /// The packets made since the last call.
    pub(crate) fn take_out(&mut self) -> Vec<Vec<u8>> {
        self.out.drain(..).collect()
    }
}

/// Every packet towards a client is whole, fits, and has right checksums.
fn check_packet(packet: &[u8]) {
    assert!(packet.len() <= usize::from(MTU), "{} bytes", packet.len());
    match IpPacket::parse(packet, ChecksumPolicy::Verify) {
        Ok(parsed) => assert_eq!(parsed.bytes().len(), packet.len()),
        // Checksums come before the type, and an answer is never an echo request.
        Err(DropReason::IcmpType | DropReason::Fragment) => {}
        Err(reason) => panic!("{reason}: {packet:02x?}"),
    }
}
