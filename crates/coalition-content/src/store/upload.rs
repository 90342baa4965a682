//! Content on its way in: two files, and which pieces of them verify.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::files::{open_own, tree_of};
use crate::tree::{Content, SliceError, slice_of_files, write_slice};
use crate::wire::{MAX_RUNS, Run};

/// An upload's files.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) content: Content,
    data: File,
    tree: File,
    /// Which pieces are there; `None` until the files of before were verified.
    have: Mutex<Option<Vec<bool>>>,
}

/// The pieces of an upload, while nobody else marks any.
pub(super) struct Pieces<'a>(MutexGuard<'a, Option<Vec<bool>>>);

impl Upload {
    /// Opens the files, making them if they are not there. Room is reserved by the index, not on the disk.
    pub(super) fn open(path: &Path, content: Content) -> io::Result<Self> {
        let (data, tree) = (open_own(path)?, open_own(&tree_of(path))?);
        let is_new = data.metadata()?.len() == 0;
        data.set_len(content.size())?;
        tree.set_len(content.tree_bytes())?;
        let have = is_new.then(|| vec![false; content.pieces() as usize]);
        Ok(Self { content, data, tree, have: Mutex::new(have) })
    }

    /// The pieces, after verifying what the files of before hold against the hash.
    pub(super) fn pieces(&self) -> Result<Pieces<'_>, SliceError> {
        let mut have = self.have.lock().unwrap_or_else(PoisonError::into_inner);
        if have.is_none() {
            let mut found = Vec::with_capacity(self.content.pieces() as usize);
            for piece in 0..self.content.pieces() {
                found.push(match slice_of_files(self.content, &self.data, &self.tree, self.content.piece(piece)) {
                    Ok(_) => true,
                    Err(SliceError::Unverified { .. }) => false,
                    Err(error) => return Err(error),
                });
            }
            *have = Some(found);
        }
        Ok(Pieces(have))
    }

    /// Verifies a piece's slice and writes it. Several may be written at once.
    pub(super) fn write(&self, piece: u32, slice: &[u8]) -> Result<(), SliceError> {
        write_slice(self.content, slice, &self.content.piece(piece), &self.data, &self.tree)
    }

    /// Makes it durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.data.sync_all()?;
        self.tree.sync_all()
    }

    /// Verified bytes that are there; 0 while a resumed upload was not looked at, or is being looked at.
    pub(super) fn have_bytes(&self) -> u64 {
        let Ok(have) = self.have.try_lock() else { return 0 };
        let there = have.iter().flatten().zip(0_u32..).filter(|(there, _)| **there);
        there.map(|(_, piece)| self.content.piece(piece)).map(|range| range.end - range.start).sum()
    }
}

impl Pieces<'_> {
    fn all(&self) -> &[bool] {
        self.0.as_deref().unwrap_or_default()
    }

    pub(super) fn has(&self, piece: u32) -> bool {
        self.all().get(piece as usize).copied().unwrap_or(false)
    }

    pub(super) fn mark(&mut self, piece: u32) {
        if let Some(there) = self.0.as_deref_mut().and_then(|all| all.get_mut(piece as usize)) {
            *there = true;
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.all().iter().all(|there| *there)
    }

    /// What is missing, the first [`MAX_RUNS`] runs.
    pub(super) fn missing(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (there, piece) in self.all().iter().zip(0_u32..) {
            if *there {
                continue;
            }
            if let Some(run) = runs.last_mut().filter(|run| run.first + run.count == piece) {
                run.count += 1;
                continue;
            }
            if runs.len() == MAX_RUNS {
                break;
            }
            runs.push(Run { first: piece, count: 1 });
        }
        runs
    }
}
