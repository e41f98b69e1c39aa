use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::*;
use crate::directory::DirectoryContext;
use crate::keys::encode_key;

const GATEWAY: [u8; 32] = [0x42; 32];
const ANN: [u8; 32] = [2; 32];

/// One shard's peers with what a datagram needs besides.
struct Front {
    peers: Peers,
    directory: Directory,
    counters: ShardCounters,
    outbox: Outbox,
    clock: Instant,
}

impl Front {
    fn new() -> Self {
        let key = encode_key(PublicKey::from(&StaticSecret::from(ANN)).as_bytes());
        let text = format!(
            r#"{{ "users": {{ "ann": {{}} }}, "devices": {{ "ann": {{ "user": "ann", "public_key": "{key}",
                "addresses": ["100.96.0.2"] }} }} }}"#
        );
        let context = DirectoryContext { tunnel: vec!["100.96.0.1/16".parse().unwrap()], own_public_key: None };
        Self {
            peers: Peers::new(Arc::new(WireguardIdentity::new(GATEWAY)), 0, 1),
            directory: Directory::parse(&text, &context).unwrap(),
            counters: ShardCounters::default(),
            outbox: Outbox::default(),
            clock: Instant::now(),
        }
    }

    /// Takes a datagram; the answers to it come back.
    fn take(&mut self, from: u32, datagram: &[u8]) -> (Result<Route, DropReason>, Vec<Vec<u8>>) {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + from)), 50_000);
        let Self { peers, directory, counters, outbox, clock } = self;
        let mut around = Surroundings { directory, now: Timestamp::now(), clock: *clock, counters, outbox };
        let route =
            peers.handle_datagram(&mut around, Endpoint { address, local: None }, datagram, false, |_, _, _| {});
        let answers = self.outbox.datagrams().map(|(_, datagram)| datagram.to_vec()).collect();
        self.outbox.clear();
        (route, answers)
    }

    /// Offers an initiation, and again with a cookie if one is asked for.
    fn offer(&mut self, from: u32, client: &mut Tunn) -> Result<Route, DropReason> {
        let (route, answers) = self.take(from, &initiation(client));
        match answers.as_slice() {
            [cookie] if word(cookie, 0) == Some(MESSAGE_COOKIE) => {
                assert!(matches!(client.decapsulate(None, cookie, &mut [0; 256]), TunnResult::Done));
                self.take(from, &initiation(client)).0
            }
            _ => route,
        }
    }

    fn limited(&self, limit: HandshakeLimit) -> u64 {
        self.counters.handshakes_limited[limit.index()].value()
    }
}

fn client(private: [u8; 32]) -> Tunn {
    let gateway = PublicKey::from(&StaticSecret::from(GATEWAY));
    Tunn::new(StaticSecret::from(private), gateway, None, None, 7, None)
}

fn initiation(client: &mut Tunn) -> Vec<u8> {
    let mut buffer = [0; 256];
    let TunnResult::WriteToNetwork(initiation) = client.format_handshake_initiation(&mut buffer, true) else {
        panic!("no initiation");
    };
    initiation.to_vec()
}

#[test]
fn t04_the_work_for_all_is_limited_whoever_answers_cookies() {
    const SOURCES: u32 = 1_000;
    const LEFT: u32 = 600;
    let mut front = Front::new();
    front.peers.identity.limits.spend(front.clock, handshake_limits::WORK.burst - LEFT);
    let mut stranger = client([0x77; 32]);
    let mut worked_on = 0;
    // All at one instant, each with a cookie at its second try: there is what is left and no more.
    for source in 0..SOURCES {
        match front.offer(source, &mut stranger) {
            Err(DropReason::UnknownPeer) => worked_on += 1,
            other => assert_eq!(other, Err(DropReason::HandshakeLimit)),
        }
    }
    assert_eq!(worked_on, LEFT);
    assert_eq!(front.limited(HandshakeLimit::Work), u64::from(SOURCES + SOURCES - LEFT));
    assert_eq!(front.limited(HandshakeLimit::Source) + front.limited(HandshakeLimit::Peer), 0);
    assert_eq!(front.counters.cookie_replies.value(), u64::from(SOURCES));
    assert!(front.peers.iter().next().is_none());
    // A tenth of a second later there is room again, and a device gets in.
    front.clock += Duration::from_millis(100);
    assert_eq!(front.offer(SOURCES, &mut client(ANN)), Ok(Route::Here));
}

#[test]
fn t04_cookies_are_asked_for_from_the_number_that_is_said_on() {
    let mut front = Front::new();
    let mut stranger = client([0x77; 32]);
    let without_cookie = initiation(&mut stranger);
    for source in 0..handshake_limits::UNPROVEN.burst {
        assert_eq!(front.take(source, &without_cookie), (Err(DropReason::UnknownPeer), vec![]));
    }
    let request = initiation(&mut stranger);
    let (route, answers) = front.take(5_000, &request);
    assert_eq!(route, Err(DropReason::HandshakeLimit));
    assert!(matches!(answers.as_slice(), [cookie] if cookie.len() < request.len()));
    assert_eq!(front.counters.cookie_replies.value(), 1);
    // The cookie is good for its own address only.
    stranger.decapsulate(None, &answers[0], &mut [0; 256]);
    let with_cookie = initiation(&mut stranger);
    assert_eq!(front.take(5_001, &with_cookie).0, Err(DropReason::HandshakeLimit));
    assert_eq!(front.take(5_000, &with_cookie).0, Err(DropReason::UnknownPeer));
}

#[test]
fn t04_who_is_named_on_forged_messages_gets_in() {
    let mut front = Front::new();
    let mut stranger = client([0x77; 32]);
    let forged = initiation(&mut stranger);
    for _ in 0..1_000 {
        let (route, answers) = front.take(9, &forged);
        assert!(route.is_err() && answers.iter().all(|answer| answer.len() < forged.len()));
    }
    assert!(front.limited(HandshakeLimit::Source) >= 990);
    assert_eq!(front.offer(9, &mut client(ANN)), Ok(Route::Here));
}
