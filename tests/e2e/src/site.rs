//! A site behind another WireGuard peer: wireguard-go on a router that has the addresses of [`Host::OpenToo`].

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::lab::{FAMILIES, Family, Host, Lab, prefix_len};
use crate::netns::Netns;
use crate::tools;
use crate::wg_client::WgClient;

/// The gateway's addresses at the site.
pub const OURS: [&str; 2] = ["10.99.0.2", "fd00:99::2"];
/// What the site's router is called by the gateway's.
const LINK: [(Family, &str, &str); 2] =
    [(Family::V4, "198.51.100.1", "198.51.100.2"), (Family::V6, "fd00:51::1", "fd00:51::2")];
const PORT: u16 = 51_821;

/// The keys of a site, before it is there.
#[derive(Debug)]
pub struct SiteKey {
    private: String,
    /// For the gateway's file.
    pub public: String,
}

impl SiteKey {
    /// A new pair.
    ///
    /// # Panics
    ///
    /// When `wg` fails.
    pub fn generate() -> Self {
        let private = tools::output(Command::new("wg").arg("genkey"));
        Self { public: public_key(&private), private }
    }

    /// An off-ramp called `berlin` over IPv4, with more lines of its own.
    pub fn offramp(&self, lines: &str) -> String {
        format!(
            "[[offramp]]\nname = \"berlin\"\nkind = \"wireguard\"\npublic_key = \"{}\"\n{lines}\n",
            self.public.trim()
        )
    }

    /// Such an off-ramp, and the route to [`Host::OpenToo`] over `offramps`.
    pub fn tables(&self, lines: &str, offramps: &str) -> String {
        let mut text = self.offramp(lines);
        for family in FAMILIES {
            let to = Host::OpenToo.address(family);
            let len = if family == Family::V4 { 32 } else { 128 };
            let _ = writeln!(text, "[[route]]\nto = \"{to}/{len}\"\nofframp = {offramps}");
        }
        text.push_str("[[route]]\nto = \"0.0.0.0/0\"\nofframp = [\"direct\"]\n");
        text.push_str("[[route]]\nto = \"::/0\"\nofframp = [\"direct\"]\n");
        text
    }
}

/// The lines of an off-ramp whose packets carry our address at the site.
pub fn translated() -> String {
    format!("endpoint = [\"198.51.100.2:{PORT}\"]\naddresses = [\"{}/32\", \"{}/128\"]", OURS[0], OURS[1])
}

/// The public key of a private one.
fn public_key(private: &str) -> String {
    let mut wg = Command::new("wg");
    let mut child = wg.arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("wg starts");
    child.stdin.take().expect("its input").write_all(private.as_bytes()).expect("it reads");
    let out = child.wait_with_output().expect("it ends");
    String::from_utf8(out.stdout).expect("base64").trim().to_owned()
}

/// The running site.
#[derive(Debug)]
pub struct Site {
    /// Its router, which has the addresses of [`Host::OpenToo`].
    pub netns: Netns,
    /// Its end of the tunnel.
    pub wg: WgClient,
}

impl Site {
    /// Joins it to the gateway. It sends the networks of clients, and ours, into its tunnel.
    ///
    /// # Panics
    ///
    /// When a tool fails.
    pub fn join(lab: &Lab, dir: &Path, key: &SiteKey) -> Self {
        let netns = Netns::new("site", &lab.unique);
        crate::lab::veth(&netns, "uplink", &lab.gateway, "wan");
        for (family, gateway, site) in LINK {
            let len = prefix_len(family);
            lab.gateway.ip(&format!("addr add {gateway}/{len} dev wan{}", crate::lab::nodad(family)));
            netns.ip(&format!("addr add {site}/{len} dev uplink{}", crate::lab::nodad(family)));
            netns.ip(&format!("addr add {} dev lo{}", Host::OpenToo.address(family), crate::lab::nodad(family)));
        }
        netns.ip("link set dev lo up");
        let gateway = std::fs::read_to_string(dir.join("state/wireguard.key")).expect("the gateway's key");
        let allowed =
            ["10.99.0.2/32", "fd00:99::2/128", "100.96.0.0/16", "fd00:96::/64", "192.168.0.0/16", "fd00:8::/64"];
        let text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\nAddress = 10.99.0.1/32\nMTU = 1280\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = {}\n",
            key.private.trim(),
            public_key(&gateway),
            allowed.join(", "),
        );
        let wg = WgClient::start(&netns, dir, &text);
        Self { netns, wg }
    }
}
