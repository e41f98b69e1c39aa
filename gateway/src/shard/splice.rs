//! Bytes between off-ramp sockets and the stack's rings, with no buffer in between.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use portcullis_netstack::packet::build::Unreachable;
use portcullis_netstack::{CloseCause, FlowId, Stack};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::flow::{CalledTarget, TcpTarget};
use crate::flow_record::FlowEnd;
use crate::offramp::datagram::{DatagramSocket, datagrams};

/// Most bytes moved each way before another flow has its turn.
const BYTES_A_TURN: usize = 256 * 1024;
/// Most runs of an association's datagrams before another flow has its turn; a full batch ends it before.
const RUNS_A_TURN: usize = 64;

/// What became of a TCP flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It goes on; wakers and packets tell when.
    Waiting,
    /// There is more to move at once.
    More,
    /// Both ends closed in order.
    Finished(FlowEnd),
    /// It must be reset at both ends.
    Broken(FlowEnd),
}

enum Step {
    Moved,
    Blocked,
    End,
    Failed(io::Error),
}

/// Moves what can be moved between a TCP client and its target.
pub(crate) fn tcp(
    stack: &mut Stack,
    id: FlowId,
    target: &mut TcpTarget,
    now: Instant,
    cx: &mut Context<'_>,
) -> Progress {
    let down = from_target(stack, id, target, now, cx);
    let up = to_target(stack, id, target, now, cx);
    // What the target sent before it failed goes on its way first.
    stack.transmit(now, id);
    let up = up.and_then(|more| flushed(target, cx).map(|()| more));
    let more = match (up, down) {
        (Err(error), _) | (_, Err(error)) => return Progress::Broken(target_failed(&error)),
        (Ok(up), Ok(down)) => up || down,
    };
    match stack.cause(id) {
        Some(CloseCause::ClientReset) => Progress::Broken(FlowEnd::ClientReset),
        // Of a client nobody says that it is out of reach.
        Some(CloseCause::Timeout | CloseCause::Unreachable) => Progress::Broken(FlowEnd::Idle),
        Some(CloseCause::Orderly) if target.shut => Progress::Finished(orderly_end(stack, id)),
        Some(CloseCause::Orderly) | None if more => Progress::More,
        Some(CloseCause::Orderly) | None => Progress::Waiting,
    }
}

fn orderly_end(stack: &mut Stack, id: FlowId) -> FlowEnd {
    if stack.client_closed_first(id) { FlowEnd::ClientClosed } else { FlowEnd::TargetClosed }
}

/// Moves what can be moved between a TCP client and a connection of the stack's own.
pub(crate) fn call(stack: &mut Stack, id: FlowId, target: &mut CalledTarget, now: Instant) -> Progress {
    let called = target.connection;
    let down = stack.relay(now, called, id, BYTES_A_TURN);
    if !target.finished && stack.client_finished(called) {
        target.finished = true;
        stack.close(id);
    }
    let up = stack.relay(now, id, called, BYTES_A_TURN);
    if !target.shut && stack.client_finished(id) {
        target.shut = true;
        stack.close(called);
    }
    stack.transmit(now, id);
    stack.transmit(now, called);
    match (stack.cause(id), stack.cause(called)) {
        (Some(CloseCause::ClientReset), _) => Progress::Broken(FlowEnd::ClientReset),
        (_, Some(CloseCause::ClientReset)) => Progress::Broken(FlowEnd::TargetReset),
        (Some(CloseCause::Timeout | CloseCause::Unreachable), _) => Progress::Broken(FlowEnd::Idle),
        (_, Some(CloseCause::Timeout)) if !stack.is_owed(called) => Progress::Broken(FlowEnd::Idle),
        (_, Some(CloseCause::Timeout | CloseCause::Unreachable)) => Progress::Broken(FlowEnd::TargetUnreachable),
        (Some(CloseCause::Orderly), Some(CloseCause::Orderly)) if target.shut => {
            Progress::Finished(orderly_end(stack, id))
        }
        (Some(CloseCause::Orderly) | None, Some(CloseCause::Orderly) | None) if up.max(down) >= BYTES_A_TURN => {
            Progress::More
        }
        (Some(CloseCause::Orderly) | None, Some(CloseCause::Orderly) | None) => Progress::Waiting,
    }
}

/// Writes the client's bytes to the target, then its end. Returns whether there is more.
fn to_target(
    stack: &mut Stack,
    id: FlowId,
    target: &mut TcpTarget,
    now: Instant,
    cx: &mut Context<'_>,
) -> io::Result<bool> {
    let mut moved = 0;
    while moved < BYTES_A_TURN {
        let step = stack.recv_with(now, id, |ring| match Pin::new(&mut target.stream).poll_write(cx, ring) {
            Poll::Ready(Ok(len)) => {
                moved += len;
                (len, Step::Moved)
            }
            Poll::Ready(Err(error)) => (0, Step::Failed(error)),
            Poll::Pending => (0, Step::Blocked),
        });
        match step {
            Some(Step::Moved) => {}
            Some(Step::Failed(error)) => return Err(error),
            Some(Step::Blocked) => return Ok(false),
            Some(Step::End) | None => {
                if !target.shut && stack.client_finished(id) {
                    match Pin::new(&mut target.stream).poll_shutdown(cx) {
                        Poll::Ready(Ok(())) => target.shut = true,
                        // The target is gone already, which reading tells in its own words.
                        Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected => target.shut = true,
                        Poll::Ready(Err(error)) => return Err(error),
                        Poll::Pending => {}
                    }
                }
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Has what was written go out: behind TLS some of it may wait for room in the socket.
fn flushed(target: &mut TcpTarget, cx: &mut Context<'_>) -> io::Result<()> {
    match Pin::new(&mut target.stream).poll_flush(cx) {
        Poll::Ready(result) => result,
        Poll::Pending => Ok(()),
    }
}

/// Reads the target's bytes into the ring towards the client, then its end. Returns whether there is more.
fn from_target(
    stack: &mut Stack,
    id: FlowId,
    target: &mut TcpTarget,
    now: Instant,
    cx: &mut Context<'_>,
) -> io::Result<bool> {
    let mut moved = 0;
    while !target.finished && moved < BYTES_A_TURN {
        let step = stack.send_with(now, id, |ring| {
            let mut buffer = ReadBuf::new(ring);
            match Pin::new(&mut target.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => (0, Step::End),
                Poll::Ready(Ok(())) => {
                    moved += buffer.filled().len();
                    (buffer.filled().len(), Step::Moved)
                }
                Poll::Ready(Err(error)) => (0, Step::Failed(error)),
                Poll::Pending => (0, Step::Blocked),
            }
        });
        match step {
            Some(Step::Moved) => {}
            Some(Step::End) => {
                target.finished = true;
                stack.close(id);
            }
            Some(Step::Failed(error)) => return Err(error),
            // A full ring: the client's next acknowledgment brings us back.
            Some(Step::Blocked) | None => return Ok(false),
        }
    }
    Ok(!target.finished)
}

fn target_failed(error: &io::Error) -> FlowEnd {
    match error.raw_os_error() {
        Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED) => FlowEnd::TargetReset,
        // TLS that ended without its own end: cut off.
        None if error.kind() == io::ErrorKind::UnexpectedEof => FlowEnd::TargetReset,
        Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) => FlowEnd::TargetUnreachable,
        _ => FlowEnd::Error,
    }
}

/// Hands the target's datagrams to the client, those that came together in one packet when it takes them so. Returns
/// whether there is more.
pub(crate) fn udp(
    stack: &mut Stack,
    id: FlowId,
    socket: &DatagramSocket,
    together: bool,
    now: Instant,
    scratch: &mut [u8],
    cx: &mut Context<'_>,
) -> bool {
    receive(stack, id, socket, scratch, cx, |stack, run, size| {
        if together {
            return stack.send_datagrams(now, id, run, size);
        }
        for payload in datagrams(run, size) {
            stack.send_datagram(now, id, payload);
        }
    })
}

/// Hands echo replies of the target to the client. Returns whether there is more.
pub(crate) fn echo(
    stack: &mut Stack,
    id: FlowId,
    socket: &DatagramSocket,
    now: Instant,
    scratch: &mut [u8],
    cx: &mut Context<'_>,
) -> bool {
    receive(stack, id, socket, scratch, cx, |stack, message, _| {
        // The kernel put its own identifier in; type and code are an echo reply's, or it would not be here.
        if let [_, _, _, _, _, _, high, low, data @ ..] = message {
            stack.send_echo_reply(now, id, u16::from_be_bytes([*high, *low]), data);
        }
    })
}

/// Reads what a target sent, as long as there is room for it. Returns whether there is more.
fn receive(
    stack: &mut Stack,
    id: FlowId,
    socket: &DatagramSocket,
    scratch: &mut [u8],
    cx: &mut Context<'_>,
    mut deliver: impl FnMut(&mut Stack, &[u8], usize),
) -> bool {
    for _ in 0..RUNS_A_TURN {
        if stack.batch().is_full() {
            return true;
        }
        match socket.poll_recv(cx, scratch) {
            Poll::Pending => return false,
            Poll::Ready(Ok(received)) => {
                deliver(stack, scratch.get(..received.bytes).unwrap_or_default(), received.datagram);
            }
            // Reading took the error off the socket: there may be datagrams behind it.
            Poll::Ready(Err(error)) => report(stack, id, socket, &error),
        }
    }
    true
}

/// Tells the client what the kernel says about its datagrams, in the words of ICMP where they came so.
pub(crate) fn report(stack: &mut Stack, id: FlowId, socket: &DatagramSocket, error: &io::Error) {
    let reported = socket.take_reported();
    if reported.is_empty()
        && let Some(unreachable) = unreachable(socket, error)
    {
        stack.send_unreachable(id, unreachable);
    }
    for reported in reported {
        stack.send_unreachable(id, reported);
    }
}

/// The ICMP error behind what the kernel says about a connected socket.
pub(crate) fn unreachable(socket: &DatagramSocket, error: &io::Error) -> Option<Unreachable> {
    match error.raw_os_error() {
        Some(code) if socket.is_relayed() && code != libc::EMSGSIZE => None,
        Some(libc::ECONNREFUSED) => Some(Unreachable::Port),
        Some(libc::EHOSTUNREACH) => Some(Unreachable::Host),
        Some(libc::ENETUNREACH) => Some(Unreachable::Network),
        Some(libc::EACCES | libc::EPERM) => Some(Unreachable::Prohibited),
        Some(libc::EMSGSIZE) => {
            let mtu = socket.path_mtu().ok().and_then(|mtu| u16::try_from(mtu).ok())?;
            Some(Unreachable::TooBig(mtu))
        }
        _ => None,
    }
}
