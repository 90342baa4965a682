//! An account of EC2 for tests: moto behind the proxy.

use std::sync::Arc;
use std::time::Duration;

use coalition_aws::{CredentialSource, Credentials, Ec2, Ec2Region, RegionSetup, STANDARD_VCPUS, Setup};
use coalition_aws_double::{Double, Moto, REGION};
use compute_bridge::backends::{CloudBackend, CloudSetup};

use super::accounts::Hosts;
use super::harness::*;

/// The policy operators give the bridge; the made user has it and nothing else.
const POLICY: &str = include_str!("../../../../docs/permissions/aws.json");

pub(crate) struct Cloud {
    pub(crate) double: Double,
    pub(crate) hosts: Hosts,
}

impl Cloud {
    /// `None`, with a word, where moto or sshd is missing.
    pub(crate) async fn start() -> Option<Self> {
        let hosts = Hosts::new()?;
        let double = Double::start(POLICY, hosts.boot()).await?;
        Some(Self { double, hosts })
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
        let region = Ec2Region::new(self.region()).unwrap();
        let sizes = [("m6a.xlarge", 4_000, 15_000, "0.2"), ("m6a.large", 2_000, 7_500, "0.1")];
        self.hosts.setup("aws", Arc::new(region), &sizes)
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
