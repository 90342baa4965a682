//! The durable log of one member: a directory with a journal, C2SP tiles, a sign guard and the last certified checkpoint.
//!
//! * `identity`: schema and organism; the directory belongs to one organism for ever.
//! * `pending.log`: the journal; an append is one write and one sync of this file, however many entries it has.
//! * `tile/…`: full tiles and entry bundles, written as they fill, made durable when the journal is rotated.
//! * `guard`: what this member signed last, durable before every signature.
//! * `checkpoint`: the last certified checkpoint, a signed note.
//! * `handovers`: proofs of the changes of the roster, if there were any.
//! * `state/…`: the last two states of the fold, each certified by an entry of the log.
//! * `pruned`: below which index entries have been dropped.
//! * `start`: the state a log begins with whose first entries were never here.
//! * `lock`: held while the directory is open.
//!
//! Rotation syncs tiles in a thread of its own, so that no append waits for hundreds of them.
//!
//! Opening reads the journal, checks it and the upper tree levels, and compares with guard and checkpoint before it
//! changes a byte. Every failed write or sync is [`StoreError::Fatal`] and poisons the store.

mod error;
mod files;
mod guard;
mod journal;
mod open;
mod pruning;
mod reader;
mod rotation;
mod states;
mod takeover;
mod tiles;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coalition::{Roster, UniqueId};

use crate::checkpoint::{CertifiedCheckpoint, Checkpoint, Cosigner, SignatureLine};
use crate::entry::Entry;
use crate::handover::{HandoverProof, RosterChain, proofs_to_text};

pub use error::StoreError;
pub use guard::{GUARD_FILE, Guarded};
pub use journal::JOURNAL_FILE;
pub use pruning::Pruned;
pub use reader::{Head, Reader};
pub use states::States;
pub use takeover::{Checked, Takeover};
pub use tiles::{TILE_WIDTH, TileKind, decode_bundle, decode_hashes, encode_bundle, encode_hashes, tile_path};

pub use files::replace_durably;

use files::replace;
use guard::Guard;
use journal::{Journal, MAX_PAYLOAD_BYTES, Record};
use rotation::Rotation;

/// Name of the last certified checkpoint in a log's directory.
pub const CHECKPOINT_FILE: &str = "checkpoint";
/// Name of the file that says whose log a directory is.
const IDENTITY_FILE: &str = "identity";

/// Name of the proofs of handovers in a log's directory.
pub const HANDOVERS_FILE: &str = "handovers";

/// How much a store keeps in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Rotation of the journal starts, and its entries leave memory, when it has grown by this many bytes. Appends wait for
    /// it when the journal has grown by four times as many.
    pub rotate_bytes: u64,
    /// Most bytes of verified tiles and bundles kept for reading.
    pub cache_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { rotate_bytes: 8 * 1024 * 1024, cache_bytes: 16 * 1024 * 1024 }
    }
}

/// One executed batch: what ordering it at `height` committed.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Height of the batch; heights increase.
    pub height: u64,
    /// What it committed, in order; may be empty.
    pub entries: &'a [Entry],
}

/// What appending one batch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The batch is durable; the log now has this head.
    Stored(Head),
    /// A batch of this height or a later one was appended before; nothing was written.
    AlreadyStored {
        /// Height of the last batch in the log.
        last_height: u64,
    },
}

/// A log open for writing, by one process and one owner. Dereferences to its [`Reader`].
#[derive(Debug)]
pub struct Store {
    reader: Reader,
    journal: Journal,
    guard: Guard,
    options: StoreOptions,
    /// Full tiles written and not synced, nor being synced by `rotation`.
    unsynced: Vec<PathBuf>,
    rotation: Option<Rotation>,
    poisoned: Option<String>,
    _lock: File,
}

impl Deref for Store {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Store {
    /// Opens the log of `organism` in `dir`, or creates it there.
    ///
    /// # Errors
    /// [`StoreError::Locked`], another organism's or a newer build's directory, damage, a log that is not the one this
    /// member signed ([`StoreError::GuardAhead`], [`StoreError::GuardConflict`]) or the one certified.
    pub fn open(dir: &Path, organism: UniqueId, roster: &Roster, options: StoreOptions) -> Result<Self, StoreError> {
        open::open(dir, organism, roster, options)
    }

    /// A handle for reading from other threads.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// What this member signed last.
    pub fn guarded(&self) -> Guarded {
        self.guard.signed()
    }

    /// Appends one executed batch with one write and one sync.
    ///
    /// A batch without entries is not written: its height is remembered until the process ends, and executing it again
    /// after that commits nothing again.
    ///
    /// # Errors
    /// As [`Store::append_group`].
    pub fn append(&mut self, height: u64, entries: &[Entry]) -> Result<Appended, StoreError> {
        let mut appended = self.append_group(&[Batch { height, entries }])?;
        Ok(appended.pop().expect("a group of one batch has one answer"))
    }

    /// Appends several executed batches with one write and one sync; all of them become durable, or none. Answers one
    /// [`Appended`] for each batch.
    ///
    /// # Errors
    /// [`StoreError::Entry`], [`StoreError::WrongIndex`], [`StoreError::WrongHeight`], [`StoreError::GroupTooLarge`]
    /// before anything is written; [`StoreError::Fatal`] and [`StoreError::Poisoned`].
    pub fn append_group(&mut self, batches: &[Batch<'_>]) -> Result<Vec<Appended>, StoreError> {
        self.check_poisoned()?;
        let (first, mut height) = {
            let state = self.reader.shared.state();
            (state.size(), state.height)
        };
        let before = height;
        let mut plan = Vec::with_capacity(batches.len());
        let mut encoded: Vec<Arc<[u8]>> = Vec::new();
        for batch in batches {
            if before.is_some_and(|before| batch.height <= before) {
                plan.push(None);
                continue;
            }
            if let Some(last) = height.filter(|last| batch.height <= *last) {
                return Err(StoreError::WrongHeight { last, found: batch.height });
            }
            height = Some(batch.height);
            encode_entries(batch.entries, first, &mut encoded)?;
            plan.push(Some((batch.height, batch.entries.len())));
        }
        let bytes: usize = encoded.iter().map(|entry| 4 + entry.len()).sum();
        if bytes + 20 > MAX_PAYLOAD_BYTES {
            return Err(StoreError::GroupTooLarge { bytes, limit: MAX_PAYLOAD_BYTES });
        }
        let result = self.write_group(first, height, encoded, &plan);
        self.poison_on_error(result)
    }

    /// Cosigns the durable log's head, after recording durably what is signed. `timestamp_s` is POSIX seconds.
    ///
    /// # Errors
    /// [`StoreError::OtherCosigner`], [`StoreError::SignBehind`], a fatal guard conflict or write error.
    pub fn cosign(&mut self, cosigner: &Cosigner, timestamp_s: u64) -> Result<SignatureLine, StoreError> {
        self.cosign_at(self.reader.size(), cosigner, timestamp_s)
    }

    /// As [`Store::cosign`], for the head the log had at `size`, which must not be below one already signed.
    ///
    /// # Errors
    /// As [`Store::cosign`], and [`StoreError::OutOfRange`].
    pub fn cosign_at(&mut self, size: u64, cosigner: &Cosigner, timestamp_s: u64) -> Result<SignatureLine, StoreError> {
        self.check_poisoned()?;
        let checkpoint = Checkpoint { organism: self.reader.organism(), size, root: self.reader.root_at(size)? };
        if cosigner.organism() != checkpoint.organism {
            return Err(StoreError::OtherCosigner { found: cosigner.organism(), expected: checkpoint.organism });
        }
        let advanced = self.guard.advance(Guarded { size, root: checkpoint.root });
        self.poison_on_error(advanced)?;
        cosigner
            .sign(&checkpoint, timestamp_s)
            .ok_or(StoreError::OtherCosigner { found: cosigner.organism(), expected: checkpoint.organism })
    }

    /// Keeps a certified checkpoint durably if it is newer than the last. Answers whether it was.
    ///
    /// # Errors
    /// [`StoreError::CheckpointAhead`] when this log lags, [`StoreError::CheckpointConflict`] when it has diverged,
    /// [`StoreError::OtherOrganism`], and fatal write errors.
    pub fn put_certified(&mut self, certified: &CertifiedCheckpoint) -> Result<bool, StoreError> {
        self.check_poisoned()?;
        open::check_certified(&self.reader, certified)?;
        let last = self.reader.certified().map_or(0, |last| last.size());
        if certified.size() <= last {
            return Ok(false);
        }
        let path = self.reader.dir().join(CHECKPOINT_FILE);
        let written = replace_durably(&path, certified.note().to_string().as_bytes());
        self.poison_on_error(written)?;
        self.reader.shared.state_mut().certified = Some(certified.clone());
        Ok(true)
    }

    /// Keeps the proof of the next handover durably: from now on the next roster certifies this log.
    ///
    /// # Errors
    /// [`StoreError::Handover`] when the proof does not hold, those of [`Store::put_certified`] when this log is not the
    /// one it hands over, and fatal write errors.
    pub fn put_handover(&mut self, proof: &HandoverProof) -> Result<(), StoreError> {
        self.check_poisoned()?;
        let path = self.reader.dir().join(HANDOVERS_FILE);
        let known = self.reader.chain();
        let mut chain = RosterChain::clone(&known);
        chain.extend(proof).map_err(|source| StoreError::Handover { path: path.clone(), source })?;
        chain.last_handover().map_or(Ok(()), |head| open::check_certified(&self.reader, head))?;
        if chain.epoch() == known.epoch() {
            return Ok(());
        }
        let text = proofs_to_text(&chain.proofs(0, u64::MAX));
        let written = replace_durably(&path, text.as_bytes());
        self.poison_on_error(written)?;
        self.reader.shared.set_chain(chain);
        Ok(())
    }

    /// Keeps the state after `covers` entries durably beside the log, and drops all but the last two and the newest that the
    /// certificate kept here confirms: the next start may need it.
    ///
    /// # Errors
    /// Fatal write errors.
    pub fn put_state(&mut self, covers: u64, state: &[u8]) -> Result<(), StoreError> {
        self.check_poisoned()?;
        let written = self.usable_state().and_then(|usable| self.reader.states().put(covers, state, usable));
        self.poison_on_error(written)
    }

    /// The newest state that a start would use now.
    fn usable_state(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.reader.states().list()?.into_iter().find(|covers| self.reader.confirms_state(*covers)))
    }

    /// Writes the partial tiles of the last certified checkpoint, so that the directory as it stands can be served to
    /// any C2SP client. Not needed for reading through [`Reader::tile`].
    ///
    /// # Errors
    /// Damage and fatal write errors.
    pub fn write_partial_tiles(&mut self) -> Result<(), StoreError> {
        self.check_poisoned()?;
        let size = self.reader.certified().map_or(0, |certified| certified.size());
        let result = partial_tiles(size).try_for_each(|(kind, number, width)| {
            let bytes = self.reader.tile(kind, number, width)?;
            replace(&self.reader.dir().join(tile_path(kind, number, width)), &bytes)
        });
        self.poison_on_error(result)
    }

    /// Moves every full tile out of the journal and waits for that: makes the tiles durable, then starts a new journal on
    /// them. Happens by itself, in the background, as the journal grows.
    ///
    /// # Errors
    /// Fatal write errors.
    pub fn rotate(&mut self) -> Result<(), StoreError> {
        self.check_poisoned()?;
        let result = self.rotate_now();
        self.poison_on_error(result)
    }

    fn write_group(
        &mut self,
        first: u64,
        height: Option<u64>,
        encoded: Vec<Arc<[u8]>>,
        plan: &[Option<(u64, usize)>],
    ) -> Result<Vec<Appended>, StoreError> {
        let record = Record { height: height.unwrap_or(0), first, entries: encoded };
        if !record.entries.is_empty() {
            self.journal.append(&record)?;
        }
        let appended = self.publish(record.entries, plan);
        self.write_full_tiles(first)?;
        self.rotate_in_background()?;
        Ok(appended)
    }

    /// Makes durable entries visible to readers.
    fn publish(&self, entries: Vec<Arc<[u8]>>, plan: &[Option<(u64, usize)>]) -> Vec<Appended> {
        let mut state = self.reader.shared.state_mut();
        let last_height = state.height.unwrap_or(0);
        let mut entries = entries.into_iter();
        let mut appended = Vec::with_capacity(plan.len());
        for batch in plan {
            let Some((height, count)) = batch else {
                appended.push(Appended::AlreadyStored { last_height });
                continue;
            };
            entries.by_ref().take(*count).for_each(|entry| state.push(entry));
            state.height = Some(*height);
            appended.push(Appended::Stored(state.head()));
        }
        appended
    }

    /// Writes the tiles and bundles that became full since the log had `before` entries.
    fn write_full_tiles(&mut self, before: u64) -> Result<(), StoreError> {
        let size = self.reader.size();
        for (kind, number) in full_tiles(before, size) {
            let path = self.reader.dir().join(tile_path(kind, number, TILE_WIDTH));
            replace(&path, &self.reader.tile(kind, number, TILE_WIDTH)?)?;
            self.unsynced.push(path);
        }
        Ok(())
    }

    fn check_poisoned(&self) -> Result<(), StoreError> {
        self.poisoned.as_ref().map_or(Ok(()), |first| Err(StoreError::Poisoned { first: first.clone() }))
    }

    fn poison_on_error<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && error.is_fatal()
        {
            self.poisoned.get_or_insert_with(|| error.to_string());
        }
        result
    }
}

fn encode_entries(entries: &[Entry], first: u64, out: &mut Vec<Arc<[u8]>>) -> Result<(), StoreError> {
    for entry in entries {
        let expected = first + out.len() as u64;
        if entry.index != expected {
            return Err(StoreError::WrongIndex { expected, found: entry.index });
        }
        let bytes = entry.encode().map_err(|source| StoreError::Entry { index: expected, source })?;
        out.push(Arc::from(bytes));
    }
    Ok(())
}

/// Tiles and bundles that are full in a log of `after` entries and were not in one of `before`.
fn full_tiles(before: u64, after: u64) -> impl Iterator<Item = (TileKind, u64)> {
    let count = |size: u64, level: u32| size.checked_shr(8 * (level + 1)).unwrap_or(0);
    let levels = (0..8u8).flat_map(move |level| {
        let (from, to) = (count(before, level.into()), count(after, level.into()));
        (from..to).map(move |number| (TileKind::Level(level), number))
    });
    let bundles = (count(before, 0)..count(after, 0)).map(|number| (TileKind::Entries, number));
    levels.chain(bundles)
}

/// Partial tiles and the partial bundle of a log of `size` entries.
fn partial_tiles(size: u64) -> impl Iterator<Item = (TileKind, u64, u64)> {
    let levels = (0..8u8).map(move |level| {
        let count = size >> (8 * u32::from(level));
        (TileKind::Level(level), count / TILE_WIDTH, count % TILE_WIDTH)
    });
    let bundle = (TileKind::Entries, size / TILE_WIDTH, size % TILE_WIDTH);
    levels.chain([bundle]).filter(|(_, _, width)| *width > 0)
}
