//! TCP: connections that are only there.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Keeps a connection until the client closes it. What it sends is thrown away.
pub(super) async fn serve(mut stream: TcpStream) -> io::Result<()> {
    // The task must stay small: there are tens of thousands of them.
    let mut buffer = [0; 64];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}
