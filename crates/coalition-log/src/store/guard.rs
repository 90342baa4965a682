//! The sign guard: what this member signed last, durable before the signature exists.
//!
//! A file of its own with two slots of 512 bytes, written in turn: sequence ‖ size ‖ root ‖ organism ‖ BLAKE3 of those.
//! A crash can tear only the slot being written, whose signature was then never made; the other slot still stands.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use coalition::UniqueId;

use super::StoreError;
use super::files::{fatal, read_if_there, replace_durably};
use crate::tree::Hash;

/// Name of the guard in a log's directory.
pub const GUARD_FILE: &str = "guard";

const SLOT_BYTES: usize = 512;
const SIGNED_BYTES: usize = 8 + 8 + 32 + 32;

/// The last head this member signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// Size signed last; 0 before the first signature.
    pub size: u64,
    /// Root signed last.
    pub root: Hash,
}

#[derive(Debug)]
pub(super) struct Guard {
    path: PathBuf,
    file: File,
    organism: UniqueId,
    sequence: u64,
    signed: Guarded,
}

impl Guard {
    /// Creates the guard of a new log.
    pub(super) fn create(dir: &Path, organism: UniqueId) -> Result<Self, StoreError> {
        let signed = Guarded { size: 0, root: Hash::empty_root() };
        let mut slots = vec![0; 2 * SLOT_BYTES];
        slots[..SLOT_BYTES].copy_from_slice(&encode(0, &signed, organism));
        replace_durably(&dir.join(GUARD_FILE), &slots)?;
        Self::open(dir, organism)
    }

    /// Opens the guard of a log in use.
    pub(super) fn open(dir: &Path, organism: UniqueId) -> Result<Self, StoreError> {
        let path = dir.join(GUARD_FILE);
        let bytes = read_if_there(&path)?.ok_or_else(|| StoreError::Missing { path: path.clone() })?;
        let slots = bytes.chunks(SLOT_BYTES).take(2).filter_map(decode);
        let newest = slots.max_by_key(|(sequence, _, _)| *sequence);
        let (sequence, signed, found) = newest.ok_or_else(|| StoreError::Malformed {
            path: path.clone(),
            offset: 0,
            reason: "neither slot is intact",
        })?;
        if found != organism {
            return Err(StoreError::OtherOrganism { path, found, expected: organism });
        }
        let file = OpenOptions::new().write(true).open(&path).map_err(fatal("open", &path))?;
        Ok(Self { path, file, organism, sequence, signed })
    }

    /// What was signed last.
    pub(super) fn signed(&self) -> Guarded {
        self.signed
    }

    /// Allows a signature over `next`, durably, if no other root was signed at its size and no larger size at all.
    pub(super) fn advance(&mut self, next: Guarded) -> Result<(), StoreError> {
        let last = self.signed;
        if next.size < last.size {
            return Err(StoreError::SignBehind { asked: next.size, signed: last.size });
        }
        if next.size == last.size {
            let same = next.root == last.root;
            let conflict = StoreError::GuardConflict { size: next.size, guard: last.root, log: next.root };
            return if same { Ok(()) } else { Err(conflict) };
        }
        let sequence = self.sequence + 1;
        let offset = (sequence % 2) * SLOT_BYTES as u64;
        let slot = encode(sequence, &next, self.organism);
        self.file.write_all_at(&slot, offset).map_err(fatal("write", &self.path))?;
        self.file.sync_data().map_err(fatal("sync", &self.path))?;
        self.sequence = sequence;
        self.signed = next;
        Ok(())
    }

    /// Makes every further write fail, as a full disk would.
    #[cfg(test)]
    pub(super) fn break_disk(&mut self) {
        self.file = OpenOptions::new().write(true).open("/dev/full").expect("Linux has /dev/full");
    }
}

fn encode(sequence: u64, signed: &Guarded, organism: UniqueId) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(&sequence.to_be_bytes());
    slot[8..16].copy_from_slice(&signed.size.to_be_bytes());
    slot[16..48].copy_from_slice(&signed.root.0);
    slot[48..80].copy_from_slice(organism.as_bytes());
    let digest = blake3::hash(&slot[..SIGNED_BYTES]);
    slot[SIGNED_BYTES..SIGNED_BYTES + 32].copy_from_slice(digest.as_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, Guarded, UniqueId)> {
    let (content, rest) = slot.split_at_checked(SIGNED_BYTES)?;
    let digest: [u8; 32] = rest.get(..32)?.try_into().ok()?;
    if *blake3::hash(content).as_bytes() != digest {
        return None;
    }
    let sequence = u64::from_be_bytes(content[..8].try_into().ok()?);
    let size = u64::from_be_bytes(content[8..16].try_into().ok()?);
    let root = Hash(content[16..48].try_into().ok()?);
    let organism = UniqueId::from_bytes(content[48..80].try_into().ok()?);
    Some((sequence, Guarded { size, root }, organism))
}
