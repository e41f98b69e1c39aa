//! Reading files that people edit, and opening those that nobody else should.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

/// The largest configuration, directory or policy file that is read.
pub const MAX_FILE: u64 = 16 << 20;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system said no.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is a directory, a pipe or a device.
    #[error("is not a regular file")]
    NotRegular,
    /// More than [`MAX_FILE`].
    #[error("is larger than 16 MiB")]
    TooLarge,
    /// Not UTF-8.
    #[error("is not UTF-8: byte {0} is not part of a character")]
    NotUtf8(usize),
}

impl ReadError {
    /// There is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// The caller may not read it, which says nothing about what is in it.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Reads a whole text file through one descriptor, so that a rename in between cannot mix two versions.
pub fn read_text(path: &Path) -> Result<String, ReadError> {
    // Opened without waiting, so that a named pipe in the place of a file is an error and not a hang.
    let file = {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?
    };
    read_open(&file)
}

/// Opens a file of the gateway's own for reading and writing, mode 0600; makes it where there is none. A link is none.
pub fn open_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Puts `text` in the place of the file at `path`, whole or not at all, with its mode and owner. A link stays a link: what it
/// leads to is replaced.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let old = fs::metadata(&path)?;
    let place = path.parent().unwrap_or_else(|| Path::new("/"));
    let mut new = tempfile::Builder::new().prefix(".portcullis-").tempfile_in(place)?;
    new.write_all(text.as_bytes())?;
    let made = new.as_file().metadata()?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
        fchown(new.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    new.as_file().set_permissions(old.permissions())?;
    new.as_file().sync_all()?;
    new.persist(&path).map_err(|error| error.error)?;
    // Without this a crash of the machine could bring the old file back.
    File::open(place)?.sync_all()
}

/// Reads what is left of an open regular file as text.
pub fn read_open(file: &File) -> Result<String, ReadError> {
    if !file.metadata()?.is_file() {
        return Err(ReadError::NotRegular);
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(ReadError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| ReadError::NotUtf8(error.utf8_error().valid_up_to()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_text_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "häuser").unwrap();
        assert_eq!(read_text(&file).unwrap(), "häuser");
        std::fs::write(&file, b"ab\xff").unwrap();
        assert!(matches!(read_text(&file), Err(ReadError::NotUtf8(2))));
        assert!(matches!(read_text(dir.path()), Err(ReadError::NotRegular)));
        assert!(matches!(read_text(&dir.path().join("none")), Err(ReadError::Io(_))));
        File::create(&file).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(matches!(read_text(&file), Err(ReadError::TooLarge)));
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read_text(&pipe), Err(ReadError::NotRegular)));
    }
}
