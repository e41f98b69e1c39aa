//! Protocols that nobody looks into: their packets can only go on as they are, and are judged and logged all the same.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::netns::Netns;
use portcullis_e2e::nft::Counter;
use portcullis_e2e::on_both_ramps;
use portcullis_e2e::setup::{Setup, policy_without};
use portcullis_e2e::wait;
use portcullis_e2e::world::World;
use socket2::{Domain, Protocol, Socket, Type};

/// Generic routing encapsulation, RFC 2784.
const GRE: i32 = 47;
/// Of the numbers that are nobody's.
const NOBODYS: i32 = 200;

/// A host in one protocol.
struct Speaker {
    /// It is a raw one; the calls are the same.
    socket: UdpSocket,
    /// How much of an IP header comes with what is heard.
    header: usize,
}

impl Speaker {
    fn new(netns: &Netns, protocol: i32, own: IpAddr) -> Self {
        let own = SocketAddr::new(own, 0);
        let socket = netns.run(|| {
            let socket = Socket::new(Domain::for_address(own), Type::RAW, Some(Protocol::from(protocol)));
            let socket = socket.expect("root may open raw sockets");
            socket.bind(&own.into()).expect("its own address");
            UdpSocket::from(socket)
        });
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        Self { socket, header: if own.is_ipv4() { 20 } else { 0 } }
    }

    fn towards(netns: &Netns, protocol: i32, own: IpAddr, to: IpAddr) -> Self {
        let speaker = Self::new(netns, protocol, own);
        speaker.socket.connect(SocketAddr::new(to, 0)).expect("a way to the target");
        speaker
    }

    fn say(&self, data: &[u8]) {
        assert_eq!(self.socket.send(data).expect("a way to the target"), data.len());
    }

    fn hear(&self) -> io::Result<Vec<u8>> {
        self.hear_from().map(|(said, _)| said)
    }

    fn hear_from(&self) -> io::Result<(Vec<u8>, IpAddr)> {
        let mut bytes = vec![0; 65_535];
        let (len, from) = wait::uninterrupted(|| self.socket.recv_from(&mut bytes))?;
        bytes.truncate(len);
        Ok((bytes.split_off(self.header), from.ip()))
    }

    /// Sends back the next that is said to it. Returns who said it.
    fn answer(&self) -> IpAddr {
        let (said, from) = self.hear_from().expect("somebody speaks");
        if self.socket.peer_addr().is_ok() {
            self.say(&said);
        } else {
            self.socket.send_to(&said, SocketAddr::new(from, 0)).expect("a way back");
        }
        from
    }
}

fn both_ways(world: &mut World<'_>) {
    let client = world.client();
    for family in FAMILIES {
        let (own, host) = (client.inner_address(family), Host::Open.address(family));
        // Only a connected one learns what fits the path (`rawv6_err` in Linux).
        let target = Speaker::towards(world.private(), GRE, host, own);
        let speaker = Speaker::towards(client.netns, GRE, own, host);
        for size in [1, 700, 1_200, 4_000] {
            // A path that narrows is learnt from the first that is too long for it.
            let echo = wait::until("the echo", || {
                speaker.say(&vec![7; size]);
                assert_eq!(target.answer(), own, "the target sees the client");
                speaker.socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
                speaker.hear().ok()
            });
            assert!(echo == vec![7; size], "{size}: {} octets", echo.len());
        }
        let to = SocketAddr::new(host, 0);
        let line =
            world.gateway.wait_for_flow("its record", |line| line.destination == to && line.service == "proto/47");
        let means = (line.protocol.as_str(), line.offramp.as_deref(), line.rule.as_deref(), line.ended.as_str());
        assert_eq!(means, ("proto/47", Some("keep"), Some("open"), "idle"), "{line:#?}");
        assert_eq!((line.source.ip(), line.source.port()), (own, 0));
        assert!(line.bytes_up >= 5_901 && line.bytes_down >= 5_901 && line.packets_up >= 4, "{line:#?}");

        // Nobody speaks it there, and the target's host says so.
        let speaker = Speaker::towards(client.netns, NOBODYS, own, host);
        speaker.say(b"anybody?");
        let error = speaker.hear().expect_err("nobody");
        assert!(error.kind() != io::ErrorKind::WouldBlock, "{error}");

        // The policy decides before a packet leaves.
        let shut = Host::Shut.address(family);
        let arrived = Counter::arriving(world.private(), &format!("gre{family:?}"), "meta l4proto gre");
        let speaker = Speaker::towards(client.netns, GRE, own, shut);
        speaker.say(b"anybody?");
        let error = speaker.hear().expect_err("denied");
        assert!(error.kind() != io::ErrorKind::WouldBlock, "{error}");
        let shut = SocketAddr::new(shut, 0);
        let line = world.gateway.wait_for_flow("its record", |line| line.destination == shut);
        assert_eq!((line.ended.as_str(), line.service.as_str()), ("denied", "proto/47"), "{line:#?}");
        assert_eq!(arrived.packets(), 0);
    }

    // What is no longer allowed no longer passes.
    let family = Family::V4;
    let (own, host) = (client.inner_address(family), Host::Open.address(family));
    let target = Speaker::new(world.private(), GRE, host);
    let speaker = Speaker::towards(client.netns, GRE, own, host);
    speaker.say(b"hello");
    target.answer();
    speaker.hear().expect("the echo");
    world.gateway.set_policy(&policy_without(Host::Open));
    let line = world.gateway.wait_for_flow("its record", |line| line.ended == "revoked" && line.service == "proto/47");
    assert_eq!((line.service.as_str(), line.rule.as_deref()), ("proto/47", Some("no-more")), "{line:#?}");
    target.socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    for told in [&b"it hears the refusal"[..], b"and it does again"] {
        speaker.say(told);
        speaker.hear().expect_err("denied");
    }
    target.hear().expect_err("nothing arrives");
    // Nor from the other side, to which it was open.
    target.socket.send_to(b"hello?", SocketAddr::new(own, 0)).expect("a way to the gateway");
    speaker.hear().expect_err("nothing arrives");
}
on_both_ramps!(
    they_go_on_where_packets_do,
    setup = |setup| setup.keep().limit("udp_idle", "\"3s\"").limit("udp_idle_one_way", "\"2s\""),
    both_ways
);

fn no_way(world: &mut World<'_>) {
    let client = world.client();
    for family in FAMILIES {
        let (own, host) = (client.inner_address(family), Host::Open.address(family));
        let errors = match family {
            Family::V4 => "meta l4proto icmp icmp type destination-unreachable",
            Family::V6 => "meta l4proto icmpv6 icmpv6 type destination-unreachable",
        };
        let refused = Counter::arriving(client.netns, &format!("refused{family:?}"), errors);
        Speaker::towards(client.netns, GRE, own, host).say(b"anybody?");
        wait::until("the refusal", || (refused.packets() == 1).then_some(()));
        let to = SocketAddr::new(host, 0);
        let line = world.gateway.wait_for_flow("its record", |line| line.destination == to);
        let means = (line.service.as_str(), line.offramp.as_deref(), line.ended.as_str());
        assert_eq!(means, ("proto/47", Some("direct"), "target_unreachable"), "{line:#?}");
        let to = if host.is_ipv4() { format!("{host}/proto/47") } else { format!("[{host}]/proto/47") };
        let text = world.gateway.verb(&["policy", "explain", "--device", &client.device, "--to", &to]);
        assert!(
            text.contains("allow") && text.contains("way out: none; not direct, which carries no proto/47"),
            "{text}"
        );
    }
}
on_both_ramps!(they_are_refused_where_sockets_carry_flows, setup = |setup: Setup| setup, no_way);
