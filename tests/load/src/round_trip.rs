//! One byte there and back on one connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::LoadError;
use crate::samples::{Samples, per_second};

/// Time before the first sample.
const WARM_UP: Duration = Duration::from_millis(300);
/// Longest time one byte may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A TCP echo server.
    address: SocketAddr,
    /// How long.
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
}

/// Sends a byte and waits for it, again and again. No runtime, so that nothing stands between it and the socket.
pub(crate) fn run(arguments: &Arguments) -> Result<Value, LoadError> {
    let address = arguments.address;
    let mut stream = connect(address).map_err(LoadError::at("connect to", address))?;
    let fail = LoadError::at("have an echo of", address);
    match exchange(&mut stream, arguments.seconds) {
        Ok(result) => Ok(result),
        Err(error) => Err(fail(error)),
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, length: Duration) -> io::Result<Value> {
    let mut samples = Samples::default();
    let mut count = 0;
    let measured_from = Instant::now() + WARM_UP;
    let end = measured_from + length;
    let mut sent = Instant::now();
    let mut byte = [0];
    while sent < end {
        stream.write_all(b"x")?;
        stream.read_exact(&mut byte)?;
        let received = Instant::now();
        if sent >= measured_from {
            samples.add(received - sent);
            count += 1;
        }
        sent = received;
    }
    let samples = samples.sort();
    Ok(json!({
        "p50_us": samples.percentile(50),
        "p99_us": samples.percentile(99),
        "max_us": samples.percentile(100),
        "per_second": per_second(count, sent - measured_from),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::served;

    #[test]
    fn a_byte_comes_back() {
        let result = served("--tcp-echo", async |address| {
            let load = move || run(&Arguments { address, seconds: Duration::from_millis(100) });
            tokio::task::spawn_blocking(load).await.unwrap()
        });
        let result = result.unwrap();
        assert!(result["per_second"].as_f64().unwrap() > 0.0, "{result}");
    }
}
