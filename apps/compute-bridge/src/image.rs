//! The requester's image: fetched slice by slice from the sources its envelope names, each verified as it arrives, kept by hash
//! under a cap.
//!
//! Nothing is done with bytes whose blake3 is not the granted one. A transfer that was cut goes on where it stopped, from
//! whichever source. File names are hashes; where an image came from is not kept.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coalition::UniqueId;
use coalition_content::fetch::{FetchError, Source, SourceError, fetch};
use coalition_content::store::{Held, Limits, Store, StoreError};
use coalition_content::wire::Ask;
use coalition_content::{Content, PIECE_BYTES};
use coalition_universe::{CallError, Node, PeerAddress};

use crate::backend::LocalImage;

/// The method that hands a requester the evidence of its workload's guest; the body is the evidence, the answer empty.
pub const EVIDENCE_METHOD: &str = "attestation.evidence";
/// Wait for one answer before the requester is asked again.
const CALL_WAIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(200);

/// Somebody an envelope names: a store, or the requester's own node.
#[async_trait]
pub trait ImageSource: Source {
    /// Hands the requester behind it the evidence of its workload's guest.
    ///
    /// # Errors
    /// A sentence about what went wrong that names nobody.
    async fn deliver(&self, evidence: Vec<u8>, deadline: Duration) -> Result<(), String>;
}

/// Why an image is not there.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Larger than the operator accepts.
    #[error("the image has {given_bytes} bytes, accepted are at most {limit_bytes}")]
    TooLarge {
        /// Size announced.
        given_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// It could not be fetched in time, or nobody has it.
    #[error("the image could not be fetched: {got_bytes} of {size_bytes} bytes arrived ({reason})")]
    Unavailable {
        /// Bytes that arrived.
        got_bytes: u64,
        /// Bytes announced.
        size_bytes: u64,
        /// The last problem; names nobody.
        reason: String,
    },
    /// What was sent are other bytes than granted.
    #[error("what was sent does not belong to blake3 {expected}, which was granted")]
    Mismatch {
        /// From the grant.
        expected: UniqueId,
    },
    /// Its length is another than announced.
    #[error("the image does not have the {expected_bytes} bytes that were announced")]
    Length {
        /// From the envelope.
        expected_bytes: u64,
    },
    /// Images in use fill the cache.
    #[error("the image cache has no room for {needed_bytes} bytes beside the images in use")]
    NoRoom {
        /// Bytes needed.
        needed_bytes: u64,
    },
    /// The cache's disk refused.
    #[error("the image cache cannot be used")]
    Cache(#[source] StoreError),
}

/// Images on this machine, by hash.
pub struct ImageStore {
    store: Arc<Store>,
    max_image_bytes: u64,
    /// One transfer per hash at a time.
    transfers: Mutex<BTreeMap<UniqueId, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image that stays in the cache as long as this is held.
pub struct HeldImage {
    image: LocalImage,
    _held: Held,
}

impl HeldImage {
    /// The image.
    #[must_use]
    pub const fn image(&self) -> &LocalImage {
        &self.image
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageStore {
    /// A cache in `dir`, which is made when absent. It keeps to `cap_bytes`, or to what the largest image takes.
    ///
    /// # Errors
    /// [`ImageError::Cache`].
    pub fn open(dir: &Path, cap_bytes: u64, max_image_bytes: u64) -> Result<Arc<Self>, ImageError> {
        let tree = max_image_bytes / 512 + PIECE_BYTES;
        let capacity = cap_bytes.max(max_image_bytes.saturating_add(tree));
        let limits = Limits { idle: Duration::ZERO, ..Limits::of(capacity) };
        let store = Store::open(dir, limits).map_err(ImageError::Cache)?;
        if let Err(error) = remove_unverified(dir) {
            tracing::warn!(%error, "images that an earlier version fetched could not be removed");
        }
        Ok(Arc::new(Self { store, max_image_bytes, transfers: Mutex::default() }))
    }

    /// The image of this hash, from the cache or from `sources`, in their order, hash and size checked.
    ///
    /// # Errors
    /// [`ImageError`]. What arrived stays for the next try, unless hash or size are wrong.
    pub async fn obtain(
        self: &Arc<Self>,
        hash: UniqueId,
        size_bytes: u64,
        sources: &[&dyn ImageSource],
        deadline: Duration,
    ) -> Result<HeldImage, ImageError> {
        if size_bytes > self.max_image_bytes {
            return Err(ImageError::TooLarge { given_bytes: size_bytes, limit_bytes: self.max_image_bytes });
        }
        let wrong = |_| ImageError::Length { expected_bytes: size_bytes };
        let content = Content::new(hash, size_bytes).map_err(wrong)?;
        let held = self.store.hold(hash);
        let turn = Arc::clone(lock(&self.transfers).entry(hash).or_default());
        let fetched = {
            let _turn = turn.lock().await;
            self.fetch(content, sources, Instant::now() + deadline).await
        };
        let mut transfers = lock(&self.transfers);
        if Arc::strong_count(&turn) <= 2 {
            transfers.remove(&hash);
        }
        drop(transfers);
        fetched.map(|()| HeldImage { image: LocalImage { path: held.path(), hash, size_bytes }, _held: held })
    }

    /// Fetches until the whole file has the hash: the last gate, whatever was verified before.
    async fn fetch(&self, content: Content, sources: &[&dyn ImageSource], until: Instant) -> Result<(), ImageError> {
        let size_bytes = content.size();
        loop {
            if self.store.stat(content.hash()).is_some_and(|size| size != size_bytes) {
                return Err(ImageError::Length { expected_bytes: size_bytes });
            }
            if self.is_whole(content.hash()).await? {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = "the copy here was damaged again and again".to_owned();
                return Err(ImageError::Unavailable { got_bytes: 0, size_bytes, reason });
            }
            let sources: Vec<&dyn Source> = sources.iter().map(|source| *source as &dyn Source).collect();
            match fetch(&self.store, content, &sources, left, |_| ()).await {
                Ok(()) => {}
                Err(error) => return Err(self.failed(content, error)),
            }
        }
    }

    /// Whether the cache has it, all of it read and hashed; a damaged copy is set aside.
    async fn is_whole(&self, hash: UniqueId) -> Result<bool, ImageError> {
        let store = Arc::clone(&self.store);
        let checked = tokio::task::spawn_blocking(move || store.check(hash)).await;
        let failed = |error| StoreError::Disk { path: "the image cache".into(), source: io::Error::other(error) };
        match checked.map_err(failed).and_then(|checked| checked) {
            Ok(_) => Ok(true),
            Err(StoreError::Unknown { .. } | StoreError::Damaged { .. }) => Ok(false),
            Err(error) => Err(ImageError::Cache(error)),
        }
    }

    fn failed(&self, content: Content, error: FetchError) -> ImageError {
        let refused = match error {
            FetchError::Unavailable { got_bytes, size_bytes, reason } => {
                return ImageError::Unavailable { got_bytes, size_bytes, reason };
            }
            FetchError::Store(StoreError::NoRoom { needed, .. }) => return ImageError::NoRoom { needed_bytes: needed },
            FetchError::Store(error) => return ImageError::Cache(error),
            FetchError::Wrong => ImageError::Mismatch { expected: content.hash() },
            FetchError::OtherSize { size_bytes } => ImageError::Length { expected_bytes: size_bytes },
        };
        if let Err(error) = self.store.abandon(content) {
            tracing::warn!(%error, "what arrived of an image that was refused could not be removed");
        }
        refused
    }
}

/// Removes what earlier versions kept here: whole files that were verified at their end only.
fn remove_unverified(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let of_before = path.extension().is_some_and(|end| end == "image" || end == "part");
        if of_before && path.is_file() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// A node an envelope names, as a source. Its address lives here and nowhere else.
pub struct NodeSource {
    node: Arc<Node>,
    address: PeerAddress,
}

impl NodeSource {
    /// The node at an address from an envelope.
    #[must_use]
    pub const fn new(node: Arc<Node>, address: PeerAddress) -> Self {
        Self { node, address }
    }
}

#[async_trait]
impl Source for NodeSource {
    async fn slice(&self, content: Content, range: Range<u64>, deadline: Duration) -> Result<Vec<u8>, SourceError> {
        let ask = Ask::Slice(content, range);
        let answer = self.node.call_at(&self.address, ask.method(), ask.to_body(), deadline).await;
        answer.map_err(|error| match &error {
            CallError::Refused(fault) => match fault.code.as_str() {
                "other_size" => SourceError::OtherSize,
                "disk" | "internal" => SourceError::Later(nameless(error)),
                _ => SourceError::Never(nameless(error)),
            },
            _ => SourceError::Later(nameless(error)),
        })
    }
}

#[async_trait]
impl ImageSource for NodeSource {
    async fn deliver(&self, evidence: Vec<u8>, deadline: Duration) -> Result<(), String> {
        let until = Instant::now() + deadline;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let sent = self.node.call_at(&self.address, EVIDENCE_METHOD, evidence.clone(), left.min(CALL_WAIT)).await;
            match sent {
                Ok(_) => return Ok(()),
                Err(CallError::Timeout { .. } | CallError::Transport { .. }) if left > PAUSE => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(nameless(error)),
            }
        }
    }
}

/// A failed call in words that do not name the peer, as the node's own do.
fn nameless(error: CallError) -> String {
    match error {
        CallError::Refused(fault) => format!("a source refused ({})", safe_code(&fault.code)),
        CallError::Timeout { .. } => "a source did not answer in time".to_owned(),
        CallError::Transport { .. } => "a source could not be reached".to_owned(),
        CallError::TooLarge { .. } => "the request was too large".to_owned(),
    }
}

/// A refusal's code if it is one; free text of a stranger goes into no log.
fn safe_code(code: &str) -> &str {
    let plain = code.len() <= 32 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if plain { code } else { "unknown" }
}
