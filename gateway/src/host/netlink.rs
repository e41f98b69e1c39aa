//! A netlink connection of the current network namespace.

use std::io;

use rtnetlink::Handle;
use tokio::task::JoinHandle;

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
