//! Identity and data model of a coalition: pure data, no I/O, no tasks.
//!
//! A coalition names members (lattices, organisms) by their stable ids, ships up to five basic services of its own, and
//! is identified by one fingerprint over all of that. This crate owns those shapes and every derivation; the byte-exact
//! rules are in `docs/protocol/identity.md`.
//!
//! * [`identity`]: the id type and the one way to hash several things into it.
//! * [`organism`], [`lattice`], [`modules`], [`tickets`], and [`CoalitionConfig`]: the configs, as consts or values.
//! * [`committee`]: rosters, and the content a committee organism publishes.
//! * [`codec`]: the one encoding of commands and entry bodies.
//! * [`published`]: the self-contained handshake in its hex and TOML forms; [`ids`]: every id it derives.
//! * [`retirement`]: the last commit of every component.
//! * [`political_theory`]: published stances.
//! * [`serde_hex`]: byte strings of fixed length as text, and [`hex_newtype!`] that makes types of them.
//! * [`types`]: clock positions, party ids, money and rates, evidence pointers.

mod bytes;
// Private: a public module of the crate's own name would make `use coalition::*` ambiguous.
mod coalition;
pub mod codec;
pub mod committee;
pub mod identity;
pub mod ids;
pub mod lattice;
pub mod modules;
mod money;
pub mod organism;
pub mod political_theory;
pub mod published;
pub mod retirement;
pub mod serde_hex;
pub mod tickets;
pub mod types;

pub use bytes::Truncated;
pub use coalition::CoalitionConfig;
pub use committee::{CommitteeContent, CommitteeError, Roster, RosterMember};
pub use identity::{
    COALITION_ROOT_SEED, IdError, SCHEMA_VERSION_U8, UNIVERSE, UniqueId, ZERO_ID, derive_stable_id, hash_many,
    parse_id, unique_id,
};
pub use ids::{DerivedId, derived_ids};
pub use lattice::LatticeConfig;
pub use modules::{
    AlmanacConfig, AtlasConfig, ChronicleConfig, ComputeConfig, ModuleConfig, ModuleKind, RandomnessConfig,
};
pub use organism::{ContentParams, OrganismConfig, OrganismRef};
pub use published::{
    ConfigView, PublishedConfig, PublishedConfigBuilder, PublishedError, PublishedIssuer, PublishedLattice,
    PublishedOrganism, PublishedRef,
};
pub use retirement::{ComponentRef, RetirementInstant, RetirementMarker, RetirementPolicy, RetirementReason};
pub use tickets::{AclComposition, AclRule, TicketIssuerConfig, coalition_ticket_issuer_root};
pub use types::{
    AlmanacRange, AlmanacTick, EvidencePointer, MemberId, MicroUsd, MoneyError, Mrtd, ProviderId, RateQ64, RequestId,
    TypeError,
};
