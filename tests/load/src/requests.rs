//! HTTP requests on connections that are kept.

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

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: load\r\n\r\n";

/// Where, and how many.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// An HTTP server.
    address: SocketAddr,
    /// How long.
    #[arg(long, value_parser = crate::seconds)]
    seconds: Duration,
    /// Connections.
    #[arg(long, default_value_t = 16, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=4096))]
    concurrency: usize,
}

/// Asks and reads the answer, again and again. A latency is that of one request.
pub(crate) async fn run(arguments: &Arguments) -> Result<Value, LoadError> {
    crate::sys::raise_descriptors();
    let address = arguments.address;
    workers::run(arguments.seconds, arguments.concurrency, |tally| work(tally, address)).await
}

async fn work(tally: Rc<Tally>, address: SocketAddr) {
    let mut inbox = Inbox::default();
    let mut connection = None;
    loop {
        if !tally.attempt(ask(address, &mut connection, &mut inbox)).await {
            connection = None;
        }
    }
}

async fn ask(address: SocketAddr, connection: &mut Option<TcpStream>, inbox: &mut Inbox) -> io::Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            inbox.clear();
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            stream.set_zero_linger()?;
            connection.insert(stream)
        }
    };
    stream.write_all(REQUEST).await?;
    inbox.read_answer(stream).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::served;

    #[test]
    fn asks_over_and_over() {
        let result = served("--http", async |address| {
            run(&Arguments { address, seconds: Duration::from_millis(200), concurrency: 4 }).await
        });
        let result = result.unwrap();
        assert!(result["p99_us"].as_f64().unwrap() >= result["p50_us"].as_f64().unwrap(), "{result}");
        assert_eq!(result["failed"], 0);
    }
}
