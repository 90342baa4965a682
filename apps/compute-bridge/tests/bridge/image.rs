//! Images: verified before anything, resumed after a cut, bounded.

use std::time::Duration;

use coalition::UniqueId;
use compute_bridge::image::{ImageError, ImageStore};

use super::harness::{MemorySource, SOON};

fn hash(bytes: &[u8]) -> UniqueId {
    UniqueId::from_bytes(*blake3::hash(bytes).as_bytes())
}

fn bytes(n: usize, seed: u8) -> Vec<u8> {
    (0..n).map(|i| u8::try_from(i % 251).unwrap() ^ seed).collect()
}

#[tokio::test]
async fn pieces_become_the_granted_image_and_stay_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 20, 1 << 20).unwrap();
    let image = bytes(100_000, 0);
    let source = MemorySource { piece: 7_777, fail_every: 5, ..MemorySource::new(&image) };
    let held = store.obtain(hash(&image), 100_000, &source, SOON).await.unwrap();
    assert_eq!(std::fs::read(&held.image().path).unwrap(), image);
    let calls = *source.calls.lock().unwrap();
    let again = store.obtain(hash(&image), 100_000, &source, SOON).await.unwrap();
    assert_eq!((again.image().path.clone(), *source.calls.lock().unwrap()), (held.image().path.clone(), calls));
}

#[tokio::test]
async fn other_bytes_are_refused_and_nothing_of_them_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 20, 1 << 20).unwrap();
    let (wanted, sent) = (bytes(5_000, 0), bytes(5_000, 1));
    let refused = store.obtain(hash(&wanted), 5_000, &MemorySource::new(&sent), SOON).await.err().unwrap();
    assert!(
        matches!(&refused, ImageError::Mismatch { expected, actual } if *expected == hash(&wanted) && *actual == hash(&sent).to_string())
    );
    let long = store.obtain(hash(&wanted), 4_000, &MemorySource::new(&wanted), SOON).await.err().unwrap();
    assert!(matches!(long, ImageError::Length { expected_bytes: 4_000, .. }), "{long}");
    let short = store.obtain(hash(&wanted), 6_000, &MemorySource::new(&wanted), SOON).await.err().unwrap();
    assert!(matches!(short, ImageError::Unavailable { got_bytes: 5_000, size_bytes: 6_000, .. }), "{short}");
    let huge = store.obtain(hash(&wanted), 2 << 20, &MemorySource::new(&wanted), SOON).await.err().unwrap();
    assert!(matches!(huge, ImageError::TooLarge { given_bytes: 2_097_152, limit_bytes: 1_048_576 }), "{huge}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".image")), "{left:?}");
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let image = bytes(50_000, 3);
    let store = ImageStore::open(dir.path(), 1 << 20, 1 << 20).unwrap();
    let cut = MemorySource { piece: 10_000, ..MemorySource::new(&image[..30_000]) };
    let error = store.obtain(hash(&image), 50_000, &cut, Duration::from_millis(300)).await.err().unwrap();
    assert!(matches!(error, ImageError::Unavailable { got_bytes: 30_000, .. }), "{error}");
    drop(store);
    let store = ImageStore::open(dir.path(), 1 << 20, 1 << 20).unwrap();
    let rest = MemorySource { piece: 10_000, ..MemorySource::new(&image) };
    store.obtain(hash(&image), 50_000, &rest, SOON).await.unwrap();
    assert_eq!(*rest.calls.lock().unwrap(), 2, "only the missing 20,000 bytes were asked for");
}

#[tokio::test]
async fn what_another_requester_left_half_sent_and_wrong_costs_nobody_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 20, 1 << 20).unwrap();
    let (image, other) = (bytes(50_000, 3), bytes(30_000, 4));
    let cut = MemorySource { piece: 10_000, ..MemorySource::new(&other) };
    let error = store.obtain(hash(&image), 50_000, &cut, Duration::from_millis(300)).await.err().unwrap();
    assert!(matches!(error, ImageError::Unavailable { got_bytes: 30_000, .. }), "{error}");
    let honest = MemorySource { piece: 10_000, ..MemorySource::new(&image) };
    let held = store.obtain(hash(&image), 50_000, &honest, SOON).await.unwrap();
    assert_eq!(std::fs::read(&held.image().path).unwrap(), image);
    assert_eq!(*honest.calls.lock().unwrap(), 7, "the missing 20,000 bytes, then all 50,000");
}

#[tokio::test]
async fn a_damaged_cache_file_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 20, 1 << 20).unwrap();
    let image = bytes(9_000, 4);
    let path = store.obtain(hash(&image), 9_000, &MemorySource::new(&image), SOON).await.unwrap().image().path.clone();
    std::fs::write(&path, b"damaged").unwrap();
    store.obtain(hash(&image), 9_000, &MemorySource::new(&image), SOON).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), image);
}

#[tokio::test]
async fn the_cache_keeps_its_cap_and_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 25_000, 25_000).unwrap();
    let images: Vec<Vec<u8>> = (0..4).map(|i| bytes(10_000, 10 + i)).collect();
    let first = store.obtain(hash(&images[0]), 10_000, &MemorySource::new(&images[0]), SOON).await.unwrap();
    for image in &images[1..] {
        store.obtain(hash(image), 10_000, &MemorySource::new(image), SOON).await.unwrap();
    }
    let total: u64 = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(total <= 25_000, "{total}");
    assert!(first.image().path.exists(), "a held image was removed");
}

#[tokio::test]
async fn many_who_want_the_same_image_cause_one_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 20, 1 << 20).unwrap();
    let image = bytes(40_000, 9);
    let source = MemorySource { piece: 1_000, ..MemorySource::new(&image) };
    let all = (0..10).map(|_| store.obtain(hash(&image), 40_000, &source, SOON));
    let held = futures::future::join_all(all).await;
    assert!(held.iter().all(Result::is_ok));
    assert_eq!(*source.calls.lock().unwrap(), 40);
}
