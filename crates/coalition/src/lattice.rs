//! A reference to a block-building lattice, source-compatible with the `builder` crate's own type.

use crate::identity::{Preimage, UniqueId};
use crate::types::MemberId;

const TAG_LATTICE: &[u8] = b"coalition/lattice-ref";

/// A lattice as a coalition sees it: a name and the ids its operator publishes.
///
/// The full specification of a lattice belongs to the `builder` crate; the two accessors have its signatures.
///
/// ```
/// use coalition::{LatticeConfig, UniqueId, unique_id};
///
/// const TESTNET_1A_STABLE_ID: UniqueId = unique_id!("testnet-1a");
/// const TESTNET_1A: LatticeConfig<'static> = LatticeConfig {
///     instance_name: "testnet-1a",
///     stable_id:     TESTNET_1A_STABLE_ID,
///     content_hash:  None,
/// };
/// const ID: UniqueId = TESTNET_1A.stable_id();
/// assert_eq!(ID, TESTNET_1A_STABLE_ID);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LatticeConfig<'a> {
    /// The lattice's name, chosen by its operator.
    pub instance_name: &'a str,
    /// Changes only when the lattice retires.
    pub stable_id: UniqueId,
    /// Changes with every operational rotation (access rules, measurements, policy). `None`: not pinned.
    pub content_hash: Option<UniqueId>,
}

impl LatticeConfig<'_> {
    /// The lattice's stable id.
    #[must_use]
    pub const fn stable_id(&self) -> UniqueId {
        self.stable_id
    }

    /// The pinned content hash, if any.
    #[must_use]
    pub const fn content_hash(&self) -> Option<UniqueId> {
        self.content_hash
    }

    /// Digest of the whole reference: name, stable id and pin.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        Preimage::new(TAG_LATTICE)
            .part(self.instance_name.as_bytes())
            .id(self.stable_id)
            .optional(self.content_hash)
            .hash()
    }

    /// The lattice's short id; the same in every coalition.
    #[must_use]
    pub fn member_id(&self) -> MemberId {
        MemberId::from_stable_id(self.stable_id)
    }
}
