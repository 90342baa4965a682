//! The journal: entries appended since the last rotation, one synced record per group.
//!
//! Header: magic and schema ‖ 32 key ‖ 32 organism ‖ u64 base ‖ u8 + u64 height ‖ u8 levels, each u8 count and hashes ‖
//! 32 BLAKE3 of all that. Record: 8 marker ‖ u32 length ‖ 32 digest of the record before ‖ 32 digest ‖ payload, the digest
//! keyed with the header's random key over offset, length, previous digest and payload; the marker derives from the key. Payload: u64 height ‖ u64 first
//! index ‖ u32 count ‖ entries, each with a u32 length. Integers are big endian.
//!
//! Records are synced one by one, so only the last can be torn. A broken record with an intact one behind it is
//! damage. The key is what keeps an entry's body from looking like such an intact record.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coalition::UniqueId;
use rand_core::{OsRng, RngCore as _};

use super::StoreError;
use super::files::{fatal, replace_durably, unreadable};
use crate::tree::Hash;

/// Name of the journal in a log's directory.
pub const JOURNAL_FILE: &str = "pending.log";
/// Largest payload of one record, in bytes.
pub(super) const MAX_PAYLOAD_BYTES: usize = 64 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"CLOGJNL\x01";
const MARKER_BYTES: usize = 8;
const RECORD_HEAD_BYTES: usize = MARKER_BYTES + 4 + 32 + 32;

/// What is already in tiles when a journal begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// Number of entries in full tiles; a multiple of 256.
    pub(super) size: u64,
    /// Height of the last batch executed before, `None` if none was.
    pub(super) height: Option<u64>,
    /// Hashes of the partial tiles of levels 1, 2, … in the tree of `size` entries.
    pub(super) edges: Vec<Vec<Hash>>,
}

/// One record: the entries of one group of batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Height of the last batch in the group.
    pub(super) height: u64,
    /// Index of the first entry.
    pub(super) first: u64,
    /// Encoded entries.
    pub(super) entries: Vec<Arc<[u8]>>,
}

/// The open journal, positioned at its end.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    key: [u8; 32],
    end: u64,
    last: Hash,
    started: u64,
}

/// A journal as found on disk. Reading changes nothing.
pub(super) struct Recovered {
    pub(super) base: Base,
    pub(super) records: Vec<Record>,
    /// Bytes of a torn last record, to be cut off.
    pub(super) torn_bytes: u64,
    key: [u8; 32],
    end: u64,
    last: Hash,
}

impl Journal {
    /// Starts a journal on `base`, replacing the former one in one durable step; `carried` go into its first record.
    pub(super) fn start(
        dir: &Path,
        organism: UniqueId,
        base: &Base,
        carried: Option<&Record>,
    ) -> Result<Self, StoreError> {
        let path = dir.join(JOURNAL_FILE);
        let mut key = [0; 32];
        OsRng.fill_bytes(&mut key);
        let mut bytes = encode_header(&key, organism, base);
        let mut last = digest_of_header(&bytes);
        bytes.extend_from_slice(&last.0);
        if let Some(record) = carried {
            let payload = encode_payload(record);
            let offset = bytes.len() as u64;
            last = append_record(&mut bytes, &key, offset, &last, &payload);
        }
        replace_durably(&path, &bytes)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(fatal("open", &path))?;
        let end = bytes.len() as u64;
        Ok(Self { path, file, key, end, last, started: end })
    }

    /// Opens what [`recover`] read, cutting off a torn record.
    pub(super) fn resume(dir: &Path, recovered: &Recovered) -> Result<Self, StoreError> {
        let path = dir.join(JOURNAL_FILE);
        let file = OpenOptions::new().append(true).open(&path).map_err(fatal("open", &path))?;
        if recovered.torn_bytes > 0 {
            file.set_len(recovered.end).map_err(fatal("truncate", &path))?;
            file.sync_all().map_err(fatal("sync", &path))?;
        }
        let end = recovered.end;
        Ok(Self { path, file, key: recovered.key, end, last: recovered.last, started: 0 })
    }

    /// Appends one record and syncs it. After an error nothing is known about the file.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        let last = append_record(&mut bytes, &self.key, self.end, &self.last, &encode_payload(record));
        self.file.write_all(&bytes).map_err(fatal("append to", &self.path))?;
        self.file.sync_data().map_err(fatal("sync", &self.path))?;
        self.end += bytes.len() as u64;
        self.last = last;
        Ok(())
    }

    /// Bytes appended since the journal was started.
    pub(super) fn grown_bytes(&self) -> u64 {
        self.end - self.started
    }

    /// Makes every further append fail, as a full disk would.
    #[cfg(test)]
    pub(super) fn break_disk(&mut self) {
        self.file = OpenOptions::new().append(true).open("/dev/full").expect("Linux has /dev/full");
    }
}

/// Reads the journal of `organism` in `dir` without changing it; `None` when there is none.
pub(super) fn recover(dir: &Path, organism: UniqueId) -> Result<Option<Recovered>, StoreError> {
    let path = dir.join(JOURNAL_FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(&path)(e)),
    };
    let (key, base, start, header_digest) = decode_header(&path, &bytes, organism)?;
    let mut recovered =
        Recovered { base, records: Vec::new(), torn_bytes: 0, key, end: start as u64, last: header_digest };
    let mut at = start;
    while at < bytes.len() {
        let Some(raw) = RawRecord::read(&bytes, &key, at).filter(|raw| raw.is_intact(&key, at)) else {
            if let Some(later) = next_intact(&bytes, &key, at + 1) {
                return Err(damage(&path, &bytes, &key, at, later, &recovered.last));
            }
            recovered.torn_bytes = (bytes.len() - at) as u64;
            break;
        };
        if raw.previous != recovered.last {
            return Err(corrupt(&path, at, recovered.last, raw.previous));
        }
        let record = decode_payload(raw.payload).ok_or_else(|| malformed(&path, at, "its record cannot be parsed"))?;
        recovered.records.push(record);
        recovered.last = raw.digest;
        at += RECORD_HEAD_BYTES + raw.payload.len();
        recovered.end = at as u64;
    }
    Ok(Some(recovered))
}

struct RawRecord<'a> {
    previous: Hash,
    digest: Hash,
    payload: &'a [u8],
}

impl<'a> RawRecord<'a> {
    fn read(bytes: &'a [u8], key: &[u8; 32], at: usize) -> Option<Self> {
        let mut input = Input(bytes.get(at..)?);
        if input.array()? != marker(key) {
            return None;
        }
        let length = u32::from_be_bytes(input.array()?) as usize;
        let (previous, digest) = (Hash(input.array()?), Hash(input.array()?));
        Some(Self { previous, digest, payload: input.take(length)? })
    }

    fn is_intact(&self, key: &[u8; 32], at: usize) -> bool {
        record_digest(key, at as u64, &self.previous, self.payload) == self.digest
    }
}

fn next_intact(bytes: &[u8], key: &[u8; 32], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let marker = marker(key);
    let starts = rest.windows(MARKER_BYTES).enumerate().filter(|(_, window)| *window == marker);
    let mut intact = starts.map(|(i, _)| from + i);
    intact.find(|at| RawRecord::read(bytes, key, *at).is_some_and(|raw| raw.is_intact(key, *at)))
}

/// The intact record at `later` says which digest the record before it must have. If the payload has that digest, the
/// damage is in the record's head, which is known but for the damage.
fn damage(path: &Path, bytes: &[u8], key: &[u8; 32], at: usize, later: usize, last: &Hash) -> StoreError {
    let expected = RawRecord::read(bytes, key, later).map_or(Hash([0; 32]), |raw| raw.previous);
    let (head, payload) = bytes[at..later].split_at_checked(RECORD_HEAD_BYTES).unwrap_or((&bytes[at..later], &[]));
    let found = record_digest(key, at as u64, last, payload);
    if found != expected {
        return corrupt(path, at, expected, found);
    }
    let hash = |bytes: &[u8]| Hash(*blake3::hash(bytes).as_bytes());
    corrupt(path, at, hash(&record_head(key, payload.len(), last, &expected)), hash(head))
}

fn corrupt(path: &Path, offset: usize, expected: Hash, found: Hash) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), offset: offset as u64, expected, found }
}

fn malformed(path: &Path, offset: usize, reason: &'static str) -> StoreError {
    StoreError::Malformed { path: path.to_owned(), offset: offset as u64, reason }
}

fn record_digest(key: &[u8; 32], offset: u64, previous: &Hash, payload: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&offset.to_be_bytes());
    hasher.update(&(payload.len() as u64).to_be_bytes());
    hasher.update(&previous.0);
    hasher.update(payload);
    Hash(*hasher.finalize().as_bytes())
}

/// What every record of a journal starts with. Secret like the key, so that no body can be full of false starts.
fn marker(key: &[u8; 32]) -> [u8; MARKER_BYTES] {
    let digest = blake3::keyed_hash(key, b"record marker");
    *digest.as_bytes().first_chunk().expect("a digest has 32 bytes")
}

fn append_record(out: &mut Vec<u8>, key: &[u8; 32], offset: u64, previous: &Hash, payload: &[u8]) -> Hash {
    let digest = record_digest(key, offset, previous, payload);
    out.reserve(RECORD_HEAD_BYTES + payload.len());
    out.extend_from_slice(&record_head(key, payload.len(), previous, &digest));
    out.extend_from_slice(payload);
    digest
}

fn record_head(key: &[u8; 32], payload_bytes: usize, previous: &Hash, digest: &Hash) -> Vec<u8> {
    let mut head = Vec::with_capacity(RECORD_HEAD_BYTES);
    head.extend_from_slice(&marker(key));
    head.extend_from_slice(&length(payload_bytes));
    head.extend_from_slice(&previous.0);
    head.extend_from_slice(&digest.0);
    head
}

fn encode_payload(record: &Record) -> Vec<u8> {
    let bytes: usize = record.entries.iter().map(|entry| 4 + entry.len()).sum();
    let mut out = Vec::with_capacity(20 + bytes);
    out.extend_from_slice(&record.height.to_be_bytes());
    out.extend_from_slice(&record.first.to_be_bytes());
    out.extend_from_slice(&length(record.entries.len()));
    for entry in &record.entries {
        out.extend_from_slice(&length(entry.len()));
        out.extend_from_slice(entry);
    }
    out
}

fn decode_payload(payload: &[u8]) -> Option<Record> {
    let mut input = Input(payload);
    let height = u64::from_be_bytes(input.array()?);
    let first = u64::from_be_bytes(input.array()?);
    let count = u32::from_be_bytes(input.array()?);
    let mut entries = Vec::new();
    for _ in 0..count {
        let length = u32::from_be_bytes(input.array()?) as usize;
        entries.push(Arc::from(input.take(length)?));
    }
    input.0.is_empty().then_some(Record { height, first, entries })
}

fn encode_header(key: &[u8; 32], organism: UniqueId, base: &Base) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(key);
    out.extend_from_slice(organism.as_bytes());
    out.extend_from_slice(&base.size.to_be_bytes());
    out.push(u8::from(base.height.is_some()));
    out.extend_from_slice(&base.height.unwrap_or(0).to_be_bytes());
    out.push(small(base.edges.len()));
    for edge in &base.edges {
        out.push(small(edge.len()));
        edge.iter().for_each(|hash| out.extend_from_slice(&hash.0));
    }
    out
}

type Header = ([u8; 32], Base, usize, Hash);

fn decode_header(path: &Path, bytes: &[u8], organism: UniqueId) -> Result<Header, StoreError> {
    let mut input = Input(bytes);
    let cut = || malformed(path, 0, "its header is cut short");
    let magic: [u8; 8] = input.array().ok_or_else(cut)?;
    if magic != *MAGIC {
        return Err(malformed(path, 0, "it does not start as a journal of this schema"));
    }
    let key = input.array().ok_or_else(cut)?;
    let found = UniqueId::from_bytes(input.array().ok_or_else(cut)?);
    let base = decode_base(&mut input).ok_or_else(cut)?;
    let header_bytes = bytes.len() - input.0.len();
    let expected = Hash(input.array().ok_or_else(cut)?);
    let computed = digest_of_header(&bytes[..header_bytes]);
    if computed != expected {
        return Err(corrupt(path, 0, expected, computed));
    }
    if found != organism {
        return Err(StoreError::OtherOrganism { path: path.to_owned(), found, expected: organism });
    }
    Ok((key, base, header_bytes + 32, expected))
}

fn decode_base(input: &mut Input<'_>) -> Option<Base> {
    let size = u64::from_be_bytes(input.array()?);
    let has_height = input.array::<1>()? == [1];
    let height = u64::from_be_bytes(input.array()?);
    let levels = input.array::<1>()?[0];
    let mut edges = Vec::new();
    for _ in 0..levels {
        let count = input.array::<1>()?[0];
        let edge = (0..count).map(|_| input.array().map(Hash)).collect::<Option<Vec<_>>>()?;
        edges.push(edge);
    }
    Some(Base { size, height: has_height.then_some(height), edges })
}

fn digest_of_header(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("MAX_PAYLOAD_BYTES bounds every length in a record").to_be_bytes()
}

fn small(count: usize) -> u8 {
    u8::try_from(count).expect("a tree has at most 8 tile levels and a partial tile at most 255 hashes")
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}
