//! Why a device would, or would not, reach a destination: the policy, and everything that no policy can change.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use portcullis_policy::{DestinationError, Request, Service, parse_destination};

use crate::config::Config;
use crate::control::api::{Answer, ExplainRequest, Explanation};
use crate::destination;
use crate::directory::Device;
use crate::shard::link::Snapshot;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The destination makes no sense.
    #[error(transparent)]
    Target(#[from] DestinationError),
    /// Neither a device nor a user, or both.
    #[error("give one of `device` and `user`")]
    Who,
    /// Not in the directory.
    #[error("there is no device `{}` in the directory", .0.escape_debug())]
    UnknownDevice(String),
    /// Not in the directory, or without a device.
    #[error("there is no user `{}` with a device in the directory", .0.escape_debug())]
    UnknownUser(String),
    /// The carried protocols are TCP, UDP and echo.
    #[error("the gateway carries TCP, UDP and ping only, no protocol {0}")]
    Protocol(u8),
}

/// Answers `question` from `snapshot`, for each device it is about.
pub fn explain(
    snapshot: &Snapshot,
    config: &Config,
    question: &ExplainRequest,
    now: Timestamp,
) -> Result<Explanation, ExplainError> {
    let (address, service) = parse_destination(&question.to)?;
    let port = match service {
        Service::Tcp(port) | Service::Udp(port) => port,
        Service::Icmp => 0,
        Service::Protocol(number) => return Err(ExplainError::Protocol(number)),
    };
    // A time for people has no fractions.
    let at = question.at.unwrap_or_else(|| Timestamp::from_second(now.as_second()).unwrap_or(now));
    let mut devices: Vec<&Device> = match (&question.device, &question.user) {
        (Some(name), None) => {
            let device = snapshot.directory.device(name).ok_or_else(|| ExplainError::UnknownDevice(name.clone()))?;
            vec![&**device]
        }
        (None, Some(name)) => {
            let of_user = snapshot.directory.devices().filter(|d| *d.identity.user == **name);
            let devices: Vec<_> = of_user.map(|d| &**d).collect();
            if devices.is_empty() {
                return Err(ExplainError::UnknownUser(name.clone()));
            }
            devices
        }
        (Some(_), Some(_)) | (None, None) => return Err(ExplainError::Who),
    };
    devices.sort_by(|a, b| a.identity.device.cmp(&b.identity.device));
    let destination = SocketAddr::new(address, port);
    let forbidden = destination::check(destination, &snapshot.own_addresses, &config.local_services).err();
    let answers = devices
        .into_iter()
        .map(|device| {
            let source = device.sources().find(|source| source.is_ipv4() == address.is_ipv4());
            let barred = if let Some(why) = forbidden {
                Some(format!("{address} is {why}, which can never be a destination, whatever the policy says"))
            } else if device.disabled {
                Some("the device or its user is disabled or revoked".to_owned())
            } else if !device.usable_at(at) {
                Some("the device has expired".to_owned())
            } else if source.is_none() {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                Some(format!("the device has no {family} address to send from"))
            } else {
                None
            };
            answer(snapshot, device, source.unwrap_or(address), address, service, at, barred)
        })
        .collect();
    Ok(Explanation { revision: Some(snapshot.ruleset.revision().0), at, answers })
}

fn answer(
    snapshot: &Snapshot,
    device: &Device,
    source: IpAddr,
    destination: IpAddr,
    service: Service,
    at: Timestamp,
    barred: Option<String>,
) -> Answer {
    let request = Request { identity: &device.identity, source, destination, service };
    let policy = snapshot.ruleset.explain(&request, at);
    let device = policy.device.to_string();
    let text = match &barred {
        Some(why) => format!("deny: {device} to {destination} {service}, because {why}\n\nThe policy alone:\n{policy}"),
        None => policy.to_string(),
    };
    Answer {
        user: policy.user.to_string(),
        destination,
        service: service.to_string(),
        verdict: if barred.is_some() { "deny".to_owned() } else { policy.verdict.to_string() },
        rule: policy.rule.as_ref().filter(|_| barred.is_none()).map(ToString::to_string),
        barred,
        // Its fields are strings, numbers and lists of them, which always have a JSON form.
        policy: serde_json::to_value(&policy).unwrap_or_default(),
        text,
        device,
    }
}
