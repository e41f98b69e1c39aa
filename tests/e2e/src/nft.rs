//! Packet counters and losses, by nftables.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::netns::Netns;

/// A named packet counter in a table of its own, in the order of arrival before any other hook.
#[derive(Debug)]
pub struct Counter<'a> {
    netns: &'a Netns,
    table: String,
}

/// Loads rules into a namespace.
///
/// # Panics
///
/// When `nft` refuses them.
pub fn load(netns: &Netns, rules: &str) {
    netns.run(|| {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("nft does not start: {error}"));
        child.stdin.take().expect("it is piped").write_all(rules.as_bytes()).expect("nft reads its rules");
        let status = child.wait().expect("our own child");
        assert!(status.success(), "nft refuses:\n{rules}");
    });
}

/// Drops what arrives in the namespace and matches.
///
/// # Panics
///
/// When `nft` refuses the expression.
pub fn drop_arriving(netns: &Netns, table: &str, matching: &str) {
    load(
        netns,
        &format!(
            "table inet {table} {{ chain arriving {{ type filter hook prerouting priority -300; {matching} drop; }}; }}\n"
        ),
    );
}

/// Drops what leaves the namespace and matches.
///
/// # Panics
///
/// When `nft` refuses the expression.
pub fn drop_leaving(netns: &Netns, table: &str, matching: &str) {
    load(
        netns,
        &format!(
            "table inet {table} {{ chain leaving {{ type filter hook output priority -300; {matching} drop; }}; }}\n"
        ),
    );
}

/// Loses one packet in a hundred of those that arrive in the namespace and match.
///
/// # Panics
///
/// When `nft` refuses the expression.
pub fn lose_one_percent(netns: &Netns, matching: &str) {
    drop_arriving(netns, "loss", &format!("{matching} numgen random mod 100 < 1 counter"));
}

/// Takes a table away again.
///
/// # Panics
///
/// When there is none of this name.
pub fn remove(netns: &Netns, table: &str) {
    load(netns, &format!("delete table inet {table}\n"));
}

impl<'a> Counter<'a> {
    /// Counts what arrives in `netns` and matches.
    ///
    /// # Panics
    ///
    /// When `nft` refuses the expression.
    pub fn arriving(netns: &'a Netns, name: &str, matching: &str) -> Self {
        Self::at(netns, "prerouting", name, matching)
    }

    /// Counts what leaves `netns` and matches.
    ///
    /// # Panics
    ///
    /// When `nft` refuses the expression.
    pub fn leaving(netns: &'a Netns, name: &str, matching: &str) -> Self {
        Self::at(netns, "postrouting", name, matching)
    }

    fn at(netns: &'a Netns, hook: &str, name: &str, matching: &str) -> Self {
        let table = format!("count_{name}");
        load(
            netns,
            &format!(
                "table inet {table} {{ counter seen {{ }}; chain seen {{ type filter hook {hook} priority -310; {matching} counter name seen; }}; }}\n"
            ),
        );
        Self { netns, table }
    }

    /// Packets so far.
    ///
    /// # Panics
    ///
    /// When `nft` does not answer with a counter.
    pub fn packets(&self) -> u64 {
        let text = self.netns.output("nft", &["-j", "list", "counter", "inet", &self.table, "seen"]);
        let value: Value = serde_json::from_str(&text).expect("nft prints JSON");
        value["nftables"]
            .as_array()
            .and_then(|items| items.iter().find_map(|item| item["counter"]["packets"].as_u64()))
            .unwrap_or_else(|| panic!("no counter in {text}"))
    }
}
