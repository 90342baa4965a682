//! One commit of an organism: the bytes that become a leaf of its Merkle tree.
//!
//! Layout, all integers big endian: version `0x01` ‖ u64 index ‖ u64 tick (`u64::MAX`: no Almanac) ‖ u64 time in ms ‖
//! 16 bytes write id (zeros: written by the committee itself) ‖ u8 length + kind ‖ u32 length + body ‖ u8 count +
//! evidence pointers (32 organism ‖ u64 index ‖ 32 digest each).
//! One entry has exactly one encoding, and decoding accepts nothing else.

use coalition::{EvidencePointer, UniqueId};
use sha2::{Digest, Sha256};

/// First byte of every entry: the version of this layout.
pub const ENTRY_VERSION: u8 = 1;
/// Longest kind, in bytes.
pub const MAX_KIND_BYTES: usize = 64;
/// Longest body, in bytes. Larger things are committed by hash.
pub const MAX_BODY_BYTES: usize = 48 * 1024;
/// Most evidence pointers in one entry.
pub const MAX_EVIDENCE: usize = 16;
/// Longest encoded entry, in bytes. Below the 65,535 an entry bundle's length prefix can express.
pub const MAX_ENTRY_BYTES: usize = FIXED_BYTES + MAX_KIND_BYTES + MAX_BODY_BYTES + MAX_EVIDENCE * POINTER_BYTES;

const FIXED_BYTES: usize = 1 + 8 + 8 + 8 + 16 + 1 + 4 + 1;
const POINTER_BYTES: usize = 32 + 8 + 32;
const NO_TICK: u64 = u64::MAX;

/// Identifier a client chose for one write, 16 bytes; every entry of that write carries it, so that the table which makes
/// retries idempotent is itself a fold of the log. All zeros: no client asked for the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct WriteId(pub [u8; 16]);

impl WriteId {
    /// The id of entries no client asked for.
    pub const NONE: Self = Self([0; 16]);
}

/// One commit of an organism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the organism's log, from 0.
    pub index: u64,
    /// Sequence number of the last Almanac tick when it was executed; `None` when the coalition ships no Almanac.
    pub tick: Option<u64>,
    /// Committee time in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The client's write this entry belongs to, or [`WriteId::NONE`].
    pub write_id: WriteId,
    /// What the body is, e.g. `compute.grant`; see [`check_kind`].
    pub kind: String,
    /// The commit itself, in the service's own encoding.
    pub body: Vec<u8>,
    /// Entries this one rests on.
    pub evidence: Vec<EvidencePointer>,
}

/// Why an entry has no encoding, or why bytes are not an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The kind breaks the rule of [`check_kind`].
    #[error("entry kind {kind:?} is not 1 to {MAX_KIND_BYTES} characters of a-z, 0-9, '.', '_' and '-'")]
    Kind {
        /// The kind, made printable.
        kind: String,
    },
    /// The body is longer than [`MAX_BODY_BYTES`].
    #[error("entry body has {bytes} bytes, the limit is {MAX_BODY_BYTES}; commit a hash of larger data")]
    BodyTooLong {
        /// Length found or announced.
        bytes: usize,
    },
    /// More than [`MAX_EVIDENCE`] pointers.
    #[error("entry has {count} evidence pointers, the limit is {MAX_EVIDENCE}")]
    TooMuchEvidence {
        /// Number found or announced.
        count: usize,
    },
    /// The tick is the value that means "no Almanac".
    #[error("tick {NO_TICK} is reserved for entries without an Almanac")]
    ReservedTick,
    /// Another layout version.
    #[error("entry version {found} is not supported, this build reads version {ENTRY_VERSION}")]
    Version {
        /// The first byte.
        found: u8,
    },
    /// The bytes end early.
    #[error("entry ends after {have} bytes while reading its {field}, which needs {need} bytes")]
    Truncated {
        /// Field being read.
        field: &'static str,
        /// Total bytes needed up to the end of that field.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// Bytes follow the entry.
    #[error("{bytes} bytes follow the end of the entry")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// Checks an entry kind: 1 to 64 characters of `a-z`, `0-9`, `.`, `_` and `-`.
///
/// # Errors
/// [`EntryError::Kind`].
pub fn check_kind(kind: &str) -> Result<(), EntryError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    if kind.is_empty() || kind.len() > MAX_KIND_BYTES || !kind.bytes().all(allowed) {
        let shown = kind.chars().take(MAX_KIND_BYTES + 1).collect();
        return Err(EntryError::Kind { kind: shown });
    }
    Ok(())
}

/// Whether entries of this kind are written by the host, for itself: kinds that begin with `committee.` or `log.`. Machines and
/// folds never see them, and nothing a machine proposes may have such a kind.
pub fn is_host_kind(kind: &str) -> bool {
    kind.starts_with("committee.") || kind.starts_with("log.")
}

/// RFC 6962 leaf hash of encoded entry bytes: SHA-256(`0x00` ‖ bytes).
pub fn leaf_hash(entry_bytes: &[u8]) -> crate::tree::Hash {
    crate::tree::Hash(Sha256::new().chain_update([0u8]).chain_update(entry_bytes).finalize().into())
}

impl Entry {
    /// The entry's one encoding, at most [`MAX_ENTRY_BYTES`] long.
    ///
    /// # Errors
    /// When kind, body, evidence or tick break a limit of this module.
    pub fn encode(&self) -> Result<Vec<u8>, EntryError> {
        self.check()?;
        let size = FIXED_BYTES + self.kind.len() + self.body.len() + self.evidence.len() * POINTER_BYTES;
        let mut out = Vec::with_capacity(size);
        out.push(ENTRY_VERSION);
        out.extend_from_slice(&self.index.to_be_bytes());
        out.extend_from_slice(&self.tick.unwrap_or(NO_TICK).to_be_bytes());
        out.extend_from_slice(&self.time_ms.to_be_bytes());
        out.extend_from_slice(&self.write_id.0);
        out.push(u8::try_from(self.kind.len()).expect("check() bounds the kind at 64 bytes"));
        out.extend_from_slice(self.kind.as_bytes());
        let body_bytes = u32::try_from(self.body.len()).expect("check() bounds the body at 48 KiB");
        out.extend_from_slice(&body_bytes.to_be_bytes());
        out.extend_from_slice(&self.body);
        out.push(u8::try_from(self.evidence.len()).expect("check() bounds the evidence at 16"));
        for pointer in &self.evidence {
            out.extend_from_slice(pointer.organism.as_bytes());
            out.extend_from_slice(&pointer.index.to_be_bytes());
            out.extend_from_slice(pointer.digest.as_bytes());
        }
        Ok(out)
    }

    /// Checks every limit that [`Entry::encode`] checks, without encoding.
    ///
    /// # Errors
    /// The limit that is broken.
    pub fn check(&self) -> Result<(), EntryError> {
        check_kind(&self.kind)?;
        if self.body.len() > MAX_BODY_BYTES {
            return Err(EntryError::BodyTooLong { bytes: self.body.len() });
        }
        if self.evidence.len() > MAX_EVIDENCE {
            return Err(EntryError::TooMuchEvidence { count: self.evidence.len() });
        }
        if self.tick == Some(NO_TICK) {
            return Err(EntryError::ReservedTick);
        }
        Ok(())
    }

    /// Reads an entry from exactly `bytes`.
    ///
    /// # Errors
    /// When `bytes` is not the encoding of an entry. Never panics and never allocates more than `bytes` holds.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let version = cursor.array::<1>("version")?[0];
        if version != ENTRY_VERSION {
            return Err(EntryError::Version { found: version });
        }
        let index = cursor.u64("index")?;
        let tick = cursor.u64("tick")?;
        let time_ms = cursor.u64("time")?;
        let write_id = WriteId(cursor.array("write id")?);
        let kind_bytes = usize::from(cursor.array::<1>("kind length")?[0]);
        let kind = String::from_utf8_lossy(cursor.take("kind", kind_bytes)?).into_owned();
        check_kind(&kind)?;
        let body_bytes = u32::from_be_bytes(cursor.array("body length")?) as usize;
        if body_bytes > MAX_BODY_BYTES {
            return Err(EntryError::BodyTooLong { bytes: body_bytes });
        }
        let body = cursor.take("body", body_bytes)?.to_vec();
        let evidence = cursor.pointers()?;
        let trailing = bytes.len() - cursor.at;
        if trailing > 0 {
            return Err(EntryError::Trailing { bytes: trailing });
        }
        let tick = (tick != NO_TICK).then_some(tick);
        Ok(Self { index, tick, time_ms, write_id, kind, body, evidence })
    }

    /// RFC 6962 leaf hash of the entry.
    ///
    /// # Errors
    /// As [`Entry::encode`].
    pub fn leaf_hash(&self) -> Result<crate::tree::Hash, EntryError> {
        Ok(leaf_hash(&self.encode()?))
    }

    /// The pointer by which other entries refer to this one in the log of `organism`.
    ///
    /// # Errors
    /// As [`Entry::encode`].
    pub fn pointer(&self, organism: UniqueId) -> Result<EvidencePointer, EntryError> {
        let digest = UniqueId::from_bytes(self.leaf_hash()?.0);
        Ok(EvidencePointer { organism, index: self.index, digest })
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], EntryError> {
        let need = self.at.saturating_add(len);
        let taken = self.bytes.get(self.at..need);
        let taken = taken.ok_or(EntryError::Truncated { field, need, have: self.bytes.len() })?;
        self.at = need;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], EntryError> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(field, N)?);
        Ok(out)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, EntryError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    fn pointers(&mut self) -> Result<Vec<EvidencePointer>, EntryError> {
        let count = usize::from(self.array::<1>("evidence count")?[0]);
        if count > MAX_EVIDENCE {
            return Err(EntryError::TooMuchEvidence { count });
        }
        let mut pointers = Vec::with_capacity(count);
        for _ in 0..count {
            let organism = UniqueId::from_bytes(self.array("evidence organism")?);
            let index = self.u64("evidence index")?;
            let digest = UniqueId::from_bytes(self.array("evidence digest")?);
            pointers.push(EvidencePointer { organism, index, digest });
        }
        Ok(pointers)
    }
}
