//! The sweep: everything on the backends that this bridge made is explained by the journal, or destroyed after a grace
//! period. Never leak an instance, never kill one that a live grant explains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coalition_compute::OfferName;

use super::Context;
use crate::backend::InstanceName;
use crate::fleet::chain;

/// Sweeps for ever.
pub(super) async fn keep(context: Arc<Context>) {
    let pause = context.parts.tuning.orphan_grace.clamp(Duration::from_secs(1), Duration::from_secs(60));
    let mut first_seen: BTreeMap<(OfferName, InstanceName), Instant> = BTreeMap::new();
    loop {
        sweep(&context, &mut first_seen).await;
        tokio::time::sleep(pause).await;
    }
}

async fn sweep(context: &Context, first_seen: &mut BTreeMap<(OfferName, InstanceName), Instant>) {
    for backend in context.parts.fleet.backends() {
        // The listing comes before the look into the journal: what appears in between is younger than its intent.
        let owned = match backend.list_owned().await {
            Ok(owned) => owned,
            Err(error) => {
                tracing::debug!(backend = %backend.name(), error = %chain(&error), "cannot sweep what cannot be seen");
                continue;
            }
        };
        let (explained, expected) = (explained(context), expected(context));
        let here = backend.name();
        let orphans: BTreeSet<(OfferName, InstanceName)> = owned
            .into_iter()
            .map(|one| (here.clone(), one.name))
            .filter(|(_, name)| !explained.contains(name) && !expected.contains(name))
            .collect();
        first_seen.retain(|key, _| key.0 != *here || orphans.contains(key));
        for orphan in orphans {
            let since = *first_seen.entry(orphan.clone()).or_insert_with(Instant::now);
            if since.elapsed() < context.parts.tuning.orphan_grace {
                continue;
            }
            match backend.terminate(&orphan.1).await {
                Ok(()) => {
                    tracing::warn!(backend = %here, instance = %orphan.1, "destroyed an instance that no live grant explains");
                    context.parts.status.orphan_destroyed();
                    first_seen.remove(&orphan);
                    context.capacity.notify_one();
                }
                Err(error) => tracing::warn!(backend = %here, error = %chain(&error), "an orphan is still there"),
            }
        }
    }
}

/// Names of instances that open grants have. A name says which grant and try it is for; what its machine is called in the
/// boot file may change.
fn explained(context: &Context) -> BTreeSet<InstanceName> {
    let open = context.parts.journal.open_grants();
    open.iter().filter_map(|(_, state)| state.instance().map(|(_, name)| name.clone())).collect()
}

/// Names that live grants unknown to the journal may have: after a lost journal, what runs for them is looked for, not
/// swept away.
pub(super) fn expected(context: &Context) -> BTreeSet<InstanceName> {
    context.unknown().iter().flat_map(|sight| super::adopt::names_of(context, sight)).collect()
}
