//! The way out: packets to their on-ramps, datagrams to the kernel, mail to the other shards.

use std::task::Context;

use portcullis_netstack::segment::{self, Offload};
use portcullis_netstack::{DropReason, IngressId};
use tokio::sync::mpsc;

use super::{Shard, TUN, Wireguard, peer_slot};
use crate::shard::mail::Mail;

impl Wireguard {
    /// Encrypts a packet, segment by segment where it is a super-packet. `scratch` is memory for one.
    fn send(&mut self, to: IngressId, packet: &[u8], offload: Option<Offload>, scratch: &mut Vec<u8>) -> bool {
        let Some(slot) = peer_slot(to) else { return false };
        let Some(offload) = offload else { return self.peers.send(slot, packet, &mut self.outbox) };
        let mut sent = true;
        segment::segments(packet, offload, scratch, |segment| {
            sent &= self.peers.send(slot, segment, &mut self.outbox);
        });
        sent
    }
}

impl Shard {
    /// Hands every packet made to its on-ramp: written to the TUN device, or encrypted and queued.
    pub(super) fn hand_over(&mut self) {
        let Self { stack, wireguard, tun, counters, segment, .. } = self;
        let mut lost = 0;
        stack.batch().drain(|to, packet, offload| {
            let sent = match (to, &mut *wireguard, &mut *tun) {
                (TUN, _, Some(writer)) => writer.write(packet, offload).is_ok(),
                (to, Some(wireguard), _) => wireguard.send(to, packet, offload, segment),
                _ => false,
            };
            lost += u64::from(!sent);
        });
        for _ in 0..lost {
            counters.drop_packet(DropReason::SendFailed);
        }
        for _ in 0..stack.poll_unanswered() {
            counters.drop_packet(DropReason::AnswerLimit);
        }
    }

    /// Gives the kernel as many datagrams as it takes.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) {
        self.hand_over();
        let Self { wireguard, counters, .. } = self;
        if let Some(wireguard) = wireguard {
            let failed = |error: &std::io::Error, datagrams: usize| {
                tracing::trace!(%error, datagrams, "sending to a WireGuard client");
                for _ in 0..datagrams {
                    counters.drop_packet(DropReason::SendFailed);
                }
            };
            let _ = wireguard.socket.poll_flush(cx, &mut wireguard.outbox, failed);
        }
    }

    pub(super) fn mail(&mut self, shard: usize, mail: Mail) {
        match self.outgoing_mail.get_mut(shard) {
            Some(mails) => mails.push(mail),
            None => self.drop_packet(DropReason::UnknownPeer),
        }
    }

    pub(super) fn send_mail(&mut self) {
        for (mails, neighbour) in self.outgoing_mail.iter_mut().zip(&self.neighbours) {
            if mails.is_empty() {
                continue;
            }
            if let Err(mpsc::error::TrySendError::Full(lost) | mpsc::error::TrySendError::Closed(lost)) =
                neighbour.try_send(std::mem::take(mails))
            {
                for _ in lost {
                    self.counters.drop_packet(DropReason::QueueFull);
                }
            }
        }
    }
}
