//! From the text of `directory.json` to users and devices, every problem at once.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_policy::address::{parse_address, parse_net};
use portcullis_policy::json::{Document, Entry, Node, Object, Problem, hint, quoted};
use portcullis_policy::{DEFAULT_NETWORK, Facts, Identity};

use super::{Device, DirectoryContext, PresharedKey, User};
use crate::keys::{parse_preshared_key, parse_public_key};
use crate::prefix::{is_network_itself, overlap};

const DEVICE: &[&str] = &[
    "user",
    "network",
    "public_key",
    "preshared_key",
    "addresses",
    "networks",
    "expires",
    "posture",
    "disabled",
    "revoked",
];
/// Longest name of a user, group or device, in bytes.
const LONGEST_NAME: usize = 253;

type Users = BTreeMap<Arc<str>, User>;

/// Users and devices of a text.
pub(super) fn read(text: &str, context: &DirectoryContext) -> Result<(Users, Vec<Device>), Vec<Problem>> {
    let document = Document::parse(text.as_bytes())?;
    let read = || {
        let root = document.root().object(&["$schema", "users", "devices"])?;
        root.read_or("$schema", None, |node| node.string().map(Some));
        let users = root.required("users").and_then(|node| users(&node, context));
        let mut reader = DeviceReader { users: users.as_ref(), context, seen: Seen::default() };
        let devices = root.required("devices").and_then(|node| reader.devices(&node));
        reader.seen.refuse_overlaps();
        Some((users?, devices?))
    };
    document.finish(read())
}

fn users(node: &Node<'_>, context: &DirectoryContext) -> Option<Users> {
    let mut users = BTreeMap::new();
    for entry in node.entries()? {
        // A user with a bad entry still exists: its devices need no second complaint.
        let user = user(&entry, context).unwrap_or_else(|| User {
            groups: Arc::default(),
            network: DEFAULT_NETWORK.into(),
            disabled: true,
        });
        name(&entry.key, &entry.name, "user");
        users.insert(Arc::from(&*entry.name), user);
    }
    Some(users)
}

fn user(entry: &Entry<'_>, context: &DirectoryContext) -> Option<User> {
    let object = entry.value.object(&["groups", "network", "disabled"])?;
    let network = optional(&object, "network", |node| virtual_network(node, context));
    let groups = match object.optional("groups") {
        None => Vec::new(),
        Some(node) => groups(&node)?,
    };
    let network = network?.unwrap_or_else(|| DEFAULT_NETWORK.into());
    Some(User { groups: groups.into(), network, disabled: flag(&object, "disabled")? })
}

fn groups(node: &Node<'_>) -> Option<Vec<Arc<str>>> {
    let mut first = HashMap::new();
    let mut groups = node.list(|item| {
        let group = item.string()?;
        name(item, &group, "group")?;
        once(&mut first, group.clone(), item)?;
        Some(Arc::from(group))
    })?;
    groups.sort();
    Some(groups)
}

/// What must be unique, with the node where it came first.
#[derive(Default)]
struct Seen<'d> {
    keys: HashMap<[u8; 32], Node<'d>>,
    addresses: HashMap<IpAddr, Node<'d>>,
    /// Each with the virtual network that its device has a tunnel in; `None`: it is behind the TUN.
    networks: Vec<(IpNet, Option<Arc<str>>, Node<'d>)>,
}

struct DeviceReader<'a, 'd> {
    users: Option<&'a Users>,
    context: &'a DirectoryContext,
    seen: Seen<'d>,
}

impl<'d> DeviceReader<'_, 'd> {
    fn devices(&mut self, node: &Node<'d>) -> Option<Vec<Device>> {
        let devices: Vec<Option<Device>> = node.entries()?.iter().map(|entry| self.device(entry)).collect();
        devices.into_iter().collect()
    }

    fn device(&mut self, entry: &Entry<'d>) -> Option<Device> {
        let named = name(&entry.key, &entry.name, "device");
        let object = entry.value.object(DEVICE)?;
        let user = object.required("user").and_then(|node| self.user(&node));
        let public_key = optional(&object, "public_key", |node| self.public_key(node));
        let preshared_key =
            optional(&object, "preshared_key", |node| node.parsed(parse_preshared_key).map(PresharedKey));
        let addresses = optional(&object, "addresses", |node| node.list(|item| self.address(item)));
        let virtual_network = optional(&object, "network", |node| virtual_network(node, self.context));
        let in_network = virtual_network.clone().flatten().or_else(|| Some(Arc::clone(&user.as_ref()?.1.network)));
        let in_network = in_network.unwrap_or_else(|| DEFAULT_NETWORK.into());
        let apart = object.optional("public_key").map(|_| Arc::clone(&in_network));
        let networks = optional(&object, "networks", |node| node.list(|item| self.network(item, apart.as_ref())));
        let expires = optional(&object, "expires", Node::timestamp);
        let posture = optional(&object, "posture", posture);
        let disabled = flag(&object, "disabled");
        let revoked = flag(&object, "revoked");
        known_by_something(&object);
        named?;
        let (user, disabled, revoked) = (user?, disabled?, revoked?);
        virtual_network?;
        Some(Device {
            identity: Identity {
                device: Arc::from(&*entry.name),
                user: user.0,
                groups: user.1.groups,
                network: in_network,
                posture: posture?.unwrap_or_default(),
            },
            public_key: public_key?,
            preshared_key: preshared_key?,
            addresses: addresses?.unwrap_or_default(),
            networks: networks?.unwrap_or_default(),
            expires: expires?,
            revoked,
            disabled: disabled || revoked || user.1.disabled,
        })
    }

    fn user(&self, node: &Node<'_>) -> Option<(Arc<str>, User)> {
        let name = node.string()?;
        let users = self.users?;
        if let Some((name, user)) = users.get_key_value(&*name) {
            return Some((Arc::clone(name), user.clone()));
        }
        let hint = hint(&name, users.keys().map(|name| &**name));
        node.problem(format!("there is no user {}{hint}", quoted(&name)));
        None
    }

    fn public_key(&mut self, node: &Node<'d>) -> Option<[u8; 32]> {
        let key = node.parsed(parse_public_key)?;
        if self.context.own_public_key == Some(key) {
            node.problem("is the gateway's own key, which no device can have");
            return None;
        }
        if let Some(first) = self.seen.keys.get(&key) {
            let place = first.place();
            node.problem(format!("is already the key at {place}"));
            return None;
        }
        self.seen.keys.insert(key, node.clone());
        Some(key)
    }

    fn address(&mut self, node: &Node<'d>) -> Option<IpAddr> {
        let address = node.parsed(parse_address)?;
        let problem = match self.context.tunnel.iter().find(|net| net.contains(&address)) {
            None => Some(self.outside(address)),
            Some(net) if net.addr() == address => Some(format!("{address} is the gateway's own address")),
            Some(net) => IpNet::new(address, net.prefix_len())
                .is_ok_and(|interface| is_network_itself(&interface))
                .then(|| format!("{address} stands for the network {} or for all its hosts", net.trunc())),
        };
        if let Some(problem) = problem {
            node.problem(problem);
            return None;
        }
        if let Some(first) = self.seen.addresses.get(&address) {
            let place = first.place();
            node.problem(format!("{address} is already given at {place}"));
            return None;
        }
        self.seen.addresses.insert(address, node.clone());
        Some(address)
    }

    fn outside(&self, address: IpAddr) -> String {
        if self.context.tunnel.is_empty() {
            return format!("{address} is in no tunnel network, because gateway.toml has no [wireguard] table");
        }
        let nets: Vec<String> = self.context.tunnel.iter().map(|net| net.trunc().to_string()).collect();
        format!("{address} is outside the tunnel networks {}", nets.join(" and "))
    }

    /// `apart`: the virtual network that its addresses mean something in.
    fn network(&mut self, node: &Node<'d>, apart: Option<&Arc<str>>) -> Option<IpNet> {
        let net = node.parsed(parse_net)?;
        if net.addr().is_multicast() || (net.addr().is_loopback() && net.prefix_len() > 0) {
            node.problem(format!("{net} is nowhere a host could be"));
            return None;
        }
        if let Some(tunnel) = self.context.tunnel.iter().find(|tunnel| overlap(tunnel, &net)) {
            node.problem(format!("{net} overlaps the tunnel network {}", tunnel.trunc()));
            return None;
        }
        self.seen.networks.push((net, apart.cloned(), node.clone()));
        Some(net)
    }
}

impl Seen<'_> {
    /// Networks are nested or apart, so in this order an overlap is with the one before that is not itself inside another.
    fn refuse_overlaps(&mut self) {
        self.networks.sort_by(|(a, in_a, _), (b, in_b, _)| {
            (in_a, a.addr(), a.prefix_len()).cmp(&(in_b, b.addr(), b.prefix_len()))
        });
        let mut widest: Option<&(IpNet, Option<Arc<str>>, Node<'_>)> = None;
        for entry in &self.networks {
            match widest {
                Some(outer) if outer.1 == entry.1 && outer.0.contains(&entry.0) => {
                    let (first, second) =
                        if outer.2.place() < entry.2.place() { (outer, entry) } else { (entry, outer) };
                    let place = first.2.place();
                    second.2.problem(format!("{} overlaps {} at {place}", second.0, first.0));
                }
                _ => widest = Some(entry),
            }
        }
    }
}

/// A device must be recognisable, and what is written about a key needs one.
fn known_by_something(object: &Object<'_>) {
    let listed = |key: &str| object.optional(key).and_then(|node| node.items()).is_some_and(|items| !items.is_empty());
    // What could not be read is said of it already.
    let empty = |key: &str| object.optional(key).is_none_or(|node| node.items().is_some_and(|items| items.is_empty()));
    let key = object.optional("public_key");
    if key.is_none() {
        for (name, what) in [("addresses", "addresses"), ("preshared_key", "a preshared key")] {
            if let Some(node) = object.optional(name) {
                node.problem(format!("{what} without a \"public_key\""));
            }
        }
    }
    match key {
        Some(key) if empty("addresses") && empty("networks") => {
            key.problem("a \"public_key\" without \"addresses\" or \"networks\": the device could send nothing");
        }
        None if !listed("networks")
            && object.optional("addresses").is_none()
            && object.optional("preshared_key").is_none() =>
        {
            object.node().problem("a device needs a \"public_key\" with \"addresses\", or \"networks\"");
        }
        Some(_) | None => {}
    }
}

/// The name of a virtual network that `gateway.toml` has.
fn virtual_network(node: &Node<'_>, context: &DirectoryContext) -> Option<Arc<str>> {
    let name = node.string()?;
    let known = || std::iter::once(DEFAULT_NETWORK).chain(context.networks.iter().map(|name| &**name));
    if known().any(|known| known == name) {
        return Some(name.into());
    }
    node.problem(format!(
        "there is no network {} in gateway.toml, or was none when the gateway started{}",
        quoted(&name),
        hint(&name, known())
    ));
    None
}

fn posture(node: &Node<'_>) -> Option<Facts> {
    let facts: Vec<Option<_>> =
        node.entries()?.into_iter().map(|fact| Some((fact.name.to_string(), fact.value.scalar()?))).collect();
    facts.into_iter().collect()
}

/// Reads a key that may be left out: outer `None` is a problem, inner `None` is absence.
fn optional<'d, T>(object: &Object<'d>, key: &str, read: impl FnOnce(&Node<'d>) -> Option<T>) -> Option<Option<T>> {
    match object.optional(key) {
        None => Some(None),
        Some(node) => read(&node).map(Some),
    }
}

fn flag(object: &Object<'_>, key: &str) -> Option<bool> {
    object.optional(key).map_or(Some(false), |node| node.bool())
}

fn name(node: &Node<'_>, name: &str, what: &str) -> Option<()> {
    let problem = if name.is_empty() {
        format!("the name of a {what} is empty")
    } else if name.len() > LONGEST_NAME {
        format!("the name of a {what} is {} bytes long; {LONGEST_NAME} is the most", name.len())
    } else if name.chars().any(char::is_control) {
        format!("the name of a {what} holds a control character")
    } else if name.trim() != name {
        format!("the name of a {what} begins or ends with space")
    } else {
        return Some(());
    };
    node.problem(problem);
    None
}

fn once<'d, K: Eq + Hash>(first: &mut HashMap<K, Node<'d>>, value: K, node: &Node<'d>) -> Option<()> {
    if let Some(earlier) = first.get(&value) {
        let place = earlier.place();
        node.problem(format!("is already given at {place}"));
        return None;
    }
    first.insert(value, node.clone());
    Some(())
}
