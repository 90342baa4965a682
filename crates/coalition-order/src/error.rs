//! What can go wrong, in words an operator can act on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

/// Why a member could not start, or stopped.
///
/// Cloneable, because one failure is reported to every waiter.
#[derive(Clone, Debug, Error)]
pub enum OrderError {
    /// The configuration is wrong; the text names the field, its value and the bound.
    #[error("ordering config: {0}")]
    Config(String),
    /// The secret key is not the key of any seat.
    #[error("the secret key belongs to {0}, which is no member of the roster; use the key of the seat this node holds")]
    NotAMember(String),
    /// A key of the roster is not an Ed25519 public key.
    #[error("the public key of member {0} is not an Ed25519 key; correct the roster")]
    BadKey(usize),
    /// The storage directory could not be created, read or written. After a failed write or flush nothing is tried again.
    #[error("storage directory {path} is not usable")]
    Storage {
        /// The directory or file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Another process holds the storage directory.
    #[error(
        "storage directory {0} is in use by another process; stop that process, or give this member its own directory"
    )]
    StorageInUse(PathBuf),
    /// The storage directory was written by another committee, or under other limits.
    #[error(
        "{path} says that this storage belongs to committee {found}, but the config describes {expected}; restore the config or, if the file is damaged, copy it from another member; else use an empty directory and a new key"
    )]
    ForeignStorage {
        /// The file in the storage directory that names the committee.
        path: PathBuf,
        /// Fingerprint found in it.
        found: String,
        /// Fingerprint of the config.
        expected: String,
    },
    /// The engine's journal cannot be opened.
    #[error(transparent)]
    Journal(Arc<JournalError>),
    /// The stored batches or their certificates are not what was written.
    #[error(
        "the ordered batches stored in {path} are damaged ({why}); create the file {mark} and start this member again: it then drops them and fetches all from the other members"
    )]
    Archive {
        /// The directory of the engine's files.
        path: PathBuf,
        /// The file that asks for it.
        mark: PathBuf,
        /// What the engine found.
        why: String,
    },
    /// This member's own votes are not what was written.
    #[error(
        "the votes stored in {path} are damaged ({why}); do not restore an older copy, this member might vote twice: give it an empty directory and a new key"
    )]
    Votes {
        /// The directory of the engine's files.
        path: PathBuf,
        /// What the engine found.
        why: String,
    },
    /// The listen address cannot be bound.
    #[error("cannot listen on {address}; free the port or change the listen address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The engine's thread could not be started.
    #[error("cannot start the ordering thread")]
    Thread(#[source] Arc<std::io::Error>),
    /// The engine panicked.
    #[error("the ordering engine failed: {0}; restart the process")]
    Panicked(String),
    /// A part of the engine ended although nobody asked it to.
    #[error("the {0} of the ordering engine ended unexpectedly; restart the process")]
    Ended(&'static str),
    /// A delivery was dropped without acknowledgement, so nothing more can be delivered in this run.
    #[error("batch {0} was dropped without acknowledgement; restart to have it delivered again")]
    Dropped(u64),
    /// The member was stopped on request.
    #[error("the ordering engine was stopped")]
    Stopped,
    /// The member did not stop in time; its thread is still running.
    #[error("the ordering engine did not stop within {0} ms")]
    StopTimeout(u64),
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// Too many commands wait to be ordered. Retry later.
    #[error(
        "{pending_bytes} bytes of commands wait to be ordered, the limit is {max_bytes}; retry when some were delivered"
    )]
    Full {
        /// Bytes waiting, submitted by this process.
        pending_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The command can never be taken.
    #[error("the command has {len} bytes, at most {max} are allowed")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The engine has stopped or failed.
    #[error("the ordering engine is not running")]
    Stopped,
}

/// Why the engine's journal cannot be opened.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The operating system refused something.
    #[error("cannot {action} {path}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The directory was written before there was a journal.
    #[error(
        "{0} holds an ordering engine's data in an earlier layout, which this version cannot read; give this member an empty directory and a new key"
    )]
    EarlierLayout(PathBuf),
    /// The journal is of another version.
    #[error(
        "{path} says {found:?}, which this version cannot read; use the version that wrote it, or an empty directory and a new key"
    )]
    Version {
        /// The file that names the version.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// The journal was changed or lost since it was written.
    #[error(
        "{path} is damaged at byte {offset}: {why}; do not restore an older copy, this member's votes would be forgotten: give it an empty directory and a new key"
    )]
    Damaged {
        /// The log file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        why: &'static str,
    },
    /// No batch of the journal is valid: it starts with damage, or the key they are checked with is not theirs.
    #[error(
        "neither {} nor {} starts with a batch that is valid under the key in {}: one of the three is damaged; do not restore an older copy, this member's votes would be forgotten: give it an empty directory and a new key",
        logs[0].display(), logs[1].display(), format.display()
    )]
    NoBatch {
        /// The log files.
        logs: [PathBuf; 2],
        /// The file with the key.
        format: PathBuf,
    },
    /// A file the journal did not make, or a second one for one blob.
    #[error("{0} is no file of the journal; move it away, and find out how it got there")]
    Stranger(PathBuf),
}
