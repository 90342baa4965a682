//! Who owns a log's directory, what this member signed, and what the committee certified.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use std::fs;

use coalition_log::checkpoint::RosterVerifier;
use coalition_log::store::{CHECKPOINT_FILE, GUARD_FILE, JOURNAL_FILE, Store, StoreError, StoreOptions};
use coalition_log::tree::Hash;
use support::disk::{Log, SMALL, check_whole, fill};
use support::{committee, entries, entry, organism};

#[test]
fn the_guard_stands_before_the_signature() {
    let (log, mut store) = Log::filled(StoreOptions::default(), 20);
    let cosigner = &log.committee.cosigners[2];
    let verifier = RosterVerifier::new(log.committee.organism, &log.committee.roster).unwrap();
    let line = store.cosign(cosigner, 1_700_000_000).unwrap();
    let guarded = store.guarded();
    assert_eq!((guarded.size, guarded.root), (20, store.head().root));
    let head = coalition_log::checkpoint::Checkpoint { organism: organism(1), size: 20, root: guarded.root };
    assert_eq!(verifier.verify_line(&head, &line).unwrap(), 2);

    assert!(store.cosign(cosigner, 1_700_000_001).is_ok(), "the same head may be signed again");
    assert!(matches!(store.cosign_at(19, cosigner, 1), Err(StoreError::SignBehind { asked: 19, signed: 20 })));
    assert!(matches!(store.cosign_at(21, cosigner, 1), Err(StoreError::OutOfRange { .. })));
    let stranger = &committee(2, 4).cosigners[2];
    assert!(matches!(store.cosign(stranger, 1), Err(StoreError::OtherCosigner { .. })));
    fill(&mut store, 40, 5);
    store.cosign_at(30, cosigner, 1).unwrap();
    drop(store);
    assert_eq!(log.open().guarded().size, 30);
}

#[test]
fn a_log_rolled_back_behind_its_guard_is_refused() {
    let (log, mut store) = Log::filled(StoreOptions::default(), 20);
    let older = fs::read(log.path(JOURNAL_FILE)).unwrap();
    fill(&mut store, 25, 5);
    store.cosign(&log.committee.cosigners[0], 1).unwrap();
    let root = store.head().root;
    drop(store);
    let newer = fs::read(log.path(JOURNAL_FILE)).unwrap();
    for cut in older.len()..newer.len() {
        fs::write(log.path(JOURNAL_FILE), &newer[..cut]).unwrap();
        let refused = log.try_open().unwrap_err();
        let StoreError::GuardAhead { guard, root: signed, log: size, .. } = refused else { panic!("{refused}") };
        assert_eq!((guard, signed, size), (25, root, 20));
        assert_eq!(fs::metadata(log.path(JOURNAL_FILE)).unwrap().len() as usize, cut, "evidence is kept");
    }
    fs::write(log.path(JOURNAL_FILE), newer).unwrap();
    check_whole(&log.open(), 25);
}

#[test]
fn another_history_than_the_one_signed_is_refused() {
    let (log, mut store) = Log::filled(StoreOptions::default(), 20);
    store.cosign(&log.committee.cosigners[0], 1).unwrap();
    let signed = store.head().root;
    drop(store);
    let other = Log::new(StoreOptions::default());
    let mut store = other.open();
    let mut changed = entries(0..22);
    changed[7].body = b"another history".to_vec();
    store.append(1, &changed).unwrap();
    let there = store.root_at(20).unwrap();
    drop(store);
    fs::copy(other.path(JOURNAL_FILE), log.path(JOURNAL_FILE)).unwrap();
    let refused = log.try_open().unwrap_err();
    let StoreError::GuardConflict { size, guard, log: found } = refused else { panic!("{refused}") };
    assert_eq!((size, guard, found), (20, signed, there));
}

#[test]
fn a_lost_or_damaged_guard_is_fatal_and_a_torn_one_is_not() {
    let (log, mut store) = Log::filled(StoreOptions::default(), 20);
    store.cosign_at(10, &log.committee.cosigners[0], 1).unwrap();
    let before = fs::read(log.path(GUARD_FILE)).unwrap();
    store.cosign_at(20, &log.committee.cosigners[0], 1).unwrap();
    drop(store);
    let after = fs::read(log.path(GUARD_FILE)).unwrap();
    // A torn write of the second signature's slot: its first bytes are new, the rest old.
    let changed: Vec<usize> = (0..after.len()).filter(|at| before[*at] != after[*at]).collect();
    for cut in changed[0]..=changed[changed.len() - 1] {
        fs::write(log.path(GUARD_FILE), [&after[..cut], &before[cut..]].concat()).unwrap();
        assert_eq!(log.open().guarded().size, 10, "cut at {cut}");
    }
    fs::write(log.path(GUARD_FILE), vec![0; 1024]).unwrap();
    assert!(matches!(log.try_open(), Err(StoreError::Malformed { .. })));
    fs::remove_file(log.path(GUARD_FILE)).unwrap();
    let refused = log.try_open().unwrap_err();
    assert!(matches!(&refused, StoreError::Missing { path } if *path == log.path(GUARD_FILE)), "{refused}");
    assert!(refused.is_fatal());
}

#[test]
fn lost_files_are_never_silently_recreated() {
    let (log, store) = Log::filled(StoreOptions::default(), 20);
    drop(store);
    fs::rename(log.path("identity"), log.path("kept")).unwrap();
    assert!(matches!(log.try_open(), Err(StoreError::Missing { .. })));
    fs::rename(log.path("kept"), log.path("identity")).unwrap();
    fs::remove_file(log.path(JOURNAL_FILE)).unwrap();
    assert!(matches!(log.try_open(), Err(StoreError::Missing { .. })));
}

#[test]
fn creation_can_be_interrupted_anywhere() {
    for missing in [&["identity"][..], &["identity", JOURNAL_FILE], &["identity", JOURNAL_FILE, GUARD_FILE]] {
        let (log, store) = Log::filled(StoreOptions::default(), 0);
        drop(store);
        missing.iter().for_each(|file| fs::remove_file(log.path(file)).unwrap());
        let mut store = log.open();
        fill(&mut store, 3, 1);
    }
}

#[test]
fn certified_checkpoints_are_kept_and_checked() {
    let (log, mut store) = Log::filled(SMALL, 700);
    let early = log.committee.certify(300, store.root_at(300).unwrap());
    assert!(store.put_certified(&early).unwrap());
    assert!(matches!(store.evidence(300), Err(StoreError::NotCertifiedYet { index: 300, certified: 300 })));
    let late = log.committee.certify_store(&mut store);
    assert!(!store.put_certified(&early).unwrap(), "an older certificate does not replace a newer one");
    let ahead = log.committee.certify(701, Hash([1; 32]));
    let refused = store.put_certified(&ahead).unwrap_err();
    assert!(matches!(refused, StoreError::CheckpointAhead { certified: 701, log: 700 }) && !refused.is_fatal());
    let diverged = log.committee.certify(650, Hash([1; 32]));
    let refused = store.put_certified(&diverged).unwrap_err();
    assert!(matches!(refused, StoreError::CheckpointConflict { size: 650, .. }) && refused.is_fatal());
    let foreign = committee(2, 4).certify(5, Hash([1; 32]));
    assert!(matches!(store.put_certified(&foreign), Err(StoreError::OtherOrganism { .. })));
    drop(store);
    let store = log.open();
    assert_eq!(store.certified(), Some(late));
    for index in [0, 255, 256, 699] {
        let evidence = store.evidence(index).unwrap();
        let verified = evidence.verify(log.committee.organism, &log.committee.roster).unwrap();
        assert_eq!(verified.entry(), &entry(index));
    }
    drop(store);
    log.flip(CHECKPOINT_FILE, 100);
    assert!(log.try_open().is_err());
}

#[test]
fn the_directory_has_one_owner_organism_and_schema() {
    let (log, store) = Log::filled(StoreOptions::default(), 3);
    assert!(matches!(log.try_open(), Err(StoreError::Locked { path }) if path == log.dir.path()));
    drop(store);
    let other = Store::open(log.dir.path(), organism(2), &log.committee.roster, log.options).unwrap_err();
    assert!(matches!(other, StoreError::OtherOrganism { found, expected, .. }
        if found == organism(1) && expected == organism(2)));
    let identity = fs::read_to_string(log.path("identity")).unwrap();
    fs::write(log.path("identity"), identity.replacen("store/1", "store/2", 1)).unwrap();
    assert!(matches!(log.try_open(), Err(StoreError::NewerSchema { found: 2, supported: 1, .. })));
    fs::write(log.path("identity"), "something else").unwrap();
    assert!(matches!(log.try_open(), Err(StoreError::Malformed { .. })));
}
