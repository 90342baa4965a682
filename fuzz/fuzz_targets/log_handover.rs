#![no_main]
//! Handovers and the list of their proofs: one form each, and no roster without a quorum of the one before. The first byte says
//! which is read; even ones damage a list that holds.

use std::sync::LazyLock;

use coalition::{Roster, RosterMember};
use coalition_fuzz::{chain, damaged, key, organism, roster};
use coalition_log::{
    Draft,
    checkpoint::{Checkpoint, Cosigner, SignedCheckpoint},
    entry::leaf_hash,
    handover::{ApprovedHandover, HANDOVER_KIND, Handover, HandoverProof, proofs_from_text, proofs_to_text},
};
use libfuzzer_sys::fuzz_target;

/// A handover: the last member is left out.
static NEXT: LazyLock<Vec<RosterMember>> = LazyLock::new(|| roster().members()[..3].to_vec());

static APPROVED: LazyLock<ApprovedHandover> = LazyLock::new(|| {
    let handover = Handover { epoch: 1, next: Roster::new(NEXT.clone()).expect("distinct keys") };
    let approve = |i: u8| handover.approve(&key(i), i, organism(), &roster());
    ApprovedHandover::new(handover.clone(), (0..3).map(approve).collect())
});

static PROOFS: LazyLock<String> = LazyLock::new(|| {
    let entry = Draft::new(HANDOVER_KIND, APPROVED.to_bytes()).into_entry(0, None, 1);
    let entry = entry.encode().expect("a small entry");
    let checkpoint = Checkpoint { organism: organism(), size: 1, root: leaf_hash(&entry) };
    let sign = |i: u8| Cosigner::new(organism(), &format!("m{i}"), key(i)).sign(&checkpoint, 1).expect("same organism");
    let checkpoint = SignedCheckpoint { checkpoint, signatures: (0..3).map(sign).collect() }.to_string();
    proofs_to_text(&[HandoverProof { entry, path: vec![], checkpoint }])
});

/// Every roster the same keys have ever handed over to: here, and in the golden evidence.
static KNOWN: LazyLock<Vec<(u64, Vec<RosterMember>)>> = LazyLock::new(|| {
    let golden = include_str!("../../crates/coalition-log/tests/golden/evidence-handovers.txt");
    let (_, list) = golden.split_once("handovers ").expect("it has handovers");
    let (list, _) = list.split_once("entry ").expect("then its entry");
    let golden = proofs_from_text(&format!("coalition-handovers/v1\nhandovers {list}")).expect("a list of proofs");
    let mut known = vec![(1, NEXT.clone())];
    let mut rosters = chain();
    for proof in &golden {
        rosters.extend_all(std::slice::from_ref(proof)).expect("golden handovers hold");
        known.push((rosters.epoch(), rosters.roster().members().to_vec()));
    }
    known
});

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    let bytes = match which % 4 {
        0 => damaged(PROOFS.as_bytes(), rest),
        2 => damaged(&APPROVED.to_bytes(), rest),
        _ => rest.to_vec(),
    };
    if let Ok(approved) = ApprovedHandover::from_bytes(&bytes) {
        assert_eq!(approved.to_bytes(), bytes);
    }
    let Some(proofs) = std::str::from_utf8(&bytes).ok().and_then(|text| proofs_from_text(text).ok()) else { return };
    assert_eq!(proofs_to_text(&proofs).as_bytes(), bytes);
    let mut rosters = chain();
    if rosters.extend_all(&proofs).is_ok() && !proofs.is_empty() {
        let reached = (rosters.epoch(), rosters.roster().members().to_vec());
        assert!(KNOWN.contains(&reached), "nobody handed over to {reached:?}");
    }
});
