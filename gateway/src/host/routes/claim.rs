//! One gateway a routing table.
//!
//! What a dead process left in a table is taken over, so it must be certain that it is dead. Two things say so, both of
//! the network namespace, whatever directories and device names the other one was given. A lock: a Unix socket with an
//! abstract name, which the kernel takes away with the process. And the routes themselves: one that leads to a TUN device
//! that somebody has open is in use, even where any local user could have taken the lock's name.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use futures_util::TryStreamExt;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::RouteProtocol;
use nix::unistd::geteuid;

use super::kernel::{Kernel, device};
use super::{PROTOCOL, RouteError};
use crate::host::holder::Holder;

/// A routing table that no other gateway of this network namespace has, for as long as this lives.
#[derive(Debug)]
pub struct TableClaim {
    _lock: Option<UnixDatagram>,
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

fn lock(table: u32) -> Result<Option<UnixDatagram>, RouteError> {
    let name = format!("portcullis/table/{table}");
    let failed = |source| RouteError::Kernel { doing: format!("lock routing table {table}"), source };
    let address = SocketAddr::from_abstract_name(&name).map_err(failed)?;
    match UnixDatagram::bind_addr(&address) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = Holder::of_abstract_socket(&name);
            match &holder {
                // Nobody like that can have routes in the table.
                Some(other) if other.uid != 0 && other.uid != geteuid().as_raw() => {
                    tracing::warn!(%other, uid = other.uid, "a process that is no gateway has the socket @{name}, which tells gateways apart: end it");
                    Ok(None)
                }
                _ => Err(RouteError::InUse { table, device: None, holder }),
            }
        }
        Err(error) => Err(failed(error)),
    }
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
