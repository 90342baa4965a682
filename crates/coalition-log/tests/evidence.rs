//! Evidence and equivocation files: golden file, every changed byte rejected, transferable guilt.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use coalition::EvidencePointer;
use coalition_log::LineError;
use coalition_log::checkpoint::Checkpoint;
use coalition_log::equivocation::{Equivocation, EquivocationError};
use coalition_log::evidence::{Evidence, EvidenceError, MAX_EVIDENCE_BYTES};
use coalition_log::tree::Hash;
use proptest::prelude::*;
use support::{Committee, committee, entry, evidence, organism};

fn accepts(committee: &Committee, file: &[u8]) -> bool {
    Evidence::parse(file).is_ok_and(|evidence| evidence.verify(committee.organism, &committee.roster).is_ok())
}

#[test]
fn golden_file() {
    let committee = committee(0xAB, 4);
    let file = evidence(&committee, 5, 11).to_string();
    assert_eq!(file, include_str!("golden/evidence.txt"));
    let parsed = Evidence::parse(file.as_bytes()).unwrap();
    assert_eq!(parsed.to_string(), file);
    let verified = parsed.verify(committee.organism, &committee.roster).unwrap();
    assert_eq!(verified.entry(), &entry(5));
    assert_eq!(verified.checkpoint().size(), 11);
    assert_eq!(verified.checkpoint().members(), [0, 1, 2]);
    assert_eq!(verified.pointer(), entry(5).pointer(committee.organism).unwrap());
}

#[test]
fn every_entry_of_every_small_log_is_proven() {
    let committee = committee(1, 4);
    for size in 1..=20 {
        for index in 0..size {
            let file = evidence(&committee, index, size).to_string();
            assert!(accepts(&committee, file.as_bytes()), "{index} of {size}");
        }
    }
}

#[test]
fn every_flipped_bit_is_rejected() {
    let committee = committee(1, 4);
    let file = evidence(&committee, 5, 11).to_string().into_bytes();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut changed = file.clone();
            changed[at] ^= 1 << bit;
            assert!(!accepts(&committee, &changed), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn every_cut_removed_or_repeated_byte_is_rejected() {
    let committee = committee(1, 4);
    let file = evidence(&committee, 5, 11).to_string().into_bytes();
    for at in 0..file.len() {
        assert!(!accepts(&committee, &file[..at]), "cut at {at}");
        let mut removed = file.clone();
        let byte = removed.remove(at);
        assert!(!accepts(&committee, &removed), "removed {at}");
        let mut repeated = file.clone();
        repeated.insert(at, byte);
        assert!(!accepts(&committee, &repeated), "repeated {at}");
    }
    for extra in [&b"\n"[..], b" ", b"\0", b"\xE2\x80\x94 x AAAA\n"] {
        assert!(!accepts(&committee, &[&file, extra].concat()));
    }
}

#[test]
fn reordered_lines_are_rejected() {
    let committee = committee(1, 4);
    let file = evidence(&committee, 5, 11).to_string();
    let lines: Vec<&str> = file.split_inclusive('\n').collect();
    for a in 0..lines.len() {
        for b in a + 1..lines.len() {
            let mut swapped = lines.clone();
            swapped.swap(a, b);
            if swapped == lines {
                continue;
            }
            assert!(!accepts(&committee, swapped.concat().as_bytes()), "lines {a} and {b}");
        }
    }
}

#[test]
fn evidence_proves_nothing_to_another_committee_or_for_another_entry() {
    let ours = committee(1, 4);
    let proof = evidence(&ours, 5, 11);
    let foreign = proof.verify(organism(2), &ours.roster).unwrap_err();
    assert_eq!(foreign, EvidenceError::OtherOrganism { found: ours.organism, expected: organism(2) });
    let larger = committee(1, 7);
    assert!(matches!(proof.verify(ours.organism, &larger.roster), Err(EvidenceError::Certificate(_))));

    let right = entry(5).pointer(ours.organism).unwrap();
    assert_eq!(proof.verify_pointer(&right, &ours.roster).unwrap().pointer(), right);
    let wrong = [
        EvidencePointer { index: 4, ..right },
        EvidencePointer { organism: organism(2), ..right },
        EvidencePointer { digest: organism(2), ..right },
    ];
    for expected in wrong {
        let refused = proof.verify_pointer(&expected, &ours.roster).unwrap_err();
        assert_eq!(refused, EvidenceError::Pointer { found: right, expected });
    }
}

#[test]
fn an_entry_moved_to_another_place_is_rejected() {
    let committee = committee(1, 4);
    let leaves = support::Leaves::of_entries(11);
    let certified = committee.certify(11, leaves.root(11));
    let path = coalition_log::tree::inclusion_proof(&leaves, 5, 11).unwrap();
    let wrong = Evidence::new(entry(6).encode().unwrap(), path.clone(), &certified).unwrap();
    assert!(matches!(wrong.verify(committee.organism, &committee.roster), Err(EvidenceError::Inclusion(_))));
    let mut longer = path;
    longer.push(Hash([0; 32]));
    let wrong = Evidence::new(entry(5).encode().unwrap(), longer, &certified).unwrap();
    assert!(matches!(wrong.verify(committee.organism, &committee.roster), Err(EvidenceError::Inclusion(_))));
}

/// A line of a text, as an error shows it.
fn line(text: &str, at: usize) -> String {
    text.lines().nth(at).unwrap().chars().take(100).collect()
}

#[test]
fn unknown_versions_and_handovers_are_named() {
    let committee = committee(1, 4);
    let file = evidence(&committee, 5, 11).to_string();
    let newer = file.replacen("evidence/v1", "evidence/v2", 1);
    let refused = Evidence::parse(newer.as_bytes()).unwrap_err();
    assert_eq!(refused, EvidenceError::Header { found: "coalition-evidence/v2".into() });
    let handed_over = file.replacen("handovers 0", "handovers 2", 1);
    assert_eq!(
        Evidence::parse(handed_over.as_bytes()),
        Err(EvidenceError::Line(LineError { line: 5, expected: "handover line", found: line(&file, 4) }))
    );
    let renumbered = file.replacen("index 5", "index 6", 1);
    assert_eq!(Evidence::parse(renumbered.as_bytes()), Err(EvidenceError::Index { entry: 5, evidence: 6 }));
    let long = vec![b'a'; MAX_EVIDENCE_BYTES + 1];
    assert_eq!(Evidence::parse(&long), Err(EvidenceError::TooLong { bytes: long.len() }));
}

#[test]
fn tlog_proof_form_carries_the_same_proof() {
    let committee = committee(1, 4);
    let proof = evidence(&committee, 5, 11);
    let text = proof.to_tlog_proof();
    let (head, note) = text.split_once("\n\n").unwrap();
    let lines: Vec<&str> = head.lines().collect();
    assert_eq!(lines[0], "c2sp.org/tlog-proof@v1");
    assert!(lines[1].starts_with("extra "));
    assert_eq!(lines[2], "index 5");
    assert_eq!(lines.len(), 3 + 4);
    assert!(proof.to_string().ends_with(&format!("\n\n{note}")));
}

fn head(committee: &Committee, size: u64, root: u8) -> Checkpoint {
    Checkpoint { organism: committee.organism, size, root: Hash([root; 32]) }
}

#[test]
fn two_roots_of_one_size_prove_guilt() {
    let committee = committee(1, 4);
    let verifier = committee.verifier();
    let first = committee.sign(head(&committee, 9, 2), &[0, 1, 2]);
    let second = committee.sign(head(&committee, 9, 1), &[1, 2, 3]);
    let proofs = Equivocation::between(&verifier, &first, &second);
    assert_eq!(proofs, Equivocation::between(&verifier, &second, &first));
    let guilty: Vec<String> = proofs.iter().map(|proof| proof.verify(&verifier).unwrap().member).collect();
    assert_eq!(guilty, ["m1", "m2"]);
    let guilt = proofs[0].verify(&verifier).unwrap();
    assert_eq!((guilt.size, guilt.roots, guilt.position), (9, [Hash([1; 32]), Hash([2; 32])], 1));

    let file = proofs[0].to_string();
    let carried = Equivocation::parse(file.as_bytes()).unwrap();
    assert_eq!(carried, proofs[0]);
    assert_eq!(carried.verify(&verifier).unwrap(), guilt);
    for at in 0..file.len() {
        let mut changed = file.clone().into_bytes();
        changed[at] ^= 1;
        let accepted = Equivocation::parse(&changed).is_ok_and(|proof| proof.verify(&verifier).is_ok());
        assert!(!accepted, "byte {at}");
    }
    let others = support::committee(1, 7);
    let strangers = support::committee(2, 4);
    assert!(carried.verify(&others.verifier()).is_ok(), "guilt does not depend on the quorum");
    assert!(matches!(carried.verify(&strangers.verifier()), Err(EquivocationError::Cosignature(_))));
}

#[test]
fn consistent_heads_prove_nothing() {
    let committee = committee(1, 4);
    let verifier = committee.verifier();
    let first = committee.sign(head(&committee, 9, 1), &[0, 1, 2]);
    let same = committee.sign(head(&committee, 9, 1), &[0, 1, 3]);
    let later = committee.sign(head(&committee, 10, 2), &[0, 1, 2]);
    let elsewhere = committee.sign(head(&committee, 9, 2), &[3]);
    for other in [&same, &later, &elsewhere] {
        assert_eq!(Equivocation::between(&verifier, &first, other), []);
    }
    let mut forged = committee.sign(head(&committee, 9, 2), &[0]);
    forged.signatures[0].signature[20] ^= 1;
    assert_eq!(Equivocation::between(&verifier, &first, &forged), [], "no member is framed by a forged line");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_are_no_evidence(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Evidence::parse(&bytes).is_err());
        prop_assert!(Equivocation::parse(&bytes).is_err());
    }

    #[test]
    fn spliced_files_are_rejected(
        index in 0u64..11, from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(),
        noise in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let committee = committee(1, 4);
        let file = evidence(&committee, index, 11).to_string().into_bytes();
        let (from, to) = (from.index(file.len()), to.index(file.len()));
        let (from, to) = (from.min(to), from.max(to));
        let mut changed = file.clone();
        changed.splice(from..to, noise);
        prop_assume!(changed != file);
        prop_assert!(!accepts(&committee, &changed));
        if let Ok(parsed) = Evidence::parse(&changed) {
            prop_assert_eq!(parsed.to_string().into_bytes(), changed, "what parses is canonical");
        }
    }
}
