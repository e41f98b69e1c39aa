//! Datagrams towards targets: those of a flow that come in one turn of the loop leave in one call.

use std::io;

use portcullis_netstack::packet::UdpDatagram;
use portcullis_netstack::{DropReason, FlowId, Stack};

use super::flow::{Flow, Target};
use super::splice;
use super::worker::Shard;
use crate::metrics::counters::ShardCounters;
use crate::offramp::DatagramSocket;
use crate::offramp::datagram::{self, MAX_RUN, MAX_RUN_DATAGRAMS};

/// Runs that are gathered at the same time, each with memory for [`MAX_RUN`] bytes.
const MAX_RUNS: usize = 8;
/// Datagrams of one flow that wait for its off-ramp, and their bytes: what a client sends before the first answer.
const MAX_HELD: usize = 16;
const MAX_HELD_BYTES: usize = 16 * 1024;

/// Datagrams of one flow: all of `size` bytes, but the last may be shorter.
#[derive(Debug)]
struct Run<F> {
    flow: F,
    bytes: Vec<u8>,
    size: usize,
    datagrams: usize,
}

/// What is gathered in a turn. The memory is kept, so that no datagram costs an allocation.
#[derive(Debug)]
pub(super) struct Gathered<F = FlowId> {
    /// Of these, the first `used` have datagrams.
    runs: Vec<Run<F>>,
    used: usize,
    /// The run to make way for the next flow.
    turn: usize,
}

/// The first datagrams of a flow whose off-ramp still dials.
#[derive(Debug, Default)]
pub(crate) struct Held {
    datagrams: Vec<Box<[u8]>>,
    bytes: usize,
}

impl Held {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Keeps what there is room for. Returns how many there was none for.
    fn add<'d>(&mut self, datagrams: impl Iterator<Item = &'d [u8]>) -> usize {
        let mut lost = 0;
        for datagram in datagrams {
            if self.datagrams.len() < MAX_HELD && self.bytes + datagram.len() <= MAX_HELD_BYTES {
                self.bytes += datagram.len();
                self.datagrams.push(datagram.into());
            } else {
                lost += 1;
            }
        }
        lost
    }
}

impl<F> Default for Gathered<F> {
    fn default() -> Self {
        Self { runs: Vec::new(), used: 0, turn: 0 }
    }
}

impl<F> Run<F> {
    fn begin(&mut self, flow: F, datagram: &[u8]) {
        self.flow = flow;
        self.bytes.clear();
        self.bytes.extend_from_slice(datagram);
        self.size = datagram.len();
        self.datagrams = 1;
    }

    /// Whether a datagram can be the next. An empty one is none of a run's.
    fn takes(&self, datagram: &[u8]) -> bool {
        !datagram.is_empty()
            && datagram.len() <= self.size
            && self.bytes.len() == self.datagrams * self.size
            && self.datagrams < MAX_RUN_DATAGRAMS
            && self.bytes.len() + datagram.len() <= MAX_RUN
    }
}

impl<F: Copy + PartialEq> Gathered<F> {
    /// Adds a datagram to its flow's run. `send` gets a run that is complete, with the size of its datagrams.
    fn add(&mut self, flow: F, datagram: &[u8], mut send: impl FnMut(F, &[u8], usize)) {
        let place = self.runs.iter().take(self.used).position(|run| run.flow == flow);
        let free = place.is_none() && self.used < MAX_RUNS;
        let place = match place {
            Some(place) => place,
            None if free => self.used,
            None => {
                self.turn = (self.turn + 1) % MAX_RUNS;
                self.turn
            }
        };
        if free {
            self.used += 1;
        }
        match self.runs.get_mut(place) {
            Some(run) if !free && run.flow == flow && run.takes(datagram) => {
                run.bytes.extend_from_slice(datagram);
                run.datagrams += 1;
            }
            Some(run) => {
                if !free {
                    send(run.flow, &run.bytes, run.size);
                }
                run.begin(flow, datagram);
            }
            None => self.runs.push(Run { flow, bytes: datagram.to_vec(), size: datagram.len(), datagrams: 1 }),
        }
    }

    /// Hands over what there is of a flow.
    fn complete(&mut self, flow: F, send: impl FnOnce(F, &[u8], usize)) {
        let Some(place) = self.runs.iter().take(self.used).position(|run| run.flow == flow) else { return };
        self.used -= 1;
        self.runs.swap(place, self.used);
        if let Some(run) = self.runs.get(self.used) {
            send(run.flow, &run.bytes, run.size);
        }
    }

    /// Hands over everything.
    fn drain(&mut self, mut send: impl FnMut(F, &[u8], usize)) {
        for run in self.runs.iter().take(self.used) {
            send(run.flow, &run.bytes, run.size);
        }
        self.used = 0;
    }
}

impl Shard {
    /// Takes a client's datagram, or several in one, towards their target: at the end of the turn, or with those that
    /// came with it.
    pub(super) fn deliver_datagrams(&mut self, id: FlowId, datagrams: &UdpDatagram<'_>, hops: u8) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let other_limit = match &mut flow.target {
            Target::Udp(socket) => !socket.has_hop_limit(hops),
            Target::Dialling { held, .. } => {
                let lost = held.add(datagram::datagrams(datagrams.payload, datagrams.size()));
                return self.drop_packets(DropReason::QueueFull, lost);
            }
            Target::Nobody { silent } => {
                let silent = *silent;
                return self.deny_again(id, silent, datagrams.count());
            }
            Target::Calling(_) | Target::Tcp(_) | Target::Call(_) | Target::Ping(_) | Target::Forward(_) => return,
        };
        let mut gathered = std::mem::take(&mut self.gathered);
        if other_limit {
            gathered.complete(id, |id, run, size| self.send_run(id, run, size));
            if let Some(Flow { target: Target::Udp(socket), .. }) = self.flows.get_mut(id) {
                socket.set_hop_limit(hops);
            }
        }
        if datagrams.count() == 1 {
            gathered.add(id, datagrams.payload, |id, run, size| self.send_run(id, run, size));
        } else {
            // It is a run already.
            gathered.complete(id, |id, run, size| self.send_run(id, run, size));
            let size = datagrams.size();
            for run in datagrams.payload.chunks(longest_run(size)) {
                self.send_run(id, run, size);
            }
        }
        self.gathered = gathered;
    }

    /// Sends what was held while a flow's off-ramp dialled.
    pub(super) fn send_held(&mut self, id: FlowId, held: &Held) {
        for datagram in &held.datagrams {
            self.send_run(id, datagram, datagram.len());
        }
    }

    /// Sends what was gathered.
    pub(super) fn send_gathered(&mut self) {
        let mut gathered = std::mem::take(&mut self.gathered);
        gathered.drain(|id, run, size| self.send_run(id, run, size));
        self.gathered = gathered;
    }

    fn send_run(&mut self, id: FlowId, run: &[u8], size: usize) {
        let Self { flows, stack, counters, .. } = self;
        if let Some(Flow { target: Target::Udp(socket), .. }) = flows.get_mut(id) {
            let sent = send(stack, counters, id, socket, run, size);
            stack.delivered(id, sent);
            if socket.is_over() {
                stack.mark_changed(id);
            }
        }
    }
}

/// Bytes of the longest run of datagrams of `size` bytes.
fn longest_run(size: usize) -> usize {
    size * (MAX_RUN / size.max(1)).clamp(1, MAX_RUN_DATAGRAMS)
}

/// Sends a run, or a message of a ping socket, and tells the client what the kernel says about it, or about an earlier
/// one. Returns how many bytes went out.
pub(super) fn send(
    stack: &mut Stack,
    counters: &ShardCounters,
    id: FlowId,
    socket: &DatagramSocket,
    run: &[u8],
    size: usize,
) -> usize {
    let is_reported = |sent: &Result<(), Option<io::Error>>| {
        let error = sent.as_ref().err().and_then(Option::as_ref);
        error.is_some_and(|error| splice::unreachable(socket, error).is_some())
    };
    let mut sent = socket.try_send_run(run, size);
    if is_reported(&sent) {
        // Mostly the error of an earlier datagram, which was in the way of these; else it comes again.
        let pending = std::mem::replace(&mut sent, socket.try_send_run(run, size));
        if let Err(Some(pending)) = pending
            && !is_reported(&sent)
        {
            splice::report(stack, id, socket, &pending);
        }
    }
    if let Err(Some(error)) = &sent
        && is_reported(&sent)
    {
        splice::report(stack, id, socket, error);
    }
    match sent {
        Ok(()) => run.len(),
        Err(None) => datagram::datagrams(run, size)
            .map(|datagram| send(stack, counters, id, socket, datagram, datagram.len()))
            .sum(),
        Err(Some(error)) => {
            let full = error.kind() == io::ErrorKind::WouldBlock;
            let reason = if full { DropReason::QueueFull } else { DropReason::SendFailed };
            for _ in datagram::datagrams(run, size) {
                counters.drop_packet(reason);
            }
            tracing::trace!(%reason, %error, "datagrams dropped");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FLOWS: usize = 12;
    const SIZES: [usize; 6] = [0, 1, 40, 1200, 1201, 30_000];

    proptest! {
        #[test]
        fn every_flow_keeps_its_datagrams_in_order(
            arrivals in proptest::collection::vec((0..FLOWS, 0..SIZES.len()), 0..400),
        ) {
            let mut gathered = Gathered::default();
            let mut came = vec![Vec::new(); FLOWS];
            let mut went = vec![Vec::new(); FLOWS];
            let mut send = |flow: usize, run: &[u8], size: usize| {
                let datagrams: Vec<Vec<u8>> = datagram::datagrams(run, size).map(<[u8]>::to_vec).collect();
                assert!(run.len() <= MAX_RUN && datagrams.len() <= MAX_RUN_DATAGRAMS);
                assert!(datagrams.len() == 1 || datagrams.iter().all(|one| !one.is_empty()), "the kernel takes none");
                went[flow].extend(datagrams);
            };
            for (number, (flow, size)) in arrivals.iter().enumerate() {
                let datagram = vec![number as u8; SIZES[*size]];
                gathered.add(*flow, &datagram, &mut send);
                came[*flow].push(datagram);
                if number % 50 == 49 {
                    gathered.complete(*flow, &mut send);
                    gathered.complete(*flow, |_, _, _| panic!("nothing is sent twice"));
                }
            }
            gathered.drain(&mut send);
            gathered.drain(|_, _, _| panic!("nothing is sent twice"));
            prop_assert_eq!(came, went);
        }
    }

    #[test]
    fn what_waits_for_an_off_ramp_is_bounded() {
        let mut held = Held::default();
        assert_eq!(held.add([&[1][..], &[], &[3; 3]].into_iter()), 0);
        assert_eq!(held.datagrams, [Box::from([1]), Box::default(), Box::from([3; 3])]);
        assert_eq!(held.add([&[0; MAX_HELD_BYTES][..], &[4]].into_iter()), 1, "the larger one");
        assert_eq!(held.add([&[5][..]; MAX_HELD].into_iter()), 4);
    }

    #[test]
    fn datagrams_of_one_size_are_one_run() {
        let mut gathered = Gathered::default();
        let mut runs = Vec::new();
        for size in [1200; 70] {
            gathered.add('a', &vec![0; size], |flow, run, size| runs.push((flow, run.len(), size)));
        }
        for size in [100, 100, 100, 99, 100, 101] {
            gathered.add('b', &vec![0; size], |flow, run, size| runs.push((flow, run.len(), size)));
        }
        gathered.drain(|flow, run, size| runs.push((flow, run.len(), size)));
        let a = [('a', 54 * 1200, 1200), ('a', 16 * 1200, 1200)];
        let b = [('b', 399, 100), ('b', 100, 100), ('b', 101, 101)];
        assert_eq!(runs, [a[0], b[0], b[1], a[1], b[2]]);
        assert_eq!((longest_run(1200), longest_run(1), longest_run(65_507)), (54 * 1200, 64, 65_507));
    }
}
