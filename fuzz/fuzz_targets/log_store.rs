#![no_main]
//! A member's log directory with one damaged file: opening refuses it in words, or everything in it reads as it was
//! written. The first byte says which file, the second whether the rest replaces it or edits it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use coalition_fuzz::{damaged, key, organism, roster, verifier};
use coalition_log::{
    Draft,
    checkpoint::{Cosigner, SignedCheckpoint},
    store::{Store, StoreOptions},
};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 6] = ["pending.log", "guard", "checkpoint", "identity", "tile/0/000", "tile/entries/000"];

/// In memory where the system has such a place: thousands of directories are made a second.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("temporary directory")
}

struct Sound {
    files: Vec<(PathBuf, Vec<u8>)>,
    entries: Vec<Arc<[u8]>>,
    /// Sizes of the log after each append, which are all a torn end may leave.
    sizes: Vec<u64>,
}

static SOUND: LazyLock<Sound> = LazyLock::new(|| {
    let dir = scratch();
    let mut store = Store::open(dir.path(), organism(), &roster(), StoreOptions::default()).expect("a new log opens");
    let mut sizes = vec![0];
    for height in 1..=6u64 {
        let count = if height == 1 { 256 } else { 3 };
        let first = store.size();
        let entries: Vec<_> = (first..first + count)
            .map(|index| Draft::new("fuzz.entry", index.to_be_bytes().to_vec()).into_entry(index, None, 1))
            .collect();
        store.append(height, &entries).expect("appended");
        sizes.push(store.size());
        if height == 2 {
            store.rotate().expect("rotated");
        }
        if height == 4 {
            let lines = (0..3).map(|i| {
                let cosigner = Cosigner::new(organism(), &format!("m{i}"), key(i));
                store.cosign(&cosigner, 1).expect("signed")
            });
            let signatures = lines.collect();
            let head = store.head();
            let checkpoint =
                coalition_log::checkpoint::Checkpoint { organism: organism(), size: head.size, root: head.root };
            let note = SignedCheckpoint { checkpoint, signatures };
            let certified = verifier().certify(&note).expect("three of four");
            store.put_certified(&certified).expect("stored");
        }
    }
    let entries = store.entries(0..store.size(), usize::MAX).expect("readable");
    drop(store);
    let files = FILES.iter().map(|name| (PathBuf::from(name), fs::read(dir.path().join(name)).expect("it is there")));
    Sound { files: files.collect(), entries, sizes }
});

fuzz_target!(|data: &[u8]| {
    let [which, how, rest @ ..] = data else { return };
    let dir = scratch();
    for (i, (name, content)) in SOUND.files.iter().enumerate() {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("in the directory")).expect("created");
        let hit = i == usize::from(*which) % FILES.len();
        let content = match (hit, how % 2) {
            (false, _) => content.clone(),
            (true, 0) => damaged(content, rest),
            (true, _) => rest.to_vec(),
        };
        fs::write(path, content).expect("written");
    }
    let Ok(store) = Store::open(dir.path(), organism(), &roster(), StoreOptions::default()) else { return };
    let size = store.size();
    assert!(SOUND.sizes.contains(&size), "{size} entries were never all there were");
    for index in 0..size {
        if let Ok(bytes) = store.entry_bytes(index) {
            assert_eq!(bytes, SOUND.entries[usize::try_from(index).expect("few")]);
        }
    }
});
