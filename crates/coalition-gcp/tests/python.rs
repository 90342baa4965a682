//! Google's own Python client and this one ask the double the same: same paths, same queries, same bodies, and both read
//! what it answers.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use coalition_cloud::Cloud;
use coalition_gcp::{Action, ComputeEngine, Setup, request_id};
use coalition_gcp_double::{Call, Double, Fault, IMAGE, PROJECT, REGION, SUBNETWORK};
use serde_json::{Value, json};

use common::*;

fn python() -> Option<&'static Path> {
    let own = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin/python"));
    let has = |python: &Path| {
        let looked = Command::new(python).args(["-c", "import google.cloud.compute_v1"]).output();
        looked.is_ok_and(|output| output.status.success())
    };
    [Path::new("python"), own].into_iter().find(|python| has(python))
}

/// What a call asks: method by its action, the path, and what is in the query but how the client wants its answer.
fn question(call: &Call) -> (String, String, BTreeSet<String>) {
    let (path, query) = call.path.split_once('?').unwrap_or((&call.path, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("%24") && !pair.starts_with('$'));
    let plain = |pair: &str| pair.replace('+', "%20").replace("%28", "(").replace("%29", ")");
    (call.action.clone(), path.to_owned(), pairs.map(plain).collect())
}

/// A body in which the order of fields, and numbers written as text, make no difference.
fn body(call: &Call) -> Value {
    fn plain(value: Value) -> Value {
        match value {
            Value::Number(number) => number.to_string().into(),
            Value::Array(items) => items.into_iter().map(plain).collect(),
            Value::Object(map) => map.into_iter().map(|(key, value)| (key, plain(value))).collect(),
            other => other,
        }
    }
    if call.body.is_empty() || call.action == "token" {
        return Value::Null;
    }
    plain(serde_json::from_slice(&call.body).unwrap())
}

async fn ask_with_ours(double: &Double, marks: &coalition_cloud::Marks) {
    let cloud = client(double);
    let family = Setup { image: "projects/double-images/global/images/family/host".into(), ..setup(double) };
    cloud.identity().await.unwrap();
    cloud.image().await.unwrap();
    ComputeEngine::new(family).unwrap().image().await.unwrap();
    cloud.sizes(&["n2d-standard-2"]).await.unwrap();
    let host = cloud.create(&new_host(marks)).await.unwrap();
    cloud.hosts(owner(marks), Some(&marks.instance)).await.unwrap();
    cloud.console(&host.id).await.unwrap();
    end(&cloud, &host.id).await;
    cloud.telemetry(owner(marks), &marks.instance, WINDOW).await.unwrap();
    let [left] = cloud.leftovers(owner(marks), Some(&marks.instance)).await.unwrap().try_into().unwrap();
    cloud.remove(&left).await.unwrap();
}

fn run(python: &Path, asked: &Value) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn googles_python_client_asks_the_same_and_reads_the_answers() {
    let Some(python) = python() else {
        eprintln!("skipped: no python with google-cloud-compute (.ci/python-venv installs it into target/venv)");
        return;
    };
    let double = Double::start(ROLE, None).await;
    double.keep_disks(true);
    let marks = marks(1);
    ask_with_ours(&double, &marks).await;
    let ours = double.calls();
    double.forget_requests();
    // The host, its repetition, one that exists, one elsewhere; and then one that fails.
    let mut sound: Vec<Fault> = vec![Fault::Slow(std::time::Duration::from_millis(20)); 4];
    sound.push(Fault::FailOperation("ZONE_RESOURCE_POOL_EXHAUSTED", 503));
    double.fail("instances.insert", sound);
    let insert = ours.iter().find(|call| call.action == "instances.insert").unwrap();
    let query = question(ours.iter().find(|call| call.action == "instances.aggregatedList").unwrap()).2;
    let filter = query.iter().find_map(|pair| pair.strip_prefix("filter=")).unwrap();
    let filter = filter.replace("%20", " ").replace("%3D", "=").replace("%22", "\"");
    let asked = json!({
        "endpoint": double.endpoint, "key": double.key_file(), "project": PROJECT, "region": REGION, "zone": ZONE,
        "name": format!("c-{}", marks.instance), "image": IMAGE, "subnetwork": SUBNETWORK, "filter": filter,
        "user_data": String::from_utf8_lossy(USER_DATA), "body": String::from_utf8_lossy(&insert.body),
        "request_id": request_id(&marks.instance, ZONE), "other_request_id": request_id("another", ZONE),
        "marks": {
            "coalition-bridge": marks.bridge, "coalition-offer": marks.offer, "coalition-instance": marks.instance,
            "coalition-coalition": marks.coalition, "coalition-grant": marks.grant,
            "coalition-until": marks.until_s.to_string(),
        },
    });
    let answered = tokio::task::block_in_place(|| run(python, &asked));
    assert_eq!(
        answered["reasons"],
        json!({
            "missing": ["notFound"], "exists": ["alreadyExists"], "zone": ["invalid"],
            "busy": ["resourceInUseByAnotherResource"],
        })
    );
    assert_eq!(answered["failed"], json!(["ZONE_RESOURCE_POOL_EXHAUSTED", 503]));
    assert_eq!(answered["quota"], json!({ "CPUS": 24.0, "N2D_CPUS": 8.0, "C3_CPUS": 8.0 }));
    assert_eq!((&answered["size"], &answered["image"]), (&json!([2, 8192]), &json!(["READY", 10, "host-v1"])));
    assert_eq!(answered["features"], json!(["SEV_SNP_CAPABLE", "TDX_CAPABLE", "UEFI_COMPATIBLE"]));
    compare(&ours, &double.calls()[ours.len()..]);
}

/// Every question of ours is one of theirs, word for word, but for names that Google makes up.
fn compare(ours: &[Call], theirs: &[Call]) {
    let known: BTreeSet<_> = theirs.iter().map(question).collect();
    let bodies: BTreeMap<String, Vec<Value>> = theirs.iter().fold(BTreeMap::new(), |mut bodies, call| {
        bodies.entry(call.action.clone()).or_default().push(body(call));
        bodies
    });
    let mut seen = BTreeSet::new();
    for call in ours {
        seen.insert(call.action.as_str());
        match call.action.as_str() {
            // What is signed in it was checked by the double, theirs and ours.
            // Another API, which that client is not for.
            "timeSeries.list" => {}
            "token" => assert!(theirs.iter().any(|other| other.action == "token")),
            "zoneOperations.get" => {
                let folder = |call: &Call| question(call).1.rsplit_once('/').unwrap().0.to_owned();
                let is_same = |other: &Call| other.action == call.action && folder(other) == folder(call);
                assert!(theirs.iter().any(is_same), "{call:?}");
            }
            action => {
                let asked = question(call);
                assert!(known.contains(&asked), "{asked:?} is none of {known:#?}");
                assert!(bodies[action].contains(&body(call)), "{action}: {}", body(call));
            }
        }
    }
    let listed: BTreeSet<&str> = Action::ALL.iter().map(|action| action.name()).collect();
    assert_eq!(seen, listed);
}
