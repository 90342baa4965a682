//! The public record of clearing, and how requests end without a grant.

use coalition::{AlmanacTick, ProviderId, RateQ64, RequestId, UniqueId};
use serde::{Deserialize, Serialize};

use super::Region;
use crate::sign::{Signed, WithdrawRequest};

/// One cleared request. Names the winner only: offers that lost appear nowhere but inside `evidence`, a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearingRecord {
    /// Tick of the round.
    pub round: AlmanacTick,
    /// The request cleared.
    pub request_id: RequestId,
    /// The provider that won.
    pub winning_provider: ProviderId,
    /// What it is paid, in USD per core-hour with memory included.
    pub clearing_rate: RateQ64,
    /// Region of the machine.
    pub region: Region,
    /// Whether TDX was required.
    pub tdx_required: bool,
    /// Commitment to everything the decision folded: request entry, every eligible card entry, their rates, in rank order.
    pub evidence: UniqueId,
}

/// The filters an offer passes before price decides, in the order they are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterKind {
    /// The provider refused this request before.
    Refused,
    /// The offer does not cover the region.
    Region,
    /// TDX is required and the offer has none.
    Posture,
    /// The pinned measurement is not among the offer's.
    PinnedMrtd,
    /// A single instance of the offer is too small.
    Size,
    /// Too little free capacity is left.
    Capacity,
    /// The card is too old.
    CardAge,
    /// Attestation is missing or too old.
    Attestation,
    /// Reputation is below the floor. Not applied by any rule of this version.
    Reputation,
    /// The effective rate is above the request's cap.
    PriceCap,
}

/// How many offers one filter removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedBy {
    /// The filter.
    pub filter: FilterKind,
    /// Offers it removed that every filter before it had let through.
    pub offers: u32,
}

/// Why no offer was eligible when a request expired: counts only, nobody is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// Offers on all cards at that time.
    pub considered: u32,
    /// Filters that removed at least one, in order of application.
    pub removed: Vec<RemovedBy>,
}

/// How a request ended without a (further) grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestEnd {
    /// Its deadline passed.
    Expired(Expiry),
    /// The requester withdrew it.
    Withdrawn(Box<Signed<WithdrawRequest>>),
    /// As many providers refused it as the module tries.
    Exhausted {
        /// Providers that refused.
        attempts: u8,
    },
}
