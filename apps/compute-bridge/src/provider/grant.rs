//! One grant from the log to its final log. The same loop serves a new grant and one found in the journal: look at the
//! state, do the one next thing, write down what came of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coalition::{AlmanacRange, AlmanacTick, RequestId};
use coalition_cloud::Moment;
use coalition_compute::{
    Command, ComputeLog, LogEnd, RefusalCode, RefusalReason, RefuseGrant, Signed, Statement, UsageMetrics,
};
use coalition_log::{Refusal, retirement::RETIRED_CODE};
use coalition_shuffle::Envelope;

use super::{Context, WRITE, refusal_word, serve};
use crate::backend::InstanceName;
use crate::fleet::chain;
use crate::journal::state::AttemptFailure;
use crate::journal::{Event, GrantState, JournalError, Next, Outcome, Stage};
use crate::market::MarketError;

/// Pause before something that failed is tried again: doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One grant in work. What is only in memory can be obtained anew.
pub(super) struct Work {
    pub(super) context: Arc<Context>,
    pub(super) id: RequestId,
    /// The opened envelope; never written anywhere.
    pub(super) envelope: Option<Envelope>,
    /// The newest usage the watch reported.
    seen: UsageMetrics,
    /// Number of the last extension dealt with, whether or not the log shows it yet.
    pub(super) dealt_with: u32,
}

/// Growing pauses.
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) const fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// Drives the grant until it is closed.
///
/// # Errors
/// [`JournalError`] when a record cannot be written; nothing more is done then.
pub(super) async fn drive(context: Arc<Context>, id: RequestId) -> Result<(), JournalError> {
    let mut work = Work { context, id, envelope: None, seen: UsageMetrics::default(), dealt_with: 0 };
    while let Some(state) = work.context.parts.journal.get(&id) {
        match state.next() {
            Next::Provision => {
                let context = Arc::clone(&work.context);
                let _permit = context.permits.acquire().await;
                work.provision(&state).await?;
            }
            Next::Undo { backend, instance } => work.undo(&state, &backend, &instance).await?,
            Next::Reply => work.reply(&state).await?,
            Next::Watch => work.watch(&state).await?,
            Next::Extend => work.extend(&state).await?,
            Next::Terminate => work.terminate(&state).await?,
            Next::WriteLog => work.write_log(&state).await?,
            Next::WriteRefusal => work.write_refusal(&state).await?,
            Next::Nothing => return Ok(()),
        }
    }
    Ok(())
}

impl Work {
    pub(super) async fn record(&self, event: Event) -> Result<(), JournalError> {
        self.context.record(self.id, event).await.map(|_| ())
    }

    /// Obtains everything and has the fleet provision, unless the grant ends first.
    async fn provision(&mut self, state: &GrantState) -> Result<(), JournalError> {
        if let Some(end) = self.over(state) {
            return self.record(end).await;
        }
        self.record(Event::Opening).await?;
        let prepared = {
            let context = Arc::clone(&self.context);
            tokio::select! {
                prepared = serve::prepare(self, &state.grant) => prepared,
                end = context.ended_by_market(&state.grant.request_id) => return self.record(Event::Stopping(end)).await,
                () = context.drained() => return self.record(Event::Refusing(RefusalReason::Draining)).await,
                () = context.until_ms(state.grant.valid_to_ms) => return self.record(Event::Stopping(LogEnd::ProvisioningFailed)).await,
            }
        };
        match prepared {
            Ok(ready) => serve::provision(self, &state.grant, &ready).await,
            Err(reason) => self.record(Event::Refusing(reason)).await,
        }
    }

    /// Why nothing needs to be started any more, as the event that says so.
    fn over(&self, state: &GrantState) -> Option<Event> {
        let sight = self.context.sight(&self.id);
        if sight.as_ref().is_some_and(|sight| sight.ending) {
            return Some(Event::Stopping(LogEnd::EndedByRequester));
        }
        if crate::now_ms() >= state.grant.valid_to_ms || sight.is_some_and(|sight| !sight.live) {
            return Some(Event::Stopping(LogEnd::ProvisioningFailed));
        }
        if *self.context.draining.borrow() {
            return Some(Event::Refusing(RefusalReason::Draining));
        }
        state.is_worn_out().then_some(Event::Refusing(RefusalReason::BackendFailed))
    }

    /// Removes what an interrupted try may have left.
    async fn undo(
        &self,
        state: &GrantState,
        backend: &coalition_compute::OfferName,
        instance: &InstanceName,
    ) -> Result<(), JournalError> {
        let about = (backend, instance);
        self.keep_telemetry(Moment::BeforeEnd, &state.grant, about, None).await;
        self.until_gone(state, backend, instance).await;
        self.keep_telemetry(Moment::AfterEnd, &state.grant, about, None).await;
        self.record(Event::AttemptFailed(AttemptFailure::Interrupted)).await
    }

    /// Removes what a stopped instance left. It does not run any more, so the log waits for nothing: what cannot be removed
    /// now, no open grant explains, and the sweep tries again.
    async fn remove(&self, backend: &coalition_compute::OfferName, name: &InstanceName) {
        let Some(here) = self.context.parts.fleet.get(backend) else { return };
        if let Err(error) = here.terminate(name).await {
            tracing::warn!(grant = %self.id, %backend, error = %chain(&error), "stopped, but not removed yet; left to the sweep");
        }
    }

    /// Terminates until confirmed, or until the host's own timer must have done so and nobody can say.
    async fn until_gone(&self, state: &GrantState, backend: &coalition_compute::OfferName, instance: &InstanceName) {
        let Some(here) = self.context.parts.fleet.get(backend) else {
            tracing::error!(grant = %self.id, %backend, "the grant's backend is no longer in the boot file; its host ends it at the deadline");
            return self.context.until_ms(state.grant.valid_to_ms).await;
        };
        let mut backoff = Backoff::new();
        loop {
            match here.terminate(instance).await {
                Ok(()) => {
                    self.context.capacity.notify_one();
                    return;
                }
                Err(error) => tracing::warn!(grant = %self.id, error = %chain(&error), "not gone yet; trying again"),
            }
            if self.is_blind(state) {
                tracing::warn!(grant = %self.id, %backend, "the host does not answer; its own timer has ended the workload, the sweep removes the rest");
                return;
            }
            backoff.pause().await;
        }
    }

    fn is_blind(&self, state: &GrantState) -> bool {
        crate::now_ms()
            > state.grant.valid_to_ms.saturating_add(serve::millis(self.context.parts.tuning.blind_after_deadline))
    }

    async fn watch(&mut self, state: &GrantState) -> Result<(), JournalError> {
        let Stage::Replied { instance } = &state.stage else { return Ok(()) };
        let context = Arc::clone(&self.context);
        let Some(backend) = context.parts.fleet.get(&instance.backend) else {
            tracing::error!(grant = %self.id, backend = %instance.backend, "the grant's backend is no longer in the boot file");
            return self.record(Event::Stopping(LogEnd::BackendLost)).await;
        };
        let grant = &state.grant;
        let newest = Mutex::new(self.seen);
        let see = |usage| *newest.lock().unwrap_or_else(PoisonError::into_inner) = usage;
        let event = tokio::select! {
            exit = backend.watch_until_exit(instance, grant.valid_to_ms, &see) => match exit {
                Ok(exit) => {
                    see(exit.usage);
                    Event::Stopping(exit.end)
                }
                Err(error) => {
                    tracing::warn!(grant = %self.id, error = %chain(&error), "the instance is lost");
                    let kind = error.kind.as_str();
                    context.parts.status.event(format!("an instance on {} is lost ({kind})", instance.backend));
                    Event::Stopping(LogEnd::BackendLost)
                }
            },
            end = context.ended_by_market(&self.id) => Event::Stopping(end),
            extension = context.asked_longer(&self.id, self.dealt_with) => Event::Extending(extension),
            // The host's own timer speaks first; this one is for when it cannot be heard.
            () = context.until_ms(grant.valid_to_ms.saturating_add(5_000)) => Event::Stopping(LogEnd::Deadline),
            () = context.drained() => Event::Stopping(LogEnd::Draining),
            () = serve::state_serving(&context, grant) => Event::Stopping(LogEnd::Deadline),
        };
        self.seen = newest.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Event::Stopping(end) = &event {
            tracing::info!(grant = %self.id, ?end, "the grant ends");
        }
        self.record(event).await
    }

    async fn terminate(&mut self, state: &GrantState) -> Result<(), JournalError> {
        let Stage::Stopping { instance, usage, .. } = &state.stage else { return Ok(()) };
        let mut used = *usage;
        if let Some((backend, name)) = instance {
            if used.is_none() {
                let measured = match self.final_usage(state, backend, name).await {
                    Some(measured) => measured,
                    None => {
                        tracing::error!(grant = %self.id, %backend, "the machine was never heard of again; the grant is logged as lost");
                        self.record(Event::Stopping(LogEnd::BackendLost)).await?;
                        self.seen
                    }
                };
                self.record(Event::Metered(measured)).await?;
                used = Some(measured);
            }
            let about = (backend, name);
            self.keep_telemetry(Moment::BeforeEnd, &state.grant, about, used).await;
            self.remove(backend, name).await;
            self.keep_telemetry(Moment::AfterEnd, &state.grant, about, used).await;
        }
        self.context.capacity.notify_one();
        let usage = used.unwrap_or_default();
        self.record(Event::Stopped { usage, to: self.context.tick() }).await
    }

    /// Stops the instance and reads its usage: what the watch saw last when the host has none. Nothing when the host is not
    /// heard of any more until well after its own timer has ended the instance.
    async fn final_usage(
        &self,
        state: &GrantState,
        backend: &coalition_compute::OfferName,
        name: &InstanceName,
    ) -> Option<UsageMetrics> {
        let Some(here) = self.context.parts.fleet.get(backend) else {
            tracing::error!(grant = %self.id, %backend, "the grant's backend is no longer in the boot file; its host ends it at the deadline");
            self.context.until_ms(state.grant.valid_to_ms).await;
            return None;
        };
        let mut backoff = Backoff::new();
        loop {
            match here.stop(name).await {
                Ok(exit) => return Some(exit.map_or(self.seen, |exit| exit.usage)),
                Err(error) => tracing::warn!(grant = %self.id, error = %chain(&error), "not stopped yet; trying again"),
            }
            if self.is_blind(state) {
                return None;
            }
            backoff.pause().await;
        }
    }

    async fn write_log(&self, state: &GrantState) -> Result<(), JournalError> {
        let Stage::LogPending { end, usage, to } = state.stage else { return Ok(()) };
        let mut backoff = Backoff::new();
        let mut purpose = "final-log".to_owned();
        loop {
            let log = self.final_log(state, end, usage, to);
            let number = log.number;
            match self.write(log, Command::AppendLog, &purpose).await {
                Ok(()) => {
                    tracing::info!(grant = %self.id, ?end, cpu_core_seconds = usage.cpu_core_seconds, "final log certified");
                    self.context.parts.status.event(format!("a grant ended ({end:?}) and was logged"));
                    return self.record(Event::Closed(Outcome::Logged(end))).await;
                }
                Err(MarketError::Refused(refusal)) => {
                    if let Some(outcome) = self.settled(&refusal, Outcome::Logged(end)) {
                        return self.record(Event::Closed(outcome)).await;
                    }
                    tracing::warn!(grant = %self.id, %refusal, "the final log was refused; trying again");
                    // Another number or window makes it another command; the refused one must not answer for it.
                    purpose = format!("final-log/{number}/{}", crate::now_ms());
                }
                Err(error) => {
                    tracing::warn!(grant = %self.id, error = %chain(&error), "the final log is not certified yet")
                }
            }
            backoff.pause().await;
        }
    }

    fn final_log(&self, state: &GrantState, end: LogEnd, usage: UsageMetrics, to: AlmanacTick) -> ComputeLog {
        let sight = self.context.sight(&self.id);
        let logged_to = sight.as_ref().map_or(state.grant.valid_from, |sight| sight.logged_to);
        let from = state.grant.valid_from.max(logged_to);
        ComputeLog {
            grant_id: self.id,
            provider: self.context.id,
            number: sight.map_or(0, |sight| sight.log_count).saturating_add(1),
            window: AlmanacRange { from, to: to.max(from) },
            usage,
            evidence: self.context.parts.evidence.of_log(state).map(|kept| kept.pointer()),
            ended: Some(end),
        }
    }

    /// What a refusal about an ended grant means: it is over, one way or the other.
    fn settled(&self, refusal: &Refusal, wanted: Outcome) -> Option<Outcome> {
        let sight = self.context.sight(&self.id);
        if sight.as_ref().is_some_and(|sight| sight.final_log) {
            return Some(wanted);
        }
        let over = [RefusalCode::GrantEnded, RefusalCode::UnknownGrant, RefusalCode::WrongKey];
        let is_over = over.iter().any(|code| refusal.code == code.as_str()) || refusal.code == RETIRED_CODE;
        is_over.then_some(Outcome::Lapsed)
    }

    async fn write_refusal(&self, state: &GrantState) -> Result<(), JournalError> {
        let Stage::RefusalPending(reason) = state.stage else { return Ok(()) };
        let mut backoff = Backoff::new();
        loop {
            let statement = RefuseGrant { grant_id: self.id, provider: self.context.id, reason };
            match self.write(statement, Command::RefuseGrant, "refuse").await {
                Ok(()) => {
                    tracing::warn!(grant = %self.id, reason = refusal_word(reason), "the grant was given back");
                    self.context.parts.status.refused(refusal_word(reason));
                    self.context.parts.status.event(format!("a grant was given back ({})", refusal_word(reason)));
                    self.context.capacity.notify_one();
                    return self.record(Event::Closed(Outcome::Refused(reason))).await;
                }
                Err(MarketError::Refused(refusal)) => {
                    tracing::warn!(grant = %self.id, %refusal, "the market takes no refusal any more");
                    return self.record(Event::Closed(Outcome::Lapsed)).await;
                }
                Err(error) => {
                    tracing::warn!(grant = %self.id, error = %chain(&error), "the refusal is not certified yet")
                }
            }
            backoff.pause().await;
        }
    }

    pub(super) async fn write<T: Statement>(
        &self,
        statement: T,
        command: impl FnOnce(Signed<T>) -> Command,
        purpose: &str,
    ) -> Result<(), MarketError> {
        let parts = &self.context.parts;
        let signed = Signed::sign(statement, &parts.signer, &parts.market.organism());
        let signed =
            signed.map_err(|invalid| MarketError::Refused(RefusalCode::Invalid.because(invalid.to_string())))?;
        parts.market.write(self.context.write_id(&self.id, purpose), command(signed), WRITE).await
    }
}
