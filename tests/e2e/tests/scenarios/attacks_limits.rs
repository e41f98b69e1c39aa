//! One device takes all it can get; another must not notice. Rows T23 to T26 of the security page.
#![expect(clippy::indexing_slicing, reason = "tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis_e2e::flood::{RawSender, SynFlood};
use portcullis_e2e::flow_log::FlowLine;
use portcullis_e2e::lab::{Family, Host};
use portcullis_e2e::metrics::{DROPPED, LIMITS, OPEN, VERDICTS};
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::target::{TcpTarget, UdpTarget, datagram, patient, reset};
use portcullis_e2e::world::{Client, World, scenario};
use portcullis_e2e::{nft, wait};
use socket2::{Domain, SockRef, Socket, Type};

const V4: Family = Family::V4;

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("{address} is not an IPv4 address"),
    }
}

/// Echoes until the client has closed its half.
fn echo(world: &World<'_>) -> TcpTarget<std::io::Result<u64>> {
    TcpTarget::serve(world.private(), Host::Open.address(V4), |mut stream| {
        let mut heard = stream.try_clone()?;
        std::io::copy(&mut heard, &mut stream)
    })
}

/// A connection of `client` that carries bytes both ways and closes.
fn use_service(client: &Client<'_>, to: SocketAddr) {
    let mut stream = client.connect(to).expect("the other device's flood is not this one's matter");
    stream.write_all(b"hello").expect("an open flow");
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).expect("the echo");
    assert_eq!(&heard, b"hello");
}

/// Open flows of a client, as the gateway lists them.
fn open_flows(world: &World<'_>, client: &Client<'_>) -> usize {
    let listed = world.gateway.verb(&["flows", "--json", "--device", &client.device]);
    listed.matches("\"device\":").count()
}

fn reached(world: &World<'_>, limit: &str) -> f64 {
    world.gateway.metrics().sum(LIMITS, Some(("limit", limit)))
}

/// Memory of the gateway in KiB.
fn memory(world: &mut World<'_>) -> u64 {
    world.gateway.process().memory_kib("VmRSS")
}

/// Records of a client that ended by a limit.
fn limited(world: &World<'_>, client: &Client<'_>, limit: &str) -> Vec<FlowLine> {
    let of_limit = |line: &FlowLine| line.device == client.device && line.limit.as_deref() == Some(limit);
    let found: Vec<_> = world.gateway.flow_log().into_iter().filter(of_limit).collect();
    assert!(found.iter().all(|line| line.ended == "limit"), "{found:#?}");
    found
}

/// Half-open flows a device may have, by default.
const HALF_OPEN: usize = 64;
/// Memory that may still be used after a flood that is over, in KiB: queues, tables and what the allocator keeps.
const LEFT_OVER: u64 = 24 * 1024;

fn syn_flood(world: &mut World<'_>) {
    let target = echo(world);
    let hole = v4(Host::Hole.address(V4));
    nft::drop_arriving(world.private(), "hole", &format!("ip daddr {hole} meta l4proto tcp"));
    use_service(&world.clients[1], target.address());
    let before = memory(world);

    // One SYN, again and again, is one flow and one dial.
    let own = v4(world.client().inner_address(V4));
    let sender = RawSender::new(world.client().netns);
    let allowed = world.gateway.metrics().sum(VERDICTS, Some(("verdict", "allow")));
    for _ in 0..50 {
        assert!(sender.syn(SocketAddrV4::new(own, 1_000), SocketAddrV4::new(hole, 80), 7));
    }
    world.gateway.wait_for_metric(OPEN, None, 1.0);
    assert_eq!(open_flows(world, world.client()), 1);
    assert_eq!(world.gateway.metrics().sum(VERDICTS, Some(("verdict", "allow"))), allowed + 1.0);

    // To a black hole that is allowed and to a host that is not, from every port to every port.
    let flood = SynFlood::start(world.client().netns, own, vec![hole, v4(Host::Shut.address(V4))]);
    wait::until("the limits of the flooding device", || {
        (reached(world, "half_open_per_device") > 0.0 && reached(world, "flow_rate_per_device") > 0.0).then_some(())
    });
    for _ in 0..100 {
        use_service(&world.clients[1], target.address());
    }
    for _ in 0..5 {
        let open = open_flows(world, world.client());
        assert!(open <= HALF_OPEN, "{open} flows of a device that completes no handshake");
    }
    let most = memory(world);
    let sent = flood.sent();
    drop(flood);
    assert!(sent > 10_000, "a flood of {sent} is none");
    assert!(most < before + LEFT_OVER, "{before} KiB before, {most} KiB during the flood");

    // Nothing of it is silent: each is counted, and both limits are named in the flow log.
    assert!(!limited(world, world.client(), "half_open_per_device").is_empty());
    let too_fast = limited(world, world.client(), "flow_rate_per_device");
    assert!(!too_fast.is_empty());
    assert!(too_fast.iter().all(|line| line.verdict == "deny" && line.rule.is_none()), "the policy was not asked");
    assert!(world.gateway.metrics().sum(DROPPED, Some(("reason", "limit"))) > too_fast.len() as f64);
    assert!(limited(world, &world.clients[1], "half_open_per_device").is_empty());

    // The dials end, and with them everything that was held.
    world.gateway.wait_for_metric(OPEN, None, 0.0);
    let after = memory(world);
    assert!(after < before + LEFT_OVER, "{before} KiB before, {after} KiB after");
}

#[test]
fn t23_syn_flood_of_one_device_leaves_the_other_alone() {
    let setup = Setup::new(OnRamp::Tun).and(OnRamp::Tun).limit("dial_timeout", "\"3s\"");
    scenario(setup, syn_flood);
}

/// Flows the sitting device tries to have, and may have.
const SITTING: usize = 200;
/// What the target has for each of them, in bytes.
const FOR_EACH: usize = 1 << 20;
/// What each of them reads before it sits: from then on the gateway would have as much under way.
const READ_FIRST: usize = 384 * 1024;
/// What each of them sends at most to the target, which reads nothing.
const SENT: usize = 768 * 1024;
/// Bytes of buffers beyond the floor that the device may have.
const BUFFERED: usize = 4 << 20;
/// Bytes of each of a flow's two buffers that are everybody's.
const FLOOR: usize = 16 * 1024;
/// Memory of a flow besides its buffers, and of everything else that comes and goes, in KiB.
const BESIDES: u64 = 16 * 1024;

/// A connection whose client reads at the beginning and never again.
fn sit(client: &Client<'_>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream: TcpStream = client.netns.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(32 * 1024)?;
        socket.connect_timeout(&to.into(), Duration::from_secs(20))?;
        Ok::<_, std::io::Error>(socket.into())
    })?;
    patient(&stream)?;
    stream.read_exact(&mut vec![0; READ_FIRST])?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Sends on every connection as much as it takes, until none has taken anything for a while.
fn push(streams: &mut [TcpStream]) {
    const ROUNDS: usize = 50;
    let block = vec![0x77; SENT];
    let mut sent = vec![0; streams.len()];
    let mut stalled = 0;
    while stalled < ROUNDS {
        let mut moved = 0;
        for (stream, sent) in streams.iter_mut().zip(&mut sent) {
            let more = stream.write(&block[*sent..]).unwrap_or(0);
            *sent += more;
            moved += more;
        }
        stalled = if moved == 0 { stalled + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Accepts, and writes to every connection as much as it takes, at most [`FOR_EACH`] bytes, without waiting for it.
fn pour(listener: &TcpListener, stop: &AtomicBool) {
    let block = vec![0x55; FOR_EACH];
    let mut streams: Vec<(TcpStream, usize)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).expect("a non-blocking stream");
                streams.push((stream, 0));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("accept: {error}"),
        }
        for (stream, written) in &mut streams {
            if let Ok(more) = stream.write(&block[*written..]) {
                *written += more;
            }
        }
    }
}

/// Says stop when it is dropped, also by a panic: the scope of a thread waits for it.
struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn open_and_sit(world: &mut World<'_>) {
    let service = echo(world);
    let address = SocketAddr::new(Host::OpenToo.address(V4), 8_000);
    let listener: TcpListener = world.private().run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&address.into()).expect("the address of the target");
        // Of what it does not read little is to be in the kernels' buffers.
        socket.set_recv_buffer_size(4_096).expect("a small buffer");
        socket.listen(1024).expect("a listening socket");
        socket.set_nonblocking(true).expect("a non-blocking listener");
        socket.into()
    });
    use_service(&world.clients[1], service.address());
    let before = memory(world);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| pour(&listener, &stop));
        let _stop = StopOnDrop(&stop);
        let mut sitting = Vec::new();
        while sitting.len() < SITTING {
            sitting.push(sit(world.client(), address).expect("within the device's limits"));
        }
        let beyond = sit(world.client(), address).expect_err("one more than the device may have");
        assert_eq!(beyond.kind(), ErrorKind::ConnectionRefused);
        wait::until("a record of the flow too many", || {
            (!limited(world, world.client(), "flows_per_device").is_empty()).then_some(())
        });
        push(&mut sitting);
        // The buffers fill until the device's budget is spent.
        wait::until("the device's memory to be spent", || (reached(world, "buffered_per_device") > 0.0).then_some(()));
        for _ in 0..20 {
            use_service(&world.clients[1], service.address());
        }
        let during = memory(world);
        let bound = (SITTING * 2 * FLOOR + BUFFERED) as u64 / 1024 + BESIDES;
        eprintln!("{before} KiB before, {during} KiB with flows that sit, {bound} KiB more allowed");
        assert!(during < before + bound, "{before} KiB before, {during} KiB with flows that sit, {bound} KiB allowed");
        // They answer every probe, and it does not help them: nothing moves.
        let idle = |line: &FlowLine| line.device == "laptop-0" && line.ended == "idle";
        wait::until_within(Duration::from_secs(120), "flows without progress to end", || {
            (world.gateway.flow_log().iter().filter(|line| idle(line)).count() == SITTING).then_some(())
        });
        use_service(&world.clients[1], service.address());
    });
    world.gateway.wait_for_metric(OPEN, None, 0.0);
    let after = memory(world);
    assert!(after < before + BESIDES, "{before} KiB before, {after} KiB after");
}

#[test]
fn t24_flows_that_sit_are_bounded_and_end() {
    let setup = Setup::new(OnRamp::Tun)
        .and(OnRamp::Tun)
        .limit("flows_per_device", SITTING.to_string())
        .limit("buffered_per_device", BUFFERED.to_string())
        .limit("tcp_idle", "\"20s\"")
        .alone();
    scenario(setup, open_and_sit);
}

/// Associations the spraying device may have.
const ASSOCIATIONS: usize = 64;

fn udp_spray(world: &mut World<'_>) {
    let host = Host::Open.address(V4);
    let target = UdpTarget::serve(world.private(), SocketAddr::new(host, 0), <[u8]>::to_vec);
    let client = world.client();
    let active = client.udp(target.address());
    let other = world.clients[1].udp(target.address());
    let sprayer = client.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0").expect("a UDP socket"));
    let talk = |socket: &std::net::UdpSocket| {
        socket.send(b"still here").expect("a way to the target");
        assert_eq!(datagram(socket).expect("the echo").0, b"still here");
    };
    talk(&other);
    talk(&active);
    let mut sources = target.sources();
    for port in 0..1_000u16 {
        // Nobody listens there, which is not the sprayer's concern.
        let _ = sprayer.send_to(b"?", SocketAddr::new(Host::OpenToo.address(V4), 20_000 + port));
        if port % 8 == 0 {
            talk(&active);
            let open = open_flows(world, client);
            assert!(open <= ASSOCIATIONS, "{open} associations");
        }
    }
    talk(&other);
    sources.extend(target.sources());
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(sources.len(), 2, "the association in use is still the one it was, and the other device's too");
    let ended = wait::until("the sprayed associations to make way", || {
        let ended = limited(world, client, "associations_per_device");
        (ended.len() >= 800).then_some(ended)
    });
    assert!(ended.iter().all(|line| line.destination.ip() == Host::OpenToo.address(V4)), "only those of the spray");
    assert!(reached(world, "associations_per_device") >= 800.0);
}

#[test]
fn t25_udp_spray_pushes_out_what_is_not_used_tun() {
    let setup = Setup::new(OnRamp::Tun).and(OnRamp::Tun).limit("associations_per_device", ASSOCIATIONS.to_string());
    scenario(setup, udp_spray);
}

#[test]
fn t25_udp_spray_pushes_out_what_is_not_used_wireguard() {
    let setup =
        Setup::new(OnRamp::Wireguard).and(OnRamp::Wireguard).limit("associations_per_device", ASSOCIATIONS.to_string());
    scenario(setup, udp_spray);
}

/// Ticks of processor time (100 a second) that the gateway has used.
fn ticks(world: &mut World<'_>) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", world.gateway.process().pid())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields behind the name").split_whitespace().collect();
    // utime and stime, the 14th and 15th of proc(5), counted from the third.
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

fn ports_run_out(world: &mut World<'_>) {
    let target = echo(world);
    let to = target.address();
    // Of nine ports a device may have six.
    let mut of_first: Vec<TcpStream> = (0..6).map(|_| world.client().connect(to).expect("a port is free")).collect();
    let refused = world.client().connect(to).expect_err("its share is used up");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let mut of_second: Vec<TcpStream> =
        (0..3).map(|_| world.clients[1].connect(to).expect("the ports that are left")).collect();
    assert!(world.clients[1].connect(to).is_err(), "now there is none at all");
    for client in &world.clients {
        let line = wait::until("a record that names the ports", || limited(world, client, "ports").pop());
        assert_eq!((line.destination, line.offramp.as_deref(), line.verdict.as_str()), (to, Some("narrow"), "allow"));
    }
    assert_eq!(reached(world, "ports"), 2.0);
    // Every connection there is works, another target is another matter, and nobody spins.
    for stream in of_first.iter_mut().chain(&mut of_second) {
        stream.write_all(b"hello").expect("an open flow");
        stream.read_exact(&mut [0; 5]).expect("the echo");
    }
    let other = TcpTarget::serve(world.private(), Host::OpenToo.address(V4), |mut stream| stream.read(&mut [0; 1]));
    drop(world.client().connect(other.address()).expect("a port serves many targets"));
    let before = ticks(world);
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks(world) - before;
    assert!(spent < 50, "{spent} ticks in a second without anything to do");
    // A reset frees a port at once.
    reset(of_first.pop().expect("six of them"));
    wait::until("the port to be free", || (open_flows(world, world.client()) == 5).then_some(()));
    of_first.push(world.client().connect(to).expect("the port is free again"));
    // Closed in order it stays the device's until TIME-WAIT is over.
    let closed = of_first.pop().expect("six of them");
    SockRef::from(&closed).shutdown(std::net::Shutdown::Write).expect("an open stream");
    drop(closed);
    wait::until("the flow to end", || (open_flows(world, world.client()) == 5).then_some(()));
    assert!(world.client().connect(to).is_err(), "the kernel keeps it, and the device is charged");
    drop(of_second.pop());
}

fn narrow(ports: &str) -> Setup {
    let tables = format!(
        "[[offramp]]\nname = \"narrow\"\nkind = \"direct\"\nports = \"{ports}\"\n\n\
         [[route]]\nto = \"10.20.0.0/24\"\nofframp = [\"narrow\"]\n"
    );
    Setup::new(OnRamp::Tun).and(OnRamp::Tun).tables(&tables)
}

#[test]
fn t26_source_ports_within_the_kernels_range_are_shared() {
    scenario(narrow("40000-40008"), ports_run_out);
}

#[test]
fn t26_source_ports_outside_of_it_are_shared() {
    scenario(narrow("20000-20008"), ports_run_out);
}
