//! Proofs of handovers as lines of text, in evidence files and in a member's directory.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{HandoverProof, MAX_HANDOVERS};
use crate::{
    checkpoint::{MAX_NOTE_BYTES, parse_decimal},
    entry::MAX_ENTRY_BYTES,
    lines::{LineError, Lines},
};

/// First line of the text in which members and readers keep the proofs.
const HANDOVERS_HEADER: &str = "coalition-handovers/v1";

/// Proofs of handovers as a text of their own, as members and readers keep them.
#[must_use]
pub fn proofs_to_text(proofs: &[HandoverProof]) -> String {
    let mut text = format!("{HANDOVERS_HEADER}\n");
    write_proofs(&mut text, proofs).expect("a string takes every text");
    text
}

/// Reads what [`proofs_to_text`] writes and nothing else. Nothing is verified yet.
///
/// # Errors
/// The line that is wrong.
pub fn proofs_from_text(text: &str) -> Result<Vec<HandoverProof>, LineError> {
    let mut lines = Lines::new(text);
    lines.field("header", HANDOVERS_HEADER, |rest| rest.is_empty().then_some(()))?;
    let proofs = read_proofs(&mut lines)?;
    lines.end()?;
    Ok(proofs)
}

/// `handovers <n>`, then for each: `handover <entry>`, the path, `checkpoint <note>`.
pub(crate) fn write_proofs(f: &mut impl fmt::Write, proofs: &[HandoverProof]) -> fmt::Result {
    writeln!(f, "handovers {}", proofs.len())?;
    for proof in proofs {
        writeln!(f, "handover {}", STANDARD.encode(&proof.entry))?;
        writeln!(f, "path {}", proof.path.len())?;
        proof.path.iter().try_for_each(|hash| writeln!(f, "{}", hash.to_base64()))?;
        writeln!(f, "checkpoint {}", STANDARD.encode(&proof.checkpoint))?;
    }
    Ok(())
}

/// Reads what [`write_proofs`] writes and nothing else. Nothing is verified yet.
pub(crate) fn read_proofs(lines: &mut Lines<'_>) -> Result<Vec<HandoverProof>, LineError> {
    let in_bounds = |text: &str| parse_decimal(text).filter(|count| *count <= MAX_HANDOVERS as u64);
    let count = lines.field("handovers line", "handovers ", in_bounds)?;
    (0..count).map(|_| read_proof(lines)).collect()
}

fn read_proof(lines: &mut Lines<'_>) -> Result<HandoverProof, LineError> {
    let decode = |text: &str, most: usize| STANDARD.decode(text).ok().filter(|bytes| bytes.len() <= most);
    let entry = lines.field("handover line", "handover ", |text| decode(text, MAX_ENTRY_BYTES))?;
    let path = lines.path()?;
    let note = |text: &str| decode(text, MAX_NOTE_BYTES).and_then(|note| String::from_utf8(note).ok());
    let checkpoint = lines.field("checkpoint line", "checkpoint ", note)?;
    Ok(HandoverProof { entry, path, checkpoint })
}
