//! What a member shows for the writes it says are committed: one certificate, and each entry's way to its root.

use coalition::UniqueId;
use coalition_log::{
    Entry,
    checkpoint::{CertifiedCheckpoint, SignedCheckpoint},
    entry::leaf_hash,
    handover::RosterChain,
    store::{Reader, StoreError},
    tree::verify_inclusion,
};

use crate::wire::{ProvenEntry, Write, WriteAnswer, WriteReply};

/// Entries and paths in one reply, in bytes; what is beyond is answered as pending, and the client asks again.
const MAX_PROOF_BYTES: usize = 2 << 20;

/// What an entry's path is counted as: that of a log of four billion entries.
const PATH_BYTES: usize = 32 * 32;

/// Puts the proofs beside a member's answers, for a writer that knows `epoch` handovers. `head` covers every entry the
/// answers name.
pub(crate) fn prove(
    log: &Reader,
    head: Option<&CertifiedCheckpoint>,
    mut answers: Vec<WriteAnswer>,
    epoch: u64,
) -> Result<WriteReply, StoreError> {
    let (mut shown, mut bytes) = (Vec::new(), 0);
    for answer in &mut answers {
        let WriteAnswer::Committed { entries } = answer else { continue };
        if head.is_none() || (bytes >= MAX_PROOF_BYTES && !entries.is_empty()) {
            *answer = WriteAnswer::Pending;
            continue;
        }
        for pointer in entries {
            let entry = log.entry_bytes(pointer.index)?.to_vec();
            bytes += entry.len() + PATH_BYTES;
            shown.push((pointer.index, entry));
        }
    }
    let indices: Vec<u64> = shown.iter().map(|(index, _)| *index).collect();
    let paths = head.map_or_else(|| Ok(Vec::new()), |head| log.inclusion_proofs(&indices, head.size()))?;
    let proofs = shown.into_iter().zip(paths).map(|((_, bytes), path)| ProvenEntry { bytes, path }).collect();
    let handovers = head.map(|head| log.chain().proofs(epoch, head.size())).unwrap_or_default();
    Ok(WriteReply { answers, head: head.map(|head| head.note().to_string()), proofs, handovers })
}

/// The answers of a reply whose every committed entry is certified, is the one the answer names, and belongs to the write.
/// `roster` has taken the reply's handovers before.
///
/// # Errors
/// What does not hold, for the log: the member lies or is broken, and the next one is asked.
pub(crate) fn verify(roster: &RosterChain, writes: &[Write], reply: WriteReply) -> Result<Vec<WriteAnswer>, String> {
    let WriteReply { answers, head, proofs, handovers: _ } = reply;
    if answers.len() != writes.len() {
        return Err(format!("{} answers to {} writes", answers.len(), writes.len()));
    }
    let head = head.map(|note| certify(roster, &note)).transpose()?;
    let mut proofs = proofs.into_iter();
    for (answer, write) in answers.iter().zip(writes) {
        let WriteAnswer::Committed { entries } = answer else { continue };
        if entries.is_empty() {
            return Err("an acknowledgement that names no entry".into());
        }
        let id = write.bound_id();
        for pointer in entries {
            let (proof, head) = proofs.next().zip(head.as_ref()).ok_or("an acknowledgement without proof")?;
            let entry = check(roster.organism(), &proof, head)?;
            if entry.pointer(roster.organism()).ok() != Some(*pointer) || entry.write_id != id {
                return Err(format!("entry {} is not what the acknowledged write wrote", entry.index));
            }
        }
    }
    Ok(answers)
}

fn certify(roster: &RosterChain, note: &str) -> Result<CertifiedCheckpoint, String> {
    let note = SignedCheckpoint::parse(note.as_bytes()).map_err(|error| error.to_string())?;
    roster.certify(&note).map_err(|error| error.to_string())
}

fn check(organism: UniqueId, proof: &ProvenEntry, head: &CertifiedCheckpoint) -> Result<Entry, String> {
    let entry = Entry::decode(&proof.bytes).map_err(|error| error.to_string())?;
    let leaf = leaf_hash(&proof.bytes);
    let included = verify_inclusion(&leaf, entry.index, head.size(), &proof.path, &head.root());
    included.map_err(|error| format!("entry {} of {organism} is not in the certified tree: {error}", entry.index))?;
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use coalition::{Roster, RosterMember};
    use coalition_log::{
        Draft, Refusal,
        checkpoint::{Checkpoint, Cosigner},
        entry::WriteId,
    };
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::wire::Payload;

    const ID: WriteId = WriteId([3; 16]);

    fn organism() -> UniqueId {
        UniqueId::from_bytes([7; 32])
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn roster() -> RosterChain {
        let public = |seed| key(seed).verifying_key().to_bytes();
        let member =
            RosterMember { name: "m0".into(), checkpoint_key: public(1), consensus_key: public(2), peer_id: public(3) };
        RosterChain::new(organism(), &Roster::new(vec![member]).unwrap()).unwrap()
    }

    fn entry(write_id: WriteId) -> Entry {
        Entry { write_id, ..Draft::new("note", b"text".to_vec()).into_entry(0, None, 1) }
    }

    /// A log of this one entry, certified by `signer`, and the answer that names it.
    fn reply(entry: &Entry, signer: u8) -> WriteReply {
        let bytes = entry.encode().unwrap();
        let checkpoint = Checkpoint { organism: organism(), size: 1, root: leaf_hash(&bytes) };
        let line = Cosigner::new(organism(), "m0", key(signer)).sign(&checkpoint, 1).unwrap();
        let head = SignedCheckpoint { checkpoint, signatures: vec![line] }.to_string();
        WriteReply {
            answers: vec![WriteAnswer::Committed { entries: vec![entry.pointer(organism()).unwrap()] }],
            head: Some(head),
            proofs: vec![ProvenEntry { bytes, path: vec![] }],
            handovers: vec![],
        }
    }

    fn writes() -> Vec<Write> {
        vec![Write { write_id: ID, payload: Payload::Command(vec![1]) }]
    }

    fn bound() -> WriteId {
        writes()[0].bound_id()
    }

    #[test]
    fn a_proven_acknowledgement_is_taken() {
        let good = reply(&entry(bound()), 1);
        let pointer = entry(bound()).pointer(organism()).unwrap();
        let answers = verify(&roster(), &writes(), good).unwrap();
        assert_eq!(answers, [WriteAnswer::Committed { entries: vec![pointer] }]);
    }

    #[test]
    fn every_lie_is_refused() {
        let good = || reply(&entry(bound()), 1);
        let cases = [
            ("an entry of another write", reply(&entry(WriteId([4; 16])), 1)),
            ("the id without the payload", reply(&entry(ID), 1)),
            ("nothing at all", WriteReply { answers: vec![WriteAnswer::Committed { entries: vec![] }], ..good() }),
            ("signed by nobody of the roster", reply(&entry(bound()), 9)),
            ("no certificate", WriteReply { head: None, ..good() }),
            ("no proof", WriteReply { proofs: vec![], ..good() }),
            ("no answer", WriteReply { answers: vec![], ..good() }),
            ("another certificate", WriteReply { head: reply(&entry(WriteId([4; 16])), 1).head, ..good() }),
            ("another entry", WriteReply { proofs: reply(&entry(WriteId([4; 16])), 1).proofs, ..good() }),
            ("a wrong path", {
                let mut reply = good();
                reply.proofs[0].path.push(coalition_log::tree::Hash([0; 32]));
                reply
            }),
            ("a changed entry", {
                let mut reply = good();
                *reply.proofs[0].bytes.last_mut().unwrap() ^= 1;
                reply
            }),
            ("another place", {
                let mut reply = good();
                let WriteAnswer::Committed { entries } = &mut reply.answers[0] else { unreachable!() };
                entries[0].index = 1;
                reply
            }),
        ];
        for (lie, reply) in cases {
            assert!(verify(&roster(), &writes(), reply).is_err(), "{lie} was believed");
        }
    }

    #[test]
    fn refusals_and_open_writes_need_no_proof() {
        for answer in [WriteAnswer::Pending, WriteAnswer::Refused(Refusal::new("a", "b"))] {
            let reply = WriteReply { answers: vec![answer.clone()], head: None, proofs: vec![], handovers: vec![] };
            assert_eq!(verify(&roster(), &writes(), reply).unwrap(), [answer]);
        }
    }
}
