//! Why a load has no figure.

use std::io;
use std::net::SocketAddr;

use ipnet::IpNet;
use portcullis::host::tun::TunError;
use portcullis::keys::KeyFileError;

/// Why a load has no figure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What.
        doing: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The system refused something at an address.
    #[error("cannot {doing} {address}: {source}")]
    At {
        /// What.
        doing: &'static str,
        /// Where.
        address: SocketAddr,
        /// Its answer.
        source: io::Error,
    },
    /// Nothing was completed for long.
    #[error("no progress for {seconds} s, after {done} done and {failed} failed: {last}")]
    Stalled {
        /// For how long.
        seconds: u64,
        /// What was completed before.
        done: u64,
        /// What failed before.
        failed: u64,
        /// The last failure.
        last: String,
    },
    /// Too much failed for the rest to mean something.
    #[error("{failed} failed and {done} did not: {last}")]
    Failures {
        /// What was completed.
        done: u64,
        /// What failed.
        failed: u64,
        /// The last failure.
        last: String,
    },
    /// The sink at the other end does not answer.
    #[error("no answer from a udp-sink at {address}")]
    NoSink {
        /// Where it should be.
        address: SocketAddr,
    },
    /// Too much was lost at every rate.
    #[error("more than 1 % of the datagrams to {address} were lost at {rate:.0} a second, the lowest rate tried")]
    Lossy {
        /// Where they were sent.
        address: SocketAddr,
        /// Datagrams a second.
        rate: f64,
    },
    /// The key file is refused.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// There is no TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// `ip` has refused a route, and said why.
    #[error("cannot route {network} into {device}")]
    Route {
        /// The network.
        network: IpNet,
        /// The device.
        device: String,
    },
}

impl LoadError {
    /// For `map_err`, at an address.
    pub(crate) fn at(doing: &'static str, address: SocketAddr) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::At { doing, address, source }
    }

    /// For `map_err`.
    pub(crate) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}
