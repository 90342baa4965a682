//! Bad days of a provider: each has a typed reason on the operator's page and in the log, and what the bridge cannot see ends
//! nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coalition_cloud::{
    Cloud, CloudError, ErrorKind, Host, HostState, Image, Leftover, Moment, NewHost, Owner, Quota, SizeInfo, Telemetry,
    Window,
};
use coalition_compute::{GrantEnd, LogEnd, RefusalReason};
use coalition_host::types::IsolationLevel;
use compute_bridge::backend::{Backend, FailureKind, InstanceName, ProvisionedInstance};
use compute_bridge::backends::{CloudBackend, CloudSetup};
use compute_bridge::journal::Outcome;
use compute_bridge::now_ms;

use super::accounts::Hosts;
use super::harness::*;
use super::world::*;

/// What the operator's page tells, oldest first.
fn told(bridge: &Bridge, world: &World) -> Vec<String> {
    let page = bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet);
    page.events.into_iter().map(|event| event.text).collect()
}

async fn told_of(bridge: &Bridge, world: &World, what: &str) {
    eventually(what, || told(bridge, world).iter().any(|text| text.contains(what)).then_some(())).await;
}

/// Wrong or expired credentials, no right to do it, asked too often, no room, a limit, a name that is taken, a size that the
/// region does not have: the page names the kind, the log gives the reason, nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_failure_is_a_reason_on_the_page_and_in_the_log() {
    for kind in FailureKind::ALL {
        let (world, backend) = fable();
        let bridge = world.start();
        world.card().await;
        *backend.provision_fails.lock().unwrap() = Some((kind, false));
        let reason = match kind {
            FailureKind::Capacity | FailureKind::Quota => RefusalReason::NoCapacity,
            FailureKind::TooLarge => RefusalReason::ImageTooLarge,
            FailureKind::BadImage | FailureKind::Unsuited => RefusalReason::ImageRefused,
            _ => RefusalReason::BackendFailed,
        };
        let asked = world.ask(1, 600);
        assert_eq!(bridge.closed(&asked).await, Outcome::Refused(reason), "{kind:?}");
        told_of(&bridge, &world, &format!("metal could not provision ({})", kind.as_str())).await;
        assert!(no_instances(&backend), "{kind:?}");
        let page = bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet);
        assert_eq!(page.refusals.values().sum::<u64>(), 1, "{:?}", page.refusals);
        bridge.stop().await;
    }
}

/// Deleted behind our back, or forgotten by a host that lost its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_somebody_else_removed_is_logged_as_lost_and_named() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.serving(1, 600).await;
    backend.running.lock().unwrap().clear();
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::BackendLost));
    assert_eq!(world.market.record(&requester.id()).unwrap().usage, SO_FAR, "what was seen of it is logged");
    told_of(&bridge, &world, "an instance on metal is lost (not_found)").await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_seen_is_named_once_and_so_is_its_return() {
    let (world, backend) = fable();
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(1, 600);
    world.receipt(&requester).await;
    *backend.visible.lock().unwrap() = false;
    told_of(&bridge, &world, "metal cannot be seen").await;
    assert_eq!(bridge.journal.get(&requester.id()).unwrap().stage.name(), "replied", "blindness is not an end");
    *backend.visible.lock().unwrap() = true;
    told_of(&bridge, &world, "metal is seen again").await;
    let lines = told(&bridge, &world);
    assert_eq!(lines.iter().filter(|text| text.contains("seen")).count(), 2, "{lines:?}");
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    bridge.stop().await;
}

/// A cloud that answers nothing but failures, all kinds in turn.
struct Outage {
    places: Vec<String>,
    asked: Arc<AtomicU32>,
}

impl Outage {
    fn refuse<T>(&self) -> Result<T, CloudError> {
        let kinds = [ErrorKind::Transient, ErrorKind::Throttled, ErrorKind::Auth, ErrorKind::Fatal];
        let n = self.asked.fetch_add(1, Ordering::Relaxed) as usize;
        Err(CloudError::new(kinds[n % kinds.len()], "an outage"))
    }
}

#[async_trait]
impl Cloud for Outage {
    fn name(&self) -> &'static str {
        "a cloud"
    }

    fn region(&self) -> &str {
        "local"
    }

    fn places(&self) -> &[String] {
        &self.places
    }

    fn settle(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn end_patience(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn identity(&self) -> Result<String, CloudError> {
        self.refuse()
    }

    async fn image(&self) -> Result<Image, CloudError> {
        self.refuse()
    }

    async fn quota(&self) -> Quota {
        Quota { vcpus: None, text: "unknown".into() }
    }

    async fn sizes(&self, _names: &[&str]) -> Result<Vec<SizeInfo>, CloudError> {
        self.refuse()
    }

    async fn create(&self, _new: &NewHost<'_>) -> Result<Host, CloudError> {
        self.refuse()
    }

    async fn may_create(&self, _new: &NewHost<'_>) -> Result<String, CloudError> {
        self.refuse()
    }

    async fn hosts(&self, _owner: Owner<'_>, _instance: Option<&str>) -> Result<Vec<Host>, CloudError> {
        self.refuse()
    }

    async fn end(&self, _id: &str) -> Result<HostState, CloudError> {
        self.refuse()
    }

    async fn leftovers(&self, _owner: Owner<'_>, _instance: Option<&str>) -> Result<Vec<Leftover>, CloudError> {
        self.refuse()
    }

    async fn remove(&self, _leftover: &Leftover) -> Result<(), CloudError> {
        self.refuse()
    }

    async fn console(&self, _id: &str) -> Result<String, CloudError> {
        self.refuse()
    }

    fn telemetry_moment(&self) -> Moment {
        Moment::AfterEnd
    }

    async fn telemetry(&self, _: Owner<'_>, _: &str, _: Window) -> Result<Telemetry, CloudError> {
        self.refuse()
    }

    async fn may_read_telemetry(&self, _: Window) -> Result<String, CloudError> {
        self.refuse()
    }
}

/// An hour of simulated time in which neither the cloud nor the machine answers: nobody takes that for an end.
#[tokio::test(start_paused = true)]
async fn an_hour_of_blindness_ends_nothing() {
    let Some(hosts) = Hosts::new() else { return };
    let asked = Arc::new(AtomicU32::new(0));
    let cloud = Arc::new(Outage { places: vec!["a".into()], asked: Arc::clone(&asked) });
    let mut setup: CloudSetup = hosts.setup("cloud", cloud, &[("small", 2_000, 1_024, "0.1")]);
    setup.look = Duration::from_secs(5);
    setup.host.watch_interval = Duration::from_secs(30);
    // Nobody listens there.
    setup.ssh_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let backend = CloudBackend::new(setup);
    let instance = ProvisionedInstance {
        backend: "cloud".parse().unwrap(),
        name: InstanceName::try_from("0123456789abcdef0123456789abcdef".to_owned()).unwrap(),
        host: "127.0.0.1".into(),
        port: 22,
        user: "root".into(),
        isolation: IsolationLevel::RootNamespaces,
        isolation_text: "a fable".into(),
    };
    let watch = backend.watch_until_exit(&instance, now_ms() + 7_200_000, &|_| panic!("nothing was seen"));
    let hour = tokio::time::timeout(Duration::from_secs(3_600), watch).await;
    assert!(hour.is_err(), "taken for an end: {hour:?}");
    let looks = asked.load(Ordering::Relaxed);
    assert!(looks > 500, "{looks} looks only");
    assert!(backend.trouble().is_some_and(|trouble| trouble.contains("an outage")), "{:?}", backend.trouble());
    assert!(backend.list_owned().await.is_err() && backend.terminate(&instance.name).await.is_err());
}
