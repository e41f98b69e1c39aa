use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use boringtun::x25519::StaticSecret;
use serde_json::json;

use super::*;
use crate::directory::DirectoryContext;
use crate::keys::encode_key;

const GATEWAY: [u8; 32] = [0x42; 32];
const ANN: [u8; 32] = [2; 32];

/// Devices behind one address, each with a number from 1 and a key made of it.
const CROWD: u16 = 300;

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
        Self::with(&[ANN])
    }

    /// With a device for each private key.
    fn with(keys: &[[u8; 32]]) -> Self {
        let device = |(key, number): (&[u8; 32], u32)| {
            let key = encode_key(PublicKey::from(&StaticSecret::from(*key)).as_bytes());
            let address = Ipv4Addr::from_bits(0x6460_0000 + number);
            let device = json!({ "user": "ann", "public_key": key, "addresses": [address.to_string()] });
            (format!("device-{number}"), device)
        };
        let devices: serde_json::Map<_, _> = keys.iter().zip(2..).map(device).collect();
        let text = json!({ "users": { "ann": {} }, "devices": devices }).to_string();
        let context = DirectoryContext {
            tunnel: vec!["100.96.0.1/16".parse().unwrap()],
            own_public_key: None,
            networks: Vec::new(),
        };
        Self {
            peers: Peers::new(Arc::new(WireguardIdentity::new(GATEWAY, [])), 0, 1),
            directory: Directory::parse(&text, &context).unwrap(),
            counters: ShardCounters::default(),
            outbox: Outbox::default(),
            clock: Instant::now(),
        }
    }

    /// Takes a datagram; the answers to it come back.
    fn take(&mut self, from: u32, datagram: &[u8]) -> (Result<Route, DropReason>, Vec<Vec<u8>>) {
        self.take_from(endpoint(from, 50_000), datagram)
    }

    fn take_from(&mut self, from: Endpoint, datagram: &[u8]) -> (Result<Route, DropReason>, Vec<Vec<u8>>) {
        let Self { peers, directory, counters, outbox, clock } = self;
        let mut around = Surroundings { directory, now: Timestamp::now(), clock: *clock, counters, outbox };
        let route = peers.handle_datagram(&mut around, from, datagram, false, |_, _, _| {});
        (route, self.sent().into_iter().map(|(_, datagram)| datagram).collect())
    }

    /// What waits to be sent.
    fn sent(&mut self) -> Vec<(Endpoint, Vec<u8>)> {
        let sent = self.outbox.datagrams().map(|(to, datagram)| (to, datagram.to_vec())).collect();
        self.outbox.clear();
        sent
    }

    /// Opens a handshake with the device that has a private key.
    fn open(&mut self, private: [u8; 32], to: Endpoint) {
        let Self { peers, directory, counters, outbox, clock } = self;
        let mut around = Surroundings { directory, now: Timestamp::now(), clock: *clock, counters, outbox };
        peers.open(&mut around, PublicKey::from(&StaticSecret::from(private)).as_bytes(), to);
    }

    /// Has every tunnel look at its timers.
    fn tick(&mut self) {
        self.peers.tick(&mut self.outbox, |_| false);
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

fn endpoint(host: u32, port: u16) -> Endpoint {
    Endpoint { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + host)), port), local: None }
}

fn crowd_key(number: u16) -> [u8; 32] {
    let mut key = [3; 32];
    key[1..3].copy_from_slice(&number.to_be_bytes());
    key
}

/// The devices of a crowd, which all answer at one instant, from one address with a port each, initiations of the
/// gateway that leave when `ask` is done.
fn crowd_answers(ask: impl FnOnce(&mut Front)) {
    let keys: Vec<_> = (1..=CROWD).map(crowd_key).collect();
    let mut front = Front::with(&keys);
    let mut clients: Vec<_> = keys.iter().map(|key| client(*key)).collect();
    for (key, number) in keys.iter().zip(1..) {
        let public = PublicKey::from(&StaticSecret::from(*key)).to_bytes();
        let party = front.peers.identity.party(&front.directory, &public, Timestamp::now()).unwrap();
        let slot = front.peers.slot_for(party).unwrap();
        // A session it had is over.
        front.peers.slots[slot].endpoint = Some(endpoint(9, number));
    }
    front.clock += Duration::from_secs(120);
    ask(&mut front);
    let asked = front.sent();
    assert_eq!(asked.len(), clients.len());
    let answers: Vec<_> = asked.iter().map(|(to, initiation)| (*to, answer(&mut clients, *to, initiation))).collect();
    for (from, response) in &answers {
        let (route, confirmed) = front.take_from(*from, response);
        assert_eq!(route, Ok(Route::Here), "port {}", from.address.port());
        assert!(matches!(confirmed.first().and_then(|data| word(data, 0)), Some(MESSAGE_DATA)));
    }
    assert_eq!(front.counters.cookie_replies.value(), 0);
    assert_eq!(front.counters.handshakes.value(), u64::from(CROWD));
    // What is worked on for others is all there: nobody is locked out by it.
    assert!(front.peers.identity.limits.owes_nothing(front.clock));
    // An answer that nobody waits for is a stranger's, whoever sends it.
    let (from, late) = answers.last().unwrap();
    for _ in 0..=handshake_limits::SOURCE.burst {
        assert!(front.take_from(*from, late).0.is_err());
    }
    assert_eq!(front.limited(HandshakeLimit::Source), 1);
}

fn answer(clients: &mut [Tunn], at: Endpoint, initiation: &[u8]) -> Vec<u8> {
    let client = &mut clients[usize::from(at.address.port()) - 1];
    let mut buffer = [0; 256];
    let TunnResult::WriteToNetwork(response) = client.decapsulate(None, initiation, &mut buffer) else {
        panic!("no response");
    };
    response.to_vec()
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

/// Has the gateway send a packet to everybody.
fn send_to_all(front: &mut Front) {
    for slot in 0..usize::from(CROWD) {
        assert!(front.peers.send(slot, &[0x45; 20], &mut front.outbox));
    }
}

#[test]
fn t04_answers_of_a_crowd_behind_one_address_are_not_limited() {
    crowd_answers(send_to_all);
}

#[test]
fn t04_answers_to_initiations_of_the_timers_are_not_limited() {
    crowd_answers(|front| {
        send_to_all(front);
        assert_eq!(front.sent().len(), usize::from(CROWD), "lost");
        for (_, peer) in &mut front.peers.slots {
            peer.asked = 0;
        }
        // The tunnels ask again by themselves, five seconds and a part of one later. Their clock is the system's.
        let end = Instant::now() + Duration::from_secs(60);
        while front.outbox.datagrams().count() < usize::from(CROWD) {
            assert!(Instant::now() < end, "the timers do nothing");
            std::thread::sleep(TICK);
            front.tick();
        }
    });
}

#[test]
fn t04_made_up_answers_are_limited() {
    let mut front = Front::new();
    front.open(ANN, endpoint(9, 1));
    let [(to, initiation)] = &front.sent()[..] else { panic!("one initiation") };
    // Whoever has not the key that is shared before can make one whose MAC holds, and that takes the work to find out.
    let gateway = PublicKey::from(&StaticSecret::from(GATEWAY));
    let mut impostor = [Tunn::new(StaticSecret::from(ANN), gateway, Some([1; 32]), None, 7, None)];
    let response = answer(&mut impostor, *to, initiation);
    for _ in 0..100 {
        assert!(front.take_from(*to, &response).0.is_err());
    }
    assert_eq!(front.limited(HandshakeLimit::Source), 100 - 1 - u64::from(handshake_limits::SOURCE.burst));
}

#[test]
fn who_begins_a_handshake_while_it_is_asked_is_not_forgotten() {
    let mut front = Front::new();
    front.open(ANN, endpoint(9, 1));
    // What was asked is lost, and the client comes by itself; its first datagram takes its time.
    let mut ann = client(ANN);
    let (route, answers) = front.take_from(endpoint(9, 1), &initiation(&mut ann));
    assert_eq!(route, Ok(Route::Here));
    for _ in 0..100 {
        front.tick();
    }
    let mut buffer = [0; 256];
    let TunnResult::WriteToNetwork(first) = ann.decapsulate(None, &answers[0], &mut buffer) else {
        panic!("no session");
    };
    assert_eq!(front.take_from(endpoint(9, 1), first).0, Ok(Route::Here));
    assert!(front.peers.iter().next().is_some_and(|(_, peer)| peer.last_handshake().is_some()));
}

#[test]
fn a_packet_of_another_flow_never_waits_for_a_session() {
    let mut front = Front::new();
    front.open(ANN, endpoint(9, 1));
    front.sent();
    let slot = front.peers.slot(PublicKey::from(&StaticSecret::from(ANN)).as_bytes()).unwrap();
    assert!(!front.peers.send_on(slot, &[0x45; 20], &mut front.outbox), "it would leave whenever the peer answers");
    assert!(front.sent().is_empty(), "a handshake is under way");

    // The client begins one itself; with its first packet there is a session.
    let mut ann = client(ANN);
    let (route, answers) = front.take(9, &initiation(&mut ann));
    assert_eq!(route, Ok(Route::Here));
    let mut buffer = [0; 256];
    let TunnResult::WriteToNetwork(first) = ann.decapsulate(None, &answers[0], &mut buffer) else {
        panic!("no keepalive")
    };
    let first = first.to_vec();
    assert_eq!(front.take(9, &first).0, Ok(Route::Here));
    assert!(front.peers.send_on(slot, &[0x45; 20], &mut front.outbox));
    assert!(matches!(front.sent().as_slice(), [(_, data)] if word(data, 0) == Some(MESSAGE_DATA)));
    assert!(!front.peers.send_on(slot + 1, &[0x45; 20], &mut front.outbox), "nobody is there");
}
