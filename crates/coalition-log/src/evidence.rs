//! Evidence: one small text file that proves an entry to anybody who has the organism's id and roster.
//!
//! It holds the entry, its inclusion path, the cosigned checkpoint, and the handovers from the roster in the config to the
//! one that signed. The text has exactly one form: parsing and verifying together reject a file in which any byte was
//! changed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coalition::{EvidencePointer, Roster, UniqueId};

use crate::checkpoint::{
    CertifiedCheckpoint, CertifyError, Checkpoint, NoteError, RosterError, SignedCheckpoint, parse_decimal, parse_id,
    shorten,
};
use crate::entry::{Entry, EntryError, MAX_ENTRY_BYTES, leaf_hash};
use crate::handover::{HandoverError, HandoverProof, RosterChain, read_proofs, write_proofs};
use crate::lines::{LineError, Lines};
use crate::tree::{Hash, ProofError, verify_inclusion};

/// First line of every evidence file.
pub const EVIDENCE_HEADER: &str = "coalition-evidence/v1";
/// Longest evidence file a parser reads, in bytes. Holds every chain of handovers a log may have, and fits into one call.
pub const MAX_EVIDENCE_BYTES: usize = 4_000_000;

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
    #[error("evidence {0}")]
    Line(LineError),
    /// A handover of the roster does not hold.
    #[error("a handover in the evidence does not hold")]
    Handover(#[source] HandoverError),
    /// More or fewer handovers than lead to the roster that certifies the checkpoint.
    #[error("evidence has {found} handovers, a head of {size} entries needs {expected}")]
    Handovers {
        /// How many there are.
        found: usize,
        /// How many belong there.
        expected: u64,
        /// Size of the checkpoint.
        size: u64,
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

/// An entry, its inclusion path, a signed checkpoint and the handovers to who signed it. Parsed, not verified; prints as
/// the canonical text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    handovers: Vec<HandoverProof>,
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
    epoch: u64,
    roster: Roster,
}

impl VerifiedEntry {
    /// The epoch whose roster certified it; 0 is the roster in the config.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The roster that certified it.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

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
    /// Evidence for the encoded entry `entry_bytes`, proven by `path` under `certified`, without handovers. The prover's
    /// own consistency is not checked here; [`Evidence::verify`] does that.
    ///
    /// # Errors
    /// [`EvidenceError::Entry`].
    pub fn new(entry_bytes: Vec<u8>, path: Vec<Hash>, certified: &CertifiedCheckpoint) -> Result<Self, EvidenceError> {
        let entry = Entry::decode(&entry_bytes).map_err(EvidenceError::Entry)?;
        Ok(Self { handovers: Vec::new(), entry, entry_bytes, path, note: certified.note().clone() })
    }

    /// The same with the handovers from the roster in the config to the one that certified its checkpoint.
    #[must_use]
    pub fn with_handovers(mut self, handovers: Vec<HandoverProof>) -> Self {
        self.handovers = handovers;
        self
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
        let mut lines = Lines::new(text);
        let header = lines.next("header").map_err(EvidenceError::Line)?;
        if header != EVIDENCE_HEADER {
            return Err(EvidenceError::Header { found: shorten(header) });
        }
        let (organism, index, parts) = read_parts(&mut lines).map_err(EvidenceError::Line)?;
        let (handovers, entry_bytes, path) = parts;
        let note = SignedCheckpoint::parse(lines.rest.as_bytes()).map_err(EvidenceError::Note)?;
        let entry = Entry::decode(&entry_bytes).map_err(EvidenceError::Entry)?;
        if entry.index != index {
            return Err(EvidenceError::Index { entry: entry.index, evidence: index });
        }
        if note.checkpoint.organism != organism {
            return Err(EvidenceError::OtherOrganism { found: note.checkpoint.organism, expected: organism });
        }
        Ok(Self { handovers, entry, entry_bytes, path, note })
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

    /// The handovers it crosses. Unverified.
    pub fn handovers(&self) -> &[HandoverProof] {
        &self.handovers
    }

    /// Verifies everything: handovers, quorum, inclusion, index. Needs nothing but the organism's config, which pins `roster`.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self, organism: UniqueId, roster: &Roster) -> Result<VerifiedEntry, EvidenceError> {
        let chain = RosterChain::new(organism, roster).map_err(EvidenceError::Roster)?;
        self.verify_with(&chain)
    }

    /// As [`Evidence::verify`], for somebody who knows some handovers already; those count against the evidence, too.
    ///
    /// # Errors
    /// As [`Evidence::verify`].
    pub fn verify_with(&self, known: &RosterChain) -> Result<VerifiedEntry, EvidenceError> {
        let Checkpoint { organism: found, size, .. } = self.note.checkpoint;
        if found != known.organism() {
            return Err(EvidenceError::OtherOrganism { found, expected: known.organism() });
        }
        let mut chain = known.clone();
        chain.extend_all(&self.handovers).map_err(EvidenceError::Handover)?;
        let expected = chain.epoch_at(size);
        if self.handovers.len() as u64 != expected {
            return Err(EvidenceError::Handovers { found: self.handovers.len(), expected, size });
        }
        let certified = chain.verifier_at(size).certify_canonical(&self.note);
        let checkpoint = certified.map_err(EvidenceError::Certificate)?;
        let leaf = leaf_hash(&self.entry_bytes);
        verify_inclusion(&leaf, self.entry.index, checkpoint.size(), &self.path, &checkpoint.root())
            .map_err(EvidenceError::Inclusion)?;
        let roster = chain.roster_at(size).clone();
        Ok(VerifiedEntry {
            entry: self.entry.clone(),
            pointer: self.claimed_pointer(),
            checkpoint,
            epoch: expected,
            roster,
        })
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
        write_proofs(f, &self.handovers)?;
        writeln!(f, "entry {}", STANDARD.encode(&self.entry_bytes))?;
        writeln!(f, "path {}", self.path.len())?;
        self.path.iter().try_for_each(|hash| writeln!(f, "{}", hash.to_base64()))?;
        write!(f, "\n{}", self.note)
    }
}

type Parts = (Vec<HandoverProof>, Vec<u8>, Vec<Hash>);

/// Everything between the header and the checkpoint.
fn read_parts(lines: &mut Lines<'_>) -> Result<(UniqueId, u64, Parts), LineError> {
    let organism = lines.field("organism line", "organism ", parse_id)?;
    let index = lines.field("index line", "index ", parse_decimal)?;
    let handovers = read_proofs(lines)?;
    let entry_bytes = lines.field("entry line", "entry ", decode_entry)?;
    let path = lines.path()?;
    lines.field("blank line", "", |rest| rest.is_empty().then_some(()))?;
    Ok((organism, index, (handovers, entry_bytes, path)))
}

fn decode_entry(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok().filter(|bytes| bytes.len() <= MAX_ENTRY_BYTES)
}
