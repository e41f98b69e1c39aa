//! Which process has something that we want, as far as `/proc` shows it: for error messages.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most characters of a command line that are shown.
const COMMAND: usize = 200;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Effective user.
    pub uid: u32,
    /// Its command line, which says with which configuration it runs; empty where it may not be read.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if self.command.is_empty() { Ok(()) } else { write!(f, ", `{}`", self.command) }
    }
}

/// The holder in words, known or not.
pub fn in_words(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "a process that is not seen from here".to_owned(), ToString::to_string)
}

impl Holder {
    /// The process with this id, when there is one.
    pub fn of_process(pid: u32) -> Option<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let uid = fs::metadata(&directory).ok()?.uid();
        let line = fs::read(directory.join("cmdline")).unwrap_or_default();
        let words: Vec<_> =
            line.split(|byte| *byte == 0).map(String::from_utf8_lossy).filter(|word| !word.is_empty()).collect();
        let command = words.join(" ").escape_debug().take(COMMAND).collect();
        Some(Self { pid, uid, command })
    }

    /// The process that has the TUN device `name` of this network namespace open.
    pub fn of_tun(name: &str) -> Option<Self> {
        let namespace = fs::read_link("/proc/thread-self/ns/net").ok()?;
        find(|process, descriptor, target| {
            target == Path::new("/dev/net/tun")
                && is_inside(process, &namespace)
                && fs::read_to_string(process.join("fdinfo").join(descriptor))
                    .is_ok_and(|info| info.lines().any(|line| line.strip_prefix("iff:").map(str::trim) == Some(name)))
        })
    }

    /// The process that has a UDP socket of this network namespace bound to this port, on whatever address.
    pub fn of_udp_port(port: u16) -> Option<Self> {
        let port = format!("{port:04X}");
        ["udp", "udp6"].iter().find_map(|table| {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok()?;
            text.lines().skip(1).find_map(|line| {
                let mut fields = line.split_whitespace();
                let (_, bound) = fields.nth(1)?.rsplit_once(':')?;
                let inode = fields.nth(7)?;
                if bound == port { Self::of_socket(inode) } else { None }
            })
        })
    }

    /// The process that has the abstract Unix socket `name` of this network namespace.
    pub fn of_abstract_socket(name: &str) -> Option<Self> {
        let text = fs::read_to_string("/proc/thread-self/net/unix").ok()?;
        text.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let inode = fields.nth(6)?;
            if fields.next()?.strip_prefix('@') == Some(name) { Self::of_socket(inode) } else { None }
        })
    }

    fn of_socket(inode: &str) -> Option<Self> {
        let wanted = PathBuf::from(format!("socket:[{inode}]"));
        find(|_, _, target| target == wanted)
    }
}

/// Whether a thread of the process is in a network namespace.
fn is_inside(process: &Path, namespace: &Path) -> bool {
    let Ok(threads) = fs::read_dir(process.join("task")) else { return false };
    threads.flatten().any(|thread| fs::read_link(thread.path().join("ns/net")).is_ok_and(|other| other == namespace))
}

/// The first process with a descriptor for which `is` holds, given the process's directory, the descriptor's number and
/// what it leads to.
fn find(is: impl Fn(&Path, &str, &Path) -> bool) -> Option<Holder> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let process = PathBuf::from(format!("/proc/{pid}"));
        // Of others, without the privilege, nothing can be seen.
        let Ok(descriptors) = fs::read_dir(process.join("fd")) else { continue };
        let found = descriptors.flatten().any(|descriptor| {
            let Ok(target) = fs::read_link(descriptor.path()) else { return false };
            descriptor.file_name().to_str().is_some_and(|number| is(&process, number, &target))
        });
        if found {
            return Holder::of_process(pid);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;
    use crate::host::TunDevice;
    use crate::host::testing::{in_namespace, tun_config};

    #[test]
    fn everything_of_ours_is_found_and_nothing_else() {
        in_namespace(async || {
            let us = Holder::of_process(std::process::id()).unwrap();
            assert!(us.to_string().starts_with(&format!("process {}, `", std::process::id())), "{us}");
            let _tun = TunDevice::create(&tun_config(&[], &[]), 1).await.unwrap();
            let udp = UdpSocket::bind("[::]:51820").unwrap();
            let name = "portcullis-test";
            let _socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
            assert_eq!(Holder::of_tun("pcl0").as_ref(), Some(&us));
            assert_eq!(Holder::of_tun("pcl1"), None);
            assert_eq!(Holder::of_udp_port(udp.local_addr().unwrap().port()).as_ref(), Some(&us));
            assert_eq!(Holder::of_udp_port(51_821), None);
            assert_eq!(Holder::of_abstract_socket(name).as_ref(), Some(&us));
            assert_eq!(Holder::of_abstract_socket("portcullis-test-2"), None);
        });
    }
}
