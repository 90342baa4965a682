//! The client against moto, with permissions checked, behind a proxy that fails as AWS does; its bodies against boto3's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use coalition_aws::*;
use coalition_aws_double::{Double, Fault, Keys, Moto, Proxy, REGION};
use coalition_cloud::{Counts, ErrorKind, Window};

const POLICY: &str = include_str!("../../../docs/permissions/aws.json");
const INSTANCE: &str = "i-0123456789abcdef0";
/// An hour of 2026.
const WINDOW: Window = Window { from_s: 1_767_225_600, to_s: 1_767_229_200 };

fn client(endpoint: &str, keys: Keys) -> Ec2 {
    let credentials: CredentialSource = Arc::new(move || Credentials::new(&keys.id, &keys.secret, None));
    let setup = Setup {
        region: REGION.into(),
        endpoint: Some(endpoint.to_owned()),
        credentials,
        timeout: Duration::from_secs(20),
        pause: Duration::from_millis(10),
    };
    Ec2::new(setup).unwrap()
}

fn tags(bridge: &str) -> Vec<(String, String)> {
    vec![("coalition:bridge".into(), bridge.into()), ("Name".into(), "ü&=".into())]
}

fn new_instance<'a>(
    double: &'a Double,
    token: &'a str,
    tags: &'a [(String, String)],
    groups: &'a [String],
) -> NewInstance<'a> {
    NewInstance {
        client_token: token,
        image: Moto::IMAGE,
        instance_type: "m6a.large",
        subnet: &double.moto.subnets[0],
        security_groups: groups,
        public_address: true,
        user_data: b"#cloud-config\n{}",
        tags,
        root_device: "/dev/xvda",
        root_gib: 20,
        sev_snp: true,
        dry_run: false,
    }
}

#[tokio::test]
async fn a_whole_life_with_the_least_permissions() {
    let Some(double) = Double::start(POLICY, None).await else { return };
    let ec2 = client(&double.proxy.endpoint, double.moto.keys.clone());
    let (tags, groups) = (tags("b 1"), [double.moto.security_group.clone()]);
    let new = new_instance(&double, "t-0", &tags, &groups);
    assert_eq!(ec2.caller().await.unwrap().account, "123456789012");
    assert_eq!(ec2.quota(STANDARD_VCPUS).await.unwrap(), 32);
    let image = ec2.image(Moto::IMAGE).await.unwrap().unwrap();
    assert_eq!((image.architecture.as_str(), image.root_device.as_str()), ("x86_64", "/dev/xvda"));
    assert_eq!(ec2.image("ami-00000000000000000").await.unwrap(), None);
    let sizes = ec2.instance_types(&["m6a.large", "t3.micro"]).await.unwrap();
    let of = |name: &str| sizes.iter().find(|size| size.name == name).unwrap();
    assert_eq!((of("m6a.large").vcpus, of("m6a.large").ram_mib, of("m6a.large").sev_snp), (2, 8_192, true));
    assert!(!of("t3.micro").sev_snp);

    ec2.may_run(&new).await.unwrap();
    assert!(ec2.instances(&[("coalition:bridge", "b 1")]).await.unwrap().is_empty(), "a dry run makes nothing");
    let made = ec2.run_instance(&new).await.unwrap();
    assert_eq!(made.state, InstanceState::Pending);
    // The same question again is the same machine; another question under the same token is refused.
    assert_eq!(ec2.run_instance(&new).await.unwrap().id, made.id);
    let other = NewInstance { root_gib: 21, ..new.clone() };
    assert_eq!(ec2.run_instance(&other).await.unwrap_err().kind(), ErrorKind::Conflict);

    let listed = ec2.instances(&[("coalition:bridge", "b 1")]).await.unwrap();
    let [one] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((one.state, &one.id, one.tags["Name"].as_str()), (InstanceState::Running, &made.id, "ü&="));
    assert!(one.public_address.is_some_and(|address| address.is_loopback()) && one.private_address.is_some());
    assert!(ec2.instances(&[("coalition:bridge", "b 2")]).await.unwrap().is_empty());
    assert!(!ec2.console(&made.id).await.unwrap().is_empty());
    for _ in 0..2 {
        let ended = ec2.terminate(std::slice::from_ref(&made.id)).await.unwrap();
        assert!(ended[0].state.is_over(), "{ended:?}");
    }
    let after = ec2.instances(&[("coalition:bridge", "b 1")]).await.unwrap();
    assert!(after.iter().all(|one| one.state.is_over()));
    assert!(ec2.detached_volumes(&[("coalition:bridge", "b 1")]).await.unwrap().is_empty());
}

#[tokio::test]
async fn every_failure_has_its_kind() {
    let Some(double) = Double::start(POLICY, None).await else { return };
    let ec2 = client(&double.proxy.endpoint, double.moto.keys.clone());
    let (tags, groups) = (tags("b 2"), [double.moto.security_group.clone()]);
    let new = new_instance(&double, "t-1", &tags, &groups);
    let kind = |result: Result<Instance, AwsError>| result.unwrap_err().kind();
    // What moto itself says.
    let wrong = Keys { secret: "wrong".into(), ..double.moto.keys.clone() };
    let stranger = client(&double.proxy.endpoint, wrong);
    assert_eq!(stranger.instances(&[]).await.unwrap_err().kind(), ErrorKind::Auth);
    assert_eq!(kind(stranger.run_instance(&new).await), ErrorKind::Auth);
    let missing = NewInstance { image: "ami-00000000000000000", ..new.clone() };
    assert_eq!(kind(ec2.run_instance(&missing).await), ErrorKind::NotFound);
    let size = ec2.run_instance(&NewInstance { instance_type: "z9.huge", ..new.clone() }).await.unwrap_err();
    assert_eq!(size.kind(), ErrorKind::NotFound, "{size}");
    let ids = [INSTANCE.parse().unwrap()];
    assert_eq!(ec2.terminate(&ids).await.unwrap_err().kind(), ErrorKind::NotFound);
    ec2.delete_volume(&"vol-0123456789abcdef0".parse().unwrap()).await.unwrap();
    // What only AWS would say. Making a machine is tried once, whatever happens.
    let faults = [
        ("InsufficientInstanceCapacity", 500, ErrorKind::Capacity),
        ("VcpuLimitExceeded", 400, ErrorKind::Quota),
        ("RequestLimitExceeded", 503, ErrorKind::Throttled),
        ("UnauthorizedOperation", 403, ErrorKind::Auth),
        ("InternalError", 500, ErrorKind::Transient),
    ];
    for (code, status, expected) in faults {
        let before = double.proxy.count("RunInstances");
        double.proxy.fail("RunInstances", [Fault::Refuse(code, status)]);
        let error = ec2.run_instance(&new).await.unwrap_err();
        assert_eq!((error.kind(), error.may_have_acted()), (expected, code == "InternalError"), "{error}");
        assert_eq!(double.proxy.count("RunInstances"), before + 1);
    }
    for fault in [Fault::LoseAnswer, Fault::Garble] {
        double.proxy.fail("RunInstances", [fault.clone()]);
        let lost = ec2.run_instance(&new).await.unwrap_err();
        assert!(lost.may_have_acted() && lost.kind() == ErrorKind::Transient, "{fault:?}: {lost}");
    }
    assert!(ec2.run_instance(&new).await.is_ok());
    assert_eq!(ec2.instances(&[("coalition:bridge", "b 2")]).await.unwrap().len(), 1, "one token, one machine");
}

/// Moto judges signature and permission; the numbers are the proxy's, in CloudWatch's form.
#[tokio::test]
async fn what_was_counted_of_a_machine_is_told_also_after_its_end() {
    let Some(double) = Double::start(POLICY, None).await else { return };
    let ec2 = client(&double.proxy.endpoint, double.moto.keys.clone());
    let (tags, groups) = (tags("b 3"), [double.moto.security_group.clone()]);
    let made = ec2.run_instance(&new_instance(&double, "t-3", &tags, &groups)).await.unwrap();
    ec2.terminate(std::slice::from_ref(&made.id)).await.unwrap();
    let over = ec2.instances(&[("coalition:bridge", "b 3")]).await.unwrap().remove(0);
    assert!(over.launched.as_deref().is_some_and(|at| coalition_cloud::unix_s(at).is_some()), "{over:?}");
    assert!(over.transition.as_deref().is_some_and(|why| why.contains("initiated")), "{over:?}");
    let read = ec2.metrics(&made.id, WINDOW).await.unwrap();
    let told: Vec<(&str, Counts, usize)> =
        read.iter().map(|one| (one.metric.as_str(), one.counts, one.points.len())).collect();
    let expected = [
        ("CPUUtilization", Counts::CpuPercent, 2),
        ("NetworkIn", Counts::NetBytes, 2),
        ("NetworkOut", Counts::NetBytes, 2),
    ];
    assert_eq!(told, expected);
    assert_eq!(read[2].points[0].value, "500000.5", "as it was told, digit by digit");
    assert!(ec2.metrics(&INSTANCE.parse().unwrap(), WINDOW).await.unwrap().is_empty());
    for (fault, kind) in [
        (Fault::Refuse("AccessDeniedException", 400), ErrorKind::Auth),
        (Fault::Refuse("ThrottlingException", 400), ErrorKind::Throttled),
        (Fault::Garble, ErrorKind::Transient),
    ] {
        // Only what passes is asked again; an answer that cannot be read is read after that.
        let times = if kind == ErrorKind::Throttled { 3 } else { 1 };
        double.proxy.fail("GetMetricData", vec![fault.clone(); times]);
        assert_eq!(ec2.metrics(&made.id, WINDOW).await.unwrap_err().kind(), kind, "{fault:?}");
    }
    double.proxy.fail("GetMetricData", vec![Fault::ShowNothing]);
    assert!(ec2.metrics(&made.id, WINDOW).await.unwrap().is_empty());
    // Without its permission, moto refuses it.
    let without = POLICY.replace("cloudwatch:GetMetricData", "cloudwatch:GetDashboard");
    let double = Double::start(&without, None).await.unwrap();
    let error = client(&double.proxy.endpoint, double.moto.keys.clone()).metrics(&made.id, WINDOW).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth, "{error}");
}

#[tokio::test]
async fn looking_is_repeated_and_an_outage_is_no_empty_list() {
    let Some(double) = Double::start(POLICY, None).await else { return };
    let ec2 = client(&double.proxy.endpoint, double.moto.keys.clone());
    double.proxy.fail("DescribeInstances", [Fault::Refuse("RequestLimitExceeded", 503), Fault::LoseAnswer]);
    assert!(ec2.instances(&[]).await.unwrap().is_empty());
    assert_eq!(double.proxy.count("DescribeInstances"), 3);
    double.proxy.blind(true);
    assert_eq!(ec2.instances(&[]).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(double.proxy.count("DescribeInstances"), 6);
    let nobody = client("http://127.0.0.1:9", double.moto.keys.clone());
    let error = nobody.caller().await.unwrap_err();
    assert!(matches!(error, AwsError::Unreachable { .. }) && !error.may_have_acted(), "{error}");
    let shown = format!("{error:?} {ec2:?}");
    assert!(!shown.contains(&double.moto.keys.secret), "{shown}");
}

fn python() -> Option<&'static Path> {
    let own = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin/python"));
    let has = |python: &Path| {
        Command::new(python).args(["-c", "import boto3"]).output().is_ok_and(|output| output.status.success())
    };
    [Path::new("python"), own].into_iter().find(|python| has(python))
}

#[tokio::test]
async fn bodies_are_those_of_boto3() {
    let Some(python) = python() else {
        eprintln!("skipped: no python with boto3 (.ci/python-venv installs it into target/venv)");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/boto3_bodies.py");
    let output = Command::new(python).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    // Nobody answers behind the proxy; it only writes down what was asked.
    let proxy = Proxy::start("http://127.0.0.1:9", None).await;
    let ec2 = client(&proxy.endpoint, Keys { id: "x".into(), secret: "y".into() });
    let (tags, groups) = (tags("b 1"), ["sg-1".to_owned(), "sg-2".to_owned()]);
    let new = NewInstance {
        client_token: "t-0",
        image: Moto::IMAGE,
        instance_type: "m6a.large",
        subnet: "subnet-1",
        security_groups: &groups,
        public_address: true,
        user_data: b"#cloud-config\n{}",
        tags: &tags,
        root_device: "/dev/xvda",
        root_gib: 20,
        sev_snp: true,
        dry_run: true,
    };
    let own = [("coalition:bridge", "b 1")];
    let id: InstanceId = INSTANCE.parse().unwrap();
    let _ = ec2.may_run(&new).await;
    let _ = ec2.instances(&own).await;
    let _ = ec2.terminate(std::slice::from_ref(&id)).await;
    let _ = ec2.detached_volumes(&own).await;
    let _ = ec2.delete_volume(&"vol-0123456789abcdef0".parse().unwrap()).await;
    let _ = ec2.console(&id).await;
    let _ = ec2.instance_types(&["m6a.large", "t3.micro"]).await;
    let _ = ec2.image(Moto::IMAGE).await;
    let _ = ec2.caller().await;
    let _ = ec2.quota(STANDARD_VCPUS).await;
    let _ = ec2.metrics(&id, WINDOW).await;
    let calls = proxy.calls();
    for action in Action::ALL {
        let call = calls.iter().find(|call| call.action == action.name()).unwrap_or_else(|| panic!("{action}"));
        let ours: serde_json::Value = if call.body.starts_with(b"{") {
            serde_json::from_slice(&call.body).unwrap()
        } else {
            serde_json::to_value(&call.params).unwrap()
        };
        assert_eq!(ours, theirs[action.name()], "{action}");
    }
    assert_eq!(theirs.len(), Action::ALL.len());
}

/// Exactly what the client can call is permitted, nothing more: an operator gives the bridge this file and no more.
#[test]
fn the_policy_permits_what_the_client_can_call_and_no_more() {
    let policy: serde_json::Value = serde_json::from_str(POLICY).unwrap();
    let mut permitted = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        let actions = statement["Action"].as_array().unwrap();
        permitted.extend(actions.iter().map(|action| action.as_str().unwrap().to_owned()));
        // What changes something is bound to our tag, or to a thing it is made from.
        let changes = actions.iter().any(|action| {
            let name = action.as_str().unwrap();
            !name.contains(":Describe") && !name.contains(":Get") && name != "ec2:RunInstances"
        });
        assert!(!changes || statement["Condition"].is_object(), "{statement}");
    }
    let needed: BTreeSet<String> = Action::ALL.into_iter().flat_map(Action::permissions).collect();
    assert_eq!(permitted, needed);
}
