//! The unseal committee on the network: members that hold sealed cells and release shares, and the client for both ends.
//!
//! A member ([`UnsealMember`]) follows the Compute committee's certified log and so knows, without being told by anybody,
//! which provider a grant names. Everything else is decided by the pure machine in [`coalition_shuffle::member`]. The cells
//! it accepted are on its disk before it says so; replies it holds in memory. Nothing here logs a caller's identity.
//!
//! A client ([`ShuffleClient`]) submits a requester's cell to all members, opens a granted cell for the provider with any
//! `t` of them, and carries the sealed receipt back to the requester's rotating identity.

mod cells;
mod client;
mod member;

pub use cells::CellStoreError;
pub use client::{ShuffleClient, ShuffleError, Submitted};
pub use member::UnsealMember;

/// The one method members answer.
pub(crate) const ASK: &str = "shuffle.ask";
