//! The servers the loads are put on, all on one thread.

mod hold;
mod http;
mod sink;
mod tcp_echo;
#[cfg(test)]
pub(crate) mod testing;
mod udp_echo;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use portcullis::onramp::wireguard::socket;
use portcullis::onramp::wireguard::socket::WireguardSocket;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::error::LoadError;
use crate::output;

pub(crate) use sink::Query;

/// Connections that may wait to be accepted; the kernel clips it to net.core.somaxconn.
const BACKLOG: i32 = 16_384;
/// Pause when there is no descriptor for another connection.
const AFTER_REFUSAL: Duration = Duration::from_millis(10);

/// What to serve where. Each may be given many times.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Arguments {
    /// TCP: sends back what it gets.
    #[arg(long, value_name = "ADDR")]
    tcp_echo: Vec<SocketAddr>,
    /// HTTP/1.1: answers each GET with 200 and 100 bytes.
    #[arg(long, value_name = "ADDR")]
    http: Vec<SocketAddr>,
    /// UDP: sends back what it gets.
    #[arg(long, value_name = "ADDR")]
    udp_echo: Vec<SocketAddr>,
    /// UDP: counts what it gets, and tells the sender when asked.
    #[arg(long, value_name = "ADDR")]
    udp_sink: Vec<SocketAddr>,
    /// TCP: keeps connections open until the client closes them, tens of thousands at a time.
    #[arg(long, value_name = "ADDR")]
    hold: Vec<SocketAddr>,
}

/// Serves until the process is ended. Must be called in a `LocalSet`.
pub(crate) async fn run(arguments: Arguments) -> Result<(), LoadError> {
    start(arguments)?;
    output::line(&"ready")?;
    std::future::pending().await
}

/// Binds everything, then serves it in tasks of the `LocalSet` it is called in. Returns the addresses in the order of
/// [`Arguments`].
fn start(arguments: Arguments) -> Result<Vec<SocketAddr>, LoadError> {
    crate::sys::raise_descriptors();
    let mut bound = Vec::new();
    let mut listen = |addresses: Vec<SocketAddr>| -> Result<Vec<TcpListener>, LoadError> {
        let listeners = addresses.into_iter().map(|address| {
            let listener = listen(address).map_err(LoadError::at("listen on", address))?;
            bound.push(listener.local_addr().unwrap_or(address));
            Ok(listener)
        });
        listeners.collect()
    };
    let (echoes, web, held) = (listen(arguments.tcp_echo)?, listen(arguments.http)?, listen(arguments.hold)?);
    let mut bind = |addresses: Vec<SocketAddr>| -> Result<Vec<WireguardSocket>, LoadError> {
        let sockets = addresses.into_iter().map(|address| {
            let (socket, local) = bind(address).map_err(LoadError::at("bind", address))?;
            bound.push(local);
            Ok(socket)
        });
        sockets.collect()
    };
    let (datagram_echoes, sinks) = (bind(arguments.udp_echo)?, bind(arguments.udp_sink)?);

    for listener in echoes {
        tokio::task::spawn_local(accept(listener, tcp_echo::serve));
    }
    for listener in web {
        tokio::task::spawn_local(accept(listener, http::serve));
    }
    for listener in held {
        tokio::task::spawn_local(accept(listener, hold::serve));
    }
    for socket in datagram_echoes {
        tokio::task::spawn_local(udp_echo::serve(socket));
    }
    for socket in sinks {
        tokio::task::spawn_local(sink::serve(socket));
    }
    Ok(bound)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bind(address: SocketAddr) -> io::Result<(WireguardSocket, SocketAddr)> {
    let mut sockets = socket::bind(address, 1, None)?;
    let socket = sockets.pop().ok_or(io::ErrorKind::NotFound)?;
    crate::sys::widen_receive_buffer(&socket);
    let local = socket.local_addr()?;
    Ok((WireguardSocket::new(socket)?, local))
}

/// Accepts connections for ever, each with a task of its own. How a connection ends is the client's business.
async fn accept<S>(listener: TcpListener, serve: impl Fn(TcpStream) -> S)
where
    S: Future<Output = io::Result<()>> + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::task::spawn_local(serve(stream))),
            Err(_) => sleep(AFTER_REFUSAL).await,
        }
    }
}
