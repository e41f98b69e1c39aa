//! What arrived at a shard that cannot do with it: WireGuard datagrams where their peer is not owned, packets where their
//! flow does not live or is to go on to a peer of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use portcullis_netstack::segment::Offload;
use tokio::sync::mpsc;

use crate::onramp::tun::FrameInfo;
use crate::onramp::wireguard::socket::Endpoint;

/// Batches that may wait for a shard. A full mailbox loses packets, as a full queue of a network card does.
///
/// A batch is what one shard read or made in a turn: mostly a few packets. [`MOST_BYTES`] bounds them together.
/// Strangers can fill it, so it is kept short: of datagrams that the kernel joined only the first has to name a peer of the
/// shard that reads them.
const MAILBOX: usize = 256;
/// Most bytes that wait for a shard. All flows to a site come to the one shard that has its tunnel, and others read faster
/// than it encrypts; more than this would only wait longer.
const MOST_BYTES: usize = 8 << 20;

/// One piece of mail.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A WireGuard datagram whose handshake limits, if any, were applied.
    Datagram(Endpoint, Box<[u8]>),
    /// A whole packet that was read from the TUN device, and what is known of it.
    Packet(Box<[u8]>, FrameInfo),
    /// A packet that goes on to the WireGuard peer with this public key.
    Onward([u8; 32], Box<[u8]>, Option<Offload>),
    /// A packet, or an ICMP message, that came back by the peer with this public key.
    Back([u8; 32], Box<[u8]>, FrameInfo),
}

impl Mail {
    fn bytes(&self) -> usize {
        match self {
            Self::Datagram(_, bytes) | Self::Packet(bytes, _) | Self::Onward(_, bytes, _) | Self::Back(_, bytes, _) => {
                bytes.len()
            }
        }
    }
}

fn bytes(mails: &[Mail]) -> usize {
    mails.iter().map(Mail::bytes).sum()
}

/// Where mail for a shard is handed in.
#[derive(Debug, Clone)]
pub(crate) struct Neighbour {
    sender: mpsc::Sender<Vec<Mail>>,
    /// Bytes handed in and not taken out.
    waiting: Arc<AtomicUsize>,
}

/// Where a shard takes out its mail.
#[derive(Debug)]
pub(crate) struct Mailbox {
    receiver: mpsc::Receiver<Vec<Mail>>,
    waiting: Arc<AtomicUsize>,
}

/// An empty mailbox, and where mail for it is handed in.
pub(crate) fn mailbox() -> (Neighbour, Mailbox) {
    let (sender, receiver) = mpsc::channel(MAILBOX);
    let waiting = Arc::<AtomicUsize>::default();
    (Neighbour { sender, waiting: Arc::clone(&waiting) }, Mailbox { receiver, waiting })
}

impl Neighbour {
    /// Hands in a batch. Returns how many pieces were lost, because too much waits.
    pub(crate) fn send(&self, mails: Vec<Mail>) -> usize {
        let (pieces, bytes) = (mails.len(), bytes(&mails));
        if self.waiting.load(Ordering::Relaxed) + bytes > MOST_BYTES {
            return pieces;
        }
        // Counted before it can be taken out.
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        if self.sender.try_send(mails).is_ok() {
            return 0;
        }
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        pieces
    }
}

impl Mailbox {
    /// The next batch.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<Mail>>> {
        let polled = self.receiver.poll_recv(cx);
        if let Poll::Ready(Some(mails)) = &polled {
            self.waiting.fetch_sub(bytes(mails), Ordering::Relaxed);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_in_bytes_and_in_batches() {
        let (neighbour, mut mailbox) = mailbox();
        let mail = |bytes: usize| vec![Mail::Back([1; 32], vec![0; bytes].into(), FrameInfo::TRUSTED)];
        assert_eq!((neighbour.send(mail(MOST_BYTES)), neighbour.send(mail(1))), (0, 1));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(mailbox.poll_receive(&mut cx).is_ready());
        let lost: usize = (0..MAILBOX + 3).map(|_| neighbour.send(mail(1))).sum();
        assert_eq!(lost, 3);
        while mailbox.poll_receive(&mut cx).is_ready() {}
        assert_eq!(mailbox.waiting.load(Ordering::Relaxed), 0);
    }
}
