//! RFC 6962 Merkle tree hashing over SHA-256: incremental roots, inclusion proofs, consistency proofs.
//!
//! Everything here is pure. Proofs are generated from any [`Nodes`] and verified by the algorithms of RFC 9162,
//! sections 2.1.3.2 and 2.1.4.2; the verifiers accept any bytes without panicking and never loop longer than the proof.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest proof a tree of at most 2^64 - 1 leaves can need, in hashes. Parsers refuse longer lists.
pub const MAX_PROOF_HASHES: usize = 65;

/// A SHA-256 hash in a Merkle tree: of a leaf, an inner node or a root. Prints as hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Root of the empty tree: SHA-256 of nothing.
    pub fn empty_root() -> Self {
        Self(Sha256::digest([]).into())
    }

    /// Inner node over two children: SHA-256(`0x01` ‖ left ‖ right).
    pub fn node(left: &Self, right: &Self) -> Self {
        Self(Sha256::new().chain_update([1u8]).chain_update(left.0).chain_update(right.0).finalize().into())
    }

    /// Standard base64 with padding, 44 characters.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Reads what [`Hash::to_base64`] writes and nothing else.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// SHA-256 of bytes, for digests beside the tree.
pub fn sha256(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
}

/// Why a proof does not hold, or cannot exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The leaf is not in a tree of that size.
    #[error("leaf {index} is not in a tree of {size} leaves")]
    NoSuchLeaf {
        /// Index asked for.
        index: u64,
        /// Size of the tree.
        size: u64,
    },
    /// The older tree is larger than the newer one.
    #[error("a tree of {old} leaves is not a prefix of a tree of {new} leaves")]
    NotAPrefix {
        /// Size of the tree called older.
        old: u64,
        /// Size of the tree called newer.
        new: u64,
    },
    /// The proof has a number of hashes that no proof for these sizes has.
    #[error("proof of {hashes} hashes has the wrong length for this tree")]
    WrongLength {
        /// Hashes in the proof.
        hashes: usize,
    },
    /// The proof leads to another root.
    #[error("proof leads to root {computed}, expected {expected}")]
    RootMismatch {
        /// Root the proof leads to.
        computed: Hash,
        /// Root it was checked against.
        expected: Hash,
    },
}

/// Right edge of a tree: the roots of its maximal perfect subtrees, largest first. 32 bytes for each set bit of the size.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// A frontier of `size` leaves from its stored peaks; `None` unless there is one peak for each set bit of `size`.
    pub fn from_peaks(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (peaks.len() == size.count_ones() as usize).then_some(Self { size, peaks })
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the maximal perfect subtrees, largest first.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Appends a leaf by its leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut carried = leaf;
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("a frontier has one peak for each set bit of its size");
            carried = Hash::node(&left, &carried);
        }
        self.peaks.push(carried);
        self.size = self.size.checked_add(1).expect("a log cannot reach 2^64 entries");
    }

    /// Root of the tree.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else {
            return Hash::empty_root();
        };
        peaks.fold(*last, |right, left| Hash::node(left, &right))
    }
}

/// Access to the perfect subtrees of a tree, from which every root and proof is made.
pub trait Nodes {
    /// What can go wrong while reading.
    type Error: From<ProofError>;

    /// Root of the perfect subtree over leaves `index << level .. (index + 1) << level`. Only called for subtrees that lie
    /// wholly within the size a proof was asked for.
    ///
    /// # Errors
    /// When the node cannot be read or does not verify.
    fn node(&self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Root of the tree's first `size` leaves.
///
/// # Errors
/// Those of `nodes`.
pub fn root_at<N: Nodes>(nodes: &N, size: u64) -> Result<Hash, N::Error> {
    if size == 0 {
        return Ok(Hash::empty_root());
    }
    range_root(nodes, 0, size)
}

/// Inclusion proof of leaf `index` in the tree of the first `size` leaves: RFC 6962's `PATH`, deepest sibling first.
///
/// # Errors
/// [`ProofError::NoSuchLeaf`], and those of `nodes`.
pub fn inclusion_proof<N: Nodes>(nodes: &N, index: u64, size: u64) -> Result<Vec<Hash>, N::Error> {
    if index >= size {
        return Err(ProofError::NoSuchLeaf { index, size }.into());
    }
    let (mut from, mut to) = (0, size);
    let mut proof = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            proof.push(range_root(nodes, middle, to)?);
            to = middle;
        } else {
            proof.push(range_root(nodes, from, middle)?);
            from = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Subtree roots read once and remembered, so that many proofs in one tree share what they have in common.
#[derive(Debug)]
pub struct Remembered<'a, N> {
    nodes: &'a N,
    known: RefCell<HashMap<(u32, u64), Hash>>,
}

impl<'a, N: Nodes> Remembered<'a, N> {
    /// Remembers what is read from `nodes`, which must not change meanwhile.
    pub fn new(nodes: &'a N) -> Self {
        Self { nodes, known: RefCell::default() }
    }
}

impl<N: Nodes> Nodes for Remembered<'_, N> {
    type Error = N::Error;

    fn node(&self, level: u32, index: u64) -> Result<Hash, N::Error> {
        if let Some(known) = self.known.borrow().get(&(level, index)) {
            return Ok(*known);
        }
        let node = self.nodes.node(level, index)?;
        self.known.borrow_mut().insert((level, index), node);
        Ok(node)
    }
}

/// Consistency proof that the first `old` leaves are a prefix of the first `new`: RFC 6962's `PROOF`. Empty when the sizes
/// are equal or `old` is 0.
///
/// # Errors
/// [`ProofError::NotAPrefix`], and those of `nodes`.
pub fn consistency_proof<N: Nodes>(nodes: &N, old: u64, new: u64) -> Result<Vec<Hash>, N::Error> {
    if old > new {
        return Err(ProofError::NotAPrefix { old, new }.into());
    }
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let (mut from, mut to) = (0, new);
    let mut proof = Vec::new();
    // The old tree's end moves into the half that contains it until it is a half's end itself.
    while to != old {
        let middle = from + split(to - from);
        if old <= middle {
            proof.push(range_root(nodes, middle, to)?);
            to = middle;
        } else {
            proof.push(range_root(nodes, from, middle)?);
            from = middle;
        }
    }
    // When the walk never went right, the last subtree is the old tree itself, whose root the verifier has.
    if from != 0 {
        proof.push(range_root(nodes, from, to)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks that the leaf with hash `leaf` is number `index` of the tree of `size` leaves with root `root`.
///
/// # Errors
/// The reason it does not follow.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::NoSuchLeaf { index, size });
    }
    let wrong_length = ProofError::WrongLength { hashes: proof.len() };
    let (mut node, mut last) = (index, size - 1);
    let mut computed = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(wrong_length);
        }
        if node & 1 == 1 || node == last {
            computed = Hash::node(sibling, &computed);
            skip_missing_levels(&mut node, &mut last);
        } else {
            computed = Hash::node(&computed, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(wrong_length);
    }
    same_root(computed, root)
}

/// Checks that the tree of `old` leaves with root `old_root` is a prefix of the tree of `new` leaves with root `new_root`.
///
/// # Errors
/// The reason it does not follow.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::NotAPrefix { old, new });
    }
    let wrong_length = ProofError::WrongLength { hashes: proof.len() };
    if old == 0 || old == new {
        if !proof.is_empty() {
            return Err(wrong_length);
        }
        let expected = if old == 0 { Hash::empty_root() } else { *new_root };
        return same_root(*old_root, &expected);
    }
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    // A perfect old tree is a node of the new one: its root is left out of the proof.
    let (start, rest) = if old.is_power_of_two() {
        (*old_root, proof)
    } else {
        let (first, rest) = proof.split_first().ok_or(wrong_length.clone())?;
        (*first, rest)
    };
    let (mut old_computed, mut new_computed) = (start, start);
    for sibling in rest {
        if last == 0 {
            return Err(wrong_length);
        }
        if node & 1 == 1 || node == last {
            old_computed = Hash::node(sibling, &old_computed);
            new_computed = Hash::node(sibling, &new_computed);
            skip_missing_levels(&mut node, &mut last);
        } else {
            new_computed = Hash::node(&new_computed, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(wrong_length);
    }
    same_root(old_computed, old_root)?;
    same_root(new_computed, new_root)
}

/// Root over a run of hashes that are consecutive nodes of one level, as RFC 6962 combines them.
pub fn root_of(hashes: &[Hash]) -> Hash {
    let mut frontier = Frontier::new();
    hashes.iter().for_each(|hash| frontier.push(*hash));
    frontier.root()
}

/// Largest power of two strictly below `width`, which is at least 2.
fn split(width: u64) -> u64 {
    1 << (u64::BITS - 1 - (width - 1).leading_zeros())
}

fn range_root<N: Nodes>(nodes: &N, from: u64, to: u64) -> Result<Hash, N::Error> {
    let width = to - from;
    if width.is_power_of_two() {
        let level = width.trailing_zeros();
        return nodes.node(level, from >> level);
    }
    let middle = from + split(width);
    let left = range_root(nodes, from, middle)?;
    Ok(Hash::node(&left, &range_root(nodes, middle, to)?))
}

/// On the right edge a node without a sibling rises unchanged; the proof has no hash for those levels.
fn skip_missing_levels(node: &mut u64, last: &mut u64) {
    while *node & 1 == 0 && *node != 0 {
        *node >>= 1;
        *last >>= 1;
    }
}

fn same_root(computed: Hash, expected: &Hash) -> Result<(), ProofError> {
    if computed == *expected {
        return Ok(());
    }
    Err(ProofError::RootMismatch { computed, expected: *expected })
}
