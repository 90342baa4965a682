//! Sealed submission of compute requests, and the sealed way back: the addressed release of a shuffle.
//!
//! A requester puts what only the winning provider may read into an [`Envelope`], encrypts it to the unseal committee as a
//! [`RequestCell`] of fixed size, and hands the cell to the committee's members from a fresh peer identity. The public
//! request names the cell by its [`CellId`] alone (the *bearer pointer*). When the market grants the request, the named
//! provider, and nobody else, collects decryption shares from any `t` of the `n` members and opens the cell. Its
//! [`SshAccessReceipt`] returns in a [`ReplyCell`] that only the rotating identity can fetch and only the requester's key
//! can open.
//!
//! Everything here is a pure state machine or a format: no network, no files, no clock; randomness is passed in.
//! `docs/protocol/shuffle.md` gives every format byte by byte and says what observers and corrupt members learn.
//!
//! * [`seal`]: HPKE to one X25519 key.
//! * [`tdh2`]: threshold encryption to a committee.
//! * [`envelope`], [`cell`], [`receipt`]: what travels.
//! * [`member`]: one unseal-committee member. [`client`]: provider and requester.
//! * [`keys`]: what a dealer hands out, and its text forms. [`wire`]: messages between client and member.

pub mod cell;
pub mod client;
pub mod envelope;
pub mod keys;
pub mod member;
pub mod receipt;
pub mod seal;
pub mod tdh2;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;

pub use cell::{CELL_BYTES, CellError, CellId, CellScope, ReplyCell, RequestCell, SealedRequest, VerifiedCell};
pub use client::{ClientError, PendingRequest, Progress, ShareCollector};
pub use envelope::{Envelope, EnvelopeError, RotatingPeer, WorkloadSpec};
pub use keys::{DealerOutput, KeyError, KeyShare};
pub use member::{
    Command, GrantAuthorization, Member, MemberError, MemberLimits, MemberStats, Outcome, PendingReply, Refusal,
    ShareRelease, Submission,
};
pub use receipt::{Posture, ReceiptError, SshAccessReceipt, SshHostKey};
pub use seal::{InvalidReceiver, Purpose, ReceiverKey, ReceiverPublic, SealContext, SealError};
pub use tdh2::{PublicParams, Setup, Tdh2Error};
pub use wire::{Answer, Ask, WireError};
