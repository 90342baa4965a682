//! The store alone: verified in, verified out, bounded, and whole after a crash.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coalition::UniqueId;
use coalition_content::store::{Limits, Missing, Pusher, Store, StoreError};
use coalition_content::tree::Outline;
use coalition_content::wire::Run;
use coalition_content::{Content, PIECE_BYTES};
use coalition_universe::{NodeKey, PeerId};

const MIB: usize = 1 << 20;

struct Sample {
    file: File,
    outline: Outline,
}

impl Sample {
    fn new(size: usize, seed: u8) -> Self {
        let bytes: Vec<u8> = (0..size).map(|i| u8::try_from((i / 3 + i / 1_024) % 253).unwrap() ^ seed).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        Self { outline: Outline::read(&bytes[..], size as u64).unwrap(), file }
    }

    fn content(&self) -> Content {
        self.outline.content()
    }

    fn hash(&self) -> UniqueId {
        self.content().hash()
    }

    fn slice(&self, piece: u32) -> Vec<u8> {
        self.outline.slice(&self.file, self.content().piece(piece)).unwrap()
    }

    /// Pushes everything that is missing.
    fn push(&self, store: &Store, pusher: Option<&Pusher>) -> Result<(), StoreError> {
        let Missing::Pieces(runs) = store.begin(self.content(), pusher)? else { return Ok(()) };
        for piece in runs.iter().flat_map(|run| run.first..run.first + run.count) {
            store.put(self.content(), piece, &self.slice(piece), pusher.map(|pusher| pusher.peer))?;
        }
        Ok(())
    }
}

fn peer(seed: u8) -> PeerId {
    NodeKey::from_bytes([seed; 32]).peer_id()
}

fn pusher(seed: u8, quota_bytes: u64) -> Pusher {
    Pusher { peer: peer(seed), quota_bytes, strangers_bytes: None }
}

fn open(dir: &Path, capacity: usize) -> Arc<Store> {
    Store::open(dir, Limits::of(capacity as u64)).unwrap()
}

#[test]
fn what_was_pushed_comes_out_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let sample = Sample::new(2 * MIB + 77, 1);
    let me = pusher(1, 64 << 20);
    sample.push(&store, Some(&me)).unwrap();
    let slice = |store: &Store, piece| store.slice(sample.content(), sample.content().piece(piece)).unwrap();
    assert_eq!(slice(&store, 2), sample.slice(2));
    assert_eq!(store.stat(sample.hash()), Some(2 * PIECE_BYTES + 77));
    assert_eq!(store.begin(sample.content(), Some(&me)).unwrap(), Missing::Nothing);
    assert_eq!(store.check(sample.hash()).unwrap(), sample.content().size());
    assert!(matches!(Store::open(dir.path(), Limits::of(1)).unwrap_err(), StoreError::Busy { .. }));
    drop(store);
    let store = open(dir.path(), 64 * MIB);
    assert_eq!(slice(&store, 0), sample.slice(0));
    let (entries, used) = store.list(me.peer, None);
    assert_eq!((entries.len(), entries[0].hash, entries[0].have, used), (1, sample.hash(), 2_097_229, 2_097_229));
    assert_eq!(store.list(me.peer, Some(sample.hash())).0, []);
    assert_eq!(store.list(peer(2), None), (vec![], 0));
}

/// Cut at every slice: what was verified is not asked for again, also by another process.
#[test]
fn an_upload_cut_anywhere_goes_on_where_it_stopped() {
    let sample = Sample::new(5 * MIB + 5, 2);
    for cut in 0..=5_u32 {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), 64 * MIB);
        let begin = |store: &Store| store.begin(sample.content(), None).unwrap();
        assert_eq!(begin(&store), Missing::Pieces(vec![Run { first: 0, count: 6 }]));
        for piece in 0..cut {
            assert!(!store.put(sample.content(), piece, &sample.slice(piece), None).unwrap());
        }
        drop(store);
        let store = open(dir.path(), 64 * MIB);
        assert_eq!(begin(&store), Missing::Pieces(vec![Run { first: cut, count: 6 - cut }]), "cut {cut}");
        for piece in (cut..6).rev() {
            assert_eq!(store.put(sample.content(), piece, &sample.slice(piece), None).unwrap(), piece == cut);
        }
        assert_eq!(store.check(sample.hash()).unwrap(), sample.content().size());
        assert!(std::fs::read_dir(dir.path().join("partial")).unwrap().next().is_none());
    }
}

/// A crash after the last slice and before the rename, or in the middle of it, leaves an upload that is whole at once.
#[test]
fn a_crash_while_it_is_published_loses_nothing() {
    let sample = Sample::new(2 * MIB, 3);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    sample.push(&store, None).unwrap();
    drop(store);
    let (objects, partial) = (dir.path().join("objects"), dir.path().join("partial"));
    let name = sample.hash().to_string();
    let part = format!("{name}.{}", sample.content().size());
    // As the disk is just before the data is renamed: the tree has both names.
    std::fs::rename(objects.join(&name), partial.join(&part)).unwrap();
    std::fs::hard_link(objects.join(format!("{name}.tree")), partial.join(format!("{part}.tree"))).unwrap();
    let store = open(dir.path(), 64 * MIB);
    assert_eq!(store.stat(sample.hash()), None);
    assert!(!objects.join(format!("{name}.tree")).exists());
    assert_eq!(store.begin(sample.content(), None).unwrap(), Missing::Nothing);
    assert_eq!(store.check(sample.hash()).unwrap(), sample.content().size());
}

/// What the disk lost or changed of an unfinished upload is asked for again.
#[test]
fn a_resumed_upload_believes_only_what_verifies() {
    let sample = Sample::new(4 * MIB, 4);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    store.begin(sample.content(), None).unwrap();
    for piece in 0..3 {
        store.put(sample.content(), piece, &sample.slice(piece), None).unwrap();
    }
    drop(store);
    let path = dir.path().join("partial").join(format!("{}.{}", sample.hash(), 4 * MIB));
    File::options().write(true).open(&path).unwrap().write_all_at(b"rot", (MIB + 9) as u64).unwrap();
    let store = open(dir.path(), 64 * MIB);
    let missing = vec![Run { first: 1, count: 1 }, Run { first: 3, count: 1 }];
    assert_eq!(store.begin(sample.content(), None).unwrap(), Missing::Pieces(missing));
    sample.push(&store, None).unwrap();
    assert_eq!(store.check(sample.hash()).unwrap(), 4 << 20);
}

#[test]
fn wrong_slices_change_nothing() {
    let (sample, other) = (Sample::new(2 * MIB, 5), Sample::new(2 * MIB, 6));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let unknown = store.put(sample.content(), 0, &sample.slice(0), None).unwrap_err();
    assert!(matches!(unknown, StoreError::Unknown { .. }));
    store.begin(sample.content(), Some(&pusher(1, 64 << 20))).unwrap();
    let stranger = store.put(sample.content(), 0, &sample.slice(0), Some(peer(2))).unwrap_err();
    assert!(matches!(stranger, StoreError::Unknown { .. }), "who did not begin does not put");
    for wrong in [other.slice(0), sample.slice(1), vec![], sample.slice(0)[..500_000].to_vec()] {
        let refused = store.put(sample.content(), 0, &wrong, None).unwrap_err();
        assert!(matches!(refused, StoreError::Unverified(_)), "{refused}");
    }
    let Missing::Pieces(runs) = store.begin(sample.content(), None).unwrap() else { panic!("it is not whole") };
    assert_eq!(runs, [Run { first: 0, count: 2 }]);
    let longer = Content::new(sample.hash(), 3 << 20).unwrap();
    sample.push(&store, None).unwrap();
    assert!(matches!(store.begin(longer, None).unwrap_err(), StoreError::OtherSize { stored: 2_097_152, .. }));
    assert!(matches!(store.slice(longer, 0..5).unwrap_err(), StoreError::OtherSize { .. }));
}

/// One byte of the data, of the tree, or the length: found when read, never served, and pushed again it is whole.
#[test]
fn damage_is_found_set_aside_and_mended_by_another_push() {
    type Damage = fn(&Path, &str);
    let damages: [(&str, Damage); 3] = [
        ("data", |objects, name| {
            let file = File::options().write(true).open(objects.join(name)).unwrap();
            file.write_all_at(b"!", 1_500_000).unwrap();
        }),
        ("tree", |objects, name| {
            let file = File::options().write(true).open(objects.join(format!("{name}.tree"))).unwrap();
            file.write_all_at(b"!", 3).unwrap();
        }),
        ("gone", |objects, name| std::fs::remove_file(objects.join(name)).unwrap()),
    ];
    let sample = Sample::new(2 * MIB, 7);
    for (what, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), 64 * MIB);
        sample.push(&store, Some(&pusher(1, 64 << 20))).unwrap();
        damage(&dir.path().join("objects"), &sample.hash().to_string());
        let found = store.slice(sample.content(), sample.content().piece(1)).map(drop).unwrap_err();
        assert!(matches!(found, StoreError::Damaged { .. }), "{what}: {found}");
        let gone = store.slice(sample.content(), sample.content().piece(0)).map(drop).unwrap_err();
        assert!(matches!(gone, StoreError::Unknown { .. }), "{what}: {gone}");
        assert_eq!(store.stat(sample.hash()), None);
        sample.push(&store, Some(&pusher(1, 64 << 20))).unwrap();
        assert_eq!(store.check(sample.hash()).unwrap(), 2 << 20, "{what}");
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    sample.push(&store, None).unwrap();
    drop(store);
    File::options()
        .write(true)
        .open(dir.path().join("objects").join(sample.hash().to_string()))
        .unwrap()
        .set_len(9)
        .unwrap();
    assert_eq!(open(dir.path(), 64 * MIB).stat(sample.hash()), None, "a cut copy");
    assert!(dir.path().join("damaged").join(sample.hash().to_string()).exists());
}

#[test]
fn quotas_are_kept_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let (me, you) = (pusher(1, 3 << 20), pusher(2, 3 << 20));
    let (first, second) = (Sample::new(2 * MIB, 8), Sample::new(2 * MIB, 9));
    let large = Sample::new(4 * MIB, 10);
    let refused = store.begin(large.content(), Some(&me)).unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge { size: 4_194_304, quota: 3_145_728 }), "{refused}");
    first.push(&store, Some(&me)).unwrap();
    let refused = store.begin(second.content(), Some(&me)).unwrap_err();
    assert!(matches!(refused, StoreError::Quota { used: 2_097_152, asked: 2_097_152, quota: 3_145_728 }), "{refused}");
    // The same content counts for each who holds it, and is there once.
    let before = store.total_bytes();
    first.push(&store, Some(&you)).unwrap();
    assert_eq!(store.total_bytes(), before);
    assert!(matches!(store.begin(second.content(), Some(&you)).unwrap_err(), StoreError::Quota { .. }));
    assert!(store.remove(me.peer, first.hash()).unwrap());
    assert!(!store.remove(me.peer, first.hash()).unwrap());
    assert_eq!(store.stat(first.hash()), Some(2 << 20), "another holds it");
    second.push(&store, Some(&me)).unwrap();
    assert!(store.remove(you.peer, first.hash()).unwrap());
    assert_eq!(store.stat(first.hash()), None);
    // Strangers share what they may have together, and small things cost as much as 64 KiB.
    let stranger = |seed| Pusher { strangers_bytes: Some(150_000), ..pusher(seed, 100_000) };
    let small = |seed| Sample::new(10, seed);
    small(20).push(&store, Some(&stranger(20))).unwrap();
    let own = store.begin(small(21).content(), Some(&stranger(20))).unwrap_err();
    assert!(matches!(own, StoreError::Quota { quota: 100_000, .. }), "{own}");
    small(22).push(&store, Some(&stranger(21))).unwrap();
    let all = store.begin(small(23).content(), Some(&stranger(22))).unwrap_err();
    assert!(matches!(all, StoreError::Quota { used: 131_072, quota: 150_000, .. }), "{all}");
}

#[test]
fn unfinished_uploads_are_bounded_and_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Limits { uploads_each: 2, ..Limits::of(64 << 20) }).unwrap();
    let me = pusher(1, 64 << 20);
    let samples: Vec<Sample> = (30..33).map(|seed| Sample::new(MIB + 1, seed)).collect();
    for sample in &samples[..2] {
        store.begin(sample.content(), Some(&me)).unwrap();
    }
    let refused = store.begin(samples[2].content(), Some(&me)).unwrap_err();
    assert!(matches!(refused, StoreError::TooMany { limit: 2 }), "{refused}");
    store.begin(samples[0].content(), Some(&me)).unwrap();
    assert!(store.remove(me.peer, samples[0].hash()).unwrap());
    store.begin(samples[2].content(), Some(&me)).unwrap();
    assert_eq!(store.list(me.peer, None).0.len(), 2);
}

fn clocked(dir: &Path, limits: Limits) -> (Arc<Store>, Arc<AtomicU64>) {
    let now = Arc::new(AtomicU64::new(1_800_000_000_000));
    let clock = Arc::clone(&now);
    (Store::open_at(dir, limits, Arc::new(move || clock.load(Ordering::SeqCst))).unwrap(), now)
}

#[test]
fn under_pressure_the_least_recently_used_goes_and_what_is_held_stays() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { retain: Duration::from_secs(100), ..Limits::of(5 * PIECE_BYTES) };
    let (store, now) = clocked(dir.path(), limits);
    let tick = |s: u64| now.fetch_add(s * 1_000, Ordering::SeqCst);
    let samples: Vec<Sample> = (40..44).map(|seed| Sample::new(2 * MIB, seed)).collect();
    let me = pusher(1, 64 << 20);
    samples[0].push(&store, Some(&me)).unwrap();
    tick(10);
    samples[1].push(&store, Some(&me)).unwrap();
    let refused = samples[2].push(&store, Some(&me)).unwrap_err();
    assert!(matches!(refused, StoreError::NoRoom { .. }), "both are held: {refused}");
    assert_eq!((store.stat(samples[0].hash()), store.stat(samples[1].hash())), (Some(2 << 20), Some(2 << 20)));
    tick(101);
    // Both holds are over; the first one was read since.
    store.slice(samples[0].content(), 0..5).unwrap();
    samples[2].push(&store, Some(&me)).unwrap();
    let there = |i: usize| store.stat(samples[i].hash()).is_some();
    assert_eq!((there(0), there(1), there(2)), (true, false, true));
    // What this process holds stays although nobody else does.
    tick(101);
    let held = store.hold(samples[0].hash());
    store.slice(samples[2].content(), 0..5).unwrap();
    samples[3].push(&store, Some(&me)).unwrap();
    assert_eq!((there(0), there(2), there(3)), (true, false, true));
    assert!(held.path().exists());
    drop(held);
    // A new push holds again.
    samples[0].push(&store, Some(&me)).unwrap();
    assert!(matches!(samples[1].push(&store, Some(&me)).unwrap_err(), StoreError::NoRoom { .. }));
}

#[test]
fn abandoned_uploads_and_damaged_copies_go_before_content() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { retain: Duration::ZERO, idle: Duration::from_secs(50), ..Limits::of(5 * PIECE_BYTES) };
    let (store, now) = clocked(dir.path(), limits);
    let (whole, begun, fresh) = (Sample::new(2 * MIB, 50), Sample::new(2 * MIB, 51), Sample::new(2 * MIB, 52));
    whole.push(&store, Some(&pusher(1, 64 << 20))).unwrap();
    store.begin(begun.content(), Some(&pusher(1, 64 << 20))).unwrap();
    now.fetch_add(60_000, Ordering::SeqCst);
    store.slice(whole.content(), 0..5).unwrap();
    fresh.push(&store, None).unwrap();
    assert!(store.stat(whole.hash()).is_some());
    assert_eq!(store.list(peer(1), None).0.len(), 1, "the abandoned upload is gone");
    assert!(matches!(store.put(begun.content(), 0, &begun.slice(0), None).unwrap_err(), StoreError::Unknown { .. }));
}

#[test]
fn what_its_owner_removes_while_it_is_read_goes_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let sample = Sample::new(MIB, 60);
    sample.push(&store, Some(&pusher(1, 64 << 20))).unwrap();
    let held = store.hold(sample.hash());
    assert!(store.remove(peer(1), sample.hash()).unwrap());
    assert!(held.path().exists());
    let path = held.path();
    drop(held);
    assert!(!path.exists());
    assert_eq!(store.stat(sample.hash()), None);
}

#[test]
fn many_threads_push_the_same_content_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let sample = Sample::new(6 * MIB + 1, 61);
    std::thread::scope(|scope| {
        for seed in 1..5 {
            let (store, sample) = (&store, &sample);
            scope.spawn(move || sample.push(store, Some(&pusher(seed, 64 << 20))).unwrap());
        }
    });
    assert_eq!(store.check(sample.hash()).unwrap(), 6 * PIECE_BYTES + 1);
    assert_eq!(store.total_bytes(), sample.content().size() + sample.content().tree_bytes());
    for seed in 1..5 {
        assert_eq!(store.list(peer(seed), None).0.len(), 1);
    }
}
