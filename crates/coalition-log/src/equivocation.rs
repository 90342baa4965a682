//! Equivocation: proof that one member signed two different histories of one log.
//!
//! The proof is two cosignatures by one key over one size and two roots. It convinces anybody who has the roster, and
//! no honest member can be framed by it: making it takes the member's checkpoint key.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coalition::UniqueId;

use crate::checkpoint::{CertifyError, NoteError, RosterVerifier, SignedCheckpoint};
use crate::tree::Hash;

/// First line of every equivocation file.
pub const EQUIVOCATION_HEADER: &str = "coalition-equivocation/v1";
/// Longest equivocation file a parser reads, in bytes.
pub const MAX_EQUIVOCATION_BYTES: usize = 4096;

/// Why a file or a pair of checkpoints proves no equivocation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EquivocationError {
    /// Longer than [`MAX_EQUIVOCATION_BYTES`].
    #[error("equivocation proof has {bytes} bytes, the limit is {MAX_EQUIVOCATION_BYTES}")]
    TooLong {
        /// Length found.
        bytes: usize,
    },
    /// The text is not in the one form of this version.
    #[error("equivocation proof is malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: &'static str,
    },
    /// One of the two notes is malformed.
    #[error("a checkpoint in the equivocation proof is malformed")]
    Note(#[source] NoteError),
    /// One of the two cosignatures does not verify.
    #[error("a cosignature in the equivocation proof does not verify")]
    Cosignature(#[source] CertifyError),
    /// The two cosignatures are of different members.
    #[error("the two checkpoints are signed by different members, {first:?} and {second:?}")]
    DifferentMembers {
        /// Signer of the first.
        first: String,
        /// Signer of the second.
        second: String,
    },
    /// The two checkpoints do not contradict each other by themselves.
    #[error("checkpoints of sizes {first} and {second} with these roots do not contradict each other")]
    NoConflict {
        /// Size of the first.
        first: u64,
        /// Size of the second.
        second: u64,
    },
}

/// Two checkpoints that contradict each other, each with one cosignature of the same member. Prints as its canonical text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equivocation {
    notes: [SignedCheckpoint; 2],
}

/// What a verified equivocation establishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guilt {
    /// The organism whose log it is about.
    pub organism: UniqueId,
    /// Name of the member that signed both.
    pub member: String,
    /// Its position in the roster.
    pub position: usize,
    /// The size both checkpoints have.
    pub size: u64,
    /// The two roots, the smaller first.
    pub roots: [Hash; 2],
}

impl Equivocation {
    /// Every proof of equivocation that two checkpoints contain: one for each member with valid cosignatures on both.
    /// Empty when they do not contradict each other. Lines that do not verify are passed over.
    pub fn between(verifier: &RosterVerifier, a: &SignedCheckpoint, b: &SignedCheckpoint) -> Vec<Self> {
        let mut proofs = Vec::new();
        if a.checkpoint.size != b.checkpoint.size || a.checkpoint.root == b.checkpoint.root {
            return proofs;
        }
        let (low, high) = if a.checkpoint.root < b.checkpoint.root { (a, b) } else { (b, a) };
        for position in 0..verifier.members() {
            let (Some(first), Some(second)) = (signed_by(verifier, low, position), signed_by(verifier, high, position))
            else {
                continue;
            };
            proofs.push(Self { notes: [first, second] });
        }
        proofs
    }

    /// Reads an equivocation file. What it accepts, it prints back byte for byte.
    ///
    /// # Errors
    /// What is malformed. Nothing is verified yet.
    pub fn parse(file: &[u8]) -> Result<Self, EquivocationError> {
        if file.len() > MAX_EQUIVOCATION_BYTES {
            return Err(EquivocationError::TooLong { bytes: file.len() });
        }
        let wrong = |reason| EquivocationError::Malformed { reason };
        let text = std::str::from_utf8(file).map_err(|_| wrong("it is not UTF-8 text"))?;
        let text = text.strip_suffix('\n').ok_or(wrong("its last line does not end"))?;
        let lines: Vec<&str> = text.split('\n').collect();
        let [header, first, second] = lines[..] else { return Err(wrong("it does not have three lines")) };
        if header != EQUIVOCATION_HEADER {
            return Err(wrong("its first line is not coalition-equivocation/v1"));
        }
        let note = |line: &str| {
            let encoded = line.strip_prefix("checkpoint ").ok_or(wrong("a line does not start with checkpoint"))?;
            let bytes = STANDARD.decode(encoded).map_err(|_| wrong("a checkpoint is not canonical base64"))?;
            let note = SignedCheckpoint::parse(&bytes).map_err(EquivocationError::Note)?;
            if note.signatures.len() == 1 { Ok(note) } else { Err(wrong("a checkpoint does not have one signature")) }
        };
        let notes = [note(first)?, note(second)?];
        if notes[0].checkpoint.root > notes[1].checkpoint.root {
            return Err(wrong("its checkpoints are not ordered by root"));
        }
        Ok(Self { notes })
    }

    /// Verifies the proof: one member of the roster, one size, two roots, two valid cosignatures.
    ///
    /// # Errors
    /// What does not hold.
    pub fn verify(&self, verifier: &RosterVerifier) -> Result<Guilt, EquivocationError> {
        let [first, second] = &self.notes;
        let signer = |note: &SignedCheckpoint| {
            let line = note.signatures.first().ok_or(EquivocationError::Malformed { reason: "it has no signature" })?;
            verifier.verify_line(&note.checkpoint, line).map_err(EquivocationError::Cosignature)
        };
        let (position, other) = (signer(first)?, signer(second)?);
        let name = |position| verifier.member_name(position).unwrap_or_default().to_owned();
        if position != other {
            return Err(EquivocationError::DifferentMembers { first: name(position), second: name(other) });
        }
        let (a, b) = (&first.checkpoint, &second.checkpoint);
        if a.size != b.size || a.root == b.root {
            return Err(EquivocationError::NoConflict { first: a.size, second: b.size });
        }
        Ok(Guilt { organism: a.organism, member: name(position), position, size: a.size, roots: [a.root, b.root] })
    }
}

impl fmt::Display for Equivocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{EQUIVOCATION_HEADER}")?;
        self.notes.iter().try_for_each(|note| writeln!(f, "checkpoint {}", STANDARD.encode(note.to_string())))
    }
}

fn signed_by(verifier: &RosterVerifier, note: &SignedCheckpoint, position: usize) -> Option<SignedCheckpoint> {
    let valid = |line| verifier.verify_line(&note.checkpoint, line) == Ok(position);
    let line = note.signatures.iter().find(|line| valid(line))?;
    Some(SignedCheckpoint { checkpoint: note.checkpoint, signatures: vec![line.clone()] })
}
