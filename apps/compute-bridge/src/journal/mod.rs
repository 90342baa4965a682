//! What the bridge must not forget: where each grant stands, on disk before anything is done about it.
//!
//! [`state`] is the pure machine: events in, state and next step out. [`mod@file`] is the append-only file: framed, chained,
//! hashed, synced. [`Journal`] is both together. Nothing in it names a requester: the rotating peer, the requester's
//! keys and the image's address are obtained anew from the unseal committee when they are needed again.
//! `docs/OPERATORS.md` lists what a journal holds.

pub mod file;
pub mod state;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use coalition::RequestId;
use serde::{Deserialize, Serialize};

pub use file::{JournalError, JournalFile};
pub use state::{AttemptRecord, Event, ExtensionStep, GrantState, Illegal, Next, Outcome, Stage};

/// One record: what happened to which grant, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The grant.
    pub grant: RequestId,
    /// Wall clock, Unix milliseconds.
    pub at_ms: u64,
    /// What happened, or is about to.
    pub event: Event,
}

/// Closed grants kept, so that a grant seen again in the log is known to be done.
const KEEP_CLOSED: usize = 4_096;
/// Bytes after which the file is written anew without what no longer matters.
const COMPACT_BYTES: u64 = 8 << 20;

struct Inner {
    file: JournalFile,
    states: BTreeMap<RequestId, GrantState>,
    written_at_compaction: u64,
}

/// The journal: a cheap handle, shared by all tasks.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Mutex<Inner>>,
}

impl Journal {
    /// Opens or makes the journal in `dir`, and folds it. Dropped bytes of a torn tail are reported in the log.
    ///
    /// # Errors
    /// [`JournalError`] when the file cannot be used, or is damaged anywhere but in a torn tail.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let (file, records) = JournalFile::open(&dir.join("grants.journal"))?;
        let mut states = BTreeMap::new();
        for (index, record) in records.iter().enumerate() {
            fold(&mut states, record).map_err(|source| JournalError::Contradiction { record: index, source })?;
        }
        let written_at_compaction = file.len_bytes();
        let journal = Self { inner: Arc::new(Mutex::new(Inner { file, states, written_at_compaction })) };
        // Every start drops what is no longer needed, sealed receipts first of all.
        journal.with(|inner| if inner.file.next_record() > inner.states.len() { compact(inner) } else { Ok(()) })?;
        Ok(journal)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Inner) -> R) -> R {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes one record durably, then applies it. When this returns, the event survives any crash.
    ///
    /// # Errors
    /// [`JournalError`]; after a failed write the journal refuses every further record, and the bridge must stop.
    pub fn append_blocking(&self, record: &Record) -> Result<GrantState, JournalError> {
        self.with(|inner| {
            let next = match (inner.states.get(&record.grant), &record.event) {
                (None, Event::Granted(grant)) => Ok(GrantState::new(grant.as_ref().clone())),
                (None, _) => Err(Illegal::Unknown),
                (Some(state), event) => state.apply(event),
            };
            let next =
                next.map_err(|source| JournalError::Contradiction { record: inner.file.next_record(), source })?;
            inner.file.append(record)?;
            inner.states.insert(record.grant, next.clone());
            compact_when_large(inner)?;
            Ok(next)
        })
    }

    /// As [`Journal::append_blocking`], off the async threads.
    ///
    /// # Errors
    /// As [`Journal::append_blocking`].
    pub async fn append(&self, grant: RequestId, event: Event) -> Result<GrantState, JournalError> {
        let journal = self.clone();
        let record = Record { grant, at_ms: crate::now_ms(), event };
        match tokio::task::spawn_blocking(move || journal.append_blocking(&record)).await {
            Ok(result) => result,
            Err(_) => Err(JournalError::Stopped),
        }
    }

    /// For tests: from now on only this many bytes reach the disk, then every write fails, as at a power loss.
    #[doc(hidden)]
    pub fn lose_power_after(&self, bytes: u64) {
        self.with(|inner| inner.file.lose_power_after(bytes));
    }

    /// Where a grant stands.
    #[must_use]
    pub fn get(&self, grant: &RequestId) -> Option<GrantState> {
        self.with(|inner| inner.states.get(grant).cloned())
    }

    /// Every grant that is not closed.
    #[must_use]
    pub fn open_grants(&self) -> Vec<(RequestId, GrantState)> {
        self.with(|inner| {
            let open = inner.states.iter().filter(|(_, state)| !state.is_closed());
            open.map(|(id, state)| (*id, state.clone())).collect()
        })
    }

    /// Whether it knows of no grant at all, not even of closed ones: a first start, or a lost file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.with(|inner| inner.states.is_empty())
    }

    /// Looks at every grant the journal remembers.
    pub fn for_each(&self, mut look: impl FnMut(&RequestId, &GrantState)) {
        self.with(|inner| inner.states.iter().for_each(|(id, state)| look(id, state)));
    }
}

/// What the journal in `dir` holds, without touching it: its bridge may be running. Nothing when there is none.
///
/// # Errors
/// [`JournalError`] when it cannot be read, or is damaged anywhere but in a torn tail.
pub fn read(dir: &Path) -> Result<BTreeMap<RequestId, GrantState>, JournalError> {
    let records = JournalFile::read(&dir.join("grants.journal"))?;
    let mut states = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        fold(&mut states, record).map_err(|source| JournalError::Contradiction { record: index, source })?;
    }
    Ok(states)
}

fn fold(states: &mut BTreeMap<RequestId, GrantState>, record: &Record) -> Result<(), Illegal> {
    let next = match (states.get(&record.grant), &record.event) {
        (None, Event::Granted(grant)) => GrantState::new(grant.as_ref().clone()),
        (None, Event::Snapshot(state)) => state.as_ref().clone(),
        (None, _) => return Err(Illegal::Unknown),
        (Some(state), event) => state.apply(event)?,
    };
    states.insert(record.grant, next);
    Ok(())
}

/// Rewrites the file as one snapshot per grant, all open ones and the newest closed ones, when it has doubled.
fn compact_when_large(inner: &mut Inner) -> Result<(), JournalError> {
    if inner.file.len_bytes() < inner.written_at_compaction.saturating_mul(2).max(COMPACT_BYTES) {
        return Ok(());
    }
    compact(inner)
}

fn compact(inner: &mut Inner) -> Result<(), JournalError> {
    let mut closed: Vec<(u64, RequestId)> = inner
        .states
        .iter()
        .filter(|(_, state)| state.is_closed())
        .map(|(id, state)| (state.grant.valid_to_ms, *id))
        .collect();
    closed.sort_unstable();
    let surplus = closed.len().saturating_sub(KEEP_CLOSED);
    for (_, id) in closed.into_iter().take(surplus) {
        inner.states.remove(&id);
    }
    let at_ms = crate::now_ms();
    let snapshot = |(id, state): (&RequestId, &GrantState)| Record {
        grant: *id,
        at_ms,
        event: Event::Snapshot(Box::new(state.clone())),
    };
    let records: Vec<Record> = inner.states.iter().map(snapshot).collect();
    inner.file.rewrite(&records)?;
    inner.written_at_compaction = inner.file.len_bytes();
    Ok(())
}
