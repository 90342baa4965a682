//! Reading the log: entries, tiles and proofs, from any thread, while the writer appends.
//!
//! In memory are the entries since the last rotation and one hash for every 256 entries before. The rest is read from
//! tiles through a small cache, and nothing read from a file is used before its hash is checked.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use coalition::UniqueId;

use super::StoreError;
use super::files::unreadable;
use super::pruning::Pruned;
use super::states::States;
use super::takeover::FETCHED;
use super::tiles::{TILE_WIDTH, TileKind, decode_bundle, decode_hashes, encode_bundle, encode_hashes, tile_path};
use crate::checkpoint::CertifiedCheckpoint;
use crate::entry::{Entry, leaf_hash};
use crate::evidence::Evidence;
use crate::handover::RosterChain;
use crate::tree::{Frontier, Hash, Nodes, Remembered, consistency_proof, inclusion_proof, root_at, root_of};

const TILE_BITS: u32 = 8;
const WIDTH: usize = 1 << TILE_BITS;

/// Size and root of the log at some point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of entries.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

/// The log in memory: what is not in durable tiles yet, and the upper levels of the tree.
#[derive(Debug)]
pub(super) struct State {
    /// Entries below this are in durable tiles; a multiple of 256.
    pub(super) base: u64,
    /// Encoded entries from `base` on.
    pub(super) tail: Vec<Arc<[u8]>>,
    /// `levels[0]`: leaf hashes from `base` on. `levels[t]`: roots of all full tiles of level t - 1.
    pub(super) levels: Vec<Vec<Hash>>,
    pub(super) frontier: Frontier,
    pub(super) height: Option<u64>,
    pub(super) certified: Option<CertifiedCheckpoint>,
    pub(super) pruned: Option<Pruned>,
    /// Entries covered by the state this log begins with; `None` for one that has had all its entries.
    pub(super) start: Option<u64>,
}

impl State {
    /// A log whose first `base` entries are in tiles with the given upper levels (`levels[0]` empty).
    pub(super) fn new(base: u64, levels: Vec<Vec<Hash>>, height: Option<u64>) -> Option<Self> {
        let frontier = Frontier::new();
        let tail = Vec::new();
        let mut state = Self { base, tail, levels, frontier, height, certified: None, pruned: None, start: None };
        let bits = (TILE_BITS..u64::BITS).rev().filter(|bit| base >> bit & 1 == 1);
        let peaks = bits.map(|bit| state.upper_node(bit, (base >> bit) - 1)).collect::<Option<Vec<_>>>()?;
        state.frontier = Frontier::from_peaks(base, peaks)?;
        Some(state)
    }

    pub(super) fn size(&self) -> u64 {
        self.frontier.size()
    }

    pub(super) fn head(&self) -> Head {
        Head { size: self.frontier.size(), root: self.frontier.root() }
    }

    /// Appends an encoded entry to the log in memory.
    pub(super) fn push(&mut self, entry: Arc<[u8]>) {
        let leaf = leaf_hash(&entry);
        self.tail.push(entry);
        self.frontier.push(leaf);
        let mut carried = leaf;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let hashes = &mut self.levels[level];
            hashes.push(carried);
            // `base` is a multiple of 256, so level 0 is counted right although it does not start at leaf 0.
            if !hashes.len().is_multiple_of(WIDTH) {
                break;
            }
            carried = root_of(&hashes[hashes.len() - WIDTH..]);
        }
    }

    /// Root of a perfect subtree of at least one tile; `None` when it is not within the log.
    fn upper_node(&self, level: u32, index: u64) -> Option<Hash> {
        let hashes = self.levels.get((level / TILE_BITS) as usize)?;
        let bits = level % TILE_BITS;
        let from = usize::try_from(index << bits).ok()?;
        hashes.get(from..from + (1 << bits)).map(root_of)
    }

    /// Number of hashes in a level of tiles, or of entries in the log.
    fn count(&self, kind: TileKind) -> u64 {
        match kind {
            TileKind::Entries => self.size(),
            TileKind::Level(level) => self.size().checked_shr(u32::from(level) * TILE_BITS).unwrap_or(0),
        }
    }
}

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) organism: UniqueId,
    state: RwLock<State>,
    chain: RwLock<Arc<RosterChain>>,
    cache: Mutex<Cache>,
}

impl Shared {
    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_chain(&self, chain: RosterChain) {
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(chain);
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle for reading a log that is open for writing. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({} size {})", self.shared.dir.display(), self.size())
    }
}

impl Reader {
    pub(super) fn new(dir: PathBuf, genesis: RosterChain, state: State, cache_bytes: usize) -> Self {
        let (organism, chain) = (genesis.organism(), RwLock::new(Arc::new(genesis)));
        let cache = Mutex::new(Cache { limit: cache_bytes, ..Cache::default() });
        Self { shared: Arc::new(Shared { dir, organism, state: RwLock::new(state), chain, cache }) }
    }

    /// Who certifies this log, as far as handovers were proven to it.
    pub fn chain(&self) -> Arc<RosterChain> {
        Arc::clone(&self.shared.chain.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The organism whose log it is.
    pub fn organism(&self) -> UniqueId {
        self.shared.organism
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Number of durable entries.
    pub fn size(&self) -> u64 {
        self.shared.state().size()
    }

    /// Size and root of the durable log.
    pub fn head(&self) -> Head {
        self.shared.state().head()
    }

    /// Height of the last batch that was appended; `None` before the first.
    pub fn last_height(&self) -> Option<u64> {
        self.shared.state().height
    }

    /// Whether the last entries were fetched from others: then no batch is known that they end with, and they may end within one.
    pub fn is_fetched(&self) -> bool {
        self.last_height() == Some(FETCHED)
    }

    /// Entries covered by the state this log was started with instead of its first entries. That state was verified before, as
    /// was the entry that certifies it; the certificate may be of more entries than are here.
    pub fn starts_with(&self) -> Option<u64> {
        self.shared.state().start
    }

    /// Whether a state after `covers` entries was certified, as far as is durable here, and the entries after it are here.
    pub fn confirms_state(&self, covers: u64) -> bool {
        let state = self.shared.state();
        let certified = state.certified.as_ref().map_or(0, CertifiedCheckpoint::size);
        let kept_from = state.pruned.map_or(0, |pruned| pruned.below);
        (kept_from..certified).contains(&covers) || state.start == Some(covers)
    }

    /// Leaf hashes from `from` on, which is not below the first entry in the journal.
    pub(super) fn leaves_from(&self, from: u64) -> Result<Vec<Hash>, StoreError> {
        let state = self.shared.state();
        let beyond = StoreError::OutOfRange { index: from, size: state.size() };
        let at = from.checked_sub(state.base).and_then(|at| usize::try_from(at).ok());
        let leaves = state.levels.first().map(Vec::as_slice).unwrap_or_default();
        at.and_then(|at| leaves.get(at..)).map(<[Hash]>::to_vec).ok_or(beyond)
    }

    /// The last certified checkpoint that was put here.
    pub fn certified(&self) -> Option<CertifiedCheckpoint> {
        self.shared.state().certified.clone()
    }

    /// Entries that were dropped here; `None` when all are there.
    pub fn pruned(&self) -> Option<Pruned> {
        self.shared.state().pruned
    }

    /// The states kept beside the log.
    pub fn states(&self) -> States {
        States::beside(&self.shared.dir)
    }

    /// The tree of the first `size` entries: the roots of its maximal perfect subtrees.
    ///
    /// # Errors
    /// When the log is shorter, or a tile is damaged.
    pub fn frontier_at(&self, size: u64) -> Result<Frontier, StoreError> {
        let view = self.view();
        view.check_size(size)?;
        let levels = (0..u64::BITS).rev().filter(|level| size >> level & 1 == 1);
        // The subtree of a set bit follows all larger ones.
        let peaks = levels.map(|level| view.node(level, (size >> level) - 1)).collect::<Result<Vec<_>, _>>()?;
        Ok(Frontier::from_peaks(size, peaks).expect("one peak for each set bit"))
    }

    /// Root of the first `size` entries.
    ///
    /// # Errors
    /// When the log is shorter, or a tile is damaged.
    pub fn root_at(&self, size: u64) -> Result<Hash, StoreError> {
        let view = self.view();
        view.check_size(size)?;
        root_at(&view, size)
    }

    /// Proof that entry `index` is in the tree of the first `size` entries.
    ///
    /// # Errors
    /// When the log is shorter, `index` is not below `size`, or a tile is damaged.
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Result<Vec<Hash>, StoreError> {
        let view = self.view();
        view.check_size(size)?;
        inclusion_proof(&view, index, size)
    }

    /// Proofs that each of the entries `indices` is in the tree of the first `size` entries; for neighbours, far cheaper
    /// together than one by one.
    ///
    /// # Errors
    /// As [`Reader::inclusion_proof`].
    pub fn inclusion_proofs(&self, indices: &[u64], size: u64) -> Result<Vec<Vec<Hash>>, StoreError> {
        let view = self.view();
        view.check_size(size)?;
        let nodes = Remembered::new(&view);
        indices.iter().map(|index| inclusion_proof(&nodes, *index, size)).collect()
    }

    /// Proof that the first `old` entries are a prefix of the first `new`.
    ///
    /// # Errors
    /// When the log is shorter, `old` is larger than `new`, or a tile is damaged.
    pub fn consistency_proof(&self, old: u64, new: u64) -> Result<Vec<Hash>, StoreError> {
        let view = self.view();
        view.check_size(new)?;
        consistency_proof(&view, old, new)
    }

    /// Entry `index`.
    ///
    /// # Errors
    /// When there is none, it was pruned, or its tile is damaged.
    pub fn entry(&self, index: u64) -> Result<Entry, StoreError> {
        let bytes = self.entry_bytes(index)?;
        Entry::decode(&bytes).map_err(|source| StoreError::Entry { index, source })
    }

    /// The encoding of entry `index`.
    ///
    /// # Errors
    /// As [`Reader::entry`].
    pub fn entry_bytes(&self, index: u64) -> Result<Arc<[u8]>, StoreError> {
        let view = self.view();
        view.entry_bytes(index)?.ok_or(StoreError::OutOfRange { index, size: view.state.size() })
    }

    /// Encoded entries from the start of `range` on: at most to its end, at most `max_bytes` together, and at least one if
    /// there is one.
    ///
    /// # Errors
    /// When the range starts beyond the log's end or with a pruned entry, or a tile is damaged.
    pub fn entries(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Arc<[u8]>>, StoreError> {
        let view = self.view();
        view.check_size(range.start)?;
        let mut entries: Vec<Arc<[u8]>> = Vec::new();
        let mut bytes = 0;
        for index in range {
            let Some(entry) = view.entry_bytes(index)? else { break };
            bytes += entry.len();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Evidence for entry `index` under the last certified checkpoint.
    ///
    /// # Errors
    /// When the entry is not certified yet, or a tile is damaged.
    pub fn evidence(&self, index: u64) -> Result<Evidence, StoreError> {
        let view = self.view();
        let certified = view.state.certified.as_ref();
        let size = certified.map_or(0, CertifiedCheckpoint::size);
        let not_yet = StoreError::NotCertifiedYet { index, certified: size };
        let Some(certified) = certified.filter(|_| index < size) else { return Err(not_yet) };
        let bytes = view.entry_bytes(index)?.ok_or(not_yet)?;
        let path = inclusion_proof(&view, index, size)?;
        let evidence = Evidence::new(bytes.to_vec(), path, certified).map_err(StoreError::Evidence)?;
        Ok(evidence.with_handovers(self.chain().proofs(0, size)))
    }

    /// A C2SP tile or entry bundle of `width` hashes or entries, as third-party readers fetch it at [`tile_path`].
    ///
    /// # Errors
    /// When the log does not reach that far, or a tile is damaged.
    pub fn tile(&self, kind: TileKind, number: u64, width: u64) -> Result<Vec<u8>, StoreError> {
        let view = self.view();
        let beyond = |index| StoreError::OutOfRange { index, size: view.state.size() };
        let from = number.checked_mul(TILE_WIDTH).ok_or(beyond(number))?;
        let to = from.saturating_add(width);
        if width == 0 || width > TILE_WIDTH || to > view.state.count(kind) {
            return Err(beyond(to));
        }
        match kind {
            TileKind::Entries => {
                let entries = (from..to).map(|index| view.entry_bytes(index)?.ok_or(beyond(index)));
                Ok(encode_bundle(&entries.collect::<Result<Vec<_>, StoreError>>()?))
            }
            TileKind::Level(level) => {
                let node = |index| view.node(u32::from(level) * TILE_BITS, index);
                Ok(encode_hashes(&(from..to).map(node).collect::<Result<Vec<_>, _>>()?))
            }
        }
    }

    pub(super) fn view(&self) -> View<'_> {
        View { shared: &self.shared, state: self.shared.state() }
    }
}

/// The log at one moment; the writer publishes nothing while it is held.
pub(super) struct View<'a> {
    shared: &'a Shared,
    state: RwLockReadGuard<'a, State>,
}

impl View<'_> {
    fn check_size(&self, size: u64) -> Result<(), StoreError> {
        let have = self.state.size();
        if size <= have { Ok(()) } else { Err(StoreError::OutOfRange { index: size, size: have }) }
    }

    fn entry_bytes(&self, index: u64) -> Result<Option<Arc<[u8]>>, StoreError> {
        if index >= self.state.base {
            let position = usize::try_from(index - self.state.base).unwrap_or(usize::MAX);
            return Ok(self.state.tail.get(position).cloned());
        }
        if let Some(Pruned { below, at_ms }) = self.state.pruned.filter(|pruned| index < pruned.below) {
            return Err(StoreError::Pruned { index, below, at_ms });
        }
        Ok(Some(self.bundle(index / TILE_WIDTH)?[(index % TILE_WIDTH) as usize].clone()))
    }

    /// A full bundle below `base`, every entry checked against its leaf hash.
    fn bundle(&self, number: u64) -> Result<Bundle, StoreError> {
        if let Some(bundle) = self.shared.cache().bundle(number) {
            return Ok(bundle);
        }
        let leaves = self.leaves(number)?;
        let path = self.shared.dir.join(tile_path(TileKind::Entries, number, TILE_WIDTH));
        let bytes = std::fs::read(&path).map_err(unreadable(&path))?;
        let entries = decode_bundle(&bytes, TILE_WIDTH).map_err(|offset| StoreError::Malformed {
            path: path.clone(),
            offset,
            reason: "its entries do not fill it exactly",
        })?;
        let mut offset = 0;
        for (entry, expected) in entries.iter().zip(leaves.iter()) {
            let found = leaf_hash(entry);
            if found != *expected {
                return Err(StoreError::Corrupt { path, offset, expected: *expected, found });
            }
            offset += 2 + entry.len() as u64;
        }
        let bundle: Bundle = Arc::from(entries);
        self.shared.cache().put_bundle(number, bundle.clone());
        Ok(bundle)
    }

    /// The leaf hashes of a full tile below `base`, checked against the level above.
    fn leaves(&self, number: u64) -> Result<Arc<[Hash]>, StoreError> {
        if let Some(leaves) = self.shared.cache().leaves(number) {
            return Ok(leaves);
        }
        let position = usize::try_from(number).unwrap_or(usize::MAX);
        let expected = self.state.levels.get(1).and_then(|level| level.get(position));
        let beyond = StoreError::OutOfRange { index: number.saturating_mul(TILE_WIDTH), size: self.state.size() };
        let leaves: Arc<[Hash]> = read_tile(&self.shared.dir, 0, number, *expected.ok_or(beyond)?)?.into();
        self.shared.cache().put_leaves(number, leaves.clone());
        Ok(leaves)
    }
}

impl Nodes for View<'_> {
    type Error = StoreError;

    fn node(&self, level: u32, index: u64) -> Result<Hash, StoreError> {
        let beyond = || StoreError::OutOfRange { index: index << level, size: self.state.size() };
        if level >= TILE_BITS {
            return self.state.upper_node(level, index).ok_or_else(beyond);
        }
        let (from, width) = (index << level, 1 << level);
        if from >= self.state.base {
            let from = usize::try_from(from - self.state.base).map_err(|_| beyond())?;
            let leaves = self.state.levels.first().and_then(|leaves| leaves.get(from..from + width));
            return leaves.map(root_of).ok_or_else(beyond);
        }
        let leaves = self.leaves(from / TILE_WIDTH)?;
        let from = (from % TILE_WIDTH) as usize;
        leaves.get(from..from + width).map(root_of).ok_or_else(beyond)
    }
}

/// Reads a full hash tile and checks that its root is `expected`.
pub(super) fn read_tile(dir: &Path, level: u8, number: u64, expected: Hash) -> Result<Vec<Hash>, StoreError> {
    let path = dir.join(tile_path(TileKind::Level(level), number, TILE_WIDTH));
    let bytes = std::fs::read(&path).map_err(unreadable(&path))?;
    let hashes = decode_hashes(&bytes, TILE_WIDTH).ok_or_else(|| StoreError::Malformed {
        path: path.clone(),
        offset: bytes.len() as u64,
        reason: "it does not have 8,192 bytes",
    })?;
    let found = root_of(&hashes);
    if found == expected { Ok(hashes) } else { Err(StoreError::Corrupt { path, offset: 0, expected, found }) }
}

type Bundle = Arc<[Arc<[u8]>]>;

/// Verified tiles and bundles, dropped in the order of their last use.
#[derive(Default)]
struct Cache {
    limit: usize,
    bytes: usize,
    clock: u64,
    items: std::collections::HashMap<(bool, u64), Item>,
}

struct Item {
    used: u64,
    bytes: usize,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Leaves(Arc<[Hash]>),
    Bundle(Bundle),
}

impl Cache {
    fn leaves(&mut self, number: u64) -> Option<Arc<[Hash]>> {
        match self.get((false, number))? {
            Content::Leaves(leaves) => Some(leaves),
            Content::Bundle(_) => None,
        }
    }

    fn bundle(&mut self, number: u64) -> Option<Bundle> {
        match self.get((true, number))? {
            Content::Bundle(bundle) => Some(bundle),
            Content::Leaves(_) => None,
        }
    }

    fn put_leaves(&mut self, number: u64, leaves: Arc<[Hash]>) {
        let bytes = leaves.len() * size_of::<Hash>();
        self.put((false, number), bytes, Content::Leaves(leaves));
    }

    fn put_bundle(&mut self, number: u64, bundle: Bundle) {
        let bytes = bundle.iter().map(|entry| entry.len() + size_of::<Arc<[u8]>>()).sum();
        self.put((true, number), bytes, Content::Bundle(bundle));
    }

    fn get(&mut self, key: (bool, u64)) -> Option<Content> {
        self.clock += 1;
        let item = self.items.get_mut(&key)?;
        item.used = self.clock;
        Some(item.content.clone())
    }

    fn put(&mut self, key: (bool, u64), bytes: usize, content: Content) {
        self.clock += 1;
        let item = Item { used: self.clock, bytes, content };
        self.bytes += bytes;
        if let Some(former) = self.items.insert(key, item) {
            self.bytes -= former.bytes;
        }
        while self.bytes > self.limit {
            let oldest = self.items.iter().min_by_key(|(_, item)| item.used).map(|(key, _)| *key);
            let Some(item) = oldest.and_then(|key| self.items.remove(&key)) else { break };
            self.bytes -= item.bytes;
        }
    }
}
