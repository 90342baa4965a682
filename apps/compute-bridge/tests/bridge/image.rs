//! Images: verified slice by slice and as a whole, resumed after a cut, from several sources, bounded.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use coalition::UniqueId;
use compute_bridge::image::{ImageError, ImageSource, ImageStore};

use super::harness::{MemorySource, SOON};

const MIB: usize = 1 << 20;

fn hash(bytes: &[u8]) -> UniqueId {
    UniqueId::from_bytes(*blake3::hash(bytes).as_bytes())
}

fn bytes(n: usize, seed: u8) -> Vec<u8> {
    (0..n).map(|i| u8::try_from((i / 3) % 251).unwrap() ^ seed).collect()
}

/// One source as the list that is asked.
fn of(source: &MemorySource) -> [&dyn ImageSource; 1] {
    [source]
}

fn calls(source: &MemorySource) -> u32 {
    *source.calls.lock().unwrap()
}

#[tokio::test]
async fn slices_become_the_granted_image_and_stay_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 16 << 20, 16 << 20).unwrap();
    let image = bytes(7 * MIB + 9, 0);
    let source = MemorySource { fail_every: 5, ..MemorySource::new(&image) };
    let size = image.len() as u64;
    let held = store.obtain(hash(&image), size, &of(&source), SOON).await.unwrap();
    assert_eq!(std::fs::read(&held.image().path).unwrap(), image);
    let before = calls(&source);
    let again = store.obtain(hash(&image), size, &of(&source), SOON).await.unwrap();
    assert_eq!((again.image().path.clone(), calls(&source)), (held.image().path.clone(), before));
}

#[tokio::test]
async fn other_bytes_are_refused_and_nothing_of_them_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 16 << 20, 4 << 20).unwrap();
    let image = bytes(2 * MIB, 0);
    let size = image.len() as u64;
    let refused = async |size: u64, source: &MemorySource| {
        store.obtain(hash(&image), size, &of(source), SOON).await.err().unwrap()
    };
    let liar = MemorySource { lies: true, ..MemorySource::new(&image) };
    let wrong = refused(size, &liar).await;
    assert!(matches!(&wrong, ImageError::Mismatch { expected } if *expected == hash(&image)), "{wrong}");
    let honest = MemorySource::new(&image);
    for announced in [size - 1, size + 1, size + (1 << 20)] {
        let length = refused(announced, &honest).await;
        assert!(matches!(length, ImageError::Length { expected_bytes } if expected_bytes == announced), "{length}");
    }
    let huge = refused(5 << 20, &honest).await;
    assert!(matches!(huge, ImageError::TooLarge { given_bytes: 5_242_880, limit_bytes: 4_194_304 }), "{huge}");
    let other = refused(size, &MemorySource::new(&bytes(2 * MIB, 1))).await;
    assert!(matches!(other, ImageError::Unavailable { got_bytes: 0, .. }), "{other}");
    assert_eq!(std::fs::read_dir(dir.path().join("objects")).unwrap().count(), 0);
    // The liar costs the image nothing where somebody else has it.
    let sources: [&dyn ImageSource; 2] = [&liar, &honest];
    store.obtain(hash(&image), size, &sources, SOON).await.unwrap();
    // With another announced length it is refused although it is here.
    let length = refused(size - 1, &honest).await;
    assert!(matches!(length, ImageError::Length { .. }), "{length}");
}

#[tokio::test]
async fn a_cut_transfer_goes_on_in_the_next_process_from_another_source() {
    let dir = tempfile::tempdir().unwrap();
    let image = bytes(5 * MIB, 3);
    let store = ImageStore::open(dir.path(), 16 << 20, 16 << 20).unwrap();
    let cut = MemorySource { ends: 3 << 20, ..MemorySource::new(&image) };
    let error = store.obtain(hash(&image), 5 << 20, &of(&cut), SOON).await.err().unwrap();
    assert!(matches!(error, ImageError::Unavailable { got_bytes: 3_145_728, .. }), "{error}");
    drop(store);
    let store = ImageStore::open(dir.path(), 16 << 20, 16 << 20).unwrap();
    let rest = MemorySource::new(&image);
    store.obtain(hash(&image), 5 << 20, &of(&rest), SOON).await.unwrap();
    assert_eq!(calls(&rest), 2, "only the missing two slices were asked for");
}

#[tokio::test]
async fn a_source_that_never_answers_costs_its_wait_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let image = bytes(MIB, 3);
    let store = ImageStore::open(dir.path(), 16 << 20, 16 << 20).unwrap();
    let dead = MemorySource { fail_every: 1, ..MemorySource::new(&image) };
    let patience = Duration::from_millis(500);
    let error = store.obtain(hash(&image), 1 << 20, &of(&dead), patience).await.err().unwrap();
    assert!(matches!(&error, ImageError::Unavailable { reason, .. } if reason == "scripted"), "{error}");
    let honest = MemorySource::new(&image);
    let sources: [&dyn ImageSource; 2] = [&dead, &honest];
    store.obtain(hash(&image), 1 << 20, &sources, SOON).await.unwrap();
}

#[tokio::test]
async fn a_damaged_cache_file_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 16 << 20, 16 << 20).unwrap();
    let image = bytes(9_000, 4);
    let source = MemorySource::new(&image);
    let path = store.obtain(hash(&image), 9_000, &of(&source), SOON).await.unwrap().image().path.clone();
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"!", 5_000).unwrap();
    store.obtain(hash(&image), 9_000, &of(&source), SOON).await.unwrap();
    assert_eq!((std::fs::read(&path).unwrap() == image, calls(&source)), (true, 2));
}

#[tokio::test]
async fn the_cache_keeps_its_cap_and_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 5 << 20, 1 << 20).unwrap();
    let images: Vec<Vec<u8>> = (0..7).map(|i| bytes(MIB, 10 + i)).collect();
    let obtain = async |image: &Vec<u8>| {
        let source = MemorySource::new(image);
        store.obtain(hash(image), 1 << 20, &of(&source), SOON).await
    };
    let first = obtain(&images[0]).await.unwrap();
    for image in &images[1..] {
        obtain(image).await.unwrap();
    }
    let kept = std::fs::read_dir(dir.path().join("objects")).unwrap();
    let total: u64 = kept.map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(total <= 5 << 20, "{total}");
    assert!(first.image().path.exists(), "a held image was removed");
    let mut held = vec![first];
    for image in &images[3..6] {
        held.push(obtain(image).await.unwrap());
    }
    let full = obtain(&images[6]).await.err().unwrap();
    assert!(matches!(full, ImageError::NoRoom { .. }), "four images in use fill the cache: {full}");
    assert!(held.iter().all(|held| held.image().path.exists()));
}

#[tokio::test]
async fn what_an_earlier_version_kept_unverified_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ab.image"), b"old").unwrap();
    std::fs::write(dir.path().join("ab.part"), b"old").unwrap();
    ImageStore::open(dir.path(), 16 << 20, 16 << 20).unwrap();
    assert!(!dir.path().join("ab.image").exists() && !dir.path().join("ab.part").exists());
}

#[tokio::test]
async fn many_who_want_the_same_image_cause_one_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 16 << 20, 16 << 20).unwrap();
    let image = bytes(6 * MIB, 9);
    let source = MemorySource::new(&image);
    let sources = of(&source);
    let all = (0..10).map(|_| store.obtain(hash(&image), 6 << 20, &sources, SOON));
    let held = futures::future::join_all(all).await;
    assert!(held.iter().all(Result::is_ok));
    assert_eq!(calls(&source), 6);
}

/// Two bridges at once, from one source, in directories of their own.
#[tokio::test]
async fn two_bridges_fetch_side_by_side() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = bytes(4 * MIB + 1, 12);
    let source = MemorySource { fail_every: 4, ..MemorySource::new(&image) };
    let open = |dir: &tempfile::TempDir| ImageStore::open(dir.path(), 16 << 20, 16 << 20).unwrap();
    let (one, two) = (open(&one), open(&two));
    let (sources, size) = (of(&source), image.len() as u64);
    let both =
        tokio::join!(one.obtain(hash(&image), size, &sources, SOON), two.obtain(hash(&image), size, &sources, SOON));
    let (a, b) = (both.0.unwrap(), both.1.unwrap());
    assert_eq!(std::fs::read(&a.image().path).unwrap(), image);
    assert_eq!(std::fs::read(&b.image().path).unwrap(), image);
}
