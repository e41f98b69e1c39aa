//! `portcullis init`: what is not there yet is written, what is there is kept.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{DEFAULT_CONFIG, ExitStatus, InitArgs};
use crate::config::{Config, ConfigProblem};
use crate::keys::{PrivateKey, encode_key};

const TEMPLATE: &str = include_str!("template.toml");
const POLICY: &str = r#"{
  "version": 1,
  "resources": {},
  "rules": [],
  "tests": []
}
"#;
const DIRECTORY: &str = r#"{
  "users": {},
  "devices": {}
}
"#;

/// Why `init` stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum InitError {
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// About this.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration that was there already is bad.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<ConfigProblem>),
}

impl InitError {
    fn exit(&self) -> ExitStatus {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => ExitStatus::NotPermitted,
            Self::Io { .. } => ExitStatus::Failed,
            Self::Config(_) => ExitStatus::BadConfig,
        }
    }
}

/// A file, and whether it was written now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) path: PathBuf,
    pub(super) created: bool,
}

/// Runs the verb.
pub fn run(args: InitArgs) -> ExitStatus {
    let mut err = io::stderr().lock();
    // Nobody reads standard error: the exit status still tells.
    match create(args.dir.as_deref(), args.endpoint.as_deref()) {
        Ok((config, made)) => {
            for file in &made {
                let _ = writeln!(err, "{} {}", if file.created { "created" } else { "kept   " }, file.path.display());
            }
            if !made.first().is_some_and(|file| file.created) && args.endpoint.is_some() {
                let _ = writeln!(err, "--endpoint was not written: {} was there already", config.source.display());
            }
            // One that may not be read says so when the gateway starts.
            let key = config.wireguard.as_ref().and_then(|own| PrivateKey::read_file(&own.key_file).ok());
            if let Some(key) = key {
                let _ = writeln!(err, "public key of the gateway: {}", encode_key(&key.public()));
            }
            let _ = write!(err, "{}", next_steps(&config));
            ExitStatus::Done
        }
        Err(error) => {
            let _ = writeln!(err, "{error}");
            error.exit()
        }
    }
}

/// Writes what is missing of the files of a gateway. `None` means the system's places.
pub(super) fn create(dir: Option<&Path>, endpoint: Option<&str>) -> Result<(Config, Vec<Made>), InitError> {
    let default = Path::new(DEFAULT_CONFIG);
    let dir = dir.filter(|dir| Some(*dir) != default.parent());
    let path = dir.map_or_else(|| default.to_owned(), |dir| dir.join("gateway.toml"));
    make_parent(&path, 0o755)?;
    let mut made = vec![write_new(&path, &configuration(dir.is_some(), endpoint), 0o644)?];
    // From here on the file says where everything is, whether it was written now or years ago.
    let config = Config::load(&path).map_err(InitError::Config)?;
    make_dir(&config.state_dir, 0o700)?;
    make_parent(&config.flow_log, 0o750)?;
    if let Some(wireguard) = &config.wireguard {
        let key =
            PrivateKey::generate().map_err(|source| InitError::Io { path: wireguard.key_file.clone(), source })?;
        made.push(write_new(&wireguard.key_file, &format!("{}\n", key.to_base64()), 0o600)?);
    }
    // It may come to hold preshared keys.
    made.push(write_new(&config.directory, DIRECTORY, 0o600)?);
    made.push(write_new(&config.policy, POLICY, 0o644)?);
    Ok((config, made))
}

fn configuration(in_one_dir: bool, endpoint: Option<&str>) -> String {
    let (places, flows) = if in_one_dir {
        (
            "state_dir = \"state\"             # the WireGuard key and what must outlive a restart; mode 0700\ncontrol   = \"control.sock\"      # where `portcullis status` and the other verbs ask\n",
            "flows.jsonl",
        )
    } else {
        (
            "state_dir = \"/var/lib/portcullis\"\ncontrol   = \"/run/portcullis/control.sock\"\n",
            "/var/log/portcullis/flows.jsonl",
        )
    };
    let endpoint = match endpoint {
        // An endpoint holds no character that TOML would read otherwise: `--endpoint` is checked.
        Some(endpoint) => format!("endpoint      = \"{endpoint}\" # goes into client files"),
        None => "#endpoint     = \"vpn.example.com:51820\" # public address of this gateway; goes into client files"
            .to_owned(),
    };
    TEMPLATE.replace("@PLACES@\n", places).replace("@ENDPOINT@", &endpoint).replace("@FLOWS@", flows)
}

fn next_steps(config: &Config) -> String {
    let file = config.source.display();
    let option = if config.source == Path::new(DEFAULT_CONFIG) { String::new() } else { format!(" --config {file}") };
    let endpoint = match &config.wireguard {
        Some(wireguard) if wireguard.endpoint.is_none() => {
            format!("  set wireguard.endpoint in {file}, so that client files know where to go\n")
        }
        Some(_) | None => String::new(),
    };
    format!(
        "next:\n{endpoint}  (umask 077; portcullis device add{option} laptop --user ann@example.com --group eng > laptop.conf)\n  \
         write rules into {}: as it is, everything is denied\n  portcullis check{option}\n  portcullis run{option}\n",
        config.policy.display()
    )
}

fn make_parent(path: &Path, mode: u32) -> Result<(), InitError> {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).map_or(Ok(()), |dir| make_dir(dir, mode))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), InitError> {
    let failed = |source| InitError::Io { path: path.to_owned(), source };
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)
}

/// Writes a file whole or not at all, and never in the place of another.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<Made, InitError> {
    let failed = |source| InitError::Io { path: path.to_owned(), source };
    if fs::symlink_metadata(path).is_ok() {
        return Ok(Made { path: path.to_owned(), created: false });
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".portcullis-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(Made { path: path.to_owned(), created: true }),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(Made { path: path.to_owned(), created: false })
        }
        Err(error) => Err(failed(error.error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_it_writes_is_sound_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("a/b");
        let (config, made) = create(Some(&home), Some("vpn.example.com:51820")).unwrap();
        assert!(made.iter().all(|file| file.created));
        assert_eq!(made.len(), 4);
        assert_eq!(config.control, home.join("control.sock"));
        assert_eq!(config.flow_log, home.join("flows.jsonl"));
        let wireguard = config.wireguard.unwrap();
        assert_eq!(wireguard.endpoint.as_deref(), Some("vpn.example.com:51820"));
        assert_eq!(wireguard.key_file, home.join("state/wireguard.key"));
        assert!(PrivateKey::read_file(&wireguard.key_file).is_ok());
        assert_eq!(mode(&wireguard.key_file), 0o600);
        assert_eq!(mode(&config.state_dir), 0o700);
        assert_eq!(mode(&config.directory), 0o600);
    }

    #[test]
    fn it_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let (config, _) = create(Some(dir.path()), None).unwrap();
        let files = [config.source, config.directory, config.policy, config.wireguard.unwrap().key_file];
        for file in &files[1..3] {
            fs::write(file, "mine").unwrap();
        }
        let before: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        let (_, made) = create(Some(dir.path()), Some("other.example.com:1")).unwrap();
        assert!(made.iter().all(|file| !file.created), "{made:?}");
        let after: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        assert_eq!(before, after);

        fs::remove_file(&files[3]).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", &files[3]).unwrap();
        let (_, made) = create(Some(dir.path()), None).unwrap();
        assert!(made.iter().all(|file| !file.created), "a link that leads nowhere is kept too: {made:?}");
    }

    #[test]
    fn places_follow_a_configuration_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("gateway.toml"), "directory = \"d.json\"\nstate_dir = \"s\"\n[log]\nflows = \"f/l\"\n[wireguard]\naddresses = [\"10.9.0.1/24\"]\n").unwrap();
        create(Some(dir.path()), None).unwrap();
        assert!(dir.path().join("d.json").exists() && dir.path().join("s/wireguard.key").exists());
        fs::write(dir.path().join("gateway.toml"), "x = 1\n").unwrap();
        assert_eq!(create(Some(dir.path()), None).unwrap_err().exit(), ExitStatus::BadConfig);
    }

    #[test]
    fn every_commented_section_is_sound_too() {
        for (in_one_dir, endpoint) in [(false, None), (true, Some("[2001:db8::1]:443"))] {
            let text = configuration(in_one_dir, endpoint);
            assert!(!text.contains('@'), "{text}");
            let path = Path::new("/etc/portcullis/gateway.toml");
            Config::resolve(&text, path, 1).unwrap();
            let all: Vec<&str> = text
                .lines()
                .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
                .collect();
            let config = Config::resolve(&all.join("\n"), path, 1).unwrap();
            assert!(config.tun.is_some() && config.routes.len() == 2 && config.offramps.len() == 5);
        }
        let config = Config::resolve(&configuration(false, None), Path::new(DEFAULT_CONFIG), 1).unwrap();
        assert_eq!(config.control, Path::new("/run/portcullis/control.sock"));
        assert_eq!(config.state_dir, Path::new("/var/lib/portcullis"));
    }

    #[test]
    fn next_steps_name_what_is_open() {
        let path = Path::new("/srv/gateway.toml");
        let config = Config::resolve(&configuration(true, None), path, 1).unwrap();
        let steps = next_steps(&config);
        assert!(steps.contains("set wireguard.endpoint in /srv/gateway.toml"), "{steps}");
        assert!(
            steps.contains("--user ann@example.com --group eng >"),
            "a user without a group is in no rule: {steps}"
        );
        assert!(steps.contains("portcullis run --config /srv/gateway.toml\n"), "{steps}");
    }
}
