//! What a provider reports about a grant it served.

use coalition::{AlmanacRange, EvidencePointer, ProviderId, RequestId};
use serde::{Deserialize, Serialize};

/// Measured usage of one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageMetrics {
    /// CPU time used, in core-seconds.
    pub cpu_core_seconds: u64,
    /// Memory held over time, in MiB-seconds.
    pub ram_mib_seconds: u64,
    /// Bytes sent and received.
    pub net_bytes: u64,
}

impl UsageMetrics {
    /// Sum of two windows, saturating: usage is a provider's claim and must not stop a committee by overflowing.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            cpu_core_seconds: self.cpu_core_seconds.saturating_add(other.cpu_core_seconds),
            ram_mib_seconds: self.ram_mib_seconds.saturating_add(other.ram_mib_seconds),
            net_bytes: self.net_bytes.saturating_add(other.net_bytes),
        }
    }
}

/// Why serving stopped, as the provider states it in its final log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogEnd {
    /// The workload exited by itself.
    Exited,
    /// The grant's time was up.
    Deadline,
    /// The requester ended the grant.
    EndedByRequester,
    /// The workload never became reachable.
    ProvisioningFailed,
    /// The machine was lost while it ran.
    BackendLost,
    /// The provider stopped it to shut down.
    Draining,
}

/// A usage log of one window of one grant, signed by the provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeLog {
    /// The grant.
    pub grant_id: RequestId,
    /// The provider the grant names.
    pub provider: ProviderId,
    /// 1 for the first log of the grant, then one more each: gaps and repeats are refused.
    pub number: u32,
    /// The ticks covered; starts at or after the end of the window before. May be empty.
    pub window: AlmanacRange,
    /// Usage measured in this window alone.
    pub usage: UsageMetrics,
    /// Commit that backs the numbers, if any.
    pub evidence: Option<EvidencePointer>,
    /// Present on the final log: serving stopped, the capacity is free.
    pub ended: Option<LogEnd>,
}
