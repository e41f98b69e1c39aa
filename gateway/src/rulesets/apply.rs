//! Policies that come over the control socket: put in force and into the policy file, and back again unless confirmed.
//!
//! A policy is compiled first, then written down in the history, then put in the place of the file, and then in force.
//! Where one of these fails everything is as it was. What is to be confirmed stands in the history too, so a process that
//! is killed goes back in its next life.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_policy::Revision;

use super::{Cause, Rulesets, Texts, compile_policy};
use crate::config::Config;
use crate::control::api::{Problem, ReloadReport};
use crate::control::changes;
use crate::directory::{Directory, DirectoryContext};
use crate::files;
use crate::shard::link::Snapshot;
use crate::state::revisions::{Entry, Pending, Source, sha256};
use crate::state::{DatabaseError, Revisions};

/// How long after it could not go back that is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// A policy to put in force.
#[derive(Debug, Clone)]
pub struct Apply {
    /// What to call the file in problems.
    pub file: String,
    /// Its text.
    pub policy: String,
    /// Who wants it.
    pub cause: Cause,
    /// It goes back after this long, unless it is confirmed.
    pub confirm_within: Option<Duration>,
}

/// Why a policy was not put in force. What was in force stays.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It is bad, or does not fit the directory or the configuration.
    #[error("the policy is bad, revision {0} stays in force")]
    Bad(u64, Vec<Problem>),
    /// Another one is to be confirmed first.
    #[error(
        "revision {}{} is to be confirmed first (`policy confirm`), or undone (`policy rollback {}`); it goes back at {:.0}",
        .pending.revision, .by.as_ref().map(|by| format!(", applied by {by},")).unwrap_or_default(), .pending.back_to,
        .pending.until
    )]
    Pending {
        /// It.
        pending: Pending,
        /// Who applied it.
        by: Option<String>,
    },
    /// Nothing is to be confirmed.
    #[error("there is nothing to confirm")]
    NothingPending,
    /// There is no such revision.
    #[error("there is no revision {0} in the history")]
    NoRevision(u64),
    /// The revision is there, but not its policy.
    #[error("the text of revision {0} was dropped from the history to save room")]
    NoText(u64),
    /// Without a history there is no way back.
    #[error("there is no history: the state directory {0} cannot be used")]
    NoHistory(String),
    /// The history cannot be written.
    #[error("the history cannot be written: {0}")]
    History(#[from] DatabaseError),
    /// The file was edited since it was loaded.
    #[error("{0} was edited since it was loaded; reload it or undo the edit first, or it would be lost")]
    Edited(String),
    /// The file cannot be replaced.
    #[error("{file} cannot be replaced: {source}")]
    File {
        /// The policy file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A task of the gateway did not come to its end.
    #[error("the gateway could not finish this: {0}")]
    Unfinished(#[from] tokio::task::JoinError),
}

/// What a policy that was put in force did.
#[derive(Debug)]
pub struct Applied {
    /// As after a reload.
    pub report: ReloadReport,
    /// Until when it is to be confirmed.
    pub confirm_until: Option<Timestamp>,
}

impl Rulesets {
    /// Where revisions are written down.
    ///
    /// # Errors
    ///
    /// There is no place for it.
    pub fn history(&self) -> Result<Arc<Revisions>, ApplyError> {
        let none = || ApplyError::NoHistory(self.config.state_dir.display().to_string());
        self.history.clone().ok_or_else(none)
    }

    /// What is to be confirmed.
    pub fn pending(&self) -> Option<Pending> {
        self.history.as_ref().and_then(|history| history.pending())
    }

    /// Puts a policy in force and into the policy file, whole or not at all. Returns when live flows have been judged. It
    /// goes on to its end when the future is dropped.
    ///
    /// # Errors
    ///
    /// Nothing has changed then.
    pub async fn apply(self: &Arc<Self>, apply: Apply) -> Result<Applied, ApplyError> {
        let this = Arc::clone(self);
        tokio::spawn(async move { this.put(apply, None).await }).await?
    }

    /// Puts the policy of an earlier revision in force again, as a new revision. While something is to be confirmed that
    /// can only be the revision that would come back, and then nothing is to be confirmed any more.
    ///
    /// # Errors
    ///
    /// Nothing has changed then.
    pub async fn roll_back(self: &Arc<Self>, to: u64, mut cause: Cause) -> Result<Applied, ApplyError> {
        let history = self.history()?;
        let found = tokio::task::spawn_blocking(move || history.find(to)).await??;
        let (_, policy) = found.ok_or(ApplyError::NoRevision(to))?;
        let policy = policy.ok_or(ApplyError::NoText(to))?;
        cause.back_to = Some(to);
        self.apply(Apply { file: format!("revision {to}"), policy, cause, confirm_within: None }).await
    }

    /// The policy that is to be confirmed stays. Returns its revision.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn confirm(&self) -> Result<u64, ApplyError> {
        let _swap = self.loaded.lock().await;
        let history = self.history()?;
        tokio::task::spawn_blocking(move || {
            let pending = history.pending().ok_or(ApplyError::NothingPending)?;
            history.settle()?;
            Ok(pending.revision)
        })
        .await?
    }

    /// Goes back in time when what is to be confirmed is not. Call at the start, on a tokio runtime.
    pub fn watch_pending(self: &Arc<Self>) {
        if let Some(pending) = self.pending() {
            self.go_back_at(pending);
        }
    }

    fn go_back_at(self: &Arc<Self>, pending: Pending) {
        let this = Arc::clone(self);
        let left = Duration::try_from(pending.until.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::spawn(async move {
            tokio::time::sleep(left).await;
            while !this.go_back(pending).await {
                tokio::time::sleep(TRY_AGAIN).await;
            }
        });
    }

    /// Goes back to the policy before the one that was not confirmed. `false`: it could not, and may later.
    pub(super) async fn go_back(self: &Arc<Self>, pending: Pending) -> bool {
        let Ok(history) = self.history() else { return true };
        let found = tokio::task::spawn_blocking(move || history.find(pending.back_to)).await;
        let Ok(Ok(Some((_, Some(policy))))) = found else {
            // What may come back is never pruned.
            tracing::error!(revision = pending.back_to, "cannot go back: the revision cannot be read");
            return false;
        };
        let cause = Cause { back_to: Some(pending.back_to), ..Cause::of(Source::Revert) };
        let file = format!("revision {}", pending.back_to);
        let apply = Apply { file, policy, cause, confirm_within: None };
        match self.put(apply, Some(pending)).await {
            Ok(applied) => {
                let (revision, back_to) = (applied.report.revision, pending.back_to);
                tracing::warn!(revision, back_to, "revision {} was not confirmed: back", pending.revision);
                true
            }
            // It was confirmed, or overtaken, at the last moment.
            Err(ApplyError::NothingPending) => true,
            Err(error) => {
                if let ApplyError::Bad(_, problems) = &error {
                    problems.iter().for_each(|problem| tracing::warn!(%problem, "bad file"));
                }
                tracing::error!(%error, "revision {} was not confirmed, but cannot go back", pending.revision);
                matches!(error, ApplyError::Bad(..))
            }
        }
    }

    /// `expected`: what must still be to be confirmed, when it is what was not.
    async fn put(self: &Arc<Self>, apply: Apply, expected: Option<Pending>) -> Result<Applied, ApplyError> {
        let history = self.history()?;
        let mut loaded = self.loaded.lock().await;
        let before = self.current();
        let revision = before.ruleset.revision();
        let next = Revision(revision.0 + 1);
        let source = apply.cause.source;
        let confirm_until = apply.confirm_within.map(|within| {
            let within = SignedDuration::try_from(within).unwrap_or(SignedDuration::MAX);
            let until = Timestamp::now().saturating_add(within).unwrap_or(Timestamp::MAX);
            // As exact as the history has it.
            Timestamp::from_microsecond(until.as_microsecond()).unwrap_or(until)
        });
        let putting = Putting {
            config: Arc::clone(&self.config),
            history,
            directory: Arc::clone(&before.directory),
            in_force: loaded.clone(),
            revision,
            next,
            pending: confirm_until.map(|until| Pending { revision: next.0, back_to: revision.0, until }),
            expected,
        };
        let (texts, ruleset, directory) = tokio::task::spawn_blocking(move || putting.put(apply)).await??;
        let changes = changes::policy(&loaded.policy, &texts.policy);
        *loaded = texts;
        self.remember_refused(None);
        self.publish.send_replace(Arc::new(Snapshot {
            ruleset,
            directory,
            own_addresses: Arc::clone(&before.own_addresses),
        }));
        let judged = self.judge_again().await;
        if let Some(until) = confirm_until {
            self.go_back_at(Pending { revision: next.0, back_to: revision.0, until });
        }
        let summary = super::summary(&changes);
        tracing::info!(revision = next.0, source = source.as_str(), changes = summary, judged, "policy put in force");
        let report = ReloadReport { revision: next.0, changes, judged, warnings: Vec::new() };
        Ok(Applied { report, confirm_until })
    }
}

/// One policy on its way, off the thread that answers the control socket.
struct Putting {
    config: Arc<Config>,
    history: Arc<Revisions>,
    directory: Arc<Directory>,
    in_force: Texts,
    revision: Revision,
    next: Revision,
    pending: Option<Pending>,
    expected: Option<Pending>,
}

type Put = (Texts, Arc<portcullis_policy::Ruleset>, Arc<Directory>);

impl Putting {
    fn put(self, apply: Apply) -> Result<Put, ApplyError> {
        let Self { config, history, directory, in_force, revision, next, pending, expected } = self;
        let waiting = history.pending();
        match (waiting, expected) {
            (Some(waiting), None) if !apply.cause.undoes(waiting) => {
                let by = history.find(waiting.revision)?.and_then(|(entry, _)| entry.who());
                return Err(ApplyError::Pending { pending: waiting, by });
            }
            (waiting, Some(_)) if waiting != expected => return Err(ApplyError::NothingPending),
            (Some(_), _) | (None, None | Some(_)) => {}
        }
        let now = Timestamp::now();
        let bad = |problems| ApplyError::Bad(revision.0, problems);
        let compiled = compile_policy(&config, &directory, Path::new(&apply.file), &apply.policy, next, now);
        let (ruleset, directory) = compiled.map_err(|problems| {
            if expected.is_some() {
                // It is never going to fit; asking again and again would help nobody.
                let _ = history.settle();
            }
            bad(problems)
        })?;
        let file = config.policy.display().to_string();
        let on_disk = files::read_text(&config.policy).ok();
        let edited = on_disk.is_none_or(|text| text != in_force.policy && text != apply.policy);
        if edited && expected.is_none() {
            return Err(ApplyError::Edited(file));
        }
        let texts = Texts { policy: apply.policy, directory: in_force.directory };
        let entry = apply.cause.entry(next, now, &texts);
        history.record(&entry, &texts.policy, pending)?;
        if edited {
            tracing::warn!(file, "edited since it was loaded, and left as it is: a reload takes it up");
        } else if let Err(source) = files::replace(&config.policy, &texts.policy) {
            history.unrecord(next.0)?;
            return Err(ApplyError::File { file, source });
        }
        if waiting.is_some() {
            // Not before: whoever dies in between goes back in the next life.
            history.settle()?;
        }
        Ok((texts, ruleset, directory))
    }
}

impl Cause {
    /// Whether this is somebody who goes back where `waiting` would go by itself.
    fn undoes(&self, waiting: Pending) -> bool {
        self.source == Source::Rollback && self.back_to == Some(waiting.back_to)
    }
}

/// A load brought another policy than the one that is to be confirmed: whoever edited the file has decided.
pub(super) fn overtaken(history: &Revisions) {
    if let Some(pending) = history.pending() {
        tracing::warn!(
            revision = pending.revision,
            "overtaken by an edit of the policy file: nothing is to be confirmed"
        );
        if let Err(error) = history.settle() {
            tracing::warn!(%error, "the history cannot be written");
        }
    }
}

/// What a start begins with.
pub(super) struct Beginning {
    pub(super) revision: Revision,
    pub(super) texts: Texts,
    /// What is to be written down, unless the texts are what was in force last.
    pub(super) cause: Option<Cause>,
    /// The policy is another than the one that is to be confirmed. It has yet to show that it is a policy.
    pub(super) overtakes: bool,
    /// Where revisions are written down in this life.
    pub(super) history: Option<Arc<Revisions>>,
}

/// What a start begins with. A policy that was not confirmed in time goes back here, before anything is served.
pub(super) fn resume(
    config: &Config,
    own_key: Option<[u8; 32]>,
    history: Option<Arc<Revisions>>,
    texts: Texts,
    now: Timestamp,
) -> Beginning {
    let anew = |texts| Beginning { revision: Revision(1), texts, cause: None, overtakes: false, history: None };
    let Some(history) = history else { return anew(texts) };
    let (newest, last) = match history.newest().and_then(|newest| Ok((newest, history.last()?))) {
        Ok(known) => known,
        Err(error) => {
            // A number that is in it already must not be given to something else.
            tracing::warn!(%error, "the history cannot be read: nothing is written into it until the next start");
            return anew(texts);
        }
    };
    let mut beginning = Beginning {
        revision: Revision(newest + 1),
        texts,
        cause: Some(Cause::of(Source::Start)),
        overtakes: false,
        history: Some(Arc::clone(&history)),
    };
    if let Some(pending) = history.pending() {
        match history.find(pending.revision) {
            Ok(waiting) if waiting.as_ref().is_none_or(|(waiting, _)| !same_policy(waiting, &beginning.texts)) => {
                beginning.overtakes = true;
            }
            Ok(_) if pending.until <= now => {
                if let Some(policy) = back(config, own_key, &history, pending, &beginning.texts.directory, now) {
                    beginning.cause = Some(Cause { back_to: Some(pending.back_to), ..Cause::of(Source::Revert) });
                    beginning.texts.policy = policy;
                    return beginning;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the history cannot be read"),
        }
    }
    if let Some(last) = last.filter(|last| {
        same_policy(last, &beginning.texts) && last.directory_sha256 == sha256(&beginning.texts.directory)
    }) {
        beginning.revision = Revision(last.revision);
        beginning.cause = None;
    }
    beginning
}

fn same_policy(entry: &Entry, texts: &Texts) -> bool {
    entry.policy_sha256 == sha256(&texts.policy)
}

/// The policy before the one that nobody confirmed, back in its file; `None` where that cannot be.
fn back(
    config: &Config,
    own_key: Option<[u8; 32]>,
    history: &Revisions,
    pending: Pending,
    directory: &str,
    now: Timestamp,
) -> Option<String> {
    let Pending { revision, back_to, .. } = pending;
    let stays = |why: String| {
        tracing::error!(why, "revision {revision} was not confirmed, but cannot go back to {back_to}: it stays");
        None
    };
    let policy = match history.find(back_to) {
        Ok(Some((_, Some(policy)))) => policy,
        Ok(Some((_, None)) | None) => return stays("it is not in the history".to_owned()),
        Err(error) => return stays(error.to_string()),
    };
    // A bad directory stops the start anyway, and says why.
    let directory = Directory::parse(directory, &DirectoryContext::new(config, own_key)).ok()?;
    let name = format!("revision {back_to}");
    if let Err(problems) = compile_policy(config, &directory, Path::new(&name), &policy, Revision(back_to), now) {
        let _ = history.settle();
        return stays(problems.first().map(ToString::to_string).unwrap_or_default());
    }
    if let Err(error) = files::replace(&config.policy, &policy).map_err(|error| error.to_string()) {
        return stays(error);
    }
    if let Err(error) = history.settle() {
        tracing::warn!(%error, "the history cannot be written");
    }
    tracing::warn!("revision {revision} was not confirmed: back to the policy of revision {back_to}");
    Some(policy)
}
