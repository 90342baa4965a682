//! Execute and certify: what a committee does with ordered commands, and how everybody else reads and writes its logs.
//!
//! A *member* ([`Member`]) runs the organisms of its committee: it orders commands with the others
//! (`coalition-order`), executes them on each organism's [`Machine`](coalition_log::Machine), appends the entries to the
//! organism's certified log (`coalition-log`), cosigns the head, and serves readers and writers.
//!
//! A *client* needs the organism's id and roster, both pinned by the published config: [`Organism`] writes and fetches
//! proofs, [`Follower`] keeps a verified fold of the log current. Neither trusts any member. Both are pinned to that config; a
//! [`Lineage`] goes on with the organism that succeeds it.
//!
//! # A complete organism
//!
//! ```no_run
#![doc = include_str!("../examples/guestbook.rs")]
//! ```
//!
//! Committed and certified are different words here: an acknowledged write is certified.

mod admission;
mod beginning;
mod certifier;
mod client;
mod ending;
mod epochs;
mod error;
mod execution;
mod folded;
mod follower;
mod lineage;
mod member;
mod outbox;
mod pruned;
mod receipt;
mod retired;
mod search;
mod settled;
#[cfg(test)]
mod simulation;
mod wire;

pub use admission::TicketSource;
pub use client::{Committed, Organism, random_write_id};
pub use coalition_log::{Contains, Fold, FoldFault, FromState, Persist, SnapshotError, Ticking, entry::WriteId};
pub use error::{ReadError, WriteError};
pub use execution::{COMMON_EVERY, ExecutionError};
pub use folded::TickOf;
pub use follower::{Follower, Start, When};
pub use lineage::{Lineage, LineageFollower, Link, Moved};
pub use member::{
    AddressBook, BatchKeeping, Member, MemberError, MemberKeys, MemberSetup, OrderSetup, OrganismSetup, OrganismStatus,
    Standing,
};
pub use pruned::Pruned;
pub use settled::QUORUM_PATIENCE;
pub use wire::MAX_COMMAND_BYTES;
