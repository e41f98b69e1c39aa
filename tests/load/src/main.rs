//! `portcullis-load`: the loads of `scripts/bench`, and the servers they are put on.
//!
//! ```text
//!  connections, requests, round-trip, udp, hold ──> wireguard ──> what is measured ──> serve
//!                                                   peers     ──>
//! ```
//!
//! Loads and servers run on the cores of what is measured, so each is to cost as little as it can: one thread, no
//! more system calls than its protocol needs. A load is bounded in time and in what it keeps, prints its result as one
//! line of JSON, and ends with status 1 and a line on standard error when the figure would mean nothing.

mod coalesce;
mod connections;
mod error;
mod hold;
mod http;
mod output;
mod peers;
mod requests;
mod round_trip;
mod samples;
mod search;
mod serve;
mod sys;
mod udp;
mod wireguard;
mod workers;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use error::LoadError;

/// Loads for scripts/bench, and the servers they are put on.
#[derive(Debug, Parser)]
#[command(name = "portcullis-load", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves what the loads need; prints `ready` once everything listens.
    Serve(serve::Arguments),
    /// HTTP requests, each on a connection of its own.
    Connections(connections::Arguments),
    /// HTTP requests on connections that are kept.
    Requests(requests::Arguments),
    /// One byte there and back on one connection.
    RoundTrip(round_trip::Arguments),
    /// The greatest rate of datagrams with at most 1 % loss.
    Udp(udp::Arguments),
    /// Idle connections, held until standard input closes (where it is a pipe) or SIGTERM.
    Hold(hold::Arguments),
    /// A WireGuard client; prints `ready` after the first handshake.
    Wireguard(wireguard::Arguments),
    /// Many idle WireGuard peers: their directory, or the peers themselves.
    Peers(peers::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "portcullis-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), LoadError> {
    match command {
        Command::RoundTrip(arguments) => output::line(&round_trip::run(&arguments)?),
        Command::Udp(arguments) => output::line(&udp::run(&arguments)?),
        Command::Serve(arguments) => on_runtime(serve::run(arguments)),
        Command::Connections(arguments) => output::line(&on_runtime(connections::run(&arguments))?),
        Command::Requests(arguments) => output::line(&on_runtime(requests::run(&arguments))?),
        Command::Hold(arguments) => on_runtime(hold::run(arguments)),
        Command::Wireguard(arguments) => on_batching_runtime(wireguard::run(arguments)),
        Command::Peers(arguments) => on_batching_runtime(peers::run(arguments)),
    }
}

/// Runs a future and what it spawns on this thread.
fn on_runtime<T>(load: impl Future<Output = Result<T, LoadError>>) -> Result<T, LoadError> {
    run_on(tokio::runtime::Builder::new_current_thread().enable_all(), load)
}

/// The same for a loop that does batches of its own: it wants to see new events after each.
fn on_batching_runtime<T>(load: impl Future<Output = Result<T, LoadError>>) -> Result<T, LoadError> {
    run_on(tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1), load)
}

fn run_on<T>(
    runtime: &mut tokio::runtime::Builder,
    load: impl Future<Output = Result<T, LoadError>>,
) -> Result<T, LoadError> {
    let runtime = runtime.build().map_err(LoadError::doing("start the runtime"))?;
    tokio::task::LocalSet::new().block_on(&runtime, load)
}

/// Parses a length of time in seconds, at most ten minutes.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds from 0.05 to 600".to_owned()),
    }
}
