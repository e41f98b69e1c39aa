//! What a device, its user and all devices together may hold at once, and what they do hold.
//!
//! A flow takes its share of every resource it needs when it opens and gives it back when it is dropped, so nothing
//! can be forgotten. The counts are shared between the shards: a device behind the TUN and the devices of one user may
//! have flows in several. They are touched when a flow opens, changes its state or ends, never for a packet.

mod loads;
mod rate;

pub(crate) use loads::{Loads, Owner, Share, SharedLoads};

/// Whose share it is. A limit of a device comes before that of its user, and that before the limit of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One device.
    Device,
    /// All devices of one user.
    User,
    /// Every device.
    All,
}

impl Scope {
    /// Every scope, in the order in which limits are looked at.
    pub const ALL: [Self; 3] = [Self::Device, Self::User, Self::All];
}

/// What is limited, each for a device, a user and all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Flows the policy allowed, from the first packet to the end.
    Flows,
    /// TCP flows whose client has not completed the handshake.
    HalfOpen,
    /// TCP flows whose target has not answered.
    Dials,
    /// UDP associations and echo exchanges.
    Associations,
    /// Refused flows that are remembered, so that their next packet is no new flow.
    Refusals,
    /// Bytes of memory of buffers beyond what every flow may use.
    Buffered,
    /// New flows a second, whatever the policy says to them.
    FlowRate,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 7] =
        [Self::Flows, Self::HalfOpen, Self::Dials, Self::Associations, Self::Refusals, Self::Buffered, Self::FlowRate];

    const fn index(self) -> usize {
        self as usize
    }
}

/// The name of a limit, as `gateway.toml` has it. Field of the flow log and label of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitName {
    /// A key of `[limits]`.
    Share(Resource, Scope),
    /// `ports` of an off-ramp, or the kernel's own range: no local port is left towards the target, or the device holds
    /// its share of them.
    Ports,
    /// The process or the host has no file descriptor left.
    Descriptors,
}

impl LimitName {
    /// Every name.
    pub const ALL: [Self; 3 * Resource::ALL.len() + 2] = {
        let mut all = [Self::Descriptors; 3 * Resource::ALL.len() + 2];
        let mut index = 0;
        while index < 3 * Resource::ALL.len() {
            #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which refuses an index too large")]
            {
                all[index] = Self::Share(Resource::ALL[index / 3], Scope::ALL[index % 3]);
            }
            index += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which refuses an index too large")]
        {
            all[index] = Self::Ports;
        }
        all
    };

    /// The word used in `gateway.toml`, in the flow log and as metric label.
    pub const fn as_str(self) -> &'static str {
        use Resource::{Associations, Buffered, Dials, FlowRate, Flows, HalfOpen, Refusals};
        match self {
            Self::Share(Flows, Scope::Device) => "flows_per_device",
            Self::Share(Flows, Scope::User) => "flows_per_user",
            Self::Share(Flows, Scope::All) => "flows",
            Self::Share(HalfOpen, Scope::Device) => "half_open_per_device",
            Self::Share(HalfOpen, Scope::User) => "half_open_per_user",
            Self::Share(HalfOpen, Scope::All) => "half_open",
            Self::Share(Dials, Scope::Device) => "dials_per_device",
            Self::Share(Dials, Scope::User) => "dials_per_user",
            Self::Share(Dials, Scope::All) => "dials",
            Self::Share(Associations, Scope::Device) => "associations_per_device",
            Self::Share(Associations, Scope::User) => "associations_per_user",
            Self::Share(Associations, Scope::All) => "associations",
            Self::Share(Refusals, Scope::Device) => "refusals_per_device",
            Self::Share(Refusals, Scope::User) => "refusals_per_user",
            Self::Share(Refusals, Scope::All) => "refusals",
            Self::Share(Buffered, Scope::Device) => "buffered_per_device",
            Self::Share(Buffered, Scope::User) => "buffered_per_user",
            Self::Share(Buffered, Scope::All) => "buffered",
            Self::Share(FlowRate, Scope::Device) => "flow_rate_per_device",
            Self::Share(FlowRate, Scope::User) => "flow_rate_per_user",
            Self::Share(FlowRate, Scope::All) => "flow_rate",
            Self::Ports => "ports",
            Self::Descriptors => "descriptors",
        }
    }

    /// Position in [`Self::ALL`].
    pub const fn index(self) -> usize {
        match self {
            Self::Share(resource, scope) => resource.index() * Scope::ALL.len() + scope as usize,
            Self::Ports => Self::ALL.len() - 2,
            Self::Descriptors => Self::ALL.len() - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_name_and_a_place_of_its_own() {
        let mut names: Vec<_> = LimitName::ALL.iter().map(|name| name.as_str()).collect();
        for (index, name) in LimitName::ALL.iter().enumerate() {
            assert_eq!(name.index(), index, "{name:?}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), LimitName::ALL.len());
    }
}
