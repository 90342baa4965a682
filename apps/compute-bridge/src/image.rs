//! The requester's image: pulled in pieces from the requester's rotating node, hashed, kept by hash under a cap.
//!
//! Nothing is done with bytes whose blake3 is not the granted one. A transfer that was cut goes on where it stopped. File
//! names are hashes; where an image came from is not kept.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coalition::UniqueId;
use coalition_shuffle::RotatingPeer;
use coalition_universe::{CallError, Node, PeerAddress};
use serde::{Deserialize, Serialize};

use crate::backend::LocalImage;

/// The method a requester's node answers.
pub const IMAGE_METHOD: &str = "image.chunk";
/// The method that hands a requester the evidence of its workload's guest; the body is the evidence, the answer empty.
pub const EVIDENCE_METHOD: &str = "attestation.evidence";
/// Most bytes of one piece.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;
/// Wait for one piece before it is asked for again.
const CHUNK_WAIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(200);

/// Body of an `image.chunk` call, in postcard. The answer is up to 1 MiB from that offset, empty at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRequest {
    /// blake3 of the image.
    pub hash: UniqueId,
    /// First byte wanted.
    pub offset: u64,
}

/// Where pieces of an image come from. An implementation may keep trying, within `deadline`.
#[async_trait]
pub trait ChunkSource: Send + Sync {
    /// The bytes from `offset`, at most [`MAX_CHUNK_BYTES`]; empty at the end.
    ///
    /// # Errors
    /// A sentence about what went wrong that names nobody.
    async fn chunk(&self, request: ChunkRequest, deadline: Duration) -> Result<Vec<u8>, String>;

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
    /// It could not be fetched in time, or its source went away.
    #[error("the image could not be fetched: {got_bytes} of {size_bytes} bytes arrived ({reason})")]
    Unavailable {
        /// Bytes that arrived.
        got_bytes: u64,
        /// Bytes announced.
        size_bytes: u64,
        /// The last problem; names nobody.
        reason: String,
    },
    /// Its bytes are others than granted.
    #[error("the image has blake3 {actual}, granted was {expected}")]
    Mismatch {
        /// From the grant.
        expected: UniqueId,
        /// Computed.
        actual: String,
    },
    /// Its length is another than announced.
    #[error("the image has at least {actual_bytes} bytes, announced were {expected_bytes}")]
    Length {
        /// From the envelope.
        expected_bytes: u64,
        /// Received.
        actual_bytes: u64,
    },
    /// The cache's disk refused.
    #[error("the image cache {path} cannot be used")]
    Disk {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Images on this machine, by hash.
pub struct ImageStore {
    dir: PathBuf,
    cap_bytes: u64,
    max_image_bytes: u64,
    /// Images somebody holds, and since when others were last used.
    in_use: Mutex<BTreeMap<UniqueId, usize>>,
    /// One transfer per hash at a time.
    transfers: Mutex<BTreeMap<UniqueId, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image that stays in the cache as long as this is held.
pub struct HeldImage {
    image: LocalImage,
    store: Arc<ImageStore>,
}

impl HeldImage {
    /// The image.
    #[must_use]
    pub const fn image(&self) -> &LocalImage {
        &self.image
    }
}

impl Drop for HeldImage {
    fn drop(&mut self) {
        let mut in_use = lock(&self.store.in_use);
        if let Some(count) = in_use.get_mut(&self.image.hash) {
            *count -= 1;
            if *count == 0 {
                in_use.remove(&self.image.hash);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageStore {
    /// A cache in `dir`, which is made when absent.
    ///
    /// # Errors
    /// [`ImageError::Disk`].
    pub fn open(dir: &Path, cap_bytes: u64, max_image_bytes: u64) -> Result<Arc<Self>, ImageError> {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| ImageError::Disk { path: dir.into(), source })?;
        Ok(Arc::new(Self {
            dir: dir.into(),
            cap_bytes,
            max_image_bytes,
            in_use: Mutex::default(),
            transfers: Mutex::default(),
        }))
    }

    fn path(&self, hash: UniqueId) -> PathBuf {
        self.dir.join(format!("{hash}.image"))
    }

    fn partial(&self, hash: UniqueId) -> PathBuf {
        self.dir.join(format!("{hash}.part"))
    }

    /// The image of this hash, from the cache or from `source`, hash and size checked.
    ///
    /// # Errors
    /// [`ImageError`]. A partial file stays for the next try unless its bytes are wrong.
    pub async fn obtain(
        self: &Arc<Self>,
        hash: UniqueId,
        size_bytes: u64,
        source: &dyn ChunkSource,
        deadline: Duration,
    ) -> Result<HeldImage, ImageError> {
        if size_bytes > self.max_image_bytes {
            return Err(ImageError::TooLarge { given_bytes: size_bytes, limit_bytes: self.max_image_bytes });
        }
        let held = self.hold(hash, size_bytes);
        let turn = Arc::clone(lock(&self.transfers).entry(hash).or_default());
        let fetched = {
            let _turn = turn.lock().await;
            self.fetch(hash, size_bytes, source, Instant::now() + deadline).await
        };
        let mut transfers = lock(&self.transfers);
        if Arc::strong_count(&turn) <= 2 {
            transfers.remove(&hash);
        }
        drop(transfers);
        fetched.map(|()| held)
    }

    fn hold(self: &Arc<Self>, hash: UniqueId, size_bytes: u64) -> HeldImage {
        *lock(&self.in_use).entry(hash).or_default() += 1;
        HeldImage { image: LocalImage { path: self.path(hash), hash, size_bytes }, store: Arc::clone(self) }
    }

    async fn fetch(
        &self,
        hash: UniqueId,
        size: u64,
        source: &dyn ChunkSource,
        until: Instant,
    ) -> Result<(), ImageError> {
        if self.is_whole(&self.path(hash), hash, size).await {
            return Ok(());
        }
        self.make_room(size)?;
        let partial = self.partial(hash);
        let disk = |source| ImageError::Disk { path: partial.clone(), source };
        loop {
            let mut hasher = blake3::Hasher::new();
            let resumed = resume(&partial, size, &mut hasher).await.map_err(disk)?;
            match self.transfer(hash, size, source, until, (resumed, hasher)).await {
                // What a cut transfer left came from anybody who named this hash; only bytes that all came from here are
                // this source's fault. They are gone now, so the next round begins at nothing.
                Err(ImageError::Mismatch { .. } | ImageError::Length { .. }) if resumed > 0 => {}
                done => return done,
            }
        }
    }

    /// Appends to the partial file, of which so many bytes are there and hashed, and puts it in place when it is right.
    /// Wrong bytes are removed.
    async fn transfer(
        &self,
        hash: UniqueId,
        size: u64,
        source: &dyn ChunkSource,
        until: Instant,
        (mut got, mut hasher): (u64, blake3::Hasher),
    ) -> Result<(), ImageError> {
        let partial = self.partial(hash);
        let disk = |source| ImageError::Disk { path: partial.clone(), source };
        let mut file =
            std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&partial).map_err(disk)?;
        let mut reason = String::from("nothing was asked yet");
        while got < size {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ImageError::Unavailable { got_bytes: got, size_bytes: size, reason });
            }
            match source.chunk(ChunkRequest { hash, offset: got }, left.min(CHUNK_WAIT)).await {
                Ok(bytes) if bytes.is_empty() || bytes.len() > MAX_CHUNK_BYTES => {
                    reason = format!("a piece of {} bytes came at offset {got}", bytes.len());
                    return Err(ImageError::Unavailable { got_bytes: got, size_bytes: size, reason });
                }
                Ok(bytes) => {
                    let total = got + bytes.len() as u64;
                    if total > size {
                        std::fs::remove_file(&partial).map_err(disk)?;
                        return Err(ImageError::Length { expected_bytes: size, actual_bytes: total });
                    }
                    hasher.update(&bytes);
                    file.write_all(&bytes).map_err(disk)?;
                    got = total;
                }
                Err(problem) => {
                    reason = problem;
                    tokio::time::sleep(PAUSE.min(left)).await;
                }
            }
        }
        let actual = hasher.finalize();
        if actual.as_bytes() != hash.as_bytes() {
            std::fs::remove_file(&partial).map_err(disk)?;
            return Err(ImageError::Mismatch { expected: hash, actual: actual.to_hex().to_string() });
        }
        file.sync_all().map_err(disk)?;
        std::fs::rename(&partial, self.path(hash)).map_err(disk)
    }

    /// Whether the cache has it; a damaged file is removed. Reading it renews its place in the cache.
    async fn is_whole(&self, path: &Path, hash: UniqueId, size: u64) -> bool {
        let Ok((actual, length)) = crate::ssh::file_blake3(path).await else { return false };
        if actual.as_bytes() == hash.as_bytes() && length == size {
            if let Ok(file) = std::fs::File::open(path) {
                let _ = file.set_modified(std::time::SystemTime::now());
            }
            return true;
        }
        // Right bytes of another announced length: the requester's mistake, not the file's.
        if actual.as_bytes() != hash.as_bytes() {
            let _ = std::fs::remove_file(path);
        }
        false
    }

    /// Removes files nobody holds, oldest first, until `needed` more bytes fit under the cap.
    fn make_room(&self, needed: u64) -> Result<(), ImageError> {
        let disk = |source| ImageError::Disk { path: self.dir.clone(), source };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(disk)? {
            let entry = entry.map_err(disk)?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // A transfer beside this one just put it in place or removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(disk(error)),
            };
            let used = meta.modified().unwrap_or(std::time::UNIX_EPOCH);
            files.push((used, meta.len(), entry.path()));
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        let held: Vec<String> = lock(&self.in_use).keys().map(ToString::to_string).collect();
        for (_, bytes, path) in files {
            if total.saturating_add(needed) <= self.cap_bytes {
                break;
            }
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if held.iter().any(|hash| hash == name) {
                continue;
            }
            if std::fs::remove_file(&path).is_ok() {
                total -= bytes;
            }
        }
        Ok(())
    }
}

/// Hashes what a cut transfer left and says how much that is; more than the image has is thrown away.
async fn resume(partial: &Path, size: u64, hasher: &mut blake3::Hasher) -> io::Result<u64> {
    use tokio::io::AsyncReadExt;
    let mut file = match tokio::fs::File::open(partial).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    if file.metadata().await?.len() > size {
        std::fs::remove_file(partial)?;
        return Ok(0);
    }
    let (mut got, mut buffer) = (0, vec![0; 256 * 1024]);
    loop {
        let count = file.read(&mut buffer).await?;
        if count == 0 {
            return Ok(got);
        }
        hasher.update(&buffer[..count]);
        got += count as u64;
    }
}

/// Why an envelope's image pointer leads nowhere. Says nothing of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// It is no peer address.
    #[error("the image pointer is no peer address")]
    Malformed,
    /// It names somebody else: the image would be asked of a stranger to the request.
    #[error("the image pointer names another peer than the one the envelope is from")]
    OtherPeer,
}

/// The address in an envelope's image pointer, which is that of the envelope's own rotating node and nobody else's.
///
/// # Errors
/// [`PointerError`].
pub fn requester_address(from: RotatingPeer, pointer: &[u8]) -> Result<PeerAddress, PointerError> {
    let text = std::str::from_utf8(pointer).map_err(|_| PointerError::Malformed)?;
    let address: PeerAddress = text.parse().map_err(|_| PointerError::Malformed)?;
    if address.peer.as_bytes() == from.as_bytes() { Ok(address) } else { Err(PointerError::OtherPeer) }
}

/// The requester's node as a source. Its address lives here and nowhere else.
pub struct NodeSource {
    node: Arc<Node>,
    address: PeerAddress,
}

impl NodeSource {
    /// The node at an address from [`requester_address`].
    #[must_use]
    pub const fn new(node: Arc<Node>, address: PeerAddress) -> Self {
        Self { node, address }
    }
}

#[async_trait]
impl ChunkSource for NodeSource {
    async fn chunk(&self, request: ChunkRequest, deadline: Duration) -> Result<Vec<u8>, String> {
        let body = postcard::to_stdvec(&request).map_err(|_| "the request could not be encoded".to_owned())?;
        self.node.call_at(&self.address, IMAGE_METHOD, body, deadline).await.map_err(nameless)
    }

    async fn deliver(&self, evidence: Vec<u8>, deadline: Duration) -> Result<(), String> {
        let until = Instant::now() + deadline;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let sent = self.node.call_at(&self.address, EVIDENCE_METHOD, evidence.clone(), left.min(CHUNK_WAIT)).await;
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
        CallError::Refused(fault) => format!("the requester's node refused ({})", safe_code(&fault.code)),
        CallError::Timeout { .. } => "the requester's node did not answer in time".to_owned(),
        CallError::Transport { .. } => "the requester's node could not be reached".to_owned(),
        CallError::TooLarge { .. } => "the request was too large".to_owned(),
    }
}

/// A refusal's code if it is one; free text of a stranger goes into no log.
fn safe_code(code: &str) -> &str {
    let plain = code.len() <= 32 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if plain { code } else { "unknown" }
}
