//! After a journal was lost: live grants that it does not know, and what runs for them.
//!
//! Names derive from grants, so what runs is found by listing the machines. Only a machine that has been listed can say
//! that it holds nothing: until every one has, a grant that was not found is neither lost nor new.

use std::collections::BTreeMap;
use std::sync::Arc;

use coalition_compute::{LogEnd, OfferName};
use tokio::sync::OnceCell;

use super::{Context, LOOK};
use crate::backend::{Backend, BackendError, InstanceName, OwnedInstance, ProvisionedInstance};
use crate::fleet::chain;
use crate::journal::{Event, JournalError};
use crate::market::GrantSight;

/// Tries whose names are looked for.
const ATTEMPTS_LOOKED_FOR: u32 = 16;

/// The names a grant's instances can have.
pub(super) fn names_of(context: &Context, sight: &GrantSight) -> impl Iterator<Item = InstanceName> {
    let (provider, grant) = (context.id, sight.grant.request_id);
    (0..ATTEMPTS_LOOKED_FOR).map(move |attempt| InstanceName::derive(&provider, &grant, attempt))
}

/// What every machine held when it was first seen, listed once for all grants.
pub(super) struct Search {
    seen: BTreeMap<OfferName, OnceCell<Vec<OwnedInstance>>>,
}

/// Where a grant's instance is.
enum Found {
    Here(OfferName, OwnedInstance),
    Nowhere,
    /// Some machine has not been listed.
    Unseen,
}

impl Search {
    pub(super) fn new(backends: &[Arc<dyn Backend>]) -> Self {
        Self { seen: backends.iter().map(|backend| (backend.name().clone(), OnceCell::new())).collect() }
    }

    async fn held_by(&self, backend: &Arc<dyn Backend>) -> Result<&[OwnedInstance], BackendError> {
        match self.seen.get(backend.name()) {
            Some(cell) => cell.get_or_try_init(|| backend.list_owned()).await.map(Vec::as_slice),
            None => Ok(&[]),
        }
    }

    async fn find(&self, context: &Context, sight: &GrantSight) -> Found {
        let names: Vec<InstanceName> = names_of(context, sight).collect();
        let backends = context.parts.fleet.backends();
        let listed = futures::future::join_all(backends.iter().map(|backend| self.held_by(backend))).await;
        let mut found = Found::Nowhere;
        for (backend, held) in backends.iter().zip(listed) {
            match held {
                Ok(held) => {
                    if let Some(one) = held.iter().find(|one| names.contains(&one.name)) {
                        return Found::Here(backend.name().clone(), one.clone());
                    }
                }
                Err(error) => {
                    tracing::debug!(backend = %backend.name(), error = %chain(&error), "cannot look for lost grants");
                    found = Found::Unseen;
                }
            }
        }
        found
    }
}

/// Writes into a new journal what a live grant of an old one must have been, as soon as that can be known or its time is
/// over.
pub(super) async fn adopt(context: &Context, sight: &GrantSight, search: &Search) -> Result<(), JournalError> {
    let id = sight.grant.request_id;
    let found = loop {
        match search.find(context, sight).await {
            Found::Unseen if crate::now_ms() < sight.grant.valid_to_ms => tokio::time::sleep(LOOK).await,
            Found::Unseen | Found::Nowhere => break None,
            Found::Here(backend, one) => break Some((backend, one)),
        }
    };
    context.record(id, Event::Granted(Box::new(sight.grant.clone()))).await?;
    let Some((backend, OwnedInstance { name, running, .. })) = found else {
        if sight.serving {
            tracing::warn!(grant = %id, "nothing runs for a grant the log has in service; it is logged as lost");
            context.record(id, Event::Stopping(LogEnd::BackendLost)).await?;
        }
        return Ok(());
    };
    if let Some(here) = context.parts.fleet.get(&backend) {
        here.adopt(&sight.grant, &name);
    }
    context.record(id, Event::Opening).await?;
    context.record(id, Event::Provisioning { backend: backend.clone(), instance: name.clone() }).await?;
    if !running && !sight.serving {
        tracing::info!(grant = %id, "removing what an interrupted start left");
        return Ok(());
    }
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
