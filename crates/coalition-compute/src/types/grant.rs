//! What the committee allocates, and how an allocation ends.

use coalition::{AlmanacTick, MicroUsd, Mrtd, ProviderId, RateQ64, RequestId, UniqueId};
use serde::{Deserialize, Serialize};

use super::{LogEnd, OfferName, Region};
use crate::codec;
use crate::config::ComputeParams;
use crate::sign::{RefuseGrant, Signed};

/// Where to find the provider of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHint {
    /// Network identity of the provider's bridge, as on the card that won.
    #[serde(with = "codec::hex_bytes")]
    pub provider_peer: [u8; 32],
    /// Its shuffle channel, as on the card that won.
    pub shuffle_reply: UniqueId,
}

/// One scheduled allocation: this provider, this image, this machine, this long, at this rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeGrant {
    /// The request answered; also the grant's id.
    pub request_id: RequestId,
    /// 1 for the first provider tried, one more after each refusal.
    pub attempt: u8,
    /// The provider that won.
    pub provider: ProviderId,
    /// Which of its offers the capacity is reserved on.
    pub offer: OfferName,
    /// Where to find it.
    pub endpoint_hint: EndpointHint,
    /// The envelope the provider may now open.
    pub bearer_pointer: UniqueId,
    /// The workload organism.
    pub workload: UniqueId,
    /// blake3 of the image to boot.
    pub image_hash: UniqueId,
    /// Where the machine stands.
    pub region: Region,
    /// Whether it must run inside TDX.
    pub tdx_required: bool,
    /// The measurement it must show: the requester's pin, else the offer's first one when TDX is required.
    pub expected_mrtd: Option<Mrtd>,
    /// CPU reserved, in thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory reserved, in MiB.
    pub ram_mib: u32,
    /// How long, in seconds.
    pub duration_sec: u32,
    /// What is paid, in USD per core-hour with memory included.
    pub rate: RateQ64,
    /// Tick of the clearing.
    pub valid_from: AlmanacTick,
    /// The tick expected at the deadline. Orders facts; the machine stops by `valid_to_ms`.
    pub valid_to: AlmanacTick,
    /// Wall-clock deadline, Unix milliseconds of committee time: clearing time plus duration. The host stops the workload
    /// then even if nobody tells it to.
    pub valid_to_ms: u64,
}

impl ComputeGrant {
    /// The grant as it is once an extension by `extra_sec` is accepted.
    #[must_use]
    pub fn extended(&self, extra_sec: u32, params: &ComputeParams) -> Self {
        let duration_sec = self.duration_sec.saturating_add(extra_sec);
        let ticks = params.ticks_for_ms(u64::from(duration_sec).saturating_mul(1_000));
        Self {
            duration_sec,
            valid_to: AlmanacTick(self.valid_from.0.saturating_add(ticks)),
            valid_to_ms: self.valid_to_ms.saturating_add(u64::from(extra_sec).saturating_mul(1_000)),
            ..self.clone()
        }
    }

    /// What the full duration costs at the grant's rate, rounded up; `None` when it does not fit.
    #[must_use]
    pub fn full_cost(&self) -> Option<MicroUsd> {
        self.rate.cost_of_ms(u64::from(self.cpu_millicores).checked_mul(u64::from(self.duration_sec))?)
    }
}

/// Why a provider cannot serve a grant it was given. Codes only: free text in a public log could name the requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// The shuffle did not release the envelope, or it did not open.
    EnvelopeUnavailable,
    /// The envelope and the grant name different images or sizes.
    EnvelopeMismatch,
    /// The image could not be fetched.
    ImageUnavailable,
    /// The image's blake3 is not the granted one.
    ImageMismatch,
    /// No backend has room after all.
    NoCapacity,
    /// Every backend failed.
    BackendFailed,
    /// The provider is shutting down.
    Draining,
    /// None of the above.
    Other,
    /// The image is larger than the provider takes, or unpacks to more than the disk that was asked for.
    ImageTooLarge,
    /// The image is none that the provider's hosts run: damaged, with an entry that is refused, or of a kind they do not take.
    ImageRefused,
}

/// How a grant ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantEnd {
    /// The provider's final log arrived in time.
    Logged(LogEnd),
    /// The provider refused before serving; the request is open again unless its requester had ended it.
    Refused(Box<Signed<RefuseGrant>>),
    /// Time and grace passed without any log.
    NoLog,
    /// Time and grace passed with interim logs but no final one.
    NoFinalLog,
}
