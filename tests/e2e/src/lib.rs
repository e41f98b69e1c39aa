//! The end-to-end tests of Portcullis: the real binary, a real TUN, real wireguard-go clients and real sockets.
//!
//! [`world::scenario`] makes network namespaces for clients, the gateway and a private network ([`lab`]), writes
//! the gateway's files ([`setup`]), starts the binary ([`gateway`]) and the clients ([`wg_client`]), and hands a
//! [`world::World`] to the scenario. Targets and traffic are plain sockets on threads of the test itself
//! ([`target`], [`stream`], [`burst`], [`flood`]), opened inside a namespace by [`netns::Netns::run`]; packets are counted, lost and
//! dropped by nftables ([`nft`]).
//!
//! The scenarios are in `tests/`, one file a theme. They need root, `/dev/net/tun` and a few packages; what is
//! missing is a failure that names it. `PORTCULLIS_BIN` names the binary under test, otherwise it is the one that
//! cargo built. A scenario that fails prints the gateway's log, the flow log, the metrics and the commands to look
//! around by hand; with `PORTCULLIS_E2E_KEEP=1` everything stays as it was.

#![expect(clippy::indexing_slicing, reason = "all of this crate is test code, where a panic is the answer")]

pub mod burst;
pub mod child;
pub mod expect;
pub mod flood;
pub mod flow_log;
pub mod gateway;
pub mod lab;
pub mod leaks;
pub mod metrics;
pub mod netns;
pub mod nft;
pub mod proxy;
pub mod raw;
pub mod setup;
pub mod site;
pub mod stream;
pub mod target;
pub mod tools;
pub mod transfer;
pub mod turn;
pub mod wait;
pub mod wg_client;
pub mod world;

/// Makes a test of a scenario for each on-ramp: `on_both_ramps!(name, |world| { … })`, or with
/// `setup = |setup| setup.limit(…)` in front of the scenario.
#[macro_export]
macro_rules! on_both_ramps {
    ($name:ident, $run:expr) => {
        $crate::on_both_ramps!($name, setup = |setup| setup, $run);
    };
    ($name:ident, setup = $change:expr, $run:expr) => {
        mod $name {
            use super::*;

            fn on(ramp: $crate::setup::OnRamp) {
                let change: fn($crate::setup::Setup) -> $crate::setup::Setup = $change;
                let run: fn(&mut $crate::world::World<'_>) = $run;
                $crate::world::scenario(change($crate::setup::Setup::new(ramp)), run);
            }

            #[test]
            fn wireguard() {
                on($crate::setup::OnRamp::Wireguard);
            }

            #[test]
            fn tun() {
                on($crate::setup::OnRamp::Tun);
            }
        }
    };
}
