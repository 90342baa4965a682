//! What a requester measured from inside its machine, and how it compares with what its provider logged.

use coalition::RequestId;
use serde::{Deserialize, Serialize};

use super::UsageMetrics;

/// Difference from which a reader should look twice, in thousandths.
pub const SUSPICIOUS_PERMILLE: u64 = 20;

/// Totals of a grant as its machine's own counters have them, signed by the request's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportUsage {
    /// The grant.
    pub grant_id: RequestId,
    /// 1 for the first report of the grant, then one more each.
    pub number: u32,
    /// When it was measured, Unix milliseconds by the requester's clock.
    pub measured_ms: u64,
    /// CPU time since the machine began, milliseconds of one core.
    pub cpu_core_ms: u64,
    /// Memory in use when measured, MiB.
    pub ram_mib: u32,
    /// Bytes in and out since the machine began; absent where it has no interface of its own.
    pub net_bytes: Option<u64>,
    /// Where the numbers were read.
    pub source: CounterSource,
}

/// Which counters were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CounterSource {
    /// The machine's control group: what the kernel charged it.
    Cgroup,
    /// `/proc`: the sum over the processes seen inside. Misses what nobody waited for.
    Proc,
}

/// A provider's total beside a requester's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// As logged by the provider.
    pub logged: u64,
    /// As reported by the requester.
    pub reported: u64,
    /// How far apart, in thousandths of the larger; nothing below what the log's unit can tell.
    pub permille: u64,
    /// Whether that is more than [`SUSPICIOUS_PERMILLE`].
    pub suspicious: bool,
}

impl Compared {
    /// Compares two totals; `unit` is the coarser resolution of the two, which makes no difference.
    #[must_use]
    pub fn of(logged: u64, reported: u64, unit: u64) -> Self {
        let apart = logged.abs_diff(reported);
        let apart = if apart < unit { 0 } else { apart };
        let larger = u128::from(logged.max(reported).max(1));
        let permille = u64::try_from(u128::from(apart) * 1_000 / larger).unwrap_or(u64::MAX);
        let suspicious = u128::from(apart) * 1_000 > larger * u128::from(SUSPICIOUS_PERMILLE);
        Self { logged, reported, permille, suspicious }
    }

    /// CPU, in milliseconds of one core: logs count whole seconds.
    #[must_use]
    pub fn cpu(logged: &UsageMetrics, report: &ReportUsage) -> Self {
        Self::of(logged.cpu_core_seconds.saturating_mul(1_000), report.cpu_core_ms, 1_000)
    }

    /// Bytes, where the machine has an interface of its own.
    #[must_use]
    pub fn net(logged: &UsageMetrics, report: &ReportUsage) -> Option<Self> {
        report.net_bytes.map(|reported| Self::of(logged.net_bytes, reported, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_percent_is_the_line_and_rounding_is_no_difference() {
        let compared = |logged, reported| Compared::of(logged, reported, 1_000);
        assert_eq!((compared(3_000, 3_999).permille, compared(0, 999).suspicious), (0, false));
        let (at, above) = (compared(100_000, 98_000), compared(100_000, 97_999));
        assert_eq!((at.permille, at.suspicious), (20, false));
        assert_eq!((above.permille, above.suspicious), (20, true));
        assert_eq!(compared(0, u64::MAX).permille, 1_000);
        assert_eq!(
            compared(u64::MAX, 0),
            Compared { reported: 0, logged: u64::MAX, permille: 1_000, suspicious: true }
        );
    }
}
