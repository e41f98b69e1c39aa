//! A lab with its gateway and its clients, ready to pass traffic.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::gateway::Gateway;
use crate::lab::{Family, Lab, client_address};
use crate::netns::{Netns, keep};
use crate::setup::{OnRamp, Setup, device};
use crate::target::{SOCKET_TIMEOUT, patient};
use crate::tools;
use crate::turn::Turn;
use crate::wg_client::WgClient;

/// A client host of a test.
#[derive(Debug)]
pub struct Client<'a> {
    /// Its namespace.
    pub netns: &'a Netns,
    /// Name of its device.
    pub device: String,
    /// How it reaches the gateway.
    pub ramp: OnRamp,
    /// Its WireGuard client, on that on-ramp.
    pub wg: Option<WgClient>,
    /// Its place in the set-up.
    pub index: usize,
}

impl Client<'_> {
    /// Opens a TCP connection; both directions have the test's timeout.
    ///
    /// # Errors
    ///
    /// The system's, such as `ConnectionRefused`.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.netns.run(|| TcpStream::connect_timeout(&to, SOCKET_TIMEOUT))?;
        patient(&stream)?;
        Ok(stream)
    }

    /// A UDP socket connected to `to`.
    ///
    /// # Panics
    ///
    /// When there is no route.
    pub fn udp(&self, to: SocketAddr) -> UdpSocket {
        let any: IpAddr = match to.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.netns.run(|| {
            let socket = UdpSocket::bind((any, 0)).expect("a UDP socket");
            socket.connect(to).unwrap_or_else(|error| panic!("connect to {to}: {error}"));
            socket.set_read_timeout(Some(SOCKET_TIMEOUT)).expect("a timeout");
            socket
        })
    }

    /// Runs `ping` with these arguments before the address.
    pub fn ping(&self, args: &[&str], to: IpAddr) -> Output {
        self.netns.run(|| tools::run(Command::new("ping").args(args).arg(to.to_string())))
    }

    /// The address its inner packets come from.
    ///
    /// # Panics
    ///
    /// When a WireGuard file has no address of this family.
    pub fn inner_address(&self, family: Family) -> IpAddr {
        match &self.wg {
            None => client_address(self.index, family),
            Some(wg) => wg
                .config()
                .addresses
                .iter()
                .filter_map(|entry| entry.split('/').next()?.parse().ok())
                .find(|address: &IpAddr| address.is_ipv4() == (family == Family::V4))
                .expect("an address of the family"),
        }
    }
}

/// What a scenario gets.
#[derive(Debug)]
pub struct World<'a> {
    /// Clients, in the order of the set-up.
    pub clients: Vec<Client<'a>>,
    /// The gateway, running.
    pub gateway: Gateway<'a>,
    /// The namespaces.
    pub lab: &'a Lab,
    /// What the gateway's kernel routed by before the gateway first started.
    pub pristine: String,
}

impl<'a> World<'a> {
    /// The first client.
    pub fn client(&self) -> &Client<'a> {
        &self.clients[0]
    }

    /// The namespace of the targets.
    pub fn private(&self) -> &'a Netns {
        &self.lab.private
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("{}", self.gateway.report());
        for wg in self.clients.iter().filter_map(|client| client.wg.as_ref()) {
            let log = wg.log();
            let skip = log.lines().count().saturating_sub(20);
            eprintln!("--- {} (last lines)", wg.interface());
            log.lines().skip(skip).for_each(|line| eprintln!("{line}"));
        }
        eprintln!("--- look around by hand (PORTCULLIS_E2E_KEEP=1 keeps everything)");
        eprint!("{}", self.lab.commands());
        eprintln!("  files: {}", self.gateway.dir().display());
    }
}

/// Builds a world, runs the scenario in it, and takes it down again whatever happens.
///
/// # Panics
///
/// When the set-up fails, or the scenario does; then everything known is printed.
pub fn scenario(setup: Setup, run: impl FnOnce(&mut World<'_>)) {
    let _turn = if setup.alone { Turn::alone() } else { Turn::shared() };
    let dir = TempDir::with_prefix("portcullis-e2e-").expect("a temporary directory");
    let lab = Lab::new(setup.ramps.len());
    setup.write(dir.path());
    if setup.has_tun() {
        lab.forward();
    }
    let pristine = lab.gateway.routing();
    let mut world = World { clients: Vec::new(), gateway: Gateway::new(&lab, dir.path()), lab: &lab, pristine };
    let texts: Vec<Option<String>> =
        (0..setup.ramps.len()).map(|index| enroll(&world.gateway, &setup, index)).collect();
    world.gateway.log(setup.log);
    world.gateway.start();
    for (index, text) in texts.into_iter().enumerate() {
        let netns = &lab.clients[index];
        let wg = text.map(|text| WgClient::start(netns, dir.path(), &text));
        if wg.is_none() {
            lab.route_client(index);
        }
        world.clients.push(Client { netns, device: device(index), ramp: setup.ramps[index], wg, index });
    }
    run(&mut world);
    if keep() {
        let _ = dir.keep();
    }
}

/// Adds a WireGuard device to the directory; its wg-quick text.
fn enroll(gateway: &Gateway<'_>, setup: &Setup, index: usize) -> Option<String> {
    match setup.ramps[index] {
        OnRamp::Tun => None,
        OnRamp::Wireguard => {
            let (device, user) = (device(index), crate::setup::user(index));
            let mut add = vec!["device", "add", &device, "--user", &user];
            add.extend(setup.preshared.then_some("--preshared"));
            Some(gateway.verb(&add))
        }
    }
}
