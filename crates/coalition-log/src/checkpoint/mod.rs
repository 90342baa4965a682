//! Signed tree heads: C2SP checkpoints with `cosignature/v1` lines, and the quorum certificates made of them.
//!
//! A [`Checkpoint`] is a statement; a [`SignedCheckpoint`] is a note somebody sent, of which nothing is verified yet; a
//! [`CertifiedCheckpoint`] can only come out of a [`RosterVerifier`] and is what everything else may trust.

mod cosign;
mod verify;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coalition::UniqueId;

use crate::tree::Hash;

pub use cosign::{Cosigner, cosigner_name, key_id, vkey};
pub use verify::{Assembly, CertifiedCheckpoint, CertifyError, Cosignature, RosterError, RosterVerifier};

/// What precedes the organism id in the origin line of its checkpoints.
pub const ORIGIN_PREFIX: &str = "coalition.log/";
/// Longest signed note a parser reads, in bytes.
pub const MAX_NOTE_BYTES: usize = 64 * 1024;
/// Most signature lines a parser reads from one note.
pub const MAX_SIGNATURES: usize = 128;
/// Signature type of Ed25519 `cosignature/v1` in key ids and verifier keys.
pub const COSIGNATURE_TYPE: u8 = 0x04;

const SIGNATURE_START: &str = "\u{2014} ";
const KEY_ID_BYTES: usize = 4;
const COSIGNATURE_BYTES: usize = KEY_ID_BYTES + 8 + 64;

/// Origin line of an organism's checkpoints: `coalition.log/<organism id in hex>`.
pub fn origin(organism: UniqueId) -> String {
    format!("{ORIGIN_PREFIX}{}", hex::encode(organism.as_bytes()))
}

/// Why text is not a checkpoint of ours, or not a signed note.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Longer than [`MAX_NOTE_BYTES`].
    #[error("signed note has {bytes} bytes, the limit is {MAX_NOTE_BYTES}")]
    TooLong {
        /// Length found.
        bytes: usize,
    },
    /// More than [`MAX_SIGNATURES`] lines.
    #[error("signed note has {lines} signatures, the limit is {MAX_SIGNATURES}")]
    TooManySignatures {
        /// Number found.
        lines: usize,
    },
    /// The note is not UTF-8 text.
    #[error("signed note is not UTF-8 text from byte {at} on")]
    NotText {
        /// Length of the valid prefix.
        at: usize,
    },
    /// The structure of body, blank line and signature lines is broken.
    #[error("signed note has no {missing}")]
    Structure {
        /// What was looked for.
        missing: &'static str,
    },
    /// The origin is not one of an organism's log.
    #[error("checkpoint origin {found:?} is not {ORIGIN_PREFIX} followed by 64 lower-case hex digits")]
    Origin {
        /// The origin line, shortened.
        found: String,
    },
    /// The size line is not a decimal number without leading zeros.
    #[error("checkpoint size {found:?} is not a decimal number below 2^64 without leading zeros")]
    Size {
        /// The size line, shortened.
        found: String,
    },
    /// The root line is not the base64 of 32 bytes.
    #[error("checkpoint root {found:?} is not the standard base64 of 32 bytes")]
    Root {
        /// The root line, shortened.
        found: String,
    },
    /// Extension lines, which this system neither writes nor signs.
    #[error("checkpoint has extension lines after its root; none are allowed")]
    Extension,
    /// A signature line is malformed.
    #[error("signature line {line} is malformed: {reason}")]
    Signature {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// A tree head: this organism's log had this root at this size.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// Stable id of the organism whose log it is.
    pub organism: UniqueId,
    /// Number of entries.
    pub size: u64,
    /// Root of the Merkle tree over them.
    pub root: Hash,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({} size {} root {})", origin(self.organism), self.size, self.root)
    }
}

impl Checkpoint {
    /// The three lines of the C2SP checkpoint, each ending in a newline: origin, size, base64 root.
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", origin(self.organism), self.size, self.root.to_base64())
    }

    /// Reads what [`Checkpoint::body`] writes and nothing else.
    ///
    /// # Errors
    /// The line that is wrong.
    pub fn parse_body(body: &str) -> Result<Self, NoteError> {
        let text = body.strip_suffix('\n').ok_or(NoteError::Structure { missing: "newline after its body" })?;
        let mut lines = text.split('\n');
        let organism = parse_origin(lines.next().unwrap_or_default())?;
        let size = lines.next().ok_or(NoteError::Structure { missing: "size line" })?;
        let size = parse_decimal(size).ok_or_else(|| NoteError::Size { found: shorten(size) })?;
        let root = lines.next().ok_or(NoteError::Structure { missing: "root line" })?;
        let root = Hash::from_base64(root).ok_or_else(|| NoteError::Root { found: shorten(root) })?;
        if lines.next().is_some() {
            return Err(NoteError::Extension);
        }
        Ok(Self { organism, size, root })
    }
}

/// One signature line of a note, unverified. Lines of unknown keys and types are carried along, as C2SP asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureLine {
    /// Key name, `<origin>/<member name>` for our cosigners.
    pub name: String,
    /// First four bytes of a hash over name, type and key; see [`key_id`].
    pub key_id: [u8; 4],
    /// What follows the key id: for `cosignature/v1`, 8 bytes of POSIX seconds and 64 of Ed25519 signature.
    pub signature: Vec<u8>,
}

impl SignatureLine {
    /// Time and signature, if the line has the size of a `cosignature/v1`.
    pub fn as_cosignature(&self) -> Option<(u64, [u8; 64])> {
        let (time, signature) = self.signature.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*time), signature.try_into().ok()?))
    }

    fn parse(line: &str, number: usize) -> Result<Self, NoteError> {
        let wrong = |reason| NoteError::Signature { line: number, reason };
        let rest = line.strip_prefix(SIGNATURE_START).ok_or(wrong("it does not start with an em dash and a space"))?;
        let (name, encoded) = rest.split_once(' ').ok_or(wrong("it has no space after the key name"))?;
        let forbidden = |c: char| c == '+' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.contains(forbidden) {
            return Err(wrong("its key name is empty or has a space, plus or control character"));
        }
        let bytes = STANDARD.decode(encoded).map_err(|_| wrong("its signature is not canonical standard base64"))?;
        let (key_id, signature) =
            bytes.split_first_chunk::<KEY_ID_BYTES>().ok_or(wrong("its signature is shorter than a key id"))?;
        Ok(Self { name: name.to_owned(), key_id: *key_id, signature: signature.to_vec() })
    }
}

impl fmt::Display for SignatureLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(COSIGNATURE_BYTES);
        bytes.extend_from_slice(&self.key_id);
        bytes.extend_from_slice(&self.signature);
        write!(f, "{SIGNATURE_START}{} {}", self.name, STANDARD.encode(bytes))
    }
}

/// A checkpoint as a signed note, parsed but not verified. Prints as the note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// What is signed.
    pub checkpoint: Checkpoint,
    /// At least one signature when parsed.
    pub signatures: Vec<SignatureLine>,
}

impl SignedCheckpoint {
    /// Reads a signed note whose body is a checkpoint. What it accepts, it prints back byte for byte.
    ///
    /// # Errors
    /// What is malformed. Signatures are not checked.
    pub fn parse(note: &[u8]) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE_BYTES {
            return Err(NoteError::TooLong { bytes: note.len() });
        }
        let note = std::str::from_utf8(note).map_err(|e| NoteError::NotText { at: e.valid_up_to() })?;
        let (body, lines) =
            note.split_once("\n\n").ok_or(NoteError::Structure { missing: "blank line after its body" })?;
        let checkpoint = Checkpoint::parse_body(&format!("{body}\n"))?;
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Structure { missing: "signature line and newline" })?;
        let count = lines.split('\n').count();
        if count > MAX_SIGNATURES {
            return Err(NoteError::TooManySignatures { lines: count });
        }
        let signatures = lines
            .split('\n')
            .enumerate()
            .map(|(i, line)| SignatureLine::parse(line, i + 1))
            .collect::<Result<_, _>>()?;
        Ok(Self { checkpoint, signatures })
    }
}

impl fmt::Display for SignedCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.checkpoint.body())?;
        self.signatures.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Reads a decimal number without sign or leading zeros.
pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

/// Reads 64 lower-case hex digits.
pub(crate) fn parse_id(text: &str) -> Option<UniqueId> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    Some(UniqueId::from_bytes(hex::decode(text).ok()?.try_into().ok()?))
}

/// The first characters of foreign text, for an error message.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

fn parse_origin(line: &str) -> Result<UniqueId, NoteError> {
    line.strip_prefix(ORIGIN_PREFIX).and_then(parse_id).ok_or_else(|| NoteError::Origin { found: shorten(line) })
}
