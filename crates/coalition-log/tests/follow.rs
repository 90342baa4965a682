//! The reader's core against honest, lagging, lying and forking servers.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use coalition_log::checkpoint::{CertifyError, Checkpoint, SignedCheckpoint};
use coalition_log::entry::leaf_hash;
use coalition_log::follow::{FollowError, Follower, HeadOutcome, Saved};
use coalition_log::tree::{Frontier, Hash, consistency_proof};
use proptest::prelude::*;
use support::{Committee, Leaves, committee, encoded, entries, organism};

struct Server {
    committee: Committee,
    leaves: Leaves,
    entries: Vec<Vec<u8>>,
}

impl Server {
    fn new(size: u64) -> Self {
        Self { committee: committee(1, 4), leaves: Leaves::of_entries(size), entries: encoded(0..size) }
    }

    fn head(&self, size: u64) -> SignedCheckpoint {
        self.committee.certify(size, self.leaves.root(size as usize)).note().clone()
    }

    fn proof(&self, old: u64, new: u64) -> Vec<Hash> {
        consistency_proof(&self.leaves, old, new).unwrap()
    }

    fn follower(&self) -> Follower {
        Follower::new(self.committee.organism, &self.committee.roster).unwrap()
    }

    fn range(&self, from: u64, to: u64) -> &[Vec<u8>] {
        &self.entries[from as usize..to as usize]
    }
}

#[test]
fn reads_a_growing_log_in_pieces() {
    let server = Server::new(100);
    let mut follower = server.follower();
    let mut read = Vec::new();
    for (old, new) in [(0, 1), (1, 10), (10, 64), (64, 100)] {
        let outcome = follower.accept_head(&server.head(new), &server.proof(old, new)).unwrap();
        assert_eq!(outcome, HeadOutcome::Advanced { from: old, to: new });
        while follower.next_index() < new {
            let (from, to) = (follower.next_index(), new.min(follower.next_index() + 7));
            read.extend(follower.accept_entries(from, server.range(from, to), &server.proof(to, new)).unwrap());
        }
    }
    assert_eq!(read, entries(0..100));
    assert_eq!(follower.head_size(), 100);
}

#[test]
fn heads_never_go_back() {
    let server = Server::new(50);
    let mut follower = server.follower();
    follower.accept_head(&server.head(40), &[]).unwrap();
    assert_eq!(follower.accept_head(&server.head(40), &[]).unwrap(), HeadOutcome::Unchanged);
    assert_eq!(follower.accept_head(&server.head(39), &[]).unwrap(), HeadOutcome::Older);
    assert_eq!(follower.head_size(), 40);
}

#[test]
fn an_empty_log_can_be_followed() {
    let server = Server::new(5);
    let mut follower = server.follower();
    assert_eq!(follower.accept_head(&server.head(0), &[]).unwrap(), HeadOutcome::Unchanged);
    assert!(follower.head().is_some());
    assert_eq!(follower.accept_entries::<Vec<u8>>(0, &[], &[]).unwrap(), []);
}

#[test]
fn wrong_entries_are_not_released_and_change_nothing() {
    let server = Server::new(20);
    let mut follower = server.follower();
    follower.accept_head(&server.head(20), &[]).unwrap();
    follower.accept_entries(0, server.range(0, 4), &server.proof(4, 20)).unwrap();
    let before = follower.save();

    let mut changed = server.range(4, 9).to_vec();
    changed[2][30] ^= 1;
    let refused = follower.accept_entries(4, &changed, &server.proof(9, 20)).unwrap_err();
    assert!(matches!(refused, FollowError::NotTheEntries { from: 4, end: 9, .. }), "{refused}");
    let mut swapped = server.range(4, 9).to_vec();
    swapped.swap(0, 1);
    assert!(matches!(
        follower.accept_entries(4, &swapped, &server.proof(9, 20)),
        Err(FollowError::NotTheEntries { .. })
    ));
    assert!(matches!(
        follower.accept_entries(4, server.range(4, 9), &server.proof(8, 20)),
        Err(FollowError::NotTheEntries { .. })
    ));
    assert_eq!(
        follower.accept_entries(5, server.range(5, 9), &server.proof(9, 20)),
        Err(FollowError::WrongStart { from: 5, next: 4 })
    );
    let too_far = encoded(4..21);
    assert_eq!(follower.accept_entries(4, &too_far, &[]), Err(FollowError::BeyondHead { end: 21, certified: 20 }));
    assert_eq!(follower.save(), before);
    assert_eq!(follower.accept_entries(4, server.range(4, 20), &[]).unwrap(), entries(4..20));
}

#[test]
fn unreadable_and_misplaced_certified_leaves_are_named() {
    let committee = committee(1, 4);
    for (bytes, index) in [(b"junk".to_vec(), 1), (encoded(5..6).remove(0), 1)] {
        let leaves = vec![encoded(0..1).remove(0), bytes];
        let tree = Leaves(leaves.iter().map(|leaf| leaf_hash(leaf)).collect());
        let mut follower = Follower::new(committee.organism, &committee.roster).unwrap();
        follower.accept_head(committee.certify(2, tree.root(2)).note(), &[]).unwrap();
        match follower.accept_entries(0, &leaves, &[]).unwrap_err() {
            FollowError::Entry { index: at, .. } => assert_eq!(at, index),
            FollowError::Misplaced { position, index: inside } => assert_eq!((position, inside), (index, 5)),
            other => panic!("{other}"),
        }
        assert_eq!(follower.next_index(), 0);
    }
}

#[test]
fn an_inconsistent_head_is_refused() {
    let server = Server::new(30);
    let mut follower = server.follower();
    follower.accept_head(&server.head(10), &[]).unwrap();
    let refused = follower.accept_head(&server.head(30), &server.proof(11, 30)).unwrap_err();
    assert!(matches!(refused, FollowError::Inconsistent { accepted: 10, offered: 30, .. }), "{refused}");

    let mut other = Leaves::of_entries(30);
    other.0[3] = Hash([0; 32]);
    let forked = server.committee.certify(30, other.root(30));
    let proof = consistency_proof(&other, 10, 30).unwrap();
    assert!(matches!(follower.accept_head(forked.note(), &proof), Err(FollowError::Inconsistent { .. })));
    assert_eq!(follower.head_size(), 10);
    follower.accept_head(&server.head(30), &server.proof(10, 30)).unwrap();
}

#[test]
fn a_fork_is_proven_with_names() {
    let server = Server::new(10);
    let mut follower = server.follower();
    follower.accept_head(&server.head(10), &[]).unwrap();
    let other = Checkpoint { organism: server.committee.organism, size: 10, root: Hash([9; 32]) };
    let forked = server.committee.sign(other, &[1, 2, 3]);
    let FollowError::Fork { size, accepted, offered, proofs } = follower.accept_head(&forked, &[]).unwrap_err() else {
        panic!("not a fork");
    };
    assert_eq!((size, accepted, offered), (10, server.leaves.root(10), Hash([9; 32])));
    let verifier = server.committee.verifier();
    let guilty: Vec<String> = proofs.iter().map(|proof| proof.verify(&verifier).unwrap().member).collect();
    assert_eq!(guilty, ["m1", "m2"]);
}

#[test]
fn uncertified_and_foreign_heads_are_refused() {
    let server = Server::new(10);
    let mut follower = server.follower();
    let head = Checkpoint { organism: server.committee.organism, size: 10, root: server.leaves.root(10) };
    let weak = server.committee.sign(head, &[0, 3]);
    let refused = follower.accept_head(&weak, &[]).unwrap_err();
    assert_eq!(refused, FollowError::NotCertified(CertifyError::NoQuorum { have: 2, need: 3 }));
    let foreign = committee(2, 4).certify(10, head.root);
    let refused = follower.accept_head(foreign.note(), &[]).unwrap_err();
    assert_eq!(refused, FollowError::OtherOrganism { found: organism(2), expected: organism(1) });
    assert_eq!(follower.head_size(), 0);
}

#[test]
fn a_reader_goes_on_where_it_stopped() {
    let server = Server::new(40);
    let (organism, roster) = (server.committee.organism, &server.committee.roster);
    let mut follower = server.follower();
    follower.accept_head(&server.head(30), &[]).unwrap();
    follower.accept_entries(0, server.range(0, 21), &server.proof(21, 30)).unwrap();
    let saved = follower.save();

    let mut resumed = Follower::resume(organism, roster, saved.clone()).unwrap();
    resumed.accept_entries(21, server.range(21, 30), &[]).unwrap();
    resumed.accept_head(&server.head(40), &server.proof(30, 40)).unwrap();
    assert_eq!(resumed.accept_entries(30, server.range(30, 40), &[]).unwrap(), entries(30..40));
    let fresh =
        Follower::resume(organism, roster, Saved { frontier: Frontier::new(), head: None, handovers: vec![] }).unwrap();
    assert_eq!(fresh.next_index(), 0);

    let headless = Saved { head: None, ..saved.clone() };
    assert!(matches!(Follower::resume(organism, roster, headless), Err(FollowError::Saved { .. })));
    let beyond = Saved { frontier: server.leaves.frontier(31), ..saved.clone() };
    assert!(matches!(Follower::resume(organism, roster, beyond), Err(FollowError::Saved { .. })));
    let wrong = Frontier::from_peaks(30, vec![Hash([1; 32]); 4]).unwrap();
    assert!(matches!(
        Follower::resume(organism, roster, Saved { frontier: wrong, ..saved.clone() }),
        Err(FollowError::Saved { .. })
    ));
    let foreign = Follower::resume(support::organism(3), roster, saved);
    assert!(matches!(foreign, Err(FollowError::OtherOrganism { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_of_any_log_reads_the_same(
        size in 1u64..120, heads in proptest::collection::vec(1u64..120, 0..5), step in 1u64..40,
    ) {
        let server = Server::new(size);
        let mut follower = server.follower();
        let mut heads: Vec<u64> = heads.into_iter().filter(|head| *head < size).collect();
        heads.push(size);
        heads.sort_unstable();
        let mut read = Vec::new();
        for head in heads {
            let old = follower.head_size();
            follower.accept_head(&server.head(head), &server.proof(old, head)).unwrap();
            while follower.next_index() < head {
                let from = follower.next_index();
                let to = head.min(from + step);
                read.extend(follower.accept_entries(from, server.range(from, to), &server.proof(to, head)).unwrap());
            }
        }
        prop_assert_eq!(read, entries(0..size));
    }
}
