//! Microsoft's Python client drives the double, and judges our requests by its models.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use coalition_azure::*;
use coalition_azure_double::*;
use coalition_cloud::{Cloud, Confidential, NewHost};
use common::*;
use serde_json::{Value, json};

fn python() -> Option<PathBuf> {
    let own = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin/python")).to_owned();
    let has = |python: &PathBuf| {
        let asked = std::process::Command::new(python).args(["-c", "import azure.mgmt.compute"]).output();
        asked.is_ok_and(|output| output.status.success())
    };
    let found = [PathBuf::from("python"), own].into_iter().find(has);
    if found.is_none() {
        eprintln!("skipped: no python with azure-mgmt-compute (.ci/python-venv installs it into target/venv)");
    }
    found
}

async fn asked(python: &Path, arguments: &[&str], given: &Value) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/azure_sdk.py");
    let mut command = std::process::Command::new(python);
    command.arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let given = given.to_string();
    let run = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = run.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The bodies our client sends for these hosts.
async fn bodies(setup: impl Fn(&Double) -> Setup, hosts: &[NewHost<'_>]) -> Vec<Value> {
    let double = Double::start(&ROLES, None).await;
    let azure = Azure::new(setup(&double)).unwrap();
    for host in hosts {
        azure.create(host).await.unwrap();
    }
    double.calls().into_iter().filter(|call| call.name == PUT).map(|call| call.body).collect()
}

async fn all_bodies() -> Vec<Value> {
    let (one, two, three) = (marks(1), marks(2), marks(3));
    let tdx = new_host(&one);
    let snp =
        NewHost { size: "Standard_DC2as_v5", confidential: Some(Confidential::SevSnp), place: "any", ..new_host(&two) };
    let plain = NewHost { size: "Standard_D2s_v5", confidential: None, ..new_host(&three) };
    let mut all = bodies(setup, &[tdx, snp, plain]).await;
    let other = |double: &Double| Setup {
        image: URN.into(),
        security_group: None,
        private_addresses: true,
        confidential_disk: true,
        boot_diagnostics: false,
        ..setup(double)
    };
    all.extend(bodies(other, &[tdx, plain]).await);
    all
}

#[tokio::test]
async fn every_member_of_our_requests_is_one_of_microsofts_models() {
    let Some(python) = python() else { return };
    let mut all = all_bodies().await;
    let known = |judged: &Value| judged["known"].as_u64().unwrap();
    for judged in asked(&python, &["models"], &json!(all)).await.as_array().unwrap() {
        assert_eq!(judged["unknown"], json!([]));
        assert!(known(judged) >= 35, "{judged}");
    }
    // The models do tell: a key, an enumeration's value and a type, each wrong in one place.
    all.truncate(3);
    all[0]["properties"]["storageProfile"]["osDisk"]["deleteOptions"] = "Delete".into();
    all[1]["properties"]["securityProfile"]["securityType"] = "ConfidentialVm".into();
    all[2]["properties"]["storageProfile"]["osDisk"]["diskSizeGB"] = "30".into();
    let judged = asked(&python, &["models"], &json!(all)).await;
    let unknown: Vec<String> = (0..3).map(|i| judged[i]["unknown"].to_string()).collect();
    assert!(unknown[0].contains("osDisk.deleteOptions"), "{unknown:?}");
    assert!(unknown[1].contains("securityType = 'ConfidentialVm'"), "{unknown:?}");
    assert!(unknown[2].contains("diskSizeGB = '30', not int"), "{unknown:?}");
}

#[tokio::test]
async fn microsofts_client_drives_the_double() {
    let Some(python) = python() else { return };
    let body = all_bodies().await.remove(0);
    let double = Double::start(&ROLES, None).await;
    let mut root = tempfile::NamedTempFile::new().unwrap();
    root.write_all(double.root.as_bytes()).unwrap();
    let root = root.path().to_str().unwrap();
    let endpoint = double.endpoint.as_str();
    let arguments = |mode| [mode, endpoint, root, SUBSCRIPTION, GROUP, TENANT, CLIENT, SECRET];
    let given = json!({ "name": format!("c-{:032x}", 1), "body": body, "image": URN });
    let told = asked(&python, &arguments("life"), &given).await;
    assert_eq!(told["made"], json!([given["name"], "Succeeded", ["1"], body["tags"]]), "{told}");
    assert_eq!(told["again"], json!([412, "PreconditionFailed"]));
    assert_eq!(told["moved"], json!([409, "PropertyChangeNotAllowed"]));
    assert_eq!(told["codes"], json!(["ProvisioningState/succeeded", "PowerState/running"]));
    assert_eq!((&told["judged"]["unknown"], &told["listed"]), (&json!([]), &json!([given["name"]])));
    assert_eq!((&told["disks"], &told["cores"]), (&json!([["Attached", true]]), &json!([20])));
    assert_eq!(told["sizes"]["Standard_DC2es_v6"]["ConfidentialComputingType"], "TDX");
    for judged in ["judged image", "judged version", "judged definition"] {
        assert_eq!(told[judged], json!([]), "{judged}");
    }
    assert!(told["judged sizes"].as_array().unwrap().iter().all(|unknown| *unknown == json!([])), "{told}");
    assert_eq!((&told["console"], &told["gone"]), (&json!(true), &json!([404, "ResourceNotFound"])));
    assert_eq!(double.things(), 0);

    double.fail(PUT, [Fault::Refuse("SkuNotAvailable", 409), Fault::FailLater("AllocationFailed")]);
    let told = asked(&python, &arguments("failures"), &given).await;
    assert_eq!(told["refused"], json!([409, "SkuNotAvailable"]), "{told}");
    assert_eq!(told["later"][1], "AllocationFailed", "{told}");
    assert_eq!(
        (&told["state"], &told["codes"][0]),
        (&json!("Failed"), &json!("ProvisioningState/failed/AllocationFailed"))
    );
    assert_eq!(told["misspelt"], json!([400, "BadRequest"]));
}
