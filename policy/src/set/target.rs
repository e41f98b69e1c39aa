//! A set of destinations.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{NetSet, ServiceSet, write_list};
use crate::Service;

/// A named resource.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) name: Arc<str>,
    pub(crate) addresses: NetSet,
    /// `None`: every service.
    pub(crate) services: Option<ServiceSet>,
}

/// One entry of `to` or `not_to`.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Any,
    Net(IpNet),
    Resource(Arc<Resource>),
}

/// How far a request gets into a [`TargetSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nothing holds the address.
    Nowhere,
    /// Only resources hold the address, and none of those offers the service.
    Address,
    /// Something holds both.
    Service,
}

/// The destinations that any one of some targets holds.
#[derive(Debug, Default)]
pub(crate) struct TargetSet {
    pub(crate) any: bool,
    pub(crate) nets: NetSet,
    pub(crate) resources: Box<[Arc<Resource>]>,
}

impl TargetSet {
    pub(crate) fn new(targets: Vec<Target>) -> Self {
        let (mut any, mut nets, mut resources) = (false, Vec::new(), Vec::new());
        for target in targets {
            match target {
                Target::Any => any = true,
                Target::Net(net) => nets.push(net),
                Target::Resource(resource) => resources.push(resource),
            }
        }
        Self { any, nets: NetSet::new(nets), resources: resources.into() }
    }

    pub(crate) fn reach(&self, destination: IpAddr, service: Service) -> Reach {
        if self.any || self.nets.contains(destination) {
            return Reach::Service;
        }
        let mut reach = Reach::Nowhere;
        for resource in self.at(destination) {
            if resource.services.as_ref().is_none_or(|services| services.contains(service)) {
                return Reach::Service;
            }
            reach = Reach::Address;
        }
        reach
    }

    /// The resources that hold an address.
    pub(crate) fn at(&self, destination: IpAddr) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.iter().filter(move |resource| resource.addresses.contains(destination))
    }

    /// The first target that holds both the address and the service, for people.
    pub(crate) fn holding(&self, destination: IpAddr, service: Service) -> Option<String> {
        let offers =
            |resource: &&Arc<Resource>| resource.services.as_ref().is_none_or(|services| services.contains(service));
        let net = self.nets.written().iter().find(|net| net.contains(&destination)).map(ToString::to_string);
        let any = || self.any.then(|| "*".to_owned());
        net.or_else(|| self.at(destination).find(offers).map(|resource| resource.name.to_string())).or_else(any)
    }
}

impl fmt::Display for TargetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = self.any.then(|| "*".to_owned());
        let resources = self.resources.iter().map(|resource| resource.name.to_string());
        let nets = self.nets.written().iter().map(ToString::to_string);
        write_list(f, any.into_iter().chain(resources).chain(nets))
    }
}
