//! `gateway.toml` at a reload: what it says of steering is put in force, for the rest there is a start.

use std::sync::Arc;

use super::Rulesets;
use crate::config::Config;
use crate::config::resolved::TunConfig;
use crate::control::api::Change;
use crate::host::{Steering, SteeringChange};

/// What the file says now, beside what it said at the start.
#[derive(Debug)]
pub(super) struct StaticFile {
    /// `[tun]`, when nothing else of it has changed than what it steers.
    steering: Option<TunConfig>,
    /// What a reload does not do.
    warning: Option<String>,
}

impl StaticFile {
    /// Reads the file that `config` came from.
    pub(super) fn read(config: &Config) -> Self {
        match Config::load(&config.source) {
            Ok(new) => Self::compare(config, new),
            Err(problems) => {
                let first = problems.first().map(ToString::to_string).unwrap_or_default();
                let more = problems.len().saturating_sub(1);
                let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
                Self {
                    steering: None,
                    warning: Some(format!("{first}{more}; nothing of the file is taken, and the next start needs it")),
                }
            }
        }
    }

    pub(super) fn into_warning(self) -> Option<String> {
        self.warning
    }

    fn compare(config: &Config, new: Config) -> Self {
        let steering = new.tun.clone();
        let mut rest = new;
        rest.text = Arc::clone(&config.text);
        if let (Some(rest), Some(tun)) = (&mut rest.tun, &config.tun) {
            rest.routes.clone_from(&tun.routes);
            rest.exclude.clone_from(&tun.exclude);
        }
        let warning = (rest != *config).then(|| {
            format!(
                "{} has changed since the start; all but [tun] routes and exclude needs a restart",
                config.source.display()
            )
        });
        // Routes lead to the device and stand in the table that were there at the start.
        let steering = steering.filter(|_| rest.tun == config.tun);
        Self { steering, warning }
    }
}

impl Rulesets {
    /// From now on, a load changes what is steered into the TUN device as `gateway.toml` says.
    pub fn attach_steering(&self, steering: Steering) {
        // As with the shards there is one.
        let _ = self.steering.set(steering);
    }

    /// Puts in force what the file says of steering. Returns what changed, and what did not.
    pub(super) async fn steer(&self, file: StaticFile) -> (Vec<Change>, Vec<String>) {
        let StaticFile { steering, warning } = file;
        let mut warnings: Vec<String> = warning.into_iter().collect();
        let (Some(wanted), Some(steering)) = (steering, self.steering.get()) else { return (Vec::new(), warnings) };
        match steering.change(wanted).await {
            Ok(changes) => (changes.iter().map(change).collect(), warnings),
            Err(error) => {
                warnings.push(format!("what is steered stays as it was: {error}"));
                (Vec::new(), warnings)
            }
        }
    }
}

fn change(change: &SteeringChange) -> Change {
    Change {
        kind: if change.excluded { "excluded network" } else { "steered network" }.to_owned(),
        name: change.net.to_string(),
        change: if change.added { "added" } else { "removed" }.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_is_steered_needs_no_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        let text = "[tun]\nroutes = [\"10.0.0.0/8\"]\n";
        let write = |text: &str| fs::write(&path, text).unwrap();
        write(text);
        let config = Config::load(&path).unwrap();
        let file = |text: &str| {
            write(text);
            let StaticFile { steering, warning } = StaticFile::read(&config);
            (steering.map(|tun| tun.routes.len() + tun.exclude.len()), warning.unwrap_or_default())
        };
        assert_eq!(file(text), (Some(1), String::new()));
        assert_eq!(file(&format!("# why\n{text}")), (Some(1), String::new()));
        assert_eq!(
            file("[tun]\nroutes = [\"10.0.0.0/8\", \"11.0.0.0/8\"]\nexclude = [\"10.1.0.0/16\"]\n"),
            (Some(3), String::new())
        );
        assert_eq!(file("[tun]\n"), (Some(0), String::new()));
        let (steering, warning) = file(&format!("drain = \"7s\"\n{text}"));
        assert_eq!(steering, Some(1));
        assert!(warning.ends_with("all but [tun] routes and exclude needs a restart"), "{warning}");
        let (steering, warning) = file(&format!("{text}table = 7\n"));
        assert_eq!((steering, warning.is_empty()), (None, false), "its routes would stand in two tables");
        let (steering, warning) = file("[tun]\nroutes = 7\nmtu = 1\n");
        assert_eq!(steering, None);
        assert!(
            warning.contains("gateway.toml:2:10: tun.routes: ") && warning.contains(" (and 1 more); "),
            "{warning}"
        );
        fs::remove_file(&path).unwrap();
        let StaticFile { steering, warning } = StaticFile::read(&config);
        assert!(steering.is_none() && warning.is_some());
    }
}
