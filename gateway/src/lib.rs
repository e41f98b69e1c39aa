//! Portcullis, the gateway: the only crate with IO.
//!
//! ```text
//!  gateway.toml ──> config                    control (runtime of its own)
//!  directory.json ─> directory ─> rulesets ──────────────┬──────────────────────┐
//!  policy.json ───> portcullis_policy                    │ watch: Snapshot      │ Command
//!                                                        v                      v
//!  WireGuard ──> onramp::wireguard ──┐          ┌──────────────────────────────────────┐
//!                                    ├────────> │ shard: one thread a core             │ ──> offramp ──> targets
//!  TUN ────────> onramp::tun ────────┘          │ portcullis_netstack::Stack and flows │ <──
//!                                               └──────────────────────────────────────┘
//!                                                   │ FlowRecord            │ counters
//!                                                   v                       v
//!                                                flow_log                metrics
//! ```
//!
//! - [`app`] loads every file and binds every socket before anything is served; [`drain`] is the orderly end.
//! - A [`shard`] is an OS thread that owns its UDP socket, its queue of the TUN device, its WireGuard peers, its flows
//!   and their sockets. It takes no lock per packet. A peer belongs to the shard where its handshake arrived; its
//!   datagrams that arrive elsewhere go to the owner in batches. A flow of the TUN device belongs to the shard whose
//!   queue the kernel puts it in.
//! - A turn of a shard reads what is ready, feeds the stack, moves each changed flow once and sends what came of it.
//!   Deadlines come from heaps: an idle flow costs nothing. Under a dense stream of datagrams the shard rests between
//!   small turns, so that batches gather.
//! - A flow is entered in the table, then judged, then dialled; nothing can be dialled without a `Permit`, which only
//!   the policy makes. [`destination`] holds what no policy can open.
//! - Over an off-ramp of kind `kernel` or `wireguard`, and to another device, nothing is dialled: the client's packets go on
//!   by the TUN device, or through the tunnel of a peer, and come back the same way (`shard::forwarding`), matched to
//!   their flow whatever shard they come to. [`sites`] keeps the tunnels of off-ramps up.
//! - [`rulesets`] publishes immutable [snapshots](shard::link::Snapshot). A shard takes over a new one between two
//!   packets and judges its live flows again, in slices.
//! - [`limits`]: a flow holds its share of what a device, its user and all may have; a flow over a limit is refused by
//!   that limit's name. The counts are shared between shards and touched once a flow, not once a packet.
//! - [`control`], [`metrics`] and [`flow_log`] run beside the shards: a slow reader of theirs costs no packet. [`denied`]
//!   keeps the last refusals of what the log is written.
//! - [`watch`] has changed files loaded; [`rulesets::apply`] puts policies in force that come over the control socket, and
//!   takes back what nobody confirms.
//! - [`posture`] is what is reported of devices while the gateway runs, over the facts that the directory has.
//! - [`state`] remembers where WireGuard clients are, so that a restarted gateway opens the handshakes itself, every
//!   policy that was in force, and what was reported of devices.
//! - [`secret`] reads the files that nobody else may.
//! - [`host`] is what the kernel is asked for besides sockets: the TUN device, routes and rules, addresses, settings.
//!   `sys` is the one module with unsafe code.

pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod denied;
pub mod destination;
pub mod directory;
pub mod drain;
pub mod explain;
pub mod files;
pub mod flow_log;
pub mod flow_record;
pub mod host;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod offramp;
pub mod onramp;
pub mod plan;
pub mod posture;
pub mod prefix;
pub mod rulesets;
pub mod schema;
pub mod secret;
pub mod shard;
pub mod signals;
pub mod sites;
pub mod state;
mod sys;
pub mod telemetry;
pub mod watch;
