//! The entry's bytes: golden vector, limits, strictness.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use coalition::{EvidencePointer, UniqueId};
use coalition_log::entry::{
    ENTRY_VERSION, Entry, EntryError, MAX_BODY_BYTES, MAX_ENTRY_BYTES, MAX_EVIDENCE, MAX_KIND_BYTES, WriteId,
    check_kind,
};
use proptest::prelude::*;

fn golden() -> Entry {
    let digest = UniqueId::from_bytes([0xDD; 32]);
    Entry {
        index: 5,
        tick: Some(1000),
        time_ms: 1_700_000_000_123,
        write_id: WriteId([0xEE; 16]),
        kind: "compute.grant".into(),
        body: b"hello".to_vec(),
        evidence: vec![EvidencePointer { organism: UniqueId::from_bytes([0xCC; 32]), index: 7, digest }],
    }
}

/// Bytes were put together by hand, the hash by Python's hashlib.
#[test]
fn golden_entry() {
    let bytes = golden().encode().unwrap();
    let expected = [
        "01",
        "0000000000000005",
        "00000000000003e8",
        "0000018bcfe5687b",
        &"ee".repeat(16),
        "0d636f6d707574652e6772616e74",
        "0000000568656c6c6f",
        "01",
        &"cc".repeat(32),
        "0000000000000007",
        &"dd".repeat(32),
    ];
    assert_eq!(hex::encode(&bytes), expected.concat());
    assert_eq!(Entry::decode(&bytes).unwrap(), golden());
    assert_eq!(
        golden().leaf_hash().unwrap().to_string(),
        "891e0509580a634145f3d247e4fdeb342819ae3ad1bd7c0dc5013d17bb12f3c4"
    );
    let pointer = golden().pointer(support::organism(1)).unwrap();
    assert_eq!(pointer.index, 5);
    assert_eq!(pointer.digest.as_bytes(), &golden().leaf_hash().unwrap().0);
}

#[test]
fn limits_are_the_stated_ones() {
    let largest = Entry {
        kind: "k".repeat(MAX_KIND_BYTES),
        body: vec![1; MAX_BODY_BYTES],
        evidence: vec![golden().evidence[0]; MAX_EVIDENCE],
        ..golden()
    };
    let bytes = largest.encode().unwrap();
    assert_eq!(bytes.len(), MAX_ENTRY_BYTES);
    assert!(u16::try_from(bytes.len()).is_ok(), "an entry must fit an entry bundle");
    assert_eq!(Entry::decode(&bytes).unwrap(), largest);

    let long = Entry { body: vec![0; MAX_BODY_BYTES + 1], ..golden() };
    assert_eq!(long.encode(), Err(EntryError::BodyTooLong { bytes: MAX_BODY_BYTES + 1 }));
    let many = Entry { evidence: vec![golden().evidence[0]; 17], ..golden() };
    assert_eq!(many.encode(), Err(EntryError::TooMuchEvidence { count: 17 }));
    let reserved = Entry { tick: Some(u64::MAX), ..golden() };
    assert_eq!(reserved.encode(), Err(EntryError::ReservedTick));
    for kind in ["", "Upper", "with space", "uml\u{e4}ut", &"k".repeat(65)] {
        assert!(check_kind(kind).is_err(), "{kind:?}");
        assert!(Entry { kind: kind.into(), ..golden() }.encode().is_err(), "{kind:?}");
    }
}

#[test]
fn no_prefix_and_no_extension_is_an_entry() {
    let bytes = golden().encode().unwrap();
    for cut in 0..bytes.len() {
        let error = Entry::decode(&bytes[..cut]).unwrap_err();
        assert!(matches!(error, EntryError::Truncated { have, .. } if have == cut), "{cut}: {error}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Entry::decode(&longer), Err(EntryError::Trailing { bytes: 1 }));
    let newer = [&[ENTRY_VERSION + 1], &bytes[1..]].concat();
    assert_eq!(Entry::decode(&newer), Err(EntryError::Version { found: 2 }));
}

proptest! {
    #[test]
    fn what_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(entry) = Entry::decode(&bytes) {
            prop_assert_eq!(entry.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn mutated_entries_decode_to_themselves_or_not_at_all(
        at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = golden().encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok(entry) = Entry::decode(&bytes) {
            prop_assert_eq!(entry.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn entries_round_trip(
        index in any::<u64>(), tick in proptest::option::of(0..u64::MAX), time_ms in any::<u64>(),
        write_id in any::<[u8; 16]>(), kind in "[a-z0-9._-]{1,64}", body in proptest::collection::vec(any::<u8>(), 0..2000),
        pointers in proptest::collection::vec((any::<[u8; 32]>(), any::<u64>(), any::<[u8; 32]>()), 0..=16),
    ) {
        let evidence = pointers.into_iter().map(|(organism, index, digest)| EvidencePointer {
            organism: UniqueId::from_bytes(organism), index, digest: UniqueId::from_bytes(digest),
        }).collect();
        let entry = Entry { index, tick, time_ms, write_id: WriteId(write_id), kind, body, evidence };
        prop_assert_eq!(Entry::decode(&entry.encode().unwrap()).unwrap(), entry);
    }
}
