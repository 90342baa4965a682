//! What the market remembers about each card, request and grant.

use coalition::{AlmanacTick, EvidencePointer, ProviderId, UniqueId};
use serde::{Deserialize, Serialize};

use super::later::{GrantExtras, InventoryRecord};
use crate::sign::Signed;
use crate::types::{
    Attestation, Capabilities, Challenge, ClearingRecord, ComputeGrant, ComputeLog, ComputeRequest, GrantEnd,
    ProviderCard, RefusalReason, RequestEnd, UsageMetrics,
};

/// How much history a fold keeps. What is forgotten here stays in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Ended requests and grants kept after their deadline has passed (before it, they are always kept: forgetting one
    /// earlier would let its signed request be played again).
    pub finished: usize,
    /// Clearing records kept.
    pub clearings: usize,
    /// Logs kept per grant.
    pub logs_per_grant: usize,
}

impl Retention {
    /// What committee members keep. Part of the rules: how long an ended grant still takes a late log follows from it.
    pub const MACHINE: Self = Self { finished: 1_024, clearings: 0, logs_per_grant: 0 };
    /// What readers keep unless told otherwise.
    pub const READER: Self = Self { finished: 4_096, clearings: 4_096, logs_per_grant: 1_024 };
}

/// A card as posted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardRecord {
    /// The card.
    pub card: ProviderCard,
    /// Its entry.
    pub pointer: EvidencePointer,
    /// Tick its age counts from: the provider's own, unless that was ahead of the committee's.
    pub fresh_tick: u64,
    /// Committee time it was posted, Unix milliseconds.
    pub posted_ms: u64,
}

/// A provider the market knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderRecord {
    /// Its card, if it is in the market.
    pub card: Option<CardRecord>,
    /// Sequence of its last card statement.
    pub sequence: u64,
    /// `refreshed_at` of its last card: older cards of it stay refused.
    pub last_refreshed: u64,
    /// Live grants.
    pub live: u32,
    /// What is known of its platform, where the market asks. Written beside the records in a state's bytes, so that a market
    /// which does not ask has the bytes it always had.
    #[serde(skip)]
    pub platform: PlatformRecord,
    /// What it stated of its inventory. Written beside the records, too.
    #[serde(skip)]
    pub inventory: InventoryRecord,
}

/// What a provider's platform was asked, and proved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformRecord {
    /// `asked_at` of its last challenge: older statements of it stay refused.
    pub asked_at: u64,
    /// The challenge it has not answered yet.
    pub challenge: Option<Challenge>,
    /// Its last verified attestation, which may have expired.
    pub attestation: Option<Attestation>,
}

/// Capacity that live grants hold on one offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Thousandths of a core.
    pub cpu_millicores: u64,
    /// MiB.
    pub ram_mib: u64,
    /// Instances.
    pub instances: u64,
}

impl Held {
    /// This plus one instance of the given size.
    #[must_use]
    pub const fn plus(self, cpu_millicores: u32, ram_mib: u32) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_add(cpu_millicores as u64),
            ram_mib: self.ram_mib.saturating_add(ram_mib as u64),
            instances: self.instances.saturating_add(1),
        }
    }

    /// This less one instance of the given size.
    #[must_use]
    pub const fn minus(self, cpu_millicores: u32, ram_mib: u32) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_sub(cpu_millicores as u64),
            ram_mib: self.ram_mib.saturating_sub(ram_mib as u64),
            instances: self.instances.saturating_sub(1),
        }
    }

    /// Whether an offer with these capabilities can carry this much.
    #[must_use]
    pub const fn fits(&self, capabilities: &Capabilities) -> bool {
        self.cpu_millicores <= capabilities.max_cpu_millicores as u64
            && self.ram_mib <= capabilities.max_ram_mib as u64
            && self.instances <= capabilities.max_instances as u64
    }
}

/// Where a request stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestStage {
    /// Waiting for clearing.
    Open,
    /// Granted: the grant record says how that goes or went.
    Granted,
    /// Ended without a further grant.
    Ended(RequestEnd),
}

/// A request the market remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// The request as signed.
    pub signed: Signed<ComputeRequest>,
    /// Its entry.
    pub pointer: EvidencePointer,
    /// Committee time it was admitted, Unix milliseconds.
    pub admitted_ms: u64,
    /// Committee time at which its deadline has passed at the Almanac's cadence even if ticks stood still.
    pub deadline_ms: u64,
    /// Where it stands.
    pub stage: RequestStage,
    /// Providers that refused it, in order.
    pub refusals: Vec<(ProviderId, RefusalReason)>,
}

impl RequestRecord {
    /// The request.
    #[must_use]
    pub const fn request(&self) -> &ComputeRequest {
        &self.signed.statement
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub const fn is_past_deadline(&self, tick: u64, time_ms: u64) -> bool {
        tick >= self.request().deadline.0 || time_ms >= self.deadline_ms
    }

    /// Whether this provider refused the request.
    #[must_use]
    pub fn was_refused_by(&self, provider: &ProviderId) -> bool {
        self.refusals.iter().any(|(refuser, _)| refuser == provider)
    }
}

/// Where a grant stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrantStage {
    /// Made; the provider has not said anything yet.
    Granted,
    /// The provider serves it.
    Serving,
    /// Ended; its capacity is free.
    Ended(GrantEnd),
}

/// One log of a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The log.
    pub log: ComputeLog,
    /// Whether it came after the grant had ended without it.
    pub late: bool,
    /// Its entry.
    pub pointer: EvidencePointer,
}

/// A grant the market remembers. After a refusal and a new clearing, the new grant takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// The grant, as long as accepted extensions have made it: `duration_sec`, `valid_to` and `valid_to_ms` are not the entry's then.
    pub grant: ComputeGrant,
    /// Its entry.
    pub pointer: EvidencePointer,
    /// Committee time of the grant, Unix milliseconds.
    pub granted_ms: u64,
    /// Where it stands.
    pub stage: GrantStage,
    /// When its requester asked to end it, Unix milliseconds.
    pub ending_ms: Option<u64>,
    /// Sum of all logs.
    pub usage: UsageMetrics,
    /// Number of the last log, 0 before the first.
    pub log_count: u32,
    /// End of the last log's window.
    pub logged_to: AlmanacTick,
    /// Whether a final log has arrived, in time or late.
    pub final_log: bool,
    /// The newest logs, as many as the fold keeps.
    pub logs: Vec<LogEntry>,
    /// Its extensions and its requester's usage reports. Written beside the records, so that a market without any has the
    /// bytes it always had.
    #[serde(skip)]
    pub extras: GrantExtras,
}

impl GrantRecord {
    /// Whether the grant still holds capacity.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        !matches!(self.stage, GrantStage::Ended(_))
    }
}

/// A clearing record with its entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearingEntry {
    /// The record.
    pub record: ClearingRecord,
    /// Its entry.
    pub pointer: EvidencePointer,
    /// Committee time of the round, Unix milliseconds.
    pub time_ms: u64,
}

/// What the next round needs to know about the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastClearing {
    /// Committee time, Unix milliseconds.
    pub time_ms: u64,
    /// Leaf hash of its last clearing entry.
    pub digest: UniqueId,
}
