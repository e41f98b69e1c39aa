//! What becomes of a new flow that a limit does not allow, and what of one that is let in.

use std::sync::Arc;
use std::time::Instant;

use portcullis_netstack::{DropReason, FlowId, Protocol, Refusal};

use super::flow::Flow;
use super::worker::Shard;
use crate::directory::Device;
use crate::flow_record::{FlowEnd, OnrampKind};
use crate::limits::{LimitName, Owner, Resource, Scope, Share};

impl Shard {
    /// What a permitted flow holds from the beginning. An association that finds no room takes that of the one that its
    /// device has not used for longest.
    pub(super) fn share_of_new_flow(
        &mut self,
        now: Instant,
        onramp: OnrampKind,
        device: &Device,
        owner: &Arc<Owner>,
        protocol: Protocol,
    ) -> Result<Share, LimitName> {
        match protocol {
            Protocol::Tcp => owner.share(&[Resource::Flows, Resource::HalfOpen, Resource::Dials]),
            Protocol::Udp | Protocol::Echo | Protocol::Other(_) => {
                let needed = [Resource::Flows, Resource::Associations];
                let own = LimitName::Share(Resource::Associations, Scope::Device);
                if self.associations.count(&device.identity.device) >= self.associations_here(onramp)
                    && let Some(oldest) = self.oldest_association(device)
                {
                    self.end_over(now, oldest, own);
                }
                match owner.share(&needed) {
                    Err(limit @ LimitName::Share(Resource::Associations, _)) => {
                        let oldest = self.oldest_association(device).ok_or(limit)?;
                        self.end_over(now, oldest, limit);
                        owner.share(&needed)
                    }
                    share => share,
                }
            }
        }
    }

    /// How many associations a device may have in this shard. One behind the TUN has them in all shards, and a shard can
    /// end only its own: each has its part of the limit, so that those of one do not push out those of another.
    fn associations_here(&self, onramp: OnrampKind) -> usize {
        let limit = self.config.limits.associations.device;
        match onramp {
            OnrampKind::Wireguard => limit,
            OnrampKind::Tun => limit.div_ceil(self.config.shards.max(1)),
        }
    }

    /// The association of a device in this shard that was not used for longest.
    fn oldest_association(&mut self, device: &Device) -> Option<FlowId> {
        let Self { associations, flows, stack, .. } = self;
        associations.oldest(&device.identity.device, |id| {
            let used = stack.last_active(id)?;
            flows.get_mut(id)?.listed = Some(used);
            Some(used)
        })
    }

    /// Ends an open flow that makes way for another.
    fn end_over(&mut self, now: Instant, id: FlowId, limit: LimitName) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.limit = Some(limit);
            self.counters.limit_reached(limit);
            self.end(now, id, FlowEnd::Limit);
        }
    }

    /// Refuses a flow for which there is no room.
    pub(super) fn refuse_over(&mut self, mut flow: Flow, limit: LimitName, refusal: Refusal) {
        flow.limit = Some(limit);
        self.counters.limit_reached(limit);
        self.refuse(flow, FlowEnd::Limit, refusal);
    }

    /// Refuses a flow that comes too soon after others. Each is counted, and answered within the bound of answers to one
    /// address; one a second, device and shard is to be written down (`true`), because a line for each would be what the
    /// flood is after.
    pub(super) fn refuse_pace(&mut self, now: Instant, id: FlowId, owner: &Owner, limit: LimitName) -> bool {
        self.drop_packet(DropReason::Limit);
        self.counters.limit_reached(limit);
        let told = owner.may_tell(now);
        if !told {
            self.stack.refuse_within_bound(id, Refusal::Prohibited);
        }
        told
    }

    /// Whether there is room to remember a refused flow, which then holds that and nothing else.
    pub(super) fn remember(&mut self, flow: &mut Flow, owner: &Arc<Owner>) -> bool {
        // What it held before is free for others, whatever comes.
        flow.share = None;
        match owner.share(&[Resource::Refusals]) {
            Ok(share) => {
                flow.share = Some(share);
                true
            }
            Err(limit) => {
                self.counters.limit_reached(limit);
                false
            }
        }
    }
}
