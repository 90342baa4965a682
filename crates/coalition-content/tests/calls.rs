//! A store behind a node, pushed to and fetched from over loopback; and sources that lie, stall and go away.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coalition::UniqueId;
use coalition_content::client::StoreClient;
use coalition_content::fetch::{FetchError, Source, SourceError, fetch};
use coalition_content::service::{ContentService, FileService, Policy};
use coalition_content::store::{Limits, Store};
use coalition_content::tree::Outline;
use coalition_content::wire::Ask;
use coalition_content::{Content, MAX_SLICE_BYTES, PIECE_BYTES};
use coalition_universe::{CallError, Fault, Node, NodeConfig, NodeKey, PeerId, Service, UNIVERSE};
use futures::future::BoxFuture;

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

async fn node(seed: u8) -> Arc<Node> {
    let config = NodeConfig {
        network_id: UNIVERSE.derive("content test"),
        key: NodeKey::from_bytes([seed; 32]),
        relay: "http://127.0.0.1:9/".into(),
        bind: None,
        bootstrap: vec![],
        public: false,
        start_timeout: SOON,
    };
    Node::start(config).await.unwrap()
}

fn peer(seed: u8) -> PeerId {
    NodeKey::from_bytes([seed; 32]).peer_id()
}

struct Sample {
    outline: Arc<Outline>,
    file: Arc<File>,
}

fn sample(size: usize, seed: u8) -> Sample {
    let bytes: Vec<u8> = (0..size).map(|i| u8::try_from((i / 5 + i / 1_024) % 241).unwrap() ^ seed).collect();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    Sample { outline: Arc::new(Outline::read(&bytes[..], size as u64).unwrap()), file: Arc::new(file) }
}

impl Sample {
    fn content(&self) -> Content {
        self.outline.content()
    }
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir, Limits::of(256 << 20)).unwrap()
}

fn policy() -> Policy {
    let pushers = [(peer(2), 100 << 20), (peer(3), 1 << 20)].into();
    Policy { pushers, anyone_bytes: 2 << 20, anyone_total_bytes: 3 << 20 }
}

/// A store as a source, counting what it was asked.
struct Remote {
    client: StoreClient,
    asked: AtomicU32,
}

impl Remote {
    fn new(client: StoreClient) -> Self {
        Self { client, asked: AtomicU32::new(0) }
    }
}

#[async_trait]
impl Source for Remote {
    async fn slice(&self, content: Content, range: Range<u64>, _: Duration) -> Result<Vec<u8>, SourceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.client.slice(content, range).await.map_err(|error| match error.code() {
            Some("unknown_content") => SourceError::Never("it is not there".into()),
            Some("other_size") => SourceError::OtherSize,
            _ => SourceError::Later(error.to_string()),
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_list_fetch_and_remove_over_the_network() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, pusher, reader) = tokio::join!(node(1), node(2), node(4));
    server.serve(Arc::new(ContentService::new(open(dir.path()), policy())));
    let store = StoreClient::new(Arc::clone(&pusher), server.address());
    let image = sample(20 * MIB + 3, 1);
    let told = Mutex::new(Vec::new());
    let done = store.push(&image.outline, &image.file, SOON, |now| told.lock().unwrap().push(now)).await.unwrap();
    assert_eq!((done.there_bytes, done.sent_bytes), (0, 20 * PIECE_BYTES + 3));
    assert!(told.lock().unwrap().is_sorted_by_key(|now| now.sent_bytes));
    // Again: nothing is sent.
    let again = store.push(&image.outline, &image.file, SOON, |_| ()).await.unwrap();
    assert_eq!((again.there_bytes, again.sent_bytes), (20 * PIECE_BYTES + 3, 0));
    let listing = store.list().await.unwrap();
    assert_eq!((listing.quota_bytes, listing.used_bytes, listing.entries.len()), (100 << 20, 20 * PIECE_BYTES + 3, 1));
    // Whoever knows the hash may fetch, and nobody else's holds are shown.
    let from = StoreClient::new(Arc::clone(&reader), server.address());
    assert_eq!(from.stat(image.content().hash()).await.unwrap(), Some(20 * PIECE_BYTES + 3));
    assert_eq!(from.list().await.unwrap().entries, []);
    let local = open(cache.path());
    let remote = Remote::new(from.clone());
    fetch(&local, image.content(), &[&remote], SOON, |_| ()).await.unwrap();
    assert_eq!(local.check(image.content().hash()).unwrap(), image.content().size());
    assert_eq!(remote.asked.load(Ordering::SeqCst), 21);
    assert!(!from.remove(image.content().hash()).await.unwrap());
    assert!(store.remove(image.content().hash()).await.unwrap());
    assert_eq!(from.stat(image.content().hash()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_have_their_codes() {
    let dir = tempfile::tempdir().unwrap();
    let (server, listed, anyone) = tokio::join!(node(1), node(3), node(4));
    server.serve(Arc::new(ContentService::new(open(dir.path()), policy())));
    let push = async |node: &Arc<Node>, size: usize, seed: u8| {
        let image = sample(size, seed);
        let store = StoreClient::new(Arc::clone(node), server.address());
        let pushed = store.push(&image.outline, &image.file, SOON, |_| ()).await;
        pushed.map_err(|error| error.code().unwrap_or("none").to_owned())
    };
    assert_eq!(push(&listed, 2 * MIB, 1).await.unwrap_err(), "too_large");
    push(&listed, MIB - 70_000, 2).await.unwrap();
    assert_eq!(push(&listed, 90_000, 3).await.unwrap_err(), "quota");
    push(&anyone, 2 * MIB, 4).await.unwrap();
    assert_eq!(push(&anyone, MIB, 5).await.unwrap_err(), "quota");
    assert_eq!(push(&node(5).await, 2 * MIB, 6).await.unwrap_err(), "quota", "all unlisted peers together");
    let closed = Policy { anyone_bytes: 0, ..policy() };
    let dir = tempfile::tempdir().unwrap();
    let server = node(6).await;
    server.serve(Arc::new(ContentService::new(open(dir.path()), closed)));
    let image = sample(MIB, 7);
    let store = StoreClient::new(anyone, server.address());
    let refused = store.push(&image.outline, &image.file, SOON, |_| ()).await.unwrap_err();
    assert_eq!(refused.code(), Some("not_allowed"));
    assert_eq!(store.slice(image.content(), 0..5).await.unwrap_err().code(), Some("unknown_content"));
    let call = async |method: &str, body: Vec<u8>| match store_call(&listed, &server, method, body).await {
        Err(CallError::Refused(fault)) => fault.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(call("content.slice", vec![1; 40]).await, "malformed");
    assert_eq!(call("content.other", vec![]).await, "unknown_method");
    let put = Ask::Put(image.content(), 0, vec![0; 100]);
    assert_eq!(call("content.put", put.to_body()).await, "unknown_content");
    let begun = store_call(&listed, &server, "content.put", Ask::Begin(image.content()).to_body()).await;
    begun.unwrap();
    assert_eq!(call("content.put", put.to_body()).await, "unverified");
}

async fn store_call(node: &Arc<Node>, server: &Arc<Node>, method: &str, body: Vec<u8>) -> Result<Vec<u8>, CallError> {
    node.call_at(&server.address(), method, body, SOON).await
}

/// A push goes on when the store's process is replaced by another on the same directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_survives_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (server, pusher) = tokio::join!(node(1), node(2));
    let address = server.address();
    let image = sample(30 * MIB, 1);
    let half = tempfile::tempdir().unwrap();
    let second = open(half.path());
    // The first store forgets all on its way: another directory takes its place in the middle of the push.
    server.serve(Arc::new(ContentService::new(open(dir.path()), policy())));
    let store = StoreClient::new(pusher, address);
    let swapped = Mutex::new(false);
    let done = store
        .push(&image.outline, &image.file, SOON, |now| {
            let mut swapped = swapped.lock().unwrap();
            if now.sent_bytes > 10 << 20 && !*swapped {
                *swapped = true;
                server.serve(Arc::new(ContentService::new(Arc::clone(&second), policy())));
            }
        })
        .await
        .unwrap();
    assert!(done.sent_bytes > 30 * PIECE_BYTES, "some of it went twice");
    assert_eq!(second.check(image.content().hash()).unwrap(), 30 << 20);
}

/// What becomes of a slice on its way.
type Twist = fn(Vec<u8>) -> Result<Vec<u8>, SourceError>;

/// Serves a file with a scripted fault at one piece.
struct Scripted {
    file: FileService,
    at: u32,
    fault: Twist,
    asked: AtomicU32,
}

impl Scripted {
    fn new(image: &Sample, at: u32, fault: Twist) -> Self {
        let file = FileService::new((*image.outline).clone(), image.file.try_clone().unwrap());
        Self { file, at, fault, asked: AtomicU32::new(0) }
    }

    fn honest(image: &Sample) -> Self {
        Self::new(image, u32::MAX, Ok)
    }
}

#[async_trait]
impl Source for Scripted {
    async fn slice(&self, content: Content, range: Range<u64>, _: Duration) -> Result<Vec<u8>, SourceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let ask = Ask::Slice(content, range.clone());
        let (slice, _) = self.file.answer(ask.method(), &ask.to_body()).map_err(|fault| match fault.code.as_str() {
            "other_size" => SourceError::OtherSize,
            code => SourceError::Never(code.to_owned()),
        })?;
        if range.start / PIECE_BYTES == u64::from(self.at) { (self.fault)(slice) } else { Ok(slice) }
    }
}

fn flipped(mut slice: Vec<u8>) -> Result<Vec<u8>, SourceError> {
    let middle = slice.len() / 2;
    slice[middle] ^= 0x80;
    Ok(slice)
}

/// At every slice: wrong bytes, a cut answer, silence. The next source completes it, and nothing unverified is ever counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_slice_the_next_source_takes_over() {
    let image = sample(5 * MIB + 9, 3);
    let faults: [Twist; 4] = [
        flipped,
        |slice| Ok(slice[..slice.len() / 3].to_vec()),
        |_| Err(SourceError::Never("evicted".into())),
        |_| Ok(vec![0; MAX_SLICE_BYTES]),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        for at in 0..6 {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path());
            let (bad, good) = (Scripted::new(&image, at, fault), Scripted::honest(&image));
            fetch(&store, image.content(), &[&bad, &good], SOON, |_| ()).await.unwrap();
            assert_eq!(store.check(image.content().hash()).unwrap(), image.content().size(), "{number} at {at}");
            assert!(good.asked.load(Ordering::SeqCst) >= 1);
            let both = bad.asked.load(Ordering::SeqCst) + good.asked.load(Ordering::SeqCst);
            assert!(both <= 6 + 4, "at most what was on its way is asked for again: {both}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_fetch_goes_on_in_another_process_from_another_source() {
    let image = sample(5 * MIB + 9, 4);
    for at in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let cut = Scripted::new(&image, at, |_| Err(SourceError::Never("gone".into())));
        let error = fetch(&store, image.content(), &[&cut], SOON, |_| ()).await.unwrap_err();
        let FetchError::Unavailable { got_bytes, .. } = error else { panic!("{error}") };
        drop(store);
        let store = open(dir.path());
        let rest = Scripted::honest(&image);
        fetch(&store, image.content(), &[&rest], SOON, |_| ()).await.unwrap();
        let fetched = u64::from(rest.asked.load(Ordering::SeqCst));
        assert_eq!(fetched, (image.content().size() - got_bytes).div_ceil(PIECE_BYTES), "cut at {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_nothing_came_is_told_apart() {
    let (image, other) = (sample(2 * MIB, 5), sample(2 * MIB, 6));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let liar = Scripted::new(&image, 1, flipped);
    let error = fetch(&store, image.content(), &[&liar], SOON, |_| ()).await.unwrap_err();
    assert!(matches!(error, FetchError::Wrong), "{error}");
    let longer = Content::new(image.content().hash(), 3 << 20).unwrap();
    let error = fetch(&store, longer, &[&Scripted::honest(&image)], SOON, |_| ()).await.unwrap_err();
    assert!(matches!(error, FetchError::OtherSize { size_bytes: 3_145_728 }), "{error}");
    let error = fetch(&store, image.content(), &[&Scripted::honest(&other)], SOON, |_| ()).await.unwrap_err();
    assert!(matches!(error, FetchError::Unavailable { got_bytes: 1_048_576, .. }), "{error}");
    let error = fetch(&store, image.content(), &[], SOON, |_| ()).await.unwrap_err();
    assert!(matches!(error, FetchError::Unavailable { .. }), "{error}");
    let stalls = Scripted::new(&image, 1, |_| Err(SourceError::Later("busy".into())));
    let soon = Duration::from_millis(600);
    let error = fetch(&store, image.content(), &[&stalls], soon, |_| ()).await.unwrap_err();
    assert!(matches!(&error, FetchError::Unavailable { reason, .. } if reason == "busy"), "{error}");
}

/// Answers slices that never end being asked for, and counts how many are in memory at once.
struct Slow(Arc<AtomicU32>);

impl Service for Slow {
    fn call(&self, _: PeerId, _: String, _: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::pending())
    }

    fn answers_large(&self, method: &str) -> bool {
        method == "content.slice"
    }
}

/// One peer that takes no answers holds at most eight of them, and the next is told that there is no room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_no_answers_holds_few() {
    let (server, client) = tokio::join!(node(1), node(2));
    let begun = Arc::new(AtomicU32::new(0));
    server.serve(Arc::new(Slow(Arc::clone(&begun))));
    let address = server.address();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (client, address) = (Arc::clone(&client), address.clone());
            tokio::spawn(async move { client.call_at(&address, "content.slice", vec![], SOON).await })
        })
        .collect();
    let deadline = std::time::Instant::now() + SOON;
    while begun.load(Ordering::SeqCst) < 8 {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let ninth = client.call_at(&address, "content.slice", vec![], SOON).await.unwrap_err();
    assert!(ninth.to_string().contains("no room"), "{ninth}");
    assert_eq!(begun.load(Ordering::SeqCst), 8);
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn the_policy_tells_listed_peers_from_others() {
    assert_eq!(policy().pusher(peer(2)).unwrap().strangers_bytes, None);
    assert_eq!(policy().pusher(peer(9)).unwrap().strangers_bytes, Some(3 << 20));
    assert_eq!(Policy::default().pusher(peer(9)), None);
    let id = UniqueId::from_bytes([1; 32]);
    assert_eq!(Ask::read("content.stat", &Ask::Stat(id).to_body()).unwrap(), Ask::Stat(id));
}
