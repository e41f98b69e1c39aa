//! What a policy would change if it took the place of the one in force.

use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use portcullis_policy::plan::{Change, Kind, Subject};
use portcullis_policy::{Request, Ruleset, Verdict};

use crate::config::Config;
use crate::control::api::Problem;
use crate::control::plan::{AccessChange, EndingFlow, PlanReport, PlanRequest, Who};
use crate::directory::Directory;
use crate::flow_record::FlowRecord;
use crate::rulesets::{in_file, policy_context};
use crate::shard::link::Snapshot;

/// Compares the policy of `request` with `snapshot`, for the devices that may do anything and for live `flows`.
///
/// # Errors
///
/// Every problem of the policy, against the directory in force.
pub fn plan(
    snapshot: &Snapshot,
    config: &Config,
    request: &PlanRequest,
    flows: Option<&[FlowRecord]>,
    now: Timestamp,
) -> Result<PlanReport, Vec<Problem>> {
    let context = policy_context(config, &snapshot.directory);
    let revision = snapshot.ruleset.revision();
    let then = Ruleset::compile(request.policy.as_bytes(), &context, revision, now)
        .map_err(|problems| in_file(Path::new(&request.file), problems))?;
    let at = request.at.unwrap_or(now);
    // The same devices, in the groups that the other policy would put them into.
    let directory = snapshot.directory.in_groups_of(&then);
    let devices: Vec<_> = snapshot
        .directory
        .devices()
        .filter(|device| device.usable_at(at))
        .filter_map(|device| {
            let then = &directory.device(&device.identity.device)?.identity;
            let own = device.addresses.iter().copied().map(IpNet::from);
            Some((&device.identity, then, own.chain(device.networks.iter().copied()).collect::<Vec<_>>()))
        })
        .collect();
    let subjects: Vec<Subject<'_>> =
        devices.iter().map(|(now, then, sources)| Subject { now, then, sources }).collect();
    let difference = snapshot.ruleset.difference(&then, &subjects, at);
    Ok(PlanReport {
        revision: Some(revision.0),
        at,
        flows: flows.map(|flows| flows.iter().filter_map(|flow| ending(&directory, &then, flow, at)).collect()),
        changes: difference.changes.into_iter().map(change).collect(),
        complete: difference.complete,
    })
}

/// What to say of a live flow that `then` would end, with its devices in `directory`.
fn ending(directory: &Directory, then: &Ruleset, flow: &FlowRecord, at: Timestamp) -> Option<EndingFlow> {
    let device = directory.device(&flow.device)?;
    let service = flow.service();
    let (source, destination) = (flow.source.ip(), flow.destination.ip());
    let verdict = then.evaluate(&Request { identity: &device.identity, source, destination, service }, at);
    let goes_on = match &verdict {
        // Without ports it goes to none, whatever the rule says.
        Verdict::Allow(permit) if !flow.protocol.has_ports() => {
            permit.target(flow.destination).ip() == flow.target.unwrap_or(flow.destination).ip()
        }
        Verdict::Allow(permit) => permit.target(flow.destination) == flow.target.unwrap_or(flow.destination),
        Verdict::Deny(_) => false,
    };
    (flow.allowed && !goes_on).then(|| EndingFlow {
        id: flow.id,
        user: flow.user.to_string(),
        device: flow.device.to_string(),
        source: flow.source,
        destination: flow.destination,
        service: service.to_string(),
        rule_now: flow.rule.as_ref().map(ToString::to_string),
        rule_then: verdict.rule().map(ToString::to_string),
    })
}

fn change(change: Change) -> AccessChange {
    let name = |rule: Option<Arc<str>>| rule.map(|rule| rule.to_string());
    let kind = match change.kind {
        Kind::Opens => "opens",
        Kind::Closes => "closes",
        Kind::Offramp => "offramp",
        Kind::Rewrite => "rewrite",
        Kind::Answer => "answer",
        Kind::Schedule => "schedule",
    };
    let who = change.who.into_iter().map(|who| Who {
        user: who.user.to_string(),
        device: who.device.to_string(),
        sources: who.sources,
    });
    AccessChange {
        kind: kind.to_owned(),
        rule_now: name(change.rule_now),
        rule_then: name(change.rule_then),
        who: who.collect(),
        destinations: change.destinations,
        services: change.services.iter().map(ToString::to_string).collect(),
    }
}
