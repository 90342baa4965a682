//! Verifying cosignatures against a roster, and the certificate that comes out of it.

use std::sync::Arc;

use coalition::{Roster, UniqueId};
use ed25519_dalek::{Signature, VerifyingKey};

use super::cosign::{MAX_TIMESTAMP, cosigner_name, key_id, signed_message, vkey};
use super::{Checkpoint, SignatureLine, SignedCheckpoint};
use crate::tree::Hash;

/// Why a roster cannot verify anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// A member's checkpoint key is no usable Ed25519 public key.
    #[error("checkpoint key {} of member {member:?} is not a usable Ed25519 public key", hex::encode(key))]
    Key {
        /// Name of the member.
        member: String,
        /// The key's bytes.
        key: [u8; 32],
    },
    /// A member's peer id is no usable Ed25519 public key, so nobody could call it.
    #[error("peer id {} of member {member:?} is not a usable Ed25519 public key", hex::encode(key))]
    PeerId {
        /// Name of the member.
        member: String,
        /// The key's bytes.
        key: [u8; 32],
    },
}

/// Why a signed checkpoint is not certified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertifyError {
    /// The checkpoint is of another log.
    #[error("checkpoint is of organism {found}, expected {expected}")]
    OtherOrganism {
        /// Organism in the checkpoint.
        found: UniqueId,
        /// Organism this verifier is for.
        expected: UniqueId,
    },
    /// A line carries a member's name and key id, and its signature is wrong.
    #[error("the cosignature of member {member:?} does not verify")]
    BadSignature {
        /// Name of the member.
        member: String,
    },
    /// A line is of nobody in the roster.
    #[error("{name:?} with key id {} is no cosigner of this roster", hex::encode(key_id))]
    UnknownCosigner {
        /// Key name in the line.
        name: String,
        /// Key id in the line.
        key_id: [u8; 4],
    },
    /// Lines are valid but not one per member in roster order.
    #[error("signature line {line} is out of order: evidence lists each cosigner once, in roster order")]
    NotCanonical {
        /// Which line, from 1.
        line: usize,
    },
    /// Too few distinct members signed.
    #[error("{have} members of the roster cosigned, {need} are needed")]
    NoQuorum {
        /// Distinct members with a valid cosignature.
        have: usize,
        /// Quorum of the roster.
        need: usize,
    },
}

/// A checkpoint that a quorum of the roster cosigned. Exists only as the result of verification.
///
/// Its cosignatures are one per member, in roster order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedCheckpoint {
    note: SignedCheckpoint,
    members: Vec<usize>,
}

impl CertifiedCheckpoint {
    /// What is certified.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.note.checkpoint
    }

    /// Number of entries in the log.
    pub fn size(&self) -> u64 {
        self.note.checkpoint.size
    }

    /// Root over those entries.
    pub fn root(&self) -> Hash {
        self.note.checkpoint.root
    }

    /// The organism whose log it is.
    pub fn organism(&self) -> UniqueId {
        self.note.checkpoint.organism
    }

    /// The signed note with the cosignatures that were counted. Its `Display` is the C2SP text.
    pub fn note(&self) -> &SignedCheckpoint {
        &self.note
    }

    /// Positions in the roster of the members that cosigned, increasing.
    pub fn members(&self) -> &[usize] {
        &self.members
    }

    /// POSIX seconds the cosigners stated, in the order of [`CertifiedCheckpoint::members`].
    pub fn timestamps_s(&self) -> Vec<u64> {
        let times = self.note.signatures.iter().filter_map(SignatureLine::as_cosignature);
        times.map(|(timestamp_s, _)| timestamp_s).collect()
    }
}

/// One member's cosignature of one checkpoint. Exists only as the result of verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosignature {
    checkpoint: Checkpoint,
    line: SignatureLine,
    member: usize,
    key: [u8; 32],
}

impl Cosignature {
    /// What is signed.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The line that signs it.
    pub fn line(&self) -> &SignatureLine {
        &self.line
    }

    /// Position of the signer in the roster it was verified with.
    pub fn member(&self) -> usize {
        self.member
    }
}

#[derive(Clone, Debug)]
struct KnownCosigner {
    member: String,
    name: String,
    key_id: [u8; 4],
    key: VerifyingKey,
}

/// The roster of an organism's committee, ready to verify its checkpoints.
#[derive(Clone, Debug)]
pub struct RosterVerifier {
    organism: UniqueId,
    quorum: usize,
    cosigners: Arc<[KnownCosigner]>,
}

impl RosterVerifier {
    /// A verifier of the log of `organism`, whose committee is `roster`.
    ///
    /// # Errors
    /// [`RosterError::Key`] when a checkpoint key is not a point of the curve or one of its few weak points.
    pub fn new(organism: UniqueId, roster: &Roster) -> Result<Self, RosterError> {
        let mut cosigners = Vec::with_capacity(roster.members().len());
        for member in roster.members() {
            let key = VerifyingKey::from_bytes(&member.checkpoint_key).ok().filter(|key| !key.is_weak());
            let key =
                key.ok_or_else(|| RosterError::Key { member: member.name.clone(), key: member.checkpoint_key })?;
            let name = cosigner_name(organism, &member.name);
            let key_id = key_id(&name, &member.checkpoint_key);
            cosigners.push(KnownCosigner { member: member.name.clone(), name, key_id, key });
        }
        Ok(Self { organism, quorum: roster.quorum(), cosigners: cosigners.into() })
    }

    /// The organism whose checkpoints this verifies.
    pub fn organism(&self) -> UniqueId {
        self.organism
    }

    /// Number of distinct members whose cosignatures certify.
    pub fn quorum(&self) -> usize {
        self.quorum
    }

    /// Number of members in the roster.
    pub fn members(&self) -> usize {
        self.cosigners.len()
    }

    /// Name in the roster of the member at `position`.
    pub fn member_name(&self, position: usize) -> Option<&str> {
        self.cosigners.get(position).map(|cosigner| cosigner.member.as_str())
    }

    /// Whether the member at `position` signed `message` with its checkpoint key.
    pub(crate) fn is_signed_by(&self, position: usize, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.cosigners.get(position).is_some_and(|cosigner| cosigner.key.verify_strict(message, &signature).is_ok())
    }

    /// Verifier keys of all members, in roster order, for third-party tools.
    pub fn vkeys(&self) -> Vec<String> {
        self.cosigners.iter().map(|cosigner| vkey(&cosigner.name, cosigner.key.as_bytes())).collect()
    }

    /// C2SP `tlog-policy` text: every member a witness, and the quorum as a group of them.
    pub fn policy(&self) -> String {
        let mut text = format!("# coalition.log/{}\n", hex::encode(self.organism.as_bytes()));
        let mut group = format!("group committee {}", self.quorum);
        for (cosigner, vkey) in self.cosigners.iter().zip(self.vkeys()) {
            text.push_str(&format!("witness {} {vkey}\n", cosigner.member));
            group.push(' ');
            group.push_str(&cosigner.member);
        }
        text + &group + "\nquorum committee\n"
    }

    /// Verifies one cosignature of `checkpoint`, and says whose it is (position in the roster).
    ///
    /// # Errors
    /// Another organism, an unknown cosigner, or a signature that does not verify.
    pub fn verify_line(&self, checkpoint: &Checkpoint, line: &SignatureLine) -> Result<usize, CertifyError> {
        self.check_organism(checkpoint)?;
        let position = self
            .position(line)
            .ok_or_else(|| CertifyError::UnknownCosigner { name: super::shorten(&line.name), key_id: line.key_id })?;
        let cosigner = &self.cosigners[position];
        let bad = || CertifyError::BadSignature { member: cosigner.member.clone() };
        let (timestamp_s, signature) = line.as_cosignature().ok_or_else(bad)?;
        if timestamp_s > MAX_TIMESTAMP {
            return Err(bad());
        }
        let message = signed_message(checkpoint, timestamp_s);
        let signature = Signature::from_bytes(&signature);
        cosigner.key.verify_strict(message.as_bytes(), &signature).map_err(|_| bad())?;
        Ok(position)
    }

    /// Verifies one cosignature of `checkpoint`, to be kept.
    ///
    /// # Errors
    /// As [`RosterVerifier::verify_line`].
    pub fn cosignature(&self, checkpoint: Checkpoint, line: SignatureLine) -> Result<Cosignature, CertifyError> {
        let member = self.verify_line(&checkpoint, &line)?;
        Ok(Cosignature { checkpoint, line, member, key: *self.cosigners[member].key.as_bytes() })
    }

    /// The certificate that cosignatures of one checkpoint make. They were verified when they were made, so no signature
    /// is looked at again; those of another roster or another checkpoint are left out.
    ///
    /// # Errors
    /// [`CertifyError::OtherOrganism`], [`CertifyError::NoQuorum`].
    pub fn join<'a>(
        &self,
        checkpoint: &Checkpoint,
        cosignatures: impl IntoIterator<Item = &'a Cosignature>,
    ) -> Result<CertifiedCheckpoint, CertifyError> {
        let mut assembly = self.assemble(*checkpoint)?;
        for cosignature in cosignatures {
            let known = self.cosigners.get(cosignature.member);
            let is_ours = known.is_some_and(|known| *known.key.as_bytes() == cosignature.key);
            if is_ours && cosignature.checkpoint == *checkpoint {
                assembly.lines[cosignature.member].get_or_insert_with(|| cosignature.line.clone());
            }
        }
        assembly.certificate()
    }

    /// Starts collecting cosignatures of `checkpoint`.
    ///
    /// # Errors
    /// [`CertifyError::OtherOrganism`].
    pub fn assemble(&self, checkpoint: Checkpoint) -> Result<Assembly, CertifyError> {
        self.check_organism(&checkpoint)?;
        Ok(Assembly { verifier: self.clone(), checkpoint, lines: vec![None; self.cosigners.len()] })
    }

    /// Certifies a note, as C2SP asks: lines of unknown keys are ignored, a wrong signature of a known key rejects the
    /// whole note, and a member counts once however often it signed.
    ///
    /// # Errors
    /// Another organism, a wrong signature, or fewer distinct signers than the quorum.
    pub fn certify(&self, note: &SignedCheckpoint) -> Result<CertifiedCheckpoint, CertifyError> {
        let mut assembly = self.assemble(note.checkpoint)?;
        for line in note.signatures.iter().filter(|line| self.position(line).is_some()) {
            assembly.add(line.clone())?;
        }
        assembly.certificate()
    }

    /// Certifies a note in the one form evidence allows: every line is a valid cosignature of a distinct member, in
    /// roster order. No byte of such a note can change without it being rejected.
    ///
    /// # Errors
    /// As [`RosterVerifier::certify`], and [`CertifyError::UnknownCosigner`], [`CertifyError::NotCanonical`].
    pub fn certify_canonical(&self, note: &SignedCheckpoint) -> Result<CertifiedCheckpoint, CertifyError> {
        self.check_organism(&note.checkpoint)?;
        let mut members = Vec::with_capacity(note.signatures.len());
        for (i, line) in note.signatures.iter().enumerate() {
            let position = self.verify_line(&note.checkpoint, line)?;
            if members.last().is_some_and(|last| *last >= position) {
                return Err(CertifyError::NotCanonical { line: i + 1 });
            }
            members.push(position);
        }
        self.check_quorum(members.len())?;
        Ok(CertifiedCheckpoint { note: note.clone(), members })
    }

    fn position(&self, line: &SignatureLine) -> Option<usize> {
        self.cosigners.iter().position(|known| known.name == line.name && known.key_id == line.key_id)
    }

    fn check_organism(&self, checkpoint: &Checkpoint) -> Result<(), CertifyError> {
        if checkpoint.organism == self.organism {
            return Ok(());
        }
        Err(CertifyError::OtherOrganism { found: checkpoint.organism, expected: self.organism })
    }

    fn check_quorum(&self, have: usize) -> Result<(), CertifyError> {
        if have >= self.quorum {
            return Ok(());
        }
        Err(CertifyError::NoQuorum { have, need: self.quorum })
    }
}

/// Cosignatures of one checkpoint, collected from members as they arrive. Made by [`RosterVerifier::assemble`].
#[derive(Clone, Debug)]
pub struct Assembly {
    verifier: RosterVerifier,
    checkpoint: Checkpoint,
    lines: Vec<Option<SignatureLine>>,
}

impl Assembly {
    /// The checkpoint whose cosignatures are collected.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Number of distinct members whose valid cosignature is here.
    pub fn have(&self) -> usize {
        self.lines.iter().flatten().count()
    }

    /// The cosignatures kept so far, one a member, in roster order.
    pub fn lines(&self) -> impl Iterator<Item = &SignatureLine> {
        self.lines.iter().flatten()
    }

    /// Verifies and keeps a cosignature; a second one of the same member is verified and dropped. Answers the member's
    /// position in the roster.
    ///
    /// # Errors
    /// As [`RosterVerifier::verify_line`]; nothing is kept then.
    pub fn add(&mut self, line: SignatureLine) -> Result<usize, CertifyError> {
        let position = self.verifier.verify_line(&self.checkpoint, &line)?;
        if let Some(slot) = self.lines.get_mut(position) {
            slot.get_or_insert(line);
        }
        Ok(position)
    }

    /// The certificate, once a quorum is here. More cosignatures may be added afterwards for a stronger one.
    ///
    /// # Errors
    /// [`CertifyError::NoQuorum`].
    pub fn certificate(&self) -> Result<CertifiedCheckpoint, CertifyError> {
        self.verifier.check_quorum(self.have())?;
        let (members, signatures) =
            self.lines.iter().enumerate().filter_map(|(i, line)| Some((i, line.clone()?))).unzip();
        Ok(CertifiedCheckpoint { note: SignedCheckpoint { checkpoint: self.checkpoint, signatures }, members })
    }
}
