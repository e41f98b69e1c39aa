//! Outer datagrams against the peers of a shard, one of which has a live tunnel.
//!
//! The bytes are operations: real datagrams, changed or not, replayed or not, strangers', made up. Nothing that is not
//! authentic may be delivered, move anything of a peer or be answered with more bytes than it has.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use jiff::Timestamp;
use portcullis::directory::{Directory, DirectoryContext};
use portcullis::keys::encode_key;
use portcullis::metrics::counters::ShardCounters;
use portcullis::onramp::wireguard::peers::{Peers, Route, Surroundings, WireguardIdentity};
use portcullis::onramp::wireguard::socket::{Endpoint, Outbox};
use portcullis_netstack::DropReason;

use crate::input::Input;

const GATEWAY: [u8; 32] = [0x42; 32];
const ANN: [u8; 32] = [2; 32];
const STRANGER: [u8; 32] = [0x77; 32];
/// A packet of ann's; the peers do not look inside.
const PACKET: &[u8] = &[
    0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 100, 96, 0, 2, 10, 20, 0, 1, 0x14, 0xe9, 0x1b, 0x59, 0, 12, 0, 0, b'd',
    b'a', b't', b'a',
];
/// Sessions a client leaves unused. More would take the places of those in use, once those have been silent.
const UNUSED: usize = 5;
/// Longer inputs say nothing new, and a handshake costs.
const OPERATIONS: usize = 48;
/// Longest made-up datagram.
const MADE_UP: usize = 200;

/// Ann in the directory, and nobody.
static DIRECTORIES: LazyLock<[Directory; 2]> = LazyLock::new(|| {
    let key = encode_key(PublicKey::from(&StaticSecret::from(ANN)).as_bytes());
    let ann = format!(r#""ann": {{ "user": "ann", "public_key": "{key}", "addresses": ["100.96.0.2"] }}"#);
    let context =
        DirectoryContext { tunnel: vec!["100.96.0.1/16".parse().unwrap()], own_public_key: None, networks: Vec::new() };
    [&*ann, ""].map(|devices| {
        let text = format!(r#"{{ "users": {{ "ann": {{}} }}, "devices": {{ {devices} }} }}"#);
        Directory::parse(&text, &context).unwrap()
    })
});

/// What nothing unauthentic may change, of every peer.
type State = Vec<(usize, Option<Arc<str>>, Option<Endpoint>, Option<Timestamp>, (u64, u64))>;

/// What came of a datagram.
struct Outcome {
    route: Result<Route, DropReason>,
    delivered: Option<Vec<u8>>,
    answers: Vec<Vec<u8>>,
}

struct Bench<'a> {
    input: Input<'a>,
    peers: Peers,
    counters: ShardCounters,
    outbox: Outbox,
    clock: Instant,
    directory: &'static Directory,
    ann: Tunn,
    stranger: Tunn,
    /// What ann has sent and the gateway has taken.
    sent: Vec<Vec<u8>>,
    /// Initiations of hers that were answered after the last session she used.
    unused: usize,
    /// Datagrams so far, as seconds of the wall clock.
    wall: i64,
}

/// Runs the operations in `data`, then looks whether the tunnel still carries packets.
pub fn datagram(data: &[u8]) {
    let mut bench = Bench {
        input: Input(data),
        // Two shards, so that some indices are another's.
        peers: Peers::new(Arc::new(WireguardIdentity::new(GATEWAY, [])), 0, 2),
        counters: ShardCounters::default(),
        outbox: Outbox::default(),
        clock: Instant::now(),
        directory: &DIRECTORIES[0],
        ann: client(ANN),
        stranger: client(STRANGER),
        sent: Vec::new(),
        unused: 0,
        wall: 0,
    };
    bench.shake_hands(0);
    for _ in 0..OPERATIONS {
        let Some(operation) = bench.input.next() else { break };
        bench.operate(operation);
    }
    bench.end();
}

fn client(private: [u8; 32]) -> Tunn {
    let gateway = PublicKey::from(&StaticSecret::from(GATEWAY));
    let private = StaticSecret::from(private);
    let unlimited = RateLimiter::new(&PublicKey::from(&private), u64::MAX);
    Tunn::new(private, gateway, None, None, 7, Some(Arc::new(unlimited)))
}

fn initiation(client: &mut Tunn) -> Vec<u8> {
    let mut buffer = [0; 256];
    let TunnResult::WriteToNetwork(initiation) = client.format_handshake_initiation(&mut buffer, true) else {
        panic!("no initiation");
    };
    initiation.to_vec()
}

fn sealed(client: &mut Tunn, packet: &[u8]) -> Vec<u8> {
    let mut buffer = [0; 256];
    let TunnResult::WriteToNetwork(datagram) = client.encapsulate(packet, &mut buffer) else {
        panic!("no session");
    };
    datagram.to_vec()
}

/// An endpoint by number.
fn endpoint(number: u8) -> Endpoint {
    let address: SocketAddr = match number % 4 {
        0 => "192.0.2.1:51820".parse().unwrap(),
        1 => "[2001:db8::1]:51820".parse().unwrap(),
        2 => "[::ffff:192.0.2.2]:51820".parse().unwrap(),
        _ => SocketAddr::new([198, 51, 100, number].into(), 1000),
    };
    Endpoint { address, local: None }
}

impl Bench<'_> {
    fn state(&self) -> State {
        let of = |(slot, peer): (usize, &portcullis::onramp::wireguard::peers::Peer)| {
            let device = peer.party().device.as_ref().map(|device| Arc::clone(&device.identity.device));
            (slot, device, peer.endpoint(), peer.last_handshake(), peer.bytes())
        };
        self.peers.iter().map(of).collect()
    }

    fn take(&mut self, from: u8, datagram: &[u8], verified: bool) -> Outcome {
        self.wall += 1;
        let Self { peers, counters, outbox, clock, directory, wall, .. } = self;
        let now = Timestamp::from_second(*wall).unwrap();
        let mut around = Surroundings { directory, now, clock: *clock, counters, outbox };
        let mut delivered = None;
        let route = peers.handle_datagram(&mut around, endpoint(from), datagram, verified, |_, party, packet| {
            assert_eq!(party.device.as_ref().map(|device| &*device.identity.device), Some("ann"));
            delivered = Some(packet.to_vec());
        });
        let answers: Vec<Vec<u8>> = self.outbox.datagrams().map(|(_, answer)| answer.to_vec()).collect();
        self.outbox.clear();
        assert!(answers.iter().map(Vec::len).sum::<usize>() < datagram.len().max(1), "more bytes back than came");
        assert!(route.is_ok() || delivered.is_none());
        Outcome { route, delivered, answers }
    }

    /// Takes what is not authentic.
    fn refuse(&mut self, from: u8, datagram: &[u8], verified: bool) -> Outcome {
        let before = self.state();
        let outcome = self.take(from, datagram, verified);
        assert!(outcome.delivered.is_none() && outcome.route != Ok(Route::Here), "{datagram:02x?}");
        assert_eq!(self.state(), before, "{datagram:02x?}");
        outcome
    }

    /// A new session of ann's, that is in use when she may have one.
    fn shake_hands(&mut self, from: u8) {
        let initiation = initiation(&mut self.ann);
        let outcome = self.begin(from, &initiation);
        let Some(answer) = outcome.answers.first() else { return };
        let mut buffer = [0; 256];
        let TunnResult::WriteToNetwork(keepalive) = self.ann.decapsulate(None, answer, &mut buffer) else {
            // A cookie, for the next time.
            assert_eq!(answer[0], 3);
            return;
        };
        let keepalive = keepalive.to_vec();
        self.sent.push(initiation);
        self.authentic(from, &keepalive);
        self.unused = 0;
        assert_eq!(self.state()[0].3, Timestamp::from_second(self.wall).ok());
    }

    /// An initiation changes nothing of a peer; who is enrolled becomes one.
    fn begin(&mut self, from: u8, initiation: &[u8]) -> Outcome {
        let before = self.state();
        let outcome = self.take(from, initiation, false);
        if before.is_empty() {
            let new = |(_, _, endpoint, shaken, bytes): &(_, _, Option<Endpoint>, Option<Timestamp>, _)| {
                endpoint.is_none() && shaken.is_none() && *bytes == (0, 0)
            };
            assert!(self.state().len() <= 1 && self.state().iter().all(new));
        } else {
            assert_eq!(self.state(), before, "{initiation:02x?}");
        }
        assert!(outcome.delivered.is_none());
        outcome
    }

    fn operate(&mut self, operation: u8) {
        let from = self.input.byte();
        match operation % 12 {
            0 | 1 if !self.state().is_empty() => {
                let real = sealed(&mut self.ann, if operation & 16 == 0 { PACKET } else { &[] });
                let changed = self.changed(&real);
                if changed == real {
                    self.authentic(from, &real);
                } else {
                    self.refuse(from, &changed, false);
                    // It was not used up.
                    self.authentic(from, &real);
                }
            }
            2 => {
                let which = usize::from(self.input.word());
                if let Some(again) = self.sent.get(which % self.sent.len().max(1)).cloned() {
                    self.refuse(from, &again, operation & 16 != 0);
                }
            }
            3 if self.unused < UNUSED => {
                let real = initiation(&mut self.ann);
                let changed = self.changed(&real);
                let outcome = self.begin(from, &changed);
                self.unused += usize::from(outcome.answers.first().is_some_and(|answer| answer[0] == 2));
            }
            4 => {
                let real = initiation(&mut self.stranger);
                let changed = self.changed(&real);
                let outcome = self.refuse(from, &changed, operation & 16 != 0);
                // A stranger is told at most a cookie.
                assert!(outcome.answers.iter().all(|answer| answer[0] == 3));
                for cookie in outcome.answers {
                    let _ = self.stranger.decapsulate(None, &cookie, &mut [0; 256]);
                }
            }
            5 => {
                let len = usize::from(self.input.word()) % MADE_UP;
                let made_up: Vec<u8> = (0..len).map(|_| self.input.byte()).collect();
                self.refuse(from, &made_up, operation & 16 != 0);
            }
            6 => {
                // The index of a session there may be, any counter, noise.
                let (kind, session) = (1 + self.input.byte() % 4, self.input.byte());
                let counter = [(); 8].map(|()| self.input.byte());
                let len = usize::from(self.input.word()) % MADE_UP;
                let head = [&[kind, 0, 0, 0, session, 0, 0, 0][..], &counter].concat();
                let made_up = [&head[..], &vec![self.input.byte(); len]].concat();
                self.refuse(from, &made_up, operation & 16 != 0);
            }
            3 | 7 => self.shake_hands(from),
            8 => {
                let span = Duration::from_millis(1 << (self.input.byte() % 18));
                self.clock += span;
            }
            9 => {
                let before = self.state().len();
                self.peers.tick(&mut self.outbox, |_| false);
                assert_eq!(self.state().len(), before, "no time has passed for the tunnels");
                self.outbox.clear();
            }
            10 => self.send_back(),
            _ if operation & 0xf0 == 0xf0 => {
                // Revoked: whatever she knows is a stranger's from now on.
                self.directory = &DIRECTORIES[1];
                for slot in self.peers.apply(self.directory, Timestamp::UNIX_EPOCH) {
                    self.peers.remove(slot);
                }
                assert!(self.state().is_empty());
            }
            _ => {}
        }
    }

    /// A copy with up to three bytes changed, cut or grown.
    fn changed(&mut self, real: &[u8]) -> Vec<u8> {
        let mut changed = real.to_vec();
        for _ in 0..self.input.byte() % 4 {
            let at = usize::from(self.input.word());
            match self.input.byte() {
                0 => changed.truncate(at % (real.len() + 1)),
                1 => changed.extend_from_slice(&real[..at % real.len()]),
                xor => {
                    let len = changed.len().max(1);
                    if let Some(byte) = changed.get_mut(at % len) {
                        *byte ^= xor;
                    }
                }
            }
        }
        changed
    }

    /// Takes what ann sends in her session.
    fn authentic(&mut self, from: u8, datagram: &[u8]) {
        let outcome = self.take(from, datagram, false);
        assert_eq!(outcome.route, Ok(Route::Here));
        if let Some(packet) = outcome.delivered {
            assert_eq!(packet, PACKET);
        }
        assert_eq!(self.state()[0].2, Some(endpoint(from)), "a peer is where its last datagram came from");
        self.sent.push(datagram.to_vec());
    }

    /// A packet towards ann, who can read it.
    fn send_back(&mut self) {
        let Some((slot, ..)) = self.state().first().cloned() else { return };
        assert!(self.peers.send(slot, PACKET, &mut self.outbox));
        let datagrams: Vec<Vec<u8>> = self.outbox.datagrams().map(|(_, datagram)| datagram.to_vec()).collect();
        self.outbox.clear();
        assert_eq!(datagrams.len(), 1);
        let mut buffer = [0; 256];
        let TunnResult::WriteToTunnelV4(packet, _) = self.ann.decapsulate(None, &datagrams[0], &mut buffer) else {
            panic!("ann cannot read {:02x?}", datagrams[0]);
        };
        assert_eq!(packet, PACKET);
    }

    fn end(mut self) {
        if std::ptr::eq(self.directory, &raw const DIRECTORIES[1]) {
            for again in std::mem::take(&mut self.sent) {
                assert!(self.refuse(0, &again, true).route != Ok(Route::Here));
            }
            return;
        }
        let real = sealed(&mut self.ann, PACKET);
        self.authentic(9, &real);
        self.send_back();
        assert_eq!(self.state().len(), 1);
    }
}
