//! Idle connections, many of them.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::error::LoadError;
use crate::output;
use crate::samples::per_second;

/// Connections being opened at a time.
const OPENING: usize = 128;
/// Longest time one connection may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Attempts at a connection before the load is given up.
const ATTEMPTS: u64 = 5;
/// Pause after a failed attempt.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Where, and how many.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Hold servers, one after another: each has a number of ports of its own.
    #[arg(required = true, num_args = 1..)]
    address: Vec<SocketAddr>,
    /// Connections.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    flows: usize,
    /// Connections opened a second at most; as fast as it goes without.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Local addresses to connect from, one after another.
    #[arg(long, value_delimiter = ',')]
    addresses: Vec<IpAddr>,
}

impl Arguments {
    /// Both ends of a connection: with all ports of one pair in use, another pair has its own.
    fn ends(&self, index: usize) -> Option<(Option<IpAddr>, SocketAddr)> {
        let to = *self.address.get(index % self.address.len())?;
        let turn = index / self.address.len();
        Some((self.addresses.get(turn % self.addresses.len().max(1)).copied(), to))
    }
}

/// Connections that are open, and how far the opening came.
#[derive(Debug)]
struct Opening {
    arguments: Arguments,
    began: Instant,
    next: Cell<usize>,
    held: RefCell<Vec<std::net::TcpStream>>,
}

/// Opens the connections, says so, and holds them. Standard input counts only where it is a pipe, so that a load started
/// in the background with `/dev/null` stays. Must be called in a `LocalSet`.
pub(crate) async fn run(arguments: Arguments) -> Result<(), LoadError> {
    crate::sys::raise_descriptors();
    let mut terminated = signal(SignalKind::terminate()).map_err(LoadError::doing("watch for SIGTERM"))?;
    let opening =
        Rc::new(Opening { arguments, began: Instant::now(), next: Cell::new(0), held: RefCell::new(Vec::new()) });
    tokio::select! {
        opened = open(&opening) => opened?,
        _ = terminated.recv() => return Ok(()),
    }
    let count = opening.held.borrow().len();
    output::line(&json!({ "open": count, "per_second": per_second(count as u64, opening.began.elapsed()) }))?;
    tokio::select! {
        () = input_closed() => {}
        _ = terminated.recv() => {}
    }
    Ok(())
}

async fn open(opening: &Rc<Opening>) -> Result<(), LoadError> {
    let mut workers = JoinSet::new();
    for _ in 0..OPENING {
        workers.spawn_local(work(Rc::clone(opening)));
    }
    while let Some(ended) = workers.join_next().await {
        ended.map_err(io::Error::from).map_err(LoadError::doing("open connections"))??;
    }
    Ok(())
}

async fn work(opening: Rc<Opening>) -> Result<(), LoadError> {
    let Opening { arguments, began, next, held } = &*opening;
    while next.get() < arguments.flows {
        let index = next.replace(next.get() + 1);
        let Some((from, to)) = arguments.ends(index) else { return Ok(()) };
        if let Some(rate) = arguments.rate {
            sleep_until((*began + Duration::from_secs_f64(index as f64 / f64::from(rate))).into()).await;
        }
        let mut failed = 0;
        let stream = loop {
            let dialled = timeout(PATIENCE, dial(from, to)).await;
            match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => break stream,
                Err(_) if failed + 1 < ATTEMPTS => failed += 1,
                Err(error) => {
                    let done = held.borrow().len() as u64;
                    return Err(LoadError::Failures { done, failed: ATTEMPTS, last: format!("{to}: {error}") });
                }
            }
            sleep(AFTER_FAILURE).await;
        };
        held.borrow_mut().push(stream);
    }
    Ok(())
}

/// Connects. What is held needs no runtime, so it leaves it.
async fn dial(from: Option<IpAddr>, to: SocketAddr) -> io::Result<std::net::TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        // The port is chosen by the connect, which knows the other end: the same one may serve many pairs.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let stream = socket.connect(to).await?;
    // The close will be a reset, so that no port waits for late segments.
    stream.set_zero_linger()?;
    stream.into_std()
}

/// Waits for the end of standard input, for ever where it is no pipe.
async fn input_closed() {
    let Some(mut input) = piped_input() else { return std::future::pending().await };
    let mut buffer = [0; 64];
    while input.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

fn piped_input() -> Option<pipe::Receiver> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    if !input.metadata().ok()?.file_type().is_fifo() {
        return None;
    }
    pipe::Receiver::from_file(input).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::served;

    fn arguments(address: Vec<SocketAddr>, addresses: &[&str]) -> Arguments {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Arguments { address, flows: 300, rate: None, addresses }
    }

    #[test]
    fn opens_as_many_as_asked_from_each_address() {
        let held = served("--hold", async |address| {
            let arguments = arguments(vec![address], &["127.0.0.1", "127.0.0.2"]);
            let (next, held) = (Cell::new(0), RefCell::default());
            let opening = Rc::new(Opening { arguments, began: Instant::now(), next, held });
            open(&opening).await.unwrap();
            opening.held.take()
        });
        let second: IpAddr = "127.0.0.2".parse().unwrap();
        let from_second = held.iter().filter(|stream| stream.local_addr().unwrap().ip() == second);
        assert_eq!((held.len(), from_second.count()), (300, 150));
    }

    #[test]
    fn every_pair_of_ends_is_used() {
        let targets: Vec<SocketAddr> = vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
        let arguments = arguments(targets, &["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        let mut ends: Vec<_> = (0..6).filter_map(|index| arguments.ends(index)).collect();
        ends.sort();
        ends.dedup();
        assert_eq!(ends.len(), 6);
    }
}
