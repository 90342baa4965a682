//! blake3's tree: pieces, slices and what proves them. Source: `docs/protocol/content.md`, sections 1 and 2.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bao_tree::io::outboard::{PreOrderMemOutboard, PreOrderOutboard};
use bao_tree::io::sync::{ReadAt, WriteAt, decode_ranges, encode_ranges_validated, outboard};
use bao_tree::io::{DecodeError, EncodeError};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use coalition::UniqueId;

/// Bytes of a chunk group, which is never split: 64 KiB.
pub const GROUP_BYTES: u64 = 64 << 10;
/// Bytes of a piece: 1 MiB.
pub const PIECE_BYTES: u64 = 1 << 20;
/// Most bytes of content: 64 GiB.
pub const MAX_CONTENT_BYTES: u64 = 64 << 30;
/// Most bytes of a slice of at most one piece's length.
pub const MAX_SLICE_BYTES: usize = (1 << 20) + 8_192;

const GROUP: BlockSize = BlockSize::from_chunk_log(6);
const CHUNK_BYTES: u64 = 1_024;

/// Why bytes are no slice of a content, or why it could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    /// They do not belong to the hash, at this byte or before it.
    #[error("the bytes do not belong to blake3 {hash}, at or before byte {at}")]
    Unverified {
        /// The hash they were to belong to.
        hash: UniqueId,
        /// Where that was seen.
        at: u64,
    },
    /// The file cannot be read or written.
    #[error("a file of the content cannot be used")]
    Io(#[from] io::Error),
}

/// A size no content has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content has 1 to {MAX_CONTENT_BYTES} bytes, not {0}")]
pub struct SizeError(pub u64);

/// A hash and a size: what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    hash: UniqueId,
    size: u64,
}

impl Content {
    /// Of this blake3 and so many bytes.
    ///
    /// # Errors
    /// [`SizeError`].
    pub const fn new(hash: UniqueId, size: u64) -> Result<Self, SizeError> {
        if size == 0 || size > MAX_CONTENT_BYTES { Err(SizeError(size)) } else { Ok(Self { hash, size }) }
    }

    /// blake3 of its bytes.
    #[must_use]
    pub const fn hash(&self) -> UniqueId {
        self.hash
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// How many pieces it has, at least 1.
    #[must_use]
    pub fn pieces(&self) -> u32 {
        u32::try_from(self.size.div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX)
    }

    /// The bytes of a piece; empty beyond the last.
    #[must_use]
    pub fn piece(&self, piece: u32) -> Range<u64> {
        let start = (u64::from(piece) * PIECE_BYTES).min(self.size);
        start..(start + PIECE_BYTES).min(self.size)
    }

    /// Bytes of the tree that is kept beside it.
    #[must_use]
    pub fn tree_bytes(&self) -> u64 {
        self.tree().outboard_size()
    }

    const fn root(&self) -> blake3::Hash {
        blake3::Hash::from_bytes(*self.hash.as_bytes())
    }

    fn tree(&self) -> BaoTree {
        BaoTree::new(self.size, GROUP)
    }
}

/// Positioned access to a file that several threads use at once.
struct At<'a>(&'a File);

impl ReadAt for At<'_> {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self.0, buffer, at)
    }
}

impl WriteAt for At<'_> {
    fn write_at(&mut self, at: u64, buffer: &[u8]) -> io::Result<usize> {
        FileExt::write_at(self.0, buffer, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The slice of `range` of a content in a file, with its tree in another; checked against the hash as it is read.
///
/// # Errors
/// [`SliceError::Unverified`] when either file is damaged or lacks the range.
pub fn slice_of_files(content: Content, data: &File, tree: &File, range: Range<u64>) -> Result<Vec<u8>, SliceError> {
    slice(content, data, At(tree), range)
}

fn slice(content: Content, data: &File, tree: impl ReadAt, range: Range<u64>) -> Result<Vec<u8>, SliceError> {
    let kept = PreOrderOutboard { root: content.root(), tree: content.tree(), data: tree };
    let room = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0).min(MAX_SLICE_BYTES);
    let mut out = Vec::with_capacity(room + 8_192);
    let unverified = |at| SliceError::Unverified { hash: content.hash, at };
    match encode_ranges_validated(At(data), &kept, &chunks(&range), &mut out) {
        Ok(()) => Ok(out),
        Err(EncodeError::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
        Err(EncodeError::LeafHashMismatch(chunk)) => Err(unverified(chunk.0 * CHUNK_BYTES)),
        Err(_) => Err(unverified(range.end)),
    }
}

/// Checks a slice of `range` and writes what verifies into the files. Bytes that do not verify are not written.
///
/// # Errors
/// [`SliceError::Unverified`]; what came before the first wrong byte is right and stays.
pub fn write_slice(
    content: Content,
    slice: &[u8],
    range: &Range<u64>,
    data: &File,
    tree: &File,
) -> Result<(), SliceError> {
    let mut left = slice;
    let kept = PreOrderOutboard { root: content.root(), tree: content.tree(), data: At(tree) };
    let unverified = |at| SliceError::Unverified { hash: content.hash, at };
    match decode_ranges(&mut left, &chunks(range), At(data), kept) {
        Ok(()) if left.is_empty() => Ok(()),
        Err(DecodeError::Io(error)) => Err(error.into()),
        Err(DecodeError::LeafHashMismatch(chunk) | DecodeError::LeafNotFound(chunk)) => {
            Err(unverified(chunk.0 * CHUNK_BYTES))
        }
        Ok(()) | Err(_) => Err(unverified(range.end)),
    }
}

fn chunks(range: &Range<u64>) -> ChunkRanges {
    ChunkRanges::from(ChunkNum(range.start / CHUNK_BYTES)..ChunkNum(range.end.div_ceil(CHUNK_BYTES)))
}

/// A content's hash with its tree in memory: what it takes to prove slices of a file. 0.1 % of the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    content: Content,
    tree: Vec<u8>,
}

/// Why a file has no outline.
#[derive(Debug, thiserror::Error)]
pub enum OutlineError {
    /// Its size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// It cannot be read to that size.
    #[error("the file cannot be read")]
    Io(#[from] io::Error),
}

impl Outline {
    /// Reads `size` bytes and hashes them; one pass.
    ///
    /// # Errors
    /// [`OutlineError`].
    pub fn read(data: impl Read, size: u64) -> Result<Self, OutlineError> {
        Content::new(UniqueId::from_bytes([0; 32]), size)?;
        let tree = BaoTree::new(size, GROUP);
        let bytes = usize::try_from(tree.outboard_size()).map_err(|_| SizeError(size))?;
        let mut kept = PreOrderMemOutboard { root: blake3::Hash::from_bytes([0; 32]), tree, data: vec![0; bytes] };
        let root = outboard(data, tree, &mut kept)?;
        let content = Content { hash: UniqueId::from_bytes(*root.as_bytes()), size };
        Ok(Self { content, tree: kept.data })
    }

    /// What it outlines.
    #[must_use]
    pub const fn content(&self) -> Content {
        self.content
    }

    /// The slice of `range` of the file this was read from; one that changed since is noticed.
    ///
    /// # Errors
    /// As [`slice_of_files`].
    pub fn slice(&self, data: &File, range: Range<u64>) -> Result<Vec<u8>, SliceError> {
        slice(self.content, data, self.tree.as_slice(), range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| u8::try_from((i * 7 + i / 1_024) % 251).unwrap()).collect()
    }

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// Sizes around every boundary, and the whole of each is what blake3 says.
    #[test]
    fn every_size_round_trips_piece_by_piece_in_any_order() {
        let group = usize::try_from(GROUP_BYTES).unwrap();
        let piece = usize::try_from(PIECE_BYTES).unwrap();
        for size in [1, 1_023, 1_025, group - 1, group, group + 1, piece - 1, piece, piece + 1, 3 * piece + 70_000] {
            let (bytes, data) = (bytes(size), file(&bytes(size)));
            let outline = Outline::read(&bytes[..], size as u64).unwrap();
            let content = outline.content();
            assert_eq!(content.hash().as_bytes(), blake3::hash(&bytes).as_bytes());
            let (copy, tree) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            for piece in (0..content.pieces()).rev() {
                let range = content.piece(piece);
                let slice = outline.slice(&data, range.clone()).unwrap();
                assert!(slice.len() <= MAX_SLICE_BYTES, "{} of {size}", slice.len());
                write_slice(content, &slice, &range, &copy, &tree).unwrap();
                assert_eq!(slice_of_files(content, &copy, &tree, range).unwrap(), slice);
            }
            let mut whole = vec![0; size];
            FileExt::read_exact_at(&copy, &mut whole, 0).unwrap();
            assert!(whole == bytes);
            assert_eq!(tree.metadata().unwrap().len(), content.tree_bytes());
        }
    }

    #[test]
    fn every_changed_byte_of_a_slice_is_noticed_and_never_written() {
        let bytes = bytes(400_000);
        let outline = Outline::read(&bytes[..], 400_000).unwrap();
        let (content, range) = (outline.content(), outline.content().piece(0));
        let sound = outline.slice(&file(&bytes), range.clone()).unwrap();
        for at in (0..sound.len()).step_by(997).chain([0, 63, 64, sound.len() - 1]) {
            let mut slice = sound.clone();
            slice[at] ^= 1;
            let (copy, tree) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let refused = write_slice(content, &slice, &range, &copy, &tree).unwrap_err();
            assert!(matches!(refused, SliceError::Unverified { .. }), "{at}");
            let mut written = Vec::new();
            (&copy).read_to_end(&mut written).unwrap();
            assert!(bytes.starts_with(&written), "a wrong byte was written for {at}");
        }
        let (copy, tree) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for cut in [0, 1, 64, sound.len() - 1] {
            assert!(write_slice(content, &sound[..cut], &range, &copy, &tree).is_err(), "{cut}");
        }
        let long = [&sound[..], &[0]].concat();
        assert!(write_slice(content, &long, &range, &copy, &tree).is_err());
    }

    /// A tree of another size may agree up to a point, but not at the end.
    #[test]
    fn a_wrong_size_never_completes() {
        let bytes = bytes(3 << 20);
        let outline = Outline::read(&bytes[..], 3 << 20).unwrap();
        let data = file(&bytes);
        for wrong in [(3 << 20) - 1, (3 << 20) + 1, 4 << 20, 2 << 20] {
            let said = Content::new(outline.content().hash(), wrong).unwrap();
            let (copy, tree) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let last = said.piece(said.pieces() - 1);
            let slice = outline.slice(&data, last.start.min(2 << 20)..last.end.min(3 << 20)).unwrap();
            assert!(write_slice(said, &slice, &last, &copy, &tree).is_err(), "{wrong}");
        }
        assert_eq!(Content::new(outline.content().hash(), 0), Err(SizeError(0)));
        assert!(Content::new(outline.content().hash(), MAX_CONTENT_BYTES + 1).is_err());
    }

    #[test]
    fn a_file_that_changed_proves_nothing() {
        let bytes = bytes(200_000);
        let outline = Outline::read(&bytes[..], 200_000).unwrap();
        let data = file(&bytes);
        data.write_all_at(&[9], 150_000).unwrap();
        let refused = outline.slice(&data, 0..200_000).unwrap_err();
        assert!(matches!(refused, SliceError::Unverified { at: 131_072, .. }), "{refused}");
        data.set_len(100).unwrap();
        assert!(matches!(outline.slice(&data, 0..200_000).unwrap_err(), SliceError::Unverified { .. }));
    }
}
