//! The requester's side of the image transfer: answers slices of one file, by its hash, to whoever knows both.
//!
//! Method `attestation.evidence` takes the evidence of the machine's guest, which counts only if the receipt names it.
//! Method `content.slice` is the one stores answer (docs/protocol/content.md): the provider verifies every slice against the
//! granted blake3, so nothing here needs to be trusted by it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use coalition::UniqueId;
use coalition_attest::Evidence;
use coalition_compute::MAX_EVIDENCE_BYTES;
use coalition_content::{service::FileService, tree::Outline, wire};
use coalition_universe::{Fault, PeerId, Service};
use compute_bridge::image::EVIDENCE_METHOD;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::attestation;

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

/// What a request's node answers: slices of the image's file, where there is one here, and evidence.
pub struct ImageService {
    file: Option<Arc<FileService>>,
    /// First bytes of the slices that were asked for.
    asked: Mutex<BTreeSet<u64>>,
    progress: watch::Sender<u64>,
    evidence: Mutex<Received>,
}

impl ImageService {
    /// Opens the file; it stays open, so that replacing it meanwhile changes nothing.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, outline: &Outline) -> std::io::Result<Self> {
        let file = FileService::new(outline.clone(), File::open(path)?);
        Ok(Self { file: Some(Arc::new(file)), ..Self::without_image() })
    }

    /// For an image that is in a store: only evidence is taken.
    #[must_use]
    pub fn without_image() -> Self {
        let progress = watch::Sender::new(0);
        Self { file: None, asked: Mutex::default(), progress, evidence: Mutex::default() }
    }

    /// How many bytes have been asked for so far. The whole size means that all were.
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

    fn slice(&self, method: &str, body: &[u8]) -> Result<Vec<u8>, Fault> {
        let none = || Fault::new("unknown_method", format!("this peer answers {EVIDENCE_METHOD} only"));
        let (answer, range) = self.file.as_ref().ok_or_else(none)?.answer(method, body)?;
        let is_new = self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(range.start);
        if is_new && !range.is_empty() {
            self.progress.send_modify(|bytes| *bytes += range.end - range.start);
        }
        Ok(answer)
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
            let reading = tokio::task::spawn_blocking(move || image.slice(&method, &body));
            reading.await.unwrap_or_else(|_| Err(Fault::new("internal", "reading the image failed")))
        })
    }

    fn answers_large(&self, method: &str) -> bool {
        method == wire::SLICE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slices_verify_and_progress_is_reported() {
        let bytes: Vec<u8> = (0..2_000_777).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let outline = Outline::read(&bytes[..], bytes.len() as u64).unwrap();
        let content = outline.content();
        let image = Arc::new(ImageService::open(file.path(), &outline).unwrap());
        let progress = image.progress();
        let served = Served(Arc::clone(&image));
        let peer = coalition_universe::NodeKey::from_bytes([1; 32]).peer_id();
        let ask = |ask: wire::Ask| served.call(peer, ask.method().into(), ask.to_body());
        let (copy, tree) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for piece in [1, 0, 1] {
            let range = content.piece(piece);
            let slice = ask(wire::Ask::Slice(content, range.clone())).await.unwrap();
            coalition_content::tree::write_slice(content, &slice, &range, &copy, &tree).unwrap();
        }
        assert_eq!(*progress.borrow(), bytes.len() as u64);
        let other = coalition_content::Content::new(coalition::UniqueId::hash(b"other"), 5).unwrap();
        assert_eq!(ask(wire::Ask::Slice(other, 0..5)).await.unwrap_err().code, "unknown_content");
        assert_eq!(ask(wire::Ask::Begin(content)).await.unwrap_err().code, "unknown_method");
        assert_eq!(served.call(peer, "x".into(), Vec::new()).await.unwrap_err().code, "unknown_method");
        let rubbish = served.call(peer, EVIDENCE_METHOD.into(), vec![1; 40]).await;
        assert_eq!(rubbish.unwrap_err().code, "malformed");
        assert_eq!(served.call(peer, wire::SLICE.into(), vec![0xff; 40]).await.unwrap_err().code, "malformed");
        std::fs::write(file.path(), b"short now").unwrap();
        assert_eq!(ask(wire::Ask::Slice(content, 0..5)).await.unwrap_err().code, "damaged");
        let none = Served(Arc::new(ImageService::without_image()));
        let refused = none.call(peer, wire::SLICE.into(), wire::Ask::Slice(content, 0..5).to_body()).await;
        assert_eq!(refused.unwrap_err().code, "unknown_method");
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
