//! Asking a cloud what it counted of a machine that ends. What it does not tell in time, the log does without.

use std::sync::Arc;
use std::time::Duration;

use coalition_cloud::{Moment, Window};
use coalition_compute::{ComputeGrant, OfferName, UsageMetrics};

use super::grant::Work;
use crate::backend::InstanceName;
use crate::evidence::{About, Kept, Untaken};
use crate::fleet::chain;

/// How long the end of a grant waits for it.
const PATIENCE: Duration = Duration::from_secs(4);

impl Work {
    /// Takes and keeps a snapshot, when this is the moment to ask this backend. Never fails: the log does without.
    pub(super) async fn keep_telemetry(
        &self,
        moment: Moment,
        grant: &ComputeGrant,
        (backend, instance): (&OfferName, &InstanceName),
        metered: Option<UsageMetrics>,
    ) {
        let parts = &self.context.parts;
        let Some(here) = parts.fleet.get(backend).filter(|here| here.telemetry_moment() == Some(moment)) else {
            return;
        };
        let began_s = grant.valid_to_ms.saturating_sub(u64::from(grant.duration_sec) * 1_000) / 1_000;
        let to_s = (crate::now_ms() / 1_000).max(began_s + 1);
        let about = About {
            market: parts.market.organism(),
            provider: self.context.id,
            grant: self.id,
            instance,
            window: Window { from_s: began_s, to_s },
            metered,
        };
        let taken = tokio::time::timeout(PATIENCE, here.telemetry(instance, about.window)).await;
        let signed = match taken {
            Err(_) => Err(Untaken::Late(PATIENCE.as_secs())),
            Ok(Err(error)) => Err(Untaken::Refused(error)),
            Ok(Ok(taken)) => taken.sign(&about, &parts.signer),
        };
        let kept = match signed {
            Ok(signed) => {
                let store = Arc::clone(&parts.evidence);
                let keeping = tokio::task::spawn_blocking(move || store.keep(&signed)).await;
                keeping.map_or(Err(Untaken::Broken), |kept| kept.map_err(Untaken::Unkept))
            }
            Err(untaken) => Err(untaken),
        };
        self.say_evidence(backend, &kept);
    }

    fn say_evidence(&self, backend: &OfferName, kept: &Result<Kept, Untaken>) {
        match kept {
            Ok(kept) => {
                tracing::info!(grant = %self.id, digest = %kept.digest, "what the cloud counted is kept as evidence")
            }
            Err(untaken) => {
                tracing::warn!(grant = %self.id, %backend, error = %chain(untaken), "no evidence from the cloud");
                self.context.parts.status.event(format!("a machine on {backend} ended without evidence: {untaken}"));
            }
        }
    }
}
