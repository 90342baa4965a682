//! Organisms: what one publishes as its own handshake, and how others refer to it.

use crate::identity::{Preimage, UniqueId};
use crate::lattice::LatticeConfig;
use crate::tickets::AclComposition;
use crate::types::MemberId;

const TAG_ORGANISM: &[u8] = b"coalition/organism";
const TAG_REF: &[u8] = b"coalition/organism-ref";
const TAG_CONTENT: &[u8] = b"coalition/content";
const TAG_CONTENT_HASH: &[u8] = b"coalition/content-hash";

/// The parameters of an organism that affect its state, as their canonical bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContentParams<'a> {
    preimage: &'a [u8],
}

impl<'a> ContentParams<'a> {
    /// No parameters.
    pub const EMPTY: Self = Self { preimage: &[] };

    /// Parameters with this canonical encoding; usually `CommitteeContent::to_bytes`.
    #[must_use]
    pub const fn new(preimage: &'a [u8]) -> Self {
        Self { preimage }
    }

    /// The canonical encoding.
    #[must_use]
    pub const fn preimage(&self) -> &'a [u8] {
        self.preimage
    }

    /// Digest of the canonical encoding.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        Preimage::new(TAG_CONTENT).part(self.preimage).hash()
    }
}

/// Digest of content and access rules alone: what a reference pins to follow every rotation.
pub(crate) fn content_hash(content: &ContentParams<'_>, acl: &AclComposition<'_>) -> UniqueId {
    Preimage::new(TAG_CONTENT_HASH).id(content.fingerprint()).id(acl.fingerprint()).hash()
}

/// How a coalition or an organism refers to another organism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrganismRef<'a> {
    /// The part it plays for whoever refers to it, for example `oracle`.
    pub role: &'a str,
    /// The organism's id; changes only when it retires.
    pub stable_id: UniqueId,
    /// Its content hash, when the reference is to follow every rotation. `None`: not pinned.
    pub content_hash: Option<UniqueId>,
}

impl<'a> OrganismRef<'a> {
    /// A reference that pins no content.
    #[must_use]
    pub const fn by_stable_id(role: &'a str, stable_id: UniqueId) -> Self {
        Self { role, stable_id, content_hash: None }
    }

    /// The same reference, pinned to a content hash.
    #[must_use]
    pub const fn pinned(self, content_hash: UniqueId) -> Self {
        Self { content_hash: Some(content_hash), ..self }
    }

    /// The organism's stable id.
    #[must_use]
    pub const fn stable_id(&self) -> UniqueId {
        self.stable_id
    }

    /// The pinned content hash, if any.
    #[must_use]
    pub const fn content_hash(&self) -> Option<UniqueId> {
        self.content_hash
    }

    /// Digest of the whole reference: role, stable id and pin.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        Preimage::new(TAG_REF).part(self.role.as_bytes()).id(self.stable_id).optional(self.content_hash).hash()
    }

    /// The organism's short id; the same in every coalition.
    #[must_use]
    pub fn member_id(&self) -> MemberId {
        MemberId::from_stable_id(self.stable_id)
    }
}

/// What an organism publishes as its own handshake, standalone or composite.
///
/// ```
/// use coalition::{AclComposition, ContentParams, LatticeConfig, OrganismConfig, OrganismRef, unique_id};
///
/// let testnet_1a = LatticeConfig {
///     instance_name: "testnet-1a",
///     stable_id: unique_id!("testnet-1a"),
///     content_hash: None,
/// };
/// let searcher_ref = OrganismRef::by_stable_id("searcher", unique_id!("searcher"));
/// let policy_preimage = b"window=30".to_vec();
///
/// let cfg = OrganismConfig {
///     name:      "accuracy-reputation",
///     lattices:  &[testnet_1a],
///     organisms: &[searcher_ref],
///     content:   ContentParams::new(&policy_preimage),
///     acl:       AclComposition::OPEN,
/// };
///
/// let id = cfg.organism_id();
/// let ch = cfg.content_hash();
/// assert_ne!(id, ch);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrganismConfig<'a> {
    /// Role name, for example `intents` or `ledger`.
    pub name: &'a str,
    /// Lattices whose public surfaces it reads or writes. Order matters.
    pub lattices: &'a [LatticeConfig<'a>],
    /// Organisms whose public surfaces it reads or writes. Order matters.
    pub organisms: &'a [OrganismRef<'a>],
    /// Parameters that affect its state.
    pub content: ContentParams<'a>,
    /// What whoever bonds with it has to show; for a committee, whoever writes to it.
    pub acl: AclComposition<'a>,
}

impl OrganismConfig<'_> {
    /// The organism's id. Folds no coalition, so it is one identity wherever the organism is referenced.
    #[must_use]
    pub fn organism_id(&self) -> UniqueId {
        Preimage::new(TAG_ORGANISM)
            .part(self.name.as_bytes())
            .list(self.lattices.iter().map(LatticeConfig::fingerprint))
            .list(self.organisms.iter().map(OrganismRef::fingerprint))
            .id(self.content.fingerprint())
            .id(self.acl.fingerprint())
            .hash()
    }

    /// Digest of content and access rules alone.
    #[must_use]
    pub fn content_hash(&self) -> UniqueId {
        content_hash(&self.content, &self.acl)
    }

    /// Id of the organism's committee.
    #[must_use]
    pub fn committee_id(&self) -> UniqueId {
        self.organism_id().derive("committee")
    }

    /// The reference others hold, pinned to the present content.
    #[must_use]
    pub fn reference<'r>(&self, role: &'r str) -> OrganismRef<'r> {
        OrganismRef::by_stable_id(role, self.organism_id()).pinned(self.content_hash())
    }
}
