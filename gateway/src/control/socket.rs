//! The control socket as a file: one gateway a socket, and a dead one's is replaced.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::net::UnixListener;

use crate::host::holder::{self, Holder};

/// Why the control socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another gateway answers there.
    #[error("another gateway is running on {} ({})", .path.display(), process(*.pid))]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The other gateway, when the kernel knows it.
        pid: Option<i32>,
    },
    /// Something that is no socket has the name.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The system said no.
    #[error("cannot listen on {}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn process(pid: Option<i32>) -> String {
    let holder = pid.and_then(|pid| Holder::of_process(u32::try_from(pid).ok()?));
    holder::in_words(holder.as_ref())
}

/// The control socket, listening. Its file goes when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The name of a bound socket and the lock beside it, held for the life of the process.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
    _lock: Flock<fs::File>,
}

impl ControlSocket {
    /// Listens on `path`, mode 0660; makes its directory, 0755, when missing. Needs a running tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed)?;
        }
        // Of two gateways that start at once, the lock lets one look at the old socket and replace it.
        let lock = lock(path)?;
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), inode, _lock: lock } })
    }

    /// The listener, and the file that stays until it is dropped.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn lock(path: &Path) -> Result<Flock<fs::File>, SocketError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let io_error = |source| SocketError::Io { path: path.to_owned(), source };
    let file = {
        use std::os::unix::fs::OpenOptionsExt;
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(name).map_err(io_error)?
    };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            SocketError::InUse { path: path.to_owned(), pid: answering(path).ok().flatten() }
        } else {
            io_error(errno.into())
        }
    })
}

/// The process that listens on `path`.
fn answering(path: &Path) -> io::Result<Option<i32>> {
    let stream = UnixStream::connect(path)?;
    Ok(getsockopt(&stream, PeerCredentials).ok().map(|c| c.pid()).filter(|pid| *pid != 0))
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match answering(path) {
        Ok(pid) => Err(SocketError::InUse { path: path.to_owned(), pid }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replaced the control socket of a gateway that is gone");
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_gateway_stays_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/control.sock");
        drop(fs::create_dir(dir.path().join("run")));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind by a process that is gone");

        let first = ControlSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = ControlSocket::bind(&path).unwrap_err();
        assert!(error.to_string().contains(&format!("(process {}, `", std::process::id())), "{error}");
        assert!(UnixStream::connect(&path).is_ok(), "the first is unharmed");

        let (listener, file) = first.into_parts();
        drop(listener);
        assert!(path.exists());
        drop(file);
        assert!(!path.exists(), "a clean stop leaves no socket");
        drop(ControlSocket::bind(&path).unwrap());
    }

    #[tokio::test]
    async fn a_listener_without_our_lock_counts_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(SocketError::InUse { pid: Some(_), .. })));
    }

    #[tokio::test]
    async fn a_file_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
