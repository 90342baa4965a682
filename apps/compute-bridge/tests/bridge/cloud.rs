//! An account of EC2 for tests: moto, the proxy, and machines that are Debian's sshd on addresses of loopback.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use coalition::UniqueId;
use coalition_aws::{CredentialSource, Credentials, Ec2, Ec2Region, RegionSetup, STANDARD_VCPUS, Setup};
use coalition_aws_double::{Boot, Double, Moto, REGION, Sshd};
use coalition_compute::DeclaredRates;
use compute_bridge::backends::cloud::ledger::Size;
use compute_bridge::backends::machine_keys::MachineKeys;
use compute_bridge::backends::{CloudBackend, CloudSetup};

use super::harness::*;
use super::world::provider;

/// The policy operators give the bridge; the made user has it and nothing else.
const POLICY: &str = include_str!("../../../../docs/permissions/aws.json");

pub(crate) struct Cloud {
    pub(crate) double: Double,
    pub(crate) sshd: Arc<Sshd>,
    pub(crate) dir: tempfile::TempDir,
}

impl Drop for Cloud {
    /// What a machine that is switched off takes with it: its workloads, which here run beside everything else.
    fn drop(&mut self) {
        for grant in std::fs::read_dir(self.grants_dir()).into_iter().flatten().flatten() {
            self.kill_workload(&grant.path());
        }
    }
}

impl Cloud {
    /// `None`, with a word, where moto or sshd is missing.
    pub(crate) async fn start() -> Option<Self> {
        let sshd = Arc::new(Sshd::new()?);
        let double = Double::start(POLICY, Some(Arc::clone(&sshd) as Arc<dyn Boot>)).await?;
        Some(Self { double, sshd, dir: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn grants_dir(&self) -> PathBuf {
        self.dir.path().join("root/owner/grants")
    }

    pub(crate) fn kill_workload(&self, dir: &std::path::Path) {
        for verb in ["stop", "clean"] {
            let _ = Command::new(program()).args(["runner", verb, "--dir"]).arg(dir).output();
        }
    }

    pub(crate) fn aws(&self) -> Setup {
        let keys = self.double.moto.keys.clone();
        let credentials: CredentialSource = Arc::new(move || Credentials::new(&keys.id, &keys.secret, None));
        Setup {
            region: REGION.into(),
            endpoint: Some(self.double.proxy.endpoint.clone()),
            credentials,
            timeout: SOON,
            pause: Duration::from_millis(20),
        }
    }

    pub(crate) fn region(&self) -> RegionSetup {
        RegionSetup {
            api: self.aws(),
            image: Moto::IMAGE.into(),
            subnets: self.double.moto.subnets[..2].to_vec(),
            security_groups: vec![self.double.moto.security_group.clone()],
            private_addresses: false,
            quota_code: STANDARD_VCPUS.into(),
            settle: Some(Duration::from_millis(500)),
        }
    }

    pub(crate) fn setup(&self) -> CloudSetup {
        let size = |name: &str, cpu_millicores, ram_mib, price: &str| Size {
            name: name.into(),
            cpu_millicores,
            ram_mib,
            price_hour: price.parse().unwrap(),
            confidential: None,
        };
        CloudSetup {
            name: "aws".parse().unwrap(),
            cloud: Arc::new(Ec2Region::new(self.region()).unwrap()),
            region: "local".parse().unwrap(),
            sizes: vec![size("m6a.xlarge", 4_000, 15_000, "0.2"), size("m6a.large", 2_000, 7_500, "0.1")],
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
            pause: Duration::from_millis(20),
        }
    }

    pub(crate) fn backend(&self) -> Arc<CloudBackend> {
        Arc::new(CloudBackend::new(self.setup()))
    }

    /// Somebody else with the same account.
    pub(crate) fn console(&self) -> Ec2 {
        Ec2::new(self.aws()).unwrap()
    }

    /// Instances that still cost something.
    pub(crate) async fn live(&self) -> Vec<coalition_aws::Instance> {
        let mut all = self.console().instances(&[]).await.unwrap();
        all.retain(|instance| !instance.state.is_over());
        all
    }
}
