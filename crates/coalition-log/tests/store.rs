//! The durable log: reading back, crashes at every byte, damage in the journal, and the store against its model.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use std::fs;

use coalition_log::entry::leaf_hash;
use coalition_log::store::{Appended, Batch, GUARD_FILE, JOURNAL_FILE, StoreError, StoreOptions};
use coalition_log::tree::{inclusion_proof, verify_consistency, verify_inclusion};
use proptest::prelude::*;
use support::disk::{Log, SMALL, check_whole, fill};
use support::{Leaves, entries, entry};

#[test]
fn appends_are_read_back_and_survive_reopening() {
    let (log, store) = Log::filled(StoreOptions::default(), 1000);
    check_whole(&store, 1000);
    assert_eq!(store.entry(777).unwrap(), entry(777));
    assert!(matches!(store.entry(1000), Err(StoreError::OutOfRange { index: 1000, size: 1000 })));
    let height = store.last_height();
    drop(store);
    let store = log.open();
    check_whole(&store, 1000);
    assert_eq!(store.last_height(), height);
}

#[test]
fn rotated_logs_read_and_prove_the_same() {
    let (log, mut store) = Log::filled(SMALL, 2000);
    store.rotate().unwrap();
    let journal = fs::metadata(log.path(JOURNAL_FILE)).unwrap().len();
    assert!(journal < 60_000, "the journal was rotated, it has {journal} bytes");
    drop(store);
    let mut store = log.open();
    check_whole(&store, 2000);
    let leaves = Leaves::of_entries(2000);
    for size in [1, 255, 256, 257, 512, 1000, 1999, 2000] {
        let root = leaves.root(size as usize);
        assert_eq!(store.root_at(size).unwrap(), root);
        for index in [0, size / 2, size - 1] {
            let proof = store.inclusion_proof(index, size).unwrap();
            assert_eq!(proof, inclusion_proof(&leaves, index, size).unwrap());
            verify_inclusion(&leaves.0[index as usize], index, size, &proof, &root).unwrap();
        }
        let proof = store.consistency_proof(size, 2000).unwrap();
        verify_consistency(size, &root, 2000, &store.head().root, &proof).unwrap();
    }
    assert!(matches!(store.inclusion_proof(0, 2001), Err(StoreError::OutOfRange { .. })));
    assert!(matches!(store.inclusion_proof(5, 5), Err(StoreError::Proof(_))));
    fill(&mut store, 2600, 37);
    check_whole(&store, 2600);
}

#[test]
fn range_reads_are_bounded_in_bytes() {
    let (_log, store) = Log::filled(SMALL, 600);
    let one = store.entry_bytes(250).unwrap().len();
    assert_eq!(store.entries(250..600, 1).unwrap().len(), 1, "a reader always makes progress");
    let some = store.entries(250..600, one * 20).unwrap();
    assert!(some.len() > 1 && some.iter().map(|entry| entry.len()).sum::<usize>() <= one * 20);
    assert_eq!(store.entries(600..700, 1000).unwrap().len(), 0);
    assert!(matches!(store.entries(601..700, 1000), Err(StoreError::OutOfRange { .. })));
}

#[test]
fn executed_batches_are_not_executed_again() {
    let log = Log::new(StoreOptions::default());
    let mut store = log.open();
    assert_eq!(store.last_height(), None);
    store.append(4, &entries(0..3)).unwrap();
    for height in [0, 3, 4] {
        let again = store.append(height, &entries(0..3)).unwrap();
        assert_eq!(again, Appended::AlreadyStored { last_height: 4 });
    }
    drop(store);
    let mut store = log.open();
    assert_eq!(store.append(4, &entries(0..3)).unwrap(), Appended::AlreadyStored { last_height: 4 });
    assert!(matches!(store.append(5, &[]).unwrap(), Appended::Stored(head) if head.size == 3));
    assert_eq!(store.append(5, &entries(3..4)).unwrap(), Appended::AlreadyStored { last_height: 5 });
    let (first, second) = (entries(0..3), entries(3..5));
    let group = [
        Batch { height: 4, entries: &first },
        Batch { height: 6, entries: &second[..1] },
        Batch { height: 8, entries: &second[1..] },
    ];
    let appended = store.append_group(&group).unwrap();
    assert_eq!(appended[0], Appended::AlreadyStored { last_height: 5 });
    assert!(matches!(appended[1], Appended::Stored(head) if head.size == 4 && head.root == store.root_at(4).unwrap()));
    assert!(matches!(appended[2], Appended::Stored(head) if head == store.head()));
    check_whole(&store, 5);
}

#[test]
fn wrong_appends_write_nothing() {
    let (log, mut store) = Log::filled(StoreOptions::default(), 10);
    let before = fs::read(log.path(JOURNAL_FILE)).unwrap();
    let gap = store.append(50, &entries(11..12));
    assert!(matches!(gap, Err(StoreError::WrongIndex { expected: 10, found: 11 })));
    let mut long = entry(10);
    long.body = vec![0; 50_000];
    assert!(matches!(store.append(50, &[long]), Err(StoreError::Entry { index: 10, .. })));
    let unordered = [Batch { height: 60, entries: &[] }, Batch { height: 60, entries: &[] }];
    assert!(matches!(store.append_group(&unordered), Err(StoreError::WrongHeight { last: 60, found: 60 })));
    let huge: Vec<_> = (10..1500)
        .map(|index| {
            let mut huge = entry(index);
            huge.body = vec![0; 48_000];
            huge
        })
        .collect();
    assert!(matches!(store.append(50, &huge), Err(StoreError::GroupTooLarge { .. })));
    assert_eq!(fs::read(log.path(JOURNAL_FILE)).unwrap(), before);
    fill(&mut store, 20, 3);
    check_whole(&store, 20);
}

#[test]
fn a_crash_at_any_byte_leaves_a_prefix_with_everything_synced() {
    let log = Log::new(StoreOptions::default());
    let mut store = log.open();
    let mut synced = vec![(fs::metadata(log.path(JOURNAL_FILE)).unwrap().len(), 0)];
    for to in [1, 2, 5, 9, 14] {
        fill(&mut store, to, 100);
        synced.push((fs::metadata(log.path(JOURNAL_FILE)).unwrap().len(), to));
    }
    drop(store);
    let whole = fs::read(log.path(JOURNAL_FILE)).unwrap();
    let header = synced[0].0 as usize;
    for cut in header..=whole.len() {
        fs::write(log.path(JOURNAL_FILE), &whole[..cut]).unwrap();
        let mut store = log.open();
        let (durable_bytes, size) = *synced.iter().rfind(|(bytes, _)| *bytes as usize <= cut).unwrap();
        check_whole(&store, size);
        assert_eq!(fs::metadata(log.path(JOURNAL_FILE)).unwrap().len(), durable_bytes);
        if cut % 41 == 0 {
            fill(&mut store, 16, 2);
            drop(store);
            check_whole(&log.open(), 16);
        }
    }
}

#[test]
fn a_torn_tail_of_zeros_or_noise_is_cut_off() {
    let (log, store) = Log::filled(StoreOptions::default(), 30);
    drop(store);
    let whole = fs::read(log.path(JOURNAL_FILE)).unwrap();
    for tail in [vec![0; 5000], vec![0xA5; 77], whole[whole.len() - 300..].to_vec()] {
        fs::write(log.path(JOURNAL_FILE), [&whole[..], &tail].concat()).unwrap();
        check_whole(&log.open(), 30);
        assert_eq!(fs::read(log.path(JOURNAL_FILE)).unwrap(), whole);
    }
}

#[test]
fn damage_in_the_middle_of_the_journal_is_named_and_never_served() {
    let log = Log::new(StoreOptions::default());
    let mut store = log.open();
    let mut ends = vec![fs::metadata(log.path(JOURNAL_FILE)).unwrap().len() as usize];
    for to in [5, 10, 15] {
        fill(&mut store, to, 5);
        ends.push(fs::metadata(log.path(JOURNAL_FILE)).unwrap().len() as usize);
    }
    drop(store);
    let whole = fs::read(log.path(JOURNAL_FILE)).unwrap();
    for at in 0..ends[2] {
        log.flip(JOURNAL_FILE, at);
        let damaged = fs::read(log.path(JOURNAL_FILE)).unwrap();
        let refused = log.try_open().unwrap_err();
        let record = if at < ends[0] { 0 } else { *ends.iter().rfind(|end| **end <= at).unwrap() as u64 };
        match &refused {
            StoreError::Corrupt { path, offset, expected, found } => {
                assert_eq!((path, *offset), (&log.path(JOURNAL_FILE), record), "byte {at}");
                assert_ne!(expected, found);
            }
            StoreError::Malformed { path, offset, .. } => {
                assert_eq!((path, *offset), (&log.path(JOURNAL_FILE), 0), "byte {at}");
                assert!(at < ends[0], "byte {at}");
            }
            other => panic!("byte {at}: {other}"),
        }
        assert!(refused.is_fatal());
        assert_eq!(fs::read(log.path(JOURNAL_FILE)).unwrap(), damaged, "nothing is changed by looking");
        fs::write(log.path(JOURNAL_FILE), &whole).unwrap();
    }
    check_whole(&log.open(), 15);
}

#[test]
fn a_journal_record_inside_an_entry_is_not_mistaken_for_one() {
    let log = Log::new(StoreOptions::default());
    let mut store = log.open();
    fill(&mut store, 3, 1);
    let journal = fs::read(log.path(JOURNAL_FILE)).unwrap();
    let mut mimic = entry(3);
    mimic.body = journal.clone();
    store.append(100, &[mimic]).unwrap();
    drop(store);
    let whole = fs::read(log.path(JOURNAL_FILE)).unwrap();
    for cut in (journal.len() + 1..whole.len()).step_by(7) {
        fs::write(log.path(JOURNAL_FILE), &whole[..cut]).unwrap();
        check_whole(&log.open(), 3);
    }
}

#[test]
fn readers_work_while_the_writer_appends() {
    let log = Log::new(SMALL);
    let mut store = log.open();
    fill(&mut store, 300, 100);
    let reader = store.reader();
    let thread = std::thread::spawn(move || {
        let mut checked = 0;
        while reader.size() < 3000 {
            let head = reader.head();
            let index = checked % head.size;
            let proof = reader.inclusion_proof(index, head.size).unwrap();
            let leaf = leaf_hash(&reader.entry_bytes(index).unwrap());
            verify_inclusion(&leaf, index, head.size, &proof, &head.root).unwrap();
            checked += 1;
        }
        checked
    });
    fill(&mut store, 3000, 20);
    assert!(thread.join().unwrap() > 0);
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u8>),
    Rotate,
    Reopen,
    TearTail(u16),
    Certify,
    Sign,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec(0u8..120, 1..4).prop_map(Step::Append),
        1 => Just(Step::Rotate),
        2 => Just(Step::Reopen),
        2 => (1u16..400).prop_map(Step::TearTail),
        1 => Just(Step::Certify),
        1 => Just(Step::Sign),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a model that is a size, a height and what was certified and signed.
    #[test]
    fn the_store_behaves_as_its_model(steps in proptest::collection::vec(step(), 1..25)) {
        let log = Log::new(StoreOptions { rotate_bytes: 20_000, cache_bytes: 20_000 });
        let mut store = Some(log.open());
        let (mut size, mut height, mut certified, mut signed) = (0u64, 0u64, 0u64, 0u64);
        for step in steps {
            let mut open = store.take().unwrap();
            match step {
                Step::Append(counts) => {
                    let batches: Vec<_> = counts.iter().map(|count| {
                        let from = size;
                        size += u64::from(*count);
                        height += 1;
                        (height, entries(from..size))
                    }).collect();
                    let group: Vec<Batch<'_>> =
                        batches.iter().map(|(height, entries)| Batch { height: *height, entries }).collect();
                    let appended = open.append_group(&group).unwrap();
                    prop_assert_eq!(appended.last(), Some(&Appended::Stored(open.head())));
                }
                Step::Rotate => open.rotate().unwrap(),
                Step::Reopen => { drop(open); open = log.open(); }
                Step::TearTail(bytes) => {
                    // A crash while the next record is being written: some of its bytes, or none, are there.
                    drop(open);
                    let journal = fs::read(log.path(JOURNAL_FILE)).unwrap();
                    let torn = [&journal[..], &journal[..usize::from(bytes).min(journal.len())]].concat();
                    fs::write(log.path(JOURNAL_FILE), torn).unwrap();
                    open = log.open();
                    prop_assert_eq!(fs::read(log.path(JOURNAL_FILE)).unwrap(), journal);
                }
                Step::Certify if size > certified => {
                    log.committee.certify_store(&mut open);
                    certified = size;
                }
                Step::Certify => {}
                Step::Sign => { open.cosign(&log.committee.cosigners[0], 7).unwrap(); signed = size; }
            }
            prop_assert_eq!(open.size(), size);
            prop_assert_eq!(open.certified().map_or(0, |certified| certified.size()), certified);
            prop_assert_eq!(open.guarded().size, signed);
            store = Some(open);
        }
        let open = store.take().unwrap();
        check_whole(&open, size);
        for at in [0, size / 3, size.saturating_sub(1)].into_iter().filter(|at| *at < size) {
            let proof = open.inclusion_proof(at, size).unwrap();
            let leaf = leaf_hash(&open.entry_bytes(at).unwrap());
            verify_inclusion(&leaf, at, size, &proof, &open.head().root).unwrap();
            let root = open.root_at(at).unwrap();
            verify_consistency(at, &root, size, &open.head().root, &open.consistency_proof(at, size).unwrap()).unwrap();
        }
    }

    #[test]
    fn arbitrary_files_are_errors_not_panics(
        journal in proptest::collection::vec(any::<u8>(), 0..300), keep in any::<prop::sample::Index>(),
        guard in proptest::collection::vec(any::<u8>(), 0..1100),
    ) {
        let (log, store) = Log::filled(StoreOptions::default(), 3);
        drop(store);
        let whole = fs::read(log.path(JOURNAL_FILE)).unwrap();
        let kept = fs::read(log.path(GUARD_FILE)).unwrap();
        fs::write(log.path(JOURNAL_FILE), [&whole[..keep.index(whole.len())], &journal].concat()).unwrap();
        let _ = log.try_open();
        fs::write(log.path(JOURNAL_FILE), &whole).unwrap();
        fs::write(log.path(GUARD_FILE), guard).unwrap();
        prop_assert!(log.try_open().is_err());
        fs::write(log.path(GUARD_FILE), kept).unwrap();
        prop_assert!(log.try_open().is_ok());
    }
}
