//! Static configuration: `file` is what was written, `resolved` is what it means.

pub mod resolved;

pub use resolved::Config;

/// Checks `host:port`, where an IPv6 address stands in brackets.
pub(crate) fn check_endpoint(text: &str) -> Result<(), &'static str> {
    const MESSAGE: &str = "expected HOST:PORT, like vpn.example.com:51820 or [2001:db8::1]:51820";
    let (host, port) = text.rsplit_once(':').ok_or(MESSAGE)?;
    if port.parse::<u16>().is_err() || port.starts_with('+') || port.parse() == Ok(0) {
        return Err(MESSAGE);
    }
    let inside = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let sound = match inside {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    if sound { Ok(()) } else { Err(MESSAGE) }
}
