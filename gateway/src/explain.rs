//! Why a device would, or would not, reach a destination: the policy, and everything that no policy can change.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use portcullis_policy::{DestinationError, Permit, Request, Service, Verdict, parse_destination};

use crate::config::Config;
use crate::control::api::{Answer, ExplainRequest, Explanation};
use crate::destination;
use crate::directory::Device;
use crate::flow_record::FlowProtocol;
use crate::offramp::Offramps;
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
    /// Not in the directory.
    #[error("there is no user `{}` in the directory", .0.escape_debug())]
    UnknownUser(String),
    /// In the directory, but without a device to ask for.
    #[error("user `{}` has no device in the directory", .0.escape_debug())]
    NoDevice(String),
}

/// Answers `question` from `snapshot`, for each device it is about. `in_force`: whether the snapshot's revision means
/// anything.
pub fn explain(
    snapshot: &Snapshot,
    (config, offramps): (&Config, &Offramps),
    question: &ExplainRequest,
    now: Timestamp,
    in_force: bool,
) -> Result<Explanation, ExplainError> {
    let (address, service) = parse_destination(&question.to)?;
    let port = match service {
        Service::Tcp(port) | Service::Udp(port) => port,
        Service::Icmp | Service::Protocol(_) => 0,
    };
    // A time for people has no fractions.
    let at = question.at.unwrap_or_else(|| Timestamp::from_second(now.as_second()).unwrap_or(now));
    let mut devices: Vec<&Device> = match (&question.device, &question.user) {
        (Some(name), None) => {
            let device = snapshot.directory.device(name).ok_or_else(|| ExplainError::UnknownDevice(name.clone()))?;
            vec![&**device]
        }
        (None, Some(name)) => {
            if snapshot.directory.user(name).is_none() {
                return Err(ExplainError::UnknownUser(name.clone()));
            }
            let of_user = snapshot.directory.devices().filter(|d| *d.identity.user == **name);
            let devices: Vec<_> = of_user.map(|d| &**d).collect();
            if devices.is_empty() {
                return Err(ExplainError::NoDevice(name.clone()));
            }
            devices
        }
        (Some(_), Some(_)) | (None, None) => return Err(ExplainError::Who),
    };
    devices.sort_by(|a, b| a.identity.device.cmp(&b.identity.device));
    let destination = SocketAddr::new(address, port);
    let forbidden = destination::check(destination, &snapshot.own_addresses, &config.local_services).err();
    let asking = Asking { snapshot, config, offramps, destination, service, at, in_force };
    let mut answers = Vec::new();
    for device in devices {
        let sources: Vec<_> = sources(device).filter(|(source, _)| source.is_ipv4() == address.is_ipv4()).collect();
        let barred = if let Some(why) = forbidden {
            Some(format!("{address} {why}"))
        } else if device.disabled {
            Some("the device or its user is disabled or revoked".to_owned())
        } else if !device.usable_at(at) {
            Some("the device has expired".to_owned())
        } else if sources.is_empty() {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            Some(format!("the device has no {family} address to send from"))
        } else {
            None
        };
        if let Some(why) = barred {
            let source = sources.first().map_or(address, |(source, _)| *source);
            let nets = sources.iter().map(|(_, net)| *net).collect();
            answers.push(asking.answer(device, source, nets, Some(why)));
            continue;
        }
        let alike = asking.alike(device, &sources);
        let several = alike.len() > 1;
        for (source, nets) in alike {
            let from = several.then(|| listed(&nets));
            let barred = asking.target(device, source).and_then(|target| {
                let why = destination::check(target, &snapshot.own_addresses, &config.local_services).err()?;
                Some(format!("the rule sends it to {}, which {why}", target.ip()))
            });
            let mut answer = asking.answer(device, source, nets, barred);
            if let Some(from) = from {
                answer.text = format!("{} from {from}:\n{}", answer.device, answer.text);
            }
            answers.push(answer);
        }
    }
    Ok(Explanation { revision: in_force.then(|| snapshot.ruleset.revision().0), at, answers })
}

/// An address that the device could send from, and where it stands for the whole of a network, that.
fn sources(device: &Device) -> impl Iterator<Item = (IpAddr, IpNet)> {
    let nets = device.addresses.iter().map(|address| IpNet::from(*address)).chain(device.networks.iter().copied());
    device.sources().zip(nets)
}

/// Networks for people: one that is a single address without its length.
fn listed(nets: &[IpNet]) -> String {
    let written = nets
        .iter()
        .map(|net| if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() });
    written.collect::<Vec<_>>().join(", ")
}

/// What is the same for every device.
struct Asking<'a> {
    snapshot: &'a Snapshot,
    config: &'a Config,
    offramps: &'a Offramps,
    destination: SocketAddr,
    service: Service,
    at: Timestamp,
    in_force: bool,
}

impl Asking<'_> {
    fn request<'d>(&self, device: &'d Device, source: IpAddr) -> Request<'d> {
        Request { identity: &device.identity, source, destination: self.destination.ip(), service: self.service }
    }

    fn permit(&self, device: &Device, source: IpAddr) -> Option<Permit> {
        match self.snapshot.ruleset.evaluate(&self.request(device, source), self.at) {
            Verdict::Allow(permit) => Some(permit),
            Verdict::Deny(_) => None,
        }
    }

    /// Where the policy has it go, when it allows it.
    fn target(&self, device: &Device, source: IpAddr) -> Option<SocketAddr> {
        self.permit(device, source).map(|permit| permit.target(self.destination))
    }

    /// By what it may go, when the policy allows it, as [`Shard::dial`](crate::shard) chooses: names in order, and the same
    /// for people.
    fn ways(&self, device: &Device, source: IpAddr) -> Option<(Vec<String>, String)> {
        let permit = self.permit(device, source)?;
        let (network, target) = (&device.identity.network, permit.target(self.destination).ip());
        let other = self.snapshot.directory.device_by_tunnel(network, target).filter(|_| permit.offramp().is_none());
        if let Some(other) = other {
            let name = format!("device:{}", other.identity.device);
            let text = format!("way out: {name}, by its tunnel");
            return Some((vec![name], text));
        }
        if permit.offramp().is_none() && self.config.is_of_tunnel(target) {
            let text = format!("way out: none, {target} is of the tunnel network and no device has it");
            return Some((Vec::new(), text));
        }
        let ways = self.offramps.ways(&permit, network, target);
        let protocol = FlowProtocol::from(self.service);
        let (ways, unable): (Vec<_>, Vec<_>) = ways.iter().partition(|way| way.carries(protocol));
        let shown = ways.iter().map(|way| format!("{}{}", way.name(), if way.is_up() { "" } else { " (down)" }));
        let unable = unable.iter().map(|way| way.name().to_string()).collect::<Vec<_>>().join(", ");
        let left_out =
            if unable.is_empty() { String::new() } else { format!("; not {unable}, which carries no {protocol}") };
        let text = match shown.collect::<Vec<_>>().join(", then ") {
            none if none.is_empty() && left_out.is_empty() => {
                format!("way out: none, no [[route]] of network {network:?} leads to {target}")
            }
            none if none.is_empty() => format!("way out: none{left_out}"),
            shown => format!("way out: {shown}{left_out}"),
        };
        Some((ways.iter().map(|way| way.name().to_string()).collect(), text))
    }

    /// `sources` by what the policy says to them: the first of those that get the same answer by the same rule, and all.
    fn alike(&self, device: &Device, sources: &[(IpAddr, IpNet)]) -> Vec<(IpAddr, Vec<IpNet>)> {
        let mut alike: Vec<(Option<Arc<str>>, IpAddr, Vec<IpNet>)> = Vec::new();
        for (source, net) in sources {
            // A rule has one answer, and where none matches that is a denial.
            let verdict = self.snapshot.ruleset.evaluate(&self.request(device, *source), self.at);
            match alike.iter_mut().find(|(rule, ..)| rule.as_ref() == verdict.rule()) {
                Some((.., nets)) => nets.push(*net),
                None => alike.push((verdict.rule().cloned(), *source, vec![*net])),
            }
        }
        alike.into_iter().map(|(_, source, nets)| (source, nets)).collect()
    }

    fn answer(&self, device: &Device, source: IpAddr, sources: Vec<IpNet>, barred: Option<String>) -> Answer {
        let mut policy = self.snapshot.ruleset.explain(&self.request(device, source), self.at);
        policy.revision = policy.revision.filter(|_| self.in_force);
        let ways = self.ways(device, source).filter(|_| barred.is_none());
        let device = policy.device.to_string();
        let text = match &barred {
            Some(why) => {
                let (destination, service) = (self.destination.ip(), self.service);
                format!("deny: {device} to {destination} {service}, because {why}\n\nThe policy alone:\n{policy}")
            }
            None => policy.to_string(),
        };
        let (ways, text) = match ways {
            Some((ways, way)) => (Some(ways), format!("{}\n{way}\n", text.trim_end())),
            None => (None, text),
        };
        Answer {
            user: policy.user.to_string(),
            sources,
            destination: self.destination.ip(),
            service: self.service.to_string(),
            verdict: if barred.is_some() { "deny".to_owned() } else { policy.verdict.to_string() },
            rule: policy.rule.as_ref().filter(|_| barred.is_none()).map(ToString::to_string),
            barred,
            ways,
            // Its fields are strings, numbers and lists of them, which always have a JSON form.
            policy: serde_json::to_value(&policy).unwrap_or_default(),
            text,
            device,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::Files;

    const DIRECTORY: &str = r#"{
      "users": { "ann": {}, "eve": {} },
      "devices": { "site": {
        "user": "ann", "networks": ["192.168.7.0/24", "192.168.8.0/24", "192.168.9.1/32", "fd00:7::/64"]
      } }
    }"#;
    const POLICY: &str = r#"{ "version": 1, "rules": [
      { "id": "eight", "action": "deny", "from": ["net:192.168.8.0/24"], "to": ["*"], "services": ["tcp/22"] },
      { "id": "site", "action": "allow", "from": ["device:site"], "to": ["*"] }
    ] }"#;

    fn ask(user: &str, to: &str, in_force: bool) -> Result<Explanation, ExplainError> {
        let files = Files::new();
        files.write_directory(DIRECTORY);
        files.write_policy(POLICY);
        let question = ExplainRequest { user: Some(user.to_owned()), to: to.to_owned(), ..ExplainRequest::default() };
        let offramps = Offramps::new(&files.config).unwrap();
        explain(&files.rulesets().current(), (&files.config, &offramps), &question, Timestamp::UNIX_EPOCH, in_force)
    }

    #[test]
    fn sources_that_are_answered_differently_have_answers_of_their_own() {
        let said = |to| {
            let answers = ask("ann", to, true).unwrap().answers;
            answers.into_iter().map(|a| (listed(&a.sources), a.rule.unwrap_or_default(), a.text)).collect::<Vec<_>>()
        };
        let ssh = said("10.0.0.1:22/tcp");
        let [(others, site, text), (network, eight, _)] = &ssh[..] else { panic!("{ssh:?}") };
        assert_eq!((others.as_str(), site.as_str()), ("192.168.7.0/24, 192.168.9.1", "site"));
        assert_eq!((network.as_str(), eight.as_str()), ("192.168.8.0/24", "eight"));
        assert!(text.starts_with("site from 192.168.7.0/24, 192.168.9.1:\nallow: site to 10.0.0.1 tcp/22"), "{text}");

        let web = said("10.0.0.1:80/tcp");
        assert!(
            matches!(&web[..], [(_, rule, text)] if rule == "site" && text.starts_with("allow: site to")),
            "{web:?}"
        );
        let six = said("[fd00:1::1]:22/tcp");
        assert!(matches!(&six[..], [(from, ..)] if from == "fd00:7::/64"), "{six:?}");
        let barred = said("127.0.0.1:22/tcp");
        let because = "because 127.0.0.1 is a loopback address, and never a destination, whatever the policy says\n";
        assert!(matches!(&barred[..], [(.., text)] if text.contains(because)), "{barred:?}");
    }

    #[test]
    fn the_way_out_is_said_of_every_kind() {
        const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        let site = |name: &str, more: &str| {
            format!(
                "[[offramp]]\nname = \"{name}\"\nkind = \"wireguard\"\npublic_key = \"{KEY}\"\nendpoint = [\"192.0.2.7:51820\"]\n{more}\n"
            )
        };
        let route = |to: &str, names: &str| format!("[[route]]\nto = \"{to}\"\nofframp = [{names}]\n");
        let tables = [
            "[wireguard]\naddresses = [\"100.96.0.1/16\"]\n".to_owned(),
            "[[offramp]]\nname = \"keep\"\nkind = \"kernel\"\n".to_owned(),
            "[[offramp]]\nname = \"socks\"\nkind = \"socks5\"\naddress = \"192.0.2.8:1080\"\n".to_owned(),
            "[[offramp]]\nname = \"http\"\nkind = \"http-connect\"\naddress = \"192.0.2.8:3128\"\n".to_owned(),
            site("berlin", "addresses = [\"10.99.0.2/32\"]\nsource = \"site\""),
            route("10.1.0.0/16", "\"keep\""),
            route("10.2.0.0/16", "\"socks\", \"direct\""),
            route("10.3.0.0/16", "\"http\", \"keep\""),
            route("10.4.0.0/16", "\"berlin\""),
            route("10.5.0.0/16", "\"direct\""),
        ];
        let files = Files::with(&tables.concat());
        files.write_directory(
            r#"{ "users": { "ann": {} }, "devices": {
              "laptop": { "user": "ann", "public_key": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=", "addresses": ["100.96.0.2"] },
              "phone": { "user": "ann", "public_key": "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=", "addresses": ["100.96.0.3"] }
            } }"#,
        );
        files.write_policy(
            r#"{ "version": 1, "rules": [
              { "id": "named", "action": "allow", "from": ["*"], "to": ["10.6.0.0/16"], "offramp": "socks" },
              { "id": "all", "action": "allow", "from": ["*"], "to": ["*"] }
            ] }"#,
        );
        let offramps = Offramps::new(&files.config).unwrap();
        let snapshot = files.rulesets().current();
        let ways = |to: &str| {
            let question =
                ExplainRequest { device: Some("laptop".to_owned()), to: to.to_owned(), ..ExplainRequest::default() };
            let said = explain(&snapshot, (&files.config, &offramps), &question, Timestamp::UNIX_EPOCH, true).unwrap();
            let [answer] = &said.answers[..] else { panic!("{said:?}") };
            let line = answer.text.lines().last().unwrap().to_owned();
            (answer.ways.clone().unwrap().join(" "), line)
        };
        for (to, names, text) in [
            ("10.1.0.1:22/tcp", "keep", "way out: keep"),
            ("10.1.0.1/proto/47", "keep", "way out: keep"),
            ("10.2.0.1:53/udp", "socks direct", "way out: socks, then direct"),
            ("10.2.0.1/icmp", "direct", "way out: direct; not socks, which carries no icmp"),
            ("10.2.0.1/proto/47", "", "way out: none; not socks, direct, which carries no proto/47"),
            ("10.3.0.1/proto/47", "keep", "way out: keep; not http, which carries no proto/47"),
            ("10.3.0.1/proto/51", "", "way out: none; not http, keep, which carries no proto/51"),
            ("10.3.0.1:53/udp", "keep", "way out: keep; not http, which carries no udp"),
            ("10.3.0.1:443/tcp", "http keep", "way out: http, then keep"),
            ("10.4.0.1:22/tcp", "berlin", "way out: berlin"),
            ("10.4.0.1/proto/47", "", "way out: none; not berlin, which carries no proto/47"),
            ("10.5.0.1:22/tcp", "direct", "way out: direct"),
            ("10.6.0.1:22/tcp", "socks", "way out: socks"),
            ("10.7.0.1:22/tcp", "", "way out: none, no [[route]] of network \"default\" leads to 10.7.0.1"),
            ("100.96.0.3:22/tcp", "device:phone", "way out: device:phone, by its tunnel"),
            ("100.96.0.9:22/tcp", "", "way out: none, 100.96.0.9 is of the tunnel network and no device has it"),
        ] {
            assert_eq!(ways(to), (names.to_owned(), text.to_owned()), "{to}");
        }
    }

    #[test]
    fn a_file_that_is_not_in_force_has_no_revision() {
        let file = ask("ann", "10.0.0.1:80/tcp", false).unwrap();
        assert!(file.revision.is_none() && file.answers[0].policy["revision"].is_null(), "{file:?}");
        assert!(file.answers[0].text.contains(" by rule site (at "), "{file:?}");
        let in_force = ask("ann", "10.0.0.1:80/tcp", true).unwrap();
        assert!(in_force.revision == Some(1) && in_force.answers[0].policy["revision"] == 1, "{in_force:?}");
    }

    #[test]
    fn a_user_without_a_device_is_not_unknown() {
        let said = |user| ask(user, "10.0.0.1:80/tcp", true).unwrap_err().to_string();
        assert_eq!(said("eve"), "user `eve` has no device in the directory");
        assert_eq!(said("zoe"), "there is no user `zoe` in the directory");
    }
}
