//! Logs that begin with a certified state: taken over from what others serve, crashes at every step, lies.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use std::fs;
use std::path::Path;

use coalition_log::store::{
    Checked, JOURNAL_FILE, Store, StoreError, StoreOptions, TILE_WIDTH, Takeover, TileKind, tile_path,
};
use coalition_log::tree::Hash;
use support::disk::{Log, SMALL, fill};
use support::{Leaves, encoded, entries};

const COVERS: u64 = 1_000;

/// Tiles and entries as an honest member serves them, taken over by `store` up to the check.
fn fetch(store: &mut Store, leaves: &Leaves, covers: u64) -> Result<Checked, StoreError> {
    let mut takeover = store.begin_takeover().unwrap();
    push_tiles(&mut takeover, leaves, covers);
    let from = takeover.next_tile() * TILE_WIDTH;
    store.check_takeover(takeover, encoded(from..covers + 1), &leaves.frontier(covers as usize))
}

fn push_tiles(takeover: &mut Takeover, leaves: &Leaves, covers: u64) {
    while takeover.next_tile() < covers / TILE_WIDTH {
        let from = (takeover.next_tile() * TILE_WIDTH) as usize;
        takeover.push_tile(&leaves.0[from..from + TILE_WIDTH as usize]).unwrap();
    }
}

fn take_over(store: &mut Store, covers: u64) {
    let leaves = Leaves::of_entries(covers + 1);
    let checked = fetch(store, &leaves, covers).unwrap();
    store.finish_takeover(checked, b"state", 77).unwrap();
}

/// Everything but the entries below `below` is there: hashes, proofs, entries, also after reopening.
fn check_from(store: &Store, below: u64, size: u64) {
    let leaves = Leaves::of_entries(size);
    assert_eq!((store.head().size, store.head().root), (size, leaves.root(size as usize)));
    for at in [1, 255, 256, 700, size - 1].into_iter().filter(|at| *at < size) {
        assert_eq!(store.root_at(at).unwrap(), leaves.root(at as usize));
    }
    store.inclusion_proof(3, size).unwrap();
    store.consistency_proof(257, size).unwrap();
    let read = store.entries(below..size, usize::MAX).unwrap();
    assert_eq!(read.iter().map(|bytes| bytes.to_vec()).collect::<Vec<_>>(), encoded(below..size));
    let gone = store.entry(below - 1).unwrap_err();
    assert!(matches!(gone, StoreError::Pruned { below: said, at_ms: 77, .. } if said == below), "{gone}");
}

#[test]
fn a_log_goes_on_behind_a_state() {
    for (options, own, covers) in
        [(SMALL, 0, COVERS), (SMALL, 5, COVERS), (SMALL, 300, 301), (SMALL, 700, COVERS), (SMALL, 256, 70_000)]
    {
        let log = Log::new(options);
        let mut store = log.open();
        fill(&mut store, own, 100);
        take_over(&mut store, covers);
        let below = covers / TILE_WIDTH * TILE_WIDTH;
        check_from(&store, below, covers + 1);
        assert!(store.is_fetched() && store.starts_with() == Some(covers));
        assert_eq!(store.states().read(covers).unwrap(), b"state");
        let start = format!("coalition-log-start/1\ncovers {covers}\nbelow {below}\nat 77\n");
        assert_eq!(fs::read_to_string(log.path("start")).unwrap(), start);
        drop(store);
        let mut store = log.open();
        check_from(&store, below, covers + 1);
        assert!(store.is_fetched() && store.starts_with() == Some(covers));
        // Entries fetched after it, then a batch of the engine's: any height of one is above.
        store.append_fetched(&entries(covers + 1..covers + 40)).unwrap();
        assert!(store.is_fetched());
        store.append(1, &entries(covers + 40..covers + 600)).unwrap();
        assert_eq!((store.is_fetched(), store.last_height()), (false, Some(1)));
        store.rotate().unwrap();
        drop(store);
        let store = log.open();
        check_from(&store, below, covers + 600);
        assert_eq!((store.is_fetched(), store.last_height()), (false, Some(1)));
        assert!(!log.path(tile_path(TileKind::Entries, 0, TILE_WIDTH)).exists(), "its own entries are gone, too");
    }
}

#[test]
fn a_state_ahead_of_a_state_is_taken_over_too() {
    let log = Log::new(SMALL);
    let mut store = log.open();
    take_over(&mut store, COVERS);
    take_over(&mut store, 3_000);
    check_from(&store, 2_816, 3_001);
    drop(store);
    check_from(&log.open(), 2_816, 3_001);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

/// After each durable step of a takeover the log is the old one or the new one, and goes on.
#[test]
fn a_crash_at_each_step_leaves_the_old_log_or_the_new_one() {
    let (log, mut store) = Log::filled(SMALL, 700);
    let leaves = Leaves::of_entries(COVERS + 1);
    let checked = fetch(&mut store, &leaves, COVERS).unwrap();
    let before = tempfile::tempdir().unwrap();
    copy(log.dir.path(), before.path());
    store.finish_takeover(checked, b"state", 77).unwrap();
    drop(store);
    // Cut short in every way, the steps in order: state, start, journal, bundles, pruned.
    let bundles: Vec<_> =
        (0..700 / TILE_WIDTH).map(|number| tile_path(TileKind::Entries, number, TILE_WIDTH)).collect();
    for step in 0..=5 {
        let crashed = Log::new(SMALL);
        copy(before.path(), crashed.dir.path());
        let after = |file: &Path| assert!(fs::copy(log.path(file), crashed.path(file)).is_ok());
        if step >= 1 {
            fs::create_dir_all(crashed.path("state")).unwrap();
            after(&Path::new("state").join(format!("{COVERS:020}")));
        }
        if step >= 2 {
            after(Path::new("start"));
        }
        if step >= 3 {
            after(Path::new(JOURNAL_FILE));
        }
        if step >= 4 {
            fs::remove_file(crashed.path(&bundles[0])).unwrap();
        }
        if step >= 5 {
            fs::remove_file(crashed.path(&bundles[1])).unwrap();
        }
        let mut store = crashed.open();
        if step < 3 {
            assert_eq!((store.size(), store.pruned(), store.starts_with()), (700, None, None), "step {step}");
            support::disk::check_whole(&store, 700);
            assert!(!crashed.path("start").exists(), "what was not finished is forgotten");
            // It may go on either way.
            if step == 0 { fill(&mut store, 1_500, 100) } else { take_over(&mut store, COVERS) }
        }
        if step > 0 {
            check_from(&store, 768, COVERS + 1);
            assert!(bundles.iter().all(|bundle| !crashed.path(bundle).exists()), "step {step}");
            fill(&mut store, 1_500, 100);
        }
        drop(store);
        assert_eq!(crashed.open().head().root, Leaves::of_entries(1_500).root(1_500), "step {step}");
    }
}

#[test]
fn lies_are_refused_and_change_nothing() {
    let leaves = Leaves::of_entries(COVERS + 1);
    let (log, mut store) = Log::filled(SMALL, 700);
    let tree = leaves.frontier(COVERS as usize);
    let refused = |store: &Store, takeover: Takeover, entries: Vec<Vec<u8>>| {
        let error = store.check_takeover(takeover, entries, &tree).unwrap_err();
        assert!(!error.is_fatal(), "{error}");
        error
    };
    // A leaf of a tile, an entry, too few tiles, too few entries.
    let mut other = Leaves(leaves.0.clone());
    other.0[600] = Hash([1; 32]);
    let error = fetch(&mut store, &other, COVERS).unwrap_err();
    assert!(matches!(error, StoreError::TakeoverTree { covers: COVERS }), "{error}");
    let mut takeover = store.begin_takeover().unwrap();
    push_tiles(&mut takeover, &leaves, COVERS);
    let mut false_entries = encoded(768..COVERS + 1);
    false_entries[3][9] ^= 1;
    assert!(matches!(refused(&store, takeover, false_entries), StoreError::TakeoverTree { .. }));
    let takeover = store.begin_takeover().unwrap();
    assert!(matches!(refused(&store, takeover, encoded(768..COVERS + 1)), StoreError::TakeoverLength { .. }));
    let mut takeover = store.begin_takeover().unwrap();
    push_tiles(&mut takeover, &leaves, COVERS);
    assert!(matches!(refused(&store, takeover, encoded(768..COVERS)), StoreError::TakeoverLength { .. }));
    let mut takeover = store.begin_takeover().unwrap();
    assert!(matches!(takeover.push_tile(&leaves.0[..255]), Err(StoreError::TakeoverLength { .. })));
    // Nothing happened: it goes on as it was, over tiles that were written for nothing.
    fill(&mut store, 1_500, 100);
    store.rotate().unwrap();
    drop(store);
    support::disk::check_whole(&log.open(), 1_500);
}

/// A log that is not the beginning of what was certified is not thrown away for it.
#[test]
fn a_diverged_log_takes_no_state_over() {
    for own in [300, 700] {
        let log = Log::new(StoreOptions::default());
        let mut store = log.open();
        fill(&mut store, own - 1, 100);
        let mut odd = support::entry(own - 1);
        odd.body.push(1);
        store.append(90, &[odd]).unwrap();
        let leaves = Leaves::of_entries(COVERS + 1);
        let error = fetch(&mut store, &leaves, COVERS).unwrap_err();
        assert!(matches!(error, StoreError::TakeoverTree { .. }), "{error}");
        assert_eq!(store.size(), own);
    }
}

#[test]
fn a_start_file_that_makes_no_sense_is_named() {
    for text in ["", "coalition-log-start/1\ncovers 1000\nbelow 512\nat 77\n", "coalition-log-start/2\n"] {
        let (log, store) = Log::filled(SMALL, 10);
        drop(store);
        fs::write(log.path("start"), text).unwrap();
        let error = log.try_open().unwrap_err();
        assert!(matches!(&error, StoreError::Malformed { path, .. } if path.ends_with("start")), "{error}");
    }
}
