//! Accounts of Google Cloud and of Azure for tests: our doubles, and machines that are Debian's sshd on addresses of loopback.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use coalition::UniqueId;
use coalition_azure::{Addresses, Azure};
use coalition_cloud::Cloud as Api;
use coalition_cloud_double::{Boot, Sshd};
use coalition_compute::{ComputeGrant, DeclaredRates};
use coalition_gcp::ComputeEngine;
use compute_bridge::backend::{
    Backend, BackendError, InstanceKeys, InstanceName, LocalImage, Order, ProvisionedInstance, Workload,
};
use compute_bridge::backends::cloud::ledger::Size;
use compute_bridge::backends::machine_keys::MachineKeys;
use compute_bridge::backends::{CloudBackend, CloudSetup};

use super::harness::*;
use super::world::provider;

const PAUSE: Duration = Duration::from_millis(20);
/// How long the doubles may not show what they have just made.
const SETTLE: Duration = Duration::from_millis(500);

/// What every account has: machines, and the bridge's directory on them, which here are all this machine.
pub(crate) struct Hosts {
    pub(crate) sshd: Arc<Sshd>,
    pub(crate) dir: tempfile::TempDir,
}

impl Drop for Hosts {
    /// What a machine that is switched off takes with it: its workloads, which here run beside everything else.
    fn drop(&mut self) {
        let grants = std::fs::read_dir(self.dir.path().join("root/owner/grants"));
        for grant in grants.into_iter().flatten().flatten() {
            end_workload(&grant.path());
        }
    }
}

/// Ends a workload as the end of its machine does.
pub(crate) fn end_workload(dir: &Path) {
    for verb in ["stop", "clean"] {
        let _ = Command::new(program()).args(["runner", verb, "--dir"]).arg(dir).output();
    }
}

impl Hosts {
    /// `None`, with a word, where sshd is missing.
    pub(crate) fn new() -> Option<Self> {
        Some(Self { sshd: Arc::new(Sshd::new()?), dir: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn boot(&self) -> Option<Arc<dyn Boot>> {
        Some(Arc::clone(&self.sshd) as Arc<dyn Boot>)
    }

    /// A backend's setup on this cloud, offering these sizes: name, thousandths of a core, MiB, price.
    pub(crate) fn setup(&self, name: &str, cloud: Arc<dyn Api>, sizes: &[(&str, u32, u32, &str)]) -> CloudSetup {
        let size = |(name, cpu_millicores, ram_mib, price): &(&str, u32, u32, &str)| Size {
            name: (*name).into(),
            cpu_millicores: *cpu_millicores,
            ram_mib: *ram_mib,
            price_hour: price.parse().unwrap(),
            confidential: None,
        };
        CloudSetup {
            name: name.parse().unwrap(),
            cloud,
            region: "local".parse().unwrap(),
            sizes: sizes.iter().map(size).collect(),
            max_instances: 4,
            root_gib: 10,
            rates: DeclaredRates { core_hour: "0.02".parse().unwrap(), gib_hour: coalition::RateQ64::ZERO },
            private_addresses: false,
            ssh_port: self.sshd.port,
            keys: MachineKeys::new(&[7; 32]),
            provider: provider(),
            coalition: UniqueId::hash(b"a coalition"),
            host: host_setup(self.dir.path().join("root").to_str().unwrap()),
            boot_timeout: SOON,
            poweroff_after: Duration::from_secs(60),
            look: Duration::from_millis(200),
            pause: PAUSE,
        }
    }
}

/// Google Cloud.
pub(crate) struct Gcp {
    pub(crate) double: coalition_gcp_double::Double,
    pub(crate) hosts: Hosts,
}

impl Gcp {
    pub(crate) async fn start() -> Option<Self> {
        let hosts = Hosts::new()?;
        let role = include_str!("../../../../docs/permissions/gcp.json");
        Some(Self { double: coalition_gcp_double::Double::start(role, hosts.boot()).await, hosts })
    }

    fn api(&self) -> ComputeEngine {
        let key = self.double.key_file();
        let setup = coalition_gcp::Setup {
            project: coalition_gcp_double::PROJECT.into(),
            region: coalition_gcp_double::REGION.into(),
            zones: vec!["europe-west4-a".into(), "europe-west4-b".into()],
            endpoint: Some(self.double.endpoint.clone()),
            credentials: Arc::new(move || coalition_gcp::Credentials::from_key_file(&key)),
            image: coalition_gcp_double::IMAGE.into(),
            subnetwork: "hosts".into(),
            network_tags: vec!["coalition".into()],
            public_address: true,
            disk_type: "pd-balanced".into(),
            secure_boot: false,
            quota_metrics: vec!["N2D_CPUS".into()],
            timeout: SOON,
            pause: PAUSE,
            poll: PAUSE,
            create_patience: SOON,
            settle: SETTLE,
        };
        ComputeEngine::new(setup).unwrap()
    }

    pub(crate) fn setup(&self, name: &str) -> CloudSetup {
        self.hosts.setup(name, Arc::new(self.api()), &[("n2d-standard-2", 2_000, 7_500, "0.1")])
    }

    pub(crate) fn backend(&self) -> Arc<CloudBackend> {
        Arc::new(CloudBackend::new(self.setup("gcp")))
    }

    /// Machines and disks there are.
    pub(crate) fn left(&self) -> usize {
        self.double.machines().len() + self.double.disks().len()
    }
}

/// Azure.
pub(crate) struct AzureAccount {
    pub(crate) double: coalition_azure_double::Double,
    pub(crate) hosts: Hosts,
}

impl AzureAccount {
    pub(crate) async fn start() -> Option<Self> {
        let hosts = Hosts::new()?;
        let roles = [
            include_str!("../../../../docs/permissions/azure-hosts.json"),
            include_str!("../../../../docs/permissions/azure-parts.json"),
            include_str!("../../../../docs/permissions/azure-region.json"),
        ];
        Some(Self { double: coalition_azure_double::Double::start(&roles, hosts.boot()).await, hosts })
    }

    fn api(&self) -> Azure {
        use coalition_azure_double::{
            CLIENT, GROUP, IMAGE, REGION, SECRET, SECURITY_GROUP, SUBNET, SUBSCRIPTION, TENANT,
        };
        let setup = coalition_azure::Setup {
            subscription: SUBSCRIPTION.into(),
            resource_group: GROUP.into(),
            region: REGION.into(),
            places: vec!["1".into(), "2".into()],
            image: IMAGE.into(),
            subnet: SUBNET.into(),
            security_group: Some(SECURITY_GROUP.into()),
            private_addresses: false,
            secure_boot: false,
            confidential_disk: false,
            boot_diagnostics: true,
            quota_family: None,
            credentials: Arc::new(|| coalition_azure::Credentials::client_secret(TENANT, CLIENT, SECRET)),
            addresses: Addresses {
                endpoint: Some(self.double.endpoint.clone()),
                authority: Some(self.double.endpoint.clone()),
                metadata: None,
                extra_root: Some(self.double.root.clone()),
            },
            timeout: SOON,
            pause: PAUSE,
            follow: Some(SOON),
            settle: Some(SETTLE),
        };
        Azure::new(setup).unwrap()
    }

    pub(crate) fn setup(&self, name: &str) -> CloudSetup {
        self.hosts.setup(name, Arc::new(self.api()), &[("Standard_D2s_v5", 2_000, 7_500, "0.1")])
    }

    pub(crate) fn backend(&self) -> Arc<CloudBackend> {
        Arc::new(CloudBackend::new(self.setup("azure")))
    }

    /// Machines, interfaces, addresses and disks there are.
    pub(crate) fn left(&self) -> usize {
        self.double.things()
    }
}

/// What a grant needs, held together.
pub(crate) struct Job {
    pub(crate) grant: ComputeGrant,
    pub(crate) image: LocalImage,
    pub(crate) workload: Workload,
    pub(crate) keys: InstanceKeys,
    pub(crate) name: InstanceName,
}

impl Job {
    pub(crate) fn new(hosts: &Hosts, offer: &str, n: u8, image: &[u8], lasts_ms: u64) -> Self {
        let path = hosts.dir.path().join(format!("image-{n}"));
        std::fs::write(&path, image).unwrap();
        let hash = UniqueId::from_bytes(*blake3::hash(image).as_bytes());
        let mut grant = grant_number(n, offer, lasts_ms);
        (grant.cpu_millicores, grant.ram_mib) = (500, 64);
        // Cgroups and users of workloads are named after instances; another test's must be called otherwise.
        let own = [hosts.dir.path().as_os_str().as_encoded_bytes(), &[n]].concat();
        grant.request_id = coalition::RequestId(UniqueId::hash(&own));
        Self {
            name: InstanceName::derive(&grant.provider, &grant.request_id, 0),
            image: LocalImage { path, hash, size_bytes: image.len() as u64 },
            workload: Workload { command: vec![], env: vec![], disk_mib: 64 },
            keys: instance_keys(),
            grant,
        }
    }

    pub(crate) async fn run(&self, backend: &CloudBackend) -> Result<ProvisionedInstance, BackendError> {
        let order = Order { grant: &self.grant, image: &self.image, workload: &self.workload, keys: &self.keys };
        backend.provision(&self.name, order).await
    }
}
