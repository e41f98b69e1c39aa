//! The wg-quick file of a device.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};

use crate::config::resolved::WireguardConfig;
use crate::keys::{PrivateKey, encode_key};

/// Seconds; keeps the way back open through NAT (the WireGuard documentation's own advice).
const KEEPALIVE: u16 = 25;

/// What goes into the file.
pub(super) struct ClientFile<'a> {
    pub(super) device: &'a str,
    pub(super) user: &'a str,
    /// `None` when the device made its own key.
    pub(super) private_key: Option<&'a PrivateKey>,
    pub(super) preshared_key: Option<&'a [u8; 32]>,
    pub(super) addresses: &'a [IpAddr],
    pub(super) gateway: [u8; 32],
    pub(super) endpoint: &'a str,
    pub(super) wireguard: &'a WireguardConfig,
}

impl ClientFile<'_> {
    /// The text of the file.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# {} of {}", self.device, self.user)?;
        writeln!(out, "[Interface]")?;
        match self.private_key {
            Some(key) => writeln!(out, "PrivateKey = {}", key.to_base64())?,
            None => writeln!(out, "# PrivateKey = the private key that belongs to the public key given")?,
        }
        writeln!(out, "Address = {}", joined(self.addresses.iter().map(|address| IpNet::from(*address))))?;
        writeln!(out, "MTU = {}", self.wireguard.mtu)?;
        writeln!(out, "\n[Peer]")?;
        writeln!(out, "PublicKey = {}", encode_key(&self.gateway))?;
        if let Some(key) = self.preshared_key {
            writeln!(out, "PresharedKey = {}", encode_key(key))?;
        }
        writeln!(out, "AllowedIPs = {}", joined(self.allowed()))?;
        writeln!(out, "Endpoint = {}", self.endpoint)?;
        writeln!(out, "PersistentKeepalive = {KEEPALIVE}")
    }

    /// The routes of families the device has an address in: wg-quick fails on others. Without any, the gateway itself,
    /// so that the file stays one that wg-quick takes.
    fn allowed(&self) -> Vec<IpNet> {
        let reachable = |net: &&IpNet| self.addresses.iter().any(|address| address.is_ipv4() == net.addr().is_ipv4());
        let routes: Vec<IpNet> = self.wireguard.client_routes.iter().filter(reachable).copied().collect();
        if !routes.is_empty() {
            return routes;
        }
        self.wireguard.addresses.iter().map(|net| IpNet::from(net.addr())).collect()
    }
}

/// `text` as a QR code of half blocks, or `None` when it is too long for one.
pub(super) fn qr(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    // Terminals are mostly dark: the light modules are the ones that must be painted.
    Some(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

fn joined(nets: impl IntoIterator<Item = IpNet>) -> String {
    nets.into_iter().map(|net| net.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn wireguard(client_routes: &str) -> WireguardConfig {
        let text = format!(
            "[wireguard]\naddresses = [\"100.96.0.1/16\", \"fd00:96::1/64\"]\nclient_routes = [{client_routes}]\n"
        );
        Config::resolve(&text, std::path::Path::new("/x"), 1).unwrap().wireguard.unwrap()
    }

    fn file<'a>(wireguard: &'a WireguardConfig, key: &'a PrivateKey, addresses: &'a [IpAddr]) -> ClientFile<'a> {
        ClientFile {
            device: "laptop",
            user: "ann",
            private_key: Some(key),
            preshared_key: Some(&[2; 32]),
            addresses,
            gateway: [3; 32],
            endpoint: "[2001:db8::1]:51820",
            wireguard,
        }
    }

    #[test]
    fn the_whole_file() {
        let key = PrivateKey::parse(&encode_key(&[1; 32])).unwrap();
        let wireguard = wireguard("\"10.0.0.0/8\", \"fd00::/8\"");
        let addresses = ["100.96.0.2".parse().unwrap(), "fd00:96::2".parse().unwrap()];
        let mut file = file(&wireguard, &key, &addresses);
        assert_eq!(
            file.text(),
            "# laptop of ann\n\
             [Interface]\n\
             PrivateKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n\
             Address = 100.96.0.2/32, fd00:96::2/128\n\
             MTU = 1280\n\
             \n\
             [Peer]\n\
             PublicKey = AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\n\
             PresharedKey = AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n\
             AllowedIPs = 10.0.0.0/8, fd00::/8\n\
             Endpoint = [2001:db8::1]:51820\n\
             PersistentKeepalive = 25\n"
        );
        file.private_key = None;
        assert!(file.text().contains("\n# PrivateKey = "));
        file.addresses = &addresses[..1];
        assert!(file.text().contains("\nAllowedIPs = 10.0.0.0/8\n"));
    }

    #[test]
    fn without_routes_the_gateway_itself_is_allowed() {
        let key = PrivateKey::generate().unwrap();
        let wireguard = wireguard("");
        let addresses = ["100.96.0.2".parse().unwrap()];
        assert!(file(&wireguard, &key, &addresses).text().contains("\nAllowedIPs = 100.96.0.1/32, fd00:96::1/128\n"));
    }

    #[test]
    fn a_code_is_square() {
        let code = qr("[Interface]\n").unwrap();
        let lines: Vec<&str> = code.lines().collect();
        let width = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == width));
        assert_eq!(lines.len(), width.div_ceil(2));
        assert!(qr(&"x".repeat(4_000)).is_none());
    }
}
