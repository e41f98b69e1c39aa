//! The way out: packets to their on-ramps, datagrams to the kernel, mail to the other shards.

use std::task::Context;

use portcullis_netstack::DropReason;
use portcullis_netstack::segment::{self, Offload};

use super::{Shard, TUN, Wireguard, peer_slot};
use crate::shard::mail::Mail;

/// Hands the packets of a super-packet to `send`, or the one there is. `scratch` is memory for one. Returns how many it did
/// not take.
pub(super) fn send_each(
    packet: &[u8],
    offload: Option<Offload>,
    scratch: &mut Vec<u8>,
    mut send: impl FnMut(&[u8]) -> bool,
) -> usize {
    let mut lost = 0;
    each_packet(packet, offload, scratch, |packet| lost += usize::from(!send(packet)));
    lost
}

/// Hands the packets of a super-packet to `each`, or the one there is.
fn each_packet(packet: &[u8], offload: Option<Offload>, scratch: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
    match offload {
        Some(offload) => segment::segments(packet, offload, scratch, each),
        None => each(packet),
    }
}

/// How many packets a super-packet is.
pub(super) fn packets(packet: &[u8], offload: Option<Offload>, scratch: &mut Vec<u8>) -> usize {
    let mut count = 0;
    each_packet(packet, offload, scratch, |_| count += 1);
    count
}

impl Shard {
    /// Hands every packet made to where it goes: written to the TUN device, encrypted and queued, or mailed to the shard
    /// that has the peer.
    pub(super) fn hand_over(&mut self) {
        let Self { index, stack, wireguard, tun, counters, segment, hops, outgoing_mail, .. } = self;
        let mut lost = 0;
        stack.batch().drain(|to, packet, offload| {
            let hop = hops.get(to);
            let slot = match (hop, &*wireguard) {
                (Some(hop), Some(wireguard)) => wireguard.peers.slot(&hop.key),
                (Some(_), None) => None,
                (None, _) => peer_slot(to),
            };
            lost += match (hop, slot, &mut *wireguard, &mut *tun) {
                (None, _, _, Some(writer)) if to == TUN => match writer.write(packet, offload) {
                    Ok(()) => 0,
                    Err(_) => packets(packet, offload, segment),
                },
                (None, Some(slot), Some(Wireguard { peers, outbox, .. }), _) => {
                    send_each(packet, offload, segment, |packet| peers.send(slot, packet, outbox))
                }
                (Some(_), Some(slot), Some(Wireguard { peers, outbox, .. }), _) => {
                    send_each(packet, offload, segment, |packet| peers.send_on(slot, packet, outbox))
                }
                (Some(hop), None, _, _) => {
                    let elsewhere = hop.shard.filter(|shard| shard != index);
                    match elsewhere.and_then(|shard| outgoing_mail.get_mut(shard)) {
                        Some(mails) => {
                            mails.push(Mail::Onward(hop.key, (&*packet).into(), offload));
                            0
                        }
                        None => packets(packet, offload, segment),
                    }
                }
                (_, _, _, _) => packets(packet, offload, segment),
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
            for _ in 0..neighbour.send(std::mem::take(mails)) {
                self.counters.drop_packet(DropReason::QueueFull);
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
