//! The engine's storage by itself, on a disk that loses power and on a real one.
//!
//! Its modules are compiled into this test, so that nothing of them has to be public; the engine is not.

#![allow(dead_code, unreachable_pub, unused_imports, clippy::unwrap_used)]

#[path = "support/dice.rs"]
mod dice;
#[path = "support/disk.rs"]
mod disk;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/journal/mod.rs"]
mod journal;
#[path = "support/model.rs"]
mod model;

use std::collections::BTreeMap;
use std::sync::Arc;

use commonware_runtime::{
    Blob as _, BlobVersion, Buf as _, Error, IoBuf, IoBufMut, IoBufsMut, ReadOptions, Storage, WriteOptions,
};
use futures::executor::block_on;
use proptest::prelude::*;

use dice::Dice;
use disk::Flaky;
use error::JournalError;
pub use error::OrderError;
use journal::JournaledStorage;
use journal::disk::Disk;
use model::{Change, History, Name, State};

const KEY: [u8; 32] = [7; 32];
/// So small that log files take turns all the time.
const SMALL: u64 = 8 * 1024;

type Store = JournaledStorage<Flaky>;
type Blob = <Store as Storage>::Blob;

#[derive(Clone, Debug)]
enum Step {
    Write { name: usize, offset: usize, len: usize, fill: u8 },
    Resize { name: usize, len: usize },
    Sync { name: usize },
    Remove { name: usize },
    RemoveAll,
    Reopen { name: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..4usize;
    prop_oneof![
        8 => (name.clone(), 0..6_000usize, 1..6_000usize, 1..255u8)
            .prop_map(|(name, offset, len, fill)| Step::Write { name, offset, len, fill }),
        // About as long as what is kept in memory.
        1 => (name.clone(), 60_000..66_000usize, 1..6_000usize, 1..255u8)
            .prop_map(|(name, offset, len, fill)| Step::Write { name, offset, len, fill }),
        1 => (name.clone(), prop_oneof![0..8_000usize, 60_000..70_000usize])
            .prop_map(|(name, len)| Step::Resize { name, len }),
        4 => name.clone().prop_map(|name| Step::Sync { name }),
        2 => name.clone().prop_map(|name| Step::Remove { name }),
        1 => Just(Step::RemoveAll),
        1 => name.prop_map(|name| Step::Reopen { name }),
    ]
}

fn name(i: usize) -> Name {
    (["one", "two"][i % 2].into(), vec![u8::try_from(i).unwrap(); 2])
}

/// A storage, what it should hold, and the open blobs.
struct Life {
    store: Store,
    history: History,
    open: BTreeMap<Name, Blob>,
    /// Handles of removed blobs and what they must still show.
    removed: Vec<(Blob, Vec<u8>)>,
    next: usize,
    /// Whether syncs of the partition `two` are deferred.
    defers: bool,
    /// So many changes are durable before the next one in that partition.
    promised: usize,
}

impl Life {
    fn new(store: Store, base: State, next: usize, defers: bool) -> Self {
        let history = History { base, ..History::default() };
        let store = if defers { store.deferring("tw") } else { store };
        Self { store, history, open: BTreeMap::new(), removed: Vec::new(), next, defers, promised: 0 }
    }

    /// Notes that a sync of the blob has ended.
    fn synced(&mut self, name: &Name, blob: usize) {
        if self.defers && name.0 == "two" {
            self.promised = self.promised.max(self.history.of(blob));
        } else {
            self.history.synced(blob);
        }
    }

    /// Notes that the blob has been changed, after a given number of changes was promised.
    fn changed(&mut self, name: &Name, promised: usize) {
        if name.0 == "two" {
            self.history.durable = self.history.durable.max(promised);
        }
    }

    /// Opens the blob unless it is, and returns its number.
    async fn opened(&mut self, name: &Name) -> Result<usize, Error> {
        let known = self.history.now().names.get(name).copied();
        if self.open.contains_key(name) {
            return Ok(known.unwrap());
        }
        let blob = known.unwrap_or(self.next);
        if known.is_none() {
            self.next += 1;
            self.history.changes.push(Change::Create(name.clone(), blob));
        }
        let (handle, len) = self.store.open(&name.0, &name.1).await?;
        assert_eq!(len, self.history.now().contents[&blob].len() as u64);
        if known.is_some() {
            self.history.synced(blob);
        }
        assert!(matches!(self.store.open(&name.0, &name.1).await, Err(Error::BlobAlreadyOpen(..))));
        self.open.insert(name.clone(), handle);
        Ok(blob)
    }

    async fn run(&mut self, step: &Step) -> Result<(), Error> {
        match *step {
            Step::Write { name: i, offset, len, fill } => {
                let name = name(i);
                let blob = self.opened(&name).await?;
                self.history.changes.push(Change::Write(blob, offset, vec![fill; len]));
                let options = if fill % 5 == 0 { WriteOptions::SYNC } else { WriteOptions::default() };
                let promised = self.promised;
                self.open[&name].write_at(offset as u64, vec![fill; len], options).await?;
                self.changed(&name, promised);
                if fill % 5 == 0 {
                    self.synced(&name, blob);
                }
            }
            Step::Resize { name: i, len } => {
                let name = name(i);
                let blob = self.opened(&name).await?;
                self.history.changes.push(Change::Resize(blob, len));
                let promised = self.promised;
                self.open[&name].resize(len as u64).await?;
                self.changed(&name, promised);
            }
            Step::Sync { name: i } => {
                let name = name(i);
                let blob = self.opened(&name).await?;
                if i % 2 == 0 {
                    self.open[&name].sync().await?
                } else {
                    self.open[&name].start_sync().await.await?
                }
                self.synced(&name, blob);
            }
            Step::Remove { name: i } => self.remove(&name(i)).await?,
            Step::RemoveAll => {
                let names: Vec<Name> = self.history.now().names.keys().filter(|n| n.0 == "one").cloned().collect();
                names.iter().for_each(|n| self.forget(n));
                match self.store.remove("one", None).await {
                    Err(Error::PartitionMissing(_)) => assert!(names.is_empty()),
                    result => result?,
                }
            }
            Step::Reopen { name: i } => {
                self.open.remove(&name(i));
                self.opened(&name(i)).await?;
            }
        }
        self.check().await
    }

    fn forget(&mut self, name: &Name) {
        let state = self.history.now();
        if let Some(handle) = self.open.remove(name) {
            self.removed.push((handle, state.contents[&state.names[name]].clone()));
        }
        self.history.changes.push(Change::Remove(name.clone()));
    }

    async fn remove(&mut self, name: &Name) -> Result<(), Error> {
        if !self.history.now().names.contains_key(name) {
            assert!(matches!(self.store.remove(&name.0, Some(&name.1)).await, Err(Error::BlobMissing(..))));
            return Ok(());
        }
        self.forget(name);
        self.store.remove(&name.0, Some(&name.1)).await
    }

    /// All open handles, those of removed blobs too, show what was written.
    async fn check(&self) -> Result<(), Error> {
        let state = self.history.now();
        for (name, handle) in &self.open {
            expect(handle, &state.contents[&state.names[name]]).await?;
        }
        for (handle, content) in &self.removed {
            expect(handle, content).await?;
        }
        Ok(())
    }
}

async fn expect(handle: &Blob, content: &[u8]) -> Result<(), Error> {
    let found = handle.read_at(0, content.len(), ReadOptions::default()).await?.coalesce();
    assert!(found == content, "a handle shows other bytes than were written");
    assert!(handle.read_at(0, content.len() + 1, ReadOptions::default()).await.is_err());
    Ok(())
}

/// Everything a storage holds.
fn contents<D: Disk>(store: &JournaledStorage<D>) -> BTreeMap<Name, Vec<u8>> {
    let mut all = BTreeMap::new();
    for partition in ["one", "two"] {
        for name in block_on(store.scan(partition)).unwrap_or_default() {
            let (blob, len) = block_on(store.open(partition, &name)).unwrap();
            let bytes =
                block_on(blob.read_at(0, usize::try_from(len).unwrap(), ReadOptions::default())).unwrap().coalesce();
            all.insert((partition.to_string(), name), bytes.as_ref().to_vec());
        }
    }
    all
}

fn open(disk: &Flaky) -> Store {
    Store::open_disk(disk.clone(), &KEY, SMALL).unwrap()
}

/// Runs `steps` until the power goes, several times over, and checks after each what is left.
fn lives(steps: &[Step], seed: u64) {
    let mut dice = Dice(seed);
    let mut disk = Flaky::default();
    let mut history = History::default();
    let mut next = 0;
    for steps in steps.chunks(steps.len() / 3 + 1) {
        // The power may go while it recovers, too.
        for _ in 0..dice.roll(3) {
            disk.fuel(Some(dice.roll(30)));
            match Store::open_disk(disk.clone(), &KEY, SMALL) {
                Ok(store) => drop(store),
                Err(JournalError::Io { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            disk = disk.after_power_loss(&mut dice);
        }
        let store = open(&disk);
        let found = contents(&store);
        assert!(history.allows(&found), "{found:?} cannot be left of {history:?}");
        let mut base = State::default();
        for (name, content) in found {
            base.names.insert(name, next);
            base.contents.insert(next, content);
            next += 1;
        }
        disk.fuel(Some(dice.roll(12 * steps.len() as u64 + 1)));
        let mut life = Life::new(store, base, next, seed % 2 == 1);
        for step in steps {
            if let Err(error) = block_on(life.run(step)) {
                assert!(
                    error.to_string().contains("no power") || matches!(error, Error::BlobOpenFailed(..)),
                    "{error}"
                );
                break;
            }
        }
        (history, next) = (life.history.clone(), life.next);
        // Some lives end in order, most do not.
        disk.fuel(Some(0));
        drop(life);
        disk = disk.after_power_loss(&mut dice);
    }
    let found = contents(&open(&disk));
    assert!(history.allows(&found), "{found:?} cannot be left of {history:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_synced_survives_power_loss(steps in proptest::collection::vec(step(), 1..80), seed: u64) {
        lives(&steps, seed);
    }
}

#[test]
fn a_deferred_sync_rides_on_the_next_one() {
    let disk = Flaky::default();
    let store = open(&disk).deferring("later");
    let (first, _) = block_on(store.open("later", b"a")).unwrap();
    let (second, _) = block_on(store.open("now", b"b")).unwrap();
    let used = |before: u64| disk.used() - before;
    let before = disk.used();
    block_on(first.write_at(0, vec![1; 10], WriteOptions::SYNC)).unwrap();
    block_on(first.sync()).unwrap();
    assert_eq!(used(before), 0, "a deferred sync touches no disk");
    assert!(contents_of(&disk.after_power_loss(&mut Dice(3)), "later").is_empty(), "nothing was promised");
    block_on(second.write_at(0, vec![2; 10], WriteOptions::SYNC)).unwrap();
    assert_eq!(contents_of(&disk.after_power_loss(&mut Dice(3)), "later"), [vec![1; 10]]);
    // The power goes: from now on a deferred sync fails, too.
    disk.fuel(Some(0));
    assert!(block_on(second.write_at(0, vec![3; 10], WriteOptions::SYNC)).is_err());
    assert!(block_on(first.sync()).is_err());
}

/// What one of two copies holds: a version, text that grows with it, a checksum.
fn copy_of(version: u8) -> Vec<u8> {
    let text = vec![version; 10 + usize::from(version) / 3];
    [&text[..], &blake3::hash(&text).as_bytes()[..4]].concat()
}

/// The engine keeps its progress in two files, of which it overwrites the older once the newer is synced. They are never both
/// damaged, even though nothing else is ever flushed.
#[test]
fn two_copies_changed_in_turn_are_never_both_damaged() {
    let copies = |store: &Store| [b"a", b"b"].map(|name| block_on(store.open("later", name)).unwrap().0);
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let disk = Flaky::default();
        let store = open(&disk).deferring("later");
        for (version, copy) in (0..).zip(copies(&store)) {
            block_on(copy.write_at(0, copy_of(version), WriteOptions::SYNC)).unwrap();
            block_on(copy.settled()).unwrap();
        }
        drop(store);

        let store = open(&disk).deferring("later");
        let both = copies(&store);
        disk.fuel(Some(dice.roll(40)));
        for version in 2..20 {
            let written = both[usize::from(version) % 2].write_at(0, copy_of(version), WriteOptions::SYNC);
            if block_on(written).is_err() {
                break;
            }
        }
        disk.fuel(Some(0));
        drop((both, store));
        let left = contents_of(&disk.after_power_loss(&mut dice), "later");
        let holds = |copy: &Vec<u8>| copy.first().is_some_and(|version| *copy == copy_of(*version));
        assert!(left.iter().any(holds), "seed {seed}: {left:?}");
    }
}

/// What the blobs of one partition hold after an opening.
fn contents_of(disk: &Flaky, partition: &str) -> Vec<Vec<u8>> {
    let store = open(disk);
    let names = block_on(store.scan(partition)).unwrap_or_default();
    let read = |name: Vec<u8>| {
        let (blob, len) = block_on(store.open(partition, &name)).unwrap();
        let bytes = block_on(blob.read_at(0, usize::try_from(len).unwrap(), ReadOptions::default())).unwrap();
        bytes.coalesce().as_ref().to_vec()
    };
    names.into_iter().map(read).collect()
}

/// Writes `count` synced batches of one blob and returns the offsets in the first log file at which they begin.
fn batches(disk: &Flaky, count: u8) -> Vec<usize> {
    let store = Store::open_disk(disk.clone(), &KEY, 1 << 20).unwrap();
    let (blob, _) = block_on(store.open("one", b"blob")).unwrap();
    for i in 0..count {
        block_on(blob.write_at(u64::from(i), vec![i + 1; 1], WriteOptions::SYNC)).unwrap();
    }
    let log = disk.content(journal::recovery::LOGS[0]);
    (0..log.len()).step_by(512).filter(|at| log[*at..].starts_with(b"COJ1")).collect()
}

#[test]
fn a_torn_last_batch_is_left_out() {
    let disk = Flaky::default();
    let last = *batches(&disk, 5).last().unwrap();
    disk.flip(journal::recovery::LOGS[0], last + 70);
    let store = open(&disk);
    // The file was written, but only the log counts; both are allowed, losing more is not.
    let found = contents(&store);
    assert_eq!(found[&("one".to_string(), b"blob".to_vec())][..4], [1, 2, 3, 4]);
    drop(store);
    assert_eq!(contents(&open(&disk)).len(), 1, "it can go on after that");
}

#[test]
fn damage_before_the_end_is_refused_and_named() {
    // Two marks without records from the first opening, then the writes.
    for damaged in 0..7 {
        let disk = Flaky::default();
        let all = batches(&disk, 5);
        assert_eq!(all.len(), 7);
        let offset = all[damaged];
        for at in [0, 9, 33, 50, 64].into_iter().filter(|at| damaged > 1 || *at < 64) {
            disk.flip(journal::recovery::LOGS[0], offset + at);
            if damaged == 6 {
                // The last one: nothing proves that it was ever whole.
                assert!(Store::open_disk(disk.after_power_loss(&mut Dice(1)), &KEY, SMALL).is_ok());
            } else {
                let error = Store::open_disk(disk.clone(), &KEY, SMALL).err().unwrap();
                let text = error.to_string();
                if damaged == 0 {
                    // The other log is empty, so it may as well be the key that is wrong.
                    assert!(matches!(error, JournalError::NoBatch { .. }), "{text}");
                    assert!(text.contains("log-a") && text.contains("format"), "{text}");
                } else {
                    assert!(matches!(error, JournalError::Damaged { .. }), "{text}");
                    assert!(text.contains("log-a") && text.contains(&format!("byte {offset}:")), "{text}");
                }
            }
            disk.flip(journal::recovery::LOGS[0], offset + at);
        }
    }
}

/// Found by fuzzing: the removal was in a log no longer needed, the write in the one that was.
#[test]
fn a_removed_file_may_still_be_written() {
    let disk = Flaky::default();
    let store = open(&disk);
    let (gone, kept) = (name(0), name(1));
    block_on(async {
        let (old, _) = store.open(&gone.0, &gone.1).await.unwrap();
        let (other, _) = store.open(&kept.0, &kept.1).await.unwrap();
        store.remove(&gone.0, Some(&gone.1)).await.unwrap();
        for round in 0..20u8 {
            other.write_at(0, vec![round; 4_000], WriteOptions::SYNC).await.unwrap();
            old.write_at(0, vec![round; 10], WriteOptions::SYNC).await.unwrap();
        }
    });
    drop(store);
    for _ in 0..2 {
        let found = contents(&open(&disk));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [(kept.clone(), vec![19; 4_000])]);
    }
}

#[test]
fn foreign_directories_are_refused() {
    let disk = Flaky::default();
    disk.put("letter.txt", b"hello");
    let error = Store::open_disk(disk, &KEY, SMALL).err().unwrap();
    assert!(matches!(error, JournalError::Stranger(_)) && error.to_string().contains("letter.txt"), "{error}");
    let disk = Flaky::default();
    drop(open(&disk));
    disk.put("format", b"coalition-order journal 2\n");
    let error = Store::open_disk(disk, &KEY, SMALL).err().unwrap();
    assert!(matches!(error, JournalError::Version { .. }) && error.to_string().contains("journal 2"), "{error}");
}

#[test]
fn a_failure_is_final() {
    let disk = Flaky::default();
    let store = open(&disk);
    let (blob, _) = block_on(store.open("one", b"blob")).unwrap();
    let (other, _) = block_on(store.open("one", b"other")).unwrap();
    block_on(blob.write_at(0, b"first", WriteOptions::SYNC)).unwrap();
    disk.fuel(Some(1));
    // The file is written, the log is not.
    let error = block_on(blob.write_at(0, b"other", WriteOptions::SYNC)).unwrap_err();
    disk.fuel(None);
    for again in [
        block_on(blob.sync()),
        block_on(other.write_at(0, b"x", WriteOptions::default())),
        block_on(other.resize(3)),
        block_on(store.remove("one", None)),
        block_on(store.open("two", b"blob")).map(drop),
        block_on(block_on(blob.start_sync())),
    ] {
        assert_eq!(again.unwrap_err().to_string(), error.to_string());
    }
}

#[test]
fn concurrent_waiters_share_flushes_while_log_files_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 256 * 1024;
    let store = JournaledStorage::open_directory(dir.path(), &KEY, limit).unwrap();
    let threads: Vec<_> = (0..4u8)
        .map(|t| {
            let store = store.clone();
            std::thread::spawn(move || {
                let mut files = Vec::new();
                for round in 0..200u64 {
                    // A short-lived blob each round, as the engine has one a view.
                    let short = [t, u8::try_from(round).unwrap()];
                    let (blob, _) = block_on(store.open("two", &short)).unwrap();
                    block_on(blob.write_at(0, vec![t; 3_000], WriteOptions::default())).unwrap();
                    block_on(blob.sync()).unwrap();
                    files.push(short);
                    if round >= 3 {
                        block_on(store.remove("two", Some(&files.remove(0)))).unwrap();
                    }
                    let (long, len) = block_on(store.open("one", &[t])).unwrap();
                    assert_eq!(len, round * 100);
                    block_on(long.write_at(len, vec![u8::try_from(round).unwrap(); 100], WriteOptions::SYNC)).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let before = contents(&store);
    assert_eq!(before.len(), 4 + 4 * 3);
    assert_eq!(before[&("one".into(), vec![2])].len(), 20_000);
    store.close();
    assert!(block_on(store.open("one", b"later")).is_err(), "closed");
    for log in journal::recovery::LOGS {
        let len = std::fs::metadata(dir.path().join(log)).unwrap().len();
        assert!((limit..8 << 20).contains(&len), "{log} was used, and again: {len}");
    }
    let store = JournaledStorage::open_directory(dir.path(), &KEY, limit).unwrap();
    assert!(contents(&store) == before);
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, before.len() + 3, "removed blobs leave no files");
}

#[test]
fn names_and_versions_as_the_engine_expects() {
    let disk = Flaky::default();
    let store = open(&disk);
    let version = |n: u16| BlobVersion::new(n);
    let (blob, len, found) = block_on(store.open_versioned("one", b"v", version(1)..=version(2))).unwrap();
    assert_eq!((len, found), (0, version(2)), "the newest allowed");
    assert!(matches!(block_on(store.open("one", b"v")), Err(Error::BlobVersionMismatch { .. })), "before being open");
    drop(blob);
    let wrong = block_on(store.open_versioned("one", b"v", version(3)..=version(4))).map(drop);
    assert!(matches!(wrong, Err(Error::BlobVersionMismatch { found, .. }) if found == version(2)));
    assert!(block_on(store.open_versioned("one", b"v", version(2)..=version(9))).is_ok());
    for bad in ["", "a/b", "a.b", "a b", ".."] {
        assert!(matches!(block_on(store.open(bad, b"x")), Err(Error::PartitionNameInvalid(_))));
        assert!(matches!(block_on(store.remove(bad, None)), Err(Error::PartitionNameInvalid(_))));
        assert!(matches!(block_on(store.scan(bad)), Err(Error::PartitionNameInvalid(_))));
    }
    assert!(matches!(block_on(store.open("one", &[0; 200])), Err(Error::BlobOpenFailed(..))));
    assert!(matches!(block_on(store.scan("two")), Err(Error::PartitionMissing(_))));
    assert!(matches!(block_on(store.remove("two", None)), Err(Error::PartitionMissing(_))));
    block_on(store.remove("one", Some(b"v"))).unwrap();
    assert_eq!(block_on(store.scan("one")).unwrap(), Vec::<Vec<u8>>::new(), "an emptied partition is still one");
    let (later, _) = block_on(store.open("two", b"later")).unwrap();
    block_on(later.sync()).unwrap();
    drop((later, store));
    let store = open(&disk);
    assert!(block_on(store.open_versioned("one", b"v", version(1)..=version(1))).is_ok(), "removed, so free again");
}

#[test]
fn buffers_as_the_engine_expects() {
    let store = open(&Flaky::default());
    let (blob, _) = block_on(store.open("one", b"b")).unwrap();
    block_on(blob.write_at(1_024, Vec::<u8>::new(), WriteOptions::SYNC)).unwrap();
    assert_eq!(blob.size().unwrap(), 0, "writing nothing extends nothing");
    let parts: Vec<IoBuf> = [&b"hello"[..], b"", b" ", b"world"].map(IoBuf::copy_from_slice).into();
    block_on(blob.write_at(3, parts, WriteOptions::SYNC)).unwrap();
    let read = |offset, len| block_on(blob.read_at(offset, len, ReadOptions::DONT_CACHE));
    assert_eq!(read(0, 14).unwrap().coalesce(), b"\0\0\0hello world");
    assert_eq!(read(14, 0).unwrap().len(), 0);
    assert!(read(0, 15).is_err() && read(u64::MAX, 1).is_err() && read(0, usize::MAX >> 1).is_err());
    assert!(block_on(blob.write_at(u64::MAX, b"x", WriteOptions::default())).is_err());

    let mut large = IoBufMut::with_capacity(64);
    let pointer = large.as_mut_ptr();
    let found = block_on(blob.read_at_buf(3, 5, large, ReadOptions::default())).unwrap();
    assert!(found.is_single() && found.chunk() == b"hello" && found.chunk().as_ptr() == pointer.cast_const());
    let pair = || IoBufsMut::from(vec![IoBufMut::with_capacity(5), IoBufMut::with_capacity(6)]);
    for bufs in [pair(), IoBufsMut::from(vec![IoBufMut::zeroed(5), IoBufMut::zeroed(6)])] {
        let mut found = block_on(blob.read_at_buf(3, 11, bufs, ReadOptions::default())).unwrap();
        assert!(!found.is_single() && found.chunk() == b"hello");
        found.advance(5);
        assert_eq!(found.chunk(), b" world");
    }
    let small = std::panic::AssertUnwindSafe(|| block_on(blob.read_at_buf(0, 12, pair(), ReadOptions::default())));
    assert!(std::panic::catch_unwind(small).is_err(), "too small a buffer is a mistake of the caller");
    assert_eq!(Arc::new(blob).size().unwrap(), 14);
}
