//! Reading and replacing `directory.json`: checked before, checked after, and never half.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use portcullis_policy::json::Problem;

use crate::cli::ExitStatus;
use crate::config::Config;
use crate::directory::edit::EditError;
use crate::directory::{Directory, DirectoryContext, DirectoryError};
use crate::files::{self, ReadError};
use crate::keys::{KeyFileError, PrivateKey};

/// Why the directory was not read or not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The private key is needed to know our own public key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// It was bad before.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The text could not be changed.
    #[error("{path} {source}")]
    Edit {
        /// The file.
        path: PathBuf,
        /// Why.
        source: EditError,
    },
    /// It would be bad afterwards, and was left as it is.
    #[error("{} is left as it is; with the change it would say:\n{}", .path.display(), lines(.problems))]
    WouldBeBad {
        /// The file.
        path: PathBuf,
        /// In the new text.
        problems: Vec<Problem>,
    },
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// About this.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("  {}: {}", problem.place.path, problem.message))
        .collect::<Vec<_>>()
        .join("\n")
}

impl StoreError {
    /// What the process exits with.
    pub(super) fn exit(&self) -> ExitStatus {
        let denied = |source: &io::Error| source.kind() == io::ErrorKind::PermissionDenied;
        match self {
            Self::Key(error) if error.is_denied() => ExitStatus::NotPermitted,
            Self::Directory(DirectoryError::Read { source: ReadError::Io(source), .. }) | Self::Io { source, .. }
                if denied(source) =>
            {
                ExitStatus::NotPermitted
            }
            Self::Key(_) | Self::Directory(_) | Self::Edit { .. } => ExitStatus::BadConfig,
            Self::WouldBeBad { .. } => ExitStatus::Usage,
            Self::Io { .. } => ExitStatus::Failed,
        }
    }
}

/// The directory as it is now, without holding it.
pub(super) fn load(config: &Config) -> Result<Directory, StoreError> {
    Ok(Directory::load(&config.directory, &DirectoryContext::new(config, None))?)
}

/// The directory, held against other edits of ours until it is dropped.
pub(super) struct Store {
    path: PathBuf,
    pub(super) context: DirectoryContext,
    pub(super) text: String,
    pub(super) directory: Directory,
    /// The lock goes with the descriptor. On the folder, because the file itself is replaced.
    _folder: File,
}

impl Store {
    /// Reads and holds a sound directory.
    pub(super) fn open(config: &Config) -> Result<Self, StoreError> {
        let key = config.wireguard.as_ref().map(|wireguard| PrivateKey::read_file(&wireguard.key_file)).transpose()?;
        let context = DirectoryContext::new(config, key.map(|key| key.public()));
        // A link stays a link: what it leads to is replaced.
        let path = fs::canonicalize(&config.directory)
            .map_err(|error| DirectoryError::Read { path: config.directory.clone(), source: error.into() })?;
        let place = path.parent().unwrap_or_else(|| Path::new("/"));
        let failed = |source| StoreError::Io { path: place.to_owned(), source };
        let folder = File::open(place).map_err(failed)?;
        folder.lock().map_err(failed)?;
        let text = files::read_text(&path)
            .map_err(|source| DirectoryError::Read { path: config.directory.clone(), source })?;
        let directory = Directory::parse(&text, &context)
            .map_err(|problems| DirectoryError::Problems { path: config.directory.clone(), problems })?;
        Ok(Self { path, context, text, directory, _folder: folder })
    }

    /// Puts `text` in the place of the file, whole or not at all, with its mode and owner; when it is a sound directory.
    pub(super) fn replace(&self, text: &str) -> Result<(), StoreError> {
        Directory::parse(text, &self.context)
            .map_err(|problems| StoreError::WouldBeBad { path: self.path.clone(), problems })?;
        files::replace(&self.path, text).map_err(|source| StoreError::Io { path: self.path.clone(), source })
    }

    pub(super) fn not_edited(&self, source: EditError) -> StoreError {
        StoreError::Edit { path: self.path.clone(), source }
    }
}
