//! The durable log: crashes at every byte, damage anywhere, the sign guard, and C2SP tiles read by an outside client.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use coalition_log::checkpoint::RosterVerifier;
use coalition_log::entry::leaf_hash;
use coalition_log::store::{
    Appended, Batch, CHECKPOINT_FILE, GUARD_FILE, JOURNAL_FILE, Store, StoreError, StoreOptions, TileKind,
    encode_bundle, encode_hashes, tile_path,
};
use coalition_log::tree::{Hash, inclusion_proof, verify_consistency, verify_inclusion};
use proptest::prelude::*;
use support::{Committee, Leaves, committee, encoded, entries, entry, organism};
use tempfile::TempDir;

/// Small enough that a few hundred entries rotate the journal.
const SMALL: StoreOptions = StoreOptions { rotate_bytes: 40_000, cache_bytes: 64 * 1024 };

struct Log {
    dir: TempDir,
    committee: Committee,
    options: StoreOptions,
}

impl Log {
    fn new(options: StoreOptions) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), committee: committee(1, 4), options }
    }

    fn try_open(&self) -> Result<Store, StoreError> {
        Store::open(self.dir.path(), self.committee.organism, &self.committee.roster, self.options)
    }

    fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(file)
    }

    fn filled(options: StoreOptions, size: u64) -> (Self, Store) {
        let log = Self::new(options);
        let mut store = log.open();
        fill(&mut store, size, 100);
        (log, store)
    }

    fn flip(&self, file: impl AsRef<Path>, at: usize) {
        let path = self.path(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }
}

fn fill(store: &mut Store, to: u64, step: u64) {
    while store.size() < to {
        let from = store.size();
        let batch = entries(from..to.min(from + step));
        let height = store.last_height().unwrap_or(0) + 1;
        assert!(matches!(store.append(height, &batch).unwrap(), Appended::Stored(head) if head.size > from));
    }
}

fn check_whole(store: &Store, size: u64) {
    let leaves = Leaves::of_entries(size);
    assert_eq!(store.head().size, size);
    assert_eq!(store.head().root, leaves.root(size as usize));
    let read: Vec<Vec<u8>> =
        store.entries(0..size + 9, usize::MAX).unwrap().iter().map(|bytes| bytes.to_vec()).collect();
    assert_eq!(read, encoded(0..size));
}

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
    let (log, store) = Log::filled(SMALL, 2000);
    let journal = fs::metadata(log.path(JOURNAL_FILE)).unwrap().len();
    assert!(journal < 120_000, "the journal was rotated, it has {journal} bytes");
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
fn damaged_tiles_are_named_and_never_served() {
    let (log, store) = Log::filled(SMALL, 1200);
    drop(store);
    let bundle = tile_path(TileKind::Entries, 1, 256);
    log.flip(&bundle, 5000);
    let store = log.open();
    assert_eq!(store.entry(3).unwrap(), entry(3));
    let StoreError::Corrupt { path, offset, expected, found } = store.entry(300).unwrap_err() else {
        panic!("not the error of damage");
    };
    assert_eq!(path, log.path(&bundle));
    assert!(offset <= 5000 && offset > 4800, "{offset}");
    assert!(Leaves::of_entries(512).0[256..].contains(&expected));
    assert_ne!(expected, found);
    assert!(store.entries(250..270, usize::MAX).is_err());
    drop(store);

    let leaves = tile_path(TileKind::Level(0), 0, 256);
    log.flip(&leaves, 77);
    let store = log.open();
    let refused = store.inclusion_proof(3, 1200).unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupt { path, offset: 0, .. } if *path == log.path(&leaves)), "{refused}");
    assert!(matches!(store.entry(3), Err(StoreError::Corrupt { .. })));
    drop(store);

    fs::remove_file(log.path(tile_path(TileKind::Entries, 2, 256))).unwrap();
    assert!(matches!(log.open().entry(600), Err(StoreError::Read { .. })));
    fs::write(log.path(tile_path(TileKind::Entries, 2, 256)), [0, 200, 1]).unwrap();
    assert!(matches!(log.open().entry(600), Err(StoreError::Malformed { offset: 0, .. })));
}

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
        let StoreError::GuardAhead { guard, root: signed, log: size } = refused else { panic!("{refused}") };
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

#[test]
fn tile_paths_are_those_of_c2sp() {
    let path = |kind, number, width| tile_path(kind, number, width).to_string_lossy().into_owned();
    assert_eq!(path(TileKind::Level(0), 1_234_067, 256), "tile/0/x001/x234/067");
    assert_eq!(path(TileKind::Level(1), 0, 17), "tile/1/000.p/17");
    assert_eq!(path(TileKind::Entries, 1067, 1), "tile/entries/x001/067.p/1");
    for number in [0, 9, 999, 1000, 1_000_000, 999_999_999] {
        let theirs = tlog_tiles::tile::Tile::new(8, 2, number, 256, false).path();
        assert_eq!(path(TileKind::Level(2), number, 256), theirs.replacen("tile/8/", "tile/", 1));
    }
}

/// Reads tiles from a directory as any C2SP client would; knows nothing of our store.
struct Directory(PathBuf);

impl tlog_tiles::tile::TileReader for Directory {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::tile::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::tlog::Error> {
        let path = |tile: &tlog_tiles::tile::Tile| self.0.join(tile.path().replacen("tile/8/", "tile/", 1));
        Ok(tiles.iter().map(|tile| fs::read(path(tile)).unwrap_or_else(|e| panic!("{}: {e}", tile.path()))).collect())
    }

    fn save_tiles(&self, _: &[tlog_tiles::tile::Tile], _: &[Vec<u8>]) {}
}

#[test]
fn a_third_party_client_verifies_the_directory() {
    let (log, mut store) = Log::filled(SMALL, 66_000);
    let certified = log.committee.certify_store(&mut store);
    store.write_partial_tiles().unwrap();
    drop(store);
    let note = fs::read(log.path(CHECKPOINT_FILE)).unwrap();
    let note = signed_note::Note::from_bytes(&note).unwrap();
    let checkpoint = tlog_tiles::checkpoint::Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!((checkpoint.size(), checkpoint.hash().0), (66_000, certified.root().0));

    let directory = Directory(log.dir.path().to_owned());
    let reader = tlog_tiles::tile::TileHashReader::new(checkpoint.size(), *checkpoint.hash(), &directory);
    for index in [0u64, 255, 256, 40_000, 65_535, 65_536, 65_999] {
        let proof = tlog_tiles::tlog::prove_record(checkpoint.size(), index, &reader).unwrap();
        let leaf = tlog_tiles::tlog::record_hash(&entry(index).encode().unwrap());
        tlog_tiles::tlog::check_record(&proof, checkpoint.size(), *checkpoint.hash(), index, leaf).unwrap();
    }
    let bundle = fs::read(log.path("tile/entries/257.p/208")).unwrap();
    assert_eq!(bundle, encode_bundle(&encoded(65_792..66_000)));
}

#[test]
fn tiles_served_from_memory_are_those_of_the_directory() {
    let (log, mut store) = Log::filled(SMALL, 1100);
    log.committee.certify_store(&mut store);
    store.write_partial_tiles().unwrap();
    let leaves = Leaves::of_entries(1100).0;
    for (number, width) in [(0, 256), (3, 256), (4, 76), (4, 1), (2, 100)] {
        let tile = store.tile(TileKind::Level(0), number, width).unwrap();
        let from = (number * 256) as usize;
        assert_eq!(tile, encode_hashes(&leaves[from..from + width as usize]));
        let bundle = store.tile(TileKind::Entries, number, width).unwrap();
        assert_eq!(bundle, encode_bundle(&encoded(number * 256..number * 256 + width)));
    }
    for (kind, number, width) in [(TileKind::Level(0), 4, 76), (TileKind::Level(1), 0, 4), (TileKind::Entries, 1, 256)]
    {
        let file = fs::read(log.path(tile_path(kind, number, width))).unwrap();
        assert_eq!(store.tile(kind, number, width).unwrap(), file);
    }
    for (kind, number, width) in [
        (TileKind::Level(0), 4, 77),
        (TileKind::Level(0), 4, 0),
        (TileKind::Level(1), 0, 5),
        (TileKind::Level(2), 0, 1),
        (TileKind::Level(255), 0, 1),
        (TileKind::Entries, u64::MAX, 256),
        (TileKind::Entries, 0, 257),
    ] {
        assert!(matches!(store.tile(kind, number, width), Err(StoreError::OutOfRange { .. })), "{kind:?} {number}");
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
