//! The translation between a flow and the policy's question, and the answer's consequences.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use portcullis_netstack::{FiveTuple, Protocol};
use portcullis_policy::{Permit, Request, Revision, Service, Verdict};

use super::link::Snapshot;
use crate::destination;
use crate::directory::Device;
use crate::flow_record::{FlowEnd, OnrampKind};
use crate::telemetry::LineLimit;

/// Why a flow may not be.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The rule that denied, when one did.
    pub(crate) rule: Option<Arc<str>>,
    /// Of the policy asked.
    pub(crate) revision: Revision,
    /// Whether the client gets no answer.
    pub(crate) silent: bool,
    /// The destination can never be one, whatever the policy says.
    pub(crate) forbidden: bool,
}

/// Why the policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// A new flow.
    Opening,
    /// A live flow, after a change.
    Again,
}

/// A device opens as many flows as it likes.
static AUDIT_LINES: LineLimit = LineLimit::new();

/// Asks the policy of `snapshot` whether `device` may open, or keep, a flow.
pub(crate) fn judge(
    snapshot: &Snapshot,
    local_services: &[SocketAddr],
    device: &Device,
    tuple: &FiveTuple,
    now: Timestamp,
    occasion: Occasion,
) -> Result<Permit, Refused> {
    let revision = snapshot.ruleset.revision();
    if destination::check(tuple.destination(), &snapshot.own_addresses, local_services).is_err() {
        return Err(Refused { rule: None, revision, silent: false, forbidden: true });
    }
    let request = Request {
        identity: &device.identity,
        source: tuple.source,
        destination: tuple.destination,
        service: service(tuple),
    };
    let verdict = snapshot.ruleset.evaluate(&request, now);
    // Said once for a flow, not again whenever it is judged.
    if occasion == Occasion::Opening {
        for rule in verdict.audited() {
            let Some(left_out) = AUDIT_LINES.admit(now.as_second()) else { continue };
            tracing::info!(%rule, left_out, device = %device.identity.device, user = %device.identity.user,
                destination = %tuple.destination(), "audit rule matched");
        }
    }
    match verdict {
        // What would be dialled is never what no policy can open.
        Verdict::Allow(permit)
            if destination::check(permit.target(tuple.destination()), &snapshot.own_addresses, local_services)
                .is_err() =>
        {
            Err(Refused { rule: Some(Arc::clone(permit.rule())), revision, silent: false, forbidden: true })
        }
        Verdict::Allow(permit) => Ok(permit),
        Verdict::Deny(denial) => Err(Refused {
            rule: denial.rule().cloned(),
            revision: denial.revision(),
            silent: denial.silent(),
            forbidden: false,
        }),
    }
}

fn service(tuple: &FiveTuple) -> Service {
    match tuple.protocol {
        Protocol::Tcp => Service::Tcp(tuple.destination_port),
        Protocol::Udp => Service::Udp(tuple.destination_port),
        Protocol::Echo => Service::Icmp,
        Protocol::Other(number) => Service::Protocol(number),
    }
}

/// The device a live flow belongs to now, or why it belongs to none.
pub(crate) fn current_device(
    snapshot: &Snapshot,
    onramp: OnrampKind,
    device: &Device,
    tuple: &FiveTuple,
    now: Timestamp,
) -> Result<Arc<Device>, FlowEnd> {
    let current = match onramp {
        OnrampKind::Wireguard => snapshot
            .directory
            .device(&device.identity.device)
            .filter(|now| now.public_key == device.public_key && now.may_send_from(tuple.source)),
        OnrampKind::Tun => snapshot
            .directory
            .device_by_network(tuple.source)
            .filter(|now| now.identity.device == device.identity.device),
    };
    usable(current, now)
}

/// The device that a live flow from the virtual `network` towards `target` reaches by the tunnel of the peer `key`, or why it reaches none.
pub(crate) fn device_reached(
    snapshot: &Snapshot,
    key: &[u8; 32],
    network: &str,
    target: IpAddr,
    now: Timestamp,
) -> Result<Arc<Device>, FlowEnd> {
    usable(snapshot.directory.device_by_tunnel(network, target).filter(|device| device.public_key == Some(*key)), now)
}

fn usable(device: Option<&Arc<Device>>, now: Timestamp) -> Result<Arc<Device>, FlowEnd> {
    match device {
        Some(device) if device.usable_at(now) => Ok(Arc::clone(device)),
        Some(device) if !device.disabled => Err(FlowEnd::Expired),
        Some(_) | None => Err(FlowEnd::DeviceGone),
    }
}
