//! From a grant to a running workload with a receipt on its way: envelope, cross-check, image, fleet, seal, reply.
//!
//! Everything private of a requester passes through here and stays in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coalition_cloud::Moment;
use coalition_compute::{
    Command, ComputeGrant, OfferName, RefusalCode, RefusalReason, ServeGrant, Signed, workload_report_data,
};
use coalition_content::pointer::Pointer;
use coalition_shuffle::{CellId, Envelope, Posture, ReplyCell, SshAccessReceipt};
use coalition_universe::{PeerAddress, PeerId};

use super::grant::{Backoff, Work};
use super::login::{GrantKeys, Login};
use super::{Context, WRITE};
use crate::backend::{BackendError, FailureKind, InstanceName, Order, ProvisionedInstance, Workload};
use crate::channel::OpenError;
use crate::fleet::{Attempt, AttemptLog, AttemptResult, JournalStop, ProvisionError, chain};
use crate::image::{HeldImage, ImageError, ImageSource};
use crate::journal::state::AttemptFailure;
use crate::journal::{Event, JournalError, Stage};
use crate::market::MarketError;

/// What provisioning needs beside the grant.
pub(super) struct Prepared {
    image: HeldImage,
    workload: Workload,
    login: Login,
}

/// Opens the envelope, checks it against the grant, and has the image here.
pub(super) async fn prepare(work: &mut Work, grant: &ComputeGrant) -> Result<Prepared, RefusalReason> {
    let envelope = open(work, grant).await?;
    let wanted = &envelope.workload;
    check(grant, &envelope)?;
    let login = Login::of(wanted.ssh_authorized_key.as_deref()).map_err(|error| {
        tracing::warn!(grant = %work.id, %error, "nobody could log in; nothing is started");
        RefusalReason::Other
    })?;
    let parts = &work.context.parts;
    let disk_mib = if wanted.disk_mib == 0 { parts.tuning.default_disk_mib } else { wanted.disk_mib };
    if disk_mib > parts.tuning.max_disk_mib {
        tracing::warn!(grant = %work.id, disk_mib, most = parts.tuning.max_disk_mib, "more disk is asked than sold");
        return Err(RefusalReason::NoCapacity);
    }
    let pointer = Pointer::from_bytes(&wanted.image_pointer).map_err(|error| {
        tracing::warn!(grant = %work.id, %error, "the image is not asked for");
        RefusalReason::ImageUnavailable
    })?;
    let sources: Vec<_> = pointer.sources().iter().map(|address| (parts.source)(address.clone())).collect();
    let sources: Vec<&dyn ImageSource> = sources.iter().map(AsRef::as_ref).collect();
    let obtained =
        parts.images.obtain(grant.image_hash, wanted.image_size_bytes, &sources, parts.tuning.image_timeout).await;
    let image = obtained.map_err(|error| {
        tracing::warn!(grant = %work.id, error = %chain(&error), "no image");
        match error {
            ImageError::Mismatch { .. } | ImageError::Length { .. } => RefusalReason::ImageMismatch,
            ImageError::Unavailable { .. } => RefusalReason::ImageUnavailable,
            ImageError::Cache(_) | ImageError::NoRoom { .. } => RefusalReason::NoCapacity,
            ImageError::TooLarge { .. } => RefusalReason::ImageTooLarge,
        }
    })?;
    let workload = Workload { command: wanted.command.clone(), env: wanted.env.clone(), disk_mib };
    Ok(Prepared { image, workload, login })
}

/// The envelope, opened at most once per process.
async fn open(work: &mut Work, grant: &ComputeGrant) -> Result<Envelope, RefusalReason> {
    if let Some(envelope) = &work.envelope {
        return Ok(envelope.clone());
    }
    let parts = &work.context.parts;
    let cell = CellId(grant.bearer_pointer);
    match parts.opener.open(work.id, cell, parts.tuning.open_timeout).await {
        Ok(envelope) => {
            work.envelope = Some(envelope.clone());
            Ok(envelope)
        }
        Err(error) => {
            tracing::warn!(grant = %work.id, %error, "no envelope");
            Err(match error {
                OpenError::Unavailable(_) => RefusalReason::EnvelopeUnavailable,
                OpenError::Broken(_) => RefusalReason::EnvelopeMismatch,
            })
        }
    }
}

/// Whether envelope and grant are about the same machine. Under honest committees and an honest requester they are.
fn check(grant: &ComputeGrant, envelope: &Envelope) -> Result<(), RefusalReason> {
    let wanted = &envelope.workload;
    let differs = if wanted.image_hash != grant.image_hash {
        Some("image")
    } else if wanted.cpu_millicores != grant.cpu_millicores {
        Some("cpu_millicores")
    } else if wanted.ram_mib != grant.ram_mib {
        Some("ram_mib")
    } else if wanted.requested_region.as_deref().is_some_and(|region| region != grant.region.as_str()) {
        Some("region")
    } else {
        None
    };
    match differs {
        Some(field) => {
            tracing::warn!(grant = %grant.request_id, field, "envelope and grant differ; nothing is started");
            Err(RefusalReason::EnvelopeMismatch)
        }
        None => Ok(()),
    }
}

/// Has the fleet provision, seals the receipt, and writes both down together.
pub(super) async fn provision(work: &Work, grant: &ComputeGrant, ready: &Prepared) -> Result<(), JournalError> {
    let keys = match ready.login.keys() {
        Ok(keys) => keys,
        Err(error) => {
            tracing::error!(grant = %work.id, %error, "no keys");
            return work.record(Event::Refusing(RefusalReason::BackendFailed)).await;
        }
    };
    let order = Order { grant, image: ready.image.image(), workload: &ready.workload, keys: &keys.instance };
    let mut log = Attempts { work, grant, backend: None };
    let provisioned = work.context.parts.fleet.provision_for_grant(order, &mut log).await;
    match provisioned {
        Ok(instance) => {
            work.context.parts.status.attempt(&instance.backend, None);
            running(work, grant, instance, &keys).await
        }
        Err(ProvisionError::Journal(JournalStop(error))) => Err(error),
        Err(ProvisionError::Exhausted(attempts)) => {
            let error = ProvisionError::Exhausted(attempts.clone());
            tracing::warn!(grant = %work.id, %error, "not provisioned");
            work.record(give_up(&attempts)).await
        }
    }
}

/// A try that got as far as starting the workload is logged with empty usage; otherwise the grant goes back to the market.
fn give_up(attempts: &[Attempt]) -> Event {
    let started = |attempt: &Attempt| matches!(attempt.result, AttemptResult::Failed { started: true, .. });
    if attempts.iter().any(started) {
        return Event::Stopping(coalition_compute::LogEnd::ProvisioningFailed);
    }
    let failed_as = |wanted: FailureKind| move |attempt: &Attempt| matches!(attempt.result, AttemptResult::Failed { kind, .. } if kind == wanted);
    for (kind, reason) in
        [(FailureKind::TooLarge, RefusalReason::ImageTooLarge), (FailureKind::BadImage, RefusalReason::ImageRefused)]
    {
        if attempts.iter().any(failed_as(kind)) {
            return Event::Refusing(reason);
        }
    }
    let no_room = |attempt: &Attempt| {
        matches!(
            attempt.result,
            AttemptResult::Unfit(_)
                | AttemptResult::TooDear(_)
                | AttemptResult::Failed { kind: FailureKind::Capacity | FailureKind::Quota, .. }
        )
    };
    // Who would have taken the image may have had no room; then that is why.
    let unsuited = failed_as(FailureKind::Unsuited);
    let others: Vec<&Attempt> = attempts.iter().filter(|attempt| !unsuited(attempt)).collect();
    Event::Refusing(match others.as_slice() {
        [] if !attempts.is_empty() => RefusalReason::ImageRefused,
        others if others.iter().all(|attempt| no_room(attempt)) => RefusalReason::NoCapacity,
        _ => RefusalReason::BackendFailed,
    })
}

async fn running(
    work: &Work,
    grant: &ComputeGrant,
    instance: ProvisionedInstance,
    keys: &GrantKeys,
) -> Result<(), JournalError> {
    let sealed = match &work.envelope {
        Some(envelope) => {
            let posture = vouch(work, grant, envelope, &instance, keys).await;
            seal(work, grant, envelope, &instance, keys, posture)
        }
        None => Err("the envelope is gone".to_owned()),
    };
    match sealed {
        Ok(reply) => {
            tracing::info!(grant = %work.id, backend = %instance.backend, isolation = %instance.isolation, "the workload runs");
            let sealed_receipt = reply.as_bytes().to_vec();
            work.record(Event::Running { instance: Box::new(instance), sealed_receipt }).await
        }
        Err(problem) => {
            tracing::error!(grant = %work.id, problem, "the workload runs but its receipt cannot be made");
            work.record(Event::Stopping(coalition_compute::LogEnd::ProvisioningFailed)).await
        }
    }
}

/// Has the guest of the instance quoted over its host key, and hands the evidence to the requester, who decides what it is
/// worth. What cannot be shown is left out, and the receipt says so.
async fn vouch(
    work: &Work,
    grant: &ComputeGrant,
    envelope: &Envelope,
    instance: &ProvisionedInstance,
    keys: &GrantKeys,
) -> Posture {
    let parts = &work.context.parts;
    let Some(guest) = parts.fleet.get(&instance.backend).and_then(|backend| backend.guest()) else {
        return Posture::NotAttested;
    };
    let (organism, host_key) = (parts.market.organism(), keys.instance.host_public.0);
    let report_data = workload_report_data(organism, &host_key, grant.image_hash, grant.request_id.0);
    let shown = match guest.show_aside(report_data).await {
        Ok(shown) => shown,
        Err(error) => {
            tracing::warn!(grant = %work.id, error = %chain(&error), "the workload's guest made no quote");
            return Posture::NotAttested;
        }
    };
    let delivered = match requester(envelope) {
        Some(address) => (parts.source)(address).deliver(shown.bytes, WRITE).await,
        None => Err("the envelope does not say where the requester's node is".to_owned()),
    };
    if let Err(problem) = delivered {
        tracing::warn!(grant = %work.id, problem, "the quote of the workload's guest could not be handed over");
    }
    Posture::Attested { quote: shown.digest }
}

/// Where the requester's own node is, if its envelope says so; stores take no evidence.
fn requester(envelope: &Envelope) -> Option<PeerAddress> {
    let pointer = Pointer::from_bytes(&envelope.workload.image_pointer).ok()?;
    pointer.of(&PeerId::from_bytes(*envelope.peer_id.as_bytes()).ok()?).cloned()
}

fn seal(
    work: &Work,
    grant: &ComputeGrant,
    envelope: &Envelope,
    instance: &ProvisionedInstance,
    keys: &GrantKeys,
    posture: Posture,
) -> Result<ReplyCell, String> {
    let receipt = SshAccessReceipt {
        instance_host: instance.host.clone(),
        instance_port: instance.port,
        user: instance.user.clone(),
        ssh_key_private: keys.login_private.as_ref().map_or_else(Vec::new, |key| key.expose().as_bytes().to_vec()),
        ssh_host_key: keys.instance.host_public,
        grant_id: grant.request_id,
        valid_to: grant.valid_to,
        isolation: instance.isolation_text.clone(),
        posture,
    };
    let context = work.context.parts.opener.scope().seal_context(grant.request_id);
    receipt.seal_to(&envelope.peer_x25519, &context, &mut rand_core::OsRng).map_err(|error| chain(&error))
}

/// Writes each try into the journal: intent first.
struct Attempts<'a> {
    work: &'a Work,
    grant: &'a ComputeGrant,
    backend: Option<OfferName>,
}

#[async_trait]
impl AttemptLog for Attempts<'_> {
    async fn intend(&mut self, backend: &OfferName) -> Result<InstanceName, JournalStop> {
        let attempt = self.work.context.parts.journal.get(&self.work.id).map_or(0, |state| state.next_attempt());
        let instance = InstanceName::derive(&self.work.context.id, &self.grant.request_id, attempt);
        self.backend = Some(backend.clone());
        let intent = Event::Provisioning { backend: backend.clone(), instance: instance.clone() };
        self.work.record(intent).await.map_err(JournalStop)?;
        Ok(instance)
    }

    async fn ending(&mut self, backend: &OfferName, instance: &InstanceName, error: &BackendError, moment: Moment) {
        // Where nothing was made, nobody has anything to tell.
        if error.remains {
            self.work.keep_telemetry(moment, self.grant, (backend, instance), None).await;
        }
    }

    async fn failed(&mut self, backend: &OfferName, error: &BackendError, cleaned: bool) -> Result<(), JournalStop> {
        let cause = chain(error);
        tracing::warn!(grant = %self.work.id, %backend, kind = error.kind.as_str(), cleaned, error = %cause, "a try failed");
        self.work.context.parts.status.attempt(backend, Some(error.kind));
        self.work.context.parts.status.event(format!("{backend} could not provision ({})", error.kind.as_str()));
        let failure = AttemptFailure::Backend { kind: error.kind, started: error.started };
        self.work.record(Event::AttemptFailed(failure)).await.map_err(JournalStop)
    }
}

impl Work {
    /// Posts the sealed receipt until somebody holds it, or the grant is over.
    pub(super) async fn reply(&mut self, state: &crate::journal::GrantState) -> Result<(), JournalError> {
        let Stage::Running { sealed_receipt, .. } = &state.stage else { return Ok(()) };
        let Ok(cell) = ReplyCell::from_bytes(sealed_receipt) else {
            tracing::error!(grant = %self.id, "the journal holds an unreadable receipt");
            return self.record(Event::Stopping(coalition_compute::LogEnd::ProvisioningFailed)).await;
        };
        let context = Arc::clone(&self.context);
        let limit =
            state.grant.valid_to_ms.min(crate::now_ms().saturating_add(millis(context.parts.tuning.reply_timeout)));
        let id = self.id;
        let event = tokio::select! {
            () = post(self, &state.grant, &cell) => Event::Replied,
            end = context.ended_by_market(&id) => Event::Stopping(end),
            () = context.drained() => Event::Stopping(coalition_compute::LogEnd::Draining),
            () = context.until_ms(limit) => {
                tracing::warn!(grant = %id, "the receipt could not be delivered in time; the workload is stopped");
                Event::Stopping(coalition_compute::LogEnd::ProvisioningFailed)
            }
        };
        if matches!(event, Event::Replied) {
            tracing::info!(grant = %id, "the receipt is posted");
        }
        self.record(event).await
    }
}

async fn post(work: &mut Work, grant: &ComputeGrant, cell: &ReplyCell) {
    let mut backoff = Backoff::new();
    loop {
        // After a restart the address is asked for again; the journal does not keep it.
        if let Ok(envelope) = open(work, grant).await {
            match work.context.parts.replier.send(envelope.peer_id, work.id, cell, WRITE).await {
                Ok(()) => return,
                Err(problem) => tracing::warn!(grant = %work.id, problem, "the receipt is not posted yet"),
            }
        }
        backoff.pause().await;
    }
}

/// Tells the market that the grant is served; tries until it knows, then never resolves: it only accompanies the watch.
pub(super) async fn state_serving(context: &Context, grant: &ComputeGrant) {
    let mut backoff = Backoff::new();
    let id = grant.request_id;
    while !context.sight(&id).is_some_and(|sight| sight.serving || !sight.live) {
        let statement = ServeGrant { grant_id: id, provider: context.id };
        let Ok(signed) = Signed::sign(statement, &context.parts.signer, &context.parts.market.organism()) else {
            break;
        };
        match context.parts.market.write(context.write_id(&id, "serve"), Command::ServeGrant(signed), WRITE).await {
            Ok(()) => break,
            Err(MarketError::Refused(refusal)) => {
                if refusal.code != RefusalCode::AlreadyServing.as_str() {
                    tracing::warn!(grant = %id, %refusal, "the market does not take that the grant is served");
                }
                break;
            }
            Err(error) => {
                tracing::warn!(grant = %id, error = %chain(&error), "the market does not know yet that the grant is served")
            }
        }
        backoff.pause().await;
    }
    std::future::pending().await
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
