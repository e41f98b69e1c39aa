//! The counts of devices and users, and the shares that flows hold of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use super::rate::Bucket;
use super::{LimitName, Resource, Scope};
use crate::config::resolved::Limits;
use crate::directory::Device;

const RESOURCES: usize = Resource::ALL.len();
const SCOPES: usize = Scope::ALL.len();
/// A device that opens flows too fast is written down this often.
const TOLD_EVERY: u64 = 1_000_000_000;
/// Names that may be out of date before they are looked for.
const SLACK: usize = 64;

/// What one device, one user, or everybody holds now.
#[derive(Debug, Default)]
struct Load {
    held: [AtomicUsize; RESOURCES],
    rate: Bucket,
}

impl Load {
    fn held(&self, resource: Resource) -> usize {
        self.held.get(resource.index()).map_or(0, |held| held.load(Ordering::Relaxed))
    }

    /// Takes `amount` when that makes no more than `limit`.
    fn take(&self, resource: Resource, amount: usize, limit: usize) -> bool {
        self.held.get(resource.index()).is_some_and(|held| {
            let more = |held: usize| held.checked_add(amount).filter(|held| *held <= limit);
            held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
        })
    }

    fn give_back(&self, resource: Resource, amount: usize) {
        if let Some(held) = self.held.get(resource.index()) {
            held.fetch_sub(amount, Ordering::Relaxed);
        }
    }
}

/// The limits by resource and scope.
type Table = [[usize; SCOPES]; RESOURCES];

fn table(limits: &Limits) -> Table {
    let mut table = Resource::ALL.map(|resource| {
        let share = limits.share(resource);
        Scope::ALL.map(|scope| share.of(scope))
    });
    // However dials are limited, a device leaves some to others.
    let dials = limits.share(Resource::Dials);
    if let Some([device, ..]) = table.get_mut(Resource::Dials.index()) {
        *device = (*device).min((dials.of(Scope::All) * 2 / 3).max(1));
    }
    table
}

/// The counts of all shards.
#[derive(Debug)]
pub(crate) struct SharedLoads {
    epoch: Instant,
    limits: Table,
    all: Arc<Load>,
    /// Looked at when a shard meets a device for the first time.
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    devices: HashMap<Arc<str>, Weak<Load>>,
    users: HashMap<Arc<str>, Weak<Load>>,
}

impl SharedLoads {
    /// Nothing is held yet. `now` is the beginning of its time.
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        Self { epoch: now, limits: table(limits), all: Arc::default(), names: Mutex::default() }
    }

    fn owner(&self, device: &Device) -> Owner {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let Names { devices, users } = &mut *names;
        let loads =
            [named(devices, &device.identity.device), named(users, &device.identity.user), Arc::clone(&self.all)];
        Owner { loads, limits: self.limits, epoch: self.epoch, user: Arc::clone(&device.identity.user), told: 0.into() }
    }
}

/// The load with this name, which is kept for as long as somebody uses it.
fn named(loads: &mut HashMap<Arc<str>, Weak<Load>>, name: &Arc<str>) -> Arc<Load> {
    if let Some(load) = loads.get(name).and_then(Weak::upgrade) {
        return load;
    }
    if loads.len() > SLACK && loads.len() == loads.capacity() {
        loads.retain(|_, load| load.strong_count() > 0);
    }
    let load = Arc::default();
    loads.insert(Arc::clone(name), Arc::downgrade(&load));
    load
}

/// Who holds shares: a device, with its user and everybody else behind it.
#[derive(Debug)]
pub(crate) struct Owner {
    /// In the order of [`Scope::ALL`].
    loads: [Arc<Load>; SCOPES],
    limits: Table,
    epoch: Instant,
    user: Arc<str>,
    /// When it was last written down for its rate, in nanoseconds.
    told: AtomicU64,
}

impl Owner {
    fn scopes(&self, resource: Resource) -> impl Iterator<Item = (Scope, &Load, usize)> {
        let limits = self.limits.get(resource.index()).copied().unwrap_or_default();
        Scope::ALL.into_iter().zip(&self.loads).zip(limits).map(|((scope, load), limit)| (scope, &**load, limit))
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Asks for one new flow at `now`.
    ///
    /// # Errors
    /// The limit on the rate of new flows that says no. A device over its own costs its user and the others nothing.
    pub(crate) fn admit(&self, now: Instant) -> Result<(), LimitName> {
        let now = self.nanoseconds(now);
        for (scope, load, limit) in self.scopes(Resource::FlowRate) {
            if !load.rate.take(now, limit) {
                return Err(LimitName::Share(Resource::FlowRate, scope));
            }
        }
        Ok(())
    }

    /// Whether a flow over the rate is to be written down: one of those of a second.
    pub(crate) fn may_tell(&self, now: Instant) -> bool {
        // The first is told as well.
        let now = self.nanoseconds(now).saturating_add(TOLD_EVERY);
        let due = |told: u64| (now.saturating_sub(told) >= TOLD_EVERY).then_some(now);
        self.told.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok()
    }

    /// Takes `amount` of a resource for device, user and all, or nothing.
    ///
    /// # Errors
    /// The limit that says no.
    pub(crate) fn take(&self, resource: Resource, amount: usize) -> Result<(), LimitName> {
        for (scope, load, limit) in self.scopes(resource) {
            if !load.take(resource, amount, limit) {
                for (_, load, _) in self.scopes(resource).take_while(|(before, ..)| *before != scope) {
                    load.give_back(resource, amount);
                }
                return Err(LimitName::Share(resource, scope));
            }
        }
        Ok(())
    }

    /// Gives `amount` of a resource back.
    pub(crate) fn give_back(&self, resource: Resource, amount: usize) {
        for (_, load, _) in self.scopes(resource) {
            load.give_back(resource, amount);
        }
    }

    /// A share of one of each of `resources`, whole or not at all.
    ///
    /// # Errors
    /// The first limit that says no.
    pub(crate) fn share(self: &Arc<Self>, resources: &[Resource]) -> Result<Share, LimitName> {
        let mut share = Share { owner: Arc::clone(self), held: 0 };
        for &resource in resources {
            share.take(resource)?;
        }
        Ok(share)
    }
}

/// What one flow holds, at most one of each resource. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    owner: Arc<Owner>,
    /// A bit for each resource.
    held: u8,
}

impl Share {
    const fn bit(resource: Resource) -> u8 {
        1 << resource.index()
    }

    /// Takes one of a resource more, unless it holds one.
    ///
    /// # Errors
    /// The limit that says no.
    pub(crate) fn take(&mut self, resource: Resource) -> Result<(), LimitName> {
        if !self.holds(resource) {
            self.owner.take(resource, 1)?;
            self.held |= Self::bit(resource);
        }
        Ok(())
    }

    /// Whether it holds one of these.
    pub(crate) fn holds(&self, resource: Resource) -> bool {
        self.held & Self::bit(resource) != 0
    }

    /// Gives one resource back before the rest.
    pub(crate) fn release(&mut self, resource: Resource) {
        if self.holds(resource) {
            self.held &= !Self::bit(resource);
            self.owner.give_back(resource, 1);
        }
    }

    /// Who holds it.
    pub(crate) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        for resource in Resource::ALL {
            self.release(resource);
        }
    }
}

/// The devices one shard has met.
#[derive(Debug)]
pub(crate) struct Loads {
    shared: Arc<SharedLoads>,
    owners: HashMap<Arc<str>, Arc<Owner>>,
}

impl Loads {
    /// None yet.
    pub(crate) fn new(shared: Arc<SharedLoads>) -> Self {
        Self { shared, owners: HashMap::new() }
    }

    /// Who holds the shares of a device's flows.
    pub(crate) fn owner(&mut self, device: &Device) -> Arc<Owner> {
        let name = &device.identity.device;
        if let Some(owner) = self.owners.get(name)
            && owner.user == device.identity.user
        {
            return Arc::clone(owner);
        }
        let owner = Arc::new(self.shared.owner(device));
        self.owners.insert(Arc::clone(name), Arc::clone(&owner));
        owner
    }

    /// How many flows a device has.
    pub(crate) fn flows(&self, device: &str) -> usize {
        let load = self.owners.get(device).and_then(|owner| owner.loads.first());
        load.map_or(0, |load| load.held(Resource::Flows))
    }

    /// Forgets devices that are not known any more. What their flows still hold is kept by the flows.
    pub(crate) fn keep(&mut self, known: impl Fn(&str) -> bool) {
        self.owners.retain(|device, _| known(device));
    }
}

#[cfg(test)]
mod tests;
