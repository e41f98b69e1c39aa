//! Handshakes that the gateway opens with peers it remembers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::PublicKey;
use jiff::Timestamp;
use portcullis::shard::link::Command;
use portcullis::state::Remembered;
use portcullis_sim::client::PATIENCE;
use portcullis_sim::gateway::{ALLOW, ANN, Device, public_key};
use portcullis_sim::namespace::TARGET;
use portcullis_sim::targets::ECHO;
use portcullis_sim::{Client, Gateway, Targets, in_namespace};

/// Bytes of a handshake initiation.
const INITIATION: usize = 148;

/// A client that has nothing to send: it only answers.
struct Sleeper {
    device: Device,
    tunnel: Tunn,
    socket: UdpSocket,
}

impl Sleeper {
    fn new(number: u8) -> Self {
        let device = Device { name: Box::leak(format!("sleeper-{number}").into_boxed_str()), number };
        let tunnel = Tunn::new(device.private_key(), public_key(), None, None, u32::from(number), None);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { device, tunnel, socket }
    }

    fn key(&self) -> [u8; 32] {
        PublicKey::from(&self.device.private_key()).to_bytes()
    }

    /// As a database would have it.
    fn remembered(&self, shard: usize, shards: usize) -> Remembered {
        let endpoint = self.socket.local_addr().unwrap();
        Remembered { key: self.key(), endpoint, local: None, shard, shards, heard: Timestamp::now() }
    }

    /// Answers what came. Returns whether a session was confirmed.
    fn turn(&mut self) -> bool {
        let (mut datagram, mut buffer) = ([0; 2048], [0; 2048]);
        let mut confirmed = false;
        while let Ok((len, from)) = self.socket.recv_from(&mut datagram) {
            match self.tunnel.decapsulate(None, &datagram[..len], &mut buffer) {
                TunnResult::WriteToNetwork(answer) => drop(self.socket.send_to(answer, from).unwrap()),
                TunnResult::Done => confirmed = true,
                TunnResult::Err(error) => panic!("{error:?}"),
                TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => panic!("a packet from nowhere"),
            }
        }
        confirmed
    }
}

/// After a restart answers come by the hundred in a second. They are not held against the limits for handshakes that
/// strangers begin, and a client with traffic does not wait for the end of it.
#[test]
fn handshakes_are_opened_with_hundreds_at_once() {
    for shards in [1, 2, 8] {
        in_namespace(move || {
            let _targets = Targets::start();
            let mut gateway = Gateway::start(shards);
            let mut sleepers: Vec<_> = (4..=250).map(Sleeper::new).collect();
            let devices: Vec<_> = sleepers.iter().map(|sleeper| sleeper.device).chain([ANN]).collect();
            gateway.publish(ALLOW, &devices);
            let mut ann = Client::new(ANN, &gateway);
            let connection = ann.open(TARGET, ECHO);
            let places = (0..shards).cycle();
            let peers: Vec<_> =
                sleepers.iter().zip(places).map(|(sleeper, shard)| sleeper.remembered(shard, shards)).collect();
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let confirmed = scope.spawn(|| {
                    let mut confirmed = BTreeSet::new();
                    let end = Instant::now() + PATIENCE;
                    while confirmed.len() < sleepers.len() && Instant::now() < end {
                        confirmed.extend(sleepers.iter_mut().filter_map(|one| one.turn().then_some(one.device.number)));
                    }
                    done.store(true, Ordering::Relaxed);
                    confirmed.len()
                });
                gateway.open(&peers);
                while !done.load(Ordering::Relaxed) {
                    ann.exchange(connection, 10_000);
                }
                assert_eq!(confirmed.join().unwrap(), peers.len(), "sessions");
            });
            assert_eq!(gateway.count(|counters| &counters.cookie_replies), 0);
            assert_eq!(gateway.count(|counters| &counters.handshakes), peers.len() as u64 + 1);
            // And all of them are remembered, by the shard that has them.
            let mut told: Vec<_> = gateway.ask(Command::Moved).into_iter().flatten().collect();
            told.retain(|peer| peers.iter().any(|known| known.key == peer.key));
            let place = |peer: &Remembered| (peer.key, peer.endpoint, peer.shard);
            let sorted = |peers: &[Remembered]| peers.iter().map(place).collect::<BTreeSet<_>>();
            assert_eq!(sorted(&told), sorted(&peers));
            assert!(gateway.ask(Command::Moved).into_iter().flatten().next().is_none(), "told once");
            gateway.stop();
        });
    }
}

/// A datagram may be lost, so it is sent again before long; but who is not there is not looked for for ever.
#[test]
fn who_does_not_answer_is_asked_again_and_then_forgotten() {
    in_namespace(|| {
        let mut gateway = Gateway::start(1);
        let (sleeper, stranger) = (Sleeper::new(9), Sleeper::new(10));
        gateway.publish(ALLOW, &[sleeper.device]);
        gateway.open(&[sleeper.remembered(0, 1), stranger.remembered(0, 1)]);
        let end = Instant::now() + PATIENCE;
        let mut asked = gateway.peers();
        while asked.is_empty() {
            assert!(Instant::now() < end, "nobody is asked");
            asked = gateway.peers();
        }
        let asked: Vec<_> = asked.iter().map(|peer| &*peer.device).collect();
        assert_eq!(asked, [sleeper.device.name], "who is not in the directory is not asked");
        let mut lengths = Vec::new();
        while !gateway.peers().is_empty() {
            assert!(Instant::now() < end, "never forgotten: {lengths:?}");
            match sleeper.socket.recv(&mut [0; 2048]) {
                Ok(len) => lengths.push(len),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(lengths.len() == 3 && lengths.iter().all(|len| *len == INITIATION), "{lengths:?}");
        assert_eq!(stranger.socket.recv(&mut [0; 2048]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(gateway.ask(Command::Moved).into_iter().flatten().next().is_none(), "it was not heard of");
        gateway.stop();
    });
}
