//! C2SP tlog-tiles: paths, hash tiles and entry bundles as bytes.

use std::path::PathBuf;
use std::sync::Arc;

use crate::tree::Hash;

/// Hashes in a full tile, entries in a full bundle.
pub const TILE_WIDTH: u64 = 256;

/// Which file of the tiles directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TileKind {
    /// Hashes of a level, 0 being leaf hashes.
    Level(u8),
    /// Entries themselves.
    Entries,
}

/// Path of a tile relative to the log's directory, e.g. `tile/0/x001/x234/067` or, for a partial one, with `.p/17`.
pub fn tile_path(kind: TileKind, number: u64, width: u64) -> PathBuf {
    let mut path = PathBuf::from("tile");
    match kind {
        TileKind::Level(level) => path.push(level.to_string()),
        TileKind::Entries => path.push("entries"),
    }
    let mut groups = vec![format!("{:03}", number % 1000)];
    let mut rest = number / 1000;
    while rest > 0 {
        groups.push(format!("x{:03}", rest % 1000));
        rest /= 1000;
    }
    let last = groups.remove(0);
    path.extend(groups.iter().rev());
    if width == TILE_WIDTH {
        path.push(last);
    } else {
        path.push(format!("{last}.p"));
        path.push(width.to_string());
    }
    path
}

/// A hash tile's bytes.
pub fn encode_hashes(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// Reads a hash tile of exactly `width` hashes.
pub fn decode_hashes(bytes: &[u8], width: u64) -> Option<Vec<Hash>> {
    let (chunks, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && chunks.len() as u64 == width).then(|| chunks.iter().map(|chunk| Hash(*chunk)).collect())
}

/// An entry bundle's bytes: each entry with its length as u16.
pub fn encode_bundle<B: AsRef<[u8]>>(entries: &[B]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.iter().map(|entry| 2 + entry.as_ref().len()).sum());
    for entry in entries {
        let length = u16::try_from(entry.as_ref().len()).expect("MAX_ENTRY_BYTES is below 2^16");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(entry.as_ref());
    }
    out
}

/// Reads an entry bundle of exactly `width` entries; otherwise answers the offset at which it is broken.
pub fn decode_bundle(bytes: &[u8], width: u64) -> Result<Vec<Arc<[u8]>>, u64> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    for _ in 0..width {
        let here = (bytes.len() - rest.len()) as u64;
        let (length, after) = rest.split_first_chunk::<2>().ok_or(here)?;
        let (entry, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(here)?;
        entries.push(Arc::from(entry));
        rest = after;
    }
    if rest.is_empty() { Ok(entries) } else { Err((bytes.len() - rest.len()) as u64) }
}
