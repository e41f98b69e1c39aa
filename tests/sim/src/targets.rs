//! What flows are allowed to reach: echo services of this host.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::thread;

/// TCP echo.
pub const ECHO: u16 = 7000;
/// UDP echo.
pub const UDP_ECHO: u16 = 7001;
/// TCP and UDP that nobody listens on.
pub const CLOSED: u16 = 7002;
/// TCP that no policy of the tests allows, and that is listened on.
pub const DENIED: u16 = 7003;

/// Echo services on every address of the namespace. They run until the process ends.
#[derive(Debug)]
pub struct Targets {
    denied: TcpListener,
}

impl Targets {
    /// Starts them.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("::", ECHO)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                thread::spawn(move || echo(stream.unwrap()));
            }
        });
        let socket = UdpSocket::bind(("::", UDP_ECHO)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((len, from)) => {
                        let _ = socket.send_to(&buffer[..len], from);
                    }
                    // The machine was stopped for a moment.
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        });
        let denied = TcpListener::bind(("::", DENIED)).unwrap();
        denied.set_nonblocking(true).unwrap();
        Self { denied }
    }

    /// Whether anything reached what is denied.
    pub fn denied_was_reached(&self) -> bool {
        self.denied.accept().is_ok()
    }
}

/// Sends back what comes, then closes after the other side.
fn echo(mut stream: std::net::TcpStream) {
    let mut buffer = [0; 65_536];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}
