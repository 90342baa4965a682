//! How long a sweep of many instances takes, and where: each cloud's client against its double, without SSH servers behind the
//! machines. `cargo run --release -p compute-bridge --example bench_clouds [MACHINES [MACHINES_OF_EC2]]`.
//!
//! Doubles answer as real APIs do, page by page; how fast they are says nothing about a cloud. Their own time is told apart from the
//! client's. EC2's is moto, a Python server, which takes longer for every instance it has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use coalition_cloud::{Cloud, Marks, NewHost, Owner};
use coalition_cloud_double::Served;
use futures::{StreamExt, stream};

const BRIDGE: &str = "abababababababababababababababababababababababababababababababab";
const OWNER: Owner<'static> = Owner { bridge: BRIDGE, offer: "bench" };
const TIMEOUT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);
/// Machines asked for at the same time.
const AT_ONCE: usize = 8;

fn marks(n: usize) -> Marks {
    Marks {
        bridge: BRIDGE.into(),
        offer: "bench".into(),
        instance: format!("{n:032x}"),
        coalition: "cd".repeat(32),
        grant: "ef".repeat(32),
        until_s: 4_000_000_000,
    }
}

async fn fill(cloud: &dyn Cloud, size: &str, machines: usize) {
    let make = |n: usize| async move {
        let marks = marks(n);
        let new = NewHost {
            marks: &marks,
            place: &cloud.places()[0],
            size,
            confidential: None,
            user_data: &[b'#'; 4_096],
            disk_gib: 20,
            longest_s: 86_400,
        };
        cloud.create(&new).await.expect("the double has room");
    };
    stream::iter(0..machines).map(make).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
}

/// Looks at everything twice, as a sweep does: hosts, then what they left behind.
async fn sweep(cloud: &dyn Cloud, machines: usize, take: &dyn Fn() -> Served) {
    for round in ["first", "next"] {
        let _ = take();
        let began = Instant::now();
        let hosts = cloud.hosts(OWNER, None).await.expect("it can be listed");
        let took = began.elapsed();
        let served = take();
        assert_eq!(hosts.len(), machines, "all of them");
        let began = Instant::now();
        assert!(cloud.leftovers(OWNER, None).await.expect("it can be listed").is_empty());
        let (left_took, left) = (began.elapsed(), take());
        println!(
            "{:<15} {round:<5} {machines} hosts: {} answers, {} KiB, {} ms ({} ms of that the double's); leftovers: {} answers, {} KiB, {} ms ({} ms)",
            cloud.name(),
            served.answers,
            served.bytes / 1_024,
            took.as_millis(),
            served.took.as_millis(),
            left.answers,
            left.bytes / 1_024,
            left_took.as_millis(),
            left.took.as_millis(),
        );
    }
}

async fn gcp(machines: usize) {
    let double = coalition_gcp_double::Double::start(include_str!("../../../docs/permissions/gcp.json"), None).await;
    double.set_quota("CPUS", u32::MAX / 2);
    double.slow(Duration::ZERO);
    let key = double.key_file();
    let setup = coalition_gcp::Setup {
        project: coalition_gcp_double::PROJECT.into(),
        region: coalition_gcp_double::REGION.into(),
        zones: vec!["europe-west4-a".into()],
        endpoint: Some(double.endpoint.clone()),
        credentials: Arc::new(move || coalition_gcp::Credentials::from_key_file(&key)),
        image: coalition_gcp_double::IMAGE.into(),
        subnetwork: "hosts".into(),
        network_tags: vec!["coalition".into()],
        public_address: true,
        disk_type: "pd-balanced".into(),
        secure_boot: false,
        quota_metrics: vec!["CPUS".into()],
        timeout: TIMEOUT,
        pause: PAUSE,
        poll: PAUSE,
        create_patience: TIMEOUT,
        settle: PAUSE,
    };
    let cloud = coalition_gcp::ComputeEngine::new(setup).unwrap();
    fill(&cloud, "e2-medium", machines).await;
    sweep(&cloud, machines, &|| double.served().take()).await;
}

async fn azure(machines: usize) {
    use coalition_azure_double::{CLIENT, GROUP, IMAGE, REGION, SECRET, SECURITY_GROUP, SUBNET, SUBSCRIPTION, TENANT};
    let double = coalition_azure_double::Double::start(&[], None).await;
    double.quota(u32::MAX / 2, u32::MAX / 2);
    // What a page of the real one has is not documented; some fifty machines as a rule.
    double.page(50);
    double.slow(0, 0);
    let setup = coalition_azure::Setup {
        subscription: SUBSCRIPTION.into(),
        resource_group: GROUP.into(),
        region: REGION.into(),
        places: vec!["1".into()],
        image: IMAGE.into(),
        subnet: SUBNET.into(),
        security_group: Some(SECURITY_GROUP.into()),
        private_addresses: false,
        secure_boot: false,
        confidential_disk: false,
        boot_diagnostics: false,
        quota_family: None,
        credentials: Arc::new(|| coalition_azure::Credentials::client_secret(TENANT, CLIENT, SECRET)),
        addresses: coalition_azure::Addresses {
            endpoint: Some(double.endpoint.clone()),
            authority: Some(double.endpoint.clone()),
            metadata: None,
            extra_root: Some(double.root.clone()),
        },
        timeout: TIMEOUT,
        pause: PAUSE,
        follow: Some(TIMEOUT),
        settle: Some(PAUSE),
    };
    let cloud = coalition_azure::Azure::new(setup).unwrap();
    fill(&cloud, "Standard_D2s_v5", machines).await;
    sweep(&cloud, machines, &|| double.served().take()).await;
}

async fn ec2(machines: usize) {
    let policy = include_str!("../../../docs/permissions/aws.json");
    let Some(double) = coalition_aws_double::Double::start(policy, None).await else { return };
    let keys = double.moto.keys.clone();
    let credentials: coalition_aws::CredentialSource =
        Arc::new(move || coalition_aws::Credentials::new(&keys.id, &keys.secret, None));
    let setup = coalition_aws::RegionSetup {
        api: coalition_aws::Setup {
            region: coalition_aws_double::REGION.into(),
            endpoint: Some(double.proxy.endpoint.clone()),
            credentials,
            timeout: TIMEOUT,
            pause: PAUSE,
        },
        image: coalition_aws_double::Moto::IMAGE.into(),
        subnets: double.moto.subnets[..1].to_vec(),
        security_groups: vec![double.moto.security_group.clone()],
        private_addresses: false,
        quota_code: coalition_aws::STANDARD_VCPUS.into(),
        settle: None,
    };
    let cloud = coalition_aws::Ec2Region::new(setup).unwrap();
    fill(&cloud, "m6a.large", machines).await;
    sweep(&cloud, machines, &|| double.proxy.served().take()).await;
}

#[tokio::main]
async fn main() {
    let mut given = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number of machines"));
    let machines = given.next().unwrap_or(1_000);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load {}", load.trim());
    gcp(machines).await;
    azure(machines).await;
    ec2(given.next().unwrap_or(machines)).await;
}
