//! A gateway that dies, one that comes back, and a second one beside it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use portcullis_e2e::child::Process;
use portcullis_e2e::expect;
use portcullis_e2e::lab::{FAMILIES, Family, Host};
use portcullis_e2e::nft::Counter;
use portcullis_e2e::setup::{OnRamp, Setup};
use portcullis_e2e::stream::MIB;
use portcullis_e2e::target::UdpTarget;
use portcullis_e2e::transfer::{Endless, upload};
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};
use tempfile::TempDir;

/// How often a [`Stream`] sends.
const PACE: Duration = Duration::from_millis(5);
/// More than a restart may take before clients pass traffic. The promise is two seconds; without the gateway's help a
/// client begins a handshake after fifteen. `scripts/lib/restart.sh` measures.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client's traffic without a pause: datagrams to an echo, answers counted.
struct Stream {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Stream {
    fn start(socket: UdpSocket) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        socket.set_read_timeout(Some(PACE)).expect("a timeout");
        let receiving = socket.try_clone().expect("a second handle of the socket");
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&answers));
        let receiver = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Errors are refusals of what was sent before, or no answer yet.
                if receiving.recv(&mut [0; 64]).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = socket.send(b"still there?");
                std::thread::sleep(PACE);
            }
        });
        Self { stop, answers, threads: vec![receiver, sender] }
    }

    /// Waits for an answer to come from now on.
    fn passes(&self, patience: Duration, when: &str) {
        let before = self.answers.load(Ordering::Relaxed);
        wait::until_within(patience, &format!("traffic to pass {when}"), || {
            (self.answers.load(Ordering::Relaxed) > before).then_some(())
        });
    }

    /// Waits until no answer comes for a while.
    fn ceases(&self, when: &str) {
        wait::until(&format!("traffic to cease {when}"), || {
            let before = self.answers.load(Ordering::Relaxed);
            std::thread::sleep(10 * PACE);
            (self.answers.load(Ordering::Relaxed) == before).then_some(())
        });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Neither panics; a second panic would hide the first.
            let _ = thread.join();
        }
    }
}

fn echo(world: &World<'_>, family: Family) -> UdpTarget {
    UdpTarget::serve(world.private(), SocketAddr::new(Host::Open.address(family), 0), <[u8]>::to_vec)
}

/// Initiations that reach the gateway: a UDP header and 148 bytes.
fn initiations<'a>(world: &World<'a>, name: &str) -> Counter<'a> {
    Counter::arriving(&world.lab.gateway, name, "udp dport 51820 udp length 156")
}

/// Endpoints in `state.db`.
fn remembered(world: &World<'_>) -> Vec<SocketAddr> {
    let path = world.gateway.dir().join("state/state.db");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let Ok(database) = rusqlite::Connection::open_with_flags(path, flags) else { return Vec::new() };
    let Ok(mut statement) = database.prepare("SELECT endpoint FROM peers ORDER BY endpoint") else { return Vec::new() };
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("a table of peers");
    rows.map(|endpoint| endpoint.expect("a row").parse().expect("an address and a port")).collect()
}

/// Waits until so many clients are remembered: the file is written once a second.
fn wait_for_remembered(world: &World<'_>, count: usize) {
    wait::until(&format!("{count} clients to be remembered"), || (remembered(world).len() == count).then_some(()));
}

/// Ends a gateway and starts it again, both families of outer transport: its client passes traffic again, and did
/// nothing for it.
fn comes_back(end: impl Fn(&mut World<'_>)) {
    for outer in FAMILIES {
        scenario(Setup::new(OnRamp::Wireguard).outer(outer), |world| {
            let target = echo(world, Family::V4);
            let stream = Stream::start(world.client().udp(target.address()));
            stream.passes(wait::PATIENCE, "at first");
            wait_for_remembered(world, 1);
            let begun = initiations(world, "begun");
            for round in 0..2 {
                end(world);
                world.gateway.start();
                stream.passes(PATIENCE, &format!("after restart {round}"));
            }
            assert_eq!(begun.packets(), 0, "handshakes begun by the client");
            drop(stream);
            // A flow of its own: what was under way died with the gateway.
            let to = upload(world.client(), world.private(), Host::Open.address(Family::V4), 1, MIB);
            expect::record(world, world.client(), to, "client_closed");
        });
    }
}

#[test]
fn clients_pass_traffic_again_after_a_crash() {
    comes_back(|world| world.gateway.kill9());
}

#[test]
fn clients_pass_traffic_again_after_a_clean_restart() {
    comes_back(|world| assert_eq!(world.gateway.stop(wait::PATIENCE).code(), Some(0)));
}

/// With another number of shards, a client's datagrams arrive at a shard that does not own it.
#[test]
fn clients_pass_traffic_again_on_other_shards() {
    scenario(Setup::new(OnRamp::Wireguard).and(OnRamp::Wireguard).shards(2), |world| {
        let target = echo(world, Family::V4);
        let streams: Vec<_> = world.clients.iter().map(|client| Stream::start(client.udp(target.address()))).collect();
        streams.iter().for_each(|stream| stream.passes(wait::PATIENCE, "at first"));
        wait_for_remembered(world, 2);
        let begun = initiations(world, "begun");
        let file = world.gateway.dir().join("gateway.toml");
        for shards in [1, 5, 2] {
            world.gateway.kill9();
            let text = std::fs::read_to_string(&file).expect("gateway.toml");
            let lines = text.lines().map(|line| match line.strip_prefix("shards = ") {
                Some(_) => format!("shards = {shards}\n"),
                None => format!("{line}\n"),
            });
            std::fs::write(&file, lines.collect::<String>()).expect("gateway.toml");
            world.gateway.start();
            streams.iter().for_each(|stream| stream.passes(PATIENCE, &format!("with {shards} shards")));
        }
        assert_eq!(begun.packets(), 0, "handshakes begun by clients");
    });
}

/// A device that is disabled for a while comes back as soon as it may; one that is revoked is forgotten.
#[test]
fn a_device_enabled_again_passes_traffic_and_a_revoked_one_is_forgotten() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let target = echo(world, Family::V4);
        let stream = Stream::start(world.client().udp(target.address()));
        stream.passes(wait::PATIENCE, "at first");
        wait_for_remembered(world, 1);
        let begun = initiations(world, "begun");
        let device = world.client().device.clone();
        world.gateway.edit_directory(|directory| directory["devices"][&device]["disabled"] = true.into());
        stream.ceases("while it is disabled");
        world.gateway.edit_directory(|directory| directory["devices"][&device]["disabled"] = false.into());
        stream.passes(PATIENCE, "when it is enabled again");
        assert_eq!(begun.packets(), 0, "handshakes begun by the client");

        world.gateway.verb(&["device", "revoke", &device]);
        world.gateway.reload();
        stream.ceases("while it is revoked");
        wait_for_remembered(world, 0);
    });
}

/// A database that is no database, and one that cannot be made: the gateway says so and serves.
#[test]
fn a_damaged_state_database_does_not_stop_the_gateway() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let host = Host::Open.address(Family::V4);
        upload(world.client(), world.private(), host, 1, MIB);
        wait_for_remembered(world, 1);
        world.gateway.kill9();
        let path = world.gateway.dir().join("state/state.db");
        // What is in the log beside it would mend it.
        std::fs::remove_file(path.with_extension("db-wal")).expect("a crash leaves a log");
        std::fs::write(&path, "no database at all, but long enough to be looked at".repeat(40)).expect("written");
        world.gateway.start();
        let log = world.gateway.process().log();
        assert!(log.contains("WARN") && log.contains("the state database is damaged"), "{log}");
        assert!(path.with_extension("db.damaged").exists(), "it is put aside");
        let netns = world.clients[0].netns;
        world.clients[0].wg.as_mut().expect("a WireGuard client").restart(netns);
        upload(world.client(), world.private(), host, 2, MIB);
        wait_for_remembered(world, 1);

        world.gateway.kill9();
        for beside in ["db", "db-wal", "db-shm"] {
            let _ = std::fs::remove_file(path.with_extension(beside));
        }
        std::fs::create_dir(&path).expect("a directory in its place");
        world.gateway.start();
        let log = world.gateway.process().log();
        assert!(log.contains("the state database cannot be used") && log.contains("state/state.db"), "{log}");
        world.clients[0].wg.as_mut().expect("a WireGuard client").restart(netns);
        upload(world.client(), world.private(), host, 3, MIB);
    });
}

/// A tmpfs with no room left, gone with this.
struct FullDisk(std::path::PathBuf);

impl FullDisk {
    /// Mounts it over a directory, with what was in there, and fills it up.
    fn over(directory: &std::path::Path) -> Self {
        let kept: Vec<_> = std::fs::read_dir(directory)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (std::fs::read(&path).expect("a file"), path))
            .collect();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=128k,mode=0700", "none"]).arg(directory);
        portcullis_e2e::tools::output(&mut mount);
        let disk = Self(directory.to_owned());
        for (contents, path) in kept {
            std::fs::write(&path, contents).expect("room for what was there");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
        }
        let full = std::fs::write(directory.join("ballast"), vec![0; 1 << 20]).expect_err("it fills up");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        disk
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// No room for the database: the gateway says so and serves.
#[test]
fn a_full_disk_does_not_stop_the_gateway() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        world.gateway.stop(wait::PATIENCE);
        let state = world.gateway.dir().join("state");
        for file in ["state.db", "state.db-wal", "state.db-shm"] {
            let _ = std::fs::remove_file(state.join(file));
        }
        let disk = FullDisk::over(&state);
        world.gateway.start();
        upload(world.client(), world.private(), Host::Open.address(Family::V4), 1, MIB);
        let log = world.gateway.process().log();
        assert!(log.contains("the state database cannot be used"), "{log}");
        world.gateway.stop(wait::PATIENCE);
        drop(disk);
    });
}

/// Counts what reaches the targets from the client's own addresses: through the gateway it comes from the gateway's.
fn around<'a>(world: &World<'a>) -> [Counter<'a>; 2] {
    [("around4", "ip saddr 192.168.7.0/24"), ("around6", "ip6 saddr fd00:7::/64")]
        .map(|(name, matching)| Counter::arriving(world.private(), name, &format!("{matching} udp dport >= 1")))
}

fn packets(counters: &[Counter<'_>]) -> Vec<u64> {
    counters.iter().map(Counter::packets).collect()
}

/// Whatever dies and starts again, and however often: not one packet of the routed networks gets around the gateway.
#[test]
fn not_one_packet_gets_around_a_dead_gateway_or_one_that_starts() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        // With its own limit the kernel would soon refuse without a word.
        world.lab.gateway.sysctl("net.ipv4.icmp_ratelimit", "0");
        let around = around(world);
        let targets = FAMILIES.map(|family| echo(world, family));
        let streams: Vec<_> =
            targets.iter().map(|target| Stream::start(world.client().udp(target.address()))).collect();
        streams.iter().for_each(|stream| stream.passes(wait::PATIENCE, "at first"));
        for round in 0..5 {
            let refused = Counter::arriving(
                world.client().netns,
                &format!("refused{round}"),
                "icmp type destination-unreachable",
            );
            world.gateway.kill9();
            wait::until("a refusal while it is dead", || (refused.packets() > 0).then_some(()));
            streams.iter().for_each(|stream| stream.ceases("while it is dead"));
            world.gateway.start();
            streams.iter().for_each(|stream| stream.passes(wait::PATIENCE, "through the next one"));
            assert_eq!(packets(&around), [0, 0], "packets that got around");
        }
        // The counter counts: with nothing in force, they do.
        world.gateway.stop(wait::PATIENCE);
        wait::until("packets to be routed by", || (!packets(&around).contains(&0)).then_some(()));
    });
}

/// A gateway's files made over into those of another one, in a directory of their own.
struct Second {
    dir: TempDir,
}

impl Second {
    /// Copies the files of the first; `change` gets `gateway.toml`, in which nothing is the first one's but what it keeps.
    fn of(world: &World<'_>, change: impl FnOnce(&str) -> String) -> Self {
        let (first, dir) = (world.gateway.dir(), TempDir::with_prefix("portcullis-e2e-second-").expect("a directory"));
        for file in ["directory.json", "policy.json"] {
            std::fs::copy(first.join(file), dir.path().join(file)).expect("a copy");
        }
        let state = dir.path().join("state");
        std::fs::create_dir(&state).expect("a state directory");
        std::fs::copy(first.join("state/wireguard.key"), state.join("wireguard.key")).expect("a key with its mode");
        let text = std::fs::read_to_string(first.join("gateway.toml")).expect("gateway.toml");
        // Each gateway has one on-ramp in these tests; what it is about is put back by `change`.
        let text = text
            .replace("127.0.0.1:9464", "127.0.0.1:9465")
            .replace("[::]:51820", "[::]:51821")
            .replace("\"portcullis0\"", "\"portcullis1\"\ntable = 51881");
        std::fs::write(dir.path().join("gateway.toml"), change(&text)).expect("gateway.toml");
        Self { dir }
    }

    /// Runs it to its end, which must come at once, and gives what it said.
    fn is_refused(&self, world: &World<'_>) -> String {
        let mut command = std::process::Command::new(portcullis_e2e::gateway::binary());
        command.arg("run").arg("--config").arg(self.dir.path().join("gateway.toml"));
        let log = self.dir.path().join("gateway.log");
        let mut second = Process::start(&world.lab.gateway, &mut command, &log);
        let status = second.wait(wait::PATIENCE);
        assert_eq!(status.code(), Some(1), "refused in order: {status}\n{}", second.log());
        assert!(!second.log().contains("panicked"), "{}", second.log());
        second.log()
    }
}

/// Starts a second gateway beside a first one with traffic; it is refused, says who runs, and the first does not notice.
fn second_instance(ramp: OnRamp, change: fn(&World<'_>, &str) -> String, says: &[&str]) {
    scenario(Setup::new(ramp), |world| {
        let running = Endless::start(world.client(), world.private(), Host::Open.address(Family::V4));
        let around = around(world);
        let before = world.lab.gateway.routing();
        let links = world.lab.gateway.ip("-br link show");
        let second = Second::of(world, |text| change(world, text));
        let log = second.is_refused(world);
        let pid = format!("process {}", world.gateway.process().pid());
        let config = world.gateway.dir().join("gateway.toml").display().to_string();
        for word in says.iter().copied().chain([pid.as_str(), config.as_str()]) {
            assert!(log.contains(word), "{word:?} is not in what it says:\n{log}");
        }
        assert_eq!(world.lab.gateway.routing(), before, "the routes of the first stay");
        assert_eq!(world.lab.gateway.ip("-br link show"), links);
        let received = running.received();
        wait::until("the first one's flow to go on", || (running.received() > received + 4 * MIB).then_some(()));
        assert_eq!(packets(&around), [0, 0], "packets that got around");
        let to = running.address();
        running.finish();
        expect::record(world, world.client(), to, "target_closed");
        world.gateway.verb(&["status"]);
    });
}

/// Another device, another directory, the same routing table: it would take over the first one's routes.
#[test]
fn t_second_instance_with_the_same_table_is_refused() {
    second_instance(OnRamp::Tun, |_, text| text.replace("table = 51881", "table = 51880"), &["routing table 51880"]);
}

#[test]
fn t_second_instance_with_the_same_device_is_refused() {
    second_instance(OnRamp::Tun, |_, text| text.replace("portcullis1", "portcullis0"), &["portcullis0"]);
}

#[test]
fn t_second_instance_with_the_same_port_is_refused() {
    second_instance(OnRamp::Wireguard, |_, text| text.replace("[::]:51821", "[::]:51820"), &["51820"]);
}

#[test]
fn t_second_instance_with_the_same_control_socket_is_refused() {
    second_instance(
        OnRamp::Wireguard,
        |world, text| text.replace("\"control.sock\"", &format!("{:?}", world.gateway.control())),
        &["control.sock"],
    );
}

#[test]
fn t_second_instance_with_the_same_state_directory_is_refused() {
    second_instance(
        OnRamp::Wireguard,
        |world, text| text.replace("\"state\"", &format!("{:?}", world.gateway.dir().join("state"))),
        &["state directory"],
    );
}

/// A lock can be lost, or taken by anybody: routes that lead to a device that a process has open say enough.
#[test]
fn t_second_instance_is_refused_without_the_lock() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        // As if an unprivileged user had been faster: the first goes on without the lock.
        world.gateway.stop(wait::PATIENCE);
        let taken = world.lab.gateway.run(|| {
            let mut stranger = std::process::Command::new("setpriv");
            stranger.args(["--reuid", "65534", "--clear-groups", "perl", "-MSocket", "-e"]).arg(
                "socket(S, AF_UNIX, SOCK_STREAM, 0) or die $!; $| = 1;\
                 bind(S, pack('Sxa*', AF_UNIX, 'portcullis/table/51880')) or die $!;\
                 listen(S, 9) or die $!; print 'taken'; sleep 600",
            );
            let log = world.gateway.dir().join("stranger.log");
            Process::start(&world.lab.gateway, &mut stranger, &log)
        });
        wait::until("a stranger to have the lock", || taken.log().contains("taken").then_some(()));
        world.gateway.start();
        assert!(world.gateway.process().log().contains("a process that is no gateway"));
        let before = world.lab.gateway.routing();
        let second = Second::of(world, |text| text.replace("table = 51881", "table = 51880"));
        let log = second.is_refused(world);
        assert!(log.contains("routing table 51880, whose routes lead to portcullis0"), "{log}");
        assert!(log.contains(&format!("process {}", world.gateway.process().pid())), "{log}");
        assert_eq!(world.lab.gateway.routing(), before, "the routes of the first stay");
    });
}

/// Somebody empties our table, or deletes our rules: they are back within seconds, and the log says so.
#[test]
fn routes_that_somebody_takes_away_are_put_back() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let before = world.lab.gateway.routing();
        let around = around(world);
        let target = echo(world, Family::V4);
        let stream = Stream::start(world.client().udp(target.address()));
        stream.passes(wait::PATIENCE, "at first");
        for theft in [
            "-4 route flush table 51880",
            "-6 route flush table 51880",
            "-4 rule del pref 5188",
            "-6 rule del pref 5188",
            "-4 rule del pref 5187",
            "-4 rule del pref 5186",
            "-6 rule del pref 5187",
            "-6 rule del pref 5186",
            "-4 route del unreachable 10.20.0.0/24 table 51880 metric 1000000",
        ] {
            let warnings = |log: String| log.matches("somebody took away routes or rules").count();
            let warned = warnings(world.gateway.process().log());
            world.lab.gateway.ip(theft);
            wait::until(&format!("routes to be back after `ip {theft}`"), || {
                (world.lab.gateway.routing() == before).then_some(())
            });
            wait::until("a warning", || (warnings(world.gateway.process().log()) > warned).then_some(()));
            stream.passes(wait::PATIENCE, "through the gateway again");
        }
        // A device that is down for a while takes its routes with it; meanwhile the backstops refuse.
        let passed = packets(&around);
        world.lab.gateway.ip("link set portcullis0 down");
        stream.ceases("while the device is down");
        wait::until("the log to say so", || {
            world.gateway.process().log().contains("cannot be put back now").then_some(())
        });
        world.lab.gateway.ip("link set portcullis0 up");
        stream.passes(wait::PATIENCE, "through the device again");
        assert_eq!(packets(&around), passed);
        // From then on nothing gets around any more.
        let passed = packets(&around);
        stream.passes(wait::PATIENCE, "for a while");
        assert_eq!(packets(&around), passed);
        drop(stream);
        assert_eq!(world.gateway.stop(wait::PATIENCE).code(), Some(0));
        assert_eq!(world.lab.gateway.routing(), world.pristine, "what the gateway takes away itself stays away");
    });
}
