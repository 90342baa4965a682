//! Identity and data model of a coalition: pure data, no I/O, no tasks.
//!
//! A coalition names members (lattices, organisms) by their stable ids, ships up to five basic services of its own, and
//! is identified by one fingerprint over all of that. This crate owns those shapes and every derivation.

mod bytes;
pub mod committee;
pub mod identity;
mod money;
mod serde_hex;
pub mod types;

pub use bytes::Truncated;
pub use committee::{CommitteeContent, CommitteeError, Roster, RosterMember};
pub use identity::{
    COALITION_ROOT_SEED, IdError, SCHEMA_VERSION_U8, UNIVERSE, UniqueId, ZERO_ID, derive_stable_id,
    hash_many, parse_id, unique_id,
};
pub use types::{
    AlmanacRange, AlmanacTick, EvidencePointer, MemberId, MicroUsd, MoneyError, Mrtd, ProviderId,
    RateQ64, RequestId, TypeError,
};
