//! The userspace stack of Portcullis.
#![forbid(unsafe_code)]

mod batch;
mod deadlines;
mod device;
mod drop_reason;
mod flow;
mod limits;
pub mod packet;
pub mod segment;
mod stack;
mod tuple;

pub use batch::PacketBatch;
pub use drop_reason::DropReason;
pub use flow::{CloseCause, Traffic};
pub use limits::StackLimits;
pub use stack::{Handled, Ingress, Refusal, Stack};
pub use tuple::{FiveTuple, FlowId, FlowKey, IngressId, Protocol};
