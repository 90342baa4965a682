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

    /// The whole state as bytes: equal states give equal bytes, on every member and in every build of one version. What the
    /// machine was made with (parameters, ids) is not part of it. Bounded like the state itself; a machine without state
    /// answers no bytes. See [`coalition::codec`] for an encoding that has one form.
    fn snapshot(&self) -> Vec<u8>;

    /// Takes the place of whoever made `snapshot`: every further answer is the same. Accepts only what [`Machine::snapshot`]
    /// writes.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are no such state; the machine is unchanged then.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError>;
}

/// Why bytes are not a state.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// They do not parse.
    #[error("the snapshot does not parse")]
    Decode(#[from] coalition::codec::DecodeError),
    /// They parse and contradict themselves, or what the state is taken for.
    #[error("the snapshot contradicts itself: {0}")]
    Contradiction(String),
}

impl SnapshotError {
    /// Accepts no bytes, the snapshot of what has no state.
    ///
    /// # Errors
    /// [`SnapshotError::Contradiction`] when there are some.
    pub fn unless_empty(snapshot: &[u8]) -> Result<(), Self> {
        let bytes = snapshot.len();
        if bytes == 0 { Ok(()) } else { Err(Self::Contradiction(format!("{bytes} bytes for what has no state"))) }
    }
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

/// A fold that can start from the state a committee certified, without the entries before it.
pub trait FromState: Fold {
    /// Takes the place of a fold of all entries behind `machine`, the snapshot of the service's [`Machine`]. History that a
    /// machine does not keep is not there.
    ///
    /// # Errors
    /// [`SnapshotError`]; the fold is unchanged then.
    fn start_from(&mut self, machine: &[u8]) -> Result<(), SnapshotError>;
}

/// A fold that can be written down and taken up again: what lets a reader go on after a restart.
pub trait Persist: Fold {
    /// The fold as bytes.
    fn save(&self) -> Vec<u8>;

    /// Takes the place of the fold that was saved.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are no such fold, or of one made with other parameters; the fold is unchanged then.
    fn load(&mut self, saved: &[u8]) -> Result<(), SnapshotError>;
}

/// A fold that holds things by key.
pub trait Contains<K: ?Sized> {
    /// Whether `key` is in it.
    fn contains(&self, key: &K) -> bool;
}

/// A fold that counts the Almanac's ticks.
pub trait Ticking {
    /// Whether this tick has happened.
    fn has_ticked(&self, tick: u64) -> bool;
}
