//! A measurement, not a test: what a bridge keeps in memory for a thousand live grants. Its machines are none: a backend that
//! answers that they run. Run it alone:
//! `cargo nextest run --release --workspace --locked --run-ignored only --no-capture -E 'test(a_thousand_live_grants_in_memory)'`.

use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;
use coalition::{RequestId, UniqueId};
use coalition_compute::{Capabilities, ComputeGrant, DeclaredRates, OfferName};
use coalition_host::types::IsolationLevel;
use compute_bridge::backend::*;
use compute_bridge::journal::{Event, Journal, Record};
use compute_bridge::now_ms;
use tokio::sync::Semaphore;

use super::harness::*;
use super::world::*;

const GRANTS: u32 = 1_000;
/// A sealed receipt is about this large.
const RECEIPT: usize = 900;

/// Machines that run, and nothing else.
struct Quiet {
    inner: Arc<FakeBackend>,
    watched: Semaphore,
}

#[async_trait]
impl Backend for Quiet {
    fn name(&self) -> &OfferName {
        self.inner.name()
    }

    fn rates(&self) -> DeclaredRates {
        self.inner.rates()
    }

    async fn capabilities(&self) -> Offering {
        let offering = self.inner.capabilities().await;
        Offering { capabilities: Capabilities { max_instances: 0, ..offering.capabilities.clone() }, ..offering }
    }

    fn can_satisfy(&self, grant: &ComputeGrant) -> Result<(), Unfit> {
        self.inner.can_satisfy(grant)
    }

    async fn provision(&self, name: &InstanceName, order: Order<'_>) -> Result<ProvisionedInstance, BackendError> {
        self.inner.provision(name, order).await
    }

    async fn watch_until_exit(
        &self,
        _: &ProvisionedInstance,
        _: u64,
        seen: &UsageSeen<'_>,
    ) -> Result<Exit, BackendError> {
        seen(SO_FAR);
        self.watched.add_permits(1);
        std::future::pending().await
    }

    async fn stop(&self, name: &InstanceName) -> Result<Option<Exit>, BackendError> {
        self.inner.stop(name).await
    }

    async fn terminate(&self, name: &InstanceName) -> Result<(), BackendError> {
        self.inner.terminate(name).await
    }

    async fn list_owned(&self) -> Result<Vec<OwnedInstance>, BackendError> {
        self.inner.list_owned().await
    }
}

/// Resident memory of this process, KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The records of a grant that is served, as a bridge writes them.
fn served(n: u32) -> (InstanceName, Vec<Record>) {
    let id = RequestId(UniqueId::hash(&n.to_be_bytes()));
    let grant = ComputeGrant { request_id: id, provider: provider(), ..grant("metal", 86_400_000) };
    let name = InstanceName::derive(&provider(), &id, 0);
    let instance = Box::new(ProvisionedInstance {
        backend: "metal".parse().unwrap(),
        name: name.clone(),
        host: "203.0.113.7".into(),
        port: 40_000,
        user: "root".into(),
        isolation: IsolationLevel::RootNamespaces,
        isolation_text: "namespaces and cgroups".into(),
    });
    let backend = instance.backend.clone();
    let events = [
        Event::Granted(Box::new(grant)),
        Event::Opening,
        Event::Provisioning { backend, instance: name.clone() },
        Event::Running { instance, sealed_receipt: vec![7; RECEIPT] },
        Event::Replied,
    ];
    (name, events.into_iter().map(|event| Record { grant: id, at_ms: now_ms(), event }).collect())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: prints what a thousand live grants take"]
async fn a_thousand_live_grants_in_memory() {
    let inner = FakeBackend::new("metal");
    let quiet = Arc::new(Quiet { inner: Arc::clone(&inner), watched: Semaphore::new(0) });
    let world = World::new(vec![Arc::clone(&quiet) as _]);
    let journal = Journal::open(world.path()).unwrap();
    for n in 0..GRANTS {
        let (name, records) = served(n);
        inner.running.lock().unwrap().insert(name);
        records.iter().for_each(|record| drop(journal.append_blocking(record).unwrap()));
    }
    drop(journal);
    let before = resident_kib();
    let began = std::time::Instant::now();
    let bridge = world.start();
    let _all = quiet.watched.acquire_many(GRANTS).await.unwrap();
    let (after, took) = (resident_kib(), began.elapsed());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    writeln!(
        std::io::stderr(),
        "{GRANTS} grants taken up from the journal and watched after {} ms: {before} KiB resident before, {after} KiB after, {} bytes each; \
         machines and market are doubles in this process and hold next to nothing of them; load {}",
        took.as_millis(),
        after.saturating_sub(before) * 1_024 / u64::from(GRANTS),
        load.trim(),
    )
    .unwrap();
    assert_eq!(bridge.journal.open_grants().len(), GRANTS as usize);
    bridge.kill().await;
}
