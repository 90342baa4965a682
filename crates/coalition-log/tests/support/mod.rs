//! Committees, entries and in-memory trees for the tests of this crate.

#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part of this")]

pub mod disk;

use coalition::{EvidencePointer, Roster, RosterMember, UniqueId};
use coalition_log::checkpoint::{CertifiedCheckpoint, Checkpoint, Cosigner, RosterVerifier, SignedCheckpoint};
use coalition_log::entry::{Entry, WriteId, leaf_hash};
use coalition_log::evidence::Evidence;
use coalition_log::handover::{ApprovedHandover, HANDOVER_KIND, Handover, HandoverProof, RosterChain};
use coalition_log::store::Store;
use coalition_log::tree::{Frontier, Hash, Nodes, ProofError, inclusion_proof, root_of};
use ed25519_dalek::SigningKey;

/// A committee with known keys.
pub struct Committee {
    pub organism: UniqueId,
    pub roster: Roster,
    pub cosigners: Vec<Cosigner>,
}

pub fn organism(seed: u8) -> UniqueId {
    UniqueId::from_bytes([seed; 32])
}

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub fn public(seed: u8) -> [u8; 32] {
    key(seed).verifying_key().to_bytes()
}

pub fn committee(organism_seed: u8, members: u8) -> Committee {
    let member = |i: u8| RosterMember {
        name: format!("m{i}"),
        checkpoint_key: public(i + 1),
        consensus_key: public(i + 101),
        peer_id: public(i + 151),
    };
    let organism = organism(organism_seed);
    let roster = Roster::new((0..members).map(member).collect()).unwrap();
    let cosigners = (0..members).map(|i| Cosigner::new(organism, &format!("m{i}"), key(i + 1))).collect();
    Committee { organism, roster, cosigners }
}

/// The members of one epoch, all of whose keys derive from their seeds; a member keeps its name and keys by its seed.
pub fn epoch(organism: UniqueId, seeds: &[u8]) -> Committee {
    let member = |seed: &u8| RosterMember {
        name: format!("m{seed}"),
        checkpoint_key: public(seed + 1),
        consensus_key: public(seed + 101),
        peer_id: public(seed + 151),
    };
    let roster = Roster::new(seeds.iter().map(member).collect()).unwrap();
    let cosigners = seeds.iter().map(|seed| Cosigner::new(organism, &format!("m{seed}"), key(seed + 1))).collect();
    Committee { organism, roster, cosigners }
}

/// A log whose roster changes: ordinary entries, handovers between them, and the committee of each epoch.
pub struct Handed {
    pub committees: Vec<Committee>,
    pub entries: Vec<Vec<u8>>,
    pub proofs: Vec<HandoverProof>,
}

impl Handed {
    /// The committee of the first epoch, and `before` ordinary entries.
    pub fn start(organism: UniqueId, seeds: &[u8], before: u64) -> Self {
        let mut log = Self { committees: vec![epoch(organism, seeds)], entries: Vec::new(), proofs: Vec::new() };
        log.write(before);
        log
    }

    pub fn now(&self) -> &Committee {
        self.committees.last().unwrap()
    }

    pub fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    pub fn leaves(&self) -> Leaves {
        Leaves(self.entries.iter().map(|bytes| leaf_hash(bytes)).collect())
    }

    pub fn write(&mut self, count: u64) {
        let from = self.size();
        self.entries.extend(encoded(from..from + count));
    }

    /// The members of the current epoch at these positions approve `seeds` as the next.
    pub fn approved(&self, seeds: &[u8], by: &[usize]) -> ApprovedHandover {
        let (now, next) = (self.now(), epoch(self.now().organism, seeds).roster);
        let handover = Handover { epoch: self.committees.len() as u64, next };
        let approve = |member: &usize| {
            let seed = now.roster.members()[*member].name[1..].parse::<u8>().unwrap();
            handover.approve(&key(seed + 1), *member as u8, now.organism, &now.roster)
        };
        ApprovedHandover::new(handover.clone(), by.iter().map(approve).collect())
    }

    /// The entry of a handover at this place, and its proof by the first members that make a quorum.
    pub fn proof(&self, approved: &ApprovedHandover) -> (Vec<u8>, HandoverProof) {
        let index = self.size();
        let body = approved.to_bytes();
        let entry = Entry { index, kind: HANDOVER_KIND.into(), body, evidence: vec![], ..entry(0) };
        let bytes = entry.encode().unwrap();
        let mut leaves = self.leaves();
        leaves.0.push(leaf_hash(&bytes));
        let head = self.now().certify(index + 1, leaves.root(leaves.0.len()));
        let path = inclusion_proof(&leaves, index, index + 1).unwrap();
        (bytes.clone(), HandoverProof { entry: bytes, path, checkpoint: head.note().to_string() })
    }

    /// Hands over to `seeds`, then `after` ordinary entries follow.
    pub fn hand_over(&mut self, seeds: &[u8], after: u64) {
        let quorum: Vec<usize> = (0..self.now().roster.quorum()).collect();
        let (bytes, proof) = self.proof(&self.approved(seeds, &quorum));
        self.entries.push(bytes);
        self.proofs.push(proof);
        self.committees.push(epoch(self.now().organism, seeds));
        self.write(after);
    }

    /// The head of this size, certified by `epoch`.
    pub fn head(&self, size: u64, epoch: usize) -> CertifiedCheckpoint {
        let committee = &self.committees[epoch];
        let root = self.leaves().root(size as usize);
        // The last members: those who joined are among them, so it is no quorum of the roster before.
        let members: Vec<usize> =
            (committee.roster.len() - committee.roster.quorum()..committee.roster.len()).collect();
        let note = committee.sign(Checkpoint { organism: committee.organism, size, root }, &members);
        committee.verifier().certify(&note).unwrap()
    }

    /// The epoch that certifies a size.
    pub fn epoch_of(&self, size: u64) -> usize {
        self.proofs.iter().filter(|proof| Entry::decode(&proof.entry).unwrap().index + 1 < size).count()
    }

    pub fn chain(&self) -> RosterChain {
        let mut chain = RosterChain::new(self.committees[0].organism, &self.committees[0].roster).unwrap();
        chain.extend_all(&self.proofs).unwrap();
        chain
    }

    /// Evidence for an entry under the head of this size.
    pub fn evidence(&self, index: u64, size: u64) -> Evidence {
        let epoch = self.epoch_of(size);
        let path = inclusion_proof(&self.leaves(), index, size).unwrap();
        let bytes = self.entries[index as usize].clone();
        let evidence = Evidence::new(bytes, path, &self.head(size, epoch)).unwrap();
        evidence.with_handovers(self.proofs[..epoch].to_vec())
    }
}

impl Committee {
    pub fn verifier(&self) -> RosterVerifier {
        RosterVerifier::new(self.organism, &self.roster).unwrap()
    }

    /// `checkpoint` with the cosignatures of the given members.
    pub fn sign(&self, checkpoint: Checkpoint, members: &[usize]) -> SignedCheckpoint {
        let sign = |i: &usize| self.cosigners[*i].sign(&checkpoint, 1_700_000_000 + *i as u64).unwrap();
        SignedCheckpoint { checkpoint, signatures: members.iter().map(sign).collect() }
    }

    /// A certificate by the first members that make a quorum.
    pub fn certify(&self, size: u64, root: Hash) -> CertifiedCheckpoint {
        let members: Vec<usize> = (0..self.roster.quorum()).collect();
        let note = self.sign(Checkpoint { organism: self.organism, size, root }, &members);
        self.verifier().certify(&note).unwrap()
    }

    /// Certifies the store's head and puts the certificate into it.
    pub fn certify_store(&self, store: &mut Store) -> CertifiedCheckpoint {
        let head = store.head();
        let certified = self.certify(head.size, head.root);
        assert!(store.put_certified(&certified).unwrap());
        certified
    }
}

/// A small entry whose content depends on its index.
pub fn entry(index: u64) -> Entry {
    let pointer = EvidencePointer { organism: organism(9), index: index / 2, digest: UniqueId::from_bytes([7; 32]) };
    Entry {
        index,
        tick: if index.is_multiple_of(3) { None } else { Some(index * 2) },
        time_ms: 1_700_000_000_000 + index,
        write_id: WriteId([(index % 7) as u8; 16]),
        kind: if index.is_multiple_of(2) { "test.even".into() } else { "test.odd".into() },
        body: index.to_be_bytes().repeat(1 + (index % 5) as usize),
        evidence: if index % 4 == 1 { vec![pointer] } else { Vec::new() },
    }
}

pub fn entries(range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(entry).collect()
}

pub fn encoded(range: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    range.map(|index| entry(index).encode().unwrap()).collect()
}

/// A tree held as its leaf hashes.
pub struct Leaves(pub Vec<Hash>);

impl Leaves {
    pub fn of_entries(count: u64) -> Self {
        Self(encoded(0..count).iter().map(|bytes| leaf_hash(bytes)).collect())
    }

    pub fn root(&self, size: usize) -> Hash {
        root_of(&self.0[..size])
    }

    pub fn frontier(&self, size: usize) -> Frontier {
        let mut frontier = Frontier::new();
        self.0[..size].iter().for_each(|leaf| frontier.push(*leaf));
        frontier
    }
}

impl Nodes for Leaves {
    type Error = ProofError;

    fn node(&self, level: u32, index: u64) -> Result<Hash, ProofError> {
        let from = (index << level) as usize;
        Ok(naive_root(&self.0[from..from + (1 << level)]))
    }
}

/// RFC 6962's definition of the root, word for word.
pub fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves.len() {
        0 => Hash::empty_root(),
        1 => leaves[0],
        n => {
            let middle = n.next_power_of_two() / 2;
            Hash::node(&naive_root(&leaves[..middle]), &naive_root(&leaves[middle..]))
        }
    }
}

/// Evidence for entry `index` of the test log of `size` entries.
pub fn evidence(committee: &Committee, index: u64, size: u64) -> Evidence {
    let leaves = Leaves::of_entries(size);
    let certified = committee.certify(size, leaves.root(size as usize));
    let path = inclusion_proof(&leaves, index, size).unwrap();
    Evidence::new(entry(index).encode().unwrap(), path, &certified).unwrap()
}
