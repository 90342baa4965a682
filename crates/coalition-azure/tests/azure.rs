//! The client against the double, with the permissions an operator gives: whole lives, each failure, repetitions.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use coalition_azure::*;
use coalition_azure_double::{Boot, Double, Fault, SUBSCRIPTION, Sshd, URN};
use coalition_cloud::{Cloud, CloudError, Confidential, ErrorKind, Host, HostState, NewHost, Owner};
use common::*;
use std::net::Ipv4Addr;
use std::sync::Arc;

async fn running(azure: &Azure, instance: &str) -> Host {
    until("the host runs", || async {
        let found = azure.hosts(OWNER, Some(instance)).await.unwrap();
        found.into_iter().find(|host| host.state == HostState::Running && host.public_address.is_some())
    })
    .await
}

/// A boot with its address and user data, or the end.
type Powered = (String, Option<(Ipv4Addr, Vec<u8>)>);

#[derive(Default)]
struct Booted(Mutex<Vec<Powered>>);

impl Boot for Booted {
    fn boot(&self, id: &str, address: Ipv4Addr, user_data: &[u8]) {
        self.0.lock().unwrap().push((id.to_owned(), Some((address, user_data.to_vec()))));
    }

    fn power_off(&self, id: &str) {
        self.0.lock().unwrap().push((id.to_owned(), None));
    }
}

#[tokio::test]
async fn a_whole_life_with_the_least_permissions() {
    let booted = Arc::new(Booted::default());
    let double = Double::start(&ROLES, Some(Arc::clone(&booted) as Arc<dyn Boot>)).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let marks = marks(1);
    let new = new_host(&marks);
    let who = azure.identity().await.unwrap();
    assert!(who.contains("\"For tests\"") && who.contains(SUBSCRIPTION) && who.contains("application"), "{who}");
    let image = azure.image().await.unwrap();
    assert_eq!((image.architecture.as_str(), image.disk_gib, image.unusable), ("x86_64", 8, None));
    let quota = azure.quota().await;
    assert_eq!(quota.vcpus, Some(10), "{}", quota.text);
    let sizes = azure
        .sizes(&["Standard_DC2es_v6", "standard_dc2as_v5", "Standard_A1_v2", "Standard_M8ms", "none"])
        .await
        .unwrap();
    let of = |name: &str| sizes.iter().find(|size| size.name == name).unwrap();
    assert_eq!(sizes.len(), 3, "what may not be used is left out: {sizes:?}");
    assert_eq!((of("Standard_DC2es_v6").vcpus, of("Standard_DC2es_v6").ram_mib), (2, 8_192));
    assert_eq!(of("Standard_DC2es_v6").confidential, [Confidential::Tdx]);
    assert_eq!(of("standard_dc2as_v5").confidential, [Confidential::SevSnp]);
    assert_eq!((of("Standard_A1_v2").ram_mib, of("Standard_A1_v2").confidential.len()), (3_584, 0));

    let how = azure.may_create(&new).await.unwrap();
    assert!(how.contains("validated"), "{how}");
    assert!(double.machines().is_empty() && azure.hosts(OWNER, None).await.unwrap().is_empty(), "asking makes nothing");
    let made = azure.create(&new).await.unwrap();
    assert_eq!((made.state, made.id.as_str()), (HostState::Coming, format!("c-{}", marks.instance).as_str()));
    // The same question again is the same host.
    assert_eq!(azure.create(&new).await.unwrap().id, made.id);
    let host = running(&azure, &marks.instance).await;
    assert!(host.public_address.unwrap().is_loopback() && host.private_address.is_some());
    assert_eq!(
        (host.instance.as_str(), host.size.as_str(), host.reason.clone()),
        (marks.instance.as_str(), new.size, None)
    );
    assert_eq!(azure.hosts(OWNER, None).await.unwrap(), std::slice::from_ref(&host));
    for stranger in [Owner { bridge: "other", ..OWNER }, Owner { offer: "other", ..OWNER }] {
        assert!(azure.hosts(stranger, None).await.unwrap().is_empty());
        assert!(azure.hosts(stranger, Some(&marks.instance)).await.unwrap().is_empty());
    }
    let seen = booted.0.lock().unwrap().clone();
    let [(id, Some((address, user_data)))] = seen.as_slice() else { panic!("{seen:?}") };
    assert!(id.starts_with(&host.id), "{id}");
    assert_eq!((user_data.as_slice(), Some((*address).into())), (USER_DATA, host.public_address));
    let console = azure.console(&host.id).await.unwrap();
    assert!(console.ends_with("login: ") && console.len() == 64 << 10, "{}", console.len());
    for _ in 0..2 {
        assert_eq!(azure.end(&host.id).await.unwrap(), HostState::Over);
    }
    assert!(azure.hosts(OWNER, None).await.unwrap().is_empty());
    assert!(azure.leftovers(OWNER, None).await.unwrap().is_empty());
    assert_eq!((double.things(), booted.0.lock().unwrap().len()), (0, 2), "all of it is gone, and powered off once");
}

#[tokio::test]
async fn plain_hosts_of_the_marketplace_in_no_zone() {
    let double = Double::start(&ROLES, None).await;
    let setup = Setup {
        image: URN.into(),
        security_group: None,
        private_addresses: true,
        boot_diagnostics: false,
        quota_family: None,
        ..setup(&double)
    };
    let azure = Azure::new(setup).unwrap();
    let image = azure.image().await.unwrap();
    assert_eq!((image.id.as_str(), image.disk_gib, image.unusable), (URN, 30, None));
    assert_eq!(azure.quota().await.vcpus, Some(20));
    let marks = marks(2);
    let new = NewHost { place: "any", size: "Standard_D2s_v5", confidential: None, ..new_host(&marks) };
    azure.may_create(&new).await.unwrap();
    azure.create(&new).await.unwrap();
    let host = until("an address", || async {
        azure.hosts(OWNER, None).await.unwrap().into_iter().find(|host| host.private_address.is_some())
    })
    .await;
    assert_eq!(host.public_address, None);
    // No console is kept, so none is asked for.
    assert_eq!(azure.console(&host.id).await.unwrap(), "");
    assert_eq!(double.count("Microsoft.Compute/virtualMachines/retrieveBootDiagnosticsData/action"), 0);
    let body = double.calls().into_iter().find(|call| call.name == PUT).unwrap().body;
    assert!(body.get("zones").is_none() && body["properties"].get("securityProfile").is_none(), "{body}");
    assert_eq!(azure.end(&host.id).await.unwrap(), HostState::Over);
    let elsewhere = Azure::new(Setup { image: URN.replace("12-gen2", "13-gen2"), ..common::setup(&double) }).unwrap();
    let missing = elsewhere.image().await.unwrap_err();
    assert!(missing.kind == ErrorKind::NotFound && missing.message.contains("13-gen2"), "{missing}");
}

#[tokio::test]
async fn one_instance_is_one_host_and_another_question_a_conflict() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let (one, two) = (marks(1), marks(2));
    let new = new_host(&one);
    azure.create(&new).await.unwrap();
    let conflict = |error: CloudError, words: [&str; 2]| {
        assert_eq!((error.kind, error.may_have_acted), (ErrorKind::Conflict, false), "{error}");
        assert!(words.iter().all(|word| error.message.contains(word)), "{error}");
    };
    let elsewhere = azure.create(&NewHost { place: "2", ..new }).await.unwrap_err();
    conflict(elsewhere, ["it is in zone 1", "asked was zone 2"]);
    let nowhere = azure.create(&NewHost { place: "any", ..new }).await.unwrap_err();
    conflict(nowhere, ["it is in zone 1", "asked was no zone"]);
    let size = NewHost { size: "Standard_D2s_v5", confidential: None, ..new };
    conflict(azure.create(&size).await.unwrap_err(), ["Standard_DC2es_v6", "Standard_D2s_v5"]);
    double.retag(&format!("c-{}", one.instance), "coalition:grant", "another");
    conflict(azure.create(&new).await.unwrap_err(), ["tags", "must end first"]);
    azure.create(&NewHost { place: "2", ..new_host(&two) }).await.unwrap();
    assert_eq!(double.machines().len(), 2);
    // The answer is lost after the host was made, twice; then it is cut, then garbled: one host.
    let three = marks(3);
    let new = new_host(&three);
    double.quota(20, 20);
    double.fail(PUT, [Fault::LoseAnswer, Fault::Garble]);
    let lost = azure.create(&new).await.unwrap_err();
    assert!(lost.may_have_acted && lost.kind == ErrorKind::Transient, "{lost}");
    // It is there already, so what is garbled is a refusal.
    let garbled = azure.create(&new).await;
    assert!(garbled.is_ok() || garbled.is_err_and(|error| error.kind == ErrorKind::Transient));
    assert_eq!(azure.create(&new).await.unwrap().instance, three.instance);
    assert_eq!((double.machines().len(), double.count(PUT)), (3, 9), "one attempt a question");
    let four = marks(4);
    double.fail(PUT, [Fault::Garble]);
    let garbled = azure.create(&new_host(&four)).await.unwrap_err();
    assert!(garbled.may_have_acted && garbled.kind == ErrorKind::Transient, "{garbled}");
    assert_eq!(azure.create(&new_host(&four)).await.unwrap().instance, four.instance);
    assert_eq!(double.machines().len(), 4);
    // It was refused as there already, and cannot be looked at.
    double.fail(GET, [Fault::Refuse("InternalServerError", 500), Fault::LoseAnswer, Fault::Garble]);
    let unknown = azure.create(&new_host(&four)).await.unwrap_err();
    assert!(unknown.may_have_acted && unknown.kind == ErrorKind::Transient, "{unknown}");
}

#[tokio::test]
async fn every_failure_has_its_kind() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let marks = marks(1);
    let new = new_host(&marks);
    let faults = [
        ("ZonalAllocationFailed", 409, ErrorKind::Capacity),
        ("SkuNotAvailable", 409, ErrorKind::Capacity),
        ("QuotaExceeded", 400, ErrorKind::Quota),
        ("AuthorizationFailed", 403, ErrorKind::Auth),
        ("RequestDisallowedByPolicy", 403, ErrorKind::Auth),
        ("InvalidResourceReference", 400, ErrorKind::NotFound),
        ("InternalServerError", 500, ErrorKind::Transient),
        ("ServiceUnavailable", 503, ErrorKind::Transient),
        ("SomethingNew", 400, ErrorKind::Fatal),
    ];
    for (code, status, expected) in faults {
        let before = double.count(PUT);
        double.fail(PUT, [Fault::Refuse(code, status)]);
        let error = azure.create(&new).await.unwrap_err();
        assert_eq!((error.kind, error.may_have_acted), (expected, status >= 500), "{error}");
        assert_eq!(double.count(PUT), before + 1, "making is tried once");
    }
    double.fail(PUT, [Fault::Throttle(1)]);
    let started = Instant::now();
    assert_eq!(azure.create(&new).await.unwrap_err().kind, ErrorKind::Throttled);
    assert!(started.elapsed() < Duration::from_secs(1), "it is not waited for");
    // What the double itself finds wrong.
    double.quota(20, 1);
    let over = azure.create(&new).await.unwrap_err();
    assert!(over.kind == ErrorKind::Quota && over.message.contains("Current Limit: 1"), "{over}");
    assert_eq!(azure.may_create(&new).await.unwrap_err().kind, ErrorKind::Quota);
    double.quota(20, 20);
    let unknown = NewHost { size: "Standard_Z2s_v5", confidential: None, ..new };
    assert_eq!(azure.create(&unknown).await.unwrap_err().kind, ErrorKind::Fatal);
    let restricted = NewHost { size: "Standard_M8ms", confidential: None, ..new };
    assert_eq!(azure.create(&restricted).await.unwrap_err().kind, ErrorKind::Capacity);
    assert_eq!(azure.may_create(&restricted).await.unwrap_err().kind, ErrorKind::Capacity);
    let missing =
        Azure::new(Setup { image: coalition_azure_double::IMAGE.replace("1.0.3", "1.0.4"), ..setup(&double) }).unwrap();
    assert_eq!(missing.image().await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(missing.create(&new).await.unwrap_err().kind, ErrorKind::NotFound);
    // Nothing of another resource group may be taken for gone.
    let elsewhere = Azure::new(Setup { resource_group: "other".into(), ..setup(&double) }).unwrap();
    for error in [elsewhere.hosts(OWNER, Some(&marks.instance)).await.err(), elsewhere.end("c-1").await.err()] {
        assert_eq!(error.unwrap().kind, ErrorKind::Auth);
    }
    double.disabled(true);
    let disabled = azure.identity().await.unwrap_err();
    assert!(disabled.kind == ErrorKind::Auth && disabled.message.contains("Disabled"), "{disabled}");
    assert_eq!(double.things(), 0);
}

#[tokio::test]
async fn what_cannot_be_is_not_asked_for() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let marks = marks(1);
    let new = new_host(&marks);
    let mut odd = marks.clone();
    odd.instance = "../x".into();
    let mut long = marks.clone();
    long.grant = "g".repeat(257);
    let big = vec![b'x'; (16 << 10) + 1];
    let wrong = [
        (NewHost { size: "m6a.large", ..new }, "no size of Azure"),
        (
            NewHost { size: "Standard_DC2as_v5", ..new },
            "Intel TDX is asked for and Standard_DC2as_v5 runs under AMD SEV-SNP",
        ),
        (NewHost { size: "Standard_D2s_v5", ..new }, "neither TDX nor SEV-SNP"),
        (NewHost { place: "3", ..new }, "none of the setup's (1, 2, any)"),
        (NewHost { user_data: &big, ..new }, "16385 bytes of user data"),
        (NewHost { disk_gib: 5_000, ..new }, "a disk of 5000 GiB"),
        (NewHost { marks: &odd, ..new }, "cannot be part of a machine's name"),
        (NewHost { marks: &long, ..new }, "has 257 characters"),
    ];
    for (host, words) in &wrong {
        for error in [azure.create(host).await.err(), azure.may_create(host).await.err()] {
            let error = error.unwrap();
            assert_eq!((error.kind, error.may_have_acted), (ErrorKind::Fatal, false), "{error}");
            assert!(error.message.contains(words), "{error}");
        }
    }
    assert_eq!(azure.end("../c-1").await.unwrap_err().kind, ErrorKind::Fatal);
    let strange = coalition_cloud::Leftover { id: "virtualMachines/c-1".into(), what: "disk", instance: String::new() };
    assert_eq!(azure.remove(&strange).await.unwrap_err().kind, ErrorKind::Fatal);
    assert_eq!(double.calls().len(), 0);
}

#[tokio::test]
async fn a_failure_on_the_way_is_told_with_its_reason() {
    for silent in [false, true] {
        let double = Double::start(&ROLES, None).await;
        double.silent_failures(silent);
        double.only_locations(silent);
        // One that does not wait until there is room finds out later.
        let azure = Azure::new(Setup { follow: Some(Duration::ZERO), ..setup(&double) }).unwrap();
        let marks = marks(1);
        double.fail(PUT, [Fault::FailLater("ZonalAllocationFailed")]);
        let made = azure.create(&new_host(&marks)).await.unwrap();
        let failed = until("the host has failed", || async {
            let found = azure.hosts(OWNER, Some(&marks.instance)).await.unwrap();
            found.into_iter().find(|host| host.state == HostState::Stopped)
        })
        .await;
        let (kind, words) = failed.reason.clone().unwrap();
        assert_eq!(kind, ErrorKind::Capacity, "{words}");
        assert!(words.contains("ZonalAllocationFailed"), "{words}");
        // What there is of it is billed until it is ended.
        assert!(double.things() > 1);
        until("it is over", || async { (azure.end(&made.id).await.unwrap() == HostState::Over).then_some(()) }).await;
        assert_eq!(double.things(), 0);
    }
}

#[tokio::test]
async fn without_room_in_one_zone_the_next_is_free_at_once() {
    for silent in [false, true] {
        let double = Double::start(&ROLES, None).await;
        double.silent_failures(silent);
        double.only_locations(silent);
        let azure = Azure::new(setup(&double)).unwrap();
        let marks = marks(1);
        for (code, kind) in [
            ("ZonalAllocationFailed", ErrorKind::Capacity),
            ("QuotaExceeded", ErrorKind::Quota),
            ("SomethingNew", ErrorKind::Fatal),
        ] {
            double.fail(PUT, [Fault::FailLater(code)]);
            let error = azure.create(&new_host(&marks)).await.unwrap_err();
            assert_eq!((error.kind, error.may_have_acted, double.things()), (kind, false, 0), "{error}");
            assert!(error.message.contains(code), "{error}");
        }
        // What is left of it cannot be ended: it may be there.
        double.fail(PUT, [Fault::FailLater("AllocationFailed")]);
        double.fail(DELETE, std::iter::repeat_n(Fault::Refuse("ScopeLocked", 409), 3));
        let locked = azure.create(&new_host(&marks)).await.unwrap_err();
        assert_eq!((locked.kind, locked.may_have_acted), (ErrorKind::Capacity, true), "{locked}");
        assert_eq!(azure.end(&format!("c-{}", marks.instance)).await.unwrap(), HostState::Over);
        azure.create(&NewHost { place: "2", ..new_host(&marks) }).await.unwrap();
        assert_eq!(double.machines().len(), 1);
        // What cannot be seen while it is waited for is taken for made.
        double.fail(GET, [Fault::ShowNothing, Fault::Refuse("InternalServerError", 500), Fault::Garble]);
        azure.create(&new_host(&common::marks(2))).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_listed_late_is_known_from_its_request() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(Setup { follow: Some(Duration::ZERO), ..setup(&double) }).unwrap();
    let marks = marks(1);
    let made = azure.create(&new_host(&marks)).await.unwrap();
    double.fail(GET, [Fault::ShowNothing]);
    let found = azure.hosts(OWNER, Some(&marks.instance)).await.unwrap();
    assert_eq!(
        found.iter().map(|host| (host.id.clone(), host.state)).collect::<Vec<_>>(),
        [(made.id.clone(), HostState::Coming)]
    );
    running(&azure, &marks.instance).await;
    // Another client of the same account knows of no request, and believes what it is told.
    let other = Azure::new(setup(&double)).unwrap();
    double.fail(GET, [Fault::ShowNothing, Fault::ShowNothing]);
    assert!(other.hosts(OWNER, Some(&marks.instance)).await.unwrap().is_empty());
    assert!(other.hosts(OWNER, None).await.unwrap().is_empty());
    double.fail(PUT, [Fault::FailLater("AllocationFailed")]);
    let lost = common::marks(2);
    let name = azure.create(&new_host(&lost)).await.unwrap().id;
    double.slow(0, 0);
    until("it failed", || async {
        azure.hosts(OWNER, Some(&lost.instance)).await.unwrap().into_iter().find(|host| host.reason.is_some())
    })
    .await;
    double.vanish(&name);
    let gone = azure.hosts(OWNER, Some(&lost.instance)).await.unwrap();
    let [gone] = gone.as_slice() else { panic!("{gone:?}") };
    assert_eq!((gone.state, gone.reason.as_ref().unwrap().0), (HostState::Over, ErrorKind::Capacity));
}

#[tokio::test]
async fn endings_are_followed_taken_up_again_and_confirmed() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(Setup { follow: Some(Duration::ZERO), ..setup(&double) }).unwrap();
    let never = azure.end("c-00").await.unwrap_err();
    assert_eq!((never.kind, never.may_have_acted), (ErrorKind::NotFound, false), "{never}");
    let marks = marks(1);
    let made = azure.create(&new_host(&marks)).await.unwrap();
    running(&azure, &marks.instance).await;
    // Not shown yet, and its making is known to go on: that is no end.
    double.slow(6, 0);
    let late = common::marks(2);
    let name = azure.create(&new_host(&late)).await.unwrap().id;
    double.fail(DELETE, [Fault::Answer(204, String::new())]);
    assert_eq!(azure.end(&name).await.unwrap(), HostState::Coming);
    double.vanish(&name);
    assert_eq!(azure.end(&made.id).await.unwrap(), HostState::Stopping);
    let ending = azure.create(&new_host(&marks)).await.unwrap_err();
    assert!(ending.kind == ErrorKind::Conflict && ending.message.contains("being deleted"), "{ending}");
    assert_eq!(azure.end(&made.id).await.unwrap(), HostState::Stopping);
    assert_eq!(double.count(DELETE), 3, "the operation is looked at, not begun again");
    assert_eq!(azure.hosts(OWNER, None).await.unwrap()[0].state, HostState::Stopping);
    // A bridge that was started again asks anew, and is told that it is on its way.
    let again = Azure::new(setup(&double)).unwrap();
    let state = again.end(&made.id).await.unwrap();
    assert!(matches!(state, HostState::Stopping | HostState::Over), "{state:?}");
    until("it is over", || async { again.hosts(OWNER, None).await.unwrap().is_empty().then_some(()) }).await;
    let patient = Azure::new(setup(&double)).unwrap();
    assert_eq!(patient.end(&made.id).await.unwrap_err().kind, ErrorKind::NotFound);
    // What Azure took and could not do.
    patient.create(&new_host(&marks)).await.unwrap();
    double.slow(1, 0);
    double.fail(DELETE, [Fault::FailLater("OperationNotAllowed")]);
    let failed = patient.end(&made.id).await.unwrap_err();
    assert_eq!((failed.kind, failed.may_have_acted), (ErrorKind::Conflict, true), "{failed}");
    // Lost answers and outages are asked about again.
    double.fail(DELETE, [Fault::LoseAnswer]);
    assert_eq!(patient.end(&made.id).await.unwrap(), HostState::Stopping);
    until("it is over", || async { (patient.end(&made.id).await.unwrap() == HostState::Over).then_some(()) }).await;
    assert_eq!(double.things(), 0);
}

/// The machine is an SSH server that shows the key of its user data, for as long as it is a machine; its name may boot again.
#[tokio::test]
async fn hosts_boot_with_their_user_data_and_stop_with_their_end() {
    let Some(sshd) = Sshd::new().map(Arc::new) else { return };
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let made =
        std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    let private = std::fs::read_to_string(&key).unwrap();
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let config = serde_json::json!({ "ssh_keys": { "ed25519_private": private }, "ssh_authorized_keys": [public] });
    let user_data = format!("#cloud-config\n{config}\n");
    let double = Double::start(&ROLES, Some(Arc::clone(&sshd) as Arc<dyn Boot>)).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let marks = marks(1);
    for place in ["1", "2"] {
        let new = NewHost { user_data: user_data.as_bytes(), place, ..new_host(&marks) };
        let id = azure.create(&new).await.unwrap().id;
        let host = running(&azure, &marks.instance).await;
        let (address, port) = (host.public_address.unwrap().to_string(), sshd.port.to_string());
        let shown = until("the host shows its key", || async {
            let scanned =
                std::process::Command::new("ssh-keyscan").args(["-t", "ed25519", "-p", &port, &address]).output();
            let line = String::from_utf8(scanned.unwrap().stdout).unwrap();
            line.split_whitespace().nth(2).map(ToOwned::to_owned)
        })
        .await;
        assert_eq!(Some(shown.as_str()), public.split_whitespace().nth(1));
        assert_eq!((azure.end(&id).await.unwrap(), sshd.running()), (HostState::Over, 0));
    }
}
