//! What can go wrong for a client of an organism.

use coalition_log::{Refusal, equivocation::Equivocation, retirement::Retirement, tree::Hash};

use crate::pruned::Pruned;

/// Why a write did not commit, as far as the client can know.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The organism's machine refused the command. Nothing was written.
    #[error("{0}")]
    Refused(Refusal),
    /// The organism has retired: its certified log has its last entry. Nothing was written.
    #[error("the organism has retired ({0})")]
    Retired(Box<Retirement>),
    /// The organism admits writers by ticket, and more members than may lie did not admit this one. Nothing was written.
    #[error("not admitted to this organism: {reason}")]
    NotAdmitted {
        /// What the last of them said, or why this client has nothing to show.
        reason: String,
    },
    /// The predecessor's head could not be had, or cannot be committed.
    #[error("the predecessor's head cannot be named: {reason}")]
    Predecessor {
        /// Why.
        reason: String,
    },
    /// The deadline passed. The write may still commit; retry with the same id to find out.
    #[error("not certified within {waited_ms} ms{}; retrying with the same id is safe", detail(.last))]
    Deadline {
        /// Milliseconds waited.
        waited_ms: u64,
        /// The last member's failure, if any failed.
        last: Option<String>,
    },
    /// The command is larger than a committee orders.
    #[error("command of {bytes} bytes exceeds the limit of {limit}; commit a hash of larger data")]
    TooLarge {
        /// Bytes of the command.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No member answered truthfully in time.
    #[error("no answer within {waited_ms} ms{}", detail(.last))]
    Deadline {
        /// Milliseconds waited.
        waited_ms: u64,
        /// The last failure, if any.
        last: Option<String>,
    },
    /// The entry does not exist in the certified log.
    #[error("entry {index} is not in the certified log of {size} entries")]
    NoSuchEntry {
        /// The index asked for.
        index: u64,
        /// Certified entries there are.
        size: u64,
    },
    /// What was waited for is not in the log, and the log has its last entry.
    #[error("the organism has retired ({0})")]
    Retired(Box<Retirement>),
    /// The entries asked for were dropped by every member that could be asked.
    #[error("the entry is not kept any more")]
    Pruned(#[source] Pruned),
    /// More members than may lie say that the head this reader has accepted is not in the log's history: the committee has
    /// forked, or its log was replaced. Keep the reader's file; starting over is for a person to decide.
    #[error(
        "the log has forked: this reader accepted root {root} at size {size}, and {members} members have another history there; \
         keep the reader's saved state as evidence, and delete it only to follow the other history"
    )]
    Forked {
        /// Size of the head accepted.
        size: u64,
        /// Its root.
        root: Hash,
        /// How many members contradict it.
        members: usize,
    },
    /// The committee certified two histories, which takes more members than may lie. Each proof convicts one of those who
    /// signed both; they are in the log of this process too.
    #[error(
        "the committee certified two histories: this reader accepted root {accepted} at size {size}, root {offered} is certified \
         there too; keep the {} proofs of who signed both, and do not trust this committee",
        proofs.len()
    )]
    Contradicted {
        /// Size of both heads.
        size: u64,
        /// Root accepted first.
        accepted: Hash,
        /// Root of the other.
        offered: Hash,
        /// One for each member that signed both.
        proofs: Vec<Equivocation>,
    },
    /// The follower's task has ended; a certified entry that breaks its service's rules ends it for good.
    #[error("the follower has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

fn detail(last: &Option<String>) -> String {
    last.as_ref().map(|reason| format!(" (last: {reason})")).unwrap_or_default()
}

/// An error with all its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
