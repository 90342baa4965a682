//! Looking at hosts and at what they leave behind, through outages, pages and slow operations; and who may do it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coalition_azure::*;
use coalition_azure_double::{Double, Fault, Phase};
use coalition_cloud::{Cloud, ErrorKind, HostState, NewHost, Owner};
use common::*;

#[tokio::test]
async fn an_outage_is_no_empty_list_and_looking_is_repeated() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    double.fail(GET, [Fault::Refuse("TooManyRequests", 429), Fault::LoseAnswer]);
    assert!(azure.hosts(OWNER, None).await.unwrap().is_empty());
    assert_eq!(double.count(GET), 3);
    double.blind(true);
    let blind = azure.hosts(OWNER, None).await.unwrap_err();
    assert_eq!((blind.kind, double.count(GET)), (ErrorKind::Transient, 6), "{blind}");
    assert!(azure.leftovers(OWNER, None).await.is_err());
    let quota = azure.quota().await;
    assert!(quota.vcpus.is_none() && quota.text.contains("unknown"), "{}", quota.text);
    double.blind(false);
    // What is no list is no empty list.
    for odd in ["", "[]", "{}", "{\"value\":null}", "<html>", "{\"value\":[{}]}"] {
        double.fail(GET, std::iter::repeat_n(Fault::Answer(200, odd.to_owned()), 3));
        let garbled = azure.hosts(OWNER, None).await.unwrap_err();
        assert!(garbled.kind == ErrorKind::Transient && garbled.message.contains("cannot be read"), "{odd}: {garbled}");
        // It is not asked again for what it cannot read: the next list finds the faults that are left.
        while double.count(GET) % 3 != 0 {
            let _ = azure.hosts(OWNER, None).await;
        }
    }
}

#[tokio::test]
async fn pages_are_read_to_the_end_and_lead_nowhere_else() {
    let double = Double::start(&ROLES, None).await;
    double.quota(100, 100);
    let azure = Azure::new(setup(&double)).unwrap();
    let all: Vec<_> = (1..=5).map(marks).collect();
    for marks in &all {
        azure.create(&new_host(marks)).await.unwrap();
    }
    let mut stranger = marks(9);
    stranger.bridge = "somebody else's".into();
    azure.create(&new_host(&stranger)).await.unwrap();
    let hosts = azure.hosts(OWNER, None).await.unwrap();
    let found: BTreeSet<_> = hosts.iter().map(|host| host.instance.clone()).collect();
    assert_eq!((hosts.len(), found), (5, all.iter().map(|marks| marks.instance.clone()).collect()));
    for next in ["https://example.net/steal", "http://127.0.0.1/", "/subscriptions/x", ""] {
        let page = format!("{{\"value\":[],\"nextLink\":\"{next}\"}}");
        double.fail(GET, [Fault::Answer(200, page)]);
        let error = azure.hosts(OWNER, None).await.unwrap_err();
        assert!(error.message.contains("not the Resource Manager's"), "{error}");
    }
    let round = double
        .calls()
        .into_iter()
        .rev()
        .find(|call| call.name == GET && call.path.contains("virtualMachines?"))
        .unwrap();
    let page = format!("{{\"value\":[],\"nextLink\":\"{}{}\"}}", double.endpoint, round.path);
    double.fail(GET, std::iter::repeat_n(Fault::Answer(200, page), 100));
    assert!(azure.hosts(OWNER, None).await.unwrap_err().message.contains("no end after 100 pages"));
}

#[tokio::test]
async fn what_stays_behind_is_found_by_its_marks_and_removed() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let (one, two) = (marks(1), marks(2));
    for marks in [&one, &two] {
        azure.create(&new_host(marks)).await.unwrap();
    }
    assert!(azure.leftovers(OWNER, None).await.unwrap().is_empty(), "what a host holds is not left behind");
    double.fail(DELETE, [Fault::LeaveBehind]);
    assert_eq!(azure.end(&format!("c-{}", one.instance)).await.unwrap(), HostState::Over);
    for stranger in [Owner { bridge: "other", ..OWNER }, Owner { offer: "other", ..OWNER }] {
        assert!(azure.leftovers(stranger, None).await.unwrap().is_empty());
    }
    assert!(azure.leftovers(OWNER, Some(&two.instance)).await.unwrap().is_empty());
    let mut rounds = Vec::new();
    loop {
        let left = azure.leftovers(OWNER, Some(&one.instance)).await.unwrap();
        if left.is_empty() {
            break;
        }
        assert!(left.iter().all(|leftover| leftover.instance == one.instance));
        rounds.push(left.iter().map(|leftover| leftover.what).collect::<Vec<_>>());
        for leftover in &left {
            azure.remove(leftover).await.unwrap();
            azure.remove(leftover).await.unwrap();
        }
    }
    // The interface holds its address until it is gone itself, so it comes first.
    assert_eq!(rounds, [["network interface", "public address", "disk"]]);
    assert_eq!((double.machines().len(), double.things()), (1, 4));
    // Late lists: a machine that is not shown has parts that are held.
    double.fail(GET, [Fault::ShowNothing]);
    assert!(azure.leftovers(OWNER, None).await.unwrap().is_empty());
}

#[tokio::test]
async fn azure_is_asked_no_sooner_than_it_asks_for() {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let times: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
    let seen = Arc::clone(&times);
    double.watcher().set(move |call, phase| {
        if phase == Phase::Before {
            seen.lock().unwrap().push((call.to_owned(), Instant::now()));
        }
    });
    let marks = marks(1);
    let made = azure.create(&new_host(&marks)).await.unwrap();
    double.slow(1, 1);
    assert_eq!(azure.end(&made.id).await.unwrap(), HostState::Over);
    double.fail(GET, [Fault::Throttle(1)]);
    assert!(azure.hosts(OWNER, None).await.unwrap().is_empty());
    let times = times.lock().unwrap().clone();
    let waits = times.windows(2).filter(|pair| pair[1].0 == LOOK || (pair[0].0 == GET && pair[1].0 == GET));
    let waits: Vec<Duration> = waits.map(|pair| pair[1].1 - pair[0].1).collect();
    assert!(waits.len() >= 3 && waits.iter().all(|wait| *wait >= Duration::from_secs(1)), "{times:?}");
}

#[tokio::test]
async fn states_and_addresses_are_those_azure_tells() {
    let double = Double::start(&ROLES, None).await;
    double.no_addresses(true);
    double.slow(2, 0);
    let azure = Azure::new(setup(&double)).unwrap();
    let marks = marks(1);
    let name = azure.create(&new_host(&marks)).await.unwrap().id;
    let state = || async { azure.hosts(OWNER, Some(&marks.instance)).await.unwrap().remove(0) };
    assert_eq!(state().await.state, HostState::Coming);
    let host = until("it runs", || async { Some(state().await).filter(|host| host.state == HostState::Running) }).await;
    assert_eq!((host.public_address, host.private_address), (None, None));
    double.no_addresses(false);
    let host = state().await;
    assert!(host.public_address.is_some() && host.private_address.is_some());
    // Known addresses are not asked for again.
    let asked = double.count("Microsoft.Network/networkInterfaces/read");
    assert_eq!(state().await, host);
    assert_eq!(double.count("Microsoft.Network/networkInterfaces/read"), asked);
    for (power, expected) in [
        ("stopped", HostState::Stopped),
        ("deallocated", HostState::Stopped),
        ("stopping", HostState::Stopping),
        ("starting", HostState::Coming),
        ("unheard-of", HostState::Coming),
        ("running", HostState::Running),
    ] {
        double.power(&name, power);
        assert_eq!(state().await.state, expected, "{power}");
    }
    double.vanish(&name);
    assert!(azure.hosts(OWNER, Some(&marks.instance)).await.unwrap().is_empty());
}

#[tokio::test]
async fn validation_that_goes_on_is_followed() {
    let double = Double::start(&ROLES, None).await;
    double.only_locations(true);
    let azure = Azure::new(setup(&double)).unwrap();
    let marks = marks(1);
    azure.may_create(&new_host(&marks)).await.unwrap();
    let hasty = Azure::new(Setup { follow: Some(Duration::ZERO), ..setup(&double) }).unwrap();
    assert_eq!(hasty.may_create(&new_host(&marks)).await.unwrap_err().kind, ErrorKind::Transient);
    let validate = "Microsoft.Resources/deployments/validate/action";
    let late = r#"{"error":{"code":"InvalidTemplateDeployment","message":"m","details":[{"code":"SkuNotAvailable","message":"s"}]}}"#;
    double.fail(validate, [Fault::Answer(200, late.to_owned())]);
    assert_eq!(azure.may_create(&new_host(&marks)).await.unwrap_err().kind, ErrorKind::Capacity);
    // The template shows no user data: it may hold a key.
    let secret = NewHost { user_data: b"#cloud-config\n{\"a\":\"private\"}", ..new_host(&marks) };
    azure.may_create(&secret).await.unwrap();
    let sent = double.calls().into_iter().rev().find(|call| call.name == validate).unwrap().body;
    let machine = &sent["properties"]["template"]["resources"][0];
    assert_eq!(machine["properties"]["osProfile"]["customData"], "I2Nsb3VkLWNvbmZpZwp7fQo=");
    assert_eq!(machine["tags"]["coalition:grant"], "[[a grant]", "text in brackets would be a program");
}

/// Exactly what the client can call is permitted, nothing more: an operator gives the bridge these files and no more. The
/// double refuses what they do not permit, and every test runs with them.
#[tokio::test]
async fn the_roles_permit_what_the_client_can_call_and_no_more() {
    let roles: Vec<serde_json::Value> = ROLES.iter().map(|role| serde_json::from_str(role).unwrap()).collect();
    let mut permitted = BTreeSet::new();
    for role in &roles {
        for (key, expected) in [("NotActions", 0), ("DataActions", 0), ("NotDataActions", 0), ("AssignableScopes", 1)] {
            assert_eq!(role[key].as_array().unwrap().len(), expected, "{key}");
        }
        for action in role["Actions"].as_array().unwrap() {
            let action = action.as_str().unwrap();
            assert!(!action.contains('*') && permitted.insert(action.to_owned()), "{action}");
            // What changes something is bound to the resource group of the hosts, or to the parts they join.
            let reads = action.ends_with("/read") || action.ends_with("/join/action");
            assert!(reads || role["Name"] == "Coalition bridge: hosts", "{action}");
        }
    }
    let needed: BTreeSet<String> =
        Action::ALL.into_iter().flat_map(Action::permissions).map(|action| (*action).to_owned()).collect();
    assert_eq!(permitted, needed);

    // Without one of the files, what it permits is refused.
    let double = Double::start(&ROLES[1..], None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    let marks = marks(1);
    let refused = azure.create(&new_host(&marks)).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Auth && refused.message.contains(PUT), "{refused}");
    assert!(azure.sizes(&[]).await.is_ok());
    let double = Double::start(&ROLES[..1], None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    assert_eq!(azure.sizes(&[]).await.unwrap_err().kind, ErrorKind::Auth);
    assert_eq!(azure.image().await.unwrap_err().kind, ErrorKind::Auth);
}
