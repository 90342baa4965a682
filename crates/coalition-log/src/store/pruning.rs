//! Dropping old entries: what is gone, since when, and that it stays gone. Hash tiles stay, so every proof can still be made.
//!
//! The file `pruned` is durable before the first bundle is removed; bundles are removed from the lowest up, so after a crash
//! in between the rest are those right below the limit.

use std::fs;
use std::io;
use std::path::Path;

use super::files::{fatal, read_if_there, replace_durably};
use super::tiles::{TILE_WIDTH, TileKind, tile_path};
use super::{Store, StoreError};
use crate::checkpoint::parse_decimal;

const PRUNED_FILE: &str = "pruned";
const HEADER: &str = "coalition-log-pruned/1";

/// Entries that were dropped here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Entries with a lower index are gone; a multiple of 256.
    pub below: u64,
    /// When the last of them were dropped, Unix milliseconds by this member's clock.
    pub at_ms: u64,
}

impl Store {
    /// Drops entries below `below`, as far as whole bundles of them have left the journal. Answers what is gone now. Only the
    /// caller knows which entries it still needs: those after the older of its two kept states.
    ///
    /// # Errors
    /// Fatal write errors.
    pub fn prune(&mut self, below: u64, now_ms: u64) -> Result<Option<Pruned>, StoreError> {
        self.check_poisoned()?;
        let (base, former) = {
            let state = self.reader.shared.state();
            (state.base, state.pruned)
        };
        let below = below.min(base) / TILE_WIDTH * TILE_WIDTH;
        let from = former.map_or(0, |former| former.below);
        if below <= from {
            return Ok(former);
        }
        let result = self.drop_bundles(from, Pruned { below, at_ms: now_ms });
        self.poison_on_error(result).map(Some)
    }

    fn drop_bundles(&self, from: u64, pruned: Pruned) -> Result<Pruned, StoreError> {
        let dir = self.reader.dir();
        write_pruned(dir, pruned)?;
        self.reader.shared.state_mut().pruned = Some(pruned);
        for number in from / TILE_WIDTH..pruned.below / TILE_WIDTH {
            remove_bundle(dir, number)?;
        }
        Ok(pruned)
    }
}

/// What was dropped from the log in `dir`, after finishing what a crash interrupted.
pub(super) fn recover(dir: &Path) -> Result<Option<Pruned>, StoreError> {
    let Some(pruned) = read(dir)? else { return Ok(None) };
    let mut number = pruned.below / TILE_WIDTH;
    while number > 0 && remove_bundle(dir, number - 1)? {
        number -= 1;
    }
    Ok(Some(pruned))
}

/// What the file says.
pub(super) fn read(dir: &Path) -> Result<Option<Pruned>, StoreError> {
    let path = dir.join(PRUNED_FILE);
    let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
    let pruned = parse(&String::from_utf8_lossy(&bytes));
    let reason = "it does not say what was pruned";
    pruned.map(Some).ok_or(StoreError::Malformed { path, offset: 0, reason })
}

/// Says durably what is gone.
pub(super) fn write_pruned(dir: &Path, pruned: Pruned) -> Result<(), StoreError> {
    let text = format!("{HEADER}\nbelow {}\nat {}\n", pruned.below, pruned.at_ms);
    replace_durably(&dir.join(PRUNED_FILE), text.as_bytes())
}

/// Removes every bundle below an index, wherever they begin and end.
pub(super) fn drop_all_bundles(dir: &Path, below: u64) -> Result<(), StoreError> {
    (0..below / TILE_WIDTH).try_for_each(|number| remove_bundle(dir, number).map(drop))
}

fn parse(text: &str) -> Option<Pruned> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    (lines.next()? == HEADER).then_some(())?;
    let below = parse_decimal(lines.next()?.strip_prefix("below ")?)?;
    let at_ms = parse_decimal(lines.next()?.strip_prefix("at ")?)?;
    (lines.next().is_none() && below.is_multiple_of(TILE_WIDTH)).then_some(Pruned { below, at_ms })
}

/// Whether there was one.
fn remove_bundle(dir: &Path, number: u64) -> Result<bool, StoreError> {
    let path = dir.join(tile_path(TileKind::Entries, number, TILE_WIDTH));
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(fatal("remove", &path)(e)),
    }
}
