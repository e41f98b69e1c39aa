//! A client, a path and the stack.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_netstack::StackLimits;

use crate::client::Client;
use crate::lab::{Lab, Reception};
use crate::link::{Link, Path};

pub(crate) const LATENCY: Duration = Duration::from_millis(10);

/// A path without faults.
pub(crate) const CLEAN: Path = Path { latency: LATENCY, loss: 0, reordered: 0 };

pub(crate) fn target_v4() -> SocketAddr {
    "10.20.0.80:443".parse().unwrap()
}

pub(crate) fn target_v6() -> SocketAddr {
    "[fd00:20::80]:443".parse().unwrap()
}

pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) client: Client,
    pub(crate) up: Link,
    pub(crate) down: Link,
    /// The client offers selective acknowledgments.
    pub(crate) selective: bool,
}

impl World {
    pub(crate) fn new(limits: StackLimits, path: Path, reception: Reception) -> Self {
        let mut lab = Lab::new(limits);
        lab.reception = reception;
        Self { lab, client: Client::new(), up: Link::new(path, 1), down: Link::new(path, 2), selective: true }
    }

    /// Does everything there is to do at this instant.
    fn settle(&mut self) {
        let now = self.lab.now;
        while let Some(packet) = self.up.receive(now) {
            // A packet the stack drops is a packet lost; what must not be lost is asserted on the bytes.
            let _ = self.lab.inject(&packet);
        }
        self.lab.settle();
        for packet in self.lab.take_out() {
            self.down.send(now, packet);
        }
        while let Some(packet) = self.down.receive(now) {
            self.client.receive(packet);
        }
        for mut packet in self.client.poll(now) {
            if !self.selective {
                take_out_selective(&mut packet);
            }
            self.up.send(now, packet);
        }
    }

    /// Goes from event to event until `done`, at most for `patience`. Returns whether it was done.
    pub(crate) fn run(&mut self, patience: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.lab.now + patience;
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            let now = self.lab.now;
            let next = [
                self.up.next_arrival(),
                self.down.next_arrival(),
                self.lab.next_timeout(),
                self.client.next_timeout(now),
            ];
            match next.into_iter().flatten().min() {
                Some(next) if next <= end => self.lab.now = next.max(now),
                _ => {
                    self.lab.now = end;
                    self.settle();
                    return done(self);
                }
            }
        }
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, span: Duration) {
        self.run(span, |_| false);
    }
}

/// Makes a SYN of one that offers selective acknowledgments one that does not.
fn take_out_selective(syn: &mut [u8]) {
    const PERMITTED: [u8; 2] = [4, 2];
    const NOTHING: u8 = 1;
    let at = if syn[0] >> 4 == 4 { 20 } else { 40 };
    let options = usize::from(syn[at + 12] >> 4) * 4;
    if syn[at + 13] & 2 == 0 || options == 20 {
        return;
    }
    let mut next = 20;
    while next < options && syn[at + next..].len() > 1 {
        let (kind, len) = (syn[at + next], usize::from(syn[at + next + 1]));
        if [syn[at + next], syn[at + next + 1]] == PERMITTED {
            // RFC 1624: the sum of the ones that are other now. An odd place has its bytes in the other order.
            let (mut old, mut new) = (PERMITTED, [NOTHING; 2]);
            if next % 2 == 1 {
                old.reverse();
                new.reverse();
            }
            let sum = u16::from_be_bytes([syn[at + 16], syn[at + 17]]);
            let mut wide = u32::from(!sum) + u32::from(!u16::from_be_bytes(old)) + u32::from(u16::from_be_bytes(new));
            while wide > 0xffff {
                wide = (wide & 0xffff) + (wide >> 16);
            }
            syn[at + 16..at + 18].copy_from_slice(&(!(wide as u16)).to_be_bytes());
            syn[at + next..at + next + 2].fill(NOTHING);
            return;
        }
        next += if kind == NOTHING { 1 } else { len.max(1) };
    }
    panic!("it offers nothing: {syn:02x?}");
}
