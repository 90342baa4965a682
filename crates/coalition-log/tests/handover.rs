//! Handovers: golden bytes, who certifies which size, and everything that must be refused.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use coalition_log::Draft;
use coalition_log::checkpoint::CertifyError;
use coalition_log::entry::{Entry, leaf_hash};
use coalition_log::evidence::{Evidence, EvidenceError};
use coalition_log::follow::{FollowError, Follower, HeadOutcome, StateOffer};
use coalition_log::handover::{
    ApprovedHandover, HandoverError, HandoverProof, NotApproved, RosterChain, Succession, proofs_from_text,
    proofs_to_text, signers_digest,
};
use coalition_log::state::{HostState, STATE_KIND, StateError, StateRecord};
use coalition_log::store::{HANDOVERS_FILE, Store, StoreError, StoreOptions};
use coalition_log::tree::{Frontier, consistency_proof, inclusion_proof};
use proptest::prelude::*;
use support::{Handed, entries, epoch, organism};

/// Two handovers: member 3 is replaced by 4, then 5 is added.
fn log() -> Handed {
    let mut log = Handed::start(organism(0xAB), &[0, 1, 2, 3], 5);
    log.hand_over(&[0, 1, 2, 4], 3);
    log.hand_over(&[0, 1, 2, 4, 5], 2);
    log
}

fn genesis(log: &Handed) -> RosterChain {
    RosterChain::new(log.committees[0].organism, &log.committees[0].roster).unwrap()
}

fn accepts(log: &Handed, file: &[u8]) -> bool {
    let genesis = &log.committees[0];
    Evidence::parse(file).is_ok_and(|evidence| evidence.verify(genesis.organism, &genesis.roster).is_ok())
}

#[test]
fn golden_bytes() {
    let log = log();
    let approved = log.approved(&[0, 1, 2, 4, 5, 6, 7], &[0, 2, 1, 4]);
    assert_eq!(hex::encode(approved.to_bytes()), include_str!("golden/handover.hex").trim());
    assert_eq!(ApprovedHandover::from_bytes(&approved.to_bytes()).unwrap(), approved);
    let digest = "af53";
    let found = hex::encode(signers_digest(&log.committees[0].roster));
    assert_eq!(&found[..4], digest, "{found}");
    let file = log.evidence(10, 12).to_string();
    assert_eq!(file, include_str!("golden/evidence-handovers.txt"));
    assert!(accepts(&log, file.as_bytes()));
}

#[test]
fn each_size_is_certified_by_its_epoch_alone() {
    let log = log();
    let chain = log.chain();
    for size in 0..=log.size() {
        let right = log.epoch_of(size);
        assert_eq!(chain.epoch_at(size), right as u64);
        assert_eq!(chain.roster_at(size), &log.committees[right].roster);
        for epoch in 0..log.committees.len() {
            let head = log.head(size, epoch);
            // Members of two rosters that overlap can be a quorum of both.
            let names = |member: &usize| log.committees[epoch].roster.members()[*member].name.as_str();
            let signers = head.members().iter().map(names);
            let known = signers.filter(|name| log.committees[right].roster.member(name).is_some()).count();
            let expected = known >= log.committees[right].roster.quorum();
            assert_eq!(chain.certify(head.note()).is_ok(), expected, "size {size}, epoch {epoch}");
            assert!(epoch != right || expected);
        }
    }
    assert_eq!(chain.proofs(0, 6), []);
    assert_eq!(chain.proofs(0, 7), log.proofs[..1]);
    assert_eq!(chain.proofs(1, 12), log.proofs[1..]);
    assert_eq!(chain.proofs(9, 12), []);
}

#[test]
fn proofs_in_any_wrong_form_are_refused() {
    let log = log();
    let mut chain = genesis(&log);
    assert!(matches!(chain.extend(&log.proofs[1]), Err(HandoverError::Epoch { found: 2, expected: 1 })), "a gap");
    chain.extend_all(&log.proofs).unwrap();
    chain.extend_all(&log.proofs).unwrap();
    assert_eq!(chain.epoch(), 2, "known ones change nothing");

    let fresh = || Handed::start(organism(0xAB), &[0, 1, 2, 3], 5);
    let refuse = |approved: &ApprovedHandover| genesis(&fresh()).extend(&fresh().proof(approved).1).unwrap_err();
    let few = fresh().approved(&[0, 1, 2, 4], &[0, 1]);
    assert_eq!(refuse(&few), NotApproved::NoQuorum { have: 2, need: 3 }.into());
    let same = fresh().approved(&[0, 1, 2, 3], &[0, 1, 2]);
    assert_eq!(refuse(&same), HandoverError::Unchanged);
    let mut forged = fresh().approved(&[0, 1, 2, 4], &[0, 1, 2]).to_bytes();
    *forged.last_mut().unwrap() ^= 1;
    let forged = ApprovedHandover::from_bytes(&forged).unwrap();
    assert_eq!(refuse(&forged), NotApproved::BadSignature { member: "m2".into() }.into());
    let elsewhere = Handed::start(organism(2), &[0, 1, 2, 3], 5).approved(&[0, 1, 2, 4], &[0, 1, 2]);
    assert_eq!(refuse(&elsewhere), NotApproved::BadSignature { member: "m0".into() }.into());
    let others = Handed::start(organism(0xAB), &[0, 1, 3, 2], 5).approved(&[0, 1, 2, 4], &[0, 1, 2]);
    assert_eq!(refuse(&others), NotApproved::BadSignature { member: "m0".into() }.into(), "approved by another roster");

    // A checkpoint that goes on behind the handover, and one that is certified by the next roster.
    let longer = HandoverProof { checkpoint: log.head(7, 0).note().to_string(), ..log.proofs[0].clone() };
    let refused = genesis(&log).extend(&longer).unwrap_err();
    assert_eq!(refused, HandoverError::NotAtTheEnd { index: 5, size: 7 });
    let by_next = log.committees[1].sign(*log.head(6, 0).checkpoint(), &[1, 2, 3]).to_string();
    let by_next = HandoverProof { checkpoint: by_next, ..log.proofs[0].clone() };
    assert!(matches!(genesis(&log).extend(&by_next), Err(HandoverError::NotCertified(_))));
    assert!(matches!(log.chain().extend(&by_next), Err(HandoverError::NotCertified(_))), "also if it is known");
}

#[test]
fn two_handovers_to_one_epoch_contradict_each_other() {
    let log = log();
    let mut other = Handed::start(organism(0xAB), &[0, 1, 2, 3], 5);
    other.hand_over(&[0, 1, 2, 6], 0);
    assert_eq!(log.chain().extend(&other.proofs[0]), Err(HandoverError::Contradiction { epoch: 1 }));
}

#[test]
fn a_key_that_left_never_comes_back() {
    let log = log();
    let back = log.approved(&[0, 1, 2, 3, 4, 5], &[0, 1, 2, 3]);
    let mut succession = Succession::new(organism(0xAB), &log.committees[0].roster).unwrap();
    for proof in &log.proofs {
        let entry = Entry::decode(&proof.entry).unwrap();
        succession.hand_over(&ApprovedHandover::from_bytes(&entry.body).unwrap()).unwrap();
    }
    assert!(matches!(succession.check(&back), Err(HandoverError::Returns { member, .. }) if member == "m3"));
    succession.check(&log.approved(&[0, 1, 2, 4], &[0, 1, 2, 3])).unwrap();
}

#[test]
fn a_log_has_a_bounded_number_of_handovers() {
    // 50 members that only change places: 81 handovers name 4,050 members.
    let mut seeds: Vec<u8> = (0..50).collect();
    let mut log = Handed::start(organism(1), &seeds, 0);
    let mut succession = Succession::new(organism(1), &log.now().roster).unwrap();
    let quorum: Vec<usize> = (0..log.now().roster.quorum()).collect();
    for _ in 0..4_096 / 50 {
        seeds.reverse();
        succession.hand_over(&log.approved(&seeds, &quorum)).unwrap();
        log.committees.push(epoch(organism(1), &seeds));
    }
    seeds.reverse();
    assert_eq!(succession.check(&log.approved(&seeds, &quorum)), Err(HandoverError::TooMany));
}

#[test]
fn evidence_from_before_and_after_verifies_from_the_genesis_roster() {
    let log = log();
    for size in 1..=log.size() {
        for index in 0..size {
            let evidence = log.evidence(index, size);
            assert!(accepts(&log, evidence.to_string().as_bytes()), "{index} of {size}");
            let verified = evidence.verify_with(&log.chain()).unwrap();
            assert_eq!(verified.epoch(), log.epoch_of(size) as u64);
            assert_eq!(verified.roster(), &log.committees[log.epoch_of(size)].roster);
        }
    }
    let genesis = &log.committees[0];
    let without = log.evidence(2, 8).with_handovers(vec![]);
    assert!(matches!(without.verify(genesis.organism, &genesis.roster), Err(EvidenceError::Certificate(_))));
    let refused = without.verify_with(&log.chain()).unwrap_err();
    assert_eq!(refused, EvidenceError::Handovers { found: 0, expected: 1, size: 8 });
    let more = log.evidence(2, 8).with_handovers(log.proofs.clone());
    let refused = more.verify(genesis.organism, &genesis.roster).unwrap_err();
    assert_eq!(refused, EvidenceError::Handovers { found: 2, expected: 1, size: 8 });
}

#[test]
fn a_head_beyond_the_handover_by_the_old_roster_proves_nothing_to_who_knows() {
    let log = log();
    let path = coalition_log::tree::inclusion_proof(&log.leaves(), 2, 8).unwrap();
    let old = log.committees[0].sign(*log.head(8, 1).checkpoint(), &[0, 1, 3]);
    let old = log.committees[0].verifier().certify(&old).unwrap();
    let evidence = Evidence::new(log.entries[2].clone(), path, &old).unwrap().with_handovers(log.proofs[..1].to_vec());
    let genesis = &log.committees[0];
    assert!(evidence.verify(genesis.organism, &genesis.roster).is_err());
    assert!(matches!(log.chain().certify(old.note()), Err(CertifyError::NoQuorum { have: 2, need: 3 })));
}

#[test]
fn every_flipped_bit_of_evidence_with_handovers_is_rejected() {
    let log = log();
    let file = log.evidence(10, 12).to_string().into_bytes();
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(!accepts(&log, &changed), "byte {at}");
    }
    for at in (0..file.len()).step_by(5) {
        let mut removed = file.clone();
        removed.remove(at);
        assert!(!accepts(&log, &removed) && !accepts(&log, &file[..at]), "byte {at}");
    }
}

fn follow(log: &Handed, reader: &mut Follower, size: u64) -> Result<Vec<Entry>, FollowError> {
    let (epoch, from) = (log.epoch_of(size), reader.head_size());
    reader.accept_handovers(&log.proofs[..epoch])?;
    let proof = consistency_proof(&log.leaves(), from, size).unwrap();
    reader.accept_head(log.head(size, epoch).note(), &proof)?;
    let next = reader.next_index();
    reader.accept_entries(next, &log.entries[next as usize..size as usize], &[])
}

#[test]
fn a_reader_goes_over_handovers_and_resumes_behind_them() {
    let log = log();
    let genesis = &log.committees[0];
    let mut reader = Follower::new(genesis.organism, &genesis.roster).unwrap();
    let mut shown = 0;
    for size in [3, 6, 8, 10, 12] {
        shown += follow(&log, &mut reader, size).unwrap().len() as u64;
        assert_eq!((shown, reader.chain().epoch()), (size, log.epoch_of(size) as u64));
        reader = Follower::resume(genesis.organism, &genesis.roster, reader.save()).unwrap();
    }
    let mut late = Follower::new(genesis.organism, &genesis.roster).unwrap();
    assert_eq!(follow(&log, &mut late, 12).unwrap().len(), 12);
    let head = log.head(12, 2);
    assert_eq!(late.accept_head(head.note(), &[]).unwrap(), HeadOutcome::Unchanged);
}

#[test]
fn a_state_has_the_handovers_that_are_proven_below_it() {
    let mut log = log();
    let covers = log.size();
    let handovers: Vec<Vec<u8>> = log.proofs.iter().map(|proof| proof.entry.clone()).collect();
    let state = |host_entries: &[Vec<u8>]| HostState {
        organism: log.committees[0].organism,
        covers,
        host_entries: host_entries.to_vec(),
        writes: vec![],
        ticks: vec![],
        machine: vec![1],
    };
    let bytes = state(&handovers).to_bytes().unwrap();
    let (none, one) = (state(&[]), state(&handovers[1..]));
    let certifies = Draft::new(STATE_KIND, StateRecord::new(covers, &bytes).to_bytes()).into_entry(covers, None, 1);
    log.entries.push(certifies.encode().unwrap());
    log.write(1);

    let genesis = &log.committees[0];
    let mut reader = Follower::new(genesis.organism, &genesis.roster).unwrap();
    let (size, leaves) = (log.size(), log.leaves());
    assert!(matches!(reader.accept_head(log.head(size, 2).note(), &[]), Err(FollowError::NotCertified(_))));
    reader.accept_handovers(&log.proofs).unwrap();
    reader.accept_head(log.head(size, 2).note(), &[]).unwrap();
    let mut frontier = Frontier::new();
    log.entries[..covers as usize].iter().for_each(|entry| frontier.push(leaf_hash(entry)));
    let (path, proof) =
        (inclusion_proof(&leaves, covers, size).unwrap(), consistency_proof(&leaves, covers, size).unwrap());
    let entry = &log.entries[covers as usize];
    let start =
        reader.accept_state(&StateOffer { entry, path: &path, peaks: frontier.peaks(), proof: &proof }).unwrap();
    assert_eq!(start.handovers(), handovers.iter().map(|bytes| leaf_hash(bytes)).collect::<Vec<_>>());
    start.record().check(&bytes).unwrap();
    let read = HostState::from_bytes(&bytes, genesis.organism, covers).unwrap();
    read.check_handovers(start.handovers()).unwrap();
    for wrong in [none, one] {
        let refused = wrong.check_handovers(start.handovers()).unwrap_err();
        assert!(matches!(refused, StateError::Handovers { proven: 2 }), "{refused}");
    }
    reader.start_from(start);
    assert_eq!(reader.accept_entries(covers, &log.entries[covers as usize..], &[]).unwrap().len(), 2);
}

#[test]
fn proofs_have_one_form_as_text() {
    let log = log();
    let text = proofs_to_text(&log.proofs);
    assert_eq!(proofs_from_text(&text).unwrap(), log.proofs);
    let more = proofs_from_text(&format!("{text}x")).unwrap_err();
    assert_eq!(more.expected, "end");
    assert_eq!(proofs_from_text(&text.replace("/v1", "/v2")).unwrap_err().line, 1);
    assert!(proofs_from_text(&text[..text.len() - 1]).is_err());
}

#[test]
fn a_reader_that_was_not_told_of_a_handover_confirms_its_head() {
    let log = log();
    let genesis = &log.committees[0];
    let proof = |from| consistency_proof(&log.leaves(), from, 7).unwrap();
    let mut reader = Follower::new(genesis.organism, &genesis.roster).unwrap();
    // 0, 1 and 2 are a quorum of both rosters: what they certified stands.
    let both = log.committees[1].certify(7, log.leaves().root(7));
    let mut lucky = reader.clone();
    lucky.accept_head(both.note(), &proof(0)).unwrap();
    lucky.accept_handovers(&log.proofs[..1]).unwrap();
    assert_eq!(lucky.accept_entries(0, &log.entries[..7], &[]).unwrap().len(), 7);

    reader.accept_head(log.head(7, 0).note(), &proof(0)).unwrap();
    reader.accept_handovers(&log.proofs).unwrap();
    let refused = reader.accept_entries(0, &log.entries[..7], &[]).unwrap_err();
    assert_eq!(refused, FollowError::Unconfirmed { size: 7, epoch: 1 });
    // A restart does not confirm it, and no state follows from it either.
    let mut reader = Follower::resume(genesis.organism, &genesis.roster, reader.save()).unwrap();
    assert_eq!(reader.accept_entries(0, &log.entries[..7], &[]).unwrap_err(), refused);
    let offer = StateOffer { entry: &log.entries[6], path: &[], peaks: &[], proof: &[] };
    assert_eq!(reader.accept_state(&offer).unwrap_err(), refused);
    assert!(matches!(reader.accept_head(log.head(7, 0).note(), &[]), Err(FollowError::NotCertified(_))));
    reader.accept_head(log.head(7, 1).note(), &[]).unwrap();
    assert_eq!(reader.accept_entries(0, &log.entries[..7], &[]).unwrap().len(), 7);
}

#[test]
fn a_handover_of_another_history_is_a_fork() {
    let log = log();
    let mut other = Handed::start(organism(0xAB), &[0, 1, 2, 3], 5);
    other.hand_over(&[0, 1, 2, 6], 0);
    let genesis = &log.committees[0];
    let mut reader = Follower::new(genesis.organism, &genesis.roster).unwrap();
    let proof = consistency_proof(&log.leaves(), 0, 6).unwrap();
    reader.accept_head(log.head(6, 0).note(), &proof).unwrap();
    let refused = reader.accept_handovers(&other.proofs).unwrap_err();
    assert!(matches!(refused, FollowError::Fork { size: 6, proofs, .. } if proofs.len() == 2));
    reader.accept_handovers(&log.proofs).unwrap();
    let mut wrong = log.entries.clone();
    wrong[5] = log.entries[4].clone();
    assert!(reader.accept_entries(0, &wrong[..6], &[]).is_err());
}

#[test]
fn a_store_keeps_its_handovers() {
    let log = log();
    let dir = tempfile::tempdir().unwrap();
    let genesis = &log.committees[0];
    let open = || Store::open(dir.path(), genesis.organism, &genesis.roster, StoreOptions::default());
    let mut store = open().unwrap();
    let decoded: Vec<Entry> = log.entries.iter().map(|bytes| Entry::decode(bytes).unwrap()).collect();
    store.append(1, &decoded[..5]).unwrap();
    assert!(matches!(store.put_handover(&log.proofs[0]), Err(StoreError::CheckpointAhead { .. })));
    store.append(2, &decoded[5..]).unwrap();
    assert!(matches!(store.put_handover(&log.proofs[1]), Err(StoreError::Handover { .. })), "a gap");
    for proof in &log.proofs {
        store.put_handover(proof).unwrap();
        store.put_handover(proof).unwrap();
    }
    store.put_certified(&log.head(12, 2)).unwrap();
    assert_eq!(store.evidence(3).unwrap(), log.evidence(3, 12));
    drop(store);
    let store = open().unwrap();
    assert_eq!((store.chain().epoch(), store.certified().unwrap().size()), (2, 12));
    drop(store);
    let path = dir.path().join(HANDOVERS_FILE);
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(41) {
        let mut broken = good.clone();
        broken[at] ^= 1;
        std::fs::write(&path, broken).unwrap();
        assert!(open().is_err(), "byte {at}");
    }
    std::fs::write(&path, &good).unwrap();
    let other = dir.path().join("other");
    let mut store = Store::open(&other, genesis.organism, &genesis.roster, StoreOptions::default()).unwrap();
    store.append(1, &entries(0..8)).unwrap();
    assert!(matches!(store.put_handover(&log.proofs[0]), Err(StoreError::CheckpointConflict { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_succession_is_followed(
        steps in proptest::collection::vec((1u64..4, any::<u8>()), 1..6), cut in any::<prop::sample::Index>(),
    ) {
        let mut seeds: Vec<u8> = vec![0, 1, 2, 3];
        let mut log = Handed::start(organism(3), &seeds, 2);
        for (fresh, (entries, choice)) in (4..).zip(steps) {
            match choice % 3 {
                0 if seeds.len() > 1 => drop(seeds.remove(usize::from(choice) % seeds.len())),
                1 => seeds.push(fresh),
                _ => { let at = usize::from(choice) % seeds.len(); seeds[at] = fresh }
            }
            log.hand_over(&seeds, entries);
        }
        let size = 1 + cut.index(log.size() as usize) as u64;
        let evidence = log.evidence(size - 1, size);
        prop_assert!(accepts(&log, evidence.to_string().as_bytes()));
        let genesis = &log.committees[0];
        let mut reader = Follower::new(genesis.organism, &genesis.roster).unwrap();
        prop_assert_eq!(follow(&log, &mut reader, size).unwrap().len() as u64, size);
        prop_assert_eq!(follow(&log, &mut reader, log.size()).unwrap().len() as u64, log.size() - size);
        // Leaving any one proof out is a gap.
        for missing in 0..log.proofs.len() {
            let mut proofs = log.proofs.clone();
            proofs.remove(missing);
            let mut chain = RosterChain::new(genesis.organism, &genesis.roster).unwrap();
            prop_assert_eq!(chain.extend_all(&proofs).is_err(), missing + 1 < log.proofs.len());
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_handover(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = ApprovedHandover::from_bytes(&bytes);
        if let Ok(proofs) = proofs_from_text(&String::from_utf8_lossy(&bytes)) {
            prop_assert_eq!(proofs_to_text(&proofs).into_bytes(), bytes.clone());
        }
        let proof = HandoverProof { entry: bytes, path: vec![], checkpoint: String::new() };
        prop_assert!(log().chain().extend(&proof).is_err());
    }
}
