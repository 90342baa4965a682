//! The state machine a Compute committee runs: admission of commands, rounds, and the fold of its log. Pure.

mod admit;
mod attest;
mod extend;
mod inventory;
mod rounds;

pub use admit::{MAX_LOGS_PER_GRANT, MAX_TICK_SKEW};
pub use attest::CHALLENGE_MS;
pub use extend::{MAX_EXTENSIONS_PER_GRANT, MAX_REPORTS_PER_GRANT};

use coalition::UniqueId;
use coalition_attest::Verifier;
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError};

use crate::command::Command;
use crate::config::ComputeParams;
use crate::refusal::RefusalCode;
use crate::state::{At, FoldError, MarketState, Retention};
use crate::types::Invalid;

/// The Compute module's machine. Its state is the fold of its log and nothing else.
#[derive(Debug)]
pub struct ComputeMachine {
    state: MarketState,
    /// Made from the parameters; holds no state.
    verifier: Option<Verifier>,
    fault: Option<FoldError>,
}

impl ComputeMachine {
    /// A machine with an empty log, for the Compute organism `organism`.
    ///
    /// # Errors
    /// [`Invalid`] when the parameters are out of range.
    pub fn new(organism: UniqueId, params: ComputeParams) -> Result<Self, Invalid> {
        params.check()?;
        let verifier = params.attestation.as_ref().map(|rule| Verifier::new(rule.policy.clone()));
        Ok(Self { state: MarketState::new(organism, params, Retention::MACHINE), verifier, fault: None })
    }

    /// The market as this machine sees it.
    #[must_use]
    pub const fn state(&self) -> &MarketState {
        &self.state
    }

    /// The first entry that could not be folded, if any. Such a machine refuses everything and proposes nothing: its
    /// state is not the log's, so it must not act on it.
    #[must_use]
    pub const fn fault(&self) -> Option<&FoldError> {
        self.fault.as_ref()
    }

    pub(crate) const fn take_fault(&mut self) -> Option<FoldError> {
        self.fault.take()
    }
}

impl From<&Context> for At {
    fn from(cx: &Context) -> Self {
        Self { tick: cx.tick, time_ms: cx.time_ms }
    }
}

impl Machine for ComputeMachine {
    fn decide(&self, cx: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        if let Some(fault) = &self.fault {
            return Err(RefusalCode::StateFault.because(format!(
                "this member cannot continue ({fault}); it runs another version than the committee or its log is damaged"
            )));
        }
        let command = Command::from_bytes(command)
            .map_err(|error| RefusalCode::Malformed.because(format!("not a Compute command: {error}")))?;
        admit::decide(&self.state, self.verifier.as_ref(), At::from(cx), &command)
    }

    fn round(&self, cx: &Context) -> Option<Vec<Draft>> {
        if self.fault.is_some() {
            return None;
        }
        rounds::next(&self.state, At::from(cx))
    }

    fn evolve(&mut self, entry: &Entry) {
        if self.fault.is_none()
            && let Err(fault) = self.state.apply(entry)
        {
            self.fault = Some(fault);
        }
    }

    fn wake_at_ms(&self, now: &Context) -> Option<u64> {
        if self.fault.is_some() {
            return None;
        }
        rounds::wake_at_ms(&self.state, At::from(now))
    }

    fn snapshot(&self) -> Vec<u8> {
        let fault = self.fault.as_ref().map(ToString::to_string);
        self.state.to_snapshot(fault.as_deref())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        let (state, fault) = self.state.restored(snapshot)?;
        self.fault = fault.map(|what| FoldError::Earlier { what });
        self.state = state;
        Ok(())
    }
}
