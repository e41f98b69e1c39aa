//! HTTP: a short answer to every request.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::http::Inbox;

/// With a body of 100 bytes.
const KEPT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n\
    0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
const CLOSED: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\nConnection: close\r\n\r\n\
    0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

/// Answers until the client closes, or has asked to be closed.
pub(super) async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut inbox = Inbox::default();
    while let Some(close) = inbox.read_request(&mut stream).await? {
        stream.write_all(if close { CLOSED } else { KEPT }).await?;
        if close {
            break;
        }
    }
    Ok(())
}
