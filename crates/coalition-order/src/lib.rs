//! Puts commands of a committee into one order that all members share, and that survives crashes and lies of fewer
//! than a third of them.
//!
//! A member is [`start`]ed from an [`OrderConfig`]. It takes commands with [`OrderHandle::submit`] and hands out
//! [`Delivery`]s: batches of commands, in height order, without gaps, at least once, equal on every member. The consumer
//! makes a batch's effects durable and then acknowledges it.
//!
//! What holds, for a committee of `n` members of which at most `(n - 1) / 3` are faulty:
//! - No two members deliver different batches for one height.
//! - A batch is delivered only after a quorum of `n - (n - 1) / 3` members wrote it to disk.
//! - A command that a live process submitted is ordered while a quorum is connected, whoever else fails.
//! - Without a quorum nothing is ordered; with one again, it goes on where it stood.
//!
//! Inside runs commonware's simplex consensus with its marshal, archives and authenticated network. Nothing of it shows
//! in this interface, and all of its generic code is instantiated here, once.

mod anchor;
mod application;
mod archive;
mod block;
mod command;
mod config;
mod delivery;
mod engine;
mod error;
mod frames;
mod gossip;
mod handle;
mod inbox;
mod journal;
mod mempool;
mod node;
mod pacing;
mod shared;
mod sink;

pub use anchor::{Anchor, AnchorError};
pub use command::{CommandId, command_id};
pub use config::{MAX_BATCH_BYTES, MAX_MEMBERS, OrderConfig, OrderMember};
pub use delivery::{Ack, Batch, Delivery};
pub use error::{JournalError, OrderError, SubmitError};
pub use handle::{OrderHandle, OrderStatus};
pub use inbox::GossipInbox;
pub use node::start;
