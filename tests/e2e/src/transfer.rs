//! Whole TCP transfers with the bytes compared by digest.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::netns::Netns;
use crate::stream::{self, Sum};
use crate::target::TcpTarget;
use crate::world::Client;

/// Sends `len` bytes to a target on `host`, which answers with the digest of what it got. The client closes first.
/// Gives where the target was.
///
/// # Panics
///
/// When a byte differs or either end sees an error.
pub fn upload(client: &Client<'_>, private: &Netns, host: IpAddr, seed: u64, len: u64) -> SocketAddr {
    let target = TcpTarget::serve(private, host, |mut stream| -> io::Result<(u64, Sum)> {
        let got = stream::receive(&stream)?;
        stream.write_all(&got.1)?;
        Ok(got)
    });
    let mut stream = client.connect(target.address()).expect("the target accepts");
    let sent = stream::send(&mut stream, seed, len).expect("everything is sent");
    stream.shutdown(Shutdown::Write).expect("half of the connection is closed");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the target answers and closes");
    assert_eq!(target.result().expect("the target reads to the end"), (len, sent), "what arrived is not what was sent");
    assert_eq!(answer, sent, "the answer after the half-close");
    target.address()
}

/// Reads `len` bytes from a target on `host`, which closes first. Gives where the target was.
///
/// # Panics
///
/// When a byte differs or either end sees an error.
pub fn download(client: &Client<'_>, private: &Netns, host: IpAddr, seed: u64, len: u64) -> SocketAddr {
    let target = TcpTarget::serve(private, host, move |mut stream| {
        let sent = stream::send(&mut stream, seed, len)?;
        stream.shutdown(Shutdown::Write)?;
        // Until the client is done too: nothing is left to be reset.
        stream::receive(&stream)?;
        Ok::<_, io::Error>(sent)
    });
    let stream = client.connect(target.address()).expect("the target accepts");
    let got = stream::receive(&stream).expect("the stream ends in order");
    drop(stream);
    assert_eq!(got, (len, target.result().expect("the target sends it all")), "what arrived is not what was sent");
    target.address()
}

/// A download without an end, read on a thread of its own.
#[derive(Debug)]
pub struct Endless {
    target: TcpTarget<io::Result<(u64, Sum)>>,
    enough: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    reader: Option<std::thread::JoinHandle<io::Result<(u64, Sum)>>>,
}

impl Endless {
    /// Starts it, and waits until the first byte has arrived.
    ///
    /// # Panics
    ///
    /// When the target cannot be reached.
    pub fn start(client: &Client<'_>, private: &Netns, host: IpAddr) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&enough);
        let target = TcpTarget::serve(private, host, move |mut stream| {
            let sent =
                stream::send_while(&mut stream, 3, |chunk| if stop.load(Ordering::Relaxed) { 0 } else { chunk })?;
            stream.shutdown(Shutdown::Write)?;
            stream::receive(&stream)?;
            Ok(sent)
        });
        let mut stream: TcpStream = client.connect(target.address()).expect("the target accepts");
        let mut first = [0; 1];
        assert_eq!(stream.peek(&mut first).expect("the download starts"), 1);
        let received = Arc::new(AtomicU64::new(0));
        let progress = Arc::clone(&received);
        let reader =
            std::thread::spawn(move || stream::receive_with(&mut stream, |len| progress.store(len, Ordering::Relaxed)));
        Self { target, enough, received, reader: Some(reader) }
    }

    /// Where the target is.
    pub fn address(&self) -> SocketAddr {
        self.target.address()
    }

    /// Bytes that have arrived.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether the client's side of it has ended, in whatever way.
    pub fn over(&self) -> bool {
        self.reader.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Lets the target come to its end and compares all bytes.
    ///
    /// # Panics
    ///
    /// When a byte differs or either end sees an error.
    pub fn finish(mut self) -> u64 {
        self.enough.store(true, Ordering::Relaxed);
        let got = self.join().expect("the download ends in order");
        let sent = self.target.result().expect("the target sends it all");
        assert_eq!(got, sent, "what arrived is not what was sent");
        got.0
    }

    /// Waits for a cut and gives the client's error.
    ///
    /// # Panics
    ///
    /// When the download ends in order.
    pub fn cut(&mut self) -> io::Error {
        self.join().expect_err("the download is cut, never ended in order")
    }

    fn join(&mut self) -> io::Result<(u64, Sum)> {
        self.reader.take().expect("the download is joined once").join().expect("the reader does not panic")
    }
}
