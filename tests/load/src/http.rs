//! As much of HTTP/1.1 as the loads and their server speak: GET, and an answer with a length.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Longest head or answer that is read.
const MESSAGE: usize = 4096;

/// The end of a head.
const END: &[u8] = b"\r\n\r\n";

/// One side of a connection, as far as it was read.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { bytes: vec![0; MESSAGE].into_boxed_slice(), filled: 0 }
    }
}

impl Inbox {
    /// Forgets what was read, for another connection.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Reads one answer of status 200 to its end.
    pub(crate) async fn read_answer(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        loop {
            if let Some(length) = answer_length(self.filled())?
                && self.filled >= length
            {
                self.consume(length);
                return Ok(());
            }
            if self.fill(stream).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads one request's head, and says whether the connection is to be closed after the answer. `None`: the peer
    /// ended it, before one or within.
    pub(crate) async fn read_request(&mut self, stream: &mut TcpStream) -> io::Result<Option<bool>> {
        loop {
            if let Some(end) = head_length(self.filled()) {
                let close = asks_to_close(self.filled().get(..end).unwrap_or_default());
                self.consume(end);
                return Ok(Some(close));
            }
            if self.fill(stream).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads until the peer has closed.
    pub(crate) async fn read_end(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        match self.fill(stream).await? {
            0 => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }

    async fn fill(&mut self, stream: &mut TcpStream) -> io::Result<usize> {
        let room = self.bytes.get_mut(self.filled..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = stream.read(room).await?;
        self.filled += read;
        Ok(read)
    }

    fn consume(&mut self, length: usize) {
        self.bytes.copy_within(length..self.filled, 0);
        self.filled -= length;
    }
}

/// Bytes of the head, with its empty line; `None`: there is more to come.
fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(END.len()).position(|window| window == END).map(|at| at + END.len())
}

/// Bytes of the whole answer; `None`: its head is not there yet.
fn answer_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(head) = head_length(bytes) else { return Ok(None) };
    let lines = bytes.get(..head).unwrap_or_default();
    if !lines.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer other than 200"));
    }
    let length = header(lines, "content-length").and_then(|value| value.parse::<usize>().ok());
    let length = length.filter(|length| *length <= MESSAGE);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer of no known length"))?;
    Ok(Some(head + length))
}

fn asks_to_close(head: &[u8]) -> bool {
    let connection = header(head, "connection");
    let first = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    match connection {
        Some(value) if value.eq_ignore_ascii_case("close") => true,
        Some(value) if value.eq_ignore_ascii_case("keep-alive") => false,
        _ => first.ends_with(b"HTTP/1.0"),
    }
}

/// The value of the first header of that name.
fn header<'h>(head: &'h [u8], name: &str) -> Option<&'h str> {
    let lines = std::str::from_utf8(head).ok()?.split("\r\n").skip(1);
    let mut pairs = lines.filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhello";
        for part in 0..whole.len() - 5 {
            assert_eq!(answer_length(&whole[..part]).unwrap(), None);
        }
        assert_eq!(answer_length(whole).unwrap(), Some(whole.len()));
        for bad in [
            &b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
            b"\xff\r\n\r\n",
        ] {
            assert!(answer_length(bad).is_err());
        }
    }

    #[test]
    fn who_wants_the_connection_closed() {
        for (head, close) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false),
        ] {
            assert_eq!(asks_to_close(head.as_bytes()), close, "{head}");
        }
    }
}
