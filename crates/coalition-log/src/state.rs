//! Certified states: what a log's entries fold to, written down, and the entry that certifies it.
//!
//! At a cadence all members share the host commits an entry of kind [`STATE_KIND`]: how many entries the state covers, which
//! is the entry's own index, and the digest and length of its bytes. Whoever holds bytes with that digest may go on from there
//! instead of folding the log from its start. The bytes are those of a [`HostState`]: the machine's own snapshot and what
//! the host folds beside it. They have exactly one form.

use coalition::UniqueId;

use crate::entry::{ENTRY_VERSION, Entry, EntryError, MAX_ENTRY_BYTES, WriteId, is_host_kind, leaf_hash};
use crate::handover::HANDOVER_KIND;
use crate::machine::SnapshotError;
use crate::tree::{Hash, sha256};

/// Kind of the entries that certify a state.
pub const STATE_KIND: &str = "log.state";
/// A state follows the batch that takes the log's size to a multiple of this or past one, unless an organism's setup says
/// otherwise. Part of the protocol: all members share it.
pub const STATE_EVERY: u64 = 4_096;
/// Longest state, in bytes. A larger one is not certified: the log goes on without, and a restart folds more of it.
pub const MAX_STATE_BYTES: usize = 256 << 20;
/// Most writes a host remembers for idempotence; the oldest are forgotten first.
pub const MAX_WRITES: usize = 100_000;
/// Most ticks a clock's host remembers; the oldest are forgotten first.
pub const MAX_TICKS: usize = 65_536;

const MAGIC: &[u8; 8] = b"CLOGSTA\x01";
const RECORD_BYTES: usize = 8 + 32 + 8;
/// Most of the host's own entries a state carries.
const MAX_HOST_ENTRIES: usize = 4_096;

/// Why bytes are no state, or not the one an entry certifies.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not what a state looks like.
    #[error("the state is malformed at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// One of the host's entries inside is no entry.
    #[error("a committee's entry in the state is malformed")]
    Entry(#[source] EntryError),
    /// The entry that is to certify it does not speak of a state.
    #[error("entry {index} certifies no state")]
    NotCertified {
        /// Index of the entry.
        index: u64,
    },
    /// Of another organism.
    #[error("the state is of organism {found}, expected {expected}")]
    OtherOrganism {
        /// Organism in the state.
        found: UniqueId,
        /// Organism expected.
        expected: UniqueId,
    },
    /// Of another size of the log.
    #[error("the state covers {found} entries, expected {expected}")]
    OtherSize {
        /// Entries the state covers.
        found: u64,
        /// Entries expected.
        expected: u64,
    },
    /// Of another length than certified.
    #[error("the state has {found} bytes, certified are {certified}")]
    Length {
        /// Bytes found.
        found: u64,
        /// Bytes certified.
        certified: u64,
    },
    /// It speaks of other handovers of the roster than were proven.
    #[error("the state does not have exactly the {proven} handovers of the roster that are proven below it")]
    Handovers {
        /// How many are proven.
        proven: usize,
    },
    /// With another digest than certified.
    #[error("the state has digest {found}, certified is {certified}")]
    Digest {
        /// Digest of the bytes.
        found: Hash,
        /// Digest certified.
        certified: Hash,
    },
    /// The service cannot read its part.
    #[error("the service's part of the state is unusable")]
    Machine(#[from] SnapshotError),
}

/// What an entry of kind [`STATE_KIND`] says. Body: `u64 covers ‖ SHA-256(state) ‖ u64 length`, 48 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRecord {
    /// Entries folded into the state; the index of the entry that says so.
    pub covers: u64,
    /// SHA-256 of the state's bytes.
    pub digest: Hash,
    /// Length of the state, in bytes.
    pub length: u64,
}

impl StateRecord {
    /// The record of a state after `covers` entries.
    #[must_use]
    pub fn new(covers: u64, state: &[u8]) -> Self {
        Self { covers, digest: sha256(state), length: state.len() as u64 }
    }

    /// The entry's body.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.covers.to_be_bytes()[..], &self.digest.0, &self.length.to_be_bytes()].concat()
    }

    /// The record an entry states; `None` when it states none, or none that can be: of another place, or too long.
    #[must_use]
    pub fn of(entry: &Entry) -> Option<Self> {
        let body: &[u8; RECORD_BYTES] = entry.body.as_slice().try_into().ok()?;
        let (covers, rest) = body.split_first_chunk::<8>()?;
        let (digest, length) = rest.split_first_chunk::<32>()?;
        let record = Self {
            covers: u64::from_be_bytes(*covers),
            digest: Hash(*digest),
            length: u64::from_be_bytes(length.try_into().ok()?),
        };
        let is_possible = record.covers == entry.index && record.length <= MAX_STATE_BYTES as u64;
        (entry.kind == STATE_KIND && is_possible).then_some(record)
    }

    /// Checks that these are the bytes certified.
    ///
    /// # Errors
    /// [`StateError::Length`], [`StateError::Digest`].
    pub fn check(&self, state: &[u8]) -> Result<(), StateError> {
        if state.len() as u64 != self.length {
            return Err(StateError::Length { found: state.len() as u64, certified: self.length });
        }
        let found = sha256(state);
        if found != self.digest {
            return Err(StateError::Digest { found, certified: self.digest });
        }
        Ok(())
    }
}

/// A write a host remembers: its id, its first entry and how many it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownWrite {
    /// The client's id.
    pub id: WriteId,
    /// Index of its first entry.
    pub first: u64,
    /// Entries it wrote.
    pub count: u64,
}

/// What the host and the machine have folded from a log's first `covers` entries.
///
/// Bytes, integers big endian: `434c4f4753544101 ‖ organism(32) ‖ u64 covers ‖ u32 count ‖ (u32 length ‖ entry)… ‖ u32 count ‖ (write
/// id(16) ‖ u64 first ‖ u64 entries)… ‖ u32 count ‖ (u64 time ‖ u64 tick)… ‖ u64 length ‖ machine`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState {
    /// Whose log.
    pub organism: UniqueId,
    /// Entries folded.
    pub covers: u64,
    /// The host's own entries among them, those of states excepted, as encoded.
    pub host_entries: Vec<Vec<u8>>,
    /// Writes remembered, oldest first.
    pub writes: Vec<KnownWrite>,
    /// For the coalition's clock: committee time and number of the ticks remembered, oldest first.
    pub ticks: Vec<(u64, u64)>,
    /// The machine's own snapshot.
    pub machine: Vec<u8>,
}

impl HostState {
    /// The state's one encoding; `None` for one that is larger than any may be.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let entries: usize = self.host_entries.iter().map(|entry| 4 + entry.len()).sum();
        let size = 68 + entries + 32 * self.writes.len() + 16 * self.ticks.len() + self.machine.len();
        if size > MAX_STATE_BYTES || self.host_entries.len() > MAX_HOST_ENTRIES {
            return None;
        }
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(self.organism.as_bytes());
        out.extend_from_slice(&self.covers.to_be_bytes());
        out.extend_from_slice(&count(self.host_entries.len()));
        for entry in &self.host_entries {
            out.extend_from_slice(&count(entry.len()));
            out.extend_from_slice(entry);
        }
        out.extend_from_slice(&count(self.writes.len()));
        for write in &self.writes {
            out.extend_from_slice(&write.id.0);
            out.extend_from_slice(&write.first.to_be_bytes());
            out.extend_from_slice(&write.count.to_be_bytes());
        }
        out.extend_from_slice(&count(self.ticks.len()));
        for (time_ms, tick) in &self.ticks {
            out.extend_from_slice(&time_ms.to_be_bytes());
            out.extend_from_slice(&tick.to_be_bytes());
        }
        out.extend_from_slice(&(self.machine.len() as u64).to_be_bytes());
        out.extend_from_slice(&self.machine);
        Some(out)
    }

    /// Reads the state of `organism` after `covers` entries; accepts only what [`HostState::to_bytes`] writes.
    ///
    /// # Errors
    /// [`StateError`], never [`StateError::Machine`]: the machine reads its part itself.
    pub fn from_bytes(bytes: &[u8], organism: UniqueId, covers: u64) -> Result<Self, StateError> {
        let mut input = Input { bytes, at: 0 };
        if bytes.len() > MAX_STATE_BYTES {
            return Err(input.wrong("it is longer than any state"));
        }
        if input.array::<8>()? != *MAGIC {
            return Err(input.wrong("it does not start as a state of this version"));
        }
        let found = UniqueId::from_bytes(input.array()?);
        if found != organism {
            return Err(StateError::OtherOrganism { found, expected: organism });
        }
        let found = input.number()?;
        if found != covers {
            return Err(StateError::OtherSize { found, expected: covers });
        }
        let host_entries = host_entries(&mut input, covers)?;
        let writes = writes(&mut input, covers)?;
        let ticks = ticks(&mut input)?;
        let length = input.number()?;
        let machine = input.take(usize::try_from(length).unwrap_or(usize::MAX))?.to_vec();
        if input.at != bytes.len() {
            return Err(input.wrong("bytes follow its end"));
        }
        Ok(Self { organism, covers, host_entries, writes, ticks, machine })
    }

    /// Checks that the handovers of the roster among the host's entries are those proven, by their leaf hashes.
    ///
    /// # Errors
    /// [`StateError::Handovers`], [`StateError::Entry`].
    pub fn check_handovers(&self, proven: &[Hash]) -> Result<(), StateError> {
        let mut found = Vec::new();
        for (entry, bytes) in self.decode_host_entries()?.iter().zip(&self.host_entries) {
            found.extend((entry.kind == HANDOVER_KIND).then(|| leaf_hash(bytes)));
        }
        if found == proven { Ok(()) } else { Err(StateError::Handovers { proven: proven.len() }) }
    }

    /// The host's own entries, decoded.
    ///
    /// # Errors
    /// [`StateError::Entry`]; not for a state that was read from bytes.
    pub fn decode_host_entries(&self) -> Result<Vec<Entry>, StateError> {
        self.host_entries.iter().map(|bytes| Entry::decode(bytes).map_err(StateError::Entry)).collect()
    }
}

fn host_entries(input: &mut Input<'_>, covers: u64) -> Result<Vec<Vec<u8>>, StateError> {
    let count = input.count(MAX_HOST_ENTRIES, "it has too many of the committee's entries")?;
    let (mut entries, mut next) = (Vec::new(), 0);
    for _ in 0..count {
        let length = input.count(MAX_ENTRY_BYTES, "an entry in it is too long")?;
        let bytes = input.take(length)?;
        let entry = Entry::decode(bytes).map_err(StateError::Entry)?;
        if !is_host_kind(&entry.kind) || entry.kind == STATE_KIND {
            return Err(input.wrong("an entry in it is not the committee's"));
        }
        if entry.index < next || entry.index >= covers {
            return Err(input.wrong("the entries in it are out of order"));
        }
        next = entry.index + 1;
        entries.push(bytes.to_vec());
    }
    Ok(entries)
}

fn writes(input: &mut Input<'_>, covers: u64) -> Result<Vec<KnownWrite>, StateError> {
    let count = input.count(MAX_WRITES, "it remembers too many writes")?;
    let (mut writes, mut next) = (Vec::new(), 0);
    for _ in 0..count {
        let write = KnownWrite { id: WriteId(input.array()?), first: input.number()?, count: input.number()? };
        let end = write.first.checked_add(write.count).filter(|end| *end <= covers);
        let is_possible = write.id != WriteId::NONE && write.count > 0 && write.first >= next;
        next = end.filter(|_| is_possible).ok_or_else(|| input.wrong("a write in it is impossible"))?;
        writes.push(write);
    }
    let distinct: std::collections::BTreeSet<WriteId> = writes.iter().map(|write| write.id).collect();
    if distinct.len() == writes.len() { Ok(writes) } else { Err(input.wrong("a write stands in it twice")) }
}

fn ticks(input: &mut Input<'_>) -> Result<Vec<(u64, u64)>, StateError> {
    let count = input.count(MAX_TICKS, "it remembers too many ticks")?;
    let mut ticks: Vec<(u64, u64)> = Vec::new();
    for _ in 0..count {
        let tick = (input.number()?, input.number()?);
        if ticks.last().is_some_and(|last| last.0 > tick.0) {
            return Err(input.wrong("the ticks in it are out of order"));
        }
        ticks.push(tick);
    }
    Ok(ticks)
}

fn count(count: usize) -> [u8; 4] {
    u32::try_from(count).expect("every list in a state is bounded").to_be_bytes()
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    const fn wrong(&self, what: &'static str) -> StateError {
        StateError::Malformed { at: self.at, what }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], StateError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.wrong("it is cut short"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let cut = self.wrong("it is cut short");
        self.take(N)?.try_into().map_err(|_| cut)
    }

    fn number(&mut self) -> Result<u64, StateError> {
        self.array().map(u64::from_be_bytes)
    }

    fn count(&mut self, limit: usize, what: &'static str) -> Result<usize, StateError> {
        let count = u32::from_be_bytes(self.array()?) as usize;
        if count > limit { Err(self.wrong(what)) } else { Ok(count) }
    }
}

const _: () = assert!(ENTRY_VERSION == 1, "a state carries entries; a new layout of those is a new layout of this");
