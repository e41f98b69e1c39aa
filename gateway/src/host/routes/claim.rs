//! One gateway a routing table.
//!
//! What a dead process left in a table is taken over, so it must be certain that it is dead. Two things say so, both of
//! the network namespace, whatever directories and device names the other one was given. A lock: a Unix socket with an
//! abstract name, which the kernel takes away with the process. And the routes themselves: one that leads to a TUN device
//! that somebody has open is in use, even where any local user could have taken the lock's name.
//!
//! Whose the name is, the kernel says to who connects: it notes the user that listens, and `/proc` may be hidden.

use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use futures_util::TryStreamExt;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::RouteProtocol;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use nix::unistd::geteuid;

use super::kernel::{Kernel, device};
use super::{PROTOCOL, RouteError};
use crate::host::holder::Holder;

/// A routing table that no other gateway of this network namespace has, for as long as this lives.
#[derive(Debug)]
pub struct TableClaim {
    _lock: Option<UnixListener>,
}

impl TableClaim {
    /// Claims a table. Changes nothing in it. Call on a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`RouteError::InUse`]: another gateway has it. Or the kernel does not say.
    pub async fn take(table: u32) -> Result<Self, RouteError> {
        let lock = lock(table)?;
        let kernel = Kernel::connect()?;
        for route in kernel.routes(table).await? {
            if route.header.protocol != RouteProtocol::Other(PROTOCOL) {
                continue;
            }
            if let Some(index) = device(&route)
                && let Some(name) = kernel.open_tun(index).await?
            {
                let holder = Holder::of_tun(&name);
                return Err(RouteError::InUse { table, device: Some(name), holder });
            }
        }
        Ok(Self { _lock: lock })
    }
}

fn lock(table: u32) -> Result<Option<UnixListener>, RouteError> {
    let name = lock_name(table);
    let failed = |source| RouteError::Kernel { doing: format!("lock routing table {table}"), source };
    let address = SocketAddr::from_abstract_name(&name).map_err(failed)?;
    match UnixListener::bind_addr(&address) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = listener(&name).or_else(|| Holder::of_abstract_socket(&name));
            match &holder {
                // Nobody like that can have routes in the table.
                Some(other) if other.uid != 0 && other.uid != geteuid().as_raw() => {
                    tracing::warn!(%other, uid = other.uid, "a process that is no gateway has the socket @{name}, which tells gateways apart: end it");
                    Ok(None)
                }
                Some(_) => Err(RouteError::InUse { table, device: None, holder }),
                // A gateway listens and takes connections; any user could have had the name and nothing behind it. The
                // routes say whether there is a gateway.
                None => {
                    tracing::warn!(
                        "a process that is not seen from here has the socket @{name}, which tells gateways apart, and does not listen"
                    );
                    Ok(None)
                }
            }
        }
        Err(error) => Err(failed(error)),
    }
}

fn lock_name(table: u32) -> String {
    format!("portcullis/table/{table}")
}

/// Who listens at the abstract Unix socket `name`, by the kernel's word, `SO_PEERCRED` of unix(7). `None`: nobody does, or
/// so many are waiting there that it cannot be asked.
fn listener(name: &str) -> Option<Holder> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    connect(asking.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).ok()?).ok()?;
    let other = getsockopt(&asking, sockopt::PeerCredentials).ok()?;
    let pid = u32::try_from(other.pid()).ok()?;
    let seen = Holder::of_process(pid).map(|seen| seen.command);
    Some(Holder { pid, uid: other.uid(), command: seen.unwrap_or_default() })
}

impl Kernel {
    /// The name of the interface with this index, when it is a TUN device that a process has open: only then it has a
    /// carrier.
    async fn open_tun(&self, index: u32) -> Result<Option<String>, RouteError> {
        let mut links = self.handle().link().get().match_index(index).execute();
        // It may be gone since.
        let Ok(Some(link)) = links.try_next().await else { return Ok(None) };
        Ok(if is_tun(&link) && link.header.flags.contains(LinkFlags::LowerUp) { name(&link) } else { None })
    }
}

fn is_tun(link: &LinkMessage) -> bool {
    let tun = LinkInfo::Kind(InfoKind::Tun);
    link.attributes.iter().any(|found| matches!(found, LinkAttribute::LinkInfo(infos) if infos.contains(&tun)))
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes
        .iter()
        .find_map(|attribute| if let LinkAttribute::IfName(name) = attribute { Some(name.clone()) } else { None })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::host::TunDevice;
    use crate::host::routes::SteeredRoutes;
    use crate::host::testing::{in_namespace, tun_config};

    fn hide_proc() {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        for arguments in [&["--make-rprivate", "/"][..], &["-t", "tmpfs", "none", "/proc"]] {
            assert!(Command::new("mount").args(arguments).status().unwrap().success());
        }
    }

    /// Has another user take the lock's name, and leaves the calling thread without `/proc`.
    fn squatted(table: u32, then: &str) -> std::process::Child {
        let program = format!(
            "socket(S, AF_UNIX, SOCK_STREAM, 0) or die $!; $| = 1; bind(S, pack('Sxa*', AF_UNIX, '{}')) or die $!; {then} \
             print 'taken'; close STDOUT; sleep 600",
            lock_name(table)
        );
        let mut squatter = Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", "perl", "-MSocket", "-e", &program])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the tests need `setpriv` and `perl`: install util-linux and perl");
        let mut said = String::new();
        squatter.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "taken");
        hide_proc();
        squatter
    }

    #[test]
    fn who_is_no_gateway_stops_no_start_although_nothing_is_seen_of_it() {
        for then in [
            "listen(S, 9) or die $!;",
            "",
            "listen(S, 0); while (1) { socket(my $c, AF_UNIX, SOCK_STREAM | 2048, 0); push @c, $c; connect($c, getsockname(S)) or last }",
        ] {
            in_namespace(async move || {
                let mut squatter = squatted(51880, then);
                let claim = TableClaim::take(51880).await;
                squatter.kill().unwrap();
                squatter.wait().unwrap();
                assert!(claim.unwrap()._lock.is_none(), "{then}");
            });
        }
    }

    #[test]
    fn a_gateway_is_known_by_its_lock_although_nothing_is_seen_of_it() {
        in_namespace(async || {
            hide_proc();
            let _claim = TableClaim::take(51880).await.unwrap();
            let second = TableClaim::take(51880).await;
            let Err(RouteError::InUse { holder: Some(holder), .. }) = second else { panic!("{second:?}") };
            assert_eq!((holder.pid, holder.uid), (std::process::id(), 0));
        });
    }

    #[test]
    fn a_gateway_is_known_by_its_lock_and_by_its_routes() {
        in_namespace(async || {
            let claim = TableClaim::take(51880).await.unwrap();
            let second = TableClaim::take(51880).await;
            let Err(RouteError::InUse { device: None, holder: Some(holder), .. }) = second else {
                panic!("{second:?}")
            };
            assert_eq!(holder, Holder::of_process(std::process::id()).unwrap());
            TableClaim::take(51881).await.unwrap();
            drop(claim);
            // Somebody else was faster, and the gateway went on without the lock.
            let mut squatter = squatted(51880, "");
            let config = tun_config(&["10.0.0.0/8"], &[]);
            let tun = TunDevice::create(&config, 1).await.unwrap();
            let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
            let second = TableClaim::take(51880).await;
            squatter.kill().unwrap();
            squatter.wait().unwrap();
            let Err(RouteError::InUse { device: Some(device), .. }) = second else { panic!("{second:?}") };
            assert_eq!(device, "pcl0");
            routes.remove(crate::config::resolved::OnStop::Remove).await.unwrap();
        });
    }
}
