//! Epochs: how the members of a committee change under one config.
//!
//! The config pins the genesis roster. A *handover* is an entry of the log ([`HANDOVER_KIND`]) that names the next roster,
//! approved by a quorum of the roster in force. It is the last entry of its batch: the head that ends with it is certified by
//! the old roster, and every larger head by the new one. A [`RosterChain`] is what a verifier knows of this: the genesis
//! roster, and one [`HandoverProof`] for each epoch since.

mod chain;
mod text;

use coalition::{CommitteeError, Roster, RosterMember, UniqueId};
use ed25519_dalek::SigningKey;
use sha2::{Digest, Sha256};

use crate::{
    approval::{Approvals, MAX_APPROVALS},
    checkpoint::{CertifyError, NoteError, RosterError, RosterVerifier},
    entry::{EntryError, MAX_BODY_BYTES, MAX_KIND_BYTES},
    tree::ProofError,
};

pub use crate::approval::{Approval, NotApproved};
pub use chain::{HandoverProof, RosterChain, Succession};
pub use text::{proofs_from_text, proofs_to_text};
pub(crate) use text::{read_proofs, write_proofs};

/// A change of the roster. Body: [`ApprovedHandover::to_bytes`].
pub const HANDOVER_KIND: &str = "committee.handover";

/// Most handovers of one log. An organism that needs more retires to a new config.
pub const MAX_HANDOVERS: usize = 256;

/// Most members that all handovers of one log together may name, so that evidence stays small enough to send.
pub const MAX_MEMBERS_NAMED: usize = 4_096;

const STATEMENT: &[u8] = b"coalition/handover-approval/v1";
const SIGNERS: &[u8] = b"coalition/roster-signers/v1";
const _: () = assert!(HANDOVER_KIND.len() <= MAX_KIND_BYTES);
const _: () = assert!(8 + 1 + 64 * (1 + 64 + 96) + 1 + MAX_APPROVALS * 65 <= MAX_BODY_BYTES);

/// Why bytes are no handover, a handover is not allowed, or a proof of one does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// Not the canonical form.
    #[error("these {bytes} bytes are no approved handover")]
    Malformed {
        /// Length of the bytes.
        bytes: usize,
    },
    /// The next members are no roster.
    #[error("the next roster is not usable")]
    Roster(#[from] CommitteeError),
    /// A key of the next roster cannot verify anything.
    #[error("the next roster cannot certify")]
    Keys(#[from] RosterError),
    /// Another epoch than the one that follows.
    #[error("the handover leads to epoch {found}, the next one is {expected}")]
    Epoch {
        /// Epoch in the handover.
        found: u64,
        /// The one after the epoch in force.
        expected: u64,
    },
    /// The next roster is the one in force.
    #[error("the next roster is the one in force: nothing changes")]
    Unchanged,
    /// A key whose member left is used again.
    #[error("member {member:?} would come back with the key {key}, which has left the committee; give it new keys")]
    Returns {
        /// Name in the next roster.
        member: String,
        /// The key, in hexadecimal.
        key: String,
    },
    /// Too many handovers, or too many members named by all of them.
    #[error(
        "a log has at most {MAX_HANDOVERS} handovers that name {MAX_MEMBERS_NAMED} members together; publish a new config"
    )]
    TooMany,
    /// A quorum of the roster in force did not approve it.
    #[error(transparent)]
    NotApproved(#[from] NotApproved),
    /// The entry in a proof cannot be read.
    #[error("the entry in the proof of a handover is malformed")]
    Entry(#[source] EntryError),
    /// The entry in a proof is something else.
    #[error("entry {index} of kind {kind:?} is no handover")]
    NotAHandover {
        /// Index of the entry.
        index: u64,
        /// Its kind.
        kind: String,
    },
    /// The checkpoint in a proof cannot be read.
    #[error("the checkpoint in the proof of a handover is malformed")]
    Note(#[source] NoteError),
    /// The checkpoint does not end with the handover.
    #[error("the proof's checkpoint has {size} entries, the handover is entry {index}: it must be the last")]
    NotAtTheEnd {
        /// Index of the handover.
        index: u64,
        /// Size of the checkpoint.
        size: u64,
    },
    /// The handover is not after the one before it.
    #[error("the handover of size {size} does not follow the one of size {last}")]
    Backwards {
        /// Size of the checkpoint.
        size: u64,
        /// Size of the one before.
        last: u64,
    },
    /// The roster that hands over did not certify it.
    #[error("the handover is not certified by the roster that hands over")]
    NotCertified(#[source] CertifyError),
    /// The entry is not in the certified tree.
    #[error("the handover is not in the certified log")]
    Inclusion(#[source] ProofError),
    /// Another handover to this epoch is known.
    #[error("another handover to epoch {epoch} was proven before: the committee of the epoch before has forked")]
    Contradiction {
        /// The epoch.
        epoch: u64,
    },
}

/// Which roster comes next. What members approve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The epoch that begins: one more than the one in force. Genesis is epoch 0.
    pub epoch: u64,
    /// Who certifies from then on.
    pub next: Roster,
}

impl Handover {
    /// `u64 epoch ‖ u8 members ‖ (u8 length ‖ name ‖ checkpoint key ‖ consensus key ‖ peer id)…`, big endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.epoch.to_be_bytes().to_vec();
        out.push(short(self.next.len()));
        for member in self.next.members() {
            put_name(&mut out, &member.name);
            out.extend_from_slice(&member.checkpoint_key);
            out.extend_from_slice(&member.consensus_key);
            out.extend_from_slice(&member.peer_id);
        }
        out
    }

    /// A member of `now`, the roster in force, consents with its checkpoint key to this handover of `organism`: Ed25519 over
    /// `coalition/handover-approval/v1 ‖ organism id ‖ signers digest of the roster in force ‖ handover`.
    #[must_use]
    pub fn approve(&self, key: &SigningKey, member: u8, organism: UniqueId, now: &Roster) -> Approval {
        Approval::of(&statement(organism, now, &self.to_bytes()), key, member)
    }

    /// Reads a handover from the beginning of `bytes`; answers what follows it.
    fn read(bytes: &[u8]) -> Result<(Self, &[u8]), HandoverError> {
        let malformed = || HandoverError::Malformed { bytes: bytes.len() };
        let (epoch, rest) = bytes.split_first_chunk::<8>().ok_or_else(malformed)?;
        let (&count, mut rest) = rest.split_first().ok_or_else(malformed)?;
        let mut members = Vec::new();
        for _ in 0..count {
            let (member, after) = read_member(rest).ok_or_else(malformed)?;
            members.push(member);
            rest = after;
        }
        Ok((Self { epoch: u64::from_be_bytes(*epoch), next: Roster::new(members)? }, rest))
    }
}

fn read_member(bytes: &[u8]) -> Option<(RosterMember, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(length))?;
    let (checkpoint_key, rest) = rest.split_first_chunk::<32>()?;
    let (consensus_key, rest) = rest.split_first_chunk::<32>()?;
    let (peer_id, rest) = rest.split_first_chunk::<32>()?;
    let name = std::str::from_utf8(name).ok()?.to_owned();
    let member =
        RosterMember { name, checkpoint_key: *checkpoint_key, consensus_key: *consensus_key, peer_id: *peer_id };
    Some((member, rest))
}

/// SHA-256 over the members' names and checkpoint keys: all that certifying depends on, and all that a verifier needs.
#[must_use]
pub fn signers_digest(roster: &Roster) -> [u8; 32] {
    let mut preimage = SIGNERS.to_vec();
    preimage.push(short(roster.len()));
    for member in roster.members() {
        put_name(&mut preimage, &member.name);
        preimage.extend_from_slice(&member.checkpoint_key);
    }
    Sha256::digest(&preimage).into()
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(short(name.len()));
    out.extend_from_slice(name.as_bytes());
}

fn short(count: usize) -> u8 {
    u8::try_from(count).expect("rosters have at most 64 members, with names of at most 64 bytes")
}

fn statement(organism: UniqueId, now: &Roster, handover: &[u8]) -> Vec<u8> {
    [STATEMENT, organism.as_bytes(), &signers_digest(now), handover].concat()
}

/// A handover and who approved it.
///
/// Bytes: `handover ‖ u8 approvals ‖ (u8 member ‖ signature(64))…`, members increasing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovedHandover {
    handover: Handover,
    approvals: Approvals,
}

impl ApprovedHandover {
    /// Puts approvals beside a handover, in canonical order; of several by one member the first counts.
    #[must_use]
    pub fn new(handover: Handover, approvals: Vec<Approval>) -> Self {
        Self { handover, approvals: Approvals::new(approvals) }
    }

    /// What is approved.
    #[must_use]
    pub const fn handover(&self) -> &Handover {
        &self.handover
    }

    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.handover.to_bytes();
        self.approvals.put(&mut out);
        out
    }

    /// Reads the canonical form; no approval is verified yet.
    ///
    /// # Errors
    /// [`HandoverError::Malformed`], [`HandoverError::Roster`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HandoverError> {
        let malformed = || HandoverError::Malformed { bytes: bytes.len() };
        let (handover, rest) = Handover::read(bytes)?;
        let approvals = Approvals::read(rest).ok_or_else(malformed)?;
        Ok(Self { handover, approvals })
    }

    /// Checks that a quorum of `now`, which `verifier` is of, approved this.
    fn verify(&self, now: &Roster, verifier: &RosterVerifier) -> Result<(), NotApproved> {
        self.approvals.verify(&statement(verifier.organism(), now, &self.handover.to_bytes()), verifier)
    }
}
