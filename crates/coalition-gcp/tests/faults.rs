//! What goes wrong at Google, and what the client makes of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use coalition_cloud::{Cloud, ErrorKind, HostState, NewHost};
use coalition_gcp::{ComputeEngine, Credentials, CredentialsError, Setup};
use coalition_gcp_double::{Double, EMAIL, Fault};

use common::*;

#[tokio::test]
async fn every_refusal_has_its_kind_and_making_is_tried_once() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let marks = marks(1);
    let faults = [
        (Fault::Refuse("ZONE_RESOURCE_POOL_EXHAUSTED", 503), ErrorKind::Capacity, false),
        (Fault::Refuse("quotaExceeded", 403), ErrorKind::Quota, false),
        (Fault::Throttle(1), ErrorKind::Throttled, false),
        (Fault::Refuse("rateLimitExceeded", 403), ErrorKind::Throttled, false),
        (Fault::Refuse("forbidden", 403), ErrorKind::Auth, false),
        (Fault::Refuse("accessNotConfigured", 403), ErrorKind::Auth, false),
        (Fault::Refuse("invalid", 400), ErrorKind::Fatal, false),
        (Fault::Refuse("backendError", 503), ErrorKind::Transient, true),
        (Fault::Refuse("somethingNew", 500), ErrorKind::Transient, true),
        (Fault::FailOperation("ZONE_RESOURCE_POOL_EXHAUSTED", 503), ErrorKind::Capacity, false),
        (Fault::FailOperation("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", 503), ErrorKind::Capacity, false),
        (Fault::FailOperation("QUOTA_EXCEEDED", 403), ErrorKind::Quota, false),
        (Fault::FailOperation("PERMISSIONS_ERROR", 403), ErrorKind::Auth, false),
        (Fault::FailOperation("SOMETHING_NEW", 400), ErrorKind::Fatal, false),
    ];
    for (fault, kind, may_have_acted) in faults {
        double.forget_requests();
        let before = double.count("instances.insert");
        double.fail("instances.insert", [fault.clone()]);
        let error = cloud.create(&new_host(&marks)).await.unwrap_err();
        assert_eq!((error.kind, error.may_have_acted), (kind, may_have_acted), "{fault:?}: {error}");
        assert_eq!(double.count("instances.insert"), before + 1, "{fault:?}");
        assert!(double.machines().is_empty() && double.disks().is_empty(), "{fault:?}");
    }
    // The double's own judgement of what is asked.
    let bad = [
        NewHost { size: "z9-huge", ..new_host(&marks) },
        NewHost { size: "n2-standard-2", ..new_host(&marks) },
        NewHost { disk_gib: 5, ..new_host(&marks) },
        NewHost { longest_s: 10, ..new_host(&marks) },
    ];
    for new in bad {
        assert_eq!(cloud.create(&new).await.unwrap_err().kind, ErrorKind::Fatal, "{new:?}");
    }
}

#[tokio::test]
async fn the_real_quota_of_the_double_is_a_quota() {
    let double = Double::start(ROLE, None).await;
    double.set_quota("N2D_CPUS", 3);
    let cloud = client(&double);
    cloud.create(&new_host(&marks(1))).await.unwrap();
    let error = cloud.create(&new_host(&marks(2))).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_acted), (ErrorKind::Quota, false));
    assert!(error.message.contains("N2D_CPUS"), "{error}");
    let found = cloud.hosts(owner(&marks(1)), None).await.unwrap();
    assert_eq!(found.len(), 1);
}

#[tokio::test]
async fn a_lost_answer_leaves_one_host() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let marks = marks(3);
    for fault in [Fault::LoseAnswer, Fault::Garble, Fault::Endless, Fault::Answer("{}".into())] {
        double.fail("instances.insert", [fault.clone()]);
        let error = cloud.create(&new_host(&marks)).await.unwrap_err();
        assert_eq!((error.kind, error.may_have_acted), (ErrorKind::Transient, true), "{fault:?}: {error}");
    }
    let made = cloud.create(&new_host(&marks)).await.unwrap();
    assert_eq!((double.machines().len(), cloud.hosts(owner(&marks), None).await.unwrap().len()), (1, 1));
    assert_eq!(running(&cloud, &marks).await.id, made.id);
    // A lost end is asked for again by itself.
    double.fail("instances.delete", [Fault::LoseAnswer, Fault::Refuse("backendError", 503)]);
    end(&cloud, &made.id).await;
    assert!(double.machines().is_empty());
}

#[tokio::test]
async fn an_operation_that_takes_long_is_remembered() {
    let double = Double::start(ROLE, None).await;
    let patience = Duration::from_millis(30);
    let cloud = ComputeEngine::new(Setup { create_patience: patience, ..setup(&double) }).unwrap();
    let (good, bad) = (marks(1), marks(2));
    double.fail("instances.insert", [Fault::Slow(Duration::from_secs(3_000))]);
    let host = cloud.create(&new_host(&good)).await.unwrap();
    assert_eq!(host.state, HostState::Coming);
    // Not listed, and still known.
    double.fail("instances.aggregatedList", [Fault::ShowNothing]);
    let found = cloud.hosts(owner(&good), Some(&good.instance)).await.unwrap();
    assert_eq!((found.len(), found[0].state, &found[0].id), (1, HostState::Coming, &host.id));
    // One that fails later: the reason is told, and nothing of it is left.
    double.fail("instances.insert", [Fault::FailOperation("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", 503)]);
    double.slow(Duration::from_secs(3_000));
    assert_eq!(cloud.create(&new_host(&bad)).await.unwrap().state, HostState::Coming);
    double.slow(Duration::ZERO);
    double.pass_time(Duration::from_secs(3_001));
    for _ in 0..2 {
        let found = cloud.hosts(owner(&bad), Some(&bad.instance)).await.unwrap();
        let [over] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            (over.state, over.reason.as_ref().map(|(kind, _)| *kind)),
            (HostState::Over, Some(ErrorKind::Capacity))
        );
    }
    assert!(double.count("zoneOperations.get") > 0);
    let id = format!("{ZONE}/c-{}", bad.instance);
    assert_eq!(cloud.end(&id).await.unwrap(), HostState::Over, "it is known that it failed");
    assert_eq!(cloud.end(&id).await.unwrap_err().kind, ErrorKind::NotFound, "and then there is nothing to know");
}

#[tokio::test]
async fn what_is_ended_while_it_is_made_does_not_stay() {
    let double = Double::start(ROLE, None).await;
    let patience = Duration::from_millis(20);
    let cloud = ComputeEngine::new(Setup { create_patience: patience, ..setup(&double) }).unwrap();
    let marks = marks(4);
    double.fail("instances.insert", [Fault::Slow(Duration::from_secs(60))]);
    let host = cloud.create(&new_host(&marks)).await.unwrap();
    // Google does not know it yet, as far as it says: that is no confirmation.
    double.fail("instances.delete", [Fault::Refuse("notFound", 404)]);
    assert_eq!(cloud.end(&host.id).await.unwrap(), HostState::Stopping);
    end(&cloud, &host.id).await;
    double.pass_time(Duration::from_secs(120));
    assert!(double.machines().is_empty() && double.disks().is_empty());
    assert!(cloud.hosts(owner(&marks), None).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_end_that_fails_is_a_failure_and_is_asked_for_again() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let host = cloud.create(&new_host(&marks(5))).await.unwrap();
    double.fail("instances.delete", [Fault::FailOperation("RESOURCE_NOT_READY", 400)]);
    let seen = Mutex::new(Vec::new());
    until("the end is confirmed", async || match cloud.end(&host.id).await {
        Ok(state) => (state == HostState::Over).then_some(()),
        Err(error) => {
            seen.lock().unwrap().push(error.kind);
            None
        }
    })
    .await;
    assert_eq!(*seen.lock().unwrap(), [ErrorKind::Conflict]);
    assert!(double.machines().is_empty());
    // Another process that ends what is being ended hears that it is not over yet.
    let (cloud, other) = (client(&double), client(&double));
    let host = cloud.create(&new_host(&marks(6))).await.unwrap();
    double.slow(Duration::from_secs(60));
    assert_eq!(cloud.end(&host.id).await.unwrap(), HostState::Stopping);
    assert_eq!(other.end(&host.id).await.unwrap(), HostState::Stopping);
    double.pass_time(Duration::from_secs(61));
    assert_eq!(cloud.end(&host.id).await.unwrap(), HostState::Over);
}

#[tokio::test]
async fn looking_is_repeated_and_an_outage_is_no_empty_list() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let marks = marks(7);
    cloud.create(&new_host(&marks)).await.unwrap();
    let before = double.count("instances.aggregatedList");
    double.fail("instances.aggregatedList", [Fault::Throttle(0), Fault::LoseAnswer]);
    assert_eq!(cloud.hosts(owner(&marks), None).await.unwrap().len(), 1);
    assert_eq!(double.count("instances.aggregatedList"), before + 3);
    double.blind(true);
    assert_eq!(cloud.hosts(owner(&marks), None).await.unwrap_err().kind, ErrorKind::Transient);
    assert!(cloud.quota().await.vcpus.is_none());
    double.blind(false);
    for nothing in [
        "{}",
        "[]",
        "null",
        r#"{"kind":"compute#instanceList","items":[]}"#,
        r#"{"kind":"compute#instanceAggregatedList","items":{"zones/europe-west4-a":{"warning":{"code":"UNREACHABLE"}}}}"#,
        r#"{"kind":"compute#instanceAggregatedList","unreachables":["zones/europe-west4-b"]}"#,
    ] {
        double.fail("instances.aggregatedList", (0..3).map(|_| Fault::Answer(nothing.to_owned())));
        let error = cloud.hosts(owner(&marks), None).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Transient, "{nothing}: {error}");
        double.forget_faults();
    }
    double.hide_addresses(true);
    let found = cloud.hosts(owner(&marks), None).await.unwrap();
    assert_eq!((found[0].public_address, found[0].private_address.is_some()), (None, true));
    let nobody = ComputeEngine::new(Setup { endpoint: Some("http://127.0.0.1:9".into()), ..setup(&double) }).unwrap();
    let error = nobody.create(&new_host(&marks)).await.unwrap_err();
    assert!(!error.may_have_acted && error.kind == ErrorKind::Transient, "{error}");
}

#[tokio::test]
async fn credentials_that_are_missing_wrong_or_over() {
    let double = Double::start(ROLE, None).await;
    let marks = marks(8);
    let with = |credentials| ComputeEngine::new(Setup { credentials, ..setup(&double) }).unwrap();
    let missing = with(Arc::new(|| Err(CredentialsError::Unavailable("the file is not private".into()))));
    let error = missing.create(&new_host(&marks)).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_acted), (ErrorKind::Auth, false));
    assert!(error.message.contains("not private"), "{error}");
    assert!(double.calls().is_empty(), "nothing is asked without credentials");
    let stranger = with(key(double.stranger_key_file()));
    let error = stranger.identity().await.unwrap_err();
    assert!(error.kind == ErrorKind::Auth && error.message.contains("Invalid JWT Signature"), "{error}");
    // A token is used until it is refused; then a new one is asked for, once.
    let cloud = with(key(double.key_file()));
    cloud.identity().await.unwrap();
    cloud.identity().await.unwrap();
    let asked = double.count("token");
    assert_eq!(asked, 2, "one for the stranger, one for both");
    double.revoke_tokens();
    cloud.create(&new_host(&marks)).await.unwrap();
    assert_eq!(double.count("token"), asked + 1);
    double.delete_key();
    let error = cloud.hosts(owner(&marks), None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Auth, "{error}");
    double.fail("token", [Fault::Answer(r#"{"access_token":"s3cr\n","expires_in":1,"token_type":"Bearer"}"#.into())]);
    let error = cloud.hosts(owner(&marks), None).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cr"), "{error}");
}

#[tokio::test]
async fn the_metadata_server_and_an_exchanged_key() {
    let double = Double::start(ROLE, None).await;
    let endpoint = double.endpoint.clone();
    let server = Arc::new(move || Credentials::from_metadata_server(Some(&endpoint)));
    let here = ComputeEngine::new(Setup { credentials: server, ..setup(&double) }).unwrap();
    assert_eq!(here.identity().await.unwrap(), format!("project double-project, {EMAIL}"));
    // The key is exchanged while the client lives: the next call shows the new one.
    let text = Arc::new(Mutex::new(double.stranger_key_file()));
    let source = Arc::clone(&text);
    let credentials = Arc::new(move || Credentials::from_key_file(&source.lock().unwrap()));
    let cloud = ComputeEngine::new(Setup { credentials, ..setup(&double) }).unwrap();
    assert_eq!(cloud.identity().await.unwrap_err().kind, ErrorKind::Auth);
    *text.lock().unwrap() = double.key_file();
    cloud.identity().await.unwrap();
    // Something else that listens there is no metadata server.
    double.fail("token", [Fault::Answer("{}".into())]);
    let endpoint = double.endpoint.clone();
    let other = Arc::new(move || Credentials::from_metadata_server(Some(&endpoint)));
    let error =
        ComputeEngine::new(Setup { credentials: other, ..setup(&double) }).unwrap().identity().await.unwrap_err();
    assert!(error.message.contains("not from a metadata server"), "{error}");
}

#[tokio::test]
async fn secrets_are_shown_nowhere() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let marks = marks(9);
    let mut shown = format!("{cloud:?} {:?}", Credentials::from_key_file(&double.key_file()).unwrap());
    cloud.create(&new_host(&marks)).await.unwrap();
    for fault in [Fault::LoseAnswer, Fault::Garble, Fault::Refuse("forbidden", 403)] {
        double.fail("instances.insert", [fault]);
        let error = cloud.create(&new_host(&common::marks(10))).await.unwrap_err();
        shown.push_str(&format!("{error} {error:?}"));
    }
    for call in double.calls() {
        shown.push_str(&call.path);
    }
    let key = double.key_file();
    let inside = key.split("\\n").nth(3).unwrap();
    assert!(inside.len() > 30);
    for secret in [inside, "ya29.", "Bearer", "#cloud-config", "assertion="] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}
