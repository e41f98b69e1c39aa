//! The way out: packets to their on-ramps, datagrams to the kernel, mail to the other shards.

use std::task::Context;

use portcullis_netstack::segment::{self, Offload};
use portcullis_netstack::{DropReason, IngressId};
use tokio::sync::mpsc;

use super::{Shard, TUN, Wireguard, peer_slot};
use crate::shard::mail::Mail;

impl Wireguard {
    /// Encrypts a packet, segment by segment where it is a super-packet. `scratch` is memory for one. Returns how many
    /// packets were lost.
    fn send(&mut self, to: IngressId, packet: &[u8], offload: Option<Offload>, scratch: &mut Vec<u8>) -> usize {
        let mut lost = 0;
        each_packet(packet, offload, scratch, |packet| {
            let sent = peer_slot(to).is_some_and(|slot| self.peers.send(slot, packet, &mut self.outbox));
            lost += usize::from(!sent);
        });
        lost
    }
}

/// Hands the packets of a super-packet to `each`, or the one there is.
fn each_packet(packet: &[u8], offload: Option<Offload>, scratch: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
    match offload {
        Some(offload) => segment::segments(packet, offload, scratch, each),
        None => each(packet),
    }
}

/// How many packets a super-packet is.
fn packets(packet: &[u8], offload: Option<Offload>, scratch: &mut Vec<u8>) -> usize {
    let mut count = 0;
    each_packet(packet, offload, scratch, |_| count += 1);
    count
}

impl Shard {
    /// Hands every packet made to its on-ramp: written to the TUN device, or encrypted and queued.
    pub(super) fn hand_over(&mut self) {
        let Self { stack, wireguard, tun, counters, segment, .. } = self;
        let mut lost = 0;
        stack.batch().drain(|to, packet, offload| {
            lost += match (to, &mut *wireguard, &mut *tun) {
                (TUN, _, Some(writer)) => match writer.write(packet, offload) {
                    Ok(()) => 0,
                    Err(_) => packets(packet, offload, segment),
                },
                (to, Some(wireguard), _) => wireguard.send(to, packet, offload, segment),
                (_, None, _) => packets(packet, offload, segment),
            };
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

    pub(in crate::shard) fn mail(&mut self, shard: usize, mail: Mail) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_super_packet_that_is_lost_is_as_many_as_are_in_it() {
        // 250 bytes of UDP in datagrams of 100.
        let mut packet = vec![0; 20 + 8 + 250];
        packet[..4].copy_from_slice(&[0x45, 0, 1, 22]);
        packet[9] = 17;
        packet[24..26].copy_from_slice(&[1, 2]);
        let scratch = &mut Vec::new();
        assert_eq!(packets(&packet, Some(Offload { segment_size: Some(100) }), scratch), 3);
        assert_eq!(packets(&packet, Some(Offload { segment_size: None }), scratch), 1);
        assert_eq!(packets(&packet, None, scratch), 1);
    }
}
