//! Making a grant longer: everything that would end its instance is moved first, and only then the market is told. What is not told in
//! time, or not taken, is moved back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coalition_compute::{AnswerExtension, Command, DeclineReason, ExtensionAnswer, LogEnd};

use super::grant::{Backoff, Work};
use crate::backend::{MoveError, ProvisionedInstance};
use crate::fleet::chain;
use crate::journal::{Event, ExtensionStep, GrantState, JournalError, Stage};
use crate::market::{Extension, MarketError};

/// How long a machine may take to have its end moved before the requester is told no.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long before the old end nothing is moved any more: the answer has to be in the log by then.
const MARGIN_MS: u64 = 3_000;

impl Work {
    /// Takes the extension one step further, unless the grant ends first.
    pub(super) async fn extend(&mut self, state: &GrantState) -> Result<(), JournalError> {
        let Stage::Extending { instance, extension, step } = &state.stage else { return Ok(()) };
        let context = Arc::clone(&self.context);
        let event = tokio::select! {
            event = self.step(state, instance, extension, *step) => event,
            end = context.ended_by_market(&self.id) => Event::Stopping(end),
            () = context.drained() => Event::Stopping(LogEnd::Draining),
            () = context.until_ms(state.grant.valid_to_ms.saturating_add(5_000)) => match self.is_longer(extension) {
                true => Event::Extended,
                false => Event::Stopping(LogEnd::Deadline),
            },
        };
        if matches!(event, Event::Extended | Event::ExtensionOver) {
            self.dealt_with = extension.number;
        }
        if matches!(event, Event::Extended) {
            tracing::info!(grant = %self.id, extra_sec = extension.extra_sec, "the grant is longer");
            context.parts.status.event(format!("a grant was extended by {} s", extension.extra_sec));
        }
        self.record(event).await
    }

    async fn step(
        &self,
        state: &GrantState,
        instance: &ProvisionedInstance,
        extension: &Extension,
        step: ExtensionStep,
    ) -> Event {
        match step {
            ExtensionStep::Moving => self.move_out(state, instance, extension).await,
            ExtensionStep::Moved => self.accept(extension).await,
            ExtensionStep::Restoring(reason) => {
                self.move_back(state, instance).await;
                if let Some(reason) = reason {
                    self.decline(extension, reason).await;
                }
                Event::ExtensionOver
            }
        }
    }

    /// Whether the log has the grant as long as this extension makes it.
    fn is_longer(&self, extension: &Extension) -> bool {
        self.context.sight(&self.id).is_some_and(|sight| sight.grant.valid_to_ms >= extension.valid_to_ms)
    }

    async fn move_out(&self, state: &GrantState, instance: &ProvisionedInstance, extension: &Extension) -> Event {
        let Some(backend) = self.context.parts.fleet.get(&instance.backend) else {
            return Event::ExtensionGivenUp(Some(DeclineReason::CannotExtend));
        };
        let (began, mut backoff) = (Instant::now(), Backoff::new());
        loop {
            match backend.move_end(&instance.name, extension.valid_to_ms).await {
                Ok(()) => return Event::ExtensionMoved,
                Err(error @ MoveError::Fixed { .. }) => {
                    tracing::warn!(grant = %self.id, error = %chain(&error), "the grant cannot be made longer");
                    self.context.parts.status.event(format!("a grant was not extended: {error}"));
                    return Event::ExtensionGivenUp(Some(DeclineReason::CannotExtend));
                }
                Err(error) => tracing::warn!(grant = %self.id, error = %chain(&error), "the end is not moved yet"),
            }
            let is_late = crate::now_ms().saturating_add(MARGIN_MS) >= state.grant.valid_to_ms;
            if is_late || began.elapsed() >= PATIENCE {
                return Event::ExtensionGivenUp(Some(DeclineReason::BackendFailed));
            }
            backoff.pause().await;
        }
    }

    /// Tells the market that the grant is longer, until it says yes or no.
    async fn accept(&self, extension: &Extension) -> Event {
        let answer = ExtensionAnswer::Accepted { valid_to: extension.valid_to, valid_to_ms: extension.valid_to_ms };
        match self.answer(extension, answer).await {
            Ok(()) => Event::Extended,
            Err(()) if self.is_longer(extension) => Event::Extended,
            Err(()) => Event::ExtensionGivenUp(None),
        }
    }

    async fn decline(&self, extension: &Extension, reason: DeclineReason) {
        // Not taken means that it waits no more: nobody is left to be told.
        let _ = self.answer(extension, ExtensionAnswer::Declined(reason)).await;
    }

    /// Writes the answer; fails when the market does not take it.
    async fn answer(&self, extension: &Extension, answer: ExtensionAnswer) -> Result<(), ()> {
        let number = extension.number;
        let word = if matches!(answer, ExtensionAnswer::Accepted { .. }) { "accept" } else { "decline" };
        let mut backoff = Backoff::new();
        loop {
            let statement = AnswerExtension { grant_id: self.id, provider: self.context.id, number, answer };
            match self.write(statement, Command::AnswerExtension, &format!("extension/{number}/{word}")).await {
                Ok(()) => return Ok(()),
                Err(MarketError::Refused(refusal)) => {
                    tracing::warn!(grant = %self.id, %refusal, "the market does not take the answer to an extension");
                    return Err(());
                }
                Err(error) => {
                    tracing::warn!(grant = %self.id, error = %chain(&error), "the answer to an extension is not certified yet");
                }
            }
            backoff.pause().await;
        }
    }

    /// Has the instance end when it would have, as far as that can be moved and there is time.
    async fn move_back(&self, state: &GrantState, instance: &ProvisionedInstance) {
        let Some(backend) = self.context.parts.fleet.get(&instance.backend) else { return };
        let (began, mut backoff) = (Instant::now(), Backoff::new());
        while crate::now_ms() < state.grant.valid_to_ms && began.elapsed() < PATIENCE {
            match backend.move_end(&instance.name, state.grant.valid_to_ms).await {
                Ok(()) | Err(MoveError::Fixed { .. }) => return,
                Err(MoveError::Failed(error)) => {
                    tracing::warn!(grant = %self.id, error = %chain(&error), "the end is not moved back yet");
                }
            }
            backoff.pause().await;
        }
    }
}
