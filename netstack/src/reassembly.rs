//! Fragments put together before anybody judges them: RFC 791 section 3.2, RFC 8200 section 4.5.
//!
//! Fragments that overlap discard the whole datagram, those still to come included (RFC 5722, and for IPv4 RFC 1858): no
//! receiver has to choose between two texts, so none can be shown another text than the policy. Everything has a bound,
//! for each device and in all; where a gateway has several reassemblers, each has these bounds.

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use etherparse::IpNumber;
use hashbrown::HashMap;

use crate::DropReason;
use crate::packet::IpFragment;
use crate::packet::fragment::Next;
use crate::tuple::IngressId;

/// Datagrams of one device that may be under way. The oldest makes way for a new one.
pub const DATAGRAMS_A_DEVICE: usize = 64;
/// Fragments of one datagram: enough for the longest over an MTU of 576.
pub const FRAGMENTS_A_DATAGRAM: usize = 128;
/// How long a datagram may be under way. RFC 1122 section 3.3.2 and RFC 8200 section 4.5 say 60 s; Linux keeps to 30 in
/// IPv4, and a bound that is hit by an attacker should be short.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of one device's fragments, with what it costs to keep them: 16 of the longest datagrams.
pub const BYTES_A_DEVICE: usize = 1 << 20;
/// Bytes of all fragments, with what it costs to keep them. It is the worst case, but for the one packet that was put
/// together last.
pub const BYTES: usize = 16 << 20;

/// What is reckoned for a fragment besides its bytes.
const FRAGMENT_COST: usize = 64;
/// What is reckoned for a datagram.
const DATAGRAM_COST: usize = 512;

/// Reasons why fragments that were kept are lost.
const LOSSES: [DropReason; 3] = [DropReason::FragmentOverlap, DropReason::FragmentLimit, DropReason::FragmentTimeout];

/// Datagrams under way. `O` names a device.
#[derive(Debug)]
pub struct Reassembler<O> {
    /// By number, which is in the order they began.
    datagrams: BTreeMap<u64, Datagram<O>>,
    owners: HashMap<O, Owner>,
    next: u64,
    bytes: usize,
    /// Fragments lost since [`poll_lost`](Self::poll_lost), in the order of [`LOSSES`].
    lost: [usize; LOSSES.len()],
    /// The packet that was completed last.
    whole: Vec<u8>,
}

/// What tells datagrams apart: also where they entered, as for flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    from: IngressId,
    source: IpAddr,
    destination: IpAddr,
    protocol: Option<IpNumber>,
    identification: u32,
}

#[derive(Debug, Default)]
struct Owner {
    /// Oldest first.
    datagrams: VecDeque<(Name, u64)>,
    bytes: usize,
}

#[derive(Debug)]
struct Datagram<O> {
    owner: O,
    began: Instant,
    /// By where they belong; none overlap.
    parts: Vec<Part>,
    /// Of the first fragment.
    header: Option<(Box<[u8]>, Next)>,
    /// Octets of data, once the last fragment is here.
    end: Option<usize>,
    /// Octets that are here.
    present: usize,
    cost: usize,
    /// It will never be a packet. It is remembered, so that the rest of it is not taken for another.
    refused: Option<DropReason>,
}

#[derive(Debug)]
struct Part {
    offset: usize,
    data: Box<[u8]>,
}

impl Part {
    fn end(&self) -> usize {
        self.offset + self.data.len()
    }
}

/// Why a fragment was not added.
enum Misfit {
    /// Only this fragment is dropped: it is here already.
    Repeated,
    /// The whole datagram is.
    Datagram(DropReason),
}

impl<O> Default for Reassembler<O> {
    fn default() -> Self {
        Self {
            datagrams: BTreeMap::new(),
            owners: HashMap::new(),
            next: 0,
            bytes: 0,
            lost: [0; LOSSES.len()],
            whole: Vec::new(),
        }
    }
}

impl<O: Clone + Eq + Hash> Reassembler<O> {
    /// Takes a fragment of `owner`, whose source is its own, that entered at `from`. The packet it completes, to be
    /// parsed like any other, its transport checksum verified unless every part was covered by an AEAD.
    ///
    /// # Errors
    /// Why this fragment was dropped. Others that are lost by it are told by [`poll_lost`](Self::poll_lost).
    pub fn handle_fragment(
        &mut self,
        now: Instant,
        from: IngressId,
        owner: &O,
        fragment: &IpFragment<'_>,
    ) -> Result<Option<&[u8]>, DropReason> {
        self.handle_timeout(now);
        let IpFragment { source, destination, protocol, identification, .. } = *fragment;
        let name = Name { from, source, destination, protocol, identification };
        let number = match self.find(owner, &name) {
            Some(number) => number,
            None => self.begin(now, owner, name),
        };
        let Some(datagram) = self.datagrams.get_mut(&number) else { return Err(DropReason::FragmentLimit) };
        if let Some(reason) = datagram.refused {
            return Err(reason);
        }
        match datagram.add(fragment) {
            Ok(cost) => {
                self.account(owner, cost);
                self.make_room(owner);
            }
            Err(Misfit::Repeated) => return Err(DropReason::Fragment),
            Err(Misfit::Datagram(reason)) => {
                self.refuse(number, reason);
                return Err(reason);
            }
        }
        match self.datagrams.get(&number) {
            // It was the oldest itself; it is among the lost.
            None => Ok(None),
            Some(datagram) if datagram.is_complete() => self.complete(number),
            Some(_) => Ok(None),
        }
    }

    /// Forgets datagrams that have been under way too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.poll_timeout().is_some_and(|at| at <= now) {
            let Some((&number, _)) = self.datagrams.first_key_value() else { return };
            self.lose(number, DropReason::FragmentTimeout);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.datagrams.first_key_value().map(|(_, datagram)| datagram.began + TIMEOUT)
    }

    /// Fragments that had been kept and were lost since, by reason.
    pub fn poll_lost(&mut self) -> Option<(DropReason, usize)> {
        let (reason, count) = LOSSES.into_iter().zip(&mut self.lost).find(|(_, count)| **count > 0)?;
        Some((reason, std::mem::take(count)))
    }

    /// Bytes that are kept, as they are reckoned against [`BYTES`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Datagrams under way.
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    fn find(&self, owner: &O, name: &Name) -> Option<u64> {
        let mut under_way = self.owners.get(owner)?.datagrams.iter();
        under_way.find(|(other, _)| other == name).map(|(_, number)| *number)
    }

    fn begin(&mut self, now: Instant, owner: &O, name: Name) -> u64 {
        if let Some(full) = self.owners.get(owner)
            && full.datagrams.len() >= DATAGRAMS_A_DEVICE
            && let Some((_, oldest)) = full.datagrams.front().copied()
        {
            self.lose(oldest, DropReason::FragmentLimit);
        }
        let number = self.next;
        self.next += 1;
        let datagram = Datagram {
            owner: owner.clone(),
            began: now,
            parts: Vec::new(),
            header: None,
            end: None,
            present: 0,
            cost: DATAGRAM_COST,
            refused: None,
        };
        self.datagrams.insert(number, datagram);
        self.owners.entry(owner.clone()).or_default().datagrams.push_back((name, number));
        self.account(owner, DATAGRAM_COST);
        self.make_room(owner);
        number
    }

    fn account(&mut self, owner: &O, cost: usize) {
        self.bytes += cost;
        if let Some(owner) = self.owners.get_mut(owner) {
            owner.bytes += cost;
        }
    }

    /// Makes the oldest datagrams go until the bounds hold again.
    fn make_room(&mut self, owner: &O) {
        while let Some(full) = self.owners.get(owner).filter(|owner| owner.bytes > BYTES_A_DEVICE)
            && let Some((_, oldest)) = full.datagrams.front().copied()
        {
            self.lose(oldest, DropReason::FragmentLimit);
        }
        while self.bytes > BYTES
            && let Some((&oldest, _)) = self.datagrams.first_key_value()
        {
            self.lose(oldest, DropReason::FragmentLimit);
        }
    }

    /// Keeps of a datagram only that it is refused.
    fn refuse(&mut self, number: u64, reason: DropReason) {
        let Some(datagram) = self.datagrams.get_mut(&number) else { return };
        let lost = std::mem::take(&mut datagram.parts).len();
        let freed = datagram.cost - DATAGRAM_COST;
        datagram.cost = DATAGRAM_COST;
        datagram.header = None;
        datagram.refused = Some(reason);
        self.bytes -= freed;
        if let Some(owner) = self.owners.get_mut(&datagram.owner) {
            owner.bytes -= freed;
        }
        self.count_lost(reason, lost);
    }

    /// Forgets a datagram that was not completed.
    fn lose(&mut self, number: u64, reason: DropReason) {
        let lost = self.remove(number).map_or(0, |datagram| datagram.parts.len());
        self.count_lost(reason, lost);
    }

    fn count_lost(&mut self, reason: DropReason, fragments: usize) {
        if let Some((_, count)) = LOSSES.iter().zip(&mut self.lost).find(|(loss, _)| **loss == reason) {
            *count += fragments;
        }
    }

    fn remove(&mut self, number: u64) -> Option<Datagram<O>> {
        let datagram = self.datagrams.remove(&number)?;
        self.bytes -= datagram.cost;
        if let Some(owner) = self.owners.get_mut(&datagram.owner) {
            owner.bytes -= datagram.cost;
            owner.datagrams.retain(|(_, other)| *other != number);
            if owner.datagrams.is_empty() {
                self.owners.remove(&datagram.owner);
            }
        }
        Some(datagram)
    }

    fn complete(&mut self, number: u64) -> Result<Option<&[u8]>, DropReason> {
        let Some(Datagram { parts, header: Some((header, next)), present, .. }) = self.remove(number) else {
            return Ok(None);
        };
        if !IpFragment::write_header(&header, next, present, &mut self.whole) {
            return Err(DropReason::Fragment);
        }
        for part in &parts {
            self.whole.extend_from_slice(&part.data);
        }
        Ok(Some(&self.whole))
    }
}

impl<O> Datagram<O> {
    /// Puts a fragment in its place. What it costs to keep it.
    fn add(&mut self, fragment: &IpFragment<'_>) -> Result<usize, Misfit> {
        let IpFragment { offset, more, data, .. } = *fragment;
        let end = offset + data.len();
        let place = self.parts.partition_point(|part| part.offset < offset);
        if let Some(same) = self.parts.get(place)
            && same.offset == offset
            && *same.data == *data
            && more == (self.end != Some(end))
        {
            return Err(Misfit::Repeated);
        }
        let before = place.checked_sub(1).and_then(|before| self.parts.get(before));
        let overlaps = before.is_some_and(|before| before.end() > offset)
            || self.parts.get(place).is_some_and(|after| after.offset < end);
        // There is one end, and nothing beyond it.
        let furthest = self.parts.last().map_or(0, Part::end);
        let ends = if more { self.end.is_none_or(|known| end < known) } else { self.end.is_none() && furthest <= end };
        if overlaps || !ends {
            return Err(Misfit::Datagram(DropReason::FragmentOverlap));
        }
        if self.parts.len() >= FRAGMENTS_A_DATAGRAM {
            return Err(Misfit::Datagram(DropReason::FragmentLimit));
        }
        let mut cost = FRAGMENT_COST + data.len();
        if offset == 0 {
            cost += fragment.header.len();
            self.header = Some((fragment.header.into(), fragment.next));
        }
        if !more {
            self.end = Some(end);
        }
        self.parts.insert(place, Part { offset, data: data.into() });
        self.present += data.len();
        self.cost += cost;
        Ok(cost)
    }

    /// Parts do not overlap and none is beyond the end, so it is enough to count.
    fn is_complete(&self) -> bool {
        self.end == Some(self.present)
    }
}

#[cfg(test)]
pub(crate) mod tests;
