//! A set of sources: who asks, and from where.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::{NetSet, write_list};
use crate::Request;

/// One entry of `from` or `not_from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceSelector {
    Any,
    User(Arc<str>),
    Group(Arc<str>),
    Device(Arc<str>),
    Network(Arc<str>),
    Net(IpNet),
}

impl fmt::Display for SourceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Device(name) => write!(f, "device:{name}"),
            Self::Network(name) => write!(f, "network:{name}"),
            Self::Net(net) => write!(f, "net:{net}"),
        }
    }
}

/// The sources that any one of some selectors selects.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceSet {
    any: bool,
    /// These four are sorted.
    users: Box<[Arc<str>]>,
    groups: Box<[Arc<str>]>,
    devices: Box<[Arc<str>]>,
    networks: Box<[Arc<str>]>,
    nets: NetSet,
    written: Box<[SourceSelector]>,
}

impl SourceSet {
    pub(crate) fn new(written: Vec<SourceSelector>) -> Self {
        let (mut users, mut groups, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        let (mut networks, mut nets) = (Vec::new(), Vec::new());
        let mut any = false;
        for selector in &written {
            match selector {
                SourceSelector::Any => any = true,
                SourceSelector::User(name) => users.push(Arc::clone(name)),
                SourceSelector::Group(name) => groups.push(Arc::clone(name)),
                SourceSelector::Device(name) => devices.push(Arc::clone(name)),
                SourceSelector::Network(name) => networks.push(Arc::clone(name)),
                SourceSelector::Net(net) => nets.push(*net),
            }
        }
        let sorted = |mut names: Vec<Arc<str>>| {
            names.sort_unstable();
            names.into_boxed_slice()
        };
        Self {
            any,
            users: sorted(users),
            groups: sorted(groups),
            devices: sorted(devices),
            networks: sorted(networks),
            nets: NetSet::new(nets),
            written: written.into(),
        }
    }

    pub(crate) fn contains(&self, request: &Request<'_>) -> bool {
        let identity = request.identity;
        self.any
            || has(&self.users, &identity.user)
            || has(&self.devices, &identity.device)
            || has(&self.networks, &identity.network)
            || (!self.groups.is_empty() && identity.groups.iter().any(|group| has(&self.groups, group)))
            || self.nets.contains(request.source)
    }

    /// The selectors as they were written.
    pub(crate) fn written(&self) -> &[SourceSelector] {
        &self.written
    }

    /// The first selector, in the order written, that selects the request.
    pub(crate) fn selecting(&self, request: &Request<'_>) -> Option<&SourceSelector> {
        let identity = request.identity;
        self.written.iter().find(|selector| match selector {
            SourceSelector::Any => true,
            SourceSelector::User(name) => *name == identity.user,
            SourceSelector::Group(name) => identity.groups.contains(name),
            SourceSelector::Device(name) => *name == identity.device,
            SourceSelector::Network(name) => *name == identity.network,
            SourceSelector::Net(net) => net.contains(&request.source),
        })
    }
}

fn has(names: &[Arc<str>], name: &str) -> bool {
    names.binary_search_by(|candidate| (**candidate).cmp(name)).is_ok()
}

impl fmt::Display for SourceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, self.written.iter())
    }
}
