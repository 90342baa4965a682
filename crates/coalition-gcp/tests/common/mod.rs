//! What the tests share: the double, a client of it, and hosts to ask for.
#![allow(dead_code, unreachable_pub)]

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coalition_cloud::{Cloud, Confidential, Host, HostState, Marks, NewHost, Owner};
use coalition_cloud_double::Boot;
use coalition_gcp::{ComputeEngine, CredentialSource, Credentials, Setup};
use coalition_gcp_double::{Double, IMAGE, PROJECT, REGION, SUBNETWORK};

/// What telemetry is asked for, an hour of 2026.
pub const WINDOW: coalition_cloud::Window = coalition_cloud::Window { from_s: 1_767_225_600, to_s: 1_767_229_200 };
pub const ROLE: &str = include_str!("../../../../docs/permissions/gcp.json");
pub const ZONE: &str = "europe-west4-a";
pub const USER_DATA: &[u8] = b"#cloud-config\n{}";
/// Wait for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// Writes down what is booted and switched off.
#[derive(Default)]
pub struct Notes {
    pub booted: Mutex<Vec<(String, Ipv4Addr, Vec<u8>)>>,
    pub off: Mutex<Vec<String>>,
}

impl Boot for Notes {
    fn boot(&self, id: &str, address: Ipv4Addr, user_data: &[u8]) {
        self.booted.lock().unwrap().push((id.to_owned(), address, user_data.to_vec()));
    }

    fn power_off(&self, id: &str) {
        self.off.lock().unwrap().push(id.to_owned());
    }
}

pub fn key(text: String) -> CredentialSource {
    Arc::new(move || Credentials::from_key_file(&text))
}

pub fn setup(double: &Double) -> Setup {
    Setup {
        project: PROJECT.into(),
        region: REGION.into(),
        zones: vec![ZONE.into(), "europe-west4-b".into()],
        endpoint: Some(double.endpoint.clone()),
        credentials: key(double.key_file()),
        image: IMAGE.into(),
        subnetwork: "hosts".into(),
        network_tags: vec!["coalition".into()],
        public_address: true,
        disk_type: "pd-balanced".into(),
        secure_boot: false,
        quota_metrics: vec!["N2D_CPUS".into()],
        timeout: Duration::from_secs(10),
        pause: Duration::from_millis(5),
        poll: Duration::from_millis(5),
        create_patience: Duration::from_secs(5),
        settle: Duration::from_millis(50),
    }
}

pub fn client(double: &Double) -> ComputeEngine {
    assert!(SUBNETWORK.ends_with("/hosts"));
    ComputeEngine::new(setup(double)).unwrap()
}

pub fn marks(n: u8) -> Marks {
    Marks {
        bridge: "ab".repeat(32),
        offer: "gcp-1".into(),
        instance: format!("{n:02x}").repeat(16),
        coalition: "cd".repeat(32),
        grant: "None: a check".into(),
        until_s: 1_800_000_000,
    }
}

pub fn owner(marks: &Marks) -> Owner<'_> {
    Owner { bridge: &marks.bridge, offer: &marks.offer }
}

pub fn new_host(marks: &Marks) -> NewHost<'_> {
    NewHost {
        marks,
        place: ZONE,
        size: "n2d-standard-2",
        confidential: Some(Confidential::SevSnp),
        user_data: USER_DATA,
        disk_gib: 20,
        longest_s: 900,
    }
}

/// The host, once it runs.
pub async fn running(cloud: &ComputeEngine, marks: &Marks) -> Host {
    until("the host runs", async || {
        let found = cloud.hosts(owner(marks), Some(&marks.instance)).await.unwrap();
        found.into_iter().find(|host| host.state == HostState::Running)
    })
    .await
}

/// Ends the host and waits until that is confirmed.
pub async fn end(cloud: &ComputeEngine, id: &str) {
    until("the end is confirmed", async || (cloud.end(id).await.unwrap() == HostState::Over).then_some(())).await;
}

/// Waits for something, with a deadline.
pub async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
