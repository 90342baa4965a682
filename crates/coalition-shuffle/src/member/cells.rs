//! The request cells a member holds.

use std::collections::{BTreeMap, BTreeSet};

use super::{MemberLimits, Refusal};
use crate::cell::{CellId, VerifiedCell};
use crate::envelope::RotatingPeer;
use crate::tdh2::SHARE_BYTES;

/// One held cell.
pub(super) struct StoredCell {
    pub(super) bytes: Box<[u8]>,
    pub(super) cell: VerifiedCell,
    pub(super) expires_at_ms: u64,
    /// This member's share, once released; a second release is the same bytes.
    pub(super) share: Option<[u8; SHARE_BYTES]>,
    from: Option<RotatingPeer>,
}

/// Held cells, with their expiry and how many each peer has.
#[derive(Default)]
pub(super) struct CellStore {
    cells: BTreeMap<CellId, StoredCell>,
    expiry: BTreeSet<(u64, CellId)>,
    per_peer: BTreeMap<RotatingPeer, usize>,
}

impl CellStore {
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(super) fn get(&self, id: &CellId) -> Option<&StoredCell> {
        self.cells.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &CellId) -> Option<&mut StoredCell> {
        self.cells.get_mut(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&CellId, &StoredCell)> {
        self.cells.iter()
    }

    pub(super) fn next_expiry_ms(&self) -> Option<u64> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// Whether one more cell of this peer may be held.
    pub(super) fn room(&self, from: Option<RotatingPeer>, limits: &MemberLimits) -> Result<(), Refusal> {
        if self.cells.len() >= limits.max_cells {
            return Err(Refusal::StoreFull { max: limits.max_cells });
        }
        let held = from.and_then(|peer| self.per_peer.get(&peer)).copied().unwrap_or(0);
        if held >= limits.max_cells_per_peer {
            return Err(Refusal::TooManyCells { max: limits.max_cells_per_peer });
        }
        Ok(())
    }

    /// Holds a cell; the caller has checked that it is new and that there is room.
    pub(super) fn insert(&mut self, bytes: &[u8], cell: VerifiedCell, from: Option<RotatingPeer>, expires_at_ms: u64) {
        let id = cell.id();
        self.expiry.insert((expires_at_ms, id));
        if let Some(peer) = from {
            *self.per_peer.entry(peer).or_default() += 1;
        }
        self.cells.insert(id, StoredCell { bytes: bytes.into(), cell, expires_at_ms, share: None, from });
    }

    /// Holds a cell longer; never shorter.
    pub(super) fn extend(&mut self, id: &CellId, expires_at_ms: u64) {
        let Some(stored) = self.cells.get_mut(id).filter(|stored| stored.expires_at_ms < expires_at_ms) else {
            return;
        };
        self.expiry.remove(&(stored.expires_at_ms, *id));
        self.expiry.insert((expires_at_ms, *id));
        stored.expires_at_ms = expires_at_ms;
    }

    /// Forgets what has expired, and with it which peer it came from.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        while let Some((_, id)) = self.expiry.first().filter(|(at, _)| *at <= now_ms).copied() {
            self.expiry.pop_first();
            if let Some(peer) = self.cells.remove(&id).and_then(|stored| stored.from) {
                self.forget_one(peer);
            }
        }
    }

    fn forget_one(&mut self, peer: RotatingPeer) {
        if let Some(held) = self.per_peer.get_mut(&peer) {
            *held -= 1;
            if *held == 0 {
                self.per_peer.remove(&peer);
            }
        }
    }
}
