//! A member's disk for one log: what was written, and what of it is durable.
//!
//! A record, a guard slot and a checkpoint file are each there whole or not at all after a crash: the store's formats make
//! torn ones detectable, and `coalition-log`'s own tests cut and flip their bytes.

use std::{collections::BTreeMap, sync::Arc};

use coalition_log::entry::leaf_hash;
use coalition_log::tree::{Frontier, Hash, Nodes, ProofError, root_of};

use super::{check::Tally, rng::Rng};

/// One append: a batch's entries.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) height: u64,
    pub(super) entries: Vec<Arc<[u8]>>,
}

/// What a member signed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guard {
    pub(super) size: u64,
    pub(super) root: Hash,
}

/// A write that is not synced.
#[derive(Clone, Debug)]
pub(super) enum Unsynced {
    Append(Record),
    Guard(Guard),
    Checkpoint(String),
    State(u64, Vec<u8>),
}

#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) records: Vec<Record>,
    pub(super) guard: Guard,
    pub(super) checkpoint: Option<String>,
    /// The last two states, by what they cover.
    pub(super) states: BTreeMap<u64, Vec<u8>>,
    unsynced: Vec<Unsynced>,
}

impl Disk {
    pub(super) fn new() -> Self {
        let guard = Guard { size: 0, root: Hash::empty_root() };
        Self { records: Vec::new(), guard, checkpoint: None, states: BTreeMap::new(), unsynced: Vec::new() }
    }

    pub(super) fn write(&mut self, what: Unsynced) {
        self.unsynced.push(what);
    }

    /// Syncs the journal.
    pub(super) fn sync_log(&mut self) {
        self.sync(|what| matches!(what, Unsynced::Append(_)));
    }

    /// Syncs the guard.
    pub(super) fn sync_guard(&mut self) {
        self.sync(|what| matches!(what, Unsynced::Guard(_)));
    }

    /// Syncs the checkpoint.
    pub(super) fn sync_checkpoint(&mut self) {
        self.sync(|what| matches!(what, Unsynced::Checkpoint(_)));
    }

    /// Syncs the state.
    pub(super) fn sync_state(&mut self) {
        self.sync(|what| matches!(what, Unsynced::State(..)));
    }

    fn sync(&mut self, which: impl Fn(&Unsynced) -> bool) {
        for what in std::mem::take(&mut self.unsynced) {
            if which(&what) {
                self.settle(what);
            } else {
                self.unsynced.push(what);
            }
        }
    }

    /// Of what was not synced, some is there and some is not.
    pub(super) fn crash(&mut self, rng: &mut Rng, tally: &mut Tally) {
        for what in std::mem::take(&mut self.unsynced) {
            if rng.percent(40) {
                tally.count("unsynced write kept");
                self.settle(what);
            } else {
                tally.count("unsynced write lost");
            }
        }
        if let Some(state) = self.states.values_mut().next_back().filter(|_| rng.percent(10)) {
            tally.count("state damaged on disk");
            let position = if rng.percent(50) { state.len() - 1 } else { rng.index(state.len()) };
            state[position] ^= 1;
        }
    }

    fn settle(&mut self, what: Unsynced) {
        match what {
            Unsynced::Append(record) => self.records.push(record),
            Unsynced::Guard(guard) => self.guard = guard,
            Unsynced::Checkpoint(note) => self.checkpoint = Some(note),
            Unsynced::State(covers, bytes) => {
                self.states.insert(covers, bytes);
                while self.states.len() > 2 {
                    self.states.pop_first();
                }
            }
        }
    }

    /// Number of durable entries.
    pub(super) fn size(&self) -> u64 {
        self.records.iter().map(|record| record.entries.len() as u64).sum()
    }

    /// Loses synced records until the log is shorter than the `signed` entries it stood for. `false` when there are none.
    pub(super) fn roll_back(&mut self, signed: u64) -> bool {
        if signed == 0 {
            return false;
        }
        self.unsynced.clear();
        while self.size() >= signed {
            self.records.pop();
        }
        self.checkpoint = None;
        true
    }
}

/// The entries a process knows to be durable, with their tree.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    pub(super) entries: Vec<Arc<[u8]>>,
    leaves: Vec<Hash>,
    roots: Vec<Hash>,
    frontier: Frontier,
}

impl Log {
    pub(super) fn push(&mut self, entry: Arc<[u8]>) {
        let leaf = leaf_hash(&entry);
        self.entries.push(entry);
        self.leaves.push(leaf);
        self.frontier.push(leaf);
        self.roots.push(self.frontier.root());
    }

    pub(super) fn size(&self) -> u64 {
        self.leaves.len() as u64
    }

    pub(super) fn leaf(&self, index: u64) -> Option<Hash> {
        self.leaves.get(at(index)).copied()
    }

    pub(super) fn leaves(&self) -> &[Hash] {
        &self.leaves
    }

    /// Root of the first `size` entries.
    pub(super) fn root_at(&self, size: u64) -> Option<Hash> {
        if size == 0 { Some(Hash::empty_root()) } else { self.roots.get(at(size - 1)).copied() }
    }

    /// Entries from `from` on, at most up to `to`, at most `bytes` long together, at least one.
    pub(super) fn range(&self, from: u64, to: u64, bytes: usize) -> Vec<Vec<u8>> {
        let mut left = bytes;
        let mut taken: Vec<Vec<u8>> = Vec::new();
        for entry in self.entries.iter().take(at(to)).skip(at(from)) {
            if entry.len() > left && !taken.is_empty() {
                break;
            }
            left = left.saturating_sub(entry.len());
            taken.push(entry.to_vec());
        }
        taken
    }
}

pub(super) fn at(index: u64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

impl Nodes for Log {
    type Error = ProofError;

    fn node(&self, level: u32, index: u64) -> Result<Hash, ProofError> {
        let beyond = ProofError::NoSuchLeaf { index: index << level, size: self.size() };
        self.leaves.get(at(index << level)..at((index + 1) << level)).map(root_of).ok_or(beyond)
    }
}
