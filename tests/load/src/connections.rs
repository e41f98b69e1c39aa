//! HTTP requests, each on a connection of its own.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::error::LoadError;
use crate::http::Inbox;
use crate::workers::{self, Tally};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n";

/// Where, and how many.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// An HTTP server.
    address: SocketAddr,
    /// How long.
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
    /// Connections at a time.
    #[arg(long, default_value_t = 16, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=4096))]
    concurrency: usize,
}

/// Connects, asks, reads the answer and the end, closes. A latency is all of it.
pub(crate) async fn run(arguments: &Arguments) -> Result<Value, LoadError> {
    crate::sys::raise_descriptors();
    let address = arguments.address;
    workers::run(arguments.seconds, arguments.concurrency, |tally| work(tally, address)).await
}

async fn work(tally: Rc<Tally>, address: SocketAddr) {
    let mut inbox = Inbox::default();
    loop {
        tally.attempt(fetch(address, &mut inbox)).await;
    }
}

async fn fetch(address: SocketAddr, inbox: &mut Inbox) -> io::Result<()> {
    inbox.clear();
    let mut stream = TcpStream::connect(address).await?;
    // The close will be a reset, so that no port waits for late segments.
    stream.set_zero_linger()?;
    stream.write_all(REQUEST).await?;
    inbox.read_answer(&mut stream).await?;
    inbox.read_end(&mut stream).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::served;

    #[test]
    fn connects_over_and_over() {
        let result = served("--http", async |address| {
            run(&Arguments { address, seconds: Duration::from_millis(200), concurrency: 4 }).await
        });
        let result = result.unwrap();
        assert!(result["per_second"].as_f64().unwrap() > 0.0, "{result}");
        assert_eq!(result["failed"], 0);
    }

    #[test]
    fn a_server_that_is_no_http_server_is_no_figure() {
        let result = served("--tcp-echo", async |address| {
            run(&Arguments { address, seconds: Duration::from_millis(100), concurrency: 1 }).await
        });
        assert!(matches!(result, Err(LoadError::Failures { done: 0, .. })), "{result:?}");
    }
}
