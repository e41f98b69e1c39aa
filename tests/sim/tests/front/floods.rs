//! Floods of handshakes.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::StaticSecret;
use portcullis::onramp::wireguard::handshake_limits::{HandshakeLimit, PEER, SOURCE};
use portcullis_netstack::DropReason;
use portcullis_sim::gateway::{ALLOW, ANN, BOB, public_key};
use portcullis_sim::initiator::{INITIATION, sign};
use portcullis_sim::namespace::TARGET;
use portcullis_sim::targets::ECHO;
use portcullis_sim::{Client, Gateway, Initiator, Targets, in_namespace};

use super::{SILENCE, counted, echo, until};

/// Sends from this many addresses of a network, as often as each may, what `initiation` makes; returns how many were
/// answered with a response.
fn burst(
    gateway: &Gateway,
    addresses: RangeInclusive<u8>,
    key: &StaticSecret,
    mut initiation: impl FnMut(&mut Initiator) -> Vec<u8>,
) -> usize {
    let before = gateway.dropped_in_all();
    let mut initiators: Vec<_> =
        addresses.map(|n| Initiator::new(key, &format!("127.0.4.{n}:0"), gateway.address)).collect();
    let mut made = Vec::new();
    for initiator in &mut initiators {
        for _ in 0..SOURCE.burst {
            made.push(initiation(initiator));
        }
    }
    for (initiator, datagrams) in initiators.iter().zip(made.chunks(SOURCE.burst as usize)) {
        datagrams.iter().for_each(|datagram| initiator.send(datagram));
    }
    let mut answers = 0;
    until("all are answered or dropped", gateway, || {
        for initiator in &initiators {
            initiator.socket.set_nonblocking(true).unwrap();
            let mut datagram = [0; 2048];
            while let Ok(len) = initiator.socket.recv(&mut datagram) {
                assert!(len < INITIATION, "an answer of {len} bytes");
                // Who gets a cookie was dropped.
                answers += usize::from(datagram[0] == 2);
            }
        }
        answers as u64 + gateway.dropped_in_all() - before >= made.len() as u64
    });
    answers
}

#[test]
fn t04_a_source_that_asks_too_often_is_not_answered() {
    in_namespace(|| {
        let gateway = Gateway::start(2);
        let mut ann = Initiator::new(&ANN.private_key(), "127.0.0.1:0", gateway.address);
        let initiation = ann.initiate(1).initiation;
        let began = Instant::now();
        for _ in 0..100 {
            ann.send(&initiation);
        }
        until("all are dropped but the first", &gateway, || gateway.dropped_in_all() == 99);
        let most =
            u64::from(SOURCE.burst) + 1 + began.elapsed().as_millis() as u64 * u64::from(SOURCE.per_second) / 1000;
        let worked_on = 100 - gateway.limited(HandshakeLimit::Source);
        assert!(worked_on >= u64::from(SOURCE.burst) && worked_on <= most, "{worked_on} of at most {most}");
        assert_eq!(gateway.dropped(DropReason::HandshakeLimit), 100 - worked_on);
        gateway.stop();
    });
}

#[test]
fn t04_a_device_that_asks_too_often_is_not_answered() {
    in_namespace(|| {
        let gateway = Gateway::start(2);
        let mut timestamp = 0;
        let began = Instant::now();
        let next = |initiator: &mut Initiator| {
            timestamp += 1;
            initiator.initiate(timestamp).initiation
        };
        // Fresh ones, from many addresses.
        let answers = burst(&gateway, 1..=20, &ANN.private_key(), next);
        let most = u64::from(PEER.burst) + 1 + began.elapsed().as_millis() as u64 * u64::from(PEER.per_second) / 1000;
        assert!(answers >= 1 && answers as u64 <= most, "{answers} of at most {most}");
        assert!(gateway.limited(HandshakeLimit::Peer) > 0);
        assert!(gateway.dropped(DropReason::HandshakeLimit) >= gateway.limited(HandshakeLimit::Peer));
        // Only this device pays.
        let mut bob = Client::new(BOB, &gateway);
        bob.send_packet(&[]);
        bob.until("a tunnel", |bob| bob.datagrams > 0);
        gateway.stop();
    });
}

#[test]
fn t04_a_replayed_initiation_uses_up_nothing_of_its_device() {
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let mut ann = Initiator::new(&ANN.private_key(), "127.0.0.1:0", gateway.address);
        let kept = ann.initiate(7);
        ann.send(&kept.initiation);
        let initiation = kept.initiation.clone();
        ann.finish(kept);
        let answers = burst(&gateway, 1..=20, &ANN.private_key(), |_| initiation.clone());
        assert_eq!((answers, gateway.limited(HandshakeLimit::Peer)), (0, 0));
        let session = ann.connect(8);
        echo(&ann, &session, 0);
        gateway.stop();
    });
}

#[test]
fn t04_strangers_and_revoked_devices_are_not_answered() {
    in_namespace(|| {
        let mut gateway = Gateway::start(2);
        let mut timestamp = 0;
        let mut next = |initiator: &mut Initiator| {
            timestamp += 1;
            initiator.initiate(timestamp).initiation
        };
        assert_eq!(burst(&gateway, 1..=10, &StaticSecret::from([0x77; 32]), &mut next), 0);
        assert_eq!(gateway.dropped(DropReason::UnknownPeer), 50);
        gateway.publish(ALLOW, &[BOB]);
        assert_eq!(burst(&gateway, 11..=20, &ANN.private_key(), &mut next), 0);
        until("counted", &gateway, || {
            gateway.dropped(DropReason::UnknownPeer) + gateway.dropped(DropReason::HandshakeLimit) == 100
        });
        assert!(gateway.peers().is_empty());
        assert_eq!(gateway.count(|counters| &counters.handshakes), 0);
        gateway.stop();
    });
}

#[test]
fn t04_forged_first_macs_of_made_up_messages_are_worth_one_look() {
    in_namespace(|| {
        let gateway = Gateway::start(2);
        // Anybody can write the first MAC, who knows the gateway's public key. What is under it is noise.
        let socket: SocketAddr = "127.0.4.1:0".parse().unwrap();
        let stranger = UdpSocket::bind(socket).unwrap();
        for (kind, len) in [(1, INITIATION), (2, 92)] {
            let mut datagram = vec![kind; len];
            datagram[1..4].fill(0);
            sign(&mut datagram);
            stranger.send_to(&datagram, gateway.address).unwrap();
        }
        until("dropped", &gateway, || gateway.dropped_in_all() == 2);
        stranger.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(stranger.recv(&mut [0; 2048]).is_err());
        assert!(gateway.peers().is_empty());
        gateway.stop();
    });
}

/// What a flood sent and heard.
#[derive(Debug, Default)]
struct Flood {
    sent: u64,
    bytes_sent: u64,
    bytes_heard: u64,
    longest: usize,
}

/// One address that floods: a key nobody knows, in a client that answers cookies or does not.
struct Flooder {
    socket: UdpSocket,
    tunnel: Tunn,
    answers: bool,
    initiation: Vec<u8>,
    heard: u64,
    sent: u64,
}

impl Flooder {
    fn new(address: [u8; 4], answers: bool) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::from(address), 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut key = [0x99; 32];
        key[..4].copy_from_slice(&address);
        let mut tunnel = Tunn::new(StaticSecret::from(key), public_key(), None, None, 1, None);
        let initiation = initiate(&mut tunnel);
        Self { socket, tunnel, answers, initiation, heard: 0, sent: 0 }
    }

    fn turn(&mut self, gateway: SocketAddr, flood: &mut Flood) {
        let mut datagram = [0; 2048];
        while let Ok(len) = self.socket.recv(&mut datagram) {
            self.heard += len as u64;
            flood.longest = flood.longest.max(len);
            if self.answers {
                self.tunnel.decapsulate(None, &datagram[..len], &mut [0; 2048]);
                self.initiation = initiate(&mut self.tunnel);
            }
        }
        if self.socket.send_to(&self.initiation, gateway).is_ok() {
            self.sent += self.initiation.len() as u64;
            flood.sent += 1;
        }
    }
}

fn initiate(tunnel: &mut Tunn) -> Vec<u8> {
    let mut buffer = [0; INITIATION];
    let TunnResult::WriteToNetwork(initiation) = tunnel.format_handshake_initiation(&mut buffer, true) else {
        panic!("no initiation");
    };
    initiation.to_vec()
}

#[test]
fn t04_an_honest_newcomer_gets_in_during_a_flood() {
    const IN_WITHIN: Duration = Duration::from_secs(10);
    // Messages in a burst, and bursts in a second: 10,000 a second, of which half answer cookies.
    const BURST: usize = 20;
    const PAUSE: Duration = Duration::from_millis(2);
    in_namespace(|| {
        let _targets = Targets::start();
        let gateway = Gateway::start(2);
        let mut regular = Client::new(ANN, &gateway);
        let of_regular = regular.open(TARGET, ECHO);
        let (address, over) = (gateway.address, Arc::new(AtomicBool::new(false)));
        let flooding = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let mut flood = Flood::default();
                let mut flooders: Vec<_> =
                    (0..200).map(|n| Flooder::new([127, 0, 1 + n % 2, 1 + n], n % 2 == 0)).collect();
                let mut next = 0;
                while !over.load(Ordering::Relaxed) {
                    for _ in 0..BURST {
                        flooders[next % 200].turn(address, &mut flood);
                        next += 1;
                    }
                    std::thread::sleep(PAUSE);
                }
                for flooder in &flooders {
                    assert!(flooder.heard < flooder.sent, "{} bytes for {}", flooder.heard, flooder.sent);
                    flood.bytes_heard += flooder.heard;
                    flood.bytes_sent += flooder.sent;
                }
                flood
            }
        });
        // The flood is on when cookies are asked for, and some that answered them have come too often.
        until("a flood", &gateway, || {
            gateway.limited(HandshakeLimit::Unproven) > 500 && gateway.limited(HandshakeLimit::Source) > 500
        });
        let began = Instant::now();
        let mut newcomer = Client::new(BOB, &gateway);
        let connection = newcomer.open(TARGET, ECHO);
        newcomer.exchange(connection, 1000);
        let took = began.elapsed();
        assert!(took < IN_WITHIN, "{took:?}; {}", counted(&gateway));
        regular.exchange(of_regular, 1000);
        over.store(true, Ordering::Relaxed);
        let flood = flooding.join().unwrap();
        assert!(flood.longest < INITIATION, "an answer of {} bytes", flood.longest);
        assert!(flood.bytes_heard < flood.bytes_sent, "{flood:?}");
        assert_eq!(gateway.peers().len(), 2);
        gateway.stop();
    });
}
