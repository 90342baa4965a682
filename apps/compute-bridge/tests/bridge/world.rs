//! A provider loop in a world of its own: a market in memory, a directory, and backends that outlive the bridge.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coalition::ProviderId;
use coalition_compute::{GrantEnd, GrantStage};
use coalition_shuffle::WorkloadSpec;
use compute_bridge::backend::Backend;
use compute_bridge::evidence::EvidenceStore;
use compute_bridge::fleet::Fleet;
use compute_bridge::image::{ImageSource, ImageStore};
use compute_bridge::journal::{Journal, JournalError, Outcome, Stage};
use compute_bridge::provider::{Attestor, Parts, Tuning, serve};
use compute_bridge::status::Status;
use ed25519_dalek::SigningKey;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::harness::*;

pub(crate) const IMAGE: &[u8] = b"an image that no backend of fables looks at";

/// A world a bridge can be started in again and again.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) market: Arc<MemoryMarket>,
    pub(crate) channel: Arc<MemoryChannel>,
    pub(crate) backends: Vec<Arc<dyn Backend>>,
    pub(crate) image: Vec<u8>,
    pub(crate) drain: bool,
    pub(crate) inventory_interval: Duration,
    pub(crate) attestor: Option<Attestor>,
    /// Evidence handed to requesters.
    pub(crate) delivered: Arc<Mutex<Vec<Vec<u8>>>>,
}

pub(crate) struct Bridge {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), JournalError>>,
    pub(crate) journal: Journal,
    pub(crate) status: Arc<Status>,
    pub(crate) fleet: Fleet,
}

pub(crate) fn signer() -> SigningKey {
    SigningKey::from_bytes(&[77; 32])
}

pub(crate) fn provider() -> ProviderId {
    ProviderId::from_public_key(&signer().verifying_key().to_bytes())
}

impl World {
    pub(crate) fn new(backends: Vec<Arc<dyn Backend>>) -> Self {
        let (market, channel) = (MemoryMarket::new(), Arc::new(MemoryChannel::default()));
        Self {
            dir: tempfile::tempdir().unwrap(),
            market,
            channel,
            backends,
            image: IMAGE.to_vec(),
            drain: false,
            inventory_interval: Duration::from_secs(3_600),
            attestor: None,
            delivered: Arc::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn start(&self) -> Bridge {
        self.start_losing_power(None)
    }

    pub(crate) fn start_losing_power(&self, after: Option<u64>) -> Bridge {
        let journal = Journal::open(self.path()).unwrap();
        if let Some(bytes) = after {
            journal.lose_power_after(bytes);
        }
        let (status, fleet) = (Status::new(provider()), Fleet::new(self.backends.clone()).unwrap());
        let image = self.image.clone();
        let delivered = Arc::clone(&self.delivered);
        let source = move |_| {
            let delivered = Arc::clone(&delivered);
            Box::new(MemorySource { delivered, ..MemorySource::new(&image) }) as Box<dyn ImageSource>
        };
        let parts = Parts {
            signer: signer(),
            peer: [9; 32],
            market: Arc::clone(&self.market) as _,
            opener: Arc::clone(&self.channel) as _,
            replier: Arc::clone(&self.channel) as _,
            source: Arc::new(source),
            images: ImageStore::open(&self.path().join("images"), 1 << 30, 1 << 30).unwrap(),
            fleet: fleet.clone(),
            journal: journal.clone(),
            evidence: Arc::new(EvidenceStore::open(self.path()).unwrap()),
            status: Arc::clone(&status),
            attestor: self.attestor.clone(),
            tuning: Tuning {
                blind_after_deadline: Duration::from_millis(500),
                capacity_refresh: Duration::from_secs(2),
                max_concurrent_grants: 8,
                open_timeout: Duration::from_secs(2),
                image_timeout: SOON,
                reply_timeout: SOON,
                orphan_grace: Duration::from_millis(300),
                inventory_interval: self.inventory_interval,
                default_disk_mib: 64,
                max_disk_mib: 256,
                drain: self.drain,
            },
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(parts, async move {
            let _ = stopped.await;
        }));
        Bridge { stop: Some(stop), task, journal, status, fleet }
    }

    pub(crate) async fn card(&self) {
        eventually("the card", || {
            let _ = self.market.execute(None);
            self.market.read(|fold| fold.view().state().providers().get(&provider())?.card.as_ref().map(|_| ()))
        })
        .await;
    }

    pub(crate) fn ask(&self, seed: u8, seconds: u32) -> Requester {
        self.ask_for(seed, seconds, |_| {})
    }

    /// A grant that its requester has the receipt of and that the market knows to be served.
    pub(crate) async fn serving(&self, seed: u8, seconds: u32) -> Requester {
        let requester = self.ask(seed, seconds);
        self.receipt(&requester).await;
        self.stage(&requester, "serving", |stage| *stage == GrantStage::Serving).await;
        requester
    }

    pub(crate) fn ask_for(&self, seed: u8, seconds: u32, change: impl FnOnce(&mut WorkloadSpec)) -> Requester {
        let requester = requester(&self.market, seed, &self.image, seconds, change);
        requester.submit(&self.market, &self.channel);
        requester
    }

    pub(crate) async fn stage(
        &self,
        requester: &Requester,
        what: &str,
        wanted: impl Fn(&GrantStage) -> bool,
    ) -> coalition_compute::GrantRecord {
        eventually(what, || self.market.record(&requester.id()).filter(|record| wanted(&record.stage))).await
    }

    pub(crate) async fn ended(&self, requester: &Requester) -> GrantEnd {
        match self.stage(requester, "the end of the grant", |stage| matches!(stage, GrantStage::Ended(_))).await.stage {
            GrantStage::Ended(end) => end,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn receipt(&self, requester: &Requester) -> coalition_shuffle::SshAccessReceipt {
        eventually("the receipt", || requester.receipt(&self.channel)).await
    }
}

impl Bridge {
    pub(crate) async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.task.await.unwrap().unwrap();
    }

    /// Whether it has ended by itself.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// As `kill -9`: nothing gets to clean up.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub(crate) async fn closed(&self, requester: &Requester) -> Outcome {
        let id = requester.id();
        eventually("the journal to close the grant", || match self.journal.get(&id)?.stage {
            Stage::Closed(outcome) => Some(outcome),
            _ => None,
        })
        .await
    }
}

pub(crate) fn fable() -> (World, Arc<FakeBackend>) {
    let backend = FakeBackend::new("metal");
    (World::new(vec![Arc::clone(&backend) as _]), backend)
}

pub(crate) fn no_instances(backend: &FakeBackend) -> bool {
    backend.running.lock().unwrap().is_empty()
}

pub(crate) fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}
