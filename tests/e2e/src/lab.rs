//! Namespaces joined by veth pairs:
//!
//! ```text
//! client 0  192.168.7.2 ─┐
//!           fd00:7::2    ├─ gateway ── 10.20.0.0/24 ── private: .10 .11 .12 .13
//! client 1  192.168.8.2 ─┘             fd00:20::/64            ::10 ::11 ::12 ::13
//!           fd00:8::2
//! ```
//!
//! The private side has a way back to the clients, so a packet that got around the gateway would be answered and
//! seen. Only the gateway decides whether there is one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netns::{Netns, unique};
use crate::tools;

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both versions.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The private network in both versions.
pub const PRIVATE_NETWORKS: [&str; 2] = ["10.20.0.0/24", "fd00:20::/64"];

/// Hosts of the private network, by what the usual policy makes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Allowed.
    Open,
    /// Allowed too.
    OpenToo,
    /// Denied by a rule called `shut`.
    Shut,
    /// Allowed, for tests that make it silent.
    Hole,
    /// Allowed, but nobody has the address.
    Nobody,
}

impl Host {
    /// Its address.
    pub fn address(self, family: Family) -> IpAddr {
        let last: u8 = match self {
            Self::Open => 10,
            Self::OpenToo => 11,
            Self::Shut => 12,
            Self::Hole => 13,
            Self::Nobody => 99,
        };
        match family {
            Family::V4 => Ipv4Addr::new(10, 20, 0, last).into(),
            // The same digits, read as hexadecimal: 10.20.0.12 and fd00:20::12.
            Family::V6 => Ipv6Addr::new(
                0xfd00,
                0x20,
                0,
                0,
                0,
                0,
                0,
                u16::from_str_radix(&last.to_string(), 16).expect("decimal digits"),
            )
            .into(),
        }
    }

    /// Both its addresses.
    pub fn addresses(self) -> [IpAddr; 2] {
        FAMILIES.map(|family| self.address(family))
    }
}

/// The gateway's address on the link to client `index`.
pub fn gateway_address(index: usize, family: Family) -> IpAddr {
    link_address(index, family, 1)
}

/// The address of client `index` on its link.
pub fn client_address(index: usize, family: Family) -> IpAddr {
    link_address(index, family, 2)
}

/// The network of the link of client `index`.
pub fn client_network(index: usize, family: Family) -> String {
    format!("{}/{}", link_address(index, family, 0), prefix_len(family))
}

fn link_address(index: usize, family: Family, last: u8) -> IpAddr {
    let link = u8::try_from(index + 7).expect("few clients");
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, link, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, link.into(), 0, 0, 0, 0, 0, last.into()).into(),
    }
}

/// Length of the prefix of every link.
pub fn prefix_len(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// The namespaces of one test.
#[derive(Debug)]
pub struct Lab {
    /// Where clients live; each has one interface, `uplink`.
    pub clients: Vec<Netns>,
    /// Where the gateway lives: `client0`, `client1`, … and `private`.
    pub gateway: Netns,
    /// Where targets live; one interface, `downlink`.
    pub private: Netns,
    /// What makes the names of this lab unique.
    pub unique: String,
}

impl Lab {
    /// Makes the namespaces and joins them. Nothing forwards yet.
    ///
    /// # Panics
    ///
    /// When a tool or a privilege is missing.
    pub fn new(clients: usize) -> Self {
        tools::require();
        let unique = unique();
        let lab = Self {
            clients: (0..clients).map(|index| Netns::new(&format!("client{index}"), &unique)).collect(),
            gateway: Netns::new("gateway", &unique),
            private: Netns::new("private", &unique),
            unique,
        };
        for (index, client) in lab.clients.iter().enumerate() {
            lab.join_client(index, client);
        }
        lab.join_private();
        // What an administrator is told to set: echo through ping sockets.
        lab.gateway.sysctl("net.ipv4.ping_group_range", "0 2147483647");
        lab
    }

    fn join_client(&self, index: usize, client: &Netns) {
        let at_gateway = format!("client{index}");
        veth(client, "uplink", &self.gateway, &at_gateway);
        for family in FAMILIES {
            let len = prefix_len(family);
            client.ip(&format!("addr add {}/{len} dev uplink{}", client_address(index, family), nodad(family)));
            let gateway = gateway_address(index, family);
            self.gateway.ip(&format!("addr add {gateway}/{len} dev {at_gateway}{}", nodad(family)));
            // Every client reaches the address that stands in client files.
            if index > 0 {
                client.ip(&format!("route add {} via {gateway}", client_network(0, family)));
            }
        }
    }

    fn join_private(&self) {
        veth(&self.private, "downlink", &self.gateway, "private");
        self.gateway.ip("addr add 10.20.0.1/24 dev private");
        self.gateway.ip("addr add fd00:20::1/64 dev private nodad");
        for host in [Host::Open, Host::OpenToo, Host::Shut, Host::Hole] {
            for family in FAMILIES {
                let (address, len) = (host.address(family), prefix_len(family));
                self.private.ip(&format!("addr add {address}/{len} dev downlink{}", nodad(family)));
            }
        }
        self.private.ip("route add default via 10.20.0.1");
        self.private.ip("route add default via fd00:20::1");
    }

    /// Lets the gateway's kernel forward, which a TUN on-ramp needs.
    pub fn forward(&self) {
        self.gateway.sysctl("net.ipv4.ip_forward", "1");
        self.gateway.sysctl("net.ipv6.conf.all.forwarding", "1");
    }

    /// A host that has the addresses of [`Host::Nobody`], behind the private network's, which is its router.
    ///
    /// # Panics
    ///
    /// When a tool is missing.
    pub fn far(&self) -> Netns {
        let far = Netns::new("far", &self.unique);
        veth(&far, "near", &self.private, "far");
        self.private.sysctl("net.ipv4.ip_forward", "1");
        self.private.sysctl("net.ipv6.conf.all.forwarding", "1");
        for (family, router, this) in [(Family::V4, "10.30.0.1", "10.30.0.2"), (Family::V6, "fd00:30::1", "fd00:30::2")]
        {
            let (host, len) = (Host::Nobody.address(family), prefix_len(family));
            self.private.ip(&format!("addr add {router}/{len} dev far{}", nodad(family)));
            far.ip(&format!("addr add {this}/{len} dev near{}", nodad(family)));
            far.ip(&format!("addr add {host} dev lo{}", nodad(family)));
            far.ip(&format!("route add default via {router}"));
            self.private.ip(&format!("route add {host} via {this}"));
            self.gateway.ip(&format!("route add {host} via {}", Host::Open.address(family)));
        }
        far
    }

    /// Sends the private network's traffic of a client to the gateway.
    pub fn route_client(&self, index: usize) {
        for (family, network) in FAMILIES.into_iter().zip(PRIVATE_NETWORKS) {
            self.clients[index].ip(&format!("route add {network} via {}", gateway_address(index, family)));
        }
    }

    /// Stops the links from carrying batches in one piece, so that a rule that drops meets single datagrams.
    pub fn no_batches(&self) {
        for (netns, link) in [(&self.clients[0], "uplink"), (&self.gateway, "client0")] {
            netns.ip(&format!("link set dev {link} gso_max_segs 1"));
        }
    }

    /// The commands to look around by hand.
    pub fn commands(&self) -> String {
        self.clients
            .iter()
            .chain([&self.gateway, &self.private])
            .map(|netns| format!("  ip netns exec {} bash\n", netns.name()))
            .collect()
    }
}

pub(crate) fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str) {
    tools::output(std::process::Command::new("ip").args([
        "link",
        "add",
        a_name,
        "netns",
        a.name(),
        "type",
        "veth",
        "peer",
        "name",
        b_name,
        "netns",
        b.name(),
    ]));
    a.ip(&format!("link set dev {a_name} up"));
    b.ip(&format!("link set dev {b_name} up"));
}

pub(crate) fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}
