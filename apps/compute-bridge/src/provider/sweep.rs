//! The sweep: everything on the backends that this bridge made is explained by the journal, or destroyed after a grace
//! period. Never leak an instance, never kill one that a live grant explains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coalition_compute::{LogEnd, OfferName};

use super::Context;
use crate::backend::{InstanceName, ProvisionedInstance};
use crate::fleet::chain;
use crate::journal::{Event, JournalError};
use crate::market::GrantSight;

/// Tries whose names are looked for when a journal was lost.
const ATTEMPTS_LOOKED_FOR: u32 = 16;

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
        let explained = explained(context);
        let here = backend.name();
        let orphans: BTreeSet<(OfferName, InstanceName)> =
            owned.into_iter().map(|one| (here.clone(), one.name)).filter(|one| !explained.contains(one)).collect();
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

fn explained(context: &Context) -> BTreeSet<(OfferName, InstanceName)> {
    let open = context.parts.journal.open_grants();
    open.iter()
        .filter_map(|(_, state)| state.instance().map(|(backend, name)| (backend.clone(), name.clone())))
        .collect()
}

/// Writes into a new journal what a live grant of an old one must have been.
pub(super) async fn adopt(
    context: &Context,
    sight: &GrantSight,
    owned: &BTreeMap<InstanceName, OfferName>,
) -> Result<(), JournalError> {
    let id = sight.grant.request_id;
    let name_of = |attempt| InstanceName::derive(&context.id, &id, attempt);
    let found = (0..ATTEMPTS_LOOKED_FOR).map(name_of).find_map(|name| Some((owned.get(&name)?.clone(), name)));
    context.record(id, Event::Granted(Box::new(sight.grant.clone()))).await?;
    context.record(id, Event::Opening).await?;
    let Some((backend, name)) = found else {
        tracing::warn!(grant = %id, "nothing runs for a grant the log has in service; it is logged as lost");
        context.record(id, Event::Stopping(LogEnd::BackendLost)).await?;
        return Ok(());
    };
    if let Some(here) = context.parts.fleet.get(&backend) {
        here.adopt(&sight.grant, &name);
    }
    context.record(id, Event::Provisioning { backend: backend.clone(), instance: name.clone() }).await?;
    // Where it is reached was on the receipt, which its requester has; nobody needs it here any more.
    let instance = ProvisionedInstance {
        backend,
        name,
        host: String::new(),
        port: 0,
        user: String::new(),
        isolation: coalition_host::types::IsolationLevel::default(),
        isolation_text: String::new(),
    };
    context.record(id, Event::Running { instance: Box::new(instance), sealed_receipt: Vec::new() }).await?;
    context.record(id, Event::Replied).await?;
    tracing::info!(grant = %id, "adopted a running instance");
    Ok(())
}
