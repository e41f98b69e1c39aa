//! What is remembered, and how it gets to the disk without ever being in the way.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::database::{Database, DatabaseError, set_aside};
use super::{Key, Remembered};

/// How long after a failure the disk is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Everything remembered, with the database behind it. Its methods block on the disk.
///
/// It holds as many peers as the directory has devices: the keeper leaves out and forgets all others.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    database: Option<Database>,
    peers: HashMap<Key, Remembered>,
    /// Keys whose row in the database is not what is remembered.
    unsaved: HashSet<Key>,
    /// Since the last failure, nothing is tried before this.
    retry_at: Option<Instant>,
}

impl Memory {
    /// Opens the database at `path` and reads what is in it. A damaged one is put aside for a fresh one; where that does
    /// not help either, the gateway does without until it does.
    pub fn open(path: &Path) -> Self {
        let mut memory = Self {
            path: path.to_owned(),
            database: None,
            peers: HashMap::new(),
            unsaved: HashSet::new(),
            retry_at: None,
        };
        match memory.open_database().and_then(|database| Ok((database.load()?, database))) {
            Ok((peers, database)) => {
                memory.peers = peers.into_iter().map(|peer| (peer.key, peer)).collect();
                memory.database = Some(database);
            }
            Err(error) => memory.failed(&error),
        }
        memory
    }

    /// Everything remembered, in no order.
    pub fn peers(&self) -> impl Iterator<Item = &Remembered> {
        self.peers.values()
    }

    /// Remembers a peer.
    pub fn note(&mut self, peer: Remembered) {
        if self.peers.insert(peer.key, peer) != Some(peer) {
            self.unsaved.insert(peer.key);
        }
    }

    /// Forgets every peer that is not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&Remembered) -> bool) {
        let unsaved = &mut self.unsaved;
        self.peers.retain(|key, peer| {
            let keep = keep(peer);
            if !keep {
                unsaved.insert(*key);
            }
            keep
        });
    }

    /// Writes what has changed. Says once when that fails, and once when it is well again.
    pub fn save(&mut self) {
        if self.unsaved.is_empty() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let mut written = self.try_save();
        if let Err(DatabaseError::Damaged(_)) = written {
            // Once more, with a fresh one.
            self.database = None;
            written = self.try_save();
        }
        match written {
            Ok(()) => {
                if self.retry_at.take().is_some() {
                    tracing::info!(path = %self.path.display(), "the state database is written again");
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn try_save(&mut self) -> Result<(), DatabaseError> {
        if self.database.is_none() {
            let database = self.open_database()?;
            // It may be a fresh one, or hold what was forgotten meanwhile.
            let there = database.load()?;
            self.unsaved.extend(self.peers.keys().copied().chain(there.iter().map(|peer| peer.key)));
            self.database = Some(database);
        }
        let Some(database) = &mut self.database else { return Ok(()) };
        let changed = self.unsaved.iter().filter_map(|key| self.peers.get(key));
        let gone = self.unsaved.iter().filter(|key| !self.peers.contains_key(*key));
        database.save(changed, gone)?;
        self.unsaved.clear();
        Ok(())
    }

    /// Opens the database; one that is damaged is put aside, and a fresh one made.
    fn open_database(&self) -> Result<Database, DatabaseError> {
        match Database::open(&self.path) {
            Err(DatabaseError::Damaged(why)) => {
                let aside = set_aside(&self.path)?;
                tracing::warn!(
                    path = %self.path.display(),
                    aside = %aside.display(),
                    why,
                    "the state database is damaged: it was put aside for a fresh one; clients not heard of since may take 15 s to return after a restart. Delete the file put aside when nobody wants to look into it"
                );
                Database::open(&self.path)
            }
            opened => opened,
        }
    }

    fn failed(&mut self, error: &DatabaseError) {
        // The connection may be what is broken.
        self.database = None;
        if self.retry_at.replace(Instant::now() + RETRY).is_none() {
            tracing::warn!(
                path = %self.path.display(),
                %error,
                "the state database cannot be used: the gateway goes on without, and after a restart clients may take 15 s to return. See that the disk has room and that this user may write the file and its directory; it is tried again every {} s",
                RETRY.as_secs()
            );
        }
    }
}
