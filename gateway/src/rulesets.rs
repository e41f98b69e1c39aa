//! Policy and directory in force: loaded, swapped whole, and judged by again.
//!
//! Each load that is taken is a revision, with a number of its own for as long as the state directory lives. [`apply`] puts
//! in force what is not in the files yet.

pub mod apply;
pub mod reporting;
mod static_file;

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use portcullis_policy::{Context, DEFAULT_NETWORK, KnownDevice, KnownUser, Revision, Ruleset, json};
use tokio::sync::watch;

use crate::config::Config;
use crate::control::api::{BarReport, Change, LastReload, Problem, ReloadReport};
use crate::control::changes;
use crate::control::shards::Shards;
use crate::directory::{Device, Directory, DirectoryContext};
use crate::files;
use crate::host::Steering;
use crate::posture::Reports;
use crate::shard::link::Snapshot;
use crate::state::revisions::{Entry, Source, sha256};
use crate::state::{Kept, ReportStore, Revisions};
use static_file::StaticFile;

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
    /// `None` without a TUN device.
    steering: OnceLock<Steering>,
    /// Held for the whole of a swap, so that swaps come one after another.
    loaded: tokio::sync::Mutex<Texts>,
    last: Mutex<LastReload>,
    /// What was refused, while nothing was taken since.
    refused: Mutex<Option<Mark>>,
    failures: Arc<AtomicU64>,
    /// Where revisions are written down; `None` where there is no place for it.
    history: Option<Arc<Revisions>>,
    /// What is reported of devices. Changed only with the lock of swaps held.
    reports: Mutex<Arc<Reports>>,
    /// Where that is written down; `None` where there is no place for it.
    report_store: Option<Arc<ReportStore>>,
}

/// What had a load happen, and who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What.
    pub source: Source,
    /// The user at the other end of the control socket.
    pub uid: Option<u32>,
    /// What that one said about it.
    pub message: Option<String>,
    /// Why it was rolled back.
    pub reason: Option<String>,
    /// The revision whose policy it is again.
    pub back_to: Option<u64>,
}

impl Cause {
    /// Nobody in particular.
    pub fn of(source: Source) -> Self {
        Self { source, uid: None, message: None, reason: None, back_to: None }
    }

    /// A user of the control socket.
    pub fn by(source: Source, uid: u32) -> Self {
        Self { uid: Some(uid), ..Self::of(source) }
    }

    fn entry(&self, revision: Revision, at: Timestamp, texts: &Texts) -> Entry {
        let Self { source, uid, message, reason, back_to } = self.clone();
        Entry {
            revision: revision.0,
            at,
            source,
            uid,
            policy_sha256: sha256(&texts.policy),
            directory_sha256: sha256(&texts.directory),
            message,
            reason,
            back_to,
        }
    }
}

/// The files in force, as they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Texts {
    policy: String,
    directory: String,
}

/// What tells what was read of the files from what is read of them later: the hashes of their texts, or why they have
/// none.
type Mark = Result<[String; 2], Vec<Problem>>;

/// What was read of the files.
struct Read {
    texts: Result<Texts, Vec<Problem>>,
    mark: Mark,
}

impl From<Result<Texts, Vec<Problem>>> for Read {
    fn from(texts: Result<Texts, Vec<Problem>>) -> Self {
        let mark = match &texts {
            Ok(texts) => Ok([sha256(&texts.policy), sha256(&texts.directory)]),
            Err(problems) => Err(problems.clone()),
        };
        Self { texts, mark }
    }
}

impl Rulesets {
    /// Loads both files: as the newest revision of the history when they are what that was, else as the next.
    ///
    /// # Errors
    ///
    /// Every problem of both files.
    pub fn load(
        config: Arc<Config>,
        own_key: Option<[u8; 32]>,
        own_addresses: Arc<[IpAddr]>,
        Kept { history, reports: report_store }: Kept,
    ) -> Result<Self, Vec<Problem>> {
        let now = Timestamp::now();
        let texts = Texts::read(&config)?;
        let apply::Beginning { revision, texts, cause, overtakes, history } =
            apply::resume(&config, own_key, history, texts, now);
        let mut reports = reporting::remembered(report_store.as_deref());
        let snapshot = compile(&config, own_key, &texts, &reports, own_addresses, revision, now)?;
        reporting::forget_at_start(&mut reports, &snapshot.directory, report_store.as_deref());
        if let Some(history) = &history {
            if overtakes {
                apply::overtaken(history);
            }
            if let Some(cause) = cause {
                note(history, &cause.entry(revision, now, &texts), &texts.policy);
            }
        }
        Ok(Self {
            config,
            own_key,
            publish: watch::Sender::new(Arc::new(snapshot)),
            shards: OnceLock::new(),
            steering: OnceLock::new(),
            loaded: tokio::sync::Mutex::new(texts),
            last: Mutex::new(LastReload { at: now, ok: true, problems: Vec::new() }),
            refused: Mutex::default(),
            failures: Arc::default(),
            history,
            reports: Mutex::new(Arc::new(reports)),
            report_store,
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

    /// The gateway's own public key, where there is a WireGuard on-ramp.
    pub fn own_key(&self) -> Option<[u8; 32]> {
        self.own_key
    }

    /// What `gateway.toml` says that does not count before the next start. Reads the file.
    pub fn config_warning(&self) -> Option<String> {
        StaticFile::read(&self.config).into_warning()
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
    pub async fn reload(self: &Arc<Self>, cause: Cause) -> Result<ReloadReport, ReloadError> {
        let this = Arc::clone(self);
        let revision = self.current().ruleset.revision().0;
        let reloaded = tokio::spawn(async move {
            let mut loaded = this.loaded.lock().await;
            let read = this.read().await;
            this.swap(&mut loaded, read, cause).await
        });
        reloaded.await.unwrap_or_else(|error| {
            let problems = vec![self.unfinished(format!("the reload stopped: {error}"))];
            Err(ReloadError { revision, problems, barred: Vec::new() })
        })
    }

    /// As [`reload`](Self::reload), when the files say something else than what was taken or refused last. Whether they
    /// do. It stops where it is when the future is dropped.
    pub async fn reload_edited(&self) -> bool {
        let mut loaded = self.loaded.lock().await;
        let read = self.read().await;
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if refused.as_ref() == Some(&read.mark) {
            return false;
        }
        // A mistake that was taken back is loaded like any other edit: it may have barred somebody.
        if refused.is_none() && read.texts.as_ref().is_ok_and(|texts| *texts == *loaded) {
            return false;
        }
        tracing::info!("policy or directory changed: loading both");
        // What it found is in the log; nobody waits for it.
        let _ = self.swap(&mut loaded, read, Cause::of(Source::Watch)).await;
        true
    }

    async fn read(&self) -> Read {
        let config = Arc::clone(&self.config);
        let read = tokio::task::spawn_blocking(move || Read::from(Texts::read(&config)));
        read.await.unwrap_or_else(|panic| Read::from(Err(vec![self.unfinished(format!("could not be read: {panic}"))])))
    }

    fn unfinished(&self, message: String) -> Problem {
        let file = self.config.policy.display().to_string();
        Problem { file, line: None, column: None, path: String::new(), message, denied: false }
    }

    async fn swap(&self, loaded: &mut Texts, read: Read, cause: Cause) -> Result<ReloadReport, ReloadError> {
        let before = self.current();
        let (config, own) = (Arc::clone(&self.config), Arc::clone(&before.own_addresses));
        let (own_key, reports) = (self.own_key, self.reports());
        let next = Revision(before.ruleset.revision().0 + 1);
        let Read { texts, mark } = read;
        // Up to 32 MiB are compiled: not on the thread that answers the control socket.
        let compiled = tokio::task::spawn_blocking(move || {
            let texts = texts?;
            let snapshot = compile(&config, own_key, &texts, &reports, own, next, Timestamp::now())?;
            Ok((texts, snapshot, StaticFile::read(&config)))
        });
        let result = compiled
            .await
            .unwrap_or_else(|panic| Err(vec![self.unfinished(format!("could not be compiled: {panic}"))]));
        self.remember_refused(result.is_err().then_some(mark));
        match result {
            Ok((texts, snapshot, file)) => {
                let mut changes = loaded.changes_to(&texts);
                let other_policy = loaded.policy != texts.policy;
                *loaded = texts;
                self.remember(Vec::new());
                self.publish.send_replace(Arc::new(snapshot));
                let judged = self.judge_again().await;
                // Afterwards: what takes access away does not wait for a disk.
                self.write_down(cause, next, loaded.clone(), other_policy).await;
                self.forget_strangers(&self.current().directory).await;
                let (steered, warnings) = self.steer(file).await;
                changes.extend(steered);
                for warning in &warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!(revision = next.0, changes = summary(&changes), judged, "policy and directory loaded");
                Ok(ReloadReport { revision: next.0, changes, judged, warnings })
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

    /// Writes a load that was taken into the history.
    async fn write_down(&self, cause: Cause, revision: Revision, texts: Texts, other_policy: bool) {
        let Some(history) = self.history.clone() else { return };
        let written = tokio::task::spawn_blocking(move || {
            if other_policy {
                apply::overtaken(&history);
            }
            note(&history, &cause.entry(revision, Timestamp::now(), &texts), &texts.policy);
        });
        if let Err(error) = written.await {
            tracing::error!(%error, "the history is not written any more");
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

    fn remember_refused(&self, refused: Option<Mark>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    fn remember(&self, problems: Vec<Problem>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            LastReload { at: Timestamp::now(), ok: problems.is_empty(), problems };
    }
}

/// Writes down a load that was taken. One that cannot be written down counts all the same: it may take access away.
fn note(history: &Revisions, entry: &Entry, policy: &str) {
    if let Err(error) = history.record(entry, policy, None) {
        tracing::warn!(revision = entry.revision, %error, "the revision is missing from the history");
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
    compile(config, own_key, &Texts::read(config)?, &Reports::default(), own_addresses, Revision(1), now)
}

/// The names that a policy may use.
pub fn policy_context<'a>(config: &'a Config, directory: &'a Directory) -> Context<'a> {
    let user = |(name, user): (&'a Arc<str>, &'a crate::directory::User)| {
        (&**name, KnownUser { groups: &user.groups, network: &user.network, disabled: user.disabled })
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
        networks: std::iter::once(DEFAULT_NETWORK).chain(config.networks.iter().map(|name| &**name)).collect(),
        offramps: config.offramps.iter().map(|offramp| &*offramp.name).collect(),
    }
}

fn compile(
    config: &Config,
    own_key: Option<[u8; 32]>,
    texts: &Texts,
    reports: &Reports,
    own_addresses: Arc<[IpAddr]>,
    revision: Revision,
    now: Timestamp,
) -> Result<Snapshot, Vec<Problem>> {
    // A policy is read against its directory: while that one is bad, names in the policy prove nothing.
    let directory = Directory::parse(&texts.directory, &DirectoryContext::new(config, own_key))
        .map_err(|problems| in_file(&config.directory, problems))?;
    let directory = directory.with_reports(reports);
    let (ruleset, directory) = compile_policy(config, &directory, &config.policy, &texts.policy, revision, now)?;
    Ok(Snapshot { ruleset, directory, own_addresses })
}

/// A policy against a directory, and the directory with the groups that the policy makes.
fn compile_policy(
    config: &Config,
    directory: &Directory,
    file: &Path,
    text: &str,
    revision: Revision,
    now: Timestamp,
) -> Result<(Arc<Ruleset>, Arc<Directory>), Vec<Problem>> {
    let ruleset = Ruleset::compile(text.as_bytes(), &policy_context(config, directory), revision, now)
        .map_err(|problems| in_file(file, problems))?;
    for warning in ruleset.warnings() {
        tracing::warn!(warning = %warning.in_file(file.display()), "policy");
    }
    let directory = Arc::new(directory.in_groups_of(&ruleset));
    Ok((Arc::new(ruleset), directory))
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
mod tests;
