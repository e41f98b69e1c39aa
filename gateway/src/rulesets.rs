//! Policy and directory in force: loaded, swapped whole, and judged by again.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use portcullis_policy::{Context, KnownDevice, KnownUser, Revision, Ruleset, json};
use tokio::sync::watch;

use crate::config::Config;
use crate::control::api::{BarReport, Change, LastReload, Problem, ReloadReport};
use crate::control::changes;
use crate::control::shards::Shards;
use crate::directory::{Device, Directory, DirectoryContext};
use crate::files;
use crate::shard::link::Snapshot;

/// A reload was refused; what was in force stays in force.
#[derive(Debug, thiserror::Error)]
#[error("reload refused, revision {revision} stays in force")]
pub struct ReloadError {
    /// What stays in force.
    pub revision: u64,
    /// What is wrong, with places.
    pub problems: Vec<Problem>,
    /// Devices barred all the same, because the new directory is sound and takes their access away.
    pub barred: Vec<String>,
}

/// Holds the snapshot in force and publishes it to the shards.
#[derive(Debug)]
pub struct Rulesets {
    config: Arc<Config>,
    /// The gateway's own WireGuard public key, which is no device's.
    own_key: Option<[u8; 32]>,
    publish: watch::Sender<Arc<Snapshot>>,
    shards: OnceLock<Shards>,
    /// Held for the whole of a swap, so that swaps come one after another.
    loaded: tokio::sync::Mutex<Texts>,
    last: Mutex<LastReload>,
    failures: Arc<AtomicU64>,
}

/// The files in force, as they were written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Texts {
    policy: String,
    directory: String,
}

impl Rulesets {
    /// Loads both files as the first revision.
    ///
    /// # Errors
    ///
    /// Every problem of both files.
    pub fn load(
        config: Arc<Config>,
        own_key: Option<[u8; 32]>,
        own_addresses: Arc<[IpAddr]>,
    ) -> Result<Self, Vec<Problem>> {
        let now = Timestamp::now();
        let texts = Texts::read(&config)?;
        let snapshot = compile(&config, own_key, &texts, own_addresses, Revision(1), now)?;
        Ok(Self {
            config,
            own_key,
            publish: watch::Sender::new(Arc::new(snapshot)),
            shards: OnceLock::new(),
            loaded: tokio::sync::Mutex::new(texts),
            last: Mutex::new(LastReload { at: now, ok: true, problems: Vec::new() }),
            failures: Arc::default(),
        })
    }

    /// From now on, a swap has these shards judge their live flows again.
    pub fn attach(&self, shards: Shards) {
        // A process has one set of shards; a second call would be a mistake without effect.
        let _ = self.shards.set(shards);
    }

    /// Where shards see the snapshot change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.publish.subscribe()
    }

    /// The snapshot in force.
    pub fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.publish.borrow())
    }

    /// Counts refused reloads.
    pub fn failures(&self) -> &Arc<AtomicU64> {
        &self.failures
    }

    /// How the last load went.
    pub fn last_reload(&self) -> LastReload {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads both files again and puts them in force, whole or not at all. Returns when live flows have been judged.
    ///
    /// It goes on to its end when the future is dropped, so that a caller who hangs up leaves nothing half done.
    ///
    /// Only the taking away of access does not wait for a sound policy: the devices that a sound new directory removes
    /// or disables are barred even when the policy beside it is refused.
    ///
    /// # Errors
    ///
    /// Every problem of both files.
    pub async fn reload(self: &Arc<Self>) -> Result<ReloadReport, ReloadError> {
        let this = Arc::clone(self);
        let revision = self.current().ruleset.revision().0;
        tokio::spawn(async move { this.swap().await }).await.unwrap_or_else(|error| {
            let message = format!("the reload stopped: {error}");
            let file = self.config.policy.display().to_string();
            Err(ReloadError {
                revision,
                problems: vec![Problem { file, line: None, column: None, path: String::new(), message, denied: false }],
                barred: Vec::new(),
            })
        })
    }

    async fn swap(&self) -> Result<ReloadReport, ReloadError> {
        let mut loaded = self.loaded.lock().await;
        let before = self.current();
        let (config, own) = (Arc::clone(&self.config), Arc::clone(&before.own_addresses));
        let own_key = self.own_key;
        let next = Revision(before.ruleset.revision().0 + 1);
        // Up to 32 MiB are read and compiled: not on the thread that answers the control socket.
        let compiled = tokio::task::spawn_blocking(move || {
            let texts = Texts::read(&config)?;
            let snapshot = compile(&config, own_key, &texts, own, next, Timestamp::now())?;
            Ok((texts, snapshot, needs_restart(&config)))
        });
        let result = compiled.await.unwrap_or_else(|panic| {
            let message = format!("could not be compiled: {panic}");
            let file = self.config.policy.display().to_string();
            Err(vec![Problem { file, line: None, column: None, path: String::new(), message, denied: false }])
        });
        match result {
            Ok((texts, snapshot, warning)) => {
                let changes = loaded.changes_to(&texts);
                *loaded = texts;
                self.remember(Vec::new());
                self.publish.send_replace(Arc::new(snapshot));
                let judged = self.judge_again().await;
                if let Some(warning) = &warning {
                    tracing::warn!("{warning}");
                }
                tracing::info!(revision = next.0, changes = summary(&changes), judged, "policy and directory loaded");
                Ok(ReloadReport { revision: next.0, changes, judged, warnings: warning.into_iter().collect() })
            }
            Err(problems) => {
                let revision = before.ruleset.revision().0;
                for problem in &problems {
                    tracing::warn!(%problem, "bad file");
                }
                tracing::error!(problems = problems.len(), "reload refused, revision {revision} stays in force");
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.remember(problems.clone());
                let barred = self.bar_losers(&before).await;
                Err(ReloadError { revision, problems, barred })
            }
        }
    }

    /// Bars the devices that the directory file, sound by itself, gives no access any more. Returns their names.
    async fn bar_losers(&self, before: &Snapshot) -> Vec<String> {
        let (config, own_key) = (Arc::clone(&self.config), self.own_key);
        let parsed = tokio::task::spawn_blocking(move || {
            let text = read(&config.directory).ok()?;
            Directory::parse(&text, &DirectoryContext::new(&config, own_key)).ok()
        });
        // A directory that is not sound says nothing about anybody.
        let Ok(Some(next)) = parsed.await else { return Vec::new() };
        let losers = before.directory.losing_access(&next, Timestamp::now());
        let mut directory = Arc::clone(&before.directory);
        for name in &losers {
            tracing::warn!(device = %name, "barred: the directory takes its access away, whatever the policy beside it");
            directory = directory.barring(name).map_or(directory, Arc::new);
        }
        if !losers.is_empty() {
            self.publish_directory(before, directory);
            self.judge_again().await;
        }
        losers.iter().map(ToString::to_string).collect()
    }

    /// Disables a device in what is in force, until a later load replaces the directory. Returns when live flows have
    /// been judged. It goes on to its end when the future is dropped.
    ///
    /// # Errors
    ///
    /// The task did not come to its end.
    pub async fn bar(self: &Arc<Self>, device: String) -> Result<BarReport, tokio::task::JoinError> {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _swap = this.loaded.lock().await;
            let before = this.current();
            let known = before.directory.device(&device).map(|device| device.disabled);
            if known == Some(false)
                && let Some(directory) = before.directory.barring(&device)
            {
                this.publish_directory(&before, Arc::new(directory));
            }
            // Again when it was barred before, too: the caller wants to know that its flows have ended.
            let judged = known.is_none() || this.judge_again().await;
            BarReport { device, known: known.is_some(), judged }
        })
        .await
    }

    fn publish_directory(&self, before: &Snapshot, directory: Arc<Directory>) {
        self.publish.send_replace(Arc::new(Snapshot {
            ruleset: Arc::clone(&before.ruleset),
            directory,
            own_addresses: Arc::clone(&before.own_addresses),
        }));
    }

    /// Publishes the host's addresses when they are others than before.
    pub async fn set_own_addresses(&self, own_addresses: Arc<[IpAddr]>) {
        let _swap = self.loaded.lock().await;
        let before = self.current();
        if before.own_addresses == own_addresses {
            return;
        }
        tracing::info!(addresses = own_addresses.len(), "the host's own addresses changed");
        self.publish.send_replace(Arc::new(Snapshot {
            ruleset: Arc::clone(&before.ruleset),
            directory: Arc::clone(&before.directory),
            own_addresses,
        }));
        self.judge_again().await;
    }

    async fn judge_again(&self) -> bool {
        let Some(shards) = self.shards.get() else { return true };
        match shards.rejudge().await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "live flows are not judged again yet");
                false
            }
        }
    }

    fn remember(&self, problems: Vec<Problem>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            LastReload { at: Timestamp::now(), ok: problems.is_empty(), problems };
    }
}

/// What both files of `config` mean now, without putting anything in force.
///
/// # Errors
///
/// Every problem of both files.
pub fn load(
    config: &Config,
    own_key: Option<[u8; 32]>,
    own_addresses: Arc<[IpAddr]>,
    now: Timestamp,
) -> Result<Snapshot, Vec<Problem>> {
    compile(config, own_key, &Texts::read(config)?, own_addresses, Revision(1), now)
}

/// The names that a policy may use.
pub fn policy_context<'a>(config: &'a Config, directory: &'a Directory) -> Context<'a> {
    let user = |(name, user): (&'a Arc<str>, &'a crate::directory::User)| {
        (&**name, KnownUser { groups: &user.groups, disabled: user.disabled })
    };
    let device = |device: &'a Arc<Device>| {
        let known =
            KnownDevice { identity: &device.identity, disabled: device.disabled, source: device.sources().next() };
        (&*device.identity.device, known)
    };
    Context {
        users: directory.users().map(user).collect(),
        devices: directory.devices().map(device).collect(),
        groups: directory.groups().map(|group| &**group).collect(),
        offramps: config.offramps.iter().map(|offramp| &*offramp.name).collect(),
    }
}

fn compile(
    config: &Config,
    own_key: Option<[u8; 32]>,
    texts: &Texts,
    own_addresses: Arc<[IpAddr]>,
    revision: Revision,
    now: Timestamp,
) -> Result<Snapshot, Vec<Problem>> {
    // A policy is read against its directory: while that one is bad, names in the policy prove nothing.
    let directory = Directory::parse(&texts.directory, &DirectoryContext::new(config, own_key))
        .map_err(|problems| in_file(&config.directory, problems))?;
    let ruleset = Ruleset::compile(texts.policy.as_bytes(), &policy_context(config, &directory), revision, now)
        .map_err(|problems| in_file(&config.policy, problems))?;
    for warning in ruleset.warnings() {
        tracing::warn!(warning = %warning.in_file(config.policy.display()), "policy");
    }
    let directory = Arc::new(directory.in_groups_of(&ruleset));
    Ok(Snapshot { ruleset: Arc::new(ruleset), directory, own_addresses })
}

/// Problems of a document with the name of its file.
pub(crate) fn in_file(path: &Path, problems: Vec<json::Problem>) -> Vec<Problem> {
    let place = |problem: json::Problem| Problem {
        file: path.display().to_string(),
        line: Some(problem.place.line),
        column: Some(problem.place.column),
        path: problem.place.path,
        message: problem.message,
        denied: false,
    };
    problems.into_iter().map(place).collect()
}

/// That a reload is not all it takes, when the static configuration is another one than at the start.
fn needs_restart(config: &Config) -> Option<String> {
    let source = config.source.display();
    match files::read_text(&config.source) {
        Ok(text) if *text == *config.text => None,
        Ok(_) => Some(format!("{source} has changed since the start; that needs a restart")),
        Err(error) => Some(format!("{source} {error}; the next start needs it")),
    }
}

impl Texts {
    fn read(config: &Config) -> Result<Self, Vec<Problem>> {
        match (read(&config.policy), read(&config.directory)) {
            (Ok(policy), Ok(directory)) => Ok(Self { policy, directory }),
            (policy, directory) => Err([directory.err(), policy.err()].into_iter().flatten().collect()),
        }
    }

    fn changes_to(&self, new: &Self) -> Vec<Change> {
        let mut all = changes::directory(&self.directory, &new.directory);
        all.extend(changes::policy(&self.policy, &new.policy));
        all
    }
}

fn read(path: &Path) -> Result<String, Problem> {
    files::read_text(path).map_err(|error| Problem {
        file: path.display().to_string(),
        line: None,
        column: None,
        path: String::new(),
        message: error.to_string(),
        denied: error.is_denied(),
    })
}

/// One line for the log.
fn summary(changes: &[Change]) -> String {
    const SHOWN: usize = 20;
    let mut lines: Vec<_> = changes.iter().take(SHOWN).map(ToString::to_string).collect();
    if changes.len() > SHOWN {
        lines.push(format!("and {} more", changes.len() - SHOWN));
    }
    if lines.is_empty() { "none".to_owned() } else { lines.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::control::shards::tests::FakeShard;
    use crate::control::tests::{DIRECTORY, Files, POLICY};

    fn lines(report: &ReloadReport) -> Vec<String> {
        report.changes.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_swap_publishes_both_files_at_once_and_judges_again() {
        let files = Files::new();
        let rulesets = files.rulesets();
        let shard = FakeShard::default();
        let told = Arc::clone(&shard.told);
        rulesets.attach(Shards::from_parts([shard.start()]));
        let mut watch = rulesets.subscribe();
        watch.mark_unchanged();

        files.write_policy(&POLICY.replace("tcp/22", "tcp/23").replace("\"eng\", \"action\"", "\"staff\", \"action\""));
        files.write_directory(
            &DIRECTORY.replace("\"networks\": [\"192.168.8.0/24\"]", "\"networks\": [\"192.168.9.0/24\"]"),
        );
        let report = rulesets.reload().await.unwrap();
        assert_eq!((report.revision, report.judged), (2, true));
        assert_eq!(
            lines(&report),
            ["device bob-phone changed", "rule no-ssh changed", "rule staff added", "rule eng removed"]
        );
        assert_eq!(*told.lock().unwrap(), ["rejudge"]);
        assert!(watch.has_changed().unwrap());
        let seen = Arc::clone(&watch.borrow_and_update());
        assert_eq!(seen.ruleset.revision(), Revision(2));
        assert!(seen.directory.device_by_network("192.168.9.1".parse().unwrap()).is_some());

        let report = rulesets.reload().await.unwrap();
        assert_eq!((report.revision, lines(&report).len()), (3, 0), "the same bytes are judged by again");
        assert_eq!(told.lock().unwrap().len(), 2);

        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        std::fs::write(&files.config.source, format!("{}# new\n", files.config.text)).unwrap();
        let warnings = rulesets.reload().await.unwrap().warnings;
        assert!(matches!(&warnings[..], [one] if one.ends_with("that needs a restart")), "{warnings:?}");
        std::fs::remove_file(&files.config.source).unwrap();
        assert_eq!(rulesets.reload().await.unwrap().warnings.len(), 1);
    }

    #[tokio::test]
    async fn a_bad_file_changes_nothing() {
        let files = Files::new();
        let rulesets = files.rulesets();
        let shard = FakeShard::default();
        let told = Arc::clone(&shard.told);
        rulesets.attach(Shards::from_parts([shard.start()]));
        let before = rulesets.current();
        let mut refused = 0;
        for (policy, directory) in [
            (Some("{"), None),
            (Some(""), None),
            (Some(r#"{"version":1,"rules":[],"rules":[]}"#), None),
            (Some(r#"{"version":1,"rules":[{"id":"x","action":"allow","from":[],"to":["*"]}]}"#), None),
            (None, Some("[]")),
            (None, Some(r#"{"users":{},"devices":{"a":{"user":"nobody","networks":["10.0.0.0/8"]}}}"#)),
            (Some(POLICY), Some(r#"{"users":{},"devices":{}} x"#)),
        ] {
            files.write_policy(policy.unwrap_or(POLICY));
            files.write_directory(directory.unwrap_or(DIRECTORY));
            let error = rulesets.reload().await.unwrap_err();
            refused += 1;
            assert_eq!(error.revision, 1);
            let bad = if directory.is_some() { &files.config.directory } else { &files.config.policy };
            assert!(!error.problems.is_empty());
            assert!(
                error.problems.iter().all(|p| p.file == bad.display().to_string() && p.line.is_some()),
                "{error:?}"
            );
            assert!(Arc::ptr_eq(&before, &rulesets.current()));
            assert_eq!(rulesets.failures().load(Ordering::Relaxed), refused);
            assert_eq!(rulesets.last_reload().problems, error.problems);
        }
        std::fs::remove_file(&files.config.policy).unwrap();
        let error = rulesets.reload().await.unwrap_err();
        assert!(error.problems[0].to_string().starts_with(&files.config.policy.display().to_string()));
        assert!(told.lock().unwrap().is_empty());

        files.write_policy(POLICY);
        files.write_directory(DIRECTORY);
        assert_eq!(rulesets.reload().await.unwrap().revision, 2);
        assert!(rulesets.last_reload().ok);
    }

    #[tokio::test]
    async fn a_barred_device_stays_so_until_a_load_is_taken() {
        let files = Files::new();
        let rulesets = files.rulesets();
        let shard = FakeShard::default();
        let told = Arc::clone(&shard.told);
        rulesets.attach(Shards::from_parts([shard.start()]));
        let before = rulesets.current();
        let disabled = |name: &str| rulesets.current().directory.device(name).unwrap().disabled;
        let behind = |address: &str| {
            let snapshot = rulesets.current();
            snapshot.directory.device_by_network(address.parse().unwrap()).unwrap().disabled
        };
        assert!(!disabled("ann-laptop"));

        files.write_policy("{");
        let report = rulesets.bar("ann-laptop".to_owned()).await.unwrap();
        assert_eq!(report, BarReport { device: "ann-laptop".to_owned(), known: true, judged: true });
        assert!(disabled("ann-laptop") && behind("192.168.7.1"));
        assert_eq!(*told.lock().unwrap(), ["rejudge"]);
        assert!(Arc::ptr_eq(&before.ruleset, &rulesets.current().ruleset), "the policy is the same");
        assert!(rulesets.bar("ann-laptop".to_owned()).await.unwrap().judged);
        assert_eq!(told.lock().unwrap().len(), 2, "asked twice, judged twice");
        assert!(!rulesets.bar("nobody".to_owned()).await.unwrap().known);

        rulesets.set_own_addresses(["198.51.100.1".parse().unwrap()].into()).await;
        rulesets.reload().await.unwrap_err();
        assert!(disabled("ann-laptop"), "neither new addresses nor a refused load lift it");

        files.write_policy(POLICY);
        rulesets.reload().await.unwrap();
        assert!(!disabled("ann-laptop") && !behind("192.168.7.1"));
    }

    #[tokio::test]
    async fn a_refused_load_takes_access_away_all_the_same() {
        let user_disabled = DIRECTORY.replace("\"groups\": [\"eng\"] }", "\"groups\": [\"eng\"], \"disabled\": true }");
        let revoked = DIRECTORY.replace("[\"192.168.7.0/24\"] }", "[\"192.168.7.0/24\"], \"revoked\": true }");
        let removed = r#"{ "users": {}, "devices": {} }"#.to_owned();
        for directory in [user_disabled, revoked, removed] {
            let files = Files::new();
            let rulesets = files.rulesets();
            let shard = FakeShard::default();
            let told = Arc::clone(&shard.told);
            rulesets.attach(Shards::from_parts([shard.start()]));
            files.write_policy("{");
            files.write_directory(&directory);
            let error = rulesets.reload().await.unwrap_err();
            assert_eq!((error.revision, error.barred), (1, vec!["ann-laptop".to_owned()]), "{directory}");
            assert!(rulesets.current().directory.device("ann-laptop").unwrap().disabled);
            assert_eq!(*told.lock().unwrap(), ["rejudge"]);
            assert!(rulesets.reload().await.unwrap_err().barred.is_empty(), "nothing is left to take away");
        }
    }

    #[tokio::test]
    async fn a_refused_load_gives_nobody_access() {
        let files = Files::new();
        let rulesets = files.rulesets();
        files.write_policy("{");
        files.write_directory(&DIRECTORY.replace("\"disabled\": true", "\"disabled\": false"));
        assert!(rulesets.reload().await.unwrap_err().barred.is_empty());
        assert!(rulesets.current().directory.device("bob-phone").unwrap().disabled);
    }

    #[tokio::test]
    async fn reloads_come_one_after_another() {
        let files = Files::new();
        let rulesets = files.rulesets();
        let reloads = (0..8).map(|_| rulesets.reload());
        let mut revisions: Vec<_> =
            futures_util::future::join_all(reloads).await.into_iter().map(|report| report.unwrap().revision).collect();
        revisions.sort_unstable();
        assert_eq!(revisions, [2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[tokio::test]
    async fn own_addresses_are_published_when_they_change() {
        let files = Files::new();
        let rulesets = files.rulesets();
        let before = rulesets.current();
        rulesets.set_own_addresses(Arc::clone(&before.own_addresses)).await;
        assert!(Arc::ptr_eq(&before, &rulesets.current()));
        rulesets.set_own_addresses(["198.51.100.1".parse().unwrap()].into()).await;
        let now = rulesets.current();
        assert_eq!(now.own_addresses[..], ["198.51.100.1".parse::<IpAddr>().unwrap()]);
        assert!(Arc::ptr_eq(&before.ruleset, &now.ruleset), "the revision is the same");
    }
}
