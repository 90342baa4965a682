//! What a provider says it holds, beside what the log says.

use coalition::{AlmanacRange, ProviderId, RequestId, SCHEMA_VERSION_U8, UniqueId, hash_many};
use serde::{Deserialize, Serialize};

const TAG_OPEN_GRANTS: &[u8] = b"coalition/compute/open-grants";

/// A provider's inventory of one window, signed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateInventory {
    /// The provider.
    pub provider: ProviderId,
    /// Index of the newest entry of the log the provider had folded when it looked.
    pub as_of: u64,
    /// The ticks this speaks for; starts at or after the end of the statement before. May be empty.
    pub window: AlmanacRange,
    /// Grants it holds open.
    pub open: u32,
    /// [`open_grants_digest`] of them.
    pub grants: UniqueId,
    /// Instances found that an open grant explains.
    pub owned: u32,
    /// Those of them that were found again by a provider which had forgotten them.
    pub adopted: u32,
    /// Instances found that no open grant explains.
    pub orphaned: u32,
    /// Backends that could not be looked at; what is there is in none of the counts.
    pub blind: u32,
}

/// `hash_many(0x01, "coalition/compute/open-grants", ids in ascending order)`.
#[must_use]
pub fn open_grants_digest(ids: impl IntoIterator<Item = RequestId>) -> UniqueId {
    let mut ids: Vec<RequestId> = ids.into_iter().collect();
    ids.sort_unstable();
    let version = [SCHEMA_VERSION_U8];
    let mut parts: Vec<&[u8]> = vec![&version, TAG_OPEN_GRANTS];
    parts.extend(ids.iter().map(|id| id.as_bytes().as_slice()));
    hash_many(&parts)
}
