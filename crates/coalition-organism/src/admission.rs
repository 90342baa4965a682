//! The client's side of a door: showing tickets where a member asks for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use coalition_tickets::{Bearer, Nonce, Presentation};
use coalition_universe::{CallError, PeerId};
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    client::Shared,
    wire::{self, AdmitAnswer, AdmitRequest, ChallengeAnswer, ChallengeRequest, NOT_ADMITTED, method},
};

/// Longest time one showing may take, quotes included.
const SHOWING: Duration = Duration::from_secs(20);

/// Makes what a client shows at the doors of organisms.
pub trait TicketSource: Send + Sync + 'static {
    /// What to show as `bearer`. `challenge` is what this door wants quoted in attestations. May take seconds.
    fn present(&self, bearer: Bearer, challenge: Nonce) -> BoxFuture<'static, Result<Presentation, String>>;
}

/// What a client knows about its own admission.
#[derive(Default)]
pub(crate) struct Admissions {
    source: std::sync::RwLock<Option<Arc<dyn TicketSource>>>,
    /// When each member last admitted this client. One showing at a time: what waits behind it may be admitted by it.
    shown: tokio::sync::Mutex<BTreeMap<PeerId, Instant>>,
}

impl Admissions {
    pub(crate) fn set(&self, source: Arc<dyn TicketSource>) {
        *self.source.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(source);
    }

    pub(crate) fn source(&self) -> Option<Arc<dyn TicketSource>> {
        self.source.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Whether a member refused because it has not admitted this client.
pub(crate) fn is_not_admitted(error: &CallError) -> bool {
    matches!(error, CallError::Refused(fault) if fault.code == NOT_ADMITTED)
}

/// Shows what there is to show to one member, unless it has admitted this client since `asked`.
pub(crate) async fn show(shared: &Shared, member: PeerId, asked: Instant) -> Result<(), String> {
    let Some(source) = shared.admissions.source() else { return Err("this client has no tickets to show".into()) };
    let mut shown = shared.admissions.shown.lock().await;
    if shown.get(&member).is_some_and(|at| *at >= asked) {
        return Ok(());
    }
    let showing = async {
        let call = |method, body| shared.node.call(member, method, body, SHOWING);
        let request = wire::encode(&ChallengeRequest { organism: shared.id });
        let challenge = call(method::CHALLENGE, request).await.map_err(|error| error.to_string())?;
        let challenge: ChallengeAnswer = wire::decode(&challenge).map_err(|error| error.to_string())?;
        let challenge = Nonce { value: challenge.value, issued_s: challenge.issued_s };
        let bearer =
            Bearer { network: shared.node.network_id(), audience: shared.id, peer: *shared.node.peer_id().as_bytes() };
        let presentation = source.present(bearer, challenge).await?.to_bytes().map_err(|error| error.to_string())?;
        let request = wire::encode(&AdmitRequest { organism: shared.id, presentation });
        let answer = call(method::ADMIT, request).await.map_err(|error| error.to_string())?;
        wire::decode::<AdmitAnswer>(&answer).map_err(|error| error.to_string())
    };
    let admitted =
        tokio::time::timeout(SHOWING, showing).await.unwrap_or_else(|_| Err("showing took too long".into()))?;
    tracing::debug!(organism = %shared.id, ?member, until_s = admitted.until_s, "admitted");
    shown.insert(member, Instant::now());
    Ok(())
}

/// Members that did not admit a batch of writes. Enough of them, and one is correct.
#[derive(Default)]
pub(crate) struct Refusals {
    tried: BTreeSet<PeerId>,
    refused: BTreeSet<PeerId>,
}

impl Refusals {
    /// Whether showing tickets to this member is still worth a try.
    pub(crate) fn may_try(&mut self, member: PeerId) -> bool {
        self.tried.insert(member)
    }

    /// Takes a member's refusal; whether more have refused than may lie.
    pub(crate) fn is_final(&mut self, member: PeerId, shared: &Shared) -> bool {
        self.refused.insert(member);
        self.refused.len() > shared.known().chain.roster().faults_tolerated()
    }
}
