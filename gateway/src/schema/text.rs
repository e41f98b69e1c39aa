//! What strings look like.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A part of a pattern: 0 to 255 without leading zeros.
macro_rules! octet {
    () => {
        "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    };
}
macro_rules! v4 {
    () => {
        concat!("(", octet!(), r"\.){3}", octet!())
    };
}
/// Which of these are addresses is not for a pattern.
macro_rules! v6 {
    () => {
        "[0-9a-f]*:[0-9a-f:]*"
    };
}
macro_rules! net {
    () => {
        concat!("(", v4!(), "/(3[0-2]|[12]?[0-9])|", v6!(), "/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))")
    };
}
macro_rules! address {
    () => {
        concat!("(", v4!(), "|", v6!(), ")")
    };
}
macro_rules! port {
    () => {
        "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
    };
}
/// The number of a protocol that has no name.
macro_rules! protocol {
    () => {
        concat!("proto/(?!(1|6|17|58)$)", octet!())
    };
}
macro_rules! day {
    () => {
        "(mon|tue|wed|thu|fri|sat|sun)(-(mon|tue|wed|thu|fri|sat|sun))?"
    };
}
macro_rules! time {
    () => {
        "([01][0-9]|2[0-3]):[0-5][0-9]"
    };
}

/// Neither empty nor with a control character, nor with space around.
pub const NAME: &str =
    "^[^\\s\u{0}-\u{1f}\u{7f}-\u{9f}]([^\u{0}-\u{1f}\u{7f}-\u{9f}]*[^\\s\u{0}-\u{1f}\u{7f}-\u{9f}])?$";
/// The same without what makes an address.
pub const RESOURCE_NAME: &str = "^(?![0-9.]*$)[^\\s:/*\u{0}-\u{1f}\u{7f}-\u{9f}]([^:/*\u{0}-\u{1f}\u{7f}-\u{9f}]*[^\\s:/*\u{0}-\u{1f}\u{7f}-\u{9f}])?$";

macro_rules! texts {
    ($($(#[doc = $says:literal])+ $name:ident = $pattern:expr;)+) => {$(
        $(#[doc = $says])+
        #[derive(Debug)]
        pub struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": concat!($($says),+).trim(), "pattern": $pattern })
            }
        }
    )+};
}

texts! {
    /// A name, such as the id of a rule.
    Name = NAME;
    /// `user:NAME` or `group:NAME`.
    Member = "^(user|group):";
    /// `*`, `user:NAME`, `group:NAME`, `device:NAME`, `network:NAME` or `net:PREFIX`.
    Source = concat!(r"^(\*$|(user|group|device|network):|net:", net!(), "$)");
    /// `user:NAME`, `group:NAME`, `device:NAME`, `network:NAME` or `net:PREFIX`.
    NotSource = concat!("^((user|group|device|network):|net:", net!(), "$)");
    /// `*`, the name of a resource, an address or a prefix.
    Target = concat!(r"^(\*|", net!(), "|", address!(), r"|(?![0-9.]*$)[^:/]+)$");
    /// The name of a resource, an address or a prefix.
    NotTarget = concat!(r"^(?!\*$)(", net!(), "|", address!(), r"|(?![0-9.]*$)[^:/]+)$");
    /// An address, or a prefix without host bits.
    NetOrAddress = concat!("^(", net!(), "|", address!(), ")$");
    /// A prefix without host bits.
    Net = concat!("^", net!(), "$");
    /// An IPv4 or IPv6 address in its canonical spelling.
    Address = concat!("^", address!(), "$");
    /// `tcp/PORT`, `tcp/FIRST-LAST`, `tcp/*`, the same of `udp`, `icmp`, `proto/NUMBER` or `*`.
    Service = concat!(r"^(\*|icmp|(tcp|udp)/(\*|", port!(), "(-", port!(), ")?)|", protocol!(), ")$");
    /// Days with commas between, or ranges of days, such as `mon-fri` or `sat,sun`.
    Days = concat!("^", day!(), "(,", day!(), ")*$");
    /// `HH:MM-HH:MM` between 00:00 and 24:00; the end is not included, and may be on the next day.
    Hours = concat!("^", time!(), "-(", time!(), "|24:00)$");
    /// A time zone of the IANA database, such as `Europe/Berlin`.
    Zone = "^[A-Za-z0-9_+/-]+$";
    /// An instant as RFC 3339 writes it, such as `2027-01-31T00:00:00Z`.
    Instant = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$";
    /// A text, or a version after `<`, `<=`, `==`, `>=` or `>`, such as `>=14.2`.
    Expected = r"^((<=|>=|<|>)[0-9]{1,18}(\.[0-9]{1,18})*$|==|(?![<>=!~]))";
    /// `ADDRESS:PORT/tcp`, `ADDRESS:PORT/udp`, `ADDRESS/icmp` or `ADDRESS/proto/NUMBER`; an IPv6 address is in brackets.
    Destination = concat!("^(", v4!(), r"|\[", v6!(), r"\])(:", port!(), "/(tcp|udp)|/icmp|/", protocol!(), ")$");
    /// `ADDRESS` or `ADDRESS:PORT`; an IPv6 address with a port is in brackets.
    Rewrite = concat!("^(", v4!(), "(:", port!(), ")?|[0-9a-f]*:", v6!(), r"|\[", v6!(), r"\]:", port!(), ")$");
    /// A WireGuard key: 32 bytes in base64, as `wg pubkey` prints it.
    Key = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$";
}
