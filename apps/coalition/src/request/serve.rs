//! The requester's side of the image transfer: answers chunks of one file, by its hash, to whoever knows both.
//!
//! Method `attestation.evidence` takes the evidence of the machine's guest, which counts only if the receipt names it.
//! Method `image.chunk`, body postcard `{ hash, offset }`, answer up to 1 MiB of the file; empty at its end. The provider
//! checks the whole against the granted blake3, so nothing here needs to be trusted by it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use coalition::UniqueId;
use coalition_attest::Evidence;
use coalition_compute::MAX_EVIDENCE_BYTES;
use coalition_universe::{Fault, PeerId, Service};
use compute_bridge::image::{ChunkRequest, EVIDENCE_METHOD, IMAGE_METHOD, MAX_CHUNK_BYTES};
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::attestation;

/// Largest encoded question.
const MAX_ASK_BYTES: usize = 64;

/// Most peers whose evidence is kept before it is known which of them was granted the request. The oldest goes first.
const MAX_STRANGERS: usize = 8;

/// Evidence that came, the newest piece of each peer.
#[derive(Default)]
struct Received {
    granted: BTreeSet<PeerId>,
    from: BTreeMap<PeerId, (UniqueId, Vec<u8>)>,
    strangers: VecDeque<PeerId>,
}

impl Received {
    fn take(&mut self, from: PeerId, digest: UniqueId, bytes: Vec<u8>) {
        let is_new = self.from.insert(from, (digest, bytes)).is_none();
        if is_new && !self.granted.contains(&from) {
            self.strangers.push_back(from);
        }
        while self.strangers.len() > MAX_STRANGERS {
            if let Some(oldest) = self.strangers.pop_front() {
                self.from.remove(&oldest);
            }
        }
    }

    /// From now on nobody crowds out what this peer hands over.
    fn grant(&mut self, peer: PeerId) {
        self.granted.insert(peer);
        self.strangers.retain(|stranger| *stranger != peer);
    }

    fn get(&self, quote: UniqueId) -> Option<Vec<u8>> {
        let mut granted = self.from.iter().filter(|(peer, _)| self.granted.contains(peer));
        granted.find(|(_, (digest, _))| *digest == quote).map(|(_, (_, bytes))| bytes.clone())
    }
}

/// Serves one image file.
pub struct ImageService {
    hash: UniqueId,
    size_bytes: u64,
    file: Arc<File>,
    furthest: AtomicU64,
    progress: watch::Sender<u64>,
    evidence: Mutex<Received>,
}

impl ImageService {
    /// Opens the file; it stays open, so that replacing it meanwhile changes nothing.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, hash: UniqueId, size_bytes: u64) -> std::io::Result<Self> {
        let file = Arc::new(File::open(path)?);
        Ok(Self {
            hash,
            size_bytes,
            file,
            furthest: AtomicU64::new(0),
            progress: watch::Sender::new(0),
            evidence: Mutex::default(),
        })
    }

    /// How many bytes, from the start, have been asked for so far. The whole size means that all were.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request was granted to this peer: its evidence counts.
    pub fn expect_evidence_of(&self, provider: PeerId) {
        self.received().grant(provider);
    }

    /// The evidence with this quote, if a peer that was granted the request has handed it over.
    pub fn evidence(&self, quote: UniqueId) -> Option<Vec<u8>> {
        self.received().get(quote)
    }

    /// Keeps evidence under its quote's digest; whether it is worth anything is judged later.
    fn take_evidence(&self, from: PeerId, bytes: Vec<u8>) -> Result<(), Fault> {
        let malformed = || Fault::new("malformed", "that is no evidence");
        if bytes.len() > MAX_EVIDENCE_BYTES {
            return Err(malformed());
        }
        let evidence = Evidence::from_bytes(&bytes).map_err(|_| malformed())?;
        let digest = attestation::digest(&evidence).ok_or_else(malformed)?;
        self.received().take(from, digest, bytes);
        Ok(())
    }

    fn chunk(&self, ask: &ChunkRequest) -> Result<Vec<u8>, Fault> {
        if ask.hash != self.hash {
            return Err(Fault::new("unknown_image", "this peer does not serve that image"));
        }
        let left = self.size_bytes.saturating_sub(ask.offset);
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(MAX_CHUNK_BYTES).min(MAX_CHUNK_BYTES)];
        let read = self.file.read_exact_at(&mut chunk, ask.offset);
        read.map_err(|error| Fault::new("image_unreadable", format!("the image changed or cannot be read: {error}")))?;
        let reached = ask.offset.saturating_add(chunk.len() as u64).min(self.size_bytes);
        if self.furthest.fetch_max(reached, Ordering::Relaxed) < reached {
            self.progress.send_replace(reached);
        }
        Ok(chunk)
    }
}

/// The service as a node takes it.
pub struct Served(pub Arc<ImageService>);

impl Service for Served {
    fn call(&self, from: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let image = Arc::clone(&self.0);
        Box::pin(async move {
            if method == EVIDENCE_METHOD {
                return image.take_evidence(from, body).map(|()| Vec::new());
            }
            if method != IMAGE_METHOD {
                return Err(Fault::new("unknown_method", format!("this peer answers {IMAGE_METHOD} only")));
            }
            let malformed = || Fault::new("malformed", "the question is no hash and offset");
            if body.len() > MAX_ASK_BYTES {
                return Err(malformed());
            }
            let ask: ChunkRequest = postcard::from_bytes(&body).map_err(|_| malformed())?;
            let reading = tokio::task::spawn_blocking(move || image.chunk(&ask));
            reading.await.unwrap_or_else(|_| Err(Fault::new("internal", "reading the image failed")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_add_up_to_the_file_and_progress_is_reported() {
        let bytes: Vec<u8> = (0..MAX_CHUNK_BYTES + 777).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let hash = UniqueId::hash(&bytes);
        let image = Arc::new(ImageService::open(file.path(), hash, bytes.len() as u64).unwrap());
        let progress = image.progress();
        let served = Served(Arc::clone(&image));
        let peer = coalition_universe::NodeKey::from_bytes([1; 32]).peer_id();
        let ask = |hash, offset| {
            let body = postcard::to_stdvec(&ChunkRequest { hash, offset }).unwrap();
            served.call(peer, IMAGE_METHOD.into(), body)
        };
        let mut got = Vec::new();
        loop {
            let chunk = ask(hash, got.len() as u64).await.unwrap();
            if chunk.is_empty() {
                break;
            }
            got.extend(chunk);
        }
        assert_eq!(got, bytes);
        assert_eq!(*progress.borrow(), bytes.len() as u64);
        assert_eq!(ask(hash, u64::MAX).await.unwrap(), Vec::<u8>::new());
        assert_eq!(ask(UniqueId::hash(b"other"), 0).await.unwrap_err().code, "unknown_image");
        assert_eq!(served.call(peer, "x".into(), Vec::new()).await.unwrap_err().code, "unknown_method");
        let rubbish = served.call(peer, EVIDENCE_METHOD.into(), vec![1; 40]).await;
        assert_eq!(rubbish.unwrap_err().code, "malformed");
        assert_eq!(served.call(peer, IMAGE_METHOD.into(), vec![0xff; 40]).await.unwrap_err().code, "malformed");
        std::fs::write(file.path(), b"short now").unwrap();
        assert_eq!(ask(hash, 0).await.unwrap_err().code, "image_unreadable");
    }

    /// Whoever knows the address can hand over evidence; it counts from the granted provider, and nobody crowds that out.
    #[test]
    fn evidence_counts_from_the_provider_that_was_granted_the_request() {
        let peer = |n: u8| coalition_universe::NodeKey::from_bytes([n; 32]).peer_id();
        let digest = |n: u8| UniqueId::from_bytes([n; 32]);
        let mut received = Received::default();
        received.take(peer(1), digest(1), vec![1]);
        assert_eq!(received.get(digest(1)), None, "not granted yet");
        received.grant(peer(1));
        for stranger in 2..200 {
            received.take(peer(stranger), digest(stranger), vec![stranger]);
            received.take(peer(stranger), digest(1), vec![0]);
        }
        assert_eq!(received.get(digest(1)), Some(vec![1]));
        assert_eq!(received.get(digest(199)), None);
        assert_eq!(received.from.len(), MAX_STRANGERS + 1);
        // A second provider, after the first gave the grant back; its evidence may be there before the grant is seen.
        received.grant(peer(199));
        assert_eq!(received.get(digest(1)), Some(vec![1]));
        received.take(peer(199), digest(7), vec![7]);
        assert_eq!(received.get(digest(7)), Some(vec![7]));
    }
}
