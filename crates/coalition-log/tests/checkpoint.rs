//! Checkpoints and cosignatures: golden vectors, strict parsing, quorums, and an independent note implementation.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use coalition_log::checkpoint::{
    CertifyError, Checkpoint, Cosigner, NoteError, RosterError, RosterVerifier, SignatureLine, SignedCheckpoint,
    key_id, vkey,
};
use coalition_log::tree::Hash;
use ed25519_dalek::VerifyingKey;
use proptest::prelude::*;
use support::{committee, organism};

fn checkpoint(size: u64) -> Checkpoint {
    Checkpoint { organism: organism(0xAB), size, root: Hash([size as u8; 32]) }
}

/// Made with another Ed25519 implementation (PyCA cryptography): secret key 01 × 32, organism ab × 32, member m0.
const GOLDEN: &str = "coalition.log/abababababababababababababababababababababababababababababababab\n\
    20852163\n\
    QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=\n\
    \n\
    \u{2014} coalition.log/abababababababababababababababababababababababababababababababab/m0 Xt0WDgAAAABkGFDL42p6aMCac/6UYAKswc6CMnS3sNLD0GaIOEESf9XNReILqwbZ/HfJ0ic0lg0YjJS+aNFl9eoVb+5XviiNhAWDAw==\n";

#[test]
fn golden_cosignature() {
    let committee = committee(0xAB, 4);
    let head = Checkpoint { organism: committee.organism, size: 20_852_163, root: Hash([0x42; 32]) };
    let line = committee.cosigners[0].sign(&head, 1_679_315_147).unwrap();
    let note = SignedCheckpoint { checkpoint: head, signatures: vec![line] };
    assert_eq!(note.to_string(), GOLDEN);
    assert_eq!(SignedCheckpoint::parse(GOLDEN.as_bytes()).unwrap(), note);
}

/// A witness key published by its operator, with signature type 0x04.
#[test]
fn published_verifier_key() {
    let published = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2";
    let key = hex::decode("ebcdeb78e7fdb2ef9227b2c1ef11e94600b55b4d6d9a57877e31ee89e59adc36").unwrap();
    let key: [u8; 32] = key.try_into().unwrap();
    assert_eq!(vkey("remora.n621.de", &key), published);
    assert_eq!(hex::encode(key_id("remora.n621.de", &key)), "da77ade7");
}

/// The example of C2SP's `tlog-cosignature` has two signature lines; the second is a `cosignature/v1`.
#[test]
fn c2sp_example_lines() {
    let lines = "\u{2014} example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
        \u{2014} witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";
    let note = format!("{}\n{lines}", checkpoint(20_852_163).body());
    let parsed = SignedCheckpoint::parse(note.as_bytes()).unwrap();
    assert_eq!(parsed.to_string(), note);
    assert_eq!(parsed.signatures[0].as_cosignature(), None);
    assert_eq!(parsed.signatures[1].name, "witness.example.com/w1");
    assert_eq!(parsed.signatures[1].key_id, [0x8D, 0x66, 0xCF, 0x3F]);
    assert_eq!(parsed.signatures[1].as_cosignature().unwrap().0, 1_679_315_147);
}

struct Witness(String, u32, VerifyingKey);

impl signed_note::Verifier for Witness {
    fn name(&self) -> &str {
        &self.0
    }

    fn key_id(&self) -> u32 {
        self.1
    }

    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let (time, signature) = signature.split_first_chunk::<8>().unwrap();
        let head = format!("cosignature/v1\ntime {}\n", u64::from_be_bytes(*time));
        let message = [head.as_bytes(), text].concat();
        self.2.verify_strict(&message, &signature.try_into().unwrap()).is_ok()
    }
}

/// Our notes, read and verified by the `signed_note` and `tlog_tiles` crates.
#[test]
fn third_party_note_reader_accepts() {
    let committee = committee(0xAB, 4);
    let head = checkpoint(77);
    let note = committee.sign(head, &[0, 1, 2, 3]).to_string();
    let theirs = signed_note::Note::from_bytes(note.as_bytes()).unwrap();
    assert_eq!(theirs.to_bytes(), note.as_bytes());
    let witnesses = committee.cosigners.iter().map(|cosigner| {
        let typed = [&[4], &cosigner.public_key()[..]].concat();
        let id = signed_note::key_id(cosigner.name(), &typed);
        let key = VerifyingKey::from_bytes(&cosigner.public_key()).unwrap();
        Box::new(Witness(cosigner.name().into(), id, key)) as Box<dyn signed_note::Verifier>
    });
    let known = signed_note::VerifierList::new(witnesses.collect());
    let (verified, unverified) = theirs.verify(&known).unwrap();
    assert_eq!((verified.len(), unverified.len()), (4, 0));
    let parsed = tlog_tiles::checkpoint::Checkpoint::from_bytes(theirs.text()).unwrap();
    assert_eq!((parsed.size(), parsed.hash().0), (77, head.root.0));
    assert_eq!(parsed.origin(), format!("coalition.log/{}", "ab".repeat(32)));
}

#[test]
fn quorum_counts_distinct_members() {
    let committee = committee(0xAB, 4);
    let verifier = committee.verifier();
    let certified = verifier.certify(&committee.sign(checkpoint(3), &[3, 0, 2])).unwrap();
    assert_eq!(certified.members(), [0, 2, 3]);
    assert_eq!(certified.timestamps_s(), [1_700_000_000, 1_700_000_002, 1_700_000_003]);
    assert_eq!(verifier.certify_canonical(certified.note()).unwrap(), certified);

    let repeated = committee.sign(checkpoint(3), &[0, 1, 1, 0]);
    assert_eq!(verifier.certify(&repeated), Err(CertifyError::NoQuorum { have: 2, need: 3 }));
    let unordered = committee.sign(checkpoint(3), &[0, 2, 1]);
    assert_eq!(verifier.certify_canonical(&unordered), Err(CertifyError::NotCanonical { line: 3 }));
    let none = SignedCheckpoint { checkpoint: checkpoint(3), signatures: Vec::new() };
    assert_eq!(verifier.certify(&none), Err(CertifyError::NoQuorum { have: 0, need: 3 }));
}

#[test]
fn unknown_lines_are_ignored_and_wrong_ones_reject_the_note() {
    let committee = committee(0xAB, 4);
    let verifier = committee.verifier();
    let mut note = committee.sign(checkpoint(3), &[0, 1, 2]);
    let stranger = SignatureLine { name: "witness.example.com".into(), key_id: [1; 4], signature: vec![0; 2428] };
    note.signatures.insert(1, stranger);
    let certified = verifier.certify(&note).unwrap();
    assert_eq!(certified.members(), [0, 1, 2]);
    assert_eq!(certified.note().signatures.len(), 3, "a certificate carries only what was counted");
    assert!(matches!(verifier.certify_canonical(&note), Err(CertifyError::UnknownCosigner { .. })));

    let mut forged = committee.sign(checkpoint(3), &[0, 1, 2, 3]);
    forged.signatures[3].signature[70] ^= 1;
    assert_eq!(verifier.certify(&forged), Err(CertifyError::BadSignature { member: "m3".into() }));
    let mut late = committee.sign(checkpoint(3), &[0, 1, 2, 3]);
    late.signatures[2].signature[..8].copy_from_slice(&u64::MAX.to_be_bytes());
    assert_eq!(verifier.certify(&late), Err(CertifyError::BadSignature { member: "m2".into() }));
    let mut short = committee.sign(checkpoint(3), &[0, 1, 2, 3]);
    short.signatures[0].signature.pop();
    assert_eq!(verifier.certify(&short), Err(CertifyError::BadSignature { member: "m0".into() }));
}

#[test]
fn a_signature_of_one_log_or_head_is_none_of_another() {
    let (ours, theirs) = (committee(0xAB, 4), committee(0xCD, 4));
    let foreign = theirs.sign(Checkpoint { organism: theirs.organism, ..checkpoint(3) }, &[0, 1, 2]);
    let expected = CertifyError::OtherOrganism { found: theirs.organism, expected: ours.organism };
    assert_eq!(ours.verifier().certify(&foreign), Err(expected));
    assert_eq!(ours.cosigners[0].sign(&foreign.checkpoint, 1), None);

    let mut moved = ours.sign(checkpoint(3), &[0, 1, 2]);
    moved.checkpoint.size = 4;
    assert_eq!(ours.verifier().certify(&moved), Err(CertifyError::BadSignature { member: "m0".into() }));
    let mut renamed = ours.sign(checkpoint(3), &[0, 1, 2]);
    renamed.signatures[2].name = ours.cosigners[3].name().into();
    assert_eq!(ours.verifier().certify(&renamed), Err(CertifyError::NoQuorum { have: 2, need: 3 }));
}

#[test]
fn cosignatures_are_assembled_as_they_arrive() {
    let committee = committee(0xAB, 7);
    let mut assembly = committee.verifier().assemble(checkpoint(9)).unwrap();
    for (have, member) in [(1, 6), (2, 2), (2, 2), (3, 0), (4, 5)] {
        let line = committee.cosigners[member].sign(assembly.checkpoint(), 5).unwrap();
        assert_eq!(assembly.add(line).unwrap(), member);
        assert_eq!(assembly.have(), have);
        assert_eq!(assembly.certificate(), Err(CertifyError::NoQuorum { have, need: 5 }));
    }
    let other = committee.cosigners[3].sign(&checkpoint(8), 5).unwrap();
    assert_eq!(assembly.add(other), Err(CertifyError::BadSignature { member: "m3".into() }));
    assembly.add(committee.cosigners[3].sign(assembly.checkpoint(), 5).unwrap()).unwrap();
    assert_eq!(assembly.certificate().unwrap().members(), [0, 2, 3, 5, 6]);
    assert!(committee.verifier().assemble(Checkpoint { organism: organism(1), ..checkpoint(9) }).is_err());
}

#[test]
fn weak_and_impossible_keys_are_refused() {
    let good = committee(0xAB, 4);
    let small = (2u8..).map(|y| [&[y][..], &[0; 31]].concat().try_into().unwrap());
    let off_the_curve: [u8; 32] = small.into_iter().find(|key| VerifyingKey::from_bytes(key).is_err()).unwrap();
    for key in [[0; 32], off_the_curve] {
        let mut members = good.roster.members().to_vec();
        members[2].checkpoint_key = key;
        let roster = coalition::Roster::new(members).unwrap();
        let refused = RosterVerifier::new(good.organism, &roster).unwrap_err();
        assert_eq!(refused, RosterError::Key { member: "m2".into(), key });
    }
}

#[test]
fn policy_names_every_member_and_the_quorum() {
    let committee = committee(0xAB, 4);
    let policy = committee.verifier().policy();
    let lines: Vec<&str> = policy.lines().collect();
    assert_eq!(lines.len(), 7);
    assert!(lines[1].starts_with("witness m0 coalition.log/abab"), "{policy}");
    assert_eq!(lines[5..], ["group committee 3 m0 m1 m2 m3", "quorum committee"]);
    assert_eq!(lines[1].split(' ').nth(2), Some(committee.verifier().vkeys()[0].as_str()));
}

#[test]
fn keys_are_not_printed() {
    let cosigner = Cosigner::new(organism(1), "m0", support::key(0x5A));
    let shown = format!("{cosigner:?}");
    assert!(shown.contains("redacted") && !shown.contains("90, 90") && !shown.contains("5a5a"), "{shown}");
}

#[test]
fn parsing_is_strict() {
    let good = committee(0xAB, 4).sign(checkpoint(12), &[0, 1]).to_string();
    assert!(SignedCheckpoint::parse(good.as_bytes()).is_ok());
    let origin = format!("coalition.log/{}", "ab".repeat(32));
    let broken = [
        good.replacen("\n12\n", "\n012\n", 1),
        good.replacen("\n12\n", "\n+12\n", 1),
        good.replacen("\n12\n", "\n12 \n", 1),
        good.replacen("\n12\n", "\n18446744073709551616\n", 1),
        good.replacen("=\n\n", "=\nextension\n\n", 1),
        good.replacen("=\n\n", "=\n", 1),
        good.replacen("=\n\n", "=\n\n\n", 1),
        good.replacen("coalition.log/ab", "coalition.log/AB", 1),
        good.replacen("coalition.log/", "example.com/", 1),
        good.replacen(&origin, "coalition.log/abab", 1),
        good.replacen("\u{2014} ", "- ", 1),
        good.replacen("\u{2014} ", "\u{2014}", 1),
        good.replacen("/m1 ", "/m1  ", 1),
        good.replacen("/m1 ", "/m+1 ", 1),
        good.replacen("/m1 ", "/m\u{1}1 ", 1),
        good.replacen("/m1 ", "/m\u{a0}1 ", 1),
        good.replacen("\n12\n", "\r\n12\r\n", 1),
        format!("{good}\n"),
        good.trim_end().to_owned(),
        good.replacen("DAwM", "DAw\n", 1),
    ];
    for (i, note) in broken.iter().enumerate() {
        assert_ne!(*note, good, "case {i} changes nothing");
        assert!(SignedCheckpoint::parse(note.as_bytes()).is_err(), "case {i}: {note}");
    }
    assert_eq!(SignedCheckpoint::parse(&[b'a'; 70_000]), Err(NoteError::TooLong { bytes: 70_000 }));
    assert_eq!(SignedCheckpoint::parse(b"abc\xFF"), Err(NoteError::NotText { at: 3 }));
}

proptest! {
    #[test]
    fn arbitrary_notes_round_trip_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(note) = SignedCheckpoint::parse(&bytes) {
            prop_assert_eq!(note.to_string().into_bytes(), bytes);
        }
    }

    #[test]
    fn mutated_notes_round_trip_or_fail(at in any::<prop::sample::Index>(), value in any::<u8>(), insert in any::<bool>()) {
        let mut bytes = GOLDEN.as_bytes().to_vec();
        let at = at.index(bytes.len());
        if insert { bytes.insert(at, value) } else { bytes[at] = value }
        if let Ok(note) = SignedCheckpoint::parse(&bytes) {
            prop_assert_eq!(note.to_string().into_bytes(), bytes);
        }
    }
}
