//! Moving full tiles out of the journal: sync them, then replace the journal by one that begins after them.
//!
//! A tile costs two syncs, and a rotation moves a hundred tiles, so syncing runs in a thread while appends go on into the
//! old journal. Nothing depends on when it ends: until the new journal is in place, the old one has every entry.

use std::io;
use std::thread::{Builder, JoinHandle};

use super::files::{fatal, sync_all};
use super::journal::{Base, Journal, Record};
use super::reader::State;
use super::{Store, StoreError, TILE_WIDTH};

/// How much the journal may outgrow its limit before appends wait for the rotation, as a factor.
const PATIENCE: u64 = 4;

/// Tiles being synced.
#[derive(Debug)]
pub(super) struct Rotation {
    /// Number of entries in tiles once it is done.
    base: u64,
    syncing: JoinHandle<Result<(), StoreError>>,
}

impl Store {
    /// Starts or finishes a rotation if it is time, without waiting unless the journal has grown far too long.
    pub(super) fn rotate_in_background(&mut self) -> Result<(), StoreError> {
        let (grown, limit) = (self.journal.grown_bytes(), self.options.rotate_bytes);
        let late = grown > limit.saturating_mul(PATIENCE);
        if let Some(rotation) = self.rotation.take_if(|rotation| late || rotation.syncing.is_finished()) {
            self.finish_rotation(rotation)?;
        }
        if self.rotation.is_none() && self.journal.grown_bytes() > limit {
            self.rotation = self.start_rotation()?;
        }
        Ok(())
    }

    /// Rotates everything that can be, and waits for it.
    pub(super) fn rotate_now(&mut self) -> Result<(), StoreError> {
        if let Some(rotation) = self.rotation.take() {
            self.finish_rotation(rotation)?;
        }
        if let Some(rotation) = self.start_rotation()? {
            self.finish_rotation(rotation)?;
        }
        Ok(())
    }

    fn start_rotation(&mut self) -> Result<Option<Rotation>, StoreError> {
        let (base, former) = {
            let state = self.reader.shared.state();
            (full(state.size()), state.base)
        };
        if base == former {
            return Ok(None);
        }
        let (dir, files) = (self.reader.dir().to_owned(), std::mem::take(&mut self.unsynced));
        let thread = Builder::new().name("log tiles".into()).spawn(move || sync_all(&dir, &files));
        let syncing = thread.map_err(fatal("start a syncing thread for", self.reader.dir()))?;
        Ok(Some(Rotation { base, syncing }))
    }

    fn finish_rotation(&mut self, rotation: Rotation) -> Result<(), StoreError> {
        let panicked =
            |_| Err(fatal("sync tiles of", self.reader.dir())(io::Error::other("the syncing thread panicked")));
        rotation.syncing.join().unwrap_or_else(panicked)?;
        let (base, carried) = describe(&self.reader.shared.state(), rotation.base);
        self.journal = Journal::start(self.reader.dir(), self.reader.organism(), &base, carried.as_ref())?;
        let mut state = self.reader.shared.state_mut();
        let moved = position(base.size - state.base);
        state.tail.drain(..moved);
        if let Some(leaves) = state.levels.first_mut() {
            leaves.drain(..moved);
        }
        state.base = base.size;
        Ok(())
    }
}

/// The base of a journal that begins after the first `size` entries, and what it must carry.
fn describe(state: &State, size: u64) -> (Base, Option<Record>) {
    let entries = state.tail[position(size - state.base)..].to_vec();
    let carried = (!entries.is_empty()).then(|| Record { height: state.height.unwrap_or(0), first: size, entries });
    (base_at(state, size), carried)
}

/// The base of a journal that begins after the first `size` entries.
pub(super) fn base_at(state: &State, size: u64) -> Base {
    let edge = |(i, hashes): (usize, &Vec<_>)| {
        let count = size >> (8 * (i + 1));
        hashes[position(full(count))..position(count)].to_vec()
    };
    let mut edges: Vec<_> = state.levels.iter().skip(1).enumerate().map(edge).collect();
    while edges.last().is_some_and(Vec::is_empty) {
        edges.pop();
    }
    Base { size, height: state.height, edges }
}

/// The largest multiple of a tile's width that is not above `count`.
fn full(count: u64) -> u64 {
    count / TILE_WIDTH * TILE_WIDTH
}

fn position(count: u64) -> usize {
    usize::try_from(count).expect("what is in memory can be indexed")
}
