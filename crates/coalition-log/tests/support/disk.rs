//! A member's log in a temporary directory.

use std::fs;
use std::path::{Path, PathBuf};

use coalition_log::store::{Appended, Store, StoreError, StoreOptions};
use tempfile::TempDir;

use super::{Committee, Leaves, committee, encoded, entries};

/// Small enough that a few hundred entries rotate the journal.
pub const SMALL: StoreOptions = StoreOptions { rotate_bytes: 40_000, cache_bytes: 64 * 1024 };

pub struct Log {
    pub dir: TempDir,
    pub committee: Committee,
    pub options: StoreOptions,
}

impl Log {
    pub fn new(options: StoreOptions) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), committee: committee(1, 4), options }
    }

    pub fn try_open(&self) -> Result<Store, StoreError> {
        Store::open(self.dir.path(), self.committee.organism, &self.committee.roster, self.options)
    }

    pub fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    pub fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(file)
    }

    pub fn filled(options: StoreOptions, size: u64) -> (Self, Store) {
        let log = Self::new(options);
        let mut store = log.open();
        fill(&mut store, size, 100);
        (log, store)
    }

    pub fn flip(&self, file: impl AsRef<Path>, at: usize) {
        let path = self.path(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }
}

pub fn fill(store: &mut Store, to: u64, step: u64) {
    while store.size() < to {
        let from = store.size();
        let batch = entries(from..to.min(from + step));
        let height = store.last_height().unwrap_or(0) + 1;
        assert!(matches!(store.append(height, &batch).unwrap(), Appended::Stored(head) if head.size > from));
    }
}

pub fn check_whole(store: &Store, size: u64) {
    let leaves = Leaves::of_entries(size);
    assert_eq!(store.head().size, size);
    assert_eq!(store.head().root, leaves.root(size as usize));
    let read: Vec<Vec<u8>> =
        store.entries(0..size + 9, usize::MAX).unwrap().iter().map(|bytes| bytes.to_vec()).collect();
    assert_eq!(read, encoded(0..size));
}
