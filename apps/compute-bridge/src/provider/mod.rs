//! The provider loop: post the card, take up grants, end them, keep the books straight with the certified log.

mod adopt;
mod attest;
mod card;
pub(crate) mod clock;
mod evidence;
mod extend;
mod grant;
mod inventory;
mod login;
mod serve;
mod sweep;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coalition::{AlmanacTick, ProviderId, RequestId, UniqueId};
use coalition_compute::{LogEnd, RefusalReason};
use coalition_log::entry::WriteId;
use coalition_universe::PeerAddress;
use ed25519_dalek::SigningKey;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use crate::channel::{ReplySender, RequestOpener};
use crate::evidence::EvidenceStore;
use crate::fleet::Fleet;
use crate::image::{ImageSource, ImageStore};
use crate::journal::{Event, Journal, JournalError};
use crate::market::{Extension, GrantSight, Market};
use crate::status::Status;

pub use attest::{AttestError, Attestor};

/// How often the log is looked at even when nothing seems to change.
const LOOK: Duration = Duration::from_secs(2);
/// Wait for one certified write.
const WRITE: Duration = Duration::from_secs(10);
/// Wait for all grants to be stopped and logged when draining.
const DRAIN: Duration = Duration::from_secs(50);

/// Makes a source from an address an envelope names: of a store, or of the requester's rotating node.
pub type SourceMaker = dyn Fn(PeerAddress) -> Box<dyn ImageSource> + Send + Sync;

/// Times and limits of the loop; see the boot file for what each means.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How long after its deadline a workload's host is still asked for the last usage. Its own timer has ended it by then.
    pub blind_after_deadline: Duration,
    /// Between two refreshes of the card.
    pub capacity_refresh: Duration,
    /// Grants provisioned at once.
    pub max_concurrent_grants: usize,
    /// Wait for the envelope.
    pub open_timeout: Duration,
    /// Wait for the image.
    pub image_timeout: Duration,
    /// Wait until the receipt is posted.
    pub reply_timeout: Duration,
    /// Age at which an unexplained instance is destroyed.
    pub orphan_grace: Duration,
    /// Between two statements of the inventory.
    pub inventory_interval: Duration,
    /// Disk of a workload that names none, MiB.
    pub default_disk_mib: u32,
    /// Most disk of one workload, MiB.
    pub max_disk_mib: u32,
    /// Stop and log everything at shutdown, instead of leaving it running for the next start.
    pub drain: bool,
}

/// What the loop is made of.
pub struct Parts {
    /// Signs cards and logs, and names the provider.
    pub signer: SigningKey,
    /// Network identity, as on the card.
    pub peer: [u8; 32],
    /// The market.
    pub market: Arc<dyn Market>,
    /// Opens cells.
    pub opener: Arc<dyn RequestOpener>,
    /// Posts replies.
    pub replier: Arc<dyn ReplySender>,
    /// Fetches images.
    pub source: Arc<SourceMaker>,
    /// Keeps images.
    pub images: Arc<ImageStore>,
    /// Provisions.
    pub fleet: Fleet,
    /// Remembers.
    pub journal: Journal,
    /// Keeps what clouds counted.
    pub evidence: Arc<EvidenceStore>,
    /// Tells the operator.
    pub status: Arc<Status>,
    /// Times and limits.
    pub tuning: Tuning,
    /// Attests the bridge itself, when it is configured to.
    pub attestor: Option<Attestor>,
}

/// What every task of the loop shares.
pub(crate) struct Context {
    pub(crate) parts: Parts,
    pub(crate) id: ProviderId,
    pub(crate) permits: Semaphore,
    /// Digest of the quote this process was last attested with: every boot has its own.
    pub(crate) attested: Mutex<Option<UniqueId>>,
    /// Capacity changed; the card may need a refresh.
    pub(crate) capacity: Notify,
    pub(crate) draining: watch::Receiver<bool>,
}

impl Context {
    pub(crate) fn sight(&self, grant: &RequestId) -> Option<GrantSight> {
        self.parts.market.grant(self.id, grant)
    }

    /// Live grants to us that the journal does not know.
    pub(crate) fn unknown(&self) -> Vec<GrantSight> {
        let mut live = self.parts.market.grants_of(self.id);
        live.retain(|sight| sight.live && self.parts.journal.get(&sight.grant.request_id).is_none());
        live
    }

    pub(crate) async fn record(
        &self,
        grant: RequestId,
        event: Event,
    ) -> Result<crate::journal::GrantState, JournalError> {
        self.parts.journal.append(grant, event).await
    }

    pub(crate) fn tick(&self) -> AlmanacTick {
        AlmanacTick(self.parts.market.at().tick)
    }

    /// The id of the one write of this purpose about this grant, so that a restart repeats it instead of adding one.
    pub(crate) fn write_id(&self, grant: &RequestId, purpose: &str) -> WriteId {
        let parts: [&[u8]; 4] = [b"compute-bridge/write/1", self.id.as_bytes(), grant.as_bytes(), purpose.as_bytes()];
        let hash = coalition::hash_many(&parts);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        WriteId(id)
    }

    /// Resolves when the bridge is draining.
    pub(crate) async fn drained(&self) {
        let mut draining = self.draining.clone();
        if draining.wait_for(|on| *on).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Resolves when the log says that this grant is to stop, with the reason a final log would give.
    pub(crate) async fn ended_by_market(&self, grant: &RequestId) -> LogEnd {
        let mut seen = 0;
        loop {
            match self.sight(grant) {
                Some(sight) if sight.ending => return LogEnd::EndedByRequester,
                Some(sight) if !sight.live => return LogEnd::Deadline,
                _ => seen = self.parts.market.changed(seen, LOOK).await,
            }
        }
    }

    /// Resolves when the log has an extension of this grant that waits and is not one up to `dealt_with`, while its end can
    /// still be moved.
    pub(crate) async fn asked_longer(&self, grant: &RequestId, dealt_with: u32) -> Extension {
        let mut seen = 0;
        loop {
            if let Some(GrantSight { live: true, ending: false, extension: Some(asked), grant, .. }) = self.sight(grant)
                && asked.number > dealt_with
                && crate::now_ms() < grant.valid_to_ms
            {
                return asked;
            }
            seen = self.parts.market.changed(seen, LOOK).await;
        }
    }

    /// Resolves at this wall-clock time.
    pub(crate) async fn until_ms(&self, at_ms: u64) {
        while let Some(left) = at_ms.checked_sub(crate::now_ms()).filter(|left| *left > 0) {
            // In steps, because a wall clock may be set.
            tokio::time::sleep(Duration::from_millis(left.min(5_000))).await;
        }
    }
}

/// Serves until `shutdown` resolves, then leaves grants running or drains them, as tuned.
///
/// # Errors
/// [`JournalError`] when the journal can no longer be written: without it nothing may be created.
pub async fn serve(parts: Parts, shutdown: impl Future<Output = ()> + Send) -> Result<(), JournalError> {
    let (drain, draining) = watch::channel(false);
    let id = ProviderId::from_public_key(&parts.signer.verifying_key().to_bytes());
    let permits = Semaphore::new(parts.tuning.max_concurrent_grants);
    let drains = parts.tuning.drain;
    let context =
        Arc::new(Context { parts, id, permits, attested: Mutex::default(), capacity: Notify::new(), draining });
    let mut running = Running {
        context: Arc::clone(&context),
        grants: JoinSet::new(),
        aside: JoinSet::new(),
        sought: BTreeSet::new(),
    };
    running.resume().await?;
    running.aside.spawn(card::keep(Arc::clone(&context)));
    running.aside.spawn(sweep::keep(Arc::clone(&context)));
    running.aside.spawn(inventory::keep(Arc::clone(&context)));
    let mut seen = 0;
    tokio::pin!(shutdown);
    loop {
        running.take_up().await?;
        tokio::select! {
            () = &mut shutdown => break,
            now = context.parts.market.changed(seen, LOOK) => seen = now,
            Some(ended) = running.grants.join_next(), if !running.grants.is_empty() => report(ended)?,
        }
    }
    if drains {
        running.drain(&drain).await?;
    }
    running.aside.shutdown().await;
    running.grants.shutdown().await;
    Ok(())
}

struct Running {
    context: Arc<Context>,
    grants: JoinSet<(RequestId, Result<(), JournalError>)>,
    aside: JoinSet<()>,
    /// Grants of a lost journal; what runs for them is being looked for.
    sought: BTreeSet<RequestId>,
}

impl Running {
    fn drive(&mut self, grant: RequestId) {
        let context = Arc::clone(&self.context);
        self.grants.spawn(async move { (grant, Box::pin(grant::drive(context, grant)).await) });
    }

    /// Takes up every grant the journal has open, exactly where it stands.
    async fn resume(&mut self) -> Result<(), JournalError> {
        let open = self.context.parts.journal.open_grants();
        if !open.is_empty() {
            tracing::info!(grants = open.len(), "taking up grants from the journal");
        }
        for (id, state) in open {
            if let Some((backend, name)) = state.instance()
                && let Some(backend) = self.context.parts.fleet.get(backend)
            {
                backend.adopt(&state.grant, name);
            }
            self.drive(id);
        }
        self.look_for_lost();
        Ok(())
    }

    /// Grants the journal should know and does not: those the log has in service, and, when it knows nothing at all, every
    /// one. What runs for them is found by its derived name and kept; what does not is closed honestly.
    fn look_for_lost(&mut self) {
        let is_new = self.context.parts.journal.is_empty();
        let mut lost = self.context.unknown();
        lost.retain(|sight| sight.serving || is_new);
        if lost.is_empty() {
            return;
        }
        tracing::warn!(grants = lost.len(), "the log has grants that the journal does not know; looking for them");
        let search = Arc::new(adopt::Search::new(self.context.parts.fleet.backends()));
        for sight in lost {
            let (context, search, id) = (Arc::clone(&self.context), Arc::clone(&search), sight.grant.request_id);
            self.sought.insert(id);
            self.grants.spawn(async move {
                let adopted = adopt::adopt(&context, &sight, &search).await;
                match adopted {
                    Ok(()) => (id, Box::pin(grant::drive(context, id)).await),
                    Err(error) => (id, Err(error)),
                }
            });
        }
    }

    /// Writes down and starts every new grant.
    async fn take_up(&mut self) -> Result<(), JournalError> {
        for sight in self.context.unknown() {
            let id = sight.grant.request_id;
            if self.sought.contains(&id) {
                continue;
            }
            tracing::info!(grant = %id, offer = %sight.grant.offer, region = %sight.grant.region, "granted");
            self.context.record(id, Event::Granted(Box::new(sight.grant))).await?;
            self.context.parts.status.event("a grant was taken up");
            self.drive(id);
        }
        Ok(())
    }

    async fn drain(&mut self, drain: &watch::Sender<bool>) -> Result<(), JournalError> {
        let open = self.grants.len();
        tracing::info!(grants = open, "draining: no new grants, running ones are stopped and logged");
        self.aside.shutdown().await;
        card::withdraw(&self.context).await;
        let _ = drain.send(true);
        let all = async {
            while let Some(ended) = self.grants.join_next().await {
                report(ended)?;
            }
            Ok(())
        };
        match tokio::time::timeout(DRAIN, all).await {
            Ok(done) => done,
            Err(_) => {
                tracing::warn!("not every grant could be ended in time; the next start takes the rest up again");
                Ok(())
            }
        }
    }
}

type Ended = Result<(RequestId, Result<(), JournalError>), tokio::task::JoinError>;

fn report(ended: Ended) -> Result<(), JournalError> {
    match ended {
        Ok((_, result)) => result,
        Err(error) if error.is_cancelled() => Ok(()),
        Err(error) => {
            // The journal knows where it stood; the next start takes it up.
            tracing::error!(%error, "the task of a grant died");
            Ok(())
        }
    }
}

/// The stable word for a refusal, for counters.
pub(crate) const fn refusal_word(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::EnvelopeUnavailable => "envelope_unavailable",
        RefusalReason::EnvelopeMismatch => "envelope_mismatch",
        RefusalReason::ImageUnavailable => "image_unavailable",
        RefusalReason::ImageMismatch => "image_mismatch",
        RefusalReason::NoCapacity => "no_capacity",
        RefusalReason::BackendFailed => "backend_failed",
        RefusalReason::Draining => "draining",
        RefusalReason::Other => "other",
        RefusalReason::ImageTooLarge => "image_too_large",
        RefusalReason::ImageRefused => "image_refused",
    }
}

/// The shuffle channel a bridge names on its card: derived from its peer, since replies go through the unseal committee.
pub(crate) fn shuffle_channel(peer: &[u8; 32]) -> UniqueId {
    coalition::hash_many(&[b"compute-bridge/shuffle-channel/1", peer])
}
