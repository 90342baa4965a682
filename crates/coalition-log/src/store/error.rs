//! What can go wrong with a durable log, and which of it must stop the process.

use std::io;
use std::path::{Path, PathBuf};

use coalition::UniqueId;

use crate::checkpoint::{CertifyError, NoteError, RosterError};
use crate::entry::EntryError;
use crate::evidence::EvidenceError;
use crate::handover::HandoverError;
use crate::tree::{Hash, ProofError};

/// Why the store refuses or fails. [`StoreError::is_fatal`] tells the ones after which the member must stop.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Writing or syncing failed. What is durable is unknown: the process must stop and reopen, never retry.
    #[error("cannot {operation} {}; stop, repair the disk and start again", path.display())]
    Fatal {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// An earlier write failed; this store takes no more.
    #[error("this log stopped after an earlier failure: {first}")]
    Poisoned {
        /// The first failure.
        first: String,
    },
    /// Reading failed.
    #[error("cannot read {}; {}", path.display(), remedy(path))]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// Another process has the directory open.
    #[error("log directory {} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The directory is the log of another organism.
    #[error(
        "{} says that it is of organism {found}, not {expected}; point to that organism's own directory or, if the file is damaged, {}",
        path.display(), remedy(path)
    )]
    OtherOrganism {
        /// The file that says so.
        path: PathBuf,
        /// Organism it belongs to.
        found: UniqueId,
        /// Organism it was opened for.
        expected: UniqueId,
    },
    /// A handover of the roster that does not hold.
    #[error("the handover for {} does not hold", path.display())]
    Handover {
        /// Where the proofs are kept.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: HandoverError,
    },
    /// The directory was written by a newer build.
    #[error(
        "{} says schema {found}, this build reads up to {supported}; use a newer build or, if the file is damaged, {}",
        path.display(), remedy(path)
    )]
    NewerSchema {
        /// The file that says so.
        path: PathBuf,
        /// Schema it has.
        found: u64,
        /// Newest schema this build reads.
        supported: u64,
    },
    /// A file of the store is missing although the store is in use.
    #[error("{} is missing; {}", path.display(), remedy(path))]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file's bytes are not what was written.
    #[error("{} is damaged at byte {offset}: expected hash {expected}, found {found}; {}", path.display(), remedy(path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the damaged part starts.
        offset: u64,
        /// Hash that part must have.
        expected: Hash,
        /// Hash it has.
        found: Hash,
    },
    /// A file cannot be parsed at all.
    #[error("{} is damaged at byte {offset}: {reason}; {}", path.display(), remedy(path))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The log is shorter than what this member has signed: the disk was rolled back, or its end is lost.
    #[error(
        "this member signed a log of {guard} entries (root {root}), {} has {log}; if only its end is lost, {}; if the disk is an older copy, never sign with this key again, rejoin under a new one",
        path.display(), remedy(path)
    )]
    GuardAhead {
        /// The journal, which has the log's end.
        path: PathBuf,
        /// Size signed last.
        guard: u64,
        /// Root signed last.
        root: Hash,
        /// Size on disk.
        log: u64,
    },
    /// The log differs from what this member has signed.
    #[error(
        "this member signed root {guard} at size {size}, the log on disk has root {log} there; never sign with this key again, rejoin under a new one"
    )]
    GuardConflict {
        /// Size signed last.
        size: u64,
        /// Root signed last.
        guard: Hash,
        /// Root on disk.
        log: Hash,
    },
    /// Asked to sign a head smaller than one already signed.
    #[error("asked to sign size {asked} after size {signed}; heads are signed in increasing order")]
    SignBehind {
        /// Size asked for.
        asked: u64,
        /// Size signed last.
        signed: u64,
    },
    /// The cosigner is of another organism.
    #[error("the cosigner is of organism {found}, this log of {expected}")]
    OtherCosigner {
        /// Organism of the cosigner.
        found: UniqueId,
        /// Organism of this log.
        expected: UniqueId,
    },
    /// The log is shorter than a certified checkpoint.
    #[error("checkpoint certifies {certified} entries, this log has {log}; fetch the missing ones first")]
    CheckpointAhead {
        /// Size certified.
        certified: u64,
        /// Size on disk.
        log: u64,
    },
    /// The quorum certified another history than this log: this member has diverged.
    #[error(
        "the committee certified root {certified} at size {size}, this log has {log} there; this member has diverged, stop it and restore it from another"
    )]
    CheckpointConflict {
        /// Size certified.
        size: u64,
        /// Root certified.
        certified: Hash,
        /// Root of this log.
        log: Hash,
    },
    /// The stored checkpoint is malformed.
    #[error("stored checkpoint {} is malformed; {}", path.display(), remedy(path))]
    CheckpointNote {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: NoteError,
    },
    /// The stored checkpoint is not certified by the roster.
    #[error("stored checkpoint {} is not certified by this roster; {}", path.display(), remedy(path))]
    NotCertified {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CertifyError,
    },
    /// The roster is unusable.
    #[error("the roster cannot verify checkpoints")]
    Roster(#[source] RosterError),
    /// An entry breaks a limit. Nothing was written.
    #[error("entry {index} cannot be stored")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// An entry is not the next one. Nothing was written.
    #[error("entry {found} was appended where {expected} is next")]
    WrongIndex {
        /// Index of the next entry.
        expected: u64,
        /// Index of the entry.
        found: u64,
    },
    /// Heights in a group do not increase. Nothing was written.
    #[error("batch {found} was appended after batch {last} in one group; heights must increase")]
    WrongHeight {
        /// Height before.
        last: u64,
        /// Height of the batch.
        found: u64,
    },
    /// A group is too large for one journal record. Nothing was written.
    #[error("group of {bytes} bytes exceeds the limit of {limit}; append fewer batches at once")]
    GroupTooLarge {
        /// Size of the group.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The log has no such entry or size.
    #[error("{index} is beyond this log of {size} entries")]
    OutOfRange {
        /// Index or size asked for.
        index: u64,
        /// Size of the log.
        size: u64,
    },
    /// The entry was dropped here, with all before it; its hash is still in the tree.
    #[error("entry {index} was pruned here: entries below {below} were dropped at {at_ms} ms since the Unix epoch")]
    Pruned {
        /// Index asked for.
        index: u64,
        /// First index that is still there.
        below: u64,
        /// When, Unix milliseconds.
        at_ms: u64,
    },
    /// What others served for a takeover is not the certified tree, or not one that this log is the beginning of.
    #[error(
        "the hashes and entries served for a state of {covers} entries are not the certified tree that this log begins"
    )]
    TakeoverTree {
        /// Entries the state covers.
        covers: u64,
    },
    /// What others served for a takeover has another length than it must.
    #[error("the {what} served for a takeover are not the {expected} there are")]
    TakeoverLength {
        /// Which part.
        what: &'static str,
        /// How many there must be.
        expected: u64,
    },
    /// The entry is durable here and not certified yet.
    #[error("entry {index} is not certified yet, {certified} entries are")]
    NotCertifiedYet {
        /// Index asked for.
        index: u64,
        /// Size of the last certified checkpoint.
        certified: u64,
    },
    /// No such proof.
    #[error("there is no such proof")]
    Proof(#[from] ProofError),
    /// The evidence could not be put together.
    #[error("evidence could not be made")]
    Evidence(#[source] EvidenceError),
}

/// What helps against the loss of a file. Logs of all members are equal, so most of them can be had again.
fn remedy(path: &Path) -> &'static str {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(super::CHECKPOINT_FILE) => "delete it, the committee sends a new one",
        Some(super::GUARD_FILE) => "what this member signed is unknown without it: rejoin under a new key",
        Some(super::IDENTITY_FILE) => "copy it from another member",
        _ => {
            "copy pending.log and then tile from a member that is not behind over this one's, keep guard, and start again"
        }
    }
}

impl StoreError {
    /// Whether the member must stop: its disk failed, or its log is not the one it signed or the one certified.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Fatal { .. }
                | Self::Poisoned { .. }
                | Self::Missing { .. }
                | Self::Corrupt { .. }
                | Self::Malformed { .. }
                | Self::GuardAhead { .. }
                | Self::GuardConflict { .. }
                | Self::CheckpointConflict { .. }
        )
    }
}
