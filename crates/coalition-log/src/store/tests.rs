//! The store on a disk that fails: what cannot be tested from outside.

use coalition::{Roster, RosterMember, UniqueId};

use super::{Appended, JOURNAL_FILE, Store, StoreError, StoreOptions};
use crate::checkpoint::Cosigner;
use crate::entry::{Entry, WriteId};

fn organism() -> UniqueId {
    UniqueId::from_bytes([1; 32])
}

fn roster() -> Roster {
    let public = |seed: u8| ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes();
    let member =
        RosterMember { name: "m0".into(), checkpoint_key: public(1), consensus_key: public(2), peer_id: public(3) };
    Roster::new(vec![member]).expect("one member is a roster")
}

fn entry(index: u64) -> Entry {
    let write_id = WriteId([3; 16]);
    Entry { index, tick: None, time_ms: index, write_id, kind: "test".into(), body: vec![7; 100], evidence: Vec::new() }
}

fn open(dir: &std::path::Path) -> Store {
    Store::open(dir, organism(), &roster(), StoreOptions::default()).expect("the log opens")
}

#[test]
fn a_full_disk_stops_the_store_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = open(dir.path());
    store.append(1, &[entry(0), entry(1)]).expect("the disk has room");
    store.journal.break_disk();
    let failed = store.append(2, &[entry(2)]).expect_err("the disk is full");
    assert!(matches!(&failed, StoreError::Fatal { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    assert!(failed.is_fatal());
    assert!(failed.to_string().contains(JOURNAL_FILE), "{failed}");
    assert_eq!(store.size(), 2, "what is not durable is not visible");

    let again = store.append(2, &[entry(2)]).expect_err("nothing is retried");
    assert!(matches!(&again, StoreError::Poisoned { first } if *first == failed.to_string()));
    let cosigner = Cosigner::new(organism(), "m0", ed25519_dalek::SigningKey::from_bytes(&[1; 32]));
    assert!(matches!(store.cosign(&cosigner, 1), Err(StoreError::Poisoned { .. })));
    assert!(matches!(store.rotate(), Err(StoreError::Poisoned { .. })));

    drop(store);
    let mut store = open(dir.path());
    assert_eq!((store.size(), store.last_height()), (2, Some(1)));
    assert!(matches!(store.append(2, &[entry(2)]), Ok(Appended::Stored(head)) if head.size == 3));
}

#[test]
fn a_guard_that_cannot_be_written_gives_no_signature() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = open(dir.path());
    store.append(1, &[entry(0)]).expect("the disk has room");
    store.guard.break_disk();
    let cosigner = Cosigner::new(organism(), "m0", ed25519_dalek::SigningKey::from_bytes(&[1; 32]));
    assert!(matches!(store.cosign(&cosigner, 1), Err(StoreError::Fatal { .. })));
    assert_eq!(store.guarded().size, 0);
    assert!(matches!(store.cosign(&cosigner, 1), Err(StoreError::Poisoned { .. })));
}
