//! Taking over what others served and the caller has verified: entries, and whole states of which the entries before are not
//! here.
//!
//! A takeover first writes the hash tiles it lacks, which nobody reads before the log reaches them, then the state and the
//! file `start`, and last replaces the journal in one step by one that begins with the tile the state falls into. Before that
//! step the log is the old one, after it the new one; what a crash leaves behind is cleared when the log is opened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{fatal, read_if_there, replace, replace_durably, sync_all};
use super::journal::{Journal, MAX_PAYLOAD_BYTES, Record};
use super::pruning::{Pruned, drop_all_bundles, write_pruned};
use super::reader::State;
use super::rotation::base_at;
use super::tiles::{TILE_WIDTH, TileKind, encode_hashes, tile_path};
use super::{Store, StoreError};
use crate::checkpoint::parse_decimal;
use crate::entry::{Entry, leaf_hash};
use crate::tree::{Frontier, Hash, root_of};

/// Name of the file that says which state a log begins with.
const START_FILE: &str = "start";
const HEADER: &str = "coalition-log-start/1";
/// Height of records that no batch of this member's engine made; engines count from 1.
pub(super) const FETCHED: u64 = 0;

/// A log that begins with a state that was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Entries the state covers; entry number `covers`, which certifies it, was verified before it was stored.
    pub(super) covers: u64,
    /// First entry that is here; a multiple of 256.
    pub(super) below: u64,
    /// When it was taken over, Unix milliseconds.
    pub(super) at_ms: u64,
}

/// The hash tiles between a log and a state ahead of it, as they come in.
#[derive(Debug)]
pub struct Takeover {
    dir: PathBuf,
    base: u64,
    levels: Vec<Vec<Hash>>,
    written: Vec<PathBuf>,
}

impl Takeover {
    /// Number of the tile of leaf hashes that comes next.
    pub fn next_tile(&self) -> u64 {
        self.base / TILE_WIDTH
    }

    /// Makes durable what was taken so far, so that the end need not wait for all of it.
    ///
    /// # Errors
    /// Fatal write errors.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        sync_all(&self.dir, &std::mem::take(&mut self.written))
    }

    /// Takes the next full tile of leaf hashes. It is checked as part of the whole.
    ///
    /// # Errors
    /// [`StoreError::TakeoverLength`], fatal write errors.
    pub fn push_tile(&mut self, leaves: &[Hash]) -> Result<(), StoreError> {
        if leaves.len() as u64 != TILE_WIDTH {
            return Err(StoreError::TakeoverLength { what: "hashes of a tile", expected: TILE_WIDTH });
        }
        let (mut full, mut level, mut number) = (leaves.to_vec(), 0u8, self.base / TILE_WIDTH);
        self.base += TILE_WIDTH;
        loop {
            let path = self.dir.join(tile_path(TileKind::Level(level), number, TILE_WIDTH));
            replace(&path, &encode_hashes(&full))?;
            self.written.push(path);
            let above = usize::from(level) + 1;
            if self.levels.len() == above {
                self.levels.push(Vec::new());
            }
            self.levels[above].push(root_of(&full));
            let count = self.levels[above].len();
            if !(count as u64).is_multiple_of(TILE_WIDTH) {
                return Ok(());
            }
            full = self.levels[above][count - leaves.len()..].to_vec();
            (level, number) = (level + 1, count as u64 / TILE_WIDTH - 1);
        }
    }
}

/// A takeover whose tree is the one expected: what is left is to make it durable.
#[derive(Debug)]
pub struct Checked {
    takeover: Takeover,
    covers: u64,
    entries: Vec<Arc<[u8]>>,
    state: State,
}

impl Store {
    /// Appends entries of the certified log that no batch of this member's engine made, with one write and one sync. The log is
    /// [`Reader::is_fetched`](super::Reader::is_fetched) until the next batch.
    ///
    /// # Errors
    /// As [`Store::append_group`].
    pub fn append_fetched(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        self.check_poisoned()?;
        let first = self.reader.size();
        let mut encoded: Vec<Arc<[u8]>> = Vec::new();
        super::encode_entries(entries, first, &mut encoded)?;
        let bytes: usize = encoded.iter().map(|entry| 4 + entry.len()).sum();
        if bytes + 20 > MAX_PAYLOAD_BYTES {
            return Err(StoreError::GroupTooLarge { bytes, limit: MAX_PAYLOAD_BYTES });
        }
        let result = self.write_group(first, Some(FETCHED), encoded, &[Some((FETCHED, entries.len()))]);
        self.poison_on_error(result).map(drop)
    }

    /// Begins to take over a state ahead of this log. Every full tile of this log is made durable.
    ///
    /// # Errors
    /// Fatal write errors.
    pub fn begin_takeover(&mut self) -> Result<Takeover, StoreError> {
        self.rotate()?;
        let state = self.reader.shared.state();
        let mut levels = state.levels.clone();
        match levels.first_mut() {
            Some(leaves) => leaves.clear(),
            None => levels.push(Vec::new()),
        }
        Ok(Takeover { dir: self.reader.dir().to_owned(), base: state.base, levels, written: Vec::new() })
    }

    /// Checks that the tiles, with the `entries` after them up to and including entry number `covers`, are the tree `expected`
    /// of the first `covers` entries, and that this log is its beginning. Nothing changes.
    ///
    /// # Errors
    /// [`StoreError::TakeoverTree`], [`StoreError::TakeoverLength`].
    pub fn check_takeover(
        &self,
        takeover: Takeover,
        entries: Vec<Vec<u8>>,
        expected: &Frontier,
    ) -> Result<Checked, StoreError> {
        let covers = expected.size();
        let before = self.reader.head();
        let lengths = covers / TILE_WIDTH * TILE_WIDTH == takeover.base
            && covers >= before.size
            && entries.len() as u64 == covers - takeover.base + 1;
        let bytes: usize = entries.iter().map(|entry| 4 + entry.len()).sum();
        if !lengths || bytes + 20 > MAX_PAYLOAD_BYTES {
            return Err(StoreError::TakeoverLength {
                what: "entries up to the state",
                expected: covers % TILE_WIDTH + 1,
            });
        }
        let entries: Vec<Arc<[u8]>> = entries.into_iter().map(Arc::from).collect();
        let wrong = || StoreError::TakeoverTree { covers };
        let mut state = State::new(takeover.base, takeover.levels.clone(), Some(FETCHED)).ok_or_else(wrong)?;
        let (last, rest) = entries.split_last().ok_or_else(wrong)?;
        rest.iter().for_each(|entry| state.push(Arc::clone(entry)));
        if state.frontier != *expected {
            return Err(wrong());
        }
        state.push(Arc::clone(last));
        // The tiles this log had are part of that tree; what it had beyond them is compared leaf by leaf.
        let own = self.reader.leaves_from(tile_start(before.size))?;
        let new = leaves_of(&takeover, &entries, tile_start(before.size), own.len())?;
        if own != new {
            return Err(wrong());
        }
        Ok(Checked { takeover, covers, entries, state })
    }

    /// Makes the log begin with a checked state. Its first entries are then as if pruned at `now_ms`.
    ///
    /// # Errors
    /// Fatal write errors.
    pub fn finish_takeover(&mut self, checked: Checked, state: &[u8], now_ms: u64) -> Result<(), StoreError> {
        self.check_poisoned()?;
        let result = self.switch(checked, state, now_ms);
        self.poison_on_error(result)
    }

    fn switch(&mut self, checked: Checked, bytes: &[u8], at_ms: u64) -> Result<(), StoreError> {
        let Checked { takeover, covers, entries, mut state } = checked;
        let dir = self.reader.dir().to_owned();
        sync_all(&dir, &takeover.written)?;
        self.reader.states().put(covers, bytes, self.usable_state()?)?;
        let start = Start { covers, below: takeover.base, at_ms };
        replace_durably(&dir.join(START_FILE), start.to_text().as_bytes())?;
        let base = base_at(&state, takeover.base);
        let record = Record { height: FETCHED, first: takeover.base, entries };
        self.journal = Journal::start(&dir, self.reader.organism(), &base, Some(&record))?;
        self.unsynced.clear();
        {
            let mut now = self.reader.shared.state_mut();
            state.certified = now.certified.take();
            state.pruned = Some(start.pruned());
            state.start = Some(covers);
            *now = state;
        }
        finish(&dir, &start)
    }
}

impl Start {
    const fn pruned(&self) -> Pruned {
        Pruned { below: self.below, at_ms: self.at_ms }
    }

    fn to_text(self) -> String {
        format!("{HEADER}\ncovers {}\nbelow {}\nat {}\n", self.covers, self.below, self.at_ms)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        (lines.next()? == HEADER).then_some(())?;
        let covers = parse_decimal(lines.next()?.strip_prefix("covers ")?)?;
        let below = parse_decimal(lines.next()?.strip_prefix("below ")?)?;
        let at_ms = parse_decimal(lines.next()?.strip_prefix("at ")?)?;
        let is_possible = covers / TILE_WIDTH * TILE_WIDTH == below;
        (lines.next().is_none() && is_possible).then_some(Self { covers, below, at_ms })
    }
}

/// The state that the log in `dir`, whose journal begins at `base`, was started with; what a crash interrupted is finished, or
/// forgotten if it had not come to the step that counts.
pub(super) fn recover(dir: &Path, base: u64) -> Result<Option<u64>, StoreError> {
    let path = dir.join(START_FILE);
    let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
    let start = Start::parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| {
        let reason = "it does not say what the log starts with";
        StoreError::Malformed { path: path.clone(), offset: 0, reason }
    })?;
    if base < start.below {
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fatal("remove", &path)(e)),
        }
        super::files::sync(dir)?;
        return Ok(None);
    }
    finish(dir, &start)?;
    Ok(Some(start.covers))
}

/// Forgets the entries of the old log, unless that was done.
fn finish(dir: &Path, start: &Start) -> Result<(), StoreError> {
    if super::pruning::read(dir)?.is_some_and(|pruned| pruned.below >= start.below) {
        return Ok(());
    }
    drop_all_bundles(dir, start.below)?;
    write_pruned(dir, start.pruned())
}

/// First leaf of the tile that a log of `size` entries ends in.
const fn tile_start(size: u64) -> u64 {
    size / TILE_WIDTH * TILE_WIDTH
}

/// `count` leaf hashes from `from` on, which is the beginning of a tile.
fn leaves_of(takeover: &Takeover, entries: &[Arc<[u8]>], from: u64, count: usize) -> Result<Vec<Hash>, StoreError> {
    if from >= takeover.base {
        return Ok(entries.iter().take(count).map(|entry| leaf_hash(entry)).collect());
    }
    let number = from / TILE_WIDTH;
    let root = usize::try_from(number).ok().and_then(|at| takeover.levels.get(1)?.get(at)).copied();
    let beyond = StoreError::OutOfRange { index: from, size: takeover.base };
    let mut leaves = super::reader::read_tile(&takeover.dir, 0, number, root.ok_or(beyond)?)?;
    leaves.truncate(count);
    Ok(leaves)
}
