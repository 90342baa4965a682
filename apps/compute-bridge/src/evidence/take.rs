//! From what a backend tells of a machine to a signed snapshot.

use coalition::{ProviderId, RequestId, UniqueId};
use coalition_cloud::{Counts, Telemetry, Window};
use coalition_compute::{
    Invalid, Signed, TelemetryCounts, TelemetryFact, TelemetryPoint, TelemetrySeries, TelemetrySnapshot, UsageMetrics,
};
use ed25519_dalek::SigningKey;

use crate::backend::{BackendError, InstanceName};

/// What a backend tells of one machine of its cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Which cloud.
    pub cloud: &'static str,
    /// Its region, as the cloud calls it.
    pub region: String,
    /// What its API says.
    pub telemetry: Telemetry,
}

/// What a snapshot is of.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// The Compute organism.
    pub market: UniqueId,
    /// Who serves the grant, and signs.
    pub provider: ProviderId,
    /// The grant.
    pub grant: RequestId,
    /// The machine.
    pub instance: &'a InstanceName,
    /// The window that was asked about.
    pub window: Window,
    /// What was metered here.
    pub metered: Option<UsageMetrics>,
}

/// Why there is no snapshot, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Untaken {
    /// The cloud did not tell.
    #[error("the cloud does not tell ({})", .0.kind.as_str())]
    Refused(#[source] BackendError),
    /// It did not in time.
    #[error("the cloud does not tell within {0} s")]
    Late(u64),
    /// It has counted nothing yet.
    #[error("the cloud has counted nothing of it yet")]
    Nothing,
    /// What it told does not fit into a snapshot.
    #[error("what the cloud tells does not fit into a snapshot")]
    Unfit(#[source] Invalid),
    /// It could not be kept.
    #[error("it could not be kept")]
    Unkept(#[source] super::EvidenceError),
    /// Keeping it did not come to an end.
    #[error("it was not kept: the bridge stumbled over it")]
    Broken,
}

impl Taken {
    /// The signed snapshot.
    ///
    /// # Errors
    /// [`Untaken::Nothing`], [`Untaken::Unfit`].
    pub fn sign(self, about: &About<'_>, key: &SigningKey) -> Result<Signed<TelemetrySnapshot>, Untaken> {
        let Telemetry { host, facts, series } = self.telemetry;
        if series.is_empty() {
            return Err(Untaken::Nothing);
        }
        let facts = facts.into_iter().map(|fact| TelemetryFact {
            call: fact.call.to_owned(),
            name: fact.name,
            value: fact.value,
        });
        let series = series.into_iter().map(|one| TelemetrySeries {
            call: one.call.to_owned(),
            metric: one.metric,
            statistic: one.statistic.to_owned(),
            counts: match one.counts {
                Counts::CpuPercent => TelemetryCounts::CpuPercent,
                Counts::CpuSeconds => TelemetryCounts::CpuSeconds,
                Counts::NetBytes => TelemetryCounts::NetBytes,
            },
            period_s: one.period_s,
            points: one
                .points
                .into_iter()
                .map(|point| TelemetryPoint { at_s: point.at_s, value: point.value })
                .collect(),
        });
        let snapshot = TelemetrySnapshot {
            market: about.market,
            provider: about.provider,
            grant_id: about.grant,
            instance: about.instance.to_string(),
            host,
            cloud: self.cloud.to_owned(),
            region: self.region,
            from_s: about.window.from_s,
            to_s: about.window.to_s,
            taken_ms: crate::now_ms(),
            metered: about.metered,
            facts: facts.collect(),
            series: series.collect(),
        };
        Signed::sign(snapshot, key, &about.market).map_err(Untaken::Unfit)
    }
}
