//! The history of policies in force, in `state.db`: one row for each load that was taken, and the text of its policy.
//!
//! Of the directory only the hash is kept: it holds preshared keys, and nothing goes back to an old one.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use nix::unistd::{Uid, User};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::database::{Database, DatabaseError};

/// How many revisions are kept. Beyond it the oldest of those go that changed nothing, and then the oldest.
pub const KEPT: u32 = 200;
/// Bytes of the policy texts that are kept, each different text once. Beyond it a revision stays without its text, those
/// first whose text was in force longest ago; the text in force stays whatever its size.
pub const KEPT_BYTES: u64 = 256 << 20;

/// What had a policy loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The start of the process.
    Start,
    /// `portcullis reload`, or SIGHUP.
    Reload,
    /// The file changed.
    Watch,
    /// `portcullis policy apply`.
    Apply,
    /// `portcullis policy rollback`.
    Rollback,
    /// A policy that was to be confirmed and was not.
    Revert,
}

impl Source {
    const ALL: [Self; 6] = [Self::Start, Self::Reload, Self::Watch, Self::Apply, Self::Rollback, Self::Revert];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Reload => "reload",
            Self::Watch => "watch",
            Self::Apply => "apply",
            Self::Rollback => "rollback",
            Self::Revert => "revert",
        }
    }
}

/// A load that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number.
    pub revision: u64,
    /// When it was put in force.
    pub at: Timestamp,
    /// By what.
    pub source: Source,
    /// The user who asked for it over the control socket.
    pub uid: Option<u32>,
    /// SHA-256 of the policy's text, in hexadecimal digits.
    pub policy_sha256: String,
    /// SHA-256 of the directory's text.
    pub directory_sha256: String,
    /// What whoever applied it said.
    pub message: Option<String>,
    /// Why it was rolled back.
    pub reason: Option<String>,
    /// The revision whose policy this is again.
    pub back_to: Option<u64>,
}

impl Entry {
    /// The user who asked for it, by name where it has one on this host.
    pub fn who(&self) -> Option<String> {
        self.uid.map(|uid| match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => user.name,
            Ok(None) | Err(_) => format!("uid {uid}"),
        })
    }
}

/// A policy that goes back unless it is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The revision to confirm.
    pub revision: u64,
    /// The one whose policy comes back.
    pub back_to: u64,
    /// When.
    pub until: Timestamp,
}

/// SHA-256 of a text, in hexadecimal digits.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The history. Its methods block on the disk, but for [`pending`](Self::pending).
#[derive(Debug)]
pub struct Revisions {
    database: Mutex<Database>,
    /// As in the database.
    pending: Mutex<Option<Pending>>,
}

impl Revisions {
    /// Opens the history in the database at `path`.
    ///
    /// # Errors
    ///
    /// There is no such place, or what is there is no database of this release.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        let mut database = Database::open(path)?;
        let connection = database.connection();
        // What is to be confirmed must not be forgotten by a loss of power that the policy file survives.
        connection.pragma_update(None, "synchronous", "full")?;
        let row = connection.query_row("SELECT revision, back_to, until FROM pending", [], pending).optional()?;
        Ok(Self { database: Mutex::new(database), pending: Mutex::new(row.flatten()) })
    }

    fn with<R>(&self, work: impl FnOnce(&mut Connection) -> Result<R, rusqlite::Error>) -> Result<R, DatabaseError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(work(database.connection())?)
    }

    fn now_pending(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down a load with the text of its policy. What is to be confirmed is `pending` from then on; `None` leaves
    /// that as it is.
    pub fn record(&self, entry: &Entry, policy: &str, pending: Option<Pending>) -> Result<(), DatabaseError> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT INTO policies (sha256, text) VALUES (?, ?)
                 ON CONFLICT (sha256) DO UPDATE SET text = excluded.text WHERE octet_length(text) = 0",
                params![entry.policy_sha256, policy],
            )?;
            transaction.execute(
                "INSERT INTO revisions (revision, at, source, uid, policy, directory, message, reason, back_to)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    number(entry.revision),
                    entry.at.as_microsecond(),
                    entry.source.as_str(),
                    entry.uid,
                    entry.policy_sha256,
                    entry.directory_sha256,
                    entry.message,
                    entry.reason,
                    entry.back_to.map(number),
                ],
            )?;
            if pending.is_some() {
                set_pending(&transaction, pending)?;
            }
            prune(&transaction, KEPT_BYTES)?;
            transaction.commit()
        })?;
        if pending.is_some() {
            *self.now_pending() = pending;
        }
        Ok(())
    }

    /// Takes back the newest row, whose policy did not come into force after all, and that it is to be confirmed.
    pub fn unrecord(&self, revision: u64) -> Result<(), DatabaseError> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM revisions WHERE revision = ?", [number(revision)])?;
            transaction.execute("DELETE FROM pending WHERE revision = ?", [number(revision)])?;
            transaction.commit()
        })?;
        self.now_pending().take_if(|pending| pending.revision == revision);
        Ok(())
    }

    /// Nothing is to be confirmed any more.
    pub fn settle(&self) -> Result<(), DatabaseError> {
        self.with(|connection| set_pending(connection, None))?;
        *self.now_pending() = None;
        Ok(())
    }

    /// What is to be confirmed. It is in memory too, and never waits for the disk.
    pub fn pending(&self) -> Option<Pending> {
        *self.now_pending()
    }

    /// Every revision that is kept, newest first.
    pub fn list(&self) -> Result<Vec<Entry>, DatabaseError> {
        self.with(|connection| {
            let mut statement = connection.prepare("SELECT * FROM revisions ORDER BY revision DESC")?;
            let rows = statement.query_map([], |row| Ok(entry(row)))?.collect::<Result<Vec<_>, _>>()?;
            Ok(rows.into_iter().flatten().collect())
        })
    }

    /// The number of the newest revision, 0 where there is none. Unlike [`last`](Self::last) it counts one that makes no
    /// sense to this release.
    pub fn newest(&self) -> Result<u64, DatabaseError> {
        let newest = "SELECT coalesce(max(revision), 0) FROM revisions";
        let newest: i64 = self.with(|connection| connection.query_row(newest, [], |row| row.get(0)))?;
        Ok(u64::try_from(newest).unwrap_or_default())
    }

    /// The newest revision.
    pub fn last(&self) -> Result<Option<Entry>, DatabaseError> {
        let row = self.with(|connection| {
            let newest = "SELECT * FROM revisions ORDER BY revision DESC LIMIT 1";
            connection.query_row(newest, [], |row| Ok(entry(row))).optional()
        })?;
        Ok(row.flatten())
    }

    /// A revision, when it is kept, and the text of its policy, unless that was dropped to save room.
    pub fn find(&self, revision: u64) -> Result<Option<(Entry, Option<String>)>, DatabaseError> {
        let row = self.with(|connection| {
            let one = "SELECT revisions.*, policies.text FROM revisions
                       JOIN policies ON policies.sha256 = revisions.policy WHERE revision = ?";
            let found = |row: &Row<'_>| Ok((entry(row), row.get::<_, String>("text")?));
            connection.query_row(one, [number(revision)], found).optional()
        })?;
        Ok(row.and_then(|(entry, text)| Some((entry?, Some(text).filter(|text| !text.is_empty())))))
    }
}

/// SQLite's numbers have a sign; a gateway does not live to load 2^63 policies.
fn number(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn set_pending(connection: &Connection, pending: Option<Pending>) -> Result<(), rusqlite::Error> {
    connection.execute("DELETE FROM pending", [])?;
    if let Some(Pending { revision, back_to, until }) = pending {
        let row = params![number(revision), number(back_to), until.as_microsecond()];
        connection.execute("INSERT INTO pending (revision, back_to, until) VALUES (?, ?, ?)", row)?;
    }
    Ok(())
}

/// Deletes the oldest revisions beyond [`KEPT`], texts that none has, and the oldest texts beyond `kept_bytes`. What is to
/// be confirmed and what may come back stay.
fn prune(connection: &Connection, kept_bytes: u64) -> Result<(), rusqlite::Error> {
    let rows: u32 = connection.query_row("SELECT count(*) FROM revisions", [], |row| row.get(0))?;
    if rows > KEPT {
        connection.execute(
            "DELETE FROM revisions WHERE revision IN (
                 SELECT revision FROM (
                     SELECT revision, policy, directory, lag(policy) OVER byage AS policy_before,
                            lag(directory) OVER byage AS directory_before, lead(revision) OVER byage AS next
                     FROM revisions WINDOW byage AS (ORDER BY revision)
                 ) WHERE policy = policy_before AND directory = directory_before AND next IS NOT NULL
                 AND revision NOT IN (SELECT back_to FROM pending UNION SELECT revision FROM pending)
                 ORDER BY revision LIMIT ?
             )",
            [rows - KEPT],
        )?;
        connection.execute(
            "DELETE FROM revisions
             WHERE revision NOT IN (SELECT revision FROM revisions ORDER BY revision DESC LIMIT ?)
             AND revision NOT IN (SELECT back_to FROM pending UNION SELECT revision FROM pending)",
            [KEPT],
        )?;
    }
    connection.execute("DELETE FROM policies WHERE sha256 NOT IN (SELECT policy FROM revisions)", [])?;
    loop {
        let bytes: i64 =
            connection.query_row("SELECT coalesce(sum(octet_length(text)), 0) FROM policies", [], |row| row.get(0))?;
        if u64::try_from(bytes).unwrap_or_default() <= kept_bytes {
            return Ok(());
        }
        // Empty is what was dropped: no policy that was in force is.
        let oldest = "UPDATE policies SET text = '' WHERE sha256 = (
                          SELECT policy FROM revisions JOIN policies ON sha256 = policy
                          WHERE octet_length(text) > 0 AND policy NOT IN (
                              SELECT policy FROM revisions WHERE revision IN (SELECT back_to FROM pending)
                          )
                          GROUP BY policy HAVING max(revision) < (SELECT max(revision) FROM revisions)
                          ORDER BY max(revision) LIMIT 1
                      )";
        if connection.execute(oldest, [])? == 0 {
            return Ok(());
        }
    }
}

fn pending(row: &Row<'_>) -> Result<Option<Pending>, rusqlite::Error> {
    let (revision, back_to, until): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let positive = |number: i64| u64::try_from(number).ok();
    let Some((revision, back_to)) = positive(revision).zip(positive(back_to)) else { return Ok(None) };
    Ok(Timestamp::from_microsecond(until).ok().map(|until| Pending { revision, back_to, until }))
}

/// A row, unless it makes no sense.
fn entry(row: &Row<'_>) -> Option<Entry> {
    let source: String = row.get("source").ok()?;
    let positive = |number: i64| u64::try_from(number).ok();
    Some(Entry {
        revision: positive(row.get("revision").ok()?)?,
        at: Timestamp::from_microsecond(row.get("at").ok()?).ok()?,
        source: Source::ALL.into_iter().find(|known| known.as_str() == source)?,
        uid: row.get("uid").ok()?,
        policy_sha256: row.get("policy").ok()?,
        directory_sha256: row.get("directory").ok()?,
        message: row.get("message").ok()?,
        reason: row.get("reason").ok()?,
        back_to: row.get::<_, Option<i64>>("back_to").ok()?.and_then(positive),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: u64, policy: &str) -> Entry {
        Entry {
            revision,
            at: "2027-01-01T00:00:00.5Z".parse().unwrap(),
            source: Source::Apply,
            uid: Some(1000),
            policy_sha256: sha256(policy),
            directory_sha256: sha256("{}"),
            message: Some("less".to_owned()),
            reason: None,
            back_to: None,
        }
    }

    fn history() -> (tempfile::TempDir, Revisions) {
        let dir = tempfile::tempdir().unwrap();
        let history = Revisions::open(&dir.path().join("state.db")).unwrap();
        (dir, history)
    }

    #[test]
    fn what_was_recorded_is_read_again_by_the_next_process() {
        let (dir, history) = history();
        assert_eq!((history.last().unwrap(), history.pending(), history.newest().unwrap()), (None, None, 0));
        let pending = Pending { revision: 2, back_to: 1, until: "2027-01-01T00:01:00Z".parse().unwrap() };
        history.record(&entry(1, "old"), "old", None).unwrap();
        let second = Entry { source: Source::Rollback, back_to: Some(1), uid: None, ..entry(2, "new ☃\0") };
        history.record(&second, "new ☃\0", Some(pending)).unwrap();
        drop(history);

        let history = Revisions::open(&dir.path().join("state.db")).unwrap();
        assert_eq!(history.list().unwrap(), [second.clone(), entry(1, "old")]);
        assert_eq!(history.last().unwrap(), Some(second.clone()));
        assert_eq!(history.find(2).unwrap(), Some((second, Some("new ☃\0".to_owned()))));
        assert_eq!(history.find(3).unwrap(), None);
        assert_eq!(history.pending(), Some(pending));
        history.settle().unwrap();
        assert_eq!(history.pending(), None);
        assert!(history.record(&entry(2, "other"), "other", None).is_err(), "a revision is never another one");
        history.unrecord(2).unwrap();
        assert_eq!(history.list().unwrap().len(), 1);
    }

    #[test]
    fn the_oldest_go_but_what_may_come_back_stays() {
        let (_dir, history) = history();
        let pending = Pending { revision: 2, back_to: 1, until: Timestamp::UNIX_EPOCH };
        for revision in 1..=u64::from(KEPT) + 9 {
            let text = format!("policy {}", revision % 7);
            history.record(&entry(revision, &text), &text, Some(pending)).unwrap();
        }
        let kept: Vec<u64> = history.list().unwrap().iter().map(|entry| entry.revision).collect();
        assert_eq!((kept.len(), kept[0], kept[kept.len() - 3..].to_vec()), (202, 209, vec![10, 2, 1]));
        let count = "SELECT count(*) FROM policies";
        let texts: i64 = history.with(|connection| connection.query_row(count, [], |row| row.get(0))).unwrap();
        assert_eq!(texts, 7, "each text is kept once");
        assert_eq!(history.pending(), Some(pending));
        history.settle().unwrap();
        history.record(&entry(210, "x"), "x", None).unwrap();
        assert_eq!(history.find(1).unwrap(), None);

        // However often the same is loaded, it takes nobody's place.
        for revision in 211..1_000 {
            history.record(&entry(revision, "x"), "x", None).unwrap();
        }
        let kept: Vec<u64> = history.list().unwrap().iter().map(|entry| entry.revision).collect();
        assert!(kept.len() == 200 && kept[0] == 999 && kept.contains(&210) && kept.contains(&100), "{kept:?}");
    }

    #[test]
    fn beyond_the_bytes_the_oldest_texts_go_and_their_revisions_stay() {
        let (_dir, history) = history();
        let pending = Pending { revision: 9, back_to: 2, until: Timestamp::UNIX_EPOCH };
        for revision in 1..=9 {
            // Revision 8 has the text of revision 3 again.
            let text = format!("policy {}", if revision == 8 { 3 } else { revision });
            history.record(&entry(revision, &text), &text, (revision == 9).then_some(pending)).unwrap();
        }
        history.with(|connection| prune(connection, 25)).unwrap();
        let with_text = || {
            let has = |revision: &u64| history.find(*revision).unwrap().unwrap().1.is_some();
            (1..=9).filter(has).collect::<Vec<u64>>()
        };
        assert_eq!(with_text(), [2, 3, 8, 9], "what may come back and the last two");
        history.with(|connection| prune(connection, 1)).unwrap();
        assert_eq!(with_text(), [2, 9], "what may be in force stays whatever its size");
        assert_eq!(history.list().unwrap().len(), 9);

        history.record(&entry(10, "policy 5"), "policy 5", None).unwrap();
        assert_eq!(history.find(5).unwrap().unwrap().1.as_deref(), Some("policy 5"), "it is there again");
    }

    #[test]
    fn who_asked_is_named() {
        let by = |uid| Entry { uid, ..entry(1, "") }.who();
        assert_eq!((by(Some(0)).as_deref(), by(None)), (Some("root"), None));
        assert_eq!(by(Some(4_000_000_000)).as_deref(), Some("uid 4000000000"));
    }
}
