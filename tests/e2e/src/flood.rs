//! SYNs and datagrams made by hand, sent as fast as a raw socket takes them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// Lengths of the headers, without options.
const IP: usize = 20;
const TCP: usize = 20;

/// A raw socket inside a namespace: what is sent has its IP header already.
#[derive(Debug)]
pub struct RawSender(Socket);

impl RawSender {
    /// Opens one inside `netns`.
    ///
    /// # Panics
    ///
    /// Without CAP_NET_RAW.
    pub fn new(netns: &Netns) -> Self {
        let raw = Protocol::from(nix::libc::IPPROTO_RAW);
        Self(netns.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(raw)).expect("a raw socket needs CAP_NET_RAW")))
    }

    /// Sends a SYN. Returns whether the kernel took it; a full queue does not.
    pub fn syn(&self, from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> bool {
        self.0.send_to(&syn(from, to, sequence), &SocketAddrV4::new(*to.ip(), 0).into()).is_ok()
    }
}

/// An IPv4 packet with a bare SYN. The kernel fills in the header's length, identification and checksum (raw(7)).
fn syn(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> [u8; IP + TCP] {
    let mut packet = [0; IP + TCP];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[32..34].copy_from_slice(&[0x50, 0x02]);
    packet[34..36].copy_from_slice(&u16::MAX.to_be_bytes());
    let sum = tcp_checksum(*from.ip(), *to.ip(), &packet[IP..]);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// RFC 9293 section 3.1, over the pseudo-header too.
fn tcp_checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).expect("a small segment");
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6], &length.to_be_bytes()].concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// A thread that floods until it is dropped.
#[derive(Debug)]
pub struct SynFlood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl SynFlood {
    /// SYNs from `netns`, each a new flow: from every port of `from` to every port of each address of `to` in turn.
    pub fn start(netns: &Netns, from: Ipv4Addr, to: Vec<Ipv4Addr>) -> Self {
        let sender = RawSender::new(netns);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let mut number: u32 = 0;
            while !stopped.load(Ordering::Relaxed) {
                let address = to[number as usize % to.len()];
                let source = u16::try_from(number % 60_000).expect("a port") + 1024;
                let destination = u16::try_from(number / 60_000 % 60_000).expect("a port") + 1;
                if sender.syn(SocketAddrV4::new(from, source), SocketAddrV4::new(address, destination), number) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                number = number.wrapping_add(1);
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    /// How many have been sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for SynFlood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}
