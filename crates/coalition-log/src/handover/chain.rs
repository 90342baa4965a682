//! Who certifies which size: the genesis roster and the proven handovers since.

use std::collections::BTreeSet;

use coalition::{Roster, UniqueId};
use serde::{Deserialize, Serialize};

use super::{ApprovedHandover, HANDOVER_KIND, HandoverError, MAX_HANDOVERS, MAX_MEMBERS_NAMED};
use crate::{
    checkpoint::{CertifiedCheckpoint, CertifyError, RosterError, RosterVerifier, SignedCheckpoint},
    entry::{Entry, leaf_hash},
    tree::{Hash, verify_inclusion},
};

/// The rosters of a log, and the rules by which another may follow. A fold of the log's handover entries.
#[derive(Clone, Debug)]
pub struct Succession {
    rosters: Vec<(Roster, RosterVerifier)>,
    /// Checkpoint keys whose members have left.
    left: BTreeSet<[u8; 32]>,
    /// Members that the handovers so far name.
    named: usize,
}

impl Succession {
    /// Epoch 0 of the log of `organism`.
    ///
    /// # Errors
    /// [`RosterError`] when a checkpoint key of `genesis` is unusable.
    pub fn new(organism: UniqueId, genesis: &Roster) -> Result<Self, RosterError> {
        let verifier = RosterVerifier::new(organism, genesis)?;
        Ok(Self { rosters: vec![(genesis.clone(), verifier)], left: BTreeSet::new(), named: 0 })
    }

    /// The epoch in force: how many handovers there were.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.rosters.len() as u64 - 1
    }

    /// The roster in force.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.last().0
    }

    /// The verifier of the roster in force.
    #[must_use]
    pub fn verifier(&self) -> &RosterVerifier {
        &self.last().1
    }

    /// Checks that the roster in force may hand over like this, and has approved it.
    ///
    /// # Errors
    /// The rule that is broken, or what is wrong with the approvals.
    pub fn check(&self, approved: &ApprovedHandover) -> Result<(), HandoverError> {
        self.check_rules(approved)?;
        let (now, verifier) = self.last();
        Ok(approved.verify(now, verifier)?)
    }

    /// As [`Succession::check`], of the approvals for another log that the same rosters certify.
    ///
    /// # Errors
    /// As [`Succession::check`].
    pub fn check_for(&self, organism: UniqueId, approved: &ApprovedHandover) -> Result<(), HandoverError> {
        self.check_rules(approved)?;
        Ok(approved.verify(self.roster(), &RosterVerifier::new(organism, self.roster())?)?)
    }

    fn check_rules(&self, approved: &ApprovedHandover) -> Result<(), HandoverError> {
        let (now, verifier) = self.last();
        let handover = approved.handover();
        let expected = self.epoch() + 1;
        if handover.epoch != expected {
            return Err(HandoverError::Epoch { found: handover.epoch, expected });
        }
        if handover.next == *now {
            return Err(HandoverError::Unchanged);
        }
        if self.rosters.len() > MAX_HANDOVERS || self.named + handover.next.len() > MAX_MEMBERS_NAMED {
            return Err(HandoverError::TooMany);
        }
        if let Some(back) = handover.next.members().iter().find(|member| self.left.contains(&member.checkpoint_key)) {
            let key = hex::encode(back.checkpoint_key);
            return Err(HandoverError::Returns { member: back.name.clone(), key });
        }
        RosterVerifier::new(verifier.organism(), &handover.next)?;
        Ok(())
    }

    /// Hands over.
    ///
    /// # Errors
    /// As [`Succession::check`]; nothing changes then.
    pub fn hand_over(&mut self, approved: &ApprovedHandover) -> Result<(), HandoverError> {
        self.check(approved)?;
        let next = approved.handover().next.clone();
        let verifier = RosterVerifier::new(self.verifier().organism(), &next)?;
        let stays: BTreeSet<_> = next.members().iter().map(|member| member.checkpoint_key).collect();
        let keys: Vec<_> = self.roster().members().iter().map(|member| member.checkpoint_key).collect();
        self.left.extend(keys.into_iter().filter(|key| !stays.contains(key)));
        self.named += next.len();
        self.rosters.push((next, verifier));
        Ok(())
    }

    fn last(&self) -> &(Roster, RosterVerifier) {
        self.rosters.last().expect("genesis is never removed")
    }
}

/// What proves one handover: the entry, its path, and the checkpoint that ends with it, certified by the roster that hands
/// over. As somebody sent it: nothing is verified before [`RosterChain::extend`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverProof {
    /// The encoded entry.
    pub entry: Vec<u8>,
    /// Inclusion path in the tree of the checkpoint.
    pub path: Vec<Hash>,
    /// The signed note.
    pub checkpoint: String,
}

#[derive(Clone, Debug)]
struct Step {
    proof: HandoverProof,
    leaf: Hash,
    head: CertifiedCheckpoint,
}

/// Which roster certifies which size of one log. Replaces the bare roster wherever heads are verified.
///
/// A head that contains no more than the entry of a handover is certified by the roster before it, a larger one by the one
/// after it. The chain knows only what was proven to it: where it ends, the last known roster counts.
#[derive(Clone, Debug)]
pub struct RosterChain {
    succession: Succession,
    steps: Vec<Step>,
}

impl RosterChain {
    /// The chain that the config of `organism` pins: its genesis roster.
    ///
    /// # Errors
    /// [`RosterError`] when a checkpoint key is unusable.
    pub fn new(organism: UniqueId, genesis: &Roster) -> Result<Self, RosterError> {
        Ok(Self { succession: Succession::new(organism, genesis)?, steps: Vec::new() })
    }

    /// The organism whose log it is.
    #[must_use]
    pub fn organism(&self) -> UniqueId {
        self.succession.verifier().organism()
    }

    /// The last known epoch: how many handovers are proven.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.steps.len() as u64
    }

    /// The last known roster.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        self.succession.roster()
    }

    /// The verifier of the last known roster.
    #[must_use]
    pub fn verifier(&self) -> &RosterVerifier {
        self.succession.verifier()
    }

    /// The epoch whose roster certifies a head of `size` entries.
    #[must_use]
    pub fn epoch_at(&self, size: u64) -> u64 {
        self.steps.partition_point(|step| step.head.size() < size) as u64
    }

    /// The roster that certifies a head of `size` entries.
    #[must_use]
    pub fn roster_at(&self, size: u64) -> &Roster {
        &self.at(size).0
    }

    /// The verifier of the roster that certifies a head of `size` entries.
    #[must_use]
    pub fn verifier_at(&self, size: u64) -> &RosterVerifier {
        &self.at(size).1
    }

    /// Every roster known, genesis first.
    pub fn rosters(&self) -> impl Iterator<Item = &Roster> {
        self.succession.rosters.iter().map(|(roster, _)| roster)
    }

    /// Size of the head that ended the last epoch before the one in force; 0 in epoch 0.
    #[must_use]
    pub fn begins_after(&self) -> u64 {
        self.steps.last().map_or(0, |step| step.head.size())
    }

    /// The head that ended the epoch before the one in force.
    #[must_use]
    pub fn last_handover(&self) -> Option<&CertifiedCheckpoint> {
        self.steps.last().map(|step| &step.head)
    }

    /// Certifies a note by the roster of its size; see [`RosterVerifier::certify`].
    ///
    /// # Errors
    /// As [`RosterVerifier::certify`].
    pub fn certify(&self, note: &SignedCheckpoint) -> Result<CertifiedCheckpoint, CertifyError> {
        self.verifier_at(note.checkpoint.size).certify(note)
    }

    /// As [`RosterChain::certify`], by a roster before the one of its size: what somebody accepted who did not know of a
    /// handover yet.
    #[must_use]
    pub fn certify_formerly(&self, note: &SignedCheckpoint) -> Option<CertifiedCheckpoint> {
        let before = usize::try_from(self.epoch_at(note.checkpoint.size)).unwrap_or(usize::MAX);
        self.succession.rosters.iter().take(before).rev().find_map(|(_, verifier)| verifier.certify(note).ok())
    }

    /// Leaf hashes of the handover entries below `size`, in order.
    #[must_use]
    pub fn leaves_below(&self, size: u64) -> Vec<Hash> {
        self.steps.iter().take_while(|step| step.head.size() <= size).map(|step| step.leaf).collect()
    }

    /// The proofs that somebody who knows `known` handovers needs for a head of `size` entries.
    #[must_use]
    pub fn proofs(&self, known: u64, size: u64) -> Vec<HandoverProof> {
        let (from, to) = (usize::try_from(known).unwrap_or(usize::MAX), self.epoch_at(size));
        let to = usize::try_from(to).unwrap_or(usize::MAX);
        self.steps.get(from..to).unwrap_or_default().iter().map(|step| step.proof.clone()).collect()
    }

    /// Leaf hash of the handover entry at `index`, if one is proven there.
    #[must_use]
    pub fn leaf_at(&self, index: u64) -> Option<Hash> {
        self.steps.iter().find(|step| step.head.size().checked_sub(1) == Some(index)).map(|step| step.leaf)
    }

    /// Takes proofs in the order of their epochs. One that is known already is skipped.
    ///
    /// # Errors
    /// The first that does not hold; those before it are kept.
    pub fn extend_all(&mut self, proofs: &[HandoverProof]) -> Result<(), HandoverError> {
        proofs.iter().try_for_each(|proof| self.extend(proof))
    }

    /// Takes the proof of the next handover, or one that is known already.
    ///
    /// # Errors
    /// When it does not hold, leaves an epoch out, or contradicts a known one. Nothing changes then.
    pub fn extend(&mut self, proof: &HandoverProof) -> Result<(), HandoverError> {
        if self.steps.iter().any(|step| step.proof == *proof) {
            return Ok(());
        }
        let (entry, approved) = read_entry(&proof.entry)?;
        let epoch = approved.handover().epoch;
        if let Some(at) =
            epoch.checked_sub(1).and_then(|at| usize::try_from(at).ok()).filter(|at| *at < self.steps.len())
        {
            // Another certificate of the same handover says nothing new, but has to be one.
            let head = certified_head(&self.succession.rosters[at].1, &entry, proof)?;
            let same = self.steps[at].proof.entry == proof.entry && self.steps[at].head.root() == head.root();
            return if same { Ok(()) } else { Err(HandoverError::Contradiction { epoch }) };
        }
        self.succession.check(&approved)?;
        let head = certified_head(self.verifier(), &entry, proof)?;
        let (size, last) = (head.size(), self.begins_after());
        if size <= last {
            return Err(HandoverError::Backwards { size, last });
        }
        self.succession.hand_over(&approved)?;
        self.steps.push(Step { proof: proof.clone(), leaf: leaf_hash(&proof.entry), head });
        Ok(())
    }

    fn at(&self, size: u64) -> &(Roster, RosterVerifier) {
        let epoch = self.steps.partition_point(|step| step.head.size() < size);
        &self.succession.rosters[epoch]
    }
}

/// The head that a proof shows: it ends with the entry, and the roster that hands over certified it.
fn certified_head(
    old: &RosterVerifier,
    entry: &Entry,
    proof: &HandoverProof,
) -> Result<CertifiedCheckpoint, HandoverError> {
    let note = SignedCheckpoint::parse(proof.checkpoint.as_bytes()).map_err(HandoverError::Note)?;
    let size = note.checkpoint.size;
    if entry.index.checked_add(1) != Some(size) {
        return Err(HandoverError::NotAtTheEnd { index: entry.index, size });
    }
    let head = old.certify_canonical(&note).map_err(HandoverError::NotCertified)?;
    let leaf = leaf_hash(&proof.entry);
    verify_inclusion(&leaf, entry.index, size, &proof.path, &head.root()).map_err(HandoverError::Inclusion)?;
    Ok(head)
}

/// The entry of a handover, and what it says.
fn read_entry(bytes: &[u8]) -> Result<(Entry, ApprovedHandover), HandoverError> {
    let entry = Entry::decode(bytes).map_err(HandoverError::Entry)?;
    if entry.kind != HANDOVER_KIND {
        return Err(HandoverError::NotAHandover { index: entry.index, kind: entry.kind });
    }
    let approved = ApprovedHandover::from_bytes(&entry.body)?;
    Ok((entry, approved))
}
