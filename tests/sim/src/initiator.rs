//! The initiator's side of WireGuard with everything of one's choice: timestamps, counters, what is in a packet.
//!
//! `boringtun` is an honest client. This one is not: it does what a device does that has its own program.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac};
use boringtun::x25519::StaticSecret;
use snow::{Builder, HandshakeState, StatelessTransportState};

use crate::client::PATIENCE;
use crate::gateway::public_key;

/// Length of an initiation.
pub const INITIATION: usize = 148;
/// Length of a response.
pub const RESPONSE: usize = 92;

/// A key with a socket.
#[derive(Debug)]
pub struct Initiator {
    private: [u8; 32],
    /// Where its datagrams come from.
    pub socket: UdpSocket,
    gateway: SocketAddr,
    index: u32,
}

/// A handshake that waits for its response.
#[derive(Debug)]
pub struct Waiting {
    noise: HandshakeState,
    /// The initiation as it was sent.
    pub initiation: Vec<u8>,
}

/// An established session.
#[derive(Debug)]
pub struct Session {
    noise: StatelessTransportState,
    receiver: u32,
}

impl Initiator {
    /// With the private key of `private` bytes, from an address of this host.
    pub fn new(private: &StaticSecret, from: &str, gateway: SocketAddr) -> Self {
        let socket = UdpSocket::bind(from).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { private: private.to_bytes(), socket, gateway, index: 0 }
    }

    /// An initiation with this timestamp (any number that grows will do), not yet sent.
    pub fn initiate(&mut self, timestamp: u64) -> Waiting {
        let mut noise = Builder::new("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().unwrap())
            .prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com")
            .unwrap()
            .local_private_key(&self.private)
            .unwrap()
            .remote_public_key(public_key().as_bytes())
            .unwrap()
            .psk(2, &[0; 32])
            .unwrap()
            .build_initiator()
            .unwrap();
        self.index += 1;
        let mut initiation = vec![0; INITIATION];
        initiation[0] = 1;
        initiation[4..8].copy_from_slice(&self.index.to_le_bytes());
        let mut tai64n = [0; 12];
        tai64n[..8].copy_from_slice(&((1 << 62) + timestamp).to_be_bytes());
        noise.write_message(&tai64n, &mut initiation[8..]).unwrap();
        sign(&mut initiation);
        Waiting { noise, initiation }
    }

    /// Sends a datagram as it is.
    pub fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.gateway).unwrap();
    }

    /// Waits for the response to an initiation that was sent.
    pub fn finish(&self, waiting: Waiting) -> Session {
        let mut response = [0; 2048];
        let len = self.socket.recv(&mut response).expect("a response");
        assert_eq!((len, response[0]), (RESPONSE, 2));
        let Waiting { mut noise, .. } = waiting;
        noise.read_message(&response[12..60], &mut [0; 32]).unwrap();
        let receiver = u32::from_le_bytes(response[4..8].try_into().unwrap());
        Session { noise: noise.into_stateless_transport_mode().unwrap(), receiver }
    }

    /// Handshakes at this timestamp.
    pub fn connect(&mut self, timestamp: u64) -> Session {
        let waiting = self.initiate(timestamp);
        self.send(&waiting.initiation);
        self.finish(waiting)
    }

    /// Whether anything comes within `time`.
    pub fn hears(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let heard = self.socket.recv(&mut [0; 2048]).is_ok();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        heard
    }
}

impl Session {
    /// A data message.
    pub fn seal(&self, counter: u64, packet: &[u8]) -> Vec<u8> {
        let mut datagram = self.header(counter);
        datagram.resize(16 + packet.len() + 16, 0);
        self.noise.write_message(counter, packet, &mut datagram[16..]).unwrap();
        datagram
    }

    /// What stands in front of a data message's ciphertext.
    pub fn header(&self, counter: u64) -> Vec<u8> {
        [&4u32.to_le_bytes()[..], &self.receiver.to_le_bytes(), &counter.to_le_bytes()].concat()
    }

    /// The packet in a data message from the gateway.
    pub fn open(&self, datagram: &[u8]) -> Vec<u8> {
        let counter = u64::from_le_bytes(datagram[8..16].try_into().unwrap());
        let mut packet = vec![0; datagram.len()];
        let len = self.noise.read_message(counter, &datagram[16..], &mut packet).unwrap();
        packet.truncate(len);
        packet
    }
}

/// Writes the first MAC of a handshake message, which takes no more than the gateway's public key.
pub fn sign(message: &mut [u8]) {
    let at = message.len() - 32;
    let mut hash = Blake2s256::new();
    Digest::update(&mut hash, b"mac1----");
    Digest::update(&mut hash, public_key().as_bytes());
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&hash.finalize()).unwrap();
    mac.update(&message[..at]);
    let mac = mac.finalize_fixed();
    message[at..at + 16].copy_from_slice(&mac);
}
