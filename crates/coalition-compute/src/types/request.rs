//! What a requester asks for.

use coalition::{AlmanacTick, MemberId, Mrtd, RateQ64, RequestId, SCHEMA_VERSION_U8, UniqueId, hash_many};
use serde::{Deserialize, Serialize};

use super::card::check_rate;
use super::{Invalid, Region};
use crate::codec;

const TAG_REQUEST_ID: &[u8] = b"coalition/compute/request-id";
const TAG_ANONYMOUS: &[u8] = b"coalition/compute/anonymous-requester";

/// Least CPU of a request, in thousandths of a core: the least a host can hold a workload to.
pub const MIN_CPU_MILLICORES: u32 = 10;
/// Least memory of a request, in MiB: less does not start.
pub const MIN_RAM_MIB: u32 = 8;

/// A request for one machine, signed by a key made for this request alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeRequest {
    /// Id of the request and of the grant that answers it; must equal [`request_id`] of organism, signing key and nonce,
    /// so nobody can occupy an id they do not hold the key of.
    pub request_id: RequestId,
    /// Sixteen random bytes chosen by the requester.
    #[serde(with = "codec::hex_bytes")]
    pub nonce: [u8; 16],
    /// Who asks: [`anonymous_requester`] of the signing key, or a member id the requester chooses to disclose. A disclosed
    /// id is a claim; this module cannot verify it.
    pub requester: MemberId,
    /// Stable id of the workload organism.
    pub workload: UniqueId,
    /// blake3 of the one image build the requester insists on; equals `image_hash` when present.
    pub pin: Option<UniqueId>,
    /// blake3 of the image to boot. The provider must check it before it starts anything.
    pub image_hash: UniqueId,
    /// CPU, in thousandths of a core; at least [`MIN_CPU_MILLICORES`].
    pub cpu_millicores: u32,
    /// Memory, in MiB; at least [`MIN_RAM_MIB`].
    pub ram_mib: u32,
    /// How long, in seconds, counted from the grant; at least 1, at most the module's `max_duration_sec`.
    pub duration_sec: u32,
    /// Where, or anywhere.
    pub region: Option<Region>,
    /// Whether the workload must run inside TDX.
    pub tdx_required: bool,
    /// The TDX measurement it must run under; needs `tdx_required`.
    pub pinned_mrtd: Option<Mrtd>,
    /// Highest acceptable effective rate, in USD per core-hour with memory included (see `effective_core_hour`).
    pub max_rate: RateQ64,
    /// Opaque settlement evidence. Stored, never interpreted.
    pub settlement: UniqueId,
    /// The request ends ungranted when this tick is reached.
    pub deadline: AlmanacTick,
    /// Digest of the sealed envelope in the shuffle that only the winning provider may open.
    pub bearer_pointer: UniqueId,
}

impl ComputeRequest {
    /// Checks every limit that does not depend on the module or the signing key.
    ///
    /// # Errors
    /// [`Invalid`] naming the first field that breaks one.
    pub fn check(&self) -> Result<(), Invalid> {
        Invalid::check_range(
            "cpu_millicores",
            u64::from(self.cpu_millicores),
            u64::from(MIN_CPU_MILLICORES),
            u64::from(u32::MAX),
        )?;
        Invalid::check_range("ram_mib", u64::from(self.ram_mib), u64::from(MIN_RAM_MIB), u64::from(u32::MAX))?;
        Invalid::check_range("duration_sec", u64::from(self.duration_sec), 1, u64::from(u32::MAX))?;
        check_rate("max_rate", self.max_rate)?;
        if self.pinned_mrtd.is_some() && !self.tdx_required {
            return Err(Invalid::Contradiction { what: "pinned_mrtd needs tdx_required; set it or drop the pin" });
        }
        if self.pin.is_some_and(|pin| pin != self.image_hash) {
            return Err(Invalid::Contradiction {
                what: "pin differs from image_hash; a pin is the blake3 of the image to boot",
            });
        }
        Ok(())
    }
}

/// The id of the request that `request_key` makes under `nonce` at the Compute organism `organism`.
#[must_use]
pub fn request_id(organism: &UniqueId, request_key: &[u8; 32], nonce: &[u8; 16]) -> RequestId {
    RequestId(hash_many(&[&[SCHEMA_VERSION_U8], TAG_REQUEST_ID, organism.as_bytes(), request_key, nonce]))
}

/// The member id a requester shows when it wants to show none: a hash of its per-request key.
#[must_use]
pub fn anonymous_requester(request_key: &[u8; 32]) -> MemberId {
    MemberId::from_stable_id(hash_many(&[&[SCHEMA_VERSION_U8], TAG_ANONYMOUS, request_key]))
}
