//! Peers that are connected and do nothing else.
//!
//! A gateway under load answers a handshake with a cookie: the peer asks again with it, at once. A peer without an
//! answer asks again after a second.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::PublicKey;
use ipnet::Ipv4Net;
use portcullis::onramp::wireguard::socket::{Endpoint, Outbox, ReceiveBuffers, WireguardSocket};
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{Arguments, private_key};
use crate::error::LoadError;
use crate::output;
use crate::samples::per_second;

/// How often the peers are looked at; a tunnel looks at its timers once in [`PARTS`].
const TICK: Duration = Duration::from_millis(250);
const PARTS: usize = 4;
/// Handshakes under way at a time.
const OPENING: usize = 64;
/// Time for an answer to a handshake.
const ANSWER: Duration = Duration::from_secs(1);
/// Time in which at least one peer must get connected.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest datagram the kernel hands up, and so the least length of a buffer `boringtun` decrypts into.
const SCRATCH: usize = 65_536;

const MESSAGE_RESPONSE: u32 = 2;
const MESSAGE_COOKIE: u32 = 3;
const MESSAGE_DATA: u32 = 4;

struct Peer {
    tunnel: Tunn,
    /// Of [`Crowd::links`].
    link: usize,
    /// Where it sends from; `None`: wherever the host would.
    local: Option<IpAddr>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Asked(Instant),
    Connected,
}

struct Link {
    socket: WireguardSocket,
    outbox: Outbox,
}

struct Crowd {
    endpoint: SocketAddr,
    links: Vec<Link>,
    peers: Vec<Peer>,
    /// Peers that have not asked yet.
    new: VecDeque<usize>,
    asked: Vec<usize>,
    connected: usize,
    began: Instant,
    progress: Instant,
    memory: ReceiveBuffers,
    scratch: Box<[u8]>,
    timer: Interval,
    ticks: usize,
}

/// Connects all peers, says so, and keeps them.
pub(super) async fn run(arguments: &Arguments, endpoint: SocketAddr, server_key: [u8; 32]) -> Result<(), LoadError> {
    let mut crowd = Crowd::new(arguments, endpoint, server_key)?;
    tokio::task::unconstrained(poll_fn(|cx| crowd.turn(cx))).await
}

impl Crowd {
    fn new(arguments: &Arguments, endpoint: SocketAddr, server_key: [u8; 32]) -> Result<Self, LoadError> {
        let links = (0..arguments.sockets).map(|_| {
            let socket = crate::wireguard::bind(endpoint).map_err(LoadError::at("send to", endpoint))?;
            Ok(Link { socket, outbox: Outbox::default() })
        });
        let links = links.collect::<Result<Vec<_>, LoadError>>()?;
        let keepalive = (arguments.keepalive > 0).then_some(arguments.keepalive);
        let peers = (0..arguments.peers).map(|index| {
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            let key = private_key(arguments.seed, index);
            let tunnel = Tunn::new(key, PublicKey::from(server_key), None, keepalive, number, None);
            let local = arguments.from.map(|network| address_in(network, number));
            Peer { tunnel, link: index % arguments.sockets, local, state: State::New }
        });
        let peers: Vec<_> = peers.collect();
        let mut timer = interval(TICK);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Ok(Self {
            endpoint,
            links,
            new: (0..peers.len()).collect(),
            peers,
            asked: Vec::new(),
            connected: 0,
            began: now,
            progress: now,
            memory: ReceiveBuffers::default(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            timer,
            ticks: 0,
        })
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LoadError>> {
        let now = Instant::now();
        while self.timer.poll_tick(cx).is_ready() {
            self.tick(now)?;
        }
        let mut busy = false;
        for link in 0..self.links.len() {
            busy |= self.poll_link(cx, link, now)?;
        }
        while self.asked.len() < OPENING
            && let Some(peer) = self.new.pop_front()
        {
            self.ask(peer, now);
        }
        for Link { socket, outbox } in &mut self.links {
            // What the kernel refuses is lost, as datagrams may be.
            let _ = socket.poll_flush(cx, outbox, |_, _| {});
        }
        if busy {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Sends a handshake initiation.
    fn ask(&mut self, index: usize, now: Instant) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(link) = self.links.get_mut(peer.link) else { return };
        if peer.state == State::New {
            self.asked.push(index);
        }
        peer.state = State::Asked(now);
        if let TunnResult::WriteToNetwork(message) = peer.tunnel.format_handshake_initiation(&mut self.scratch, true) {
            link.outbox.queue(Endpoint { address: self.endpoint, local: peer.local }, message);
        }
    }

    /// Takes in one batch of datagrams. `true`: there may be more.
    fn poll_link(&mut self, cx: &mut Context<'_>, index: usize, now: Instant) -> Result<bool, LoadError> {
        let Self { links, peers, endpoint, memory, scratch, .. } = self;
        let Some(Link { socket, outbox }) = links.get_mut(index) else { return Ok(false) };
        let (mut opened, mut hurried) = (Vec::new(), Vec::new());
        let polled = socket.poll_receive(cx, memory, |_, datagram| {
            let Some((message, number)) = receiver(datagram) else { return };
            let Some(peer) = peers.get_mut(number) else { return };
            match peer.tunnel.decapsulate(None, datagram, scratch) {
                TunnResult::WriteToNetwork(answer) => {
                    outbox.queue(Endpoint { address: *endpoint, local: peer.local }, answer);
                    if message == MESSAGE_RESPONSE && peer.state != State::Connected {
                        peer.state = State::Connected;
                        opened.push(number);
                    }
                }
                TunnResult::Done if message == MESSAGE_COOKIE && peer.state != State::Connected => hurried.push(number),
                // Its packets are for nobody, and what is wrong is asked for again.
                TunnResult::Done
                | TunnResult::Err(_)
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..) => {}
            }
        });
        for number in hurried {
            self.ask(number, now);
        }
        if !opened.is_empty() {
            self.asked.retain(|number| !opened.contains(number));
            self.connected += opened.len();
            self.progress = now;
            if self.connected == self.peers.len() {
                let rate = per_second(self.connected as u64, now - self.began);
                output::line(&json!({ "connected": self.connected, "per_second": rate }))?;
            }
        }
        // An error is about a datagram sent earlier: the next call goes on.
        Ok(polled.is_ready())
    }

    fn tick(&mut self, now: Instant) -> Result<(), LoadError> {
        if self.connected < self.peers.len() && now - self.progress >= PATIENCE {
            let (done, failed) = (self.connected as u64, self.asked.len() as u64);
            let last = "no answer from the gateway".to_owned();
            return Err(LoadError::Stalled { seconds: PATIENCE.as_secs(), done, failed, last });
        }
        let late = |peer: &Peer| matches!(peer.state, State::Asked(asked) if now - asked >= ANSWER);
        let late: Vec<_> =
            self.asked.iter().copied().filter(|number| self.peers.get(*number).is_some_and(late)).collect();
        for number in late {
            self.ask(number, now);
        }
        self.ticks += 1;
        let part = self.ticks % PARTS;
        for peer in self.peers.iter_mut().skip(part).step_by(PARTS).filter(|peer| peer.state == State::Connected) {
            if let TunnResult::WriteToNetwork(message) = peer.tunnel.update_timers(&mut self.scratch)
                && let Some(link) = self.links.get_mut(peer.link)
            {
                link.outbox.queue(Endpoint { address: self.endpoint, local: peer.local }, message);
            }
        }
        Ok(())
    }
}

/// A host's address in `network`, another one for each number while there are any.
fn address_in(network: Ipv4Net, number: u32) -> IpAddr {
    let hosts = (u32::MAX >> network.prefix_len()).saturating_sub(1).max(1);
    Ipv4Addr::from(u32::from(network.network()) + 1 + number % hosts).into()
}

/// The kind of a message to a peer, and the peer.
fn receiver(datagram: &[u8]) -> Option<(u32, usize)> {
    let word = |at: usize| datagram.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let message = word(0)?;
    let index = match message {
        MESSAGE_RESPONSE => word(8)?,
        MESSAGE_COOKIE | MESSAGE_DATA => word(4)?,
        _ => return None,
    };
    // The low 8 bits count the handshakes of the peer.
    usize::try_from(index >> 8).ok().map(|number| (message, number))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::UdpSocket;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use boringtun::noise::Packet;
    use boringtun::noise::handshake::parse_handshake_anon;
    use boringtun::noise::rate_limiter::RateLimiter;
    use boringtun::x25519::StaticSecret;

    use super::*;

    /// Answers handshakes, from the fifth on with a cookie first. Ends when nobody asks any more.
    fn gateway(socket: &UdpSocket, private: &StaticSecret, cookies: &AtomicUsize) {
        let public = PublicKey::from(private);
        let (limiter, unlimited) = (RateLimiter::new(&public, 5), Arc::new(RateLimiter::new(&public, u64::MAX)));
        let (mut tunnels, mut scratch, mut datagram) = (HashMap::new(), vec![0; SCRATCH], vec![0; SCRATCH]);
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let datagram = &datagram[..length];
            let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else { continue };
            if let Err(result) = limiter.verify_packet(Some(from.ip()), datagram, &mut scratch) {
                let TunnResult::WriteToNetwork(cookie) = result else { panic!("{result:?}") };
                socket.send_to(cookie, from).unwrap();
                cookies.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let key = parse_handshake_anon(private, &public, &initiation).unwrap().peer_static_public;
            let tunnel = tunnels.entry(key).or_insert_with(|| {
                let limiter = Some(Arc::clone(&unlimited));
                Tunn::new(private.clone(), PublicKey::from(key), None, None, 0, limiter)
            });
            let TunnResult::WriteToNetwork(answer) = tunnel.decapsulate(None, datagram, &mut scratch) else { continue };
            socket.send_to(answer, from).unwrap();
        }
    }

    #[test]
    fn all_get_connected_by_way_of_cookies() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let endpoint = socket.local_addr().unwrap();
        let private = private_key(99, 0);
        let public = PublicKey::from(&private).to_bytes();
        let cookies = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&cookies);
        let gateway = std::thread::spawn(move || gateway(&socket, &private, &asked));
        let connected = crate::on_batching_runtime(async {
            let arguments = Arguments::for_test(100);
            let mut crowd = Crowd::new(&arguments, endpoint, public)?;
            poll_fn(|cx| match crowd.turn(cx) {
                Poll::Pending if crowd.connected == arguments.peers => Poll::Ready(Ok(crowd.connected)),
                Poll::Pending => Poll::Pending,
                Poll::Ready(result) => Poll::Ready(result.map(|()| 0)),
            })
            .await
        });
        assert_eq!(connected.unwrap(), 100);
        gateway.join().unwrap();
        assert!(cookies.load(Ordering::Relaxed) >= 95, "{cookies:?}");
    }
}
