//! The lab itself, without a gateway: what a scenario relies on to see a failure does work.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

use portcullis_e2e::lab::{FAMILIES, Family, Host, Lab, PRIVATE_NETWORKS, client_address, gateway_address};
use portcullis_e2e::nft::{self, Counter};
use portcullis_e2e::stream::{self, MIB};
use portcullis_e2e::target::{TcpTarget, UdpTarget};
use portcullis_e2e::tools;
use portcullis_e2e::turn::Turn;
use portcullis_e2e::wait;
use portcullis_e2e::wg_client::WgClient;

/// Without a gateway the kernel can forward: a packet that got around the gateway would arrive and be counted.
#[test]
fn a_way_around_the_gateway_would_be_seen() {
    let _turn = Turn::shared();
    let lab = Lab::new(2);
    lab.forward();
    for (index, client) in lab.clients.iter().enumerate() {
        lab.route_client(index);
        for family in FAMILIES {
            let to = Host::Open.address(family);
            let what = if family == Family::V4 { "ip" } else { "ip6" };
            let counter = Counter::arriving(&lab.private, &format!("c{index}{what}"), &format!("{what} daddr {to}"));
            let target = TcpTarget::serve(&lab.private, to, |mut stream| stream::send(&mut stream, 1, MIB));
            let stream = client.run(|| TcpStream::connect(target.address())).expect("the kernel forwards");
            let got = stream::receive(stream).expect("the stream ends in order");
            assert_eq!(got, (MIB, target.result().expect("everything is sent")));
            assert!(counter.packets() > 2);

            let echo = UdpTarget::serve(&lab.private, SocketAddr::new(to, 0), <[u8]>::to_vec);
            let socket = client.run(|| UdpSocket::bind(SocketAddr::new(client_address(index, family), 0)));
            let socket = socket.expect("the client has its address");
            socket.send_to(b"hello", echo.address()).expect("a way to the target");
            let mut buffer = [0; 16];
            assert_eq!(wait::uninterrupted(|| socket.recv_from(&mut buffer)).expect("an answer"), (5, echo.address()));
            assert_eq!(&buffer[..5], b"hello");
            assert_eq!(echo.sources(), [socket.local_addr().expect("bound")]);
        }
    }
}

/// Two wireguard-go, one of them in the gateway's place: the client side of the tests carries traffic, also when one
/// datagram in a hundred is lost.
#[test]
fn a_wireguard_client_passes_traffic_through_losses() {
    let _turn = Turn::shared();
    let lab = Lab::new(1);
    lab.forward();
    lab.no_batches();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let key = || tools::output(Command::new("wg").arg("genkey")).trim().to_owned();
    let public = |private: &str| {
        let args = ["-c", "echo \"$0\" | wg pubkey", private];
        tools::output(Command::new("sh").args(args)).trim().to_owned()
    };
    let (ours, theirs) = (key(), key());
    let server = format!(
        "[Interface]\nAddress = 100.96.0.1/16\nPrivateKey = {theirs}\nListenPort = 51820\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 100.96.0.2/32\n",
        public(&ours)
    );
    let client = format!(
        "[Interface]\nAddress = 100.96.0.2/32\nMTU = 1280\nPrivateKey = {ours}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}\nEndpoint = [{}]:51820\n",
        public(&theirs),
        PRIVATE_NETWORKS[0],
        gateway_address(0, Family::V6)
    );
    let _server = WgClient::start(&lab.gateway, dir.path(), &server);
    let wg = WgClient::start(&lab.clients[0], dir.path(), &client);
    nft::lose_one_percent(&lab.gateway, "udp dport 51820");
    nft::lose_one_percent(&lab.clients[0], "udp sport 51820");
    let target = TcpTarget::serve(&lab.private, Host::Open.address(Family::V4), stream::receive);
    let mut stream = lab.clients[0].run(|| TcpStream::connect(target.address())).expect("a way through the tunnel");
    let sent = stream::send(&mut stream, 2, 4 * MIB).expect("everything is sent");
    stream.flush().expect("nothing is held back");
    stream.shutdown(Shutdown::Write).expect("an end in order");
    assert_eq!(target.result().expect("the stream ends in order"), (4 * MIB, sent));
    assert!(wg.latest_handshake(&lab.clients[0]) > 0);
    let lost = lab.gateway.output("nft", &["list", "table", "inet", "loss"]);
    assert!(!lost.contains("packets 0 "), "nothing was lost: {lost}");
}

/// Namespaces go with the lab, also after a failure.
#[test]
fn nothing_is_left_behind() {
    let _turn = Turn::shared();
    let names: Vec<String> = {
        let lab = Lab::new(1);
        [&lab.clients[0], &lab.gateway, &lab.private].map(|netns| netns.name().to_owned()).to_vec()
    };
    let left = tools::output(Command::new("ip").args(["netns", "list"]));
    assert!(names.iter().all(|name| !left.contains(name.as_str())), "{left}");
}
