//! The chain of configs: what the old log says of its successor, what the new one says of its predecessor, their bytes, and
//! everything that must be refused.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use coalition::{
    CommitteeContent, OrganismRef, PublishedConfig, RetirementInstant, RetirementMarker, Roster, UniqueId,
};
use coalition_log::{
    checkpoint::{CertifiedCheckpoint, CertifyError},
    predecessor::{Predecessor, PredecessorError},
    retirement::{ApprovalError, ApprovedRetirement},
    successor::{MAX_SUCCESSOR_BYTES, Place, Successor, SuccessorError},
};
use ed25519_dalek::Verifier as _;
use proptest::prelude::*;
use support::{Handed, epoch, key};

fn config(name: &str, roster: Roster, predecessor: Option<UniqueId>) -> PublishedConfig {
    let content = CommitteeContent { service: "notes.v1".into(), roster, params: vec![1, 2], predecessor };
    PublishedConfig::builder(name).organism("notes", "notes", &content).build().unwrap()
}

fn id(config: &PublishedConfig) -> UniqueId {
    config.organism("notes").unwrap().id
}

fn members(seeds: &[u8]) -> Roster {
    epoch(UniqueId::hash(b"any"), seeds).roster
}

fn old() -> PublishedConfig {
    config("old", members(&[0, 1, 2, 3]), None)
}

fn new() -> PublishedConfig {
    config("new", members(&[10, 11, 12, 13]), Some(id(&old())))
}

fn places() -> Vec<Place> {
    let place = |member, at: &str| Place { member, at: at.to_owned() };
    vec![place(2, "127.0.0.1:7,http://r.example/"), place(0, "[::1]:9"), place(0, "late:1"), place(1, "no spaces")]
}

fn successor() -> Successor {
    Successor::new(new(), places()).unwrap()
}

fn rotation(to: UniqueId) -> Vec<u8> {
    RetirementMarker::rotation(RetirementInstant::AtSequence(3), OrganismRef::by_stable_id("notes", to)).to_bytes()
}

fn approved(marker: &[u8], successor: &Successor) -> ApprovedRetirement {
    let marker = RetirementMarker::from_bytes(marker).unwrap();
    let approve =
        |member: u8| ApprovedRetirement::approve_with(&key(member + 1), member, id(&old()), &marker, Some(successor));
    ApprovedRetirement::new(&marker, [0, 1, 3].map(approve).to_vec()).with_successor(Some(successor.clone()))
}

fn verifier() -> coalition_log::checkpoint::RosterVerifier {
    epoch(id(&old()), &[0, 1, 2, 3]).verifier()
}

#[test]
fn the_bytes_of_a_successor_are_pinned() {
    let config = new().to_bytes();
    let length = u32::try_from(config.len()).unwrap().to_be_bytes();
    let expected = [&length[..], &config, &[2, 0, 7], b"[::1]:9", &[2, 29], b"127.0.0.1:7,http://r.example/"].concat();
    assert_eq!(successor().to_bytes(), expected, "first of each member, what is no text left out, in order");
    assert_eq!(Successor::from_bytes(&expected).unwrap(), successor());

    let marker = rotation(id(&new()));
    let body = approved(&marker, &successor()).to_bytes();
    let head = [&u32::try_from(marker.len()).unwrap().to_be_bytes()[..], &marker, &[3, 0]].concat();
    assert_eq!(body[..head.len()], head);
    assert_eq!(body[head.len() + 3 * 65 - 1..], expected, "the successor stands behind the approvals");
    let message =
        [b"coalition/retirement-approval/v2", &id(&old()).as_bytes()[..], &head[..4 + marker.len()], &expected]
            .concat();
    let signature = body[head.len()..head.len() + 64].try_into().unwrap();
    key(1).verifying_key().verify(&message, &ed25519_dalek::Signature::from_bytes(signature)).unwrap();
}

#[test]
fn a_quorum_approves_the_config_with_the_marker() {
    let marker = rotation(id(&new()));
    let whole = approved(&marker, &successor());
    let retirement = ApprovedRetirement::from_bytes(&whole.to_bytes()).unwrap().verify(&verifier()).unwrap();
    assert_eq!(retirement.config(), Some(&successor()));
    let next = retirement.next_organism(id(&old())).unwrap().unwrap();
    assert_eq!((next.id, next.roster()), (id(&new()), &members(&[10, 11, 12, 13])));
    // Another config, other places, or none, were not approved.
    let elsewhere = Successor::new(new(), Vec::new()).unwrap();
    for changed in [None, Some(elsewhere)] {
        let refused = whole.clone().with_successor(changed).verify(&verifier()).unwrap_err();
        assert!(matches!(refused, ApprovalError::NotApproved(_)), "{refused}");
    }
    let parsed = RetirementMarker::from_bytes(&marker).unwrap();
    let plain = |member: u8| ApprovedRetirement::approve(&key(member + 1), member, id(&old()), &parsed);
    let plain = ApprovedRetirement::new(&parsed, [0, 1, 3].map(plain).to_vec());
    assert_eq!(plain.verify(&verifier()).unwrap().config(), None, "without a config as ever");
    assert!(plain.with_successor(Some(successor())).verify(&verifier()).is_err());
}

#[test]
fn a_config_that_is_not_the_replacements_is_refused() {
    let refused = |to: UniqueId, successor: &Successor| match approved(&rotation(to), successor).verify(&verifier()) {
        Err(ApprovalError::Successor(error)) => error,
        other => panic!("{other:?}"),
    };
    let of = |config: PublishedConfig| Successor::new(config, Vec::new()).unwrap();
    assert!(matches!(refused(id(&old()), &successor()), SuccessorError::OtherOrganism { .. }));
    let alone = config("new", members(&[10, 11, 12, 13]), None);
    assert!(matches!(refused(id(&alone), &of(alone)), SuccessorError::OtherPredecessor { found: None, .. }));
    let others = config("new", members(&[10, 11, 12, 13]), Some(id(&new())));
    assert!(matches!(refused(id(&others), &of(others)), SuccessorError::OtherPredecessor { .. }));
    let nowhere = Successor::new(new(), vec![Place { member: 4, at: "a:1".into() }]).unwrap();
    let error = refused(id(&new()), &nowhere);
    assert_eq!(error, SuccessorError::UnknownMember { member: 4, members: 4 });
    let retired = RetirementMarker::retired(RetirementInstant::AtSequence(3)).to_bytes();
    let error = approved(&retired, &successor()).verify(&verifier()).unwrap_err();
    assert_eq!(error, SuccessorError::NoOrganism.into());
    let content = CommitteeContent {
        service: "notes.v1".into(),
        roster: members(&[10]),
        params: vec![0; MAX_SUCCESSOR_BYTES],
        predecessor: Some(id(&old())),
    };
    let large = PublishedConfig::builder("new").organism("notes", "notes", &content).build().unwrap();
    assert!(matches!(Successor::new(large, Vec::new()), Err(SuccessorError::TooLong { .. })));
}

/// The old log after two handovers.
fn handed() -> Handed {
    let mut log = Handed::start(id(&old()), &[0, 1, 2, 3], 5);
    log.hand_over(&[0, 1, 2, 4], 3);
    log.hand_over(&[0, 1, 2, 4, 5], 2);
    log
}

fn head(log: &Handed, size: u64) -> CertifiedCheckpoint {
    log.head(size, log.epoch_of(size))
}

fn predecessor(log: &Handed, size: u64) -> Predecessor {
    let handovers = log.chain().proofs(0, size);
    Predecessor::new(old(), handovers, &head(log, size)).unwrap()
}

#[test]
fn the_bytes_of_a_predecessor_are_pinned() {
    let log = handed();
    let part = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let proof = &log.proofs[0];
    let path: Vec<u8> = proof.path.iter().flat_map(|hash| hash.0).collect();
    let expected = [
        part(&old().to_bytes()),
        vec![0, 1],
        part(&proof.entry),
        vec![u8::try_from(proof.path.len()).unwrap()],
        path,
        part(proof.checkpoint.as_bytes()),
        part(head(&log, 8).note().to_string().as_bytes()),
    ]
    .concat();
    assert_eq!(predecessor(&log, 8).to_bytes(), expected);
    assert_eq!(Predecessor::from_bytes(&expected).unwrap(), predecessor(&log, 8));
}

#[test]
fn every_head_of_the_predecessor_holds() {
    let log = handed();
    for size in 1..=log.size() {
        let verified = predecessor(&log, size).verify(id(&old())).unwrap();
        assert_eq!((verified.size(), verified.root()), (size, log.leaves().root(size as usize)));
    }
}

#[test]
fn a_head_that_is_not_the_predecessors_is_refused() {
    let log = handed();
    let good = predecessor(&log, 8);
    let refused = |predecessor: &Predecessor, of| predecessor.verify(of).unwrap_err();
    let with = |config: PublishedConfig, handovers: &[_], head: &CertifiedCheckpoint| {
        Predecessor::new(config, handovers.to_vec(), head).unwrap()
    };
    assert!(matches!(refused(&good, id(&new())), PredecessorError::OtherOrganism { .. }), "another predecessor");
    let derived = with(new(), &log.proofs[..1], &head(&log, 8));
    assert!(matches!(refused(&derived, id(&old())), PredecessorError::OtherOrganism { .. }), "another config");
    let other = Handed::start(id(&new()), &[0, 1, 2, 3], 5);
    assert!(matches!(refused(&with(old(), &[], &head(&other, 4)), id(&old())), PredecessorError::OtherLog { .. }));
    let fewer = with(old(), &[], &head(&log, 8));
    assert!(matches!(refused(&fewer, id(&old())), PredecessorError::NotCertified(_)), "signed by a newcomer");
    let more = with(old(), &log.proofs, &head(&log, 8));
    let error = refused(&more, id(&old()));
    assert_eq!(error, PredecessorError::Handovers { found: 2, expected: 1, size: 8 });
    assert!(matches!(
        refused(&with(old(), &log.proofs[1..], &head(&log, 8)), id(&old())),
        PredecessorError::Handover(_)
    ));

    // Two of four, and a forged signature: what no verifier would hand out.
    let text = head(&log, 4).note().to_string();
    let (lines, last) = text.trim_end().rsplit_once('\n').unwrap();
    let swap = |note: &str| {
        let good = predecessor(&log, 4).to_bytes();
        let kept = good.len() - text.len() - 4;
        let length = u32::try_from(note.len()).unwrap().to_be_bytes();
        Predecessor::from_bytes(&[&good[..kept], &length, note.as_bytes()].concat()).unwrap()
    };
    let few = refused(&swap(&format!("{lines}\n")), id(&old()));
    assert_eq!(few, PredecessorError::NotCertified(CertifyError::NoQuorum { have: 2, need: 3 }));
    let (name, signature) = last.rsplit_once(' ').unwrap();
    let forged: String =
        signature.char_indices().map(|(at, c)| if at == 40 { if c == 'A' { 'B' } else { 'A' } } else { c }).collect();
    let forged = refused(&swap(&format!("{lines}\n{name} {forged}\n")), id(&old()));
    assert!(matches!(forged, PredecessorError::NotCertified(_)), "{forged}");
    let twice = refused(&swap(&format!("{lines}\n{last}\n{last}\n")), id(&old()));
    assert!(matches!(twice, PredecessorError::NotCertified(CertifyError::NotCanonical { .. })), "{twice}");
}

proptest! {
    #[test]
    fn no_changed_byte_is_believed(at in any::<prop::sample::Index>(), flip in 1u8..=255) {
        let log = handed();
        let mut bytes = predecessor(&log, 8).to_bytes();
        let place = at.index(bytes.len());
        bytes[place] ^= flip;
        let verified = Predecessor::from_bytes(&bytes).ok().and_then(|changed| changed.verify(id(&old())).ok());
        prop_assert!(verified.is_none());

        let mut bytes = approved(&rotation(id(&new())), &successor()).to_bytes();
        let place = at.index(bytes.len());
        bytes[place] ^= flip;
        let verified = ApprovedRetirement::from_bytes(&bytes).ok().and_then(|changed| changed.verify(&verifier()).ok());
        prop_assert!(verified.is_none());
    }

    #[test]
    fn hostile_bytes_are_refused_or_canonical(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let config = new().to_bytes();
        let length = u32::try_from(config.len()).unwrap().to_be_bytes();
        for bytes in [bytes.clone(), [&length[..], &config, &bytes].concat()] {
            if let Ok(parsed) = Successor::from_bytes(&bytes) {
                prop_assert_eq!(parsed.to_bytes(), bytes.clone());
            }
            if let Ok(parsed) = Predecessor::from_bytes(&bytes) {
                prop_assert_eq!(parsed.to_bytes(), bytes);
            }
        }
    }
}
