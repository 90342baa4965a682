//! The client against the double, with the least permissions: a whole life, idempotency, leftovers, the cloud's own timer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coalition_cloud::{Cloud, Confidential, ErrorKind, HostState, Marks, NewHost, Owner};
use coalition_gcp::{Action, ComputeEngine, Setup, request_id};
use coalition_gcp_double::{Double, EMAIL, Fault};

use common::*;

#[tokio::test]
async fn a_whole_life_with_the_least_permissions() {
    let notes = Arc::new(Notes::default());
    let double = Double::start(ROLE, Some(Arc::<Notes>::clone(&notes))).await;
    let cloud = client(&double);
    let marks = marks(1);
    let new = new_host(&marks);
    assert_eq!((cloud.name(), cloud.region(), cloud.places().len()), ("Compute Engine", "europe-west4", 2));
    assert_eq!(cloud.identity().await.unwrap(), format!("project double-project, {EMAIL}"));
    let image = cloud.image().await.unwrap();
    assert_eq!((image.architecture.as_str(), image.disk_gib, image.unusable), ("x86_64", 10, None));
    assert_eq!(cloud.quota().await.vcpus, Some(8));
    let sizes = cloud.sizes(&["n2d-standard-2", "c3-standard-4", "z9-huge", "../x"]).await.unwrap();
    let [n2d, c3] = sizes.as_slice() else { panic!("{sizes:?}") };
    assert_eq!((n2d.vcpus, n2d.ram_mib, n2d.confidential.as_slice()), (2, 8_192, &[Confidential::SevSnp][..]));
    assert_eq!(c3.confidential, [Confidential::Tdx]);
    cloud.may_create(&new).await.unwrap();
    assert!(cloud.hosts(owner(&marks), None).await.unwrap().is_empty(), "looking makes nothing");

    let made = cloud.create(&new).await.unwrap();
    assert_eq!((made.state, made.instance.as_str()), (HostState::Running, marks.instance.as_str()));
    assert_eq!(made.id, format!("{ZONE}/c-{}", marks.instance));
    let one = running(&cloud, &marks).await;
    assert!(one.public_address.is_some_and(|address| address.is_loopback()) && one.private_address.is_some());
    assert_eq!((one.id.as_str(), one.size.as_str()), (made.id.as_str(), "n2d-standard-2"));
    let booted = notes.booted.lock().unwrap().clone();
    let [(_, address, user_data)] = booted.as_slice() else { panic!("{booted:?}") };
    assert_eq!((Some((*address).into()), user_data.as_slice()), (one.public_address, USER_DATA));
    assert!(cloud.quota().await.text.contains("2 of them in use"));
    assert!(cloud.console(&one.id).await.unwrap().contains("Linux version"));
    assert!(cloud.leftovers(owner(&marks), None).await.unwrap().is_empty(), "an attached disk is no leftover");

    assert_eq!(cloud.end(&one.id).await.unwrap(), HostState::Stopping);
    end(&cloud, &one.id).await;
    assert_eq!(cloud.end(&one.id).await.unwrap(), HostState::Over, "ending what was ended is no failure");
    assert_eq!(notes.off.lock().unwrap().len(), 1);
    assert!(cloud.hosts(owner(&marks), None).await.unwrap().is_empty() && double.disks().is_empty());
    let never = client(&double).end(&one.id).await.unwrap_err();
    assert_eq!(never.kind, ErrorKind::NotFound, "{never}");
}

/// Exactly what the client can call is permitted, nothing more; and everything it can call was called by the test above with
/// no more than this, as the double refuses the rest.
#[tokio::test]
async fn the_role_permits_what_the_client_can_call_and_no_more() {
    let role: serde_json::Value = serde_json::from_str(ROLE).unwrap();
    let permitted = role["includedPermissions"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
    let permitted: BTreeSet<&str> = permitted.collect();
    let needed: BTreeSet<&str> = Action::ALL.into_iter().flat_map(Action::permissions).copied().collect();
    assert_eq!(permitted, needed);
    // Each one that the double asks for is really missed.
    let marks = marks(2);
    for missing in ["compute.instances.create", "compute.disks.setLabels", "compute.subnetworks.useExternalIp"] {
        let double = Double::start(&ROLE.replace(missing, "compute.nothing"), None).await;
        let error = client(&double).create(&new_host(&marks)).await.unwrap_err();
        assert_eq!((error.kind, error.may_have_acted), (ErrorKind::Auth, false), "{error}");
        assert!(error.message.contains(missing), "{error}");
    }
}

#[tokio::test]
async fn every_call_of_the_list_is_made_as_the_list_says() {
    let double = Double::start(ROLE, None).await;
    let marks = marks(3);
    double.keep_disks(true);
    let cloud = client(&double);
    let family = Setup { image: "projects/double-images/global/images/family/host".into(), ..setup(&double) };
    let image = ComputeEngine::new(family).unwrap().image().await.unwrap();
    assert!(image.id.ends_with("family/host (host-v1)"), "{}", image.id);
    cloud.identity().await.unwrap();
    cloud.may_create(&new_host(&marks)).await.unwrap();
    let host = cloud.create(&new_host(&marks)).await.unwrap();
    running(&cloud, &marks).await;
    cloud.console(&host.id).await.unwrap();
    end(&cloud, &host.id).await;
    cloud.telemetry(owner(&marks), &marks.instance, WINDOW).await.unwrap();
    let [left] = cloud.leftovers(owner(&marks), None).await.unwrap().try_into().unwrap();
    cloud.remove(&left).await.unwrap();
    let made: BTreeSet<String> = double.calls().into_iter().map(|call| call.action).collect();
    let listed: BTreeSet<String> = Action::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(made, listed);
}

#[tokio::test]
async fn asked_twice_is_made_once() {
    let double = Double::start(ROLE, None).await;
    let marks = marks(4);
    let (first, second) = (client(&double), client(&double));
    let new = new_host(&marks);
    let made = first.create(&new).await.unwrap();
    assert_eq!(second.create(&new).await.unwrap().id, made.id);
    let sent = double.calls().into_iter().filter(|call| call.action == "instances.insert");
    let ids: BTreeSet<String> = sent.map(|call| call.path).collect();
    assert_eq!(ids.len(), 1);
    assert!(ids.iter().all(|path| path.contains(&request_id(&marks.instance, ZONE))), "{ids:?}");
    assert_eq!(double.machines().len(), 1);
    // Another place is another host; another size or another owner under the same name is refused.
    let elsewhere = NewHost { place: "europe-west4-b", ..new };
    assert_ne!(first.create(&elsewhere).await.unwrap().id, made.id);
    let larger = NewHost { size: "e2-medium", confidential: None, ..new };
    assert_eq!(first.create(&larger).await.unwrap_err().kind, ErrorKind::Conflict);
    let stranger = Marks { bridge: "ef".repeat(32), ..marks.clone() };
    let error = first.create(&NewHost { marks: &stranger, ..new }).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_acted), (ErrorKind::Conflict, false), "{error}");
    assert_eq!(double.machines().len(), 2);
    // Google forgets the request's id; the name still tells.
    double.forget_requests();
    assert_eq!(second.create(&new).await.unwrap().id, made.id);
    assert_eq!(second.create(&NewHost { marks: &stranger, ..new }).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(double.machines().len(), 2);
}

#[tokio::test]
async fn only_whole_marks_count() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let own = marks(5);
    // The labels are the same: they hold 60 of 64 digits.
    let other = Marks { bridge: format!("{}ffff", "ab".repeat(30)), instance: "66".repeat(16), ..own.clone() };
    let one = cloud.create(&new_host(&own)).await.unwrap();
    let two = cloud.create(&NewHost { place: "europe-west4-b", ..new_host(&other) }).await.unwrap();
    for (marks, expected) in [(&own, &one), (&other, &two)] {
        let found = cloud.hosts(owner(marks), None).await.unwrap();
        assert_eq!(found.iter().map(|host| &host.id).collect::<Vec<_>>(), [&expected.id]);
    }
    let nobody = Owner { bridge: &own.bridge, offer: "gcp-2" };
    assert!(cloud.hosts(nobody, None).await.unwrap().is_empty());
    assert!(cloud.hosts(owner(&own), Some(&other.instance)).await.unwrap().is_empty());
    // The same for disks that stay behind.
    double.keep_disks(true);
    end(&cloud, &one.id).await;
    end(&cloud, &two.id).await;
    for (marks, expected) in [(&own, &one), (&other, &two)] {
        let left = cloud.leftovers(owner(marks), None).await.unwrap();
        let [disk] = left.as_slice() else { panic!("{left:?}") };
        assert_eq!((&disk.id, &disk.instance, disk.what), (&expected.id, &marks.instance, "disk"));
    }
    let [left] = cloud.leftovers(owner(&own), Some(&own.instance)).await.unwrap().try_into().unwrap();
    for _ in 0..2 {
        cloud.remove(&left).await.unwrap();
    }
    assert!(cloud.leftovers(owner(&own), None).await.unwrap().is_empty());
    assert_eq!(cloud.leftovers(owner(&other), None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn many_hosts_take_many_pages() {
    let double = Double::start(ROLE, None).await;
    double.set_quota("CPUS", 10_000);
    double.slow(Duration::ZERO);
    let cloud = client(&double);
    for n in 0..3 {
        let marks = marks(n);
        let new = NewHost { size: "e2-medium", confidential: None, ..new_host(&marks) };
        cloud.create(&new).await.unwrap();
    }
    double.limit_pages(1);
    let before = double.count("instances.aggregatedList");
    assert_eq!(cloud.hosts(owner(&marks(0)), None).await.unwrap().len(), 3);
    assert_eq!(double.count("instances.aggregatedList"), before + 3);
    double.limit_pages(0);
    let endless = cloud.hosts(owner(&marks(0)), None).await.unwrap_err();
    assert!(endless.message.contains("no end after 100 pages"), "{endless}");
}

#[tokio::test]
async fn google_ends_what_nobody_ends() {
    let notes = Arc::new(Notes::default());
    let double = Double::start(ROLE, Some(Arc::<Notes>::clone(&notes))).await;
    let cloud = client(&double);
    let marks = marks(6);
    cloud.create(&new_host(&marks)).await.unwrap();
    running(&cloud, &marks).await;
    double.pass_time(Duration::from_secs(880));
    assert_eq!(double.machines().len(), 1);
    double.pass_time(Duration::from_secs(30));
    assert!(double.machines().is_empty() && double.disks().is_empty());
    assert!(cloud.hosts(owner(&marks), None).await.unwrap().is_empty());
    assert_eq!(notes.off.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_switches_itself_off_is_stopped_and_still_ended() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let marks = marks(7);
    let host = cloud.create(&new_host(&marks)).await.unwrap();
    double.stop_machine(&format!("c-{}", marks.instance), true);
    let found = cloud.hosts(owner(&marks), None).await.unwrap();
    assert_eq!((found[0].state, found[0].public_address), (HostState::Stopped, None), "its disk is still billed");
    end(&cloud, &host.id).await;
    assert!(double.machines().is_empty() && double.disks().is_empty());
    // What Google takes away altogether is not listed any more.
    let host = cloud.create(&new_host(&common::marks(8))).await.unwrap();
    double.stop_machine(host.id.split_once('/').unwrap().1, false);
    assert!(cloud.hosts(owner(&marks), None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_tdx_host_in_a_zone_that_has_it() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let marks = marks(9);
    let new = NewHost { size: "c3-standard-4", confidential: Some(Confidential::Tdx), ..new_host(&marks) };
    cloud.may_create(&new).await.unwrap();
    assert_eq!(cloud.create(&new).await.unwrap().state, HostState::Running);
    let body = double.calls().into_iter().find(|call| call.action == "instances.insert").unwrap().body;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["confidentialInstanceConfig"]["confidentialInstanceType"], "TDX");
    assert_eq!(body["scheduling"]["onHostMaintenance"], "TERMINATE");
    assert_eq!(body["scheduling"]["instanceTerminationAction"], "DELETE");
    let items = body["metadata"]["items"].as_array().unwrap();
    let item = |key: &str| items.iter().find(|item| item["key"] == key).unwrap()["value"].clone();
    assert_eq!((item("block-project-ssh-keys"), item("enable-oslogin")), ("TRUE".into(), "FALSE".into()));
    assert_eq!(
        (item("coalition-bridge"), item("coalition-grant")),
        (marks.bridge.as_str().into(), marks.grant.as_str().into())
    );
    assert!(body["serviceAccounts"].is_null(), "hosts get no credentials of the project");
    // What does not fit is said before it is asked.
    let plain = Setup { image: "projects/double-images/global/images/plain-v1".into(), ..setup(&double) };
    let plain = ComputeEngine::new(plain).unwrap();
    let wrong = [
        (cloud.may_create(&NewHost { place: "europe-west4-b", ..new }).await, "europe-west4-b has no machine type"),
        (cloud.may_create(&NewHost { place: "us-central1-a", ..new }).await, "cannot be asked for"),
        (
            cloud.may_create(&NewHost { size: "n2-standard-2", ..new }).await,
            "n2-standard-2 does not run under Intel TDX",
        ),
        (cloud.may_create(&NewHost { size: "t2a-standard-1", ..new }).await, "t2a-standard-1 is aarch64"),
        (plain.may_create(&new).await, "is not declared TDX_CAPABLE"),
    ];
    for (answer, expected) in wrong {
        let error = answer.unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }
    let old = Setup { image: "projects/double-images/global/images/host-v0".into(), ..setup(&double) };
    let old = ComputeEngine::new(old).unwrap();
    assert_eq!(old.image().await.unwrap().unusable.as_deref(), Some("obsolete"));
    assert!(old.may_create(&new).await.unwrap_err().message.contains("is obsolete"));
    let none = Setup { image: "projects/double-images/global/images/nothing".into(), ..setup(&double) };
    let error = ComputeEngine::new(none).unwrap().image().await.unwrap_err();
    assert!(error.kind == ErrorKind::NotFound && error.message.contains("images/nothing"), "{error}");
    let refused = NewHost { place: "europe-west4-c", ..new };
    assert_eq!(cloud.create(&refused).await.unwrap_err().kind, ErrorKind::Fatal, "only the setup's zones");
    double.fail("instances.insert", [Fault::Refuse("invalid", 400)]);
    assert_eq!(cloud.create(&NewHost { place: "europe-west4-b", ..new }).await.unwrap_err().kind, ErrorKind::Fatal);
}
