//! Answers and files are outside bytes: whatever they are, they are read or refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use coalition_cloud::{Cloud, ErrorKind};
use coalition_gcp::{ComputeEngine, Credentials, CredentialsError, Setup, SetupError, kind_of, read_anything};
use coalition_gcp_double::{Double, Fault};
use proptest::prelude::*;
use serde_json::{Value, json};

use common::*;

fn key_with(change: impl FnOnce(&mut Value)) -> String {
    let mut key = json!({
        "type": "service_account", "private_key_id": "0a", "client_email": "a@b.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
        "private_key": "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
    });
    change(&mut key);
    key.to_string()
}

#[test]
fn key_files_that_are_none_are_refused_without_being_repeated() {
    let read = |text: &str| Credentials::from_key_file(text).unwrap_err();
    assert_eq!(read("s3cret"), CredentialsError::NoJson);
    assert_eq!(read("[]"), CredentialsError::NoJson);
    assert_eq!(read(&" ".repeat(40_000)), CredentialsError::NoJson);
    let user = read(&key_with(|key| key["type"] = "authorized_user".into())).to_string();
    assert!(user.contains("\"authorized_user\"") && user.contains("\"service_account\""), "{user}");
    let cases = [
        ("private_key", Value::Null, "the key file has no private_key"),
        ("private_key", "s3cret".into(), "is no PKCS #8 key in PEM"),
        ("private_key", "-----BEGIN PRIVATE KEY-----\n!s3cret\n-----END PRIVATE KEY-----".into(), "is no base64"),
        ("client_email", 7.into(), "the key file has no client_email"),
        ("token_uri", "http://token.example.net".into(), "token_uri in the key file is not encrypted"),
        ("token_uri", "https://a\"b".into(), "characters it cannot have"),
    ];
    for (field, value, expected) in cases {
        let problem = read(&key_with(|key| key[field] = value)).to_string();
        assert!(problem.contains(expected) && !problem.contains("s3cret"), "{field}: {problem}");
    }
    let problem = read(&key_with(|_| ())).to_string();
    assert!(problem.contains("no RSA key of 2048 to 4096 bits") && !problem.contains("c2VjcmV0"), "{problem}");
    assert!(Credentials::from_metadata_server(Some("http://10.0.0.1")).is_err());
    assert!(Credentials::from_metadata_server(None).is_ok());
}

#[tokio::test]
async fn setups_that_cannot_work_are_refused_with_what_was_wrong() {
    let double = Double::start(ROLE, None).await;
    let good = setup(&double);
    let cases: [(Setup, &str); 11] = [
        (Setup { project: "My Project".into(), ..good.clone() }, "\"My Project\" is no project id"),
        (Setup { region: "europe".into(), ..good.clone() }, "\"europe\" is no region"),
        (Setup { zones: vec![], ..good.clone() }, "no zone of europe-west4 is given"),
        (Setup { zones: vec!["us-east1-b".into()], ..good.clone() }, "\"us-east1-b\" is no zone of the region"),
        (Setup { zones: vec![ZONE.into(), ZONE.into()], ..good.clone() }, "given twice"),
        (Setup { image: "debian-12".into(), ..good.clone() }, "\"debian-12\" is no image"),
        (Setup { subnetwork: "a/b".into(), ..good.clone() }, "\"a/b\" is no subnetwork"),
        (Setup { network_tags: vec!["A".into()], ..good.clone() }, "\"A\" is no network tag"),
        (Setup { disk_type: "".into(), ..good.clone() }, "\"\" is no disk type"),
        (Setup { quota_metrics: vec!["cpus".into()], ..good.clone() }, "\"cpus\" is no quota metric"),
        (Setup { endpoint: Some("http://compute.example.net".into()), ..good.clone() }, "is not encrypted"),
    ];
    for (setup, expected) in cases {
        let error: SetupError = ComputeEngine::new(setup).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    ComputeEngine::new(good).unwrap();
}

/// Answers that no Google gives. None of them is a panic, and none is taken for "there is nothing".
#[tokio::test]
async fn answers_of_the_wrong_shape() {
    let double = Double::start(ROLE, None).await;
    let cloud = client(&double);
    let marks = marks(1);
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    let kind = "compute#instanceAggregatedList";
    let answers = [
        String::new(),
        "{".into(),
        "\"text\"".into(),
        "7".into(),
        deep.clone(),
        format!(r#"{{"kind":"{kind}","items":{deep}}}"#),
        format!(r#"{{"kind":"{kind}","items":[]}}"#),
        format!(r#"{{"kind":"{kind}","items":{{"zones/europe-west4-a":{{"instances":{{}}}}}}}}"#),
        format!(r#"{{"kind":"{kind}","items":{{"zones/europe-west4-a":{{"instances":[7]}}}}}}"#),
        format!(r#"{{"kind":"{kind}","items":{{"zones/europe-west4-a":{{"instances":[{{"id":"x"}}]}}}}}}"#),
        format!(r#"{{"kind":"{kind}","nextPageToken":7}}"#),
        r#"{"kind":7,"items":{}}"#.into(),
    ];
    for answer in answers {
        for action in
            ["instances.aggregatedList", "disks.aggregatedList", "regions.get", "images.get", "machineTypes.get"]
        {
            double.fail(action, (0..3).map(|_| Fault::Answer(answer.clone())));
        }
        let hosts = cloud.hosts(owner(&marks), None).await.unwrap_err();
        assert_eq!(hosts.kind, ErrorKind::Transient, "{answer:.80}: {hosts}");
        assert!(cloud.leftovers(owner(&marks), None).await.is_err(), "{answer:.80}");
        assert!(cloud.identity().await.is_err() && cloud.image().await.is_err(), "{answer:.80}");
        assert!(cloud.sizes(&["n2d-standard-2"]).await.is_err(), "{answer:.80}");
        double.forget_faults();
    }
    // One that does not end is not kept.
    double.fail("regions.get", (0..3).map(|_| Fault::Endless));
    let error = cloud.identity().await.unwrap_err();
    assert!(error.message.contains("longer than 16777216 bytes"), "{error}");
    // The newest part of a long console, in whole characters.
    double.set_console(&format!("{}end", "\u{e4}".repeat(100_000)));
    let host = cloud.create(&new_host(&marks)).await.unwrap();
    let console = cloud.console(&host.id).await.unwrap();
    assert!(console.len() <= 64 << 10 && console.ends_with("\u{e4}end"));
    for id in ["", "x", "europe-west4-a", "europe-west4-a/../x", "us-east1-b/c-1", "europe-west4-a/c-1?x=1"] {
        assert_eq!(cloud.end(id).await.unwrap_err().kind, ErrorKind::Fatal, "{id}");
        assert_eq!(cloud.console(id).await.unwrap_err().kind, ErrorKind::Fatal, "{id}");
    }
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("kind".to_owned()),
        Just("items".into()),
        Just("instances".into()),
        Just("disks".into()),
        Just("zones/us-east1-b".into()),
        Just("labels".into()),
        Just("metadata".into()),
        Just("key".into()),
        Just("value".into()),
        Just("coalition-bridge".into()),
        Just("coalition-instance".into()),
        Just("status".into()),
        Just("error".into()),
        Just("errors".into()),
        Just("code".into()),
        Just("warning".into()),
        Just("quotas".into()),
        Just("compute#instanceAggregatedList".into()),
        Just("compute#diskAggregatedList".into()),
        Just("READY".into()),
        Just("private_key".into()),
        Just("type".into()),
        "[a-z0-9/-]{0,12}",
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(word(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        read_anything(&bytes);
    }

    #[test]
    fn no_json_panics(value in json_value()) {
        read_anything(value.to_string().as_bytes());
    }

    #[test]
    fn every_code_has_a_kind(code in "\\PC{0,60}", status in any::<u16>()) {
        let _ = kind_of(&code, status);
    }
}
