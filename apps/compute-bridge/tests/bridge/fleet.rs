//! The fleet: order of preference, who is tried next, and what is written down.

use std::sync::Arc;

use async_trait::async_trait;
use coalition_compute::OfferName;
use compute_bridge::backend::{BackendError, FailureKind, InstanceName, Order, Workload};
use compute_bridge::fleet::{Attempt, AttemptLog, AttemptResult, Fleet, FleetError, JournalStop, ProvisionError};

use super::harness::{FakeBackend, grant, image, instance_keys};

#[derive(Default)]
struct Notes(Vec<String>);

#[async_trait]
impl AttemptLog for Notes {
    async fn intend(&mut self, backend: &OfferName) -> Result<InstanceName, JournalStop> {
        self.0.push(format!("intend {backend}"));
        let name = format!("{:032x}", self.0.len());
        Ok(InstanceName::try_from(name).unwrap())
    }

    async fn failed(&mut self, backend: &OfferName, error: &BackendError, cleaned: bool) -> Result<(), JournalStop> {
        self.0.push(format!("failed {backend} {} cleaned={cleaned}", error.kind.as_str()));
        Ok(())
    }
}

pub(crate) struct Tried {
    pub(crate) result: Result<String, Vec<Attempt>>,
    pub(crate) notes: Vec<String>,
}

pub(crate) async fn try_one(backends: &[Arc<FakeBackend>], offer: &str) -> Tried {
    try_made(&Fleet::new(backends.iter().map(|b| Arc::clone(b) as _).collect()).unwrap(), offer).await
}

pub(crate) async fn try_made(fleet: &Fleet, offer: &str) -> Tried {
    let grant = grant(offer, 60_000);
    let (image, keys, workload) = (image(), instance_keys(), Workload::default());
    let order = Order { grant: &grant, image: &image, workload: &workload, keys: &keys };
    let mut notes = Notes::default();
    let result = fleet.provision_for_grant(order, &mut notes).await;
    let result = result.map(|instance| instance.backend.to_string()).map_err(|error| match error {
        ProvisionError::Exhausted(attempts) => attempts,
        ProvisionError::Journal(stop) => panic!("{stop}"),
    });
    Tried { result, notes: notes.0 }
}

pub(crate) fn failing(name: &str, kind: FailureKind, started: bool) -> Arc<FakeBackend> {
    let backend = FakeBackend::new(name);
    *backend.provision_fails.lock().unwrap() = Some((kind, started));
    backend
}

#[tokio::test]
async fn first_match_wins_and_the_reserved_offer_comes_first() {
    let backends = [FakeBackend::new("a"), FakeBackend::new("b")];
    assert_eq!(try_one(&backends, "nobody").await.result.unwrap(), "a");
    let tried = try_one(&backends, "b").await;
    assert_eq!(tried.result.unwrap(), "b");
    assert_eq!(tried.notes, ["intend b"]);
}

#[tokio::test]
async fn a_lack_of_room_goes_on_to_the_next_with_reasons() {
    for kind in [FailureKind::Capacity, FailureKind::Quota, FailureKind::Transient, FailureKind::Auth] {
        let backends = [failing("a", kind, false), FakeBackend::new("b")];
        let tried = try_one(&backends, "a").await;
        assert_eq!(tried.result.unwrap(), "b");
        assert_eq!(
            tried.notes,
            ["intend a".to_owned(), format!("failed a {} cleaned=true", kind.as_str()), "intend b".into()]
        );
        // Whatever the failed one left was removed before the next was tried.
        assert_eq!(backends[0].terminated.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_workload_that_started_and_failed_is_not_tried_elsewhere() {
    for (kind, started) in [(FailureKind::Fatal, true), (FailureKind::Transient, true), (FailureKind::Fatal, false)] {
        let backends = [failing("a", kind, started), FakeBackend::new("b")];
        let attempts = try_one(&backends, "a").await.result.unwrap_err();
        assert_eq!(attempts.len(), 1);
        assert!(
            matches!(&attempts[0].result, AttemptResult::Failed { kind: k, started: s, .. } if *k == kind && *s == started)
        );
        assert!(backends[1].running.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn unfit_backends_are_listed_and_never_called() {
    let backends = [FakeBackend::in_region("a", "mars"), FakeBackend::in_region("b", "venus")];
    let tried = try_one(&backends, "a").await;
    let attempts = tried.result.unwrap_err();
    assert!(tried.notes.is_empty());
    let told = ProvisionError::Exhausted(attempts).to_string();
    assert!(told.contains("a does not fit") && told.contains("mars") && told.contains("venus"), "{told}");
}

#[test]
fn an_empty_fleet_and_a_twin_are_refused() {
    assert_eq!(Fleet::new(Vec::new()).err(), Some(FleetError::Empty));
    let twins: Vec<Arc<dyn compute_bridge::backend::Backend>> = vec![FakeBackend::new("a"), FakeBackend::new("a")];
    assert_eq!(Fleet::new(twins).err(), Some(FleetError::Duplicate("a".parse().unwrap())));
}
