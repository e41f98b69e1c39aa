//! `state.db`: its schema, what is read from it and written to it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params};

use super::{Key, Remembered};
use crate::files;

/// How long another reader, such as an administrator's `sqlite3`, is waited for.
const BUSY: Duration = Duration::from_millis(500);
/// What SQLite appends to the name of a database for the files beside it.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// What makes each version of the schema out of the one before, the first out of an empty database. SQLite's `user_version`
/// says how many have been done.
const STEPS: &[&str] = &[
    "
    CREATE TABLE peers (
        key      BLOB    PRIMARY KEY NOT NULL CHECK (length(key) = 32),
        endpoint TEXT    NOT NULL,
        local    TEXT,
        shard    INTEGER NOT NULL,
        shards   INTEGER NOT NULL,
        heard    INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE policies (
        sha256 TEXT PRIMARY KEY NOT NULL,
        text   TEXT NOT NULL
    ) STRICT;
    CREATE TABLE revisions (
        revision  INTEGER PRIMARY KEY NOT NULL,
        at        INTEGER NOT NULL,
        source    TEXT    NOT NULL,
        uid       INTEGER,
        policy    TEXT    NOT NULL REFERENCES policies (sha256),
        directory TEXT    NOT NULL,
        message   TEXT,
        reason    TEXT,
        back_to   INTEGER
    ) STRICT;
    CREATE TABLE pending (
        revision INTEGER NOT NULL,
        back_to  INTEGER NOT NULL,
        until    INTEGER NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE reports (
        device TEXT    NOT NULL,
        key    BLOB,
        fact   TEXT    NOT NULL,
        value  TEXT    NOT NULL,
        at     INTEGER NOT NULL,
        until  INTEGER,
        PRIMARY KEY (device, fact)
    ) STRICT, WITHOUT ROWID;
",
];

/// Why the database is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The file cannot be made or opened.
    #[error("{0}")]
    File(#[from] io::Error),
    /// What is in it is no database, or not a whole one.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// A later release wrote it.
    #[error("its schema is version {0}, of a later release; this one knows {known}", known = STEPS.len())]
    Newer(u32),
    /// Anything else that SQLite says, such as a full disk.
    #[error("{0}")]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Sqlite(error),
        }
    }
}

/// An open database.
#[derive(Debug)]
pub(super) struct Database(Connection);

impl Database {
    /// Opens the database at `path`, mode 0600; makes it where there is none.
    pub(super) fn open(path: &Path) -> Result<Self, DatabaseError> {
        // SQLite would make it with the rights that the umask leaves.
        let file = files::open_private(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        drop(file);
        let flags =
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let done = usize::try_from(version).unwrap_or(usize::MAX);
        let Some(missing) = STEPS.get(done..) else { return Err(DatabaseError::Newer(version)) };
        let check: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        if check != "ok" {
            return Err(DatabaseError::Damaged(check));
        }
        // A commit of the last second before a loss of power may be lost, which costs a client some seconds once: no
        // reason to wait for the disk at every write.
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "normal")?;
        if !missing.is_empty() {
            let (steps, version) = (missing.concat(), STEPS.len());
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {steps} PRAGMA user_version = {version}; COMMIT;"))?;
        }
        Ok(Self(connection))
    }

    /// The connection, for the tables of others.
    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.0
    }

    /// Every peer in it. Rows that make no sense are left out.
    pub(super) fn load(&self) -> Result<Vec<Remembered>, DatabaseError> {
        let mut statement = self.0.prepare("SELECT key, endpoint, local, shard, shards, heard FROM peers")?;
        let rows = statement.query_map([], |row| Ok(remembered(row)))?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// Writes `changed` and deletes `gone`, all or nothing.
    pub(super) fn save<'a>(
        &mut self,
        changed: impl IntoIterator<Item = &'a Remembered>,
        gone: impl IntoIterator<Item = &'a Key>,
    ) -> Result<(), DatabaseError> {
        let transaction = self.0.transaction()?;
        {
            let mut put = transaction.prepare(
                "INSERT OR REPLACE INTO peers (key, endpoint, local, shard, shards, heard) VALUES (?, ?, ?, ?, ?, ?)",
            )?;
            for peer in changed {
                let local = peer.local.map(|local| local.to_string());
                let (shard, shards) = (i64::try_from(peer.shard).ok(), i64::try_from(peer.shards).ok());
                let endpoint = peer.endpoint.to_string();
                put.execute(params![peer.key, endpoint, local, shard, shards, peer.heard.as_second()])?;
            }
            let mut delete = transaction.prepare("DELETE FROM peers WHERE key = ?")?;
            for key in gone {
                delete.execute([key])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

fn remembered(row: &Row<'_>) -> Option<Remembered> {
    let local: Option<String> = row.get("local").ok()?;
    Some(Remembered {
        key: row.get("key").ok()?,
        endpoint: row.get::<_, String>("endpoint").ok()?.parse().ok()?,
        local: local.and_then(|local| local.parse().ok()),
        shard: usize::try_from(row.get::<_, i64>("shard").ok()?).ok()?,
        shards: usize::try_from(row.get::<_, i64>("shards").ok()?).ok()?,
        heard: Timestamp::from_second(row.get("heard").ok()?).ok()?,
    })
}

/// Moves a database out of the way, in the place of an earlier one that was. Returns where it is.
pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = appended(path, ".damaged");
    fs::rename(path, &aside)?;
    for beside in BESIDE {
        let (from, to) = (appended(path, beside), appended(&aside, beside));
        match fs::rename(from, &to) {
            // What an earlier database left would be read as part of this one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(fs::remove_file(to)),
            moved => moved?,
        }
    }
    Ok(aside)
}

fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
