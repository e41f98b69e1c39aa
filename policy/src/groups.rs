//! Who is in which group, when groups of the policy have groups as members.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The groups of a policy: who is a member of each, directly or through a group that is.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// For a group, the groups it is itself a member of.
    of_group: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// For a user, the groups of the policy that name the user.
    of_user: HashMap<Arc<str>, Vec<Arc<str>>>,
}

/// One member of a group of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Member {
    User(Arc<str>),
    Group(Arc<str>),
}

impl Groups {
    /// Makes `member` a member of `group`.
    pub(crate) fn add(&mut self, group: &Arc<str>, member: Member) {
        let groups = match member {
            Member::User(name) => self.of_user.entry(name).or_default(),
            Member::Group(name) => self.of_group.entry(name).or_default(),
        };
        groups.push(Arc::clone(group));
    }

    /// Every group that a user with these groups of the directory is in, sorted, without repetition.
    pub(crate) fn of(&self, user: &str, own: &Arc<[Arc<str>]>) -> Arc<[Arc<str>]> {
        let named = self.of_user.get(user).into_iter().flatten();
        let all = self.closure(own.iter().chain(named), usize::MAX);
        // Most users gain nothing, and a directory shares one list between the devices of a user.
        if all.len() == own.len() && own.is_sorted() { Arc::clone(own) } else { all.into_iter().cloned().collect() }
    }

    /// How many groups such a user is in, counted no further than about `enough`.
    pub(crate) fn count(&self, user: &str, own: &[Arc<str>], enough: usize) -> usize {
        let named = self.of_user.get(user).into_iter().flatten();
        self.closure(own.iter().chain(named), enough).len()
    }

    /// Every group whose members all are members of `group`, itself included.
    pub(crate) fn around(&self, group: &Arc<str>) -> Arc<[Arc<str>]> {
        self.closure(std::iter::once(group), usize::MAX).into_iter().cloned().collect()
    }

    fn closure<'g>(&'g self, first: impl Iterator<Item = &'g Arc<str>>, enough: usize) -> BTreeSet<&'g Arc<str>> {
        let mut all: BTreeSet<&Arc<str>> = first.collect();
        let mut next: Vec<&Arc<str>> = all.iter().copied().collect();
        while let Some(group) = next.pop()
            && all.len() < enough
        {
            next.extend(self.of_group.get(group).into_iter().flatten().filter(|outer| all.insert(outer)));
        }
        all
    }
}
