//! Opening a log's directory: who owns it, what is durable in it, and whether that is what this member signed.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use coalition::{Roster, UniqueId};

use super::files::{fatal, read_if_there, replace_durably, sync};
use super::guard::Guard;
use super::journal::{self, Base, Journal, Recovered};
use super::reader::{Reader, State, read_tile};
use super::{
    CHECKPOINT_FILE, HANDOVERS_FILE, IDENTITY_FILE, JOURNAL_FILE, Store, StoreError, StoreOptions, TILE_WIDTH, pruning,
    takeover,
};
use crate::checkpoint::{CertifiedCheckpoint, SignedCheckpoint, parse_decimal, parse_id};
use crate::handover::{RosterChain, proofs_from_text};
use crate::tree::Hash;

const LOCK_FILE: &str = "lock";
const SCHEMA_PREFIX: &str = "coalition-log-store/";
const SCHEMA: u64 = 1;

pub(super) fn open(
    dir: &Path,
    organism: UniqueId,
    roster: &Roster,
    options: StoreOptions,
) -> Result<Store, StoreError> {
    let genesis = RosterChain::new(organism, roster).map_err(StoreError::Roster)?;
    fs::create_dir_all(dir).map_err(fatal("create directory", dir))?;
    let lock = lock(dir)?;
    if !check_identity(dir, organism)? {
        create(dir, organism)?;
    }
    let guard = Guard::open(dir, organism)?;
    let missing = || StoreError::Missing { path: dir.join(JOURNAL_FILE) };
    let mut recovered = journal::recover(dir, organism)?.ok_or_else(missing)?;
    let state = rebuild(dir, &mut recovered)?;
    let base = state.base;
    let reader = Reader::new(dir.to_owned(), genesis, state, options.cache_bytes);
    check_guard(&reader, &guard)?;
    read_handovers(&reader)?;
    if let Some(certified) = read_certified(dir, &reader.chain())? {
        check_certified(&reader, &certified)?;
        reader.shared.state_mut().certified = Some(certified);
    }
    let start = takeover::recover(dir, base)?;
    reader.shared.state_mut().start = start;
    reader.shared.state_mut().pruned = pruning::recover(dir)?;
    let journal = Journal::resume(dir, &recovered)?;
    let mut store =
        Store { reader, journal, guard, options, unsynced: Vec::new(), rotation: None, poisoned: None, _lock: lock };
    store.write_full_tiles(base)?;
    Ok(store)
}

/// Checks that `certified` is a head this log has had.
pub(super) fn check_certified(reader: &Reader, certified: &CertifiedCheckpoint) -> Result<(), StoreError> {
    if certified.organism() != reader.organism() {
        let (found, expected) = (certified.organism(), reader.organism());
        return Err(StoreError::OtherOrganism { path: reader.dir().join(CHECKPOINT_FILE), found, expected });
    }
    let (size, log) = (certified.size(), reader.size());
    if size > log {
        return Err(StoreError::CheckpointAhead { certified: size, log });
    }
    let log = reader.root_at(size)?;
    if log != certified.root() {
        return Err(StoreError::CheckpointConflict { size, certified: certified.root(), log });
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(fatal("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(e)) => Err(fatal("lock", &path)(e)),
    }
}

/// Whether the directory already is a log; an error unless it is this organism's and readable by this build.
fn check_identity(dir: &Path, organism: UniqueId) -> Result<bool, StoreError> {
    let path = dir.join(IDENTITY_FILE);
    let Some(bytes) = read_if_there(&path)? else {
        // The identity is written last. With a guard that has signed, or a journal beyond its header, it was lost.
        let in_use = Guard::open(dir, organism).is_ok_and(|guard| guard.signed().size > 0)
            || journal::recover(dir, organism)?.is_some_and(|found| found.base.size > 0 || !found.records.is_empty());
        return if in_use { Err(StoreError::Missing { path }) } else { Ok(false) };
    };
    let malformed = |reason| StoreError::Malformed { path: path.clone(), offset: 0, reason };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let schema = lines.next().and_then(|line| line.strip_prefix(SCHEMA_PREFIX)).and_then(parse_decimal);
    let schema = schema.ok_or_else(|| malformed("its first line names no schema"))?;
    if schema > SCHEMA {
        return Err(StoreError::NewerSchema { path, found: schema, supported: SCHEMA });
    }
    let found = lines.next().and_then(|line| line.strip_prefix("organism ")).and_then(parse_id);
    let found = found.ok_or_else(|| malformed("its second line names no organism"))?;
    if found != organism {
        return Err(StoreError::OtherOrganism { path, found, expected: organism });
    }
    Ok(true)
}

fn create(dir: &Path, organism: UniqueId) -> Result<(), StoreError> {
    Guard::create(dir, organism)?;
    Journal::start(dir, organism, &Base { size: 0, height: None, edges: Vec::new() }, None)?;
    let identity = format!("{SCHEMA_PREFIX}{SCHEMA}\norganism {}\n", hex::encode(organism.as_bytes()));
    replace_durably(&dir.join(IDENTITY_FILE), identity.as_bytes())?;
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync)
}

/// The log in memory, from tiles below the journal's base and the journal's records.
fn rebuild(dir: &Path, recovered: &mut Recovered) -> Result<State, StoreError> {
    let path = dir.join(JOURNAL_FILE);
    let malformed = |reason| StoreError::Malformed { path: path.clone(), offset: 0, reason };
    let Base { size, height, edges } = &recovered.base;
    let levels = read_levels(dir, *size, edges).and_then(|levels| levels.ok_or_else(|| malformed(WRONG_BASE)))?;
    let mut state = State::new(*size, levels, *height).ok_or_else(|| malformed(WRONG_BASE))?;
    for record in recovered.records.drain(..) {
        if record.first != state.size() {
            return Err(malformed("its records are not consecutive"));
        }
        record.entries.into_iter().for_each(|entry| state.push(entry));
        state.height = Some(record.height);
    }
    Ok(state)
}

const WRONG_BASE: &str = "its base does not describe a tree";

/// The upper levels of the tree of `size` entries, top down: each full tile is checked against the level above it, and the
/// uppermost hashes stand in the journal's header. `None` when `edges` do not fit `size`.
fn read_levels(dir: &Path, size: u64, edges: &[Vec<Hash>]) -> Result<Option<Vec<Vec<Hash>>>, StoreError> {
    // Levels 1 to 7 are all a size below 2^64 can have.
    if !size.is_multiple_of(TILE_WIDTH) || edges.len() > 7 || size >> 8 >> (8 * edges.len()) != 0 {
        return Ok(None);
    }
    let mut levels: Vec<Vec<Hash>> = vec![Vec::new(); edges.len() + 2];
    for (i, edge) in edges.iter().enumerate().rev() {
        let (level, count) = (i + 1, size >> (8 * (i + 1)));
        let full = count / TILE_WIDTH;
        if edge.len() as u64 != count % TILE_WIDTH || levels[level + 1].len() as u64 != full {
            return Ok(None);
        }
        let tile_level = u8::try_from(level).unwrap_or(u8::MAX);
        let mut hashes = Vec::new();
        for (number, expected) in levels[level + 1].iter().enumerate() {
            hashes.extend(read_tile(dir, tile_level, number as u64, *expected)?);
        }
        hashes.extend_from_slice(edge);
        levels[level] = hashes;
    }
    levels.pop();
    Ok(Some(levels))
}

fn check_guard(reader: &Reader, guard: &Guard) -> Result<(), StoreError> {
    let (signed, log) = (guard.signed(), reader.size());
    if signed.size > log {
        return Err(StoreError::GuardAhead {
            path: reader.dir().join(JOURNAL_FILE),
            guard: signed.size,
            root: signed.root,
            log,
        });
    }
    let log = reader.root_at(signed.size)?;
    if log != signed.root {
        return Err(StoreError::GuardConflict { size: signed.size, guard: signed.root, log });
    }
    Ok(())
}

/// The rosters of this log, from the genesis roster and the proofs that were kept.
fn read_handovers(reader: &Reader) -> Result<(), StoreError> {
    let path = reader.dir().join(HANDOVERS_FILE);
    let Some(bytes) = read_if_there(&path)? else { return Ok(()) };
    let malformed = |reason| StoreError::Malformed { path: path.clone(), offset: 0, reason };
    let text = std::str::from_utf8(&bytes).map_err(|_| malformed("it is not text"))?;
    let proofs = proofs_from_text(text).map_err(|_| malformed("it is no list of handovers"))?;
    let mut chain = RosterChain::clone(&reader.chain());
    for proof in &proofs {
        chain.extend(proof).map_err(|source| StoreError::Handover { path: path.clone(), source })?;
        chain.last_handover().map_or(Ok(()), |head| check_certified(reader, head))?;
    }
    reader.shared.set_chain(chain);
    Ok(())
}

fn read_certified(dir: &Path, verifier: &RosterChain) -> Result<Option<CertifiedCheckpoint>, StoreError> {
    let path = dir.join(CHECKPOINT_FILE);
    let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
    let note =
        SignedCheckpoint::parse(&bytes).map_err(|source| StoreError::CheckpointNote { path: path.clone(), source })?;
    verifier.certify(&note).map(Some).map_err(|source| StoreError::NotCertified { path, source })
}
