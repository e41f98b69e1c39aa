//! A real WireGuard client: wireguard-go, set up from the text `portcullis device add` printed, as wg-quick would.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child::Process;
use crate::netns::Netns;
use crate::wait;

/// A wg-quick file, taken apart into what `ip` needs and what `wg` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuickFile {
    /// `Address` entries.
    pub addresses: Vec<String>,
    /// `MTU`.
    pub mtu: Option<u16>,
    /// `AllowedIPs` entries of all peers.
    pub allowed: Vec<String>,
    /// What remains, for `wg setconf`.
    pub wg: String,
}

impl QuickFile {
    /// Takes the text apart.
    pub fn parse(text: &str) -> Self {
        let mut file = Self { addresses: Vec::new(), mtu: None, allowed: Vec::new(), wg: String::new() };
        for line in text.lines() {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let (key, value) = (key.trim(), value.trim());
            let list = || value.split(',').map(|entry| entry.trim().to_owned());
            match key.to_ascii_lowercase().as_str() {
                "address" => file.addresses.extend(list()),
                "mtu" => file.mtu = value.parse().ok(),
                "dns" | "table" | "preup" | "postup" | "predown" | "postdown" | "saveconfig" => {}
                lower => {
                    if lower == "allowedips" {
                        file.allowed.extend(list());
                    }
                    file.wg.push_str(line);
                    file.wg.push('\n');
                }
            }
        }
        file
    }

    /// The value of a key that `wg` reads.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.wg
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(found, _)| found.trim().eq_ignore_ascii_case(key))
            .map(|(_, value)| value.trim())
    }
}

/// A running wireguard-go.
#[derive(Debug)]
pub struct WgClient {
    interface: String,
    config: QuickFile,
    file: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl WgClient {
    /// Starts a client in `netns` from a wg-quick text. The interface name is unique on the machine, because
    /// wireguard-go's control sockets are.
    ///
    /// # Panics
    ///
    /// When wireguard-go or a tool fails.
    pub fn start(netns: &Netns, dir: &Path, text: &str) -> Self {
        let interface = format!("wg{}", crate::netns::unique());
        let mut client = Self {
            config: QuickFile::parse(text),
            file: dir.join(format!("{interface}.conf")),
            log: dir.join(format!("{interface}.log")),
            interface,
            process: None,
        };
        client.up(netns);
        client
    }

    /// Starts it again from nothing, as a rebooted client would.
    pub fn restart(&mut self, netns: &Netns) {
        self.down();
        self.up(netns);
    }

    /// Ends it; its interface goes with it.
    pub fn down(&mut self) {
        self.process = None;
    }

    fn up(&mut self, netns: &Netns) {
        let name = &self.interface;
        let mut command = Command::new("wireguard-go");
        command.args(["--foreground", name]).env("LOG_LEVEL", "verbose");
        let mut process = Process::start(netns, &mut command, &self.log);
        let socket = format!("/var/run/wireguard/{name}.sock");
        wait::until("wireguard-go's control socket", || {
            if let Some(status) = process.ended() {
                panic!("wireguard-go ended at start: {status}\n{}", process.log());
            }
            UnixStream::connect(&socket).ok()
        });
        self.process = Some(process);
        std::fs::write(&self.file, &self.config.wg).expect("a configuration file");
        netns.output("wg", &["setconf", name, &self.file.display().to_string()]);
        for address in &self.config.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            netns.ip(&format!("addr add {address} dev {name}{nodad}"));
        }
        netns.ip(&format!("link set {name} mtu {} up", self.config.mtu.unwrap_or(1420)));
        for network in &self.config.allowed {
            netns.ip(&format!("route replace {network} dev {name}"));
        }
    }

    /// Takes packets from these networks too, as if they stood in its file.
    ///
    /// # Panics
    ///
    /// When `wg` fails.
    pub fn allow(&self, netns: &Netns, networks: &[&str]) {
        let mut allowed: Vec<&str> = self.config.allowed.iter().map(String::as_str).collect();
        allowed.extend(networks);
        let peer = self.config.value("PublicKey").expect("a file names its peer");
        netns.output("wg", &["set", &self.interface, "peer", peer, "allowed-ips", &allowed.join(",")]);
    }

    /// Its interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Its configuration.
    pub fn config(&self) -> &QuickFile {
        &self.config
    }

    /// Unix time of the last completed handshake, 0 when there was none.
    ///
    /// # Panics
    ///
    /// When `wg` fails.
    pub fn latest_handshake(&self, netns: &Netns) -> u64 {
        let text = netns.output("wg", &["show", &self.interface, "latest-handshakes"]);
        text.split_whitespace().nth(1).and_then(|time| time.parse().ok()).unwrap_or(0)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wg_quick_file_is_taken_apart() {
        let file = QuickFile::parse(
            "# laptop\n[Interface]\nAddress = 100.96.0.2/32, fd00:96::2/128\nMTU=1280\nPrivateKey = a=\n\n\
             [Peer]\nPublicKey = b=\nAllowedIPs = 10.0.0.0/8, fd00::/16\nEndpoint = vpn.example.com:51820\n",
        );
        assert_eq!(file.addresses, ["100.96.0.2/32", "fd00:96::2/128"]);
        assert_eq!((file.mtu, file.allowed.len()), (Some(1280), 2));
        assert_eq!(file.value("PrivateKey"), Some("a="));
        assert!(!file.wg.contains("MTU") && !file.wg.contains("Address"));
    }
}
