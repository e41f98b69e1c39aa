//! A netlink connection of the current network namespace.

use std::io;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;

/// What the kernel tells without being asked.
pub(crate) type Unsolicited = BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A connection with the task that drives it.
#[derive(Debug)]
pub(crate) struct Netlink {
    /// For requests.
    pub(crate) handle: Handle,
    driver: JoinHandle<()>,
}

impl Netlink {
    /// Opens a connection. Must be called on a tokio runtime.
    pub(crate) fn connect() -> io::Result<Self> {
        let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// Opens a connection that is told what happens in `groups`, until it is dropped. Must be called on a tokio runtime.
    pub(crate) fn listen(groups: &[MulticastGroup]) -> io::Result<(Self, Unsolicited)> {
        let (connection, handle, unsolicited) = rtnetlink::new_multicast_connection(groups)?;
        Ok((Self { handle, driver: tokio::spawn(connection) }, unsolicited.boxed()))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The kernel's answer as the system error it is.
pub(crate) fn system_error(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &error {
        return message.to_io();
    }
    io::Error::other(error)
}
