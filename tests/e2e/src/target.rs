//! Servers of the private network: plain sockets on threads of the test.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::netns::Netns;
use crate::wait;

/// No read or write of a test waits longer than this for the other side.
pub const SOCKET_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a test waits for a target to report; more than [`SOCKET_TIMEOUT`], so that the target's error is seen.
const REPORT_TIMEOUT: Duration = Duration::from_secs(180);

/// Small: a thousand connections have a thread each.
const STACK: usize = 256 * 1024;

/// A TCP server that runs `handler` for every connection and collects what it returns.
#[derive(Debug)]
pub struct TcpTarget<R> {
    address: SocketAddr,
    listener: TcpListener,
    results: Mutex<Receiver<R>>,
}

impl<R: Send + 'static> TcpTarget<R> {
    /// Listens on a free port of `address` inside `netns`.
    ///
    /// # Panics
    ///
    /// When the address cannot be bound.
    pub fn serve(netns: &Netns, address: IpAddr, handler: impl Fn(TcpStream) -> R + Send + Sync + 'static) -> Self {
        let address = SocketAddr::new(address, 0);
        let listener: TcpListener = netns.run(|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
            socket.bind(&address.into()).unwrap_or_else(|error| panic!("bind {address}: {error}"));
            socket.listen(4096).expect("a listening socket");
            socket.into()
        });
        let address = listener.local_addr().expect("a bound socket has an address");
        let accepting = listener.try_clone().expect("a second handle of the listener");
        let (report, results) = channel();
        let handler = Arc::new(handler);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let (report, handler) = (report.clone(), Arc::clone(&handler));
                std::thread::Builder::new()
                    .stack_size(STACK)
                    .spawn(move || {
                        patient(&stream).expect("timeouts on a stream");
                        // Nobody listens to reports once the test is over.
                        let _ = report.send(handler(stream));
                    })
                    .expect("a thread for a connection");
            }
        });
        Self { address, listener, results: Mutex::new(results) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the handler returned for the next connection that ended.
    ///
    /// # Panics
    ///
    /// When no connection ends in time.
    pub fn result(&self) -> R {
        lock(&self.results).recv_timeout(REPORT_TIMEOUT).expect("a connection of the target ends")
    }

    /// Whether no further connection has ended.
    pub fn quiet(&self) -> bool {
        lock(&self.results).try_recv().is_err()
    }
}

impl<R> Drop for TcpTarget<R> {
    fn drop(&mut self) {
        // Wakes the accepting thread, which then ends.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

fn lock<T>(receiver: &Mutex<Receiver<T>>) -> std::sync::MutexGuard<'_, Receiver<T>> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives both directions of a stream the test's timeout.
///
/// # Errors
///
/// The system's.
pub fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    stream.set_write_timeout(Some(SOCKET_TIMEOUT))
}

/// Makes dropping the stream a reset.
///
/// # Panics
///
/// When the system refuses the option.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}

/// The next datagram of a socket and where it came from.
///
/// # Errors
///
/// The system's, such as an ICMP error for what was sent before.
pub fn datagram(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 65_536];
    let (len, from) = wait::uninterrupted(|| socket.recv_from(&mut buffer))?;
    buffer.truncate(len);
    Ok((buffer, from))
}

/// A UDP server that answers each datagram with what `answer` makes of it.
#[derive(Debug)]
pub struct UdpTarget {
    address: SocketAddr,
    socket: UdpSocket,
    sources: Mutex<Receiver<SocketAddr>>,
}

impl UdpTarget {
    /// Listens on `address` inside `netns`; port 0 takes a free one.
    ///
    /// # Panics
    ///
    /// When the address cannot be bound.
    pub fn serve(netns: &Netns, address: SocketAddr, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let socket = netns.run(|| UdpSocket::bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}")));
        let address = socket.local_addr().expect("a bound socket has an address");
        let answering = socket.try_clone().expect("a second handle of the socket");
        let (report, sources) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            loop {
                match wait::uninterrupted(|| answering.recv_from(&mut buffer)) {
                    // An empty datagram from itself asks it to end.
                    Ok((_, from)) if from == address => return,
                    Ok((len, from)) => {
                        // The report first: who has the answer can ask for the source.
                        let _ = report.send(from);
                        // An answer that cannot be sent is one the client misses.
                        let _ = answering.send_to(&answer(&buffer[..len]), from);
                    }
                    // An ICMP error for an earlier answer.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(_) => return,
                }
            }
        });
        Self { address, socket, sources: Mutex::new(sources) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where datagrams came from since the last call.
    pub fn sources(&self) -> Vec<SocketAddr> {
        lock(&self.sources).try_iter().collect()
    }
}

impl Drop for UdpTarget {
    fn drop(&mut self) {
        // When it is lost the thread ends with the process.
        let _ = self.socket.send_to(&[], self.address);
    }
}
