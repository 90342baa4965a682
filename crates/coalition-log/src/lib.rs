//! The certified log: what an organism's committee writes, and what anybody can verify.
//!
//! An organism's commits are the leaves of one RFC 6962 Merkle tree. Members of its committee cosign the tree's head; a
//! quorum of cosignatures is the certificate of everything below it. The byte formats are specified in
//! `docs/protocol/log.md`, completely enough to write an independent verifier; `tools/verify_evidence.py` is one.
//!
//! * [`machine`]: the contract between a service's pure state machine and the host that orders its commands.
//! * [`entry`]: one commit, and its bytes.
//! * [`tree`]: Merkle tree hashing, inclusion and consistency proofs. Pure.
//! * [`checkpoint`]: signed tree heads, cosignatures, quorum certificates. Pure.
//! * [`evidence`]: a self-contained proof file of one entry. Pure.
//! * [`equivocation`]: transferable proof that a member signed two histories. Pure.
//! * [`follow`]: the reader's core, which releases no entry before it is verified. Pure.
//! * [`handover`]: epochs: how the roster changes under one config, and who certifies which size. Pure.
//! * [`state`]: certified states, from which members and readers go on without folding the whole log. Pure.
//! * [`retirement`]: the end of a log: approvals, announcement, last entry. Pure.
//! * [`successor`]: the next config, as the log it replaces carries it. Pure.
//! * [`predecessor`]: the beginning of a log that succeeds another: the head of that one. Pure.
//! * [`store`]: the durable log of one member: journal, tiles, sign guard.

mod approval;
pub mod checkpoint;
pub mod entry;
pub mod equivocation;
pub mod evidence;
pub mod follow;
pub mod handover;
mod lines;
pub mod machine;
pub mod predecessor;
pub mod retirement;
pub mod state;
pub mod store;
pub mod successor;
pub mod tree;

pub use entry::{Entry, EntryError};
pub use lines::LineError;
pub use machine::{
    Contains, Context, Draft, Fold, FoldFault, FromState, Machine, Persist, Refusal, SnapshotError, Ticking,
};
