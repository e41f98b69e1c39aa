//! Static configuration: `file` is what was written, `resolved` is what it means.

mod duration;
mod file;
mod limits;
mod offramp;
mod problem;
mod reader;
mod resolve;
pub mod resolved;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::thread::available_parallelism;

pub use duration::{format_duration, parse_duration};
pub use limits::LimitDefault;
pub use problem::{ConfigError, ConfigProblem, Place};
pub use resolved::Config;

use crate::files;

impl Config {
    /// Reads and settles the file at `path`.
    ///
    /// # Errors
    ///
    /// Every problem at once, in the order of the file.
    pub fn load(path: &Path) -> Result<Self, Vec<ConfigProblem>> {
        let unreadable = |error: files::ReadError| {
            let error = if error.is_missing() { ConfigError::NoFile(error) } else { error.into() };
            vec![ConfigProblem { file: path.to_owned(), place: None, key: String::new(), error }]
        };
        let text = files::read_text(path).map_err(unreadable)?;
        // Later changes of the working directory must not change what the paths mean.
        let source = std::path::absolute(path).map_err(|error| unreadable(error.into()))?;
        let cores = available_parallelism().map_or(1, usize::from).min(resolved::MAX_SHARDS);
        Self::resolve(&text, &source, cores).map_err(|mut problems| {
            for problem in &mut problems {
                path.clone_into(&mut problem.file);
            }
            problems
        })
    }

    /// What `text` means as the file `source` on a machine with `cores` cores. Reads nothing else.
    ///
    /// # Errors
    ///
    /// Every problem at once, in the order of the file.
    pub fn resolve(text: &str, source: &Path, cores: usize) -> Result<Self, Vec<ConfigProblem>> {
        let (file, mut findings) = file::read(text);
        let config = resolve::resolve(text, file, source, cores, &mut findings);
        if findings.is_empty() { Ok(config) } else { Err(findings.into_problems(source)) }
    }
}

/// Whether `text` is `HOST:PORT`, where an IPv6 address stands in brackets.
pub(crate) fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    if port.parse().is_ok_and(|number: u16| number == 0 || number.to_string() != port) || port.parse::<u16>().is_err() {
        return false;
    }
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&host.len())
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    }
}
