//! Evidence: one small text file that proves an entry to anybody who has the organism's id and roster.
//!
//! It holds the entry, its inclusion path and the cosigned checkpoint. The text has exactly one form: parsing and
//! verifying together reject a file in which any byte was changed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coalition::{EvidencePointer, Roster, UniqueId};

use crate::checkpoint::{
    CertifiedCheckpoint, CertifyError, NoteError, RosterError, RosterVerifier, SignedCheckpoint, parse_decimal,
    parse_id, shorten,
};
use crate::entry::{Entry, EntryError, MAX_ENTRY_BYTES, leaf_hash};
use crate::tree::{Hash, MAX_PROOF_HASHES, ProofError, verify_inclusion};

/// First line of every evidence file.
pub const EVIDENCE_HEADER: &str = "coalition-evidence/v1";
/// Longest evidence file a parser reads, in bytes.
pub const MAX_EVIDENCE_BYTES: usize = 160 * 1024;

/// Why an evidence file proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Longer than [`MAX_EVIDENCE_BYTES`].
    #[error("evidence has {bytes} bytes, the limit is {MAX_EVIDENCE_BYTES}")]
    TooLong {
        /// Length found.
        bytes: usize,
    },
    /// The file is not UTF-8 text.
    #[error("evidence is not UTF-8 text from byte {at} on")]
    NotText {
        /// Length of the valid prefix.
        at: usize,
    },
    /// The first line names another format or a newer version of this one.
    #[error("evidence starts with {found:?}, this build reads {EVIDENCE_HEADER:?}")]
    Header {
        /// The first line, shortened.
        found: String,
    },
    /// A line is missing, or is not what stands there.
    #[error("evidence line {line} is not the expected {expected}: {found:?}")]
    Line {
        /// Which line, from 1.
        line: usize,
        /// What belongs there.
        expected: &'static str,
        /// What stands there, shortened.
        found: String,
    },
    /// Roster handovers, which version 1 verifiers do not know yet.
    #[error("evidence crosses {count} roster handovers, this build verifies none")]
    Handovers {
        /// How many.
        count: u64,
    },
    /// The entry's bytes are no entry.
    #[error("the entry in the evidence is malformed")]
    Entry(#[source] EntryError),
    /// The entry says another index than the evidence.
    #[error("the entry says it is number {entry}, the evidence says {evidence}")]
    Index {
        /// Index inside the entry.
        entry: u64,
        /// Index on the evidence's index line.
        evidence: u64,
    },
    /// The signed note is malformed.
    #[error("the checkpoint in the evidence is malformed")]
    Note(#[source] NoteError),
    /// The evidence is about another organism than asked.
    #[error("evidence is of organism {found}, expected {expected}")]
    OtherOrganism {
        /// Organism in the evidence.
        found: UniqueId,
        /// Organism it was checked against.
        expected: UniqueId,
    },
    /// The roster itself is unusable.
    #[error("the roster cannot verify evidence")]
    Roster(#[source] RosterError),
    /// The checkpoint is not certified by the roster.
    #[error("the checkpoint in the evidence is not certified")]
    Certificate(#[source] CertifyError),
    /// The entry is not in the certified tree.
    #[error("the entry is not in the certified log")]
    Inclusion(#[source] ProofError),
    /// The pointer names another entry.
    #[error("evidence proves {found}, the pointer is {expected}")]
    Pointer {
        /// What the evidence proves.
        found: EvidencePointer,
        /// The pointer it was checked against.
        expected: EvidencePointer,
    },
}

/// An entry, its inclusion path and a signed checkpoint. Parsed, not verified; prints as the canonical text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    entry: Entry,
    entry_bytes: Vec<u8>,
    path: Vec<Hash>,
    note: SignedCheckpoint,
}

/// An entry that a quorum of the roster certified. Exists only as the result of verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedEntry {
    entry: Entry,
    pointer: EvidencePointer,
    checkpoint: CertifiedCheckpoint,
}

impl VerifiedEntry {
    /// The entry.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The entry, by value.
    pub fn into_entry(self) -> Entry {
        self.entry
    }

    /// The pointer that names it.
    pub fn pointer(&self) -> EvidencePointer {
        self.pointer
    }

    /// The certificate it was verified under.
    pub fn checkpoint(&self) -> &CertifiedCheckpoint {
        &self.checkpoint
    }
}

impl Evidence {
    /// Evidence for the encoded entry `entry_bytes`, proven by `path` under `certified`. The prover's own consistency is
    /// not checked here; [`Evidence::verify`] does that.
    ///
    /// # Errors
    /// [`EvidenceError::Entry`].
    pub fn new(entry_bytes: Vec<u8>, path: Vec<Hash>, certified: &CertifiedCheckpoint) -> Result<Self, EvidenceError> {
        let entry = Entry::decode(&entry_bytes).map_err(EvidenceError::Entry)?;
        Ok(Self { entry, entry_bytes, path, note: certified.note().clone() })
    }

    /// Reads an evidence file. What it accepts, it prints back byte for byte.
    ///
    /// # Errors
    /// The line that is wrong. Nothing is verified yet.
    pub fn parse(file: &[u8]) -> Result<Self, EvidenceError> {
        if file.len() > MAX_EVIDENCE_BYTES {
            return Err(EvidenceError::TooLong { bytes: file.len() });
        }
        let text = std::str::from_utf8(file).map_err(|e| EvidenceError::NotText { at: e.valid_up_to() })?;
        let mut lines = Lines { rest: text, number: 0 };
        let header = lines.next("header")?;
        if header != EVIDENCE_HEADER {
            return Err(EvidenceError::Header { found: shorten(header) });
        }
        let organism = lines.field("organism line", "organism ", parse_id)?;
        let index = lines.field("index line", "index ", parse_decimal)?;
        let handovers = lines.field("handovers line", "handovers ", parse_decimal)?;
        if handovers != 0 {
            return Err(EvidenceError::Handovers { count: handovers });
        }
        let entry_bytes = lines.field("entry line", "entry ", decode_entry)?;
        let path = lines.path()?;
        lines.field("blank line", "", |rest| rest.is_empty().then_some(()))?;
        let note = SignedCheckpoint::parse(lines.rest.as_bytes()).map_err(EvidenceError::Note)?;
        let entry = Entry::decode(&entry_bytes).map_err(EvidenceError::Entry)?;
        if entry.index != index {
            return Err(EvidenceError::Index { entry: entry.index, evidence: index });
        }
        if note.checkpoint.organism != organism {
            return Err(EvidenceError::OtherOrganism { found: note.checkpoint.organism, expected: organism });
        }
        Ok(Self { entry, entry_bytes, path, note })
    }

    /// The entry it claims to prove. Unverified.
    pub fn claimed_entry(&self) -> &Entry {
        &self.entry
    }

    /// The pointer that names the entry it claims to prove. Unverified.
    pub fn claimed_pointer(&self) -> EvidencePointer {
        let digest = UniqueId::from_bytes(leaf_hash(&self.entry_bytes).0);
        EvidencePointer { organism: self.note.checkpoint.organism, index: self.entry.index, digest }
    }

    /// Verifies everything: roster, quorum, inclusion, index. Needs nothing but the organism's config.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self, organism: UniqueId, roster: &Roster) -> Result<VerifiedEntry, EvidenceError> {
        let verifier = RosterVerifier::new(organism, roster).map_err(EvidenceError::Roster)?;
        self.verify_with(&verifier)
    }

    /// As [`Evidence::verify`], with a verifier that is already made.
    ///
    /// # Errors
    /// As [`Evidence::verify`].
    pub fn verify_with(&self, verifier: &RosterVerifier) -> Result<VerifiedEntry, EvidenceError> {
        let found = self.note.checkpoint.organism;
        if found != verifier.organism() {
            return Err(EvidenceError::OtherOrganism { found, expected: verifier.organism() });
        }
        let checkpoint = verifier.certify_canonical(&self.note).map_err(EvidenceError::Certificate)?;
        let leaf = leaf_hash(&self.entry_bytes);
        verify_inclusion(&leaf, self.entry.index, checkpoint.size(), &self.path, &checkpoint.root())
            .map_err(EvidenceError::Inclusion)?;
        Ok(VerifiedEntry { entry: self.entry.clone(), pointer: self.claimed_pointer(), checkpoint })
    }

    /// Verifies that this is evidence for exactly what `pointer` names.
    ///
    /// # Errors
    /// [`EvidenceError::Pointer`], and those of [`Evidence::verify`].
    pub fn verify_pointer(&self, pointer: &EvidencePointer, roster: &Roster) -> Result<VerifiedEntry, EvidenceError> {
        let found = self.claimed_pointer();
        if found != *pointer {
            return Err(EvidenceError::Pointer { found, expected: *pointer });
        }
        self.verify(pointer.organism, roster)
    }

    /// The canonical text, as [`Evidence::parse`] reads it: what is stored, mailed and verified elsewhere.
    pub fn to_text(&self) -> String {
        self.to_string()
    }

    /// The same proof as a C2SP `tlog-proof`, with the entry's bytes as its extra data.
    pub fn to_tlog_proof(&self) -> String {
        let mut text = format!("c2sp.org/tlog-proof@v1\nextra {}\n", STANDARD.encode(&self.entry_bytes));
        text.push_str(&format!("index {}\n", self.entry.index));
        for hash in &self.path {
            text.push_str(&hash.to_base64());
            text.push('\n');
        }
        format!("{text}\n{}", self.note)
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{EVIDENCE_HEADER}")?;
        writeln!(f, "organism {}", hex::encode(self.note.checkpoint.organism.as_bytes()))?;
        writeln!(f, "index {}", self.entry.index)?;
        writeln!(f, "handovers 0")?;
        writeln!(f, "entry {}", STANDARD.encode(&self.entry_bytes))?;
        writeln!(f, "path {}", self.path.len())?;
        self.path.iter().try_for_each(|hash| writeln!(f, "{}", hash.to_base64()))?;
        write!(f, "\n{}", self.note)
    }
}

/// The lines of a text, each of which must end in a newline.
struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self, expected: &'static str) -> Result<&'a str, EvidenceError> {
        self.number += 1;
        let Some((line, rest)) = self.rest.split_once('\n') else {
            return Err(EvidenceError::Line { line: self.number, expected, found: shorten(self.rest) });
        };
        self.rest = rest;
        Ok(line)
    }

    fn field<T>(
        &mut self,
        expected: &'static str,
        prefix: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, EvidenceError> {
        let line = self.next(expected)?;
        let found = || EvidenceError::Line { line: self.number, expected, found: shorten(line) };
        line.strip_prefix(prefix).and_then(parse).ok_or_else(found)
    }

    fn path(&mut self) -> Result<Vec<Hash>, EvidenceError> {
        let in_bounds = |text: &str| parse_decimal(text).filter(|count| *count <= MAX_PROOF_HASHES as u64);
        let count = self.field("path line", "path ", in_bounds)?;
        (0..count).map(|_| self.field("hash of the path", "", Hash::from_base64)).collect()
    }
}

fn decode_entry(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok().filter(|bytes| bytes.len() <= MAX_ENTRY_BYTES)
}
