//! What the gateway does to its host: the TUN device, routes and rules, and the checks before it starts.

pub mod addresses;
pub mod checks;
pub mod holder;
mod netlink;
pub mod routes;
#[cfg(test)]
pub(crate) mod testing;
pub mod tun;

pub use addresses::own_addresses;
pub use routes::{SteeredRoutes, Steering, SteeringChange, TableClaim, WatchedRoutes};
pub use tun::{TunDevice, TunError};
