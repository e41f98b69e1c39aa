//! A WireGuard client that does its work in batches, so that it is not the limit of what is measured.
//!
//! ```text
//!  kernel ── super-packet ──> cut, encrypt one after another ── one GSO send ──> gateway
//!  kernel <─ super-packet ─── join, decrypt one after another <─ GRO receive ─── gateway
//! ```

mod client;
mod tun;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use boringtun::noise::Tunn;
use boringtun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use portcullis::config::resolved::{OnStop, TunConfig};
use portcullis::host::TunDevice;
use portcullis::keys::{PrivateKey, parse_public_key};
use portcullis::onramp::wireguard::socket::{self, WireguardSocket};

use crate::error::LoadError;
use client::Client;

/// Seconds between keepalives.
const KEEPALIVE: u16 = 25;

/// The tunnel.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Name of the TUN device; it goes with the process.
    #[arg(long)]
    interface: String,
    /// Our private key, mode 0600.
    #[arg(long)]
    private_key_file: PathBuf,
    /// The gateway's public key.
    #[arg(long, value_parser = public_key)]
    peer: [u8; 32],
    /// The gateway's address and port.
    #[arg(long)]
    endpoint: SocketAddr,
    /// Our address in the tunnel, with a prefix length. May be given more than once.
    #[arg(long, required = true)]
    address: Vec<IpNet>,
    /// Networks behind the gateway, routed into the device by `ip route`. May be given more than once.
    #[arg(long)]
    route: Vec<IpNet>,
    /// MTU of the device.
    #[arg(long, default_value_t = 1420)]
    mtu: u16,
}

/// Makes the device with its addresses and routes, and carries packets until the process is ended. Prints `ready` after
/// the first handshake.
pub(crate) async fn run(arguments: Arguments) -> Result<(), LoadError> {
    let key = PrivateKey::read_file(&arguments.private_key_file)?;
    let config = TunConfig {
        name: arguments.interface,
        addresses: arguments.address,
        mtu: arguments.mtu,
        routes: Vec::new(),
        exclude: Vec::new(),
        table: 0,
        fwmark: 0,
        on_stop: OnStop::Remove,
        returns: None,
    };
    let device = TunDevice::create(&config, 1).await?;
    for route in arguments.route {
        add_route(route, device.name())?;
    }

    let fail = LoadError::at("send to", arguments.endpoint);
    let socket = bind(arguments.endpoint).map_err(fail)?;
    let (private, peer) = (StaticSecret::from(key.to_bytes()), PublicKey::from(arguments.peer));
    let tunnel = Tunn::new(private, peer, None, Some(KEEPALIVE), 0, None);
    let client =
        Client::new(tunnel, arguments.endpoint, socket, Arc::new(device)).map_err(LoadError::doing("read the TUN"))?;
    client.run().await
}

/// A socket towards a gateway.
pub(crate) fn bind(towards: SocketAddr) -> std::io::Result<WireguardSocket> {
    let any: SocketAddr = if towards.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let mut sockets = socket::bind(any, 1, None)?;
    let socket = sockets.pop().ok_or(std::io::ErrorKind::NotFound)?;
    crate::sys::widen_receive_buffer(&socket);
    WireguardSocket::new(socket)
}

fn add_route(network: IpNet, device: &str) -> Result<(), LoadError> {
    let mut ip = Command::new("ip");
    let added = ip.args(["route", "replace", &network.to_string(), "dev", device]).status();
    let status = added.map_err(LoadError::doing("run ip"))?;
    if status.success() { Ok(()) } else { Err(LoadError::Route { network, device: device.to_owned() }) }
}

fn public_key(text: &str) -> Result<[u8; 32], portcullis::keys::KeyError> {
    parse_public_key(text)
}
