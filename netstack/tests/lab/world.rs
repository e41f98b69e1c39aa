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
}

impl World {
    pub(crate) fn new(limits: StackLimits, path: Path, reception: Reception) -> Self {
        let mut lab = Lab::new(limits);
        lab.reception = reception;
        Self { lab, client: Client::new(), up: Link::new(path, 1), down: Link::new(path, 2) }
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
        for packet in self.client.poll(now) {
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
