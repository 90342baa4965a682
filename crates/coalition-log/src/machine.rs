//! The contract between a service and the committee that runs it.
//!
//! A service is a [`Machine`]: it decides what a command means and folds the resulting entries. It has no I/O, no clock,
//! no randomness and no iteration over hash maps, so that every member reaches the same entries from the same commands,
//! and so that the state is the fold of the log and of nothing else.

use coalition::EvidencePointer;
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, WriteId};

/// What a machine may know besides its own state. The same on every member for the same batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Height of the ordered batch being executed; strictly increasing, not contiguous in the log.
    pub height: u64,
    /// The committee's time in milliseconds since the Unix epoch, agreed by ordering and never decreasing.
    pub time_ms: u64,
    /// Sequence number of the last Almanac tick, 0 before the first.
    pub tick: u64,
}

/// An entry a machine wants to commit. The host assigns its index, tick and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Kind of the entry, e.g. `compute.grant`; see [`crate::entry::check_kind`] for what is allowed.
    pub kind: &'static str,
    /// Body, at most [`crate::entry::MAX_BODY_BYTES`].
    pub body: Vec<u8>,
    /// Entries of this or other organisms this one rests on, at most [`crate::entry::MAX_EVIDENCE`].
    pub evidence: Vec<EvidencePointer>,
}

impl Draft {
    /// A draft without evidence.
    pub fn new(kind: &'static str, body: Vec<u8>) -> Self {
        Self { kind, body, evidence: Vec::new() }
    }

    /// The same draft resting on `evidence`.
    #[must_use]
    pub fn with_evidence(mut self, evidence: Vec<EvidencePointer>) -> Self {
        self.evidence = evidence;
        self
    }

    /// The entry this draft becomes at `index`. `tick` is `None` when the coalition ships no Almanac.
    pub fn into_entry(self, index: u64, tick: Option<u64>, time_ms: u64) -> Entry {
        Entry {
            index,
            tick,
            time_ms,
            write_id: WriteId::NONE,
            kind: self.kind.to_owned(),
            body: self.body,
            evidence: self.evidence,
        }
    }
}

/// A command the machine does not accept. Nothing was committed because of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// Stable `snake_case` identifier that programs may match on.
    pub code: String,
    /// What was wrong, with the values involved, and what would be accepted.
    pub message: String,
}

impl Refusal {
    /// A refusal with a stable code and a message for people.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// A service's pure state machine, event sourced: `decide` and `round` propose entries, `evolve` folds them.
///
/// Execution of one ordered batch: for each command, `decide`, then `evolve` for every entry it produced; then `round`
/// and `evolve` in turn until `round` answers `None`. A restart calls `evolve` for every entry of the log, nothing else.
pub trait Machine: Send + 'static {
    /// What committing `command` would write, in order.
    ///
    /// # Errors
    /// A [`Refusal`] when the command is malformed or not allowed now; the caller learns it, the log does not.
    fn decide(&self, cx: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal>;

    /// Work that no command asks for: clearing, expiry, ticks. Called at the end of every batch until it answers `None`;
    /// what it answers has been folded before it is called again, so it must come to an end.
    fn round(&self, cx: &Context) -> Option<Vec<Draft>>;

    /// Folds one entry into the state: the only place where state changes. Accepts every entry that `decide` and `round`
    /// of this version or an earlier one produced.
    fn evolve(&mut self, entry: &Entry);

    /// Committee time at which the machine next needs a batch even if no command arrives; `None` if never.
    fn wake_at_ms(&self, now: &Context) -> Option<u64>;
}

/// What a fold says of a certified entry that contradicts the rules of its service.
pub type FoldFault = Box<dyn std::error::Error + Send + Sync>;

/// State folded from a log's entries, in order, each exactly once: what readers keep.
pub trait Fold: Send + Sync + 'static {
    /// Takes the next certified entry.
    ///
    /// # Errors
    /// When the entry contradicts what the service's rules allow, which no honest quorum certifies. The fold is over then.
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault>;
}
