//! The Python verifier written from the protocol page alone agrees with ours, file by file.
//!
//! Skipped, saying so, where Python or its package `cryptography` is missing.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]
#![allow(clippy::print_stderr, reason = "a skipped test must say so")]

mod support;

use std::path::Path;
use std::process::Command;

use coalition_log::evidence::Evidence;
use support::{Committee, Handed, committee, evidence, organism};

fn python_is_usable() -> bool {
    let probe = "import cryptography.hazmat.primitives.asymmetric.ed25519";
    Command::new("python3").args(["-c", probe]).output().is_ok_and(|output| output.status.success())
}

/// Good files, and files broken in every way we can think of.
fn cases(committee: &Committee) -> Vec<Vec<u8>> {
    let mut cases = Vec::new();
    for size in 1..=9 {
        cases.extend((0..size).map(|index| evidence(committee, index, size).to_string().into_bytes()));
    }
    cases.push(evidence(committee, 299, 300).to_string().into_bytes());
    let file = evidence(committee, 5, 11).to_string();
    for at in 0..file.len() {
        let mut changed = file.clone().into_bytes();
        changed[at] ^= 1 << (at % 8);
        cases.push(changed);
        if at % 7 == 0 {
            cases.push(file.as_bytes()[..at].to_vec());
            let mut doubled = file.clone().into_bytes();
            doubled.insert(at, file.as_bytes()[at]);
            cases.push(doubled);
        }
    }
    let lines: Vec<&str> = file.split_inclusive('\n').collect();
    for at in 1..lines.len() {
        let mut swapped = lines.clone();
        swapped.swap(at - 1, at);
        cases.push(swapped.concat().into_bytes());
        let mut removed = lines.clone();
        removed.remove(at);
        cases.push(removed.concat().into_bytes());
    }
    for (from, to) in [("path 4", "path 04"), ("index 5", "index +5"), ("/m2 ", "/m3 "), ("\n", "\r\n"), ("=\n", "\n")]
    {
        cases.push(file.replacen(from, to, 1).into_bytes());
    }
    cases
}

/// What Python says of each case, against what this crate says; answers how many are good.
fn compare(committee: &Committee, cases: &[Vec<u8>]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    for (i, case) in cases.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{i:05}")), case).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/verify_evidence.py");
    let mut command = Command::new("python3");
    command.current_dir(dir.path()).arg(script);
    command.args(["--organism", &hex::encode(committee.organism.as_bytes())]);
    for member in committee.roster.members() {
        command.args(["--member", &format!("{}={}", member.name, hex::encode(member.checkpoint_key))]);
    }
    command.args((0..cases.len()).map(|i| format!("{i:05}")));
    let output = command.output().unwrap();
    let verdicts = String::from_utf8(output.stdout).unwrap();
    let verdicts: Vec<&str> = verdicts.lines().collect();
    assert_eq!(verdicts.len(), cases.len(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut good = 0;
    for (case, verdict) in cases.iter().zip(verdicts) {
        let ours = Evidence::parse(case).and_then(|proof| proof.verify(committee.organism, &committee.roster));
        assert_eq!(ours.is_ok(), verdict.starts_with("ok "), "{verdict}, we say {ours:?}");
        good += usize::from(ours.is_ok());
    }
    assert_eq!(output.status.code(), Some(1));
    good
}

#[test]
fn python_verifier_agrees_on_good_and_broken_files() {
    if !python_is_usable() {
        eprintln!("skipped: python3 with the package cryptography is not installed");
        return;
    }
    let committee = committee(1, 4);
    assert_eq!(compare(&committee, &cases(&committee)), 46, "every good file, and only those");
}

#[test]
fn python_verifier_goes_over_handovers() {
    if !python_is_usable() {
        eprintln!("skipped: python3 with the package cryptography is not installed");
        return;
    }
    let mut log = Handed::start(organism(1), &[0, 1, 2, 3], 3);
    for seeds in [&[0, 1, 2, 4][..], &[5, 0, 1, 2, 4], &[5, 0, 1, 4]] {
        log.hand_over(seeds, 2);
    }
    let mut cases: Vec<Vec<u8>> = (1..=log.size()).map(|size| bytes(&log.evidence(2.min(size - 1), size))).collect();
    let good = cases.len();
    let proofs = &log.proofs;
    let chains = [vec![], proofs[..1].to_vec(), proofs[1..2].to_vec(), proofs.clone(), vec![proofs[0].clone(); 2]];
    cases.extend(chains.map(|proofs| bytes(&log.evidence(2, 9).with_handovers(proofs))));
    // Handovers that keep every rule but one.
    for (seeds, by) in [(&[5, 0, 1, 4, 3][..], &[0, 1, 2][..]), (&[5, 0, 1, 4], &[0, 1, 2]), (&[5, 0, 1], &[0, 1])] {
        let (_, proof) = log.proof(&log.approved(seeds, by));
        let proofs = [&proofs[..], &[proof]].concat();
        cases.push(bytes(&log.evidence(2, log.size()).with_handovers(proofs)));
    }
    let file = bytes(&log.evidence(10, 11));
    for at in (0..file.len()).step_by(3) {
        let mut changed = file.clone();
        changed[at] ^= 1 << (at % 8);
        cases.push(changed);
    }
    // One chain was cut by the handover from four members to the same four and another: they are a quorum of both.
    assert_eq!(compare(&log.committees[0], &cases), good + 1, "every good file, and only those");
}

fn bytes(evidence: &Evidence) -> Vec<u8> {
    evidence.to_string().into_bytes()
}

#[test]
fn python_verifier_checks_pointers() {
    if !python_is_usable() {
        eprintln!("skipped: python3 with the package cryptography is not installed");
        return;
    }
    let committee = committee(1, 4);
    let dir = tempfile::tempdir().unwrap();
    let proof = evidence(&committee, 5, 11);
    let file = dir.path().join("evidence");
    std::fs::write(&file, proof.to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/verify_evidence.py");
    let run = |pointer: String| {
        let mut command = Command::new("python3");
        command.arg(&script).args(["--organism", &hex::encode(committee.organism.as_bytes())]);
        for member in committee.roster.members() {
            command.args(["--member", &format!("{}={}", member.name, hex::encode(member.checkpoint_key))]);
        }
        command.args(["--pointer", &pointer]).arg(&file).output().unwrap()
    };
    let right = proof.claimed_pointer();
    assert!(run(right.to_string()).status.success());
    assert!(!run(coalition::EvidencePointer { index: 6, ..right }.to_string()).status.success());
}
