//! The loop of the client: read what is ready, encrypt and decrypt it, flush.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use portcullis::host::TunDevice;
use portcullis::onramp::tun::TunWriter;
use portcullis::onramp::wireguard::socket::{Endpoint, Outbox, ReceiveBuffers, WireguardSocket};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::tun::Reader;
use crate::coalesce::Coalescer;
use crate::error::LoadError;
use crate::output;

/// How often the tunnel looks at its timers.
const TICK: Duration = Duration::from_millis(250);
/// Bytes, and frames, read from the device before they are sent.
const BYTES_A_TURN: usize = 256 * 1024;
const FRAMES_A_TURN: usize = 128;
/// Turns before the runtime may look for new events.
const TURNS: usize = 8;
/// Bytes a datagram is longer than the packet in it, WireGuard paper section 5.4.6.
const DATA_OVERHEAD: usize = 32;
/// Longest handshake message.
const HANDSHAKE_MESSAGE: usize = 148;
/// Longest datagram the kernel hands up, and so the least length of a buffer `boringtun` decrypts into.
const SCRATCH: usize = 65_536;

/// One tunnel between a TUN device and a UDP socket.
pub(super) struct Client {
    tunnel: Tunn,
    endpoint: Endpoint,
    socket: WireguardSocket,
    memory: ReceiveBuffers,
    outbox: Outbox,
    reader: Reader,
    writer: TunWriter,
    coalescer: Coalescer,
    scratch: Box<[u8]>,
    timer: Interval,
    connected: bool,
}

impl Client {
    pub(super) fn new(
        tunnel: Tunn,
        endpoint: SocketAddr,
        socket: WireguardSocket,
        device: Arc<TunDevice>,
    ) -> io::Result<Self> {
        let mut timer = interval(TICK);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            tunnel,
            endpoint: Endpoint { address: endpoint, local: None },
            socket,
            memory: ReceiveBuffers::default(),
            outbox: Outbox::default(),
            reader: Reader::new(Arc::clone(&device))?,
            writer: TunWriter::new(device),
            coalescer: Coalescer::default(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            timer,
            connected: false,
        })
    }

    /// Opens the tunnel, then carries packets for as long as the device is there.
    pub(super) async fn run(mut self) -> Result<(), LoadError> {
        if let TunnResult::WriteToNetwork(initiation) =
            self.tunnel.format_handshake_initiation(&mut self.scratch, false)
        {
            self.outbox.queue(self.endpoint, initiation);
        }
        tokio::task::unconstrained(poll_fn(|cx| self.turns(cx))).await
    }

    fn turns(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LoadError>> {
        for _ in 0..TURNS {
            self.poll_timer(cx);
            let mut busy = self.poll_network(cx);
            if !self.connected && self.tunnel.time_since_last_handshake().is_some() {
                self.connected = true;
                output::line(&"ready")?;
            }
            busy |= self.poll_tun(cx).map_err(LoadError::doing("read the TUN device"))?;
            // What the kernel refuses is lost, as packets may be.
            let _ = self.socket.poll_flush(cx, &mut self.outbox, |_, _| {});
            if !busy {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        while self.timer.poll_tick(cx).is_ready() {
            if let TunnResult::WriteToNetwork(message) = self.tunnel.update_timers(&mut self.scratch) {
                self.outbox.queue(self.endpoint, message);
            }
        }
    }

    /// Takes in one batch of datagrams. `true`: there may be more.
    fn poll_network(&mut self, cx: &mut Context<'_>) -> bool {
        let Self { tunnel, endpoint, socket, memory, outbox, writer, coalescer, scratch, .. } = self;
        // A full queue of the device, or a device that is down: the packet is lost.
        let mut emit = |packet: &mut [u8], offload| drop(writer.write(packet, offload));
        let polled = socket.poll_receive(cx, memory, |_, datagram| {
            match tunnel.decapsulate(None, datagram, scratch) {
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    coalescer.push(packet, &mut emit);
                }
                TunnResult::WriteToNetwork(answer) => {
                    outbox.queue(*endpoint, answer);
                    // Packets that waited for the handshake.
                    while let TunnResult::WriteToNetwork(waiting) = tunnel.decapsulate(None, &[], scratch) {
                        outbox.queue(*endpoint, waiting);
                    }
                }
                TunnResult::Done | TunnResult::Err(_) => {}
            }
        });
        coalescer.flush(&mut emit);
        // An error is about a datagram sent earlier: the next call goes on.
        polled.is_ready()
    }

    /// Encrypts some packets of the kernel, unless earlier ones still wait to be sent. `true`: there may be more.
    fn poll_tun(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let Self { tunnel, endpoint, outbox, reader, .. } = self;
        if !outbox.is_empty() {
            return Ok(false);
        }
        let mut bytes = 0;
        for _ in 0..FRAMES_A_TURN {
            let read = reader.poll_read(cx, |packet| {
                let room = (packet.len() + DATA_OVERHEAD).max(HANDSHAKE_MESSAGE);
                outbox.queue_with(*endpoint, room, |buffer| match tunnel.encapsulate(packet, buffer) {
                    TunnResult::WriteToNetwork(datagram) => datagram.len(),
                    // Before the handshake the packet waits in the tunnel.
                    TunnResult::Done
                    | TunnResult::Err(_)
                    | TunnResult::WriteToTunnelV4(..)
                    | TunnResult::WriteToTunnelV6(..) => 0,
                });
            });
            match read {
                Poll::Ready(length) => bytes += length?,
                Poll::Pending => return Ok(false),
            }
            if bytes >= BYTES_A_TURN {
                break;
            }
        }
        Ok(true)
    }
}
