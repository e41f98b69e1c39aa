//! A server for a test.

use std::net::SocketAddr;

use clap::Parser;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    arguments: super::Arguments,
}

/// Lets `test` meet one server on a port of its own of 127.0.0.1.
pub(crate) fn served<T>(kind: &str, test: impl AsyncFnOnce(SocketAddr) -> T) -> T {
    let line = Line::parse_from(["serve", kind, "127.0.0.1:0"]);
    let load = async move {
        let bound = super::start(line.arguments)?;
        Ok(test(bound[0]).await)
    };
    crate::on_runtime(load).unwrap()
}
